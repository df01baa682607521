"""``appliance drift``: show, baseline set, show and rm, thresholds set, compare.

Owns: these commands; ``compare`` works on two files, without an appliance.
Never: judges a version; the appliance does.
Read next: ``appliance.drift`` (the statistics), ``api.native.drift`` (who answers).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from appliance.cli.client import Client
from appliance.cli.context import Context, Group, pass_context
from appliance.cli.model import reference
from appliance.errors import InputInvalid

_SPAN = re.compile(r"([1-9][0-9]{0,6})([smhdw])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_LIMIT = re.compile(r"(?:([^=]+):)?([a-z]+)=([0-9]+(?:\.[0-9]+)?|default)")
_COLUMNS = (
    ("FEATURE", "name"),
    ("KIND", "kind"),
    ("STATISTIC", "statistic"),
    ("VALUE", "shown"),
    ("CHANCE", "chance"),
    ("THRESHOLD", "limit"),
    ("VERDICT", "verdict"),
    ("SINCE", "since"),
)


class Span(click.ParamType[int]):
    """A time such as 90s, 30m, 24h, 7d or 2w, as seconds."""

    name = "time"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        """Its seconds."""
        if isinstance(value, int):
            return value
        match = _SPAN.fullmatch(value)
        if match is None:
            self.fail(f"'{value}' is no time: write 90s, 30m, 24h, 7d or 2w", param, ctx)
        return int(match[1]) * _UNITS[match[2]]


_WHICH = click.argument("version", metavar="TENANT/NAME[:VERSION]")
_REVISION = click.option(
    "--revision", type=click.IntRange(min=0), help="Only if the baseline is at this revision."
)
_REASON = click.option("--reason", default="", help="Why; kept in the audit log.")


@click.group(
    cls=Group,
    examples=(
        "appliance drift baseline set demo/x:3 --data train.csv --output label",
        "appliance drift show demo/x:3 --since 24h",
        "appliance drift thresholds set demo/x:3 psi=0.3 age:psi=0.5 --rows-min 500",
        "appliance drift compare train.csv march.csv",
    ),
)
def drift() -> None:
    """How far a version's calls are from what it was made for."""


@drift.command(
    "show",
    examples=("appliance drift show demo/x:3", "appliance drift show demo/x@live --since 7d --all"),
)
@_WHICH
@click.option("--since", type=Span(), help="How far back; default: the window it is judged by.")
@click.option("--all", "is_all", is_flag=True, help="Every statistic of each column.")
@pass_context
def show(context: Context, version: str, since: int | None, is_all: bool) -> None:
    """Show each column of a version by its worst score, the worst first."""
    with context.client() as client:
        document = client.get(f"{_target(client, version)}/drift", since_s=since)
    baseline = document["baseline"]
    context.output.say(
        f"{baseline['tenant']}/{baseline['model']}:{baseline['version']}  {document['rows']} "
        f"records in {document['calls']} calls of the last {_span(document['since_s'])}; baseline "
        f"revision {baseline['revision']}, {baseline['rows']} records of {baseline['source']}"
    )
    for name, what in (("unread", "no form that is understood"), ("dropped", "too many waited")):
        if document[name]:
            context.output.say(f"{document[name]} calls were not counted: {what}")
    rows = sorted(document["scores"], key=_badness)
    if not is_all:
        worst = {(row["output"], row["feature"]): row for row in reversed(rows)}
        rows = [row for row in rows if row is worst[row["output"], row["feature"]]]
    told = {_key(breach): breach["since"] for breach in document["breaches"]}
    context.output.table(
        document, [_row(row) | {"since": told.get(_key(row), "")} for row in rows], _COLUMNS
    )


@drift.group(
    "baseline",
    cls=Group,
    examples=(
        "appliance drift baseline set demo/x:3 --data train.csv --output label",
        "appliance drift baseline set demo/x:3 --window 24h",
        "appliance drift baseline rm demo/x:3",
    ),
)
def baseline() -> None:
    """What a version's calls are compared with."""


@baseline.command(
    "set",
    examples=(
        "appliance drift baseline set demo/x:3 --data train.csv --output label",
        "appliance drift baseline set demo/x:3 --window 24h --reason 'new season'",
        "appliance drift baseline set demo/x:4 --window 7d --of 3",
        "appliance drift baseline set demo/x:3 --next 1000",
    ),
)
@_WHICH
@click.option(
    "--data", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Parquet, CSV, NDJSON or JSON with the columns it is called with.",
)  # fmt: skip
@click.option("--output", default="", metavar="COLUMN", help="The column that is its answer.")
@click.option("--window", type=Span(), help="The calls of the last time instead of data.")
@click.option("--next", "records", type=click.IntRange(20, 10_000), help="Learn from so many.")
@click.option("--of", type=click.IntRange(min=1), help="Whose calls; default: its own.")
@_REASON
@_REVISION
@pass_context
def set_(context: Context, /, version: str, revision: int | None, **options: Any) -> None:
    """Compare a version with data, or with past calls, from now on."""
    data, window, records = options["data"], options["window"], options["records"]
    if sum(one is not None for one in (data, window, records)) != 1:
        raise click.UsageError("name one of --data FILE, --window TIME and --next RECORDS")
    headers = _if_match(revision)
    with context.client(timeout_s=600.0) as client:
        path = f"{_target(client, version)}/drift/baseline"
        if records is not None:
            body = {"records": records, "reason": options["reason"]}
            document = client.send("POST", f"{path}/learn", body, **headers)
        elif data is None:
            body = {"window_s": window, "of": options["of"] or 0, "reason": options["reason"]}
            document = client.send("POST", f"{path}/window", body, **headers)
        else:
            named = {"output": options["output"], "reason": options["reason"]}
            document = client.request(
                "PUT",
                path,
                content=data.read_bytes(),
                params={name: value for name, value in named.items() if value},
                headers={"Content-Type": _type_of(data), **headers},
            ).json()
    context.output.data(document, _described(document))


@baseline.command("rm", examples=("appliance drift baseline rm demo/x:3",))
@_WHICH
@_REVISION
@pass_context
def remove(context: Context, version: str, revision: int | None) -> None:
    """Compare a version with nothing, and delete what was counted."""
    with context.client() as client:
        path = f"{_target(client, version)}/drift/baseline"
        client.send("DELETE", path, **_if_match(revision))
    context.output.data({"removed": version}, f"removed the baseline of {version}")


@drift.group(
    "thresholds",
    cls=Group,
    examples=(
        "appliance drift thresholds set demo/x:3 psi=0.3 ks=0.2",
        "appliance drift thresholds set demo/x:3 age:psi=0.5 age:missing=0",
    ),
)
def thresholds() -> None:
    """From which score on a version has drifted."""


@thresholds.command(
    "set",
    examples=(
        "appliance drift thresholds set demo/x:3 psi=0.3 ks=0.2",
        "appliance drift thresholds set demo/x:3 age:psi=0.5 age:missing=0 --rows-min 500",
        "appliance drift thresholds set demo/x:3 psi=default --window 6h",
    ),
)
@_WHICH
@click.argument("limits", metavar="[COLUMN:]STATISTIC=LIMIT...", nargs=-1)
@click.option("--rows-min", type=click.IntRange(min=20), help="Records before anything is judged.")
@click.option("--window", type=Span(), help="The time looked at, 1m to 24h.")
@_REASON
@_REVISION
@pass_context
def set_thresholds(
    context: Context, /, version: str, limits: tuple[str, ...], revision: int | None, **options: Any
) -> None:
    """Set thresholds, for all columns or one; 0: not judged; 'default' undoes."""
    body: dict[str, Any] = {"limits": {}, "features": {}, "reason": options["reason"]}
    for text in limits:
        match = _LIMIT.fullmatch(text)
        if match is None:
            raise click.UsageError(f"'{text}' is no threshold: write psi=0.3 or COLUMN:psi=0.3")
        limit = None if match[3] == "default" else float(match[3])
        place = body["features"].setdefault(match[1], {}) if match[1] else body["limits"]
        place[match[2]] = limit
    body |= {
        name: options[option]
        for name, option in (("rows_min", "rows_min"), ("window_s", "window"))
        if options[option] is not None
    }
    with context.client() as client:
        path = f"{_target(client, version)}/drift/thresholds"
        document = client.send("PUT", path, body, **_if_match(revision))
    context.output.data(document, _described(document))


@drift.command(
    "compare",
    examples=(
        "appliance drift compare train.csv march.csv",
        "appliance drift compare a.csv b.csv --json",
    ),
)
@click.argument("one", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("other", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@pass_context
def compare(context: Context, one: Path, other: Path) -> None:
    """Compare two files, value by value, without an appliance: exact KS with its p-value."""
    import asyncio

    from appliance.drift.exact import compared
    from appliance.watch.data import table_of

    async def both() -> list[Any]:
        return [await table_of(_type_of(path), path.read_bytes()) for path in (one, other)]

    sides = asyncio.run(both())
    rows = compared(*sides)
    if not rows:
        raise InputInvalid("The two files have no column in common.")
    document = {"rows": [side.rows for side in sides], "features": rows}
    shown = [
        {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items()}
        for row in rows
    ]
    context.output.table(
        document,
        shown,
        (
            ("FEATURE", "feature"),
            ("KIND", "kind"),
            ("PSI", "psi"),
            ("JS", "js"),
            ("KS", "ks"),
            ("P", "p_value"),
            ("MISSING", "missing"),
            ("OUTSIDE", "outside"),
        ),
    )


def _target(client: Client, text: str) -> str:
    """The path of a version: ``:3`` or ``@3`` is a number, ``@NAME`` an alias, nothing ``live``."""
    found = reference(text)
    if found.version:
        return found.target
    if found.alias and found.alias.isdigit():
        return f"{found.path}/versions/{found.alias}"
    number = client.get(f"{found.path}/aliases/{found.alias or 'live'}")["version"]
    return f"{found.path}/versions/{number}"


def _type_of(path: Path) -> str:
    from appliance import tables

    with path.open("rb") as file:
        return tables.MEDIA_TYPES[tables.format_of(name=path.name, head=file.read(64))]


def _if_match(revision: int | None) -> dict[str, str]:
    return {} if revision is None else {"If-Match": f'"{revision}"'}


def _badness(row: dict[str, Any]) -> tuple[int, float]:
    order = {"breach": 0, "ok": 1, "few": 1, "unjudged": 2}[row["verdict"]]
    return order, -row["value"] / (row["threshold"] or 1.0)


def _key(row: dict[str, Any]) -> tuple[bool, str, str]:
    return row["output"], row["feature"], row["statistic"]


def _name(row: dict[str, Any]) -> str:
    return f"{row['feature']} (output)" if row["output"] else str(row["feature"])


def _row(row: dict[str, Any]) -> dict[str, Any]:
    chance = row["by_chance"]
    return {
        "name": _name(row),
        "kind": row["kind"],
        "statistic": row["statistic"],
        "shown": f"{row['value']:.4f}",
        "chance": "-" if chance is None else f"{chance:.4f}",
        "limit": f"{row['threshold']:g}" if row["threshold"] else "-",
        "verdict": row["verdict"],
    }


def _span(seconds: int) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size and not seconds % size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _described(document: dict[str, Any]) -> str:
    known = document["thresholds"]
    limits = [f"{name} {limit:g}" for name, limit in known["limits"].items() if limit]
    made = f"{document['rows']} records of {document['source']}"
    if document["source"] == "learning":
        made = f"to be learned from the next {document['rows']} records"
    lines = [
        f"{document['tenant']}/{document['model']}:{document['version']}  baseline revision "
        f"{document['revision']}: {made}, "
        f"{document['inputs']} input and {document['outputs']} output columns",
        f"  thresholds  {', '.join(limits) or 'none'}; at least {known['rows_min']} records in "
        f"{_span(known['window_s'])}",
    ]
    for feature, own in known["features"].items():
        named = ", ".join(
            f"{name} {limit:g}" if limit else f"{name} not judged" for name, limit in own.items()
        )
        lines.append(f"  {feature}  {named}")
    return "\n".join(lines)
