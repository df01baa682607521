"""What the drift screen can change: baselines, from data or from calls, and thresholds.

Owns: the dialogs for them and what they send, each from the revision that was on screen.
Never: judges anything; the server says what a baseline is made of.
Read next: ``screens/drift`` (the table they are for), ``dialogs.Form``.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from tui import text
from tui.client import Row, path_of
from tui.dialogs import Confirm, Field, Form, missing
from tui.files import media_of, read_data
from tui.frame import Page

SOURCES = ("data file", "past calls", "next calls")
_DEFAULT = "default"


def place_of(row: Row) -> str:
    """``risk/fraud:7``."""
    return f"{row['tenant']}/{row['model']}:{row['version']}"


def _path(name: str, *more: str) -> str | None:
    """The address of a version's drift; None for what is no ``tenant/model:version``."""
    tenant, slash, rest = name.partition("/")
    model, colon, version = rest.partition(":")
    if not (tenant and slash and model and colon and version.isdigit()):
        return None
    return path_of("api", "v1", "models", tenant, model, "versions", version, "drift", *more)


def _guard(revision: object) -> dict[str, str]:
    return {} if revision is None else {"If-Match": f'"{revision}"'}


# -- thresholds ------------------------------------------------------------------------------------


async def change_thresholds(page: Page, row: Row | None) -> None:
    """Ask for the thresholds of a version, as they are now, and send what was changed."""
    if row is None or not page.console.may("Change thresholds"):
        return
    name = place_of(row)
    path = _path(name)
    if path is None:
        return
    reply = await page.console.perform("GET", path, doing=f"Thresholds of {name}")
    found = (reply.data.get("baseline") or {}) if reply and isinstance(reply.data, dict) else {}
    known: Mapping[str, Any] = found.get("thresholds") or {}
    if not known:
        return
    limits = {str(key): float(value) for key, value in known["limits"].items()}
    columns = " ".join(
        shlex.quote(f"{column}:{statistic}={limit:g}")
        for column, each in known["features"].items()
        for statistic, limit in each.items()
    )
    values = await page.app.push_screen_wait(
        Form(
            title=f"Thresholds of {name}",
            fields=[
                *(Field(name=f"l-{key}", label=key, value=f"{limits[key]:g}") for key in limits),
                Field(name="columns", label="Of one column", value=columns, hint="age:psi=0.5"),
                Field(name="rows_min", label="At least records", value=str(known["rows_min"])),
                Field(name="window", label="Window", value=text.span(known["window_s"])),
                Field(name="reason", label="Reason", hint="kept in the audit ledger"),
            ],
            verb="Change",
            effect=f"0: not judged; default: as it comes."
            f"\nRevision {found['revision']} -> {found['revision'] + 1}",
            check=lambda v: _wrong_thresholds(v, tuple(limits)),
        )
    )
    if values is None:
        return
    body = _changed(values, limits, known)
    await page.console.perform(
        "PUT",
        f"{path}/thresholds",
        body=body,
        headers=_guard(found["revision"]),
        doing=f"Change the thresholds of {name}",
        done=f"Thresholds of {name} changed",
        cli=f"appliance drift thresholds set {name} {_told(body)}".rstrip(),
    )


def _changed(
    values: Mapping[str, str], limits: Mapping[str, float], known: Mapping[str, Any]
) -> dict[str, Any]:
    """What of a form differs from what is; a column's threshold that was deleted is undone."""
    body: dict[str, Any] = {"limits": {}, "features": {}, "reason": values["reason"]}
    for key, before in limits.items():
        limit = _limit(values[f"l-{key}"])
        if limit != before:
            body["limits"][key] = limit
    wanted = _columns(values["columns"]) or {}
    for column, each in known["features"].items():
        for statistic in each:
            wanted.setdefault(str(column), {}).setdefault(str(statistic), None)
    for column, each in wanted.items():
        before = known["features"].get(column, {})
        new = {key: limit for key, limit in each.items() if before.get(key) != limit}
        if new:
            body["features"][column] = new
    if int(values["rows_min"]) != known["rows_min"]:
        body["rows_min"] = int(values["rows_min"])
    window = text.seconds_of(values["window"])
    if window != known["window_s"]:
        body["window_s"] = window
    return body


def _told(body: Mapping[str, Any]) -> str:
    """What is changed, as the command line takes it."""

    def shown(limit: float | None) -> str:
        return _DEFAULT if limit is None else f"{limit:g}"

    words = [f"{key}={shown(limit)}" for key, limit in body["limits"].items()]
    words += [
        shlex.quote(f"{column}:{key}={shown(limit)}")
        for column, each in body["features"].items()
        for key, limit in each.items()
    ]
    if "rows_min" in body:
        words.append(f"--rows-min {body['rows_min']}")
    if "window_s" in body:
        words.append(f"--window {text.span(body['window_s'])}")
    return " ".join(words)


def _limit(words: str) -> float | None:
    """A threshold as typed; None for the default. Raises ValueError for anything else."""
    if words == _DEFAULT:
        return None
    limit = float(words)
    if not 0 <= limit <= 1e6:
        raise ValueError(words)
    return limit


def _columns(words: str) -> dict[str, dict[str, float | None]] | None:
    """``age:psi=0.5 'net income:ks=0.1'`` by column and statistic; None where it is not that."""
    found: dict[str, dict[str, float | None]] = {}
    try:
        for part in shlex.split(words):
            where, equals, limit = part.rpartition("=")
            column, colon, statistic = where.rpartition(":")
            if not (equals and colon and column and statistic):
                return None
            found.setdefault(column, {})[statistic] = _limit(limit)
    except ValueError:
        return None
    return found


def _wrong_thresholds(values: Mapping[str, str], names: tuple[str, ...]) -> str:
    for name in names:
        try:
            _limit(values[f"l-{name}"])
        except ValueError:
            return f"{name}: a number such as 0.25, 0 for not judged, or default."
    if _columns(values["columns"]) is None:
        return "Of one column: COLUMN:STATISTIC=NUMBER, such as age:psi=0.5."
    if not values["rows_min"].isdigit():
        return "At least records is a whole number."
    return "" if text.seconds_of(values["window"]) else "The window is a time: 90s, 30m, 6h, 1d."


# -- baselines -------------------------------------------------------------------------------------


async def set_baseline(page: Page, row: Row | None) -> None:
    """Ask what a version is to be compared with, and send that."""
    if not page.console.may("Set baseline"):
        return
    known = place_of(row) if row is not None else ""
    data: list[bytes] = []

    def check(values: Mapping[str, str]) -> str:
        wrong = _wrong_baseline(values)
        if wrong or values["from"] != SOURCES[0]:
            return wrong
        found = read_data(values["file"])
        if isinstance(found, str):
            return found
        data.append(found)
        return ""

    values = await page.app.push_screen_wait(
        Form(
            title="Baseline of a version",
            fields=[
                Field(name="version", label="Version", value=known, hint="tenant/model:3"),
                Field(name="from", label="From", words=SOURCES),
                Field(name="file", label="Data file", hint=".csv .parquet .ndjson .json"),
                Field(name="output", label="Answer column", hint="its own answers in the data"),
                Field(name="window", label="Calls of last", value="24h"),
                Field(name="of", label="Of version", hint="empty: its own calls"),
                Field(name="records", label="Next records", value="1000"),
                Field(name="reason", label="Reason", hint="kept in the audit ledger"),
            ],
            verb="Set baseline",
            check=check,
            describe=_effect,
        )
    )
    if values is None:
        return
    name = values["version"]
    guard = _guard(row["revision"]) if row is not None and name == known else {}
    await _send_baseline(page, name, values, guard, data)


async def _send_baseline(
    page: Page, name: str, values: Mapping[str, str], guard: dict[str, str], data: list[bytes]
) -> None:
    path, cli = _path(name, "baseline"), f"appliance drift baseline set {name}"
    sent: dict[str, Any] = {"body": {"reason": values["reason"]}, "headers": guard}
    method = "POST"
    if values["from"] == SOURCES[0]:
        method, cli = "PUT", f"{cli} --data {values['file']}"
        params = {key: values[key] for key in ("output", "reason") if values[key]}
        kind = {"Content-Type": media_of(values["file"])}
        sent = {"data": data[-1], "params": params, "headers": {**guard, **kind}}
    elif values["from"] == SOURCES[1]:
        sent["body"] |= {"window_s": text.seconds_of(values["window"])}
        sent["body"] |= {"of": int(values["of"] or 0)}
        path, cli = f"{path}/window", f"{cli} --window {values['window']}"
    else:
        sent["body"] |= {"records": int(values["records"])}
        path, cli = f"{path}/learn", f"{cli} --next {values['records']}"
    await page.console.perform(
        method,
        str(path),
        doing=f"Set the baseline of {name}",
        done=f"{name} has a new baseline",
        cli=cli,
        **sent,
    )


def _wrong_baseline(values: Mapping[str, str]) -> str:
    if _path(values["version"]) is None:
        return "Type tenant/model:version, such as risk/fraud:3."
    source = values["from"]
    if source == SOURCES[0]:
        return missing(values, file="Type the name of a file with data.")
    if source == SOURCES[1] and not text.seconds_of(values["window"]):
        return "Calls of last: a time such as 30m, 24h or 7d."
    if source == SOURCES[1] and values["of"] and not values["of"].isdigit():
        return "Of version is a number."
    if source == SOURCES[2] and not values["records"].isdigit():
        return "Next records is a whole number."
    return ""


def _effect(values: Mapping[str, str]) -> str:
    name = values["version"] or "The version"
    if values["from"] == SOURCES[0]:
        return f"{name} is compared with the file's columns. Only counts of it are kept, sealed."
    if values["from"] == SOURCES[1]:
        whose = f"version {values['of']}" if values["of"] else "it"
        return f"{name} is compared with what {whose} was called with in the last time."
    return f"{name} is compared with its next calls, once there are so many records."


async def remove_baseline(page: Page, row: Row | None) -> None:
    """Ask, then compare a version with nothing any more."""
    if row is None or not page.console.may("Remove baseline"):
        return
    name = place_of(row)
    consent = await page.app.push_screen_wait(
        Confirm(
            title=f"Remove the baseline of {name}",
            effect=f"{name} is compared with nothing any more, and what was counted of its calls"
            f" is deleted. {row['breaches']} open breaches end.",
            verb="Remove baseline",
            type_name=str(row["model"]),
            revision=f"{row['revision']} is removed",
        )
    )
    if consent is not None:
        await page.console.perform(
            "DELETE",
            str(_path(name, "baseline")),
            headers=_guard(row["revision"]),
            doing=f"Remove the baseline of {name}",
            done=f"{name} has no baseline any more",
            cli=f"appliance drift baseline rm {name}",
        )
