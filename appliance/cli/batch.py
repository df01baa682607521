"""``appliance batch``: run, submit, wait, list, show, cancel, output, folders.

Owns: these commands, and the notation ``TENANT/BATCH``.
Never: looks into a table, or keeps anything of a batch on this side but the file it was told to.
Read next: ``api.native.batches`` (who answers), ``job`` (the same for single calls).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from appliance.cli import following
from appliance.cli.client import Client, require_succeeded, segment
from appliance.cli.context import Context, Group, pass_context
from appliance.cli.output import Advance
from appliance.cli.reference import reference

_REFERENCE = re.compile(r"^([a-z0-9-]+)/(batch_[0-9a-z]+)$")
_MEDIA = {
    "parquet": "application/vnd.apache.parquet",
    "pq": "application/vnd.apache.parquet",
    "csv": "text/csv",
    "tsv": "text/csv",
    "ndjson": "application/x-ndjson",
    "jsonl": "application/x-ndjson",
    "json": "application/json",
}
_INTO = ("parquet", "csv", "ndjson")
_PIECE = 1024 * 1024


@click.group(
    cls=Group,
    examples=(
        "appliance batch run demo/churn@live --data rows.parquet --out scored.parquet",
        "appliance batch submit demo/churn:4 --data rows.csv",
        "appliance batch output demo/batch_0123456789abc --out scored.parquet",
    ),
)
def batch() -> None:
    """Tables that a version scores row by row; a restart goes on where it was."""


PLAN = (
    click.option(
        "--from",
        "taken_from",
        default="",
        metavar="FOLDER/FILE",
        help="The table, where the appliance finds it: see 'batch folders'.",
    ),
    click.option(
        "--to",
        "put_into",
        default="",
        metavar="FOLDER/FILE",
        help="Where the appliance puts the output, in place of a file of that name.",
    ),
    click.option(
        "--form",
        type=click.Choice(["auto", "records", "rows", "columns", "list"]),
        default="auto",
        show_default=True,
        help="How rows are put into a body.",
    ),
    click.option(
        "--on-error",
        type=click.Choice(["fail", "null"]),
        default="fail",
        show_default=True,
        help="A row that fails ends the batch, or gets null and its error.",
    ),
    click.option(
        "--chunk-rows",
        type=click.IntRange(1, 100_000),
        default=1000,
        show_default=True,
        help="Most rows of one call.",
    ),
    click.option("--no-carry", is_flag=True, help="Leave the table's columns out."),
)
"""The options of ``query_of``, besides ``into``."""
_OPTIONS = (
    click.argument("name", metavar="TENANT/NAME[:VERSION|@ALIAS]"),
    click.option(
        "--data",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="The table: .parquet, .csv, .ndjson or .json.",
    ),
    *PLAN,
    click.option(
        "--idempotency-key",
        default="",
        help="The same key and request give the same batch for as long as it is kept.",
    ),
    click.option(
        "--webhook", default="", metavar="URL", help="Tell this https address of the batch."
    ),
    click.option(
        "--webhook-event",
        "webhook_events",
        multiple=True,
        type=click.Choice(["start", "progress", "completed"]),
        help="Of this; start and completed if none is given.",
    ),
)


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """What ``run`` and ``submit`` take."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@batch.command(
    "run",
    examples=(
        "appliance batch run demo/churn:4 --data rows.parquet --out scored.parquet",
        "appliance batch run demo/churn --data rows.csv --out scored.csv --on-error null",
    ),
)
@_options
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the scored table here: .parquet, .csv or .ndjson.",
)
@pass_context
def run(context: Context, /, name: str, data: Path | None, out: Path | None, **plan: Any) -> None:
    """Score a table and fetch the result; what cuts this off, cuts off the waiting only."""
    if out is None and not plan["put_into"]:
        raise click.UsageError("say where the scored table goes: --out FILE, or --to FOLDER/FILE.")
    into = format_of(out.name if out else plan["put_into"])
    with context.client(timeout_s=following.TIMEOUT_S) as client:
        with context.output.progress("score") as advance:
            document = _submit(client, name, data, {**plan, "into": into}, advance)
            context.output.say(f"appliance batch show {_place(document)}")
            document = _wait(client, document, advance)
        require_succeeded(document, "batch")
        if out is not None:
            following.fetch(client, f"{document['urls']['get']}/output", out)
    where = out or document["put_into"]
    context.output.data(document, f"{_place(document)}  {document['rows']} rows scored to {where}")


@batch.command(
    "submit",
    examples=(
        "appliance batch submit demo/churn:4 --data rows.parquet",
        "appliance batch submit demo/churn@live --data rows.csv --into csv --on-error null",
        "appliance batch submit demo/churn --from lake/rows.parquet --to lake/scored.parquet",
    ),
)
@_options
@click.option(
    "--into",
    type=click.Choice(_INTO),
    help="The format of the output: that of --to by its name, else parquet.",
)
@pass_context
def submit(context: Context, /, name: str, data: Path | None, **plan: Any) -> None:
    """Have a table scored, without waiting."""
    named = plan["put_into"]
    plan["into"] = plan["into"] or (format_of(named) if named else "parquet")
    with (
        context.client(timeout_s=following.TIMEOUT_S) as client,
        context.output.progress("upload") as advance,
    ):
        document = _submit(client, name, data, plan, advance)
    context.output.data(document, f"{_place(document)}  {document['status']}")
    context.output.say(f"appliance batch show {_place(document)}")


@batch.command("list", examples=("appliance batch list demo",))
@click.argument("tenant")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
@pass_context
def list_(context: Context, tenant: str, limit: int) -> None:
    """List batches, newest first."""
    with context.client() as client:
        document = client.get(f"/api/v1/batches/{segment(tenant)}", limit=limit)
    rows = [
        {**item, "code": (item["error"] or {}).get("code"), "done": _done(item)}
        for item in document["items"]
    ]
    context.output.table(
        document,
        rows,
        (
            ("BATCH", "id"),
            ("STATUS", "status"),
            ("MODEL", "model"),
            ("VERSION", "version"),
            ("ROWS", "rows"),
            ("DONE", "done"),
            ("CREATED", "created_at"),
            ("ERROR", "code"),
        ),
        empty="no batches: appliance batch run TENANT/NAME --data rows.parquet --out ...",
    )


@batch.command("show", examples=("appliance batch show demo/batch_0123456789abc",))
@click.argument("name", metavar="TENANT/BATCH")
@pass_context
def show(context: Context, name: str) -> None:
    """Show a batch and how far it is."""
    with context.client() as client:
        document = client.get(_path(name))
    context.output.data(document, _lines(document))


@batch.command("wait", examples=("appliance batch wait demo/batch_0123456789abc --timeout 600",))
@click.argument("name", metavar="TENANT/BATCH")
@click.option("--timeout", type=click.IntRange(min=1), help="Give up after so many seconds.")
@pass_context
def wait(context: Context, name: str, timeout: int | None) -> None:
    """Wait for a batch's end; ends with an error if the batch failed or was cancelled."""
    with context.client(timeout_s=120) as client:
        document = following.ended(client, client.get(_path(name)), timeout_s=timeout)
    context.output.data(document, _lines(document))
    require_succeeded(document, "batch")


@batch.command("folders", examples=("appliance batch folders demo",))
@click.argument("tenant")
@pass_context
def folders(context: Context, tenant: str) -> None:
    """List the folders that tables may be taken from, and outputs put into."""
    with context.client() as client:
        document = client.get(f"/api/v1/tenants/{segment(tenant)}/folders")
    context.output.table(
        document,
        document["items"],
        (("FOLDER", "name"), ("WRITABLE", "writable")),
        empty="no folders: IT declares them, see batches.folders in 'appliance config explain'",
    )


@batch.command("cancel", examples=("appliance batch cancel demo/batch_0123456789abc",))
@click.argument("name", metavar="TENANT/BATCH")
@pass_context
def cancel(context: Context, name: str) -> None:
    """Cancel a batch; one that has ended stays as it is."""
    with context.client() as client:
        document = client.send("POST", f"{_path(name)}/cancel")
    context.output.data(document, f"{name}  {document['status']}")


@batch.command(
    "output", examples=("appliance batch output demo/batch_0123456789abc --out scored.parquet",)
)
@click.argument("name", metavar="TENANT/BATCH")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write it here.")
@pass_context
def output(context: Context, name: str, out: Path | None) -> None:
    """Fetch the scored table; to standard output without --out, as it is with --json too."""
    with context.client(timeout_s=following.TIMEOUT_S) as client:
        following.fetch(client, f"{_path(name)}/output", out)
    if out is not None:
        context.output.say(f"wrote {out}")


def _submit(
    client: Client, name: str, data: Path | None, plan: dict[str, Any], advance: Advance
) -> dict[str, Any]:
    target = reference(name)
    if (data is None) == (not plan["taken_from"]):
        raise click.UsageError("the table is --data FILE or --from FOLDER/FILE, one of them.")
    query = query_of(plan)
    if data is None:
        sent: dict[str, Any] = {"headers": _wishes(plan)}
    else:
        sent = _upload(data, plan, advance)
    reply = client.request("POST", f"{target.target}/batch", params=query, **sent)
    document: dict[str, Any] = reply.json()
    return document


def query_of(plan: dict[str, Any]) -> dict[str, Any]:
    """The query that asks for what these options say."""
    query = {
        "into": plan["into"],
        "form": plan["form"],
        "on_error": plan["on_error"],
        "chunk_rows": plan["chunk_rows"],
        "carry": "false" if plan["no_carry"] else "true",
    }
    named = {"from": plan["taken_from"], "to": plan["put_into"]}
    return query | {key: place for key, place in named.items() if place}


def _upload(data: Path, plan: dict[str, Any], advance: Advance) -> dict[str, Any]:
    """What a request with a table in it has."""
    size = data.stat().st_size
    headers = {
        "Content-Type": _MEDIA.get(_extension(data.name), "application/octet-stream"),
        "Content-Length": str(size),
        **_wishes(plan),
    }

    def pieces() -> Iterator[bytes]:
        sent = 0
        with data.open("rb") as file:
            while piece := file.read(_PIECE):
                sent += len(piece)
                advance(0.1 * sent / size, f"sending {data.name}")
                yield piece

    return {"content": pieces(), "headers": headers}


def _wishes(plan: dict[str, Any]) -> dict[str, str]:
    """The headers for what is asked of a batch besides its scoring."""
    found = {
        "Idempotency-Key": plan["idempotency_key"],
        "Webhook": plan["webhook"],
        "Webhook-Events-Filter": ",".join(plan["webhook_events"]),
    }
    return {name: value for name, value in found.items() if value}


def _wait(client: Client, document: dict[str, Any], advance: Advance) -> dict[str, Any]:
    def each(one: dict[str, Any]) -> None:
        words = "waiting for its turn"
        if one["status"] == "processing":
            words = f"{one['rows_done']} of {one['rows']} rows"
            if one["eta_s"] is not None:
                words += f", {one['rows_per_s']:.0f} rows/s, {one['eta_s']:.0f} s left"
        elif one["status"] in following.ENDS:
            words = one["status"]
        advance(0.1 + 0.9 * one["rows_done"] / one["rows"], words)

    return following.ended(client, document, each=each, step_s=1)


def _extension(name: str) -> str:
    return Path(name).suffix.lower().removeprefix(".")


def format_of(name: str) -> str:
    """The format that a file of this name has."""
    into = {"pq": "parquet", "jsonl": "ndjson"}.get(_extension(name), _extension(name))
    if into not in _INTO:
        raise click.UsageError(f"'{name}': write .parquet, .csv or .ndjson.")
    return into


def _path(name: str) -> str:
    match = _REFERENCE.match(name)
    if match is None:
        raise click.UsageError(f"'{name}' is not TENANT/BATCH, such as demo/batch_0123456789abc.")
    return f"/api/v1/batches/{segment(match[1])}/{segment(match[2])}"


def _place(document: dict[str, Any]) -> str:
    return f"{document['tenant']}/{document['id']}"


def _done(document: dict[str, Any]) -> str:
    return f"{100 * document['rows_done'] / document['rows']:.0f}%"


def _lines(document: dict[str, Any]) -> str:
    left = document["eta_s"]
    shown = {
        "batch": _place(document),
        "status": document["status"],
        "model": f"{document['tenant']}/{document['model']}:{document['version']}",
        "rows": f"{document['rows_done']} of {document['rows']} ({_done(document)})",
        "failed rows": document["rows_failed"],
        "speed": document["rows_per_s"] and f"{document['rows_per_s']:.0f} rows/s",
        "left": left is not None and f"{left:.0f} s",
        "input": f"{document['input_bytes']} bytes of {document['source']}",
        "from": document["taken_from"],
        "to": document["put_into"],
        "schedule": document["scheduled_by"],
        "columns": ", ".join(f"{c['name']} {c['type']}" for c in document["columns"][:20]),
        "asked in": f"{document['form']}, at most {document['chunk_rows']} rows a call",
        "output": document["into"],
        "created": f"{document['created_at']} by {document['created_by']}",
        "started": document["started_at"],
        "completed": document["completed_at"],
        "error": document["error"]
        and f"{document['error']['code']}: {document['error']['detail']}",
    }
    return "\n".join(f"{name:<12} {value}" for name, value in shown.items() if value)
