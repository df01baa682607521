"""``appliance model compare`` and ``appliance comparison``: ask, follow, list, show, cancel.

Owns: these commands, their progress bar, and how a report reads.
Never: computes anything of a report.
Read next: ``api.native.comparisons`` (who answers), ``reference`` for the notation of models.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from appliance.cli import following
from appliance.cli.client import Client, require_succeeded, segment
from appliance.cli.context import Command, Context, Group, pass_context
from appliance.cli.output import cell_text
from appliance.cli.reference import Reference, body_of, reference

_REFERENCE = re.compile(r"^([a-z0-9-]+)/(cmp_[0-9a-z]+)$")
_TYPES = {
    ".csv": "text/csv",
    ".ndjson": "application/x-ndjson",
    ".jsonl": "application/x-ndjson",
    ".parquet": "application/vnd.apache.parquet",
}
TASKS = ("classification", "regression", "ranking", "other")


@click.command(
    "compare",
    cls=Command,
    examples=(
        "appliance model compare demo/churn:3 demo/churn:4 --data test.csv --label target",
        "appliance model compare demo/a@live demo/b --data rows.ndjson --json",
        "appliance model compare demo/rank:1 demo/rank:2 --data q.csv --label grade --group query",
    ),
)
@click.argument("names", metavar="TENANT/NAME[:VERSION|@ALIAS]...", nargs=-1, required=True)
@click.option("--data", required=True, help="A file, - for stdin, or JSON itself.")
@click.option("--content-type", default="", help="Of the data; by default as the file is named.")
@click.option("--label", default="", help="The column that says what is true.")
@click.option("--group", default="", help="Rank the rows of each value of this column together.")
@click.option("--task", type=click.Choice(TASKS), help="What to measure; told from the data.")
@click.option("--form", default=None, help="How rows are sent; told from each version.")
@click.option("--batch", type=click.IntRange(1, 10_000), default=100, show_default=True)
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    default=1e-6,
    show_default=True,
    help="Share by which numbers that agree may differ.",
)
@click.option(
    "--worst",
    type=click.IntRange(0, 100),
    default=10,
    show_default=True,
    help="How many of the rows to show that differ most.",
)
@click.option("--wait/--no-wait", "is_waiting", default=True, show_default=True)
@pass_context
def compare(
    context: Context,
    /,
    names: tuple[str, ...],
    data: str,
    content_type: str,
    is_waiting: bool,
    **options: Any,
) -> None:
    """Send a data set through versions: how they agree, how good they are, what they cost.

    The data is CSV with a line of names, JSON, NDJSON or Parquet. Rows go to each version in the
    form it takes, in batches; nothing is changed, and every call is in the audit log.
    """
    targets = [reference(name) for name in names]
    tenants = {target.tenant for target in targets}
    if len(tenants) > 1:
        raise click.UsageError("All versions of a comparison are of one tenant.")
    kept = {name: value for name, value in options.items() if value not in (None, "")}
    kind = content_type or _TYPES.get(Path(data).suffix.lower(), "application/json")
    with context.client(timeout_s=900) as client:
        document = client.request(
            "POST",
            f"/api/v1/comparisons/{segment(tenants.pop())}",
            params={"models": ",".join(_short(target) for target in targets), **kept},
            content=body_of(data),
            headers={"Content-Type": kind},
        ).json()
        finish(context, client, document, is_waiting=is_waiting)


def _short(target: Reference) -> str:
    version = f":{target.version}" if target.version else ""
    return f"{target.name}{version}" + (f"@{target.alias}" if target.alias else "")


def finish(
    context: Context, client: Client, document: dict[str, Any], *, is_waiting: bool = True
) -> None:
    """Follow a comparison to its end and show it; or only say where it is."""
    place = f"{document['tenant']}/{document['id']}"
    if not is_waiting:
        context.output.data(document, f"{place}  {document['status']}")
        context.output.say(f"appliance comparison show {place}")
        return
    document = _followed(context, client, document)
    _show_end(context, document)


def _followed(context: Context, client: Client, document: dict[str, Any]) -> dict[str, Any]:
    with context.output.progress("compare") as advance:

        def each(one: dict[str, Any]) -> None:
            is_over = one["status"] in following.ENDS
            words = one["status"] if is_over else f"{one['status']}: {one['source']}"
            advance(1.0 if is_over else one["done"] / max(one["total"], 1), words)

        return following.ended(client, document, each=each, step_s=1)


def _show_end(context: Context, document: dict[str, Any]) -> None:
    context.output.data(document, text_of(document))
    require_succeeded(document, "comparison")


@click.group(
    cls=Group,
    examples=(
        "appliance model compare demo/churn:3 demo/churn:4 --data test.csv --label target",
        "appliance comparison list demo",
        "appliance comparison show demo/cmp_0123456789abc",
    ),
)
def comparison() -> None:
    """Comparisons of versions: list, show, cancel; 'model compare' makes one."""


@comparison.command("list", examples=("appliance comparison list demo",))
@click.argument("tenant")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
@pass_context
def list_(context: Context, tenant: str, limit: int) -> None:
    """List comparisons, newest first; they are kept for a day."""
    with context.client() as client:
        document = client.get(f"/api/v1/comparisons/{segment(tenant)}", limit=limit)
    rows = [
        {
            **item,
            "targets": [f"{one['model']}:{one['version']}" for one in item["targets"]],
            "progress": f"{item['done']}/{item['total']}",
        }
        for item in document["items"]
    ]
    context.output.table(
        document,
        rows,
        (
            ("COMPARISON", "id"),
            ("STATUS", "status"),
            ("SOURCE", "source"),
            ("TARGETS", "targets"),
            ("DONE", "progress"),
            ("CREATED", "created_at"),
            ("BY", "created_by"),
        ),
        empty="no comparisons: appliance model compare TENANT/NAME:1 TENANT/NAME:2 --data ...",
    )


@comparison.command("show", examples=("appliance comparison show demo/cmp_0123456789abc",))
@click.argument("name", metavar="TENANT/COMPARISON")
@click.option("--wait", "is_waiting", is_flag=True, help="Wait for its end.")
@pass_context
def show(context: Context, name: str, is_waiting: bool) -> None:
    """Show a comparison and its report."""
    with context.client(timeout_s=120) as client:
        document = client.get(_path(name))
        if is_waiting:
            document = _followed(context, client, document)
            _show_end(context, document)
            return
    context.output.data(document, text_of(document))


@comparison.command("cancel", examples=("appliance comparison cancel demo/cmp_0123456789abc",))
@click.argument("name", metavar="TENANT/COMPARISON")
@pass_context
def cancel(context: Context, name: str) -> None:
    """Cancel a comparison; one that has ended stays as it is."""
    with context.client() as client:
        document = client.send("POST", f"{_path(name)}/cancel")
    context.output.data(document, f"{name}  {document['status']}")


def _path(name: str) -> str:
    match = _REFERENCE.match(name)
    if match is None:
        raise click.UsageError(
            f"'{name}' is not TENANT/COMPARISON, such as demo/cmp_0123456789abc."
        )
    return f"/api/v1/comparisons/{segment(match[1])}/{segment(match[2])}"


# --- how a report reads ----------------------------------------------------------------------


def text_of(document: dict[str, Any]) -> str:
    """A comparison as text: a table of targets, how they agree, and the rows that differ most."""
    head = f"{document['tenant']}/{document['id']}  {document['status']}"
    report = document["report"]
    if document["replay"] is not None:
        return f"{head}: {_replay_text(document['replay'])}"
    if report is None:
        return f"{head}, {document['done']} of {document['total']} done"
    told = "told from the data" if report["is_task_inferred"] else "as asked"
    lines = [f"{head}: {report['rows']} rows, {report['task']} ({told})", ""]
    names = [f"{one['model']}:{one['version']}" for one in report["targets"]]
    lines += _grid(["", *names], _figures(report["targets"]))
    if report["agreement"]:
        lines += ["", *_grid(["AGREE", "SHARE", "ROWS", "MEAN DIFFERENCE"], _pairs(report, names))]
    if report["worst"]:
        lines += ["", "differ most:" if len(names) > 1 else "most wrong:"]
        lines += [_row_line(one, names) for one in report["worst"]]
    return "\n".join(lines)


def _replay_text(found: dict[str, Any]) -> str:
    """A replay as text: how often what was answered, and how long it took, then and now."""
    then, now = found["latency_then"], found["latency_now"]
    versions = ", ".join(f"{count} of version {one}" for one, count in found["versions"].items())
    counts = ("equal", "close", "different", "failed", "gone")
    rows = [[name, str(found[name])] for name in counts if found[name] or name != "gone"]
    rows += [
        ["p50 ms then, now", f"{_number(then['p50_ms'])}, {_number(now['p50_ms'])}"],
        ["p95 ms then, now", f"{_number(then['p95_ms'])}, {_number(now['p95_ms'])}"],
        ["now over then", _number(found["latency_ratio"])],
    ]
    head = f"{found['calls']} calls ({versions}) to {found['model']}:{found['against']}"
    lines = [head, "", *_grid(["", "CALLS"], rows)]
    if found["problems"]:
        lines.append("failed with: " + ", ".join(f"{k} {v}" for k, v in found["problems"].items()))
    if found["worst"]:
        lines += ["", "differ most:"]
    for one in found["worst"]:
        far = "" if one["distance"] is None else f" by {_number(one['distance'])}"
        then_now = f"{cell_text(one['then'])[:60]} then, {cell_text(one['now'])[:60]} now"
        lines.append(f"  {one['call_id']}{far}: {then_now}")
    return "\n".join(lines)


def _figures(targets: list[dict[str, Any]]) -> list[list[str]]:
    measures = list(dict.fromkeys(name for one in targets for name in one["metrics"]))
    rows = [
        [name.replace("_", " "), *(_number(one["metrics"].get(name)) for one in targets)]
        for name in measures
    ]
    for name, key, part in (
        ("p50 ms", "p50_ms", "latency"),
        ("p95 ms", "p95_ms", "latency"),
        ("ms a row", "row_ms", "latency"),
        ("calls", "calls", "latency"),
        ("compute s", "compute_s", "cost"),
        ("sandbox s", "sandbox_s", "cost"),
        ("cold starts", "cold_starts", "cost"),
    ):
        rows.append([name, *(_number(one[part][key]) for one in targets)])
    if any(one["failed_rows"] for one in targets):
        rows.append(["failed rows", *(_failed(one) for one in targets)])
    return rows


def _failed(target: dict[str, Any]) -> str:
    why = ", ".join(f"{code} {count}" for code, count in target["problems"].items())
    return f"{target['failed_rows']}" + (f" ({why})" if why else "")


def _pairs(report: dict[str, Any], names: list[str]) -> list[list[str]]:
    return [
        [
            f"{names[one['a']]} and {names[one['b']]}",
            f"{100 * one['share']:.2f} %" if one["share"] is not None else "-",
            str(one["rows"]),
            _number(one["mean_difference"]),
        ]
        for one in report["agreement"]
    ]


def _row_line(one: dict[str, Any], names: list[str]) -> str:
    said = ", ".join(
        f"{name} {_answer(answer)}" for name, answer in zip(names, one["answers"], strict=True)
    )
    true = f", true {cell_text(one['label'])}" if one["label"] is not None else ""
    return f"  row {one['row']}: {said}{true}"


def _answer(answer: Any) -> str:
    if isinstance(answer, dict) and "probabilities" in answer:
        return f"{cell_text(answer['value'])} ({max(answer['probabilities']):.3f})"
    return cell_text(answer)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _grid(head: list[str], rows: list[list[str]]) -> list[str]:
    cells = [head, *rows]
    widths = [max(len(line[at]) for line in cells) for at in range(len(head))]
    return [
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
