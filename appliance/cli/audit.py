"""``appliance audit``: list, verify, prove.

Owns: these commands.
Never: interprets an entry; what it shows is what the ledger holds.
Read next: ``store.verify``, which checks a proof without any of this.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from appliance.cli.client import segment
from appliance.cli.context import Context, Group, pass_context
from appliance.cli.output import cell_text
from appliance.errors import EX_IOERR, ConfigInvalid

_LEFT_OUT = ("_id", "_ns", "_by", "digest")  # --json has them; ACTOR and OBJECT say most of it.


@click.group(
    cls=Group,
    examples=(
        "appliance audit list --kind call.outcome --limit 20",
        "appliance audit verify",
        "appliance audit prove 42 --out entry-42.proof",
    ),
)
def audit() -> None:
    """The audit log: sealed, chained and provable."""


@audit.command("list", examples=("appliance audit list", "appliance audit list --tenant demo"))
@click.option("--after", type=int, metavar="SEQ", help="Entries after this one, oldest first.")
@click.option("--before", type=int, metavar="SEQ", help="Entries before this one, newest first.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--kind", help="Only this kind, e.g. version.registered, or 'egress.*'.")
@click.option("--actor", help="Only what this principal did.")
@click.option("--tenant", help="Only what concerns this tenant.")
@pass_context
def list_(
    context: Context,
    after: int | None,
    before: int | None,
    limit: int,
    kind: str | None,
    actor: str | None,
    tenant: str | None,
) -> None:
    """List entries, newest first."""
    with context.client() as client:
        document = client.get(
            "/api/v1/audit",
            after=after,
            before=before,
            limit=limit,
            kind=kind,
            actor=actor,
            tenant=tenant,
        )
    rows = [{**e, "event": _short(e.get("event"))} for e in document["entries"]]
    context.output.table(
        document,
        rows,
        (
            ("SEQ", "seq"),
            ("TIME", "time"),
            ("KIND", "kind"),
            ("TENANT", "tenant"),
            ("ACTOR", "actor"),
            ("OBJECT", "object"),
            ("EVENT", "event"),
        ),
    )


def _short(event: object, characters: int = 72) -> str:
    """What an event says in one line of a table: without ids, times and digests."""
    text = ", ".join(_said(event)) or "-"
    return text if len(text) <= characters else text[: characters - 3] + "..."


def _said(value: object, name: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, member in value.items():
            yield from _said(member, str(key))
    elif isinstance(value, list):
        if value and all(isinstance(one, (str, int, float)) for one in value):
            yield f"{name} {' '.join(map(str, value))}"
    elif value not in (None, "") and not name.endswith(_LEFT_OUT) and name != "id":
        yield f"{name} {cell_text(value)}"


@audit.command(
    "calls", examples=("appliance audit calls req_8Zk2Qw", "appliance audit calls job_1a")
)
@click.argument("call", metavar="CALL")
@pass_context
def calls(context: Context, call: str) -> None:
    """Show the calls that belong to CALL: models that called models, and steps of pipelines.

    CALL is a request id, as "appliance model call" prints it, a job's id, or the id of a call in
    the audit log. Indented calls were made by the one above them.
    """
    with context.client() as client:
        document = client.get(f"/api/v1/audit/calls/{segment(call)}")
    rows = [
        {
            **one,
            "model": f"{'  ' * one['depth']}{one['tenant']}/{one['model']}:{one['version']}",
            "start": "cold" if one["cold"] else "warm",
        }
        for one in document["calls"]
    ]
    context.output.table(
        document,
        rows,
        (
            ("MODEL", "model"),
            ("CODE", "code"),
            ("MS", "total_ms"),
            ("START", "start"),
            ("CALL", "call"),
            ("ENTRY", "audit_seq"),
        ),
    )


@audit.command("verify", examples=("appliance audit verify && echo untouched",))
@pass_context
def verify(context: Context) -> int:
    """Check every entry, the chain and the heads; ends with 74 and the first bad entry if not."""
    with context.output.progress("verify") as advance, context.client(timeout_s=3600) as client:
        advance(0.0, "reading the ledger")
        report = client.send("POST", "/api/v1/audit/verify")
        advance(1.0, "")
    head = report.get("head") or {}
    if report["ok"]:
        text = (
            f"ok: {report['entries']} entries, head {head.get('root', '')}, "
            f"{report.get('elapsed_ms', 0):.0f} ms"
        )
    else:
        text = f"NOT ok: first bad entry {report.get('first_bad_seq')}: {report.get('detail', '')}"
    context.output.data(report, text)
    return 0 if report["ok"] else EX_IOERR


@audit.command(
    "prove",
    examples=("appliance audit prove 42", "appliance audit prove 42 --out entry-42.proof"),
)
@click.argument("seq", type=click.IntRange(min=0))
@click.option("--out", metavar="FILE", help="Write the proof here.")
@pass_context
def prove(context: Context, seq: int, out: str | None) -> None:
    """Print a proof that entry SEQ is in the log, checkable without this appliance.

    Check it anywhere with: python verify.py proof FILE --public-key KEY (appliance/store/verify.py)
    """
    with context.client() as client:
        proof = client.text(f"/api/v1/audit/{seq}/proof")
        public_key = client.get("/api/v1/audit/key")["public_key"]
    if out:
        try:
            Path(out).write_text(proof, encoding="utf-8")
        except OSError as error:
            raise ConfigInvalid(f"{out}: cannot be written: {error.strerror}.") from error
    document = {"seq": seq, "public_key": public_key, "proof": proof}
    if out or context.output.is_json:
        context.output.data(document, f"proof of entry {seq} is in {out}")
    else:
        context.output.verbatim(proof)
    context.output.say(f"public key: {public_key}")


@audit.command("key", examples=("appliance audit key",))
@pass_context
def key(context: Context) -> None:
    """Print the public key that signs the heads of the log."""
    with context.client() as client:
        document = client.get("/api/v1/audit/key")
    context.output.data(document, document["public_key"])
