"""Routes: how models' calls are divided, and what each version did with its share.

Owns: the columns of the routes table, the line about the route under the cursor, its verbs.
Never: shows a draft as in force; a share changes when the appliance said so.
Read next: ``tui.weight`` (the slider), ``frame.ListPage``.
"""

from __future__ import annotations

from typing import Any, ClassVar

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import DataTable, Static

from tui import text
from tui.client import Row, Snapshot, path_of
from tui.dialogs import Confirm
from tui.frame import ListPage
from tui.nav import Place
from tui.table import Column
from tui.weight import Weigh, bar


def _share(row: Row) -> str:
    return "copy" if row["percent"] is None else f"{row['percent']:g} %"


def _name(row: Row) -> str:
    return f"{row['tenant']}/{row['model']}"


class Routes(ListPage):
    """One row per version of each route; the verbs are about the whole route."""

    VIEW = "routes"
    EMPTY = (
        "No routes: each model's calls go to its alias 'live'.\n"
        "appliance route canary TENANT/MODEL VERSION --percent 5"
    )
    VERBS = frozenset(("weigh", "promote", "hold", "abort", "undo", "remove"))
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("e", "weigh", "share"),
        Binding("t", "promote", "promote"),
        Binding("h", "hold", "hold"),
        Binding("b", "abort", "abort"),
        Binding("u", "undo", "back"),
        Binding("x", "remove", "remove", show=False),
        Binding("enter", "open", "version", show=False),
    ]
    COLUMNS = (
        Column(name="model", title="MODEL", text=lambda r: _name(r), width=14, flex=2),
        Column(
            name="version",
            title="VERSION",
            text=lambda r: f"v{r['version']}",
            order=lambda r: (r["tenant"], r["model"], r["version"]),
            width=7,
        ),
        Column(name="role", title="ROLE", text=lambda r: r["role"], width=8),
        Column(
            name="share",
            title="SHARE",
            text=lambda r: _share(r),
            order=lambda r: r["percent"] or 0,
            width=7,
            right=True,
        ),
        Column(
            name="bar",
            title="",
            text=lambda r: bar(r["percent"] or 0, 8),
            width=10,
        ),
        Column(
            name="calls",
            title="CALLS",
            text=lambda r: text.count(r["calls"]),
            order=lambda r: r["calls"],
            width=6,
            right=True,
        ),
        Column(
            name="errors",
            title="ERR %",
            text=lambda r: f"{r['error_percent']:.2f}",
            order=lambda r: r["error_percent"],
            width=6,
            right=True,
        ),
        Column(
            name="p95",
            title="P95 ms",
            text=lambda r: "-" if r["p95_ms"] is None else f"{r['p95_ms']:.1f}",
            order=lambda r: r["p95_ms"] or 0,
            width=7,
            right=True,
            least=90,
        ),
        Column(
            name="state", title="STATE", text=lambda r: text.word(r["state"]), width=8, least=100
        ),
        Column(name="detail", title="REPLIES", text=lambda r: r["detail"], width=24, wide=True),
    )

    def body(self) -> ComposeResult:
        """The table, and what the route under the cursor is."""
        yield from super().body()
        yield Static(id="route", markup=False)

    def key_of(self, row: Row) -> str:
        """Rows are named tenant/model/role/version: a version may be an arm and a shadow."""
        return f"{_name(row)}/{row['role']}/{row['version']}"

    def open_row(self, row: Row) -> Place:
        """The version's page."""
        return Place("version", (str(row["tenant"]), str(row["model"]), str(row["version"])))

    def draw(self, snapshot: Snapshot) -> None:
        """Rows and the line below them."""
        super().draw(snapshot)
        self._describe()

    def on_data_table_row_highlighted(self, _event: DataTable.RowHighlighted) -> None:
        """Another row: maybe another route."""
        self._describe()

    def _describe(self) -> None:
        row = self.row
        shown = Text()
        if row is not None and "revision" in row:
            shown = Text("\n".join(text.clean(line) for line in _lines(row)))
        self.query_one("#route", Static).update(shown, layout=False)

    @work(exclusive=True, group="dialog")
    async def action_weigh(self) -> None:
        """``e`` moves the share of the version under the cursor."""
        row = self.row
        if row is None or not self.console.may("Change share"):
            return
        base = row["against"]
        if row["percent"] is None or row["version"] == base:
            words = "is a copy of the calls" if row["percent"] is None else "gets what is left"
            self.console.say(f"v{row['version']} {words}: choose another version.", is_error=True)
            return
        shares = {arm["version"]: arm["percent"] for arm in row["arms"]}
        both = round(shares[row["version"]] + shares[base], 2)

        def effect(percent: float) -> str:
            rest = round(both - percent, 2)
            return f"v{row['version']} gets {percent:g} % of the calls, v{base} {rest:g} %."

        chosen = await self.app.push_screen_wait(
            Weigh(
                title=f"Share of v{row['version']} of {_name(row)}",
                value=shares[row["version"]],
                most=both,
                effect=effect,
                note=f"Revision {row['revision']} -> {row['revision'] + 1}",
            )
        )
        if chosen is None or chosen.percent == shares[row["version"]]:
            return
        shares |= {row["version"]: chosen.percent, base: round(both - chosen.percent, 2)}
        words = " ".join(f"{number}={share:g}" for number, share in shares.items())
        await self.console.perform(
            "PUT",
            _path(row),
            body={
                "arms": [{"version": n, "percent": share} for n, share in shares.items()],
                "sticky": row["sticky"],
                "shadows": row["shadows"],
                "canary": row["canary"],
                "reason": chosen.reason,
            },
            headers=_guard(row),
            doing=f"Change share of v{row['version']} of {_name(row)}",
            done=f"{_name(row)}: v{row['version']} gets {chosen.percent:g} %",
            cli="" if row["canary"] else f"appliance route set {_name(row)} {words}",
        )

    @work(exclusive=True, group="dialog")
    async def action_promote(self) -> None:
        """``t`` makes the version under the cursor, or the canary, live."""
        row = self.row
        if row is None:
            return
        rule = row["canary"]
        number = rule["version"] if rule else row["version"]
        if number not in [arm["version"] for arm in row["arms"]]:
            self.console.say(f"v{number} is a shadow: give it a share first.", is_error=True)
            return
        await self._verb(
            row,
            "promote",
            f"v{number} becomes live: every call goes there, and the route ends.",
            {"version": number},
            f" --version {number}",
        )

    @work(exclusive=True, group="dialog")
    async def action_hold(self) -> None:
        """``h`` freezes the shares."""
        if self.row is not None:
            await self._verb(self.row, "hold", "The shares stay as they are; no step is taken.")

    @work(exclusive=True, group="dialog")
    async def action_abort(self) -> None:
        """``b`` gives every call to the baseline."""
        if self.row is not None:
            effect = f"Every call goes to v{self.row['against']}; the others get none."
            await self._verb(self.row, "abort", effect)

    @work(exclusive=True, group="dialog")
    async def action_undo(self) -> None:
        """``u`` returns to the revision before the last."""
        if self.row is not None:
            effect = "The route is again as it was before its last change, sticky keys included."
            await self._verb(self.row, "back", effect)

    @work(exclusive=True, group="dialog")
    async def action_remove(self) -> None:
        """``x`` ends the route."""
        row = self.row
        if row is None or not self.console.may("Remove route"):
            return
        consent = await self.app.push_screen_wait(
            Confirm(
                title=f"Remove the route of {_name(row)}",
                effect="Every call goes to the alias 'live' again; shadows end.",
                verb="Remove route",
                revision=str(row["revision"]),
            )
        )
        if consent is not None:
            await self.console.perform(
                "DELETE",
                _path(row),
                headers=_guard(row),
                doing=f"Remove the route of {_name(row)}",
                done=f"Route of {_name(row)} removed",
                cli=f"appliance route rm {_name(row)}",
            )

    async def _verb(
        self, row: Row, verb: str, effect: str, more: dict[str, Any] | None = None, cli: str = ""
    ) -> None:
        if not self.console.may(f"{verb.capitalize()} route"):
            return
        consent = await self.app.push_screen_wait(
            Confirm(
                title=f"{verb.capitalize()}: route of {_name(row)}",
                effect=effect,
                verb=verb.capitalize(),
                revision=f"{row['revision']} -> {row['revision'] + 1}",
                ask_reason=True,
            )
        )
        if consent is None:
            return
        await self.console.perform(
            "POST",
            f"{_path(row)}/{verb}",
            body={"reason": consent.reason, **(more or {})},
            headers=_guard(row),
            doing=f"{verb.capitalize()} the route of {_name(row)}",
            done=f"{_name(row)}: {verb} done",
            cli=f"appliance route {verb} {_name(row)}{cli}",
        )


def _path(row: Row) -> str:
    return path_of("api", "v1", "models", row["tenant"], row["model"], "route")


def _guard(row: Row) -> dict[str, str]:
    return {"If-Match": f'"{row["revision"]}"'}


def _lines(row: Row) -> list[str]:
    """What the route is, in a few short lines."""
    lines = [
        f"{_name(row)}  {text.word(row['state'])}  revision {row['revision']}"
        f"  sticky {row['sticky'] or 'no'}",
        f"{text.stamp(row['set_at'])} by {row['set_by']}: {row['reason'] or '-'}",
    ]
    rule = row["canary"]
    if rule:
        errors, latency = rule["error_rate_max"] * 100, rule["latency_ratio_max"]
        lines.append(
            f"canary v{rule['version']} against v{rule['against']}: {rule['action']} at"
            f" +{errors:g} points of errors, {latency:g} x p95"
        )
    if row["complaint"]:
        lines.append(f"! {row['complaint']}")
    if row["detail"]:
        lines.append(f"replies of the shadow: {row['detail']}")
    return [text.clip(line, 76) for line in lines]
