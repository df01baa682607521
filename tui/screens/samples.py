"""Samples: models of which calls are kept, how many there are, and repeating them.

Owns: the columns of the samples table; keep, keep no more, delete, replay.
Never: shows a kept call by itself; what a replay finds different is on the comparison's page.
Read next: ``screens/comparisons`` (where a replay is followed), ``frame.ListPage``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from textual import work
from textual.binding import Binding, BindingType

from tui import text
from tui.client import Row, path_of
from tui.dialogs import Confirm, Field, Form, missing
from tui.frame import ListPage
from tui.screens.comparisons import open_comparison
from tui.table import Column

_MIB = 1024 * 1024


class Samples(ListPage):
    """One row per model of which calls are kept or were."""

    VIEW = "samples"
    EMPTY = "No calls of any model are kept.\nn has a share of a model's calls kept, for replays."
    VERBS = frozenset(("keep", "replay", "remove"))
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "keep('')", "keep"),
        Binding("e", "keep", "change"),
        Binding("t", "replay", "replay"),
        Binding("x", "remove", "delete kept"),
    ]
    COLUMNS = (
        Column(
            name="state",
            title="STATE",
            text=lambda r: "OK on" if r["percent"] else "- off",
            width=5,
        ),
        Column(
            name="model",
            title="MODEL",
            text=lambda r: f"{r['tenant']}/{r['model']}",
            width=18,
            flex=3,
        ),
        Column(
            name="percent",
            title="KEPT %",
            text=lambda r: f"{r['percent']:g}",
            order=lambda r: r["percent"],
            width=6,
            right=True,
        ),
        Column(
            name="days",
            title="DAYS",
            text=lambda r: str(r["days"] or text.NONE),
            order=lambda r: r["days"],
            width=4,
            right=True,
        ),
        Column(
            name="kept",
            title="CALLS",
            text=lambda r: text.count(r["kept"]),
            order=lambda r: r["kept"],
            width=6,
            right=True,
        ),
        Column(
            name="size",
            title="SIZE",
            text=lambda r: text.size(r["kept_bytes"]),
            order=lambda r: r["kept_bytes"],
            width=8,
            right=True,
        ),
        Column(
            name="oldest",
            title="OLDEST",
            text=lambda r: text.age(r["oldest_at"]),
            order=lambda r: r["oldest_at"],
            width=6,
            right=True,
        ),
        Column(
            name="dropped",
            title="LOST",
            text=lambda r: text.count(r["dropped"]),
            order=lambda r: r["dropped"],
            width=5,
            right=True,
        ),
        Column(name="by", title="SET BY", text=lambda r: r["set_by"] or "-", width=18, least=100),
        Column(
            name="at",
            title="SET (UTC)",
            text=lambda r: text.stamp(r["set_at"])[:16],
            width=16,
            wide=True,
        ),
    )

    def key_of(self, row: Row) -> str:
        """Models are named tenant/model."""
        return f"{row['tenant']}/{row['model']}"

    @work(exclusive=True, group="dialog")
    async def action_keep(self, name: str | None = None) -> None:
        """``e`` changes how many calls of a model are kept, ``n`` asks for a model as well."""
        row = self.row if name is None else None
        if (name is None and row is None) or not self.console.may("Keep calls"):
            return
        known = self.key_of(row) if row else "/".join(self.place.args)
        values = await self.app.push_screen_wait(
            Form(
                title="Keep calls of a model",
                fields=[
                    Field(name="model", label="Model", value=known, hint="tenant/model"),
                    Field(name="percent", label="Percent", value=_shown(row, "percent", "5")),
                    Field(name="days", label="Days", value=_shown(row, "days", "7")),
                    Field(
                        name="count", label="At most, calls", value=_shown(row, "count_max", "1000")
                    ),
                    Field(name="mib", label="At most, MiB", value=_mib(row)),
                ],
                verb="Set",
                check=_wrong,
                describe=_effect,
            )
        )
        if values is None:
            return
        tenant, _, model = values["model"].partition("/")
        await self.console.perform(
            "PUT",
            path_of("api", "v1", "models", tenant, model, "samples"),
            body={
                "percent": float(values["percent"]),
                "days": int(values["days"]),
                "count_max": int(values["count"]),
                "bytes_max": int(values["mib"]) * _MIB,
            },
            doing=f"Keep calls of {values['model']}",
            done=f"{values['percent']} % of the calls of {values['model']} are kept",
            cli=f"appliance sample set {values['model']} --percent {values['percent']}"
            f" --days {values['days']}",
        )

    @work(exclusive=True, group="dialog")
    async def action_replay(self) -> None:
        """``t`` repeats the kept calls of the model under the cursor to a version."""
        row = self.row
        if row is None or not self.console.may("Replay"):
            return
        name = self.key_of(row)
        values = await self.app.push_screen_wait(
            Form(
                title=f"Repeat kept calls of {name}",
                fields=[
                    Field(name="against", label="To version", hint="a number"),
                    Field(name="since", label="Of the last", hint="24h, 7d; empty: of all"),
                    Field(name="limit", label="At most, calls", value="1000"),
                ],
                verb="Replay",
                effect=f"{text.count(row['kept'])} calls are kept. Each repeated call is on record"
                " with the id of the call it repeats; answers go nowhere but the report.",
                check=_wrong_replay,
            )
        )
        if values is None:
            return
        since = f" --since {values['since']}" if values["since"] else ""
        reply = await self.console.perform(
            "POST",
            path_of("api", "v1", "models", row["tenant"], row["model"], "replay"),
            body={
                "against": int(values["against"].lstrip("v")),
                "since_s": text.seconds_of(values["since"]) or 0,
                "limit": int(values["limit"]),
            },
            doing=f"Replay calls of {name}",
            done=f"Repeating kept calls of {name}",
            cli=f"appliance model replay {name} --against {values['against'].lstrip('v')}{since}"
            f" --limit {values['limit']}",
        )
        open_comparison(self, reply.data if reply is not None else None)

    @work(exclusive=True, group="dialog")
    async def action_remove(self) -> None:
        """``x`` deletes the kept calls of the model under the cursor."""
        row = self.row
        if row is None or not self.console.may("Delete kept calls"):
            return
        name = self.key_of(row)
        more = "More are kept from now on." if row["percent"] else "No more are kept."
        consent = await self.app.push_screen_wait(
            Confirm(
                title=f"Delete kept calls of {name}",
                effect=f"{text.count(row['kept'])} kept calls, {text.size(row['kept_bytes'])}, are"
                f" deleted now and cannot come back. {more}",
                verb="Delete",
                type_name=str(row["model"]),
            )
        )
        if consent is not None:
            await self.console.perform(
                "DELETE",
                path_of("api", "v1", "models", row["tenant"], row["model"], "samples"),
                doing=f"Delete kept calls of {name}",
                done=f"Kept calls of {name} deleted",
                cli=f"appliance sample rm {name}",
            )


def _shown(row: Row | None, name: str, otherwise: str) -> str:
    value = row[name] if row is not None else None
    return otherwise if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _mib(row: Row | None) -> str:
    most = row["bytes_max"] if row is not None else None
    return str(max(1, int(most) // _MIB)) if most else "64"


def _is_percent(words: str) -> bool:
    try:
        return 0 <= float(words) <= 100
    except ValueError:
        return False


def _wrong(values: Mapping[str, str]) -> str:
    tenant, slash, model = values["model"].partition("/")
    if not (tenant and slash and model):
        return "Type tenant/model."
    if not _is_percent(values["percent"]):
        return "Percent is a number from 0 to 100; 0 keeps no more."
    for name in ("days", "count", "mib"):
        if not values[name].isdigit() or not int(values[name]):
            return "Days, calls and MiB are whole numbers from 1."
    return ""


def _effect(values: Mapping[str, str]) -> str:
    name = values["model"] or "the model"
    if _is_percent(values["percent"]) and not float(values["percent"]):
        return f"No more calls of {name} are kept; those that are stay until their days are over."
    return (
        f"Of the calls of {name} that succeed {values['percent'] or '?'} % are kept, sealed, body"
        " and answer, the newest. Callers are told so in every answer."
    )


def _wrong_replay(values: Mapping[str, str]) -> str:
    wrong = missing(values, against="Type the number of the version they go to.")
    if wrong:
        return wrong
    if not values["against"].lstrip("v").isdigit():
        return "The version is a number."
    if values["since"] and text.seconds_of(values["since"]) is None:
        return "A time is 90s, 30m, 24h, 7d or 2w."
    if not values["limit"].isdigit() or not int(values["limit"]):
        return "At most how many calls is a whole number from 1."
    return ""
