"""``appliance sample`` and ``appliance model replay``: keep calls, and repeat them.

Owns: these commands, and how a replay's report reads.
Never: shows a kept call but those a replay found different.
Read next: ``api.native.samples`` (who answers), ``comparison`` (follows a replay).
"""

from __future__ import annotations

import re
from typing import Any

import click

from appliance.cli.comparison import finish
from appliance.cli.context import Command, Context, Group, pass_context
from appliance.cli.reference import reference
from appliance.cli.tenant import confirm

_PERIOD = re.compile(r"([1-9][0-9]{0,6})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_MIB = 1024 * 1024


@click.group(
    cls=Group,
    examples=(
        "appliance sample set demo/churn --percent 5 --days 7",
        "appliance sample show demo/churn",
        "appliance sample list demo/churn",
        "appliance model replay demo/churn --against 4",
        "appliance sample rm demo/churn",
    ),
)
def sample() -> None:
    """Calls of a model that are kept, sealed, to be repeated later; off unless an owner asks."""


@sample.command(
    "set",
    examples=(
        "appliance sample set demo/churn --percent 5 --days 7",
        "appliance sample set demo/churn --percent 100 --count-max 200 --mib-max 16",
    ),
)
@click.argument("name", metavar="TENANT/NAME")
@click.option("--percent", type=click.FloatRange(0, 100, min_open=True), required=True,
              help="Of the calls that succeed.")  # fmt: skip
@click.option("--days", type=click.IntRange(1, 90), default=7, show_default=True)
@click.option("--count-max", type=click.IntRange(1, 100_000), default=1000, show_default=True,
              help="The newest stay.")  # fmt: skip
@click.option("--mib-max", type=click.IntRange(1, 4096), default=64, show_default=True)
@pass_context
def set_(
    context: Context, name: str, percent: float, days: int, count_max: int, mib_max: int
) -> None:
    """Have a share of a model's calls kept; its callers see the header Sampled-Percent."""
    body = {
        "percent": percent,
        "days": days,
        "count_max": count_max,
        "bytes_max": mib_max * _MIB,
    }
    target = reference(name, is_model=True)
    with context.client() as client:
        document = client.send("PUT", f"{target.path}/samples", body)
    context.output.data(document, _lines(document))


@sample.command("off", examples=("appliance sample off demo/churn",))
@click.argument("name", metavar="TENANT/NAME")
@pass_context
def off(context: Context, name: str) -> None:
    """Keep no more calls; those that are kept stay until their days are over."""
    target = reference(name, is_model=True)
    with context.client() as client:
        document = client.send("PUT", f"{target.path}/samples", {"percent": 0})
    context.output.data(document, _lines(document))


@sample.command("show", examples=("appliance sample show demo/churn",))
@click.argument("name", metavar="TENANT/NAME")
@pass_context
def show(context: Context, name: str) -> None:
    """Show which calls of a model are kept, and how many there are."""
    target = reference(name, is_model=True)
    with context.client() as client:
        document = client.get(f"{target.path}/samples")
    context.output.data(document, _lines(document))


@sample.command(
    "list",
    examples=("appliance sample list demo/churn", "appliance sample list demo/churn --limit 10"),
)
@click.argument("name", metavar="TENANT/NAME")
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True)
@pass_context
def list_(context: Context, name: str, limit: int) -> None:
    """List the kept calls of a model, newest first, without what was asked and answered."""
    target = reference(name, is_model=True)
    with context.client() as client:
        document = client.get(f"{target.path}/samples/calls", limit=limit)
    context.output.table(
        document,
        document["items"],
        (("CALL", "call_id"), ("AT", "at"), ("UNTIL", "until"), ("BYTES", "kept_bytes")),
        empty=f"no calls are kept: appliance sample set {name} --percent 5",
    )


@sample.command("rm", examples=("appliance sample rm demo/churn",))
@click.argument("name", metavar="TENANT/NAME")
@click.option("--force", is_flag=True, help="Do not ask for the name again.")
@pass_context
def remove(context: Context, name: str, force: bool) -> None:
    """Delete every kept call of a model; whether more are kept stays as it is."""
    target = reference(name, is_model=True)
    confirm(name, force=force, what=f"the kept calls of {name}")
    with context.client() as client:
        document = client.send("DELETE", f"{target.path}/samples")
    context.output.data(document, f"deleted {document['removed']} kept calls of {name}")


@click.command(
    "replay",
    cls=Command,
    examples=(
        "appliance model replay demo/churn --against 4",
        "appliance model replay demo/churn --against 4 --since 24h --limit 200 --json",
    ),
)
@click.argument("name", metavar="TENANT/NAME")
@click.option("--against", type=click.IntRange(min=1), required=True, help="The version.")
@click.option("--since", default=None, metavar="24h", help="Only calls of so long: s, m, h, d.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=1000, show_default=True)
@click.option("--worst", type=click.IntRange(0, 100), default=10, show_default=True,
              help="How many of the calls to show that differ most.")  # fmt: skip
@click.option("--wait/--no-wait", "is_waiting", default=True, show_default=True)
@pass_context
def replay(
    context: Context,
    name: str,
    against: int,
    since: str | None,
    limit: int,
    worst: int,
    is_waiting: bool,
) -> None:
    """Repeat kept calls to another version and compare what it answers with what was answered."""
    body: dict[str, Any] = {"against": against, "limit": limit, "worst": worst}
    if since is not None:
        body["since_s"] = _seconds(since)
    target = reference(name, is_model=True)
    with context.client(timeout_s=120) as client:
        document = client.send("POST", f"{target.path}/replay", body)
        finish(context, client, document, is_waiting=is_waiting)


def _seconds(text: str) -> int:
    match = _PERIOD.fullmatch(text)
    if match is None:
        raise click.UsageError(f"'{text}' is no time such as 90s, 30m, 24h or 7d.")
    return int(match[1]) * _SECONDS[match[2]]


def _lines(document: dict[str, Any]) -> str:
    name = f"{document['tenant']}/{document['model']}"
    kept = f"{document['kept']} kept, {document['kept_bytes'] / _MIB:.1f} MiB"
    if document["oldest_at"]:
        kept += f", the oldest of {document['oldest_at']}"
    if document["dropped"]:
        kept += f"; {document['dropped']} could not be kept"
    if not document["percent"]:
        return f"{name}  no calls are kept\n{kept}"
    return (
        f"{name}  {document['percent']:g} percent of its calls are kept, sealed, for "
        f"{document['days']} days, at most {document['count_max']} and "
        f"{document['bytes_max'] / _MIB:.0f} MiB; by {document['set_by']}\n{kept}"
    )
