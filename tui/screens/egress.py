"""Egress: where models may connect to, and what was decided lately.

Owns: the columns of the rules table, the recent decisions, allow, deny, remove.
Never: shows a rule as working that the appliance did not confirm.
Read next: ``frame.ListPage``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar
from urllib.parse import quote

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Static

from tui import text
from tui.client import Row, Snapshot, path_of
from tui.dialogs import Confirm, Field, Form
from tui.frame import ListPage
from tui.table import Column

PROTOCOLS = ("any", "connect", "http", "tcp")
ACTIONS = ("allow", "deny")


def destination(row: Row) -> str:
    """Host and ports of a rule, in words."""
    ports = ",".join(row["ports"])
    return f"{row['host']}:{ports}" if ports else f"{row['host']}, every port"


class Egress(ListPage):
    """One row per rule, in the order they are tried; below them the last decisions."""

    VIEW = "egress"
    EMPTY = "No egress rules: no model connects anywhere.\nn adds one."
    VERBS = frozenset(("new", "remove"))
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "new", "new rule"),
        Binding("x", "remove", "remove"),
    ]
    COLUMNS = (
        Column(name="tenant", title="TENANT", text=lambda r: r["tenant"], width=10, flex=1),
        Column(
            name="order",
            title="#",
            text=lambda r: str(r["position"]),
            order=lambda r: (r["tenant"], r["position"]),
            width=3,
            right=True,
        ),
        Column(name="action", title="RULE", text=lambda r: r["action"], width=5),
        Column(name="to", title="DESTINATION", text=lambda r: destination(r), width=24, flex=3),
        Column(name="protocol", title="HOW", text=lambda r: r["protocol"], width=7),
        Column(
            name="model",
            title="MODEL",
            text=lambda r: "every" if r["model"] == "*" else r["model"],
            width=10,
            flex=1,
        ),
        Column(name="reason", title="REASON", text=lambda r: r["reason"], width=16, least=100),
        Column(
            name="since",
            title="AGE",
            text=lambda r: text.age(r["created_at"]),
            order=lambda r: r["created_at"],
            width=6,
            right=True,
        ),
        Column(name="note", title="NOTE", text=lambda r: r["note"], width=24, wide=True),
        Column(name="id", title="ID", text=lambda r: r["id"], width=17, wide=True),
        Column(name="by", title="BY", text=lambda r: r["created_by"], width=12, wide=True),
    )

    def body(self) -> ComposeResult:
        """The line of numbers, the rules, the last decisions."""
        yield Static(id="facts", markup=False)
        yield from super().body()
        yield Static(id="recent", markup=False)

    def key_of(self, row: Row) -> str:
        """Rules are named by their id."""
        return str(row["id"])

    def draw(self, snapshot: Snapshot) -> None:
        """Rows, numbers and decisions."""
        super().draw(snapshot)
        shown = snapshot.extras.get("open", 0)
        line = f"{text.count(shown)} connections open; the first rule that matches decides, else no"
        notes = [row["note"] for row in snapshot.rows if row["note"]]
        if notes:
            line = f"{text.count(len(notes))} not in force everywhere: {notes[0]}; {line}"
        facts = Text(text.clip(line, self._wide), no_wrap=True)
        self.query_one("#facts", Static).update(facts, layout=False)
        decisions = snapshot.extras.get("decisions") or []
        room = 5 if self.size.height >= 30 else 3
        lines = [text.clip(_decision(row), self._wide) for row in decisions[:room]]
        recent = self.query_one("#recent", Static)
        recent.display = bool(lines)
        recent.update(Text("\n".join(lines), no_wrap=True))

    def resized(self) -> None:
        """Draw the lines at their new width."""
        super().resized()
        if self._drawn is not None and self.is_shown:
            self.draw(self._drawn)

    @property
    def _wide(self) -> int:
        return max(20, self.size.width - 2)

    @work(exclusive=True, group="dialog")
    async def action_new(self) -> None:
        """``n`` adds a rule at the end, or before the one under the cursor."""
        if not self.console.may("New egress rule"):
            return
        row = self.row
        tenant = self.place.args[0] if self.place.args else str(row["tenant"]) if row else ""
        values = await self.app.push_screen_wait(
            Form(
                title="New egress rule",
                fields=[
                    Field(name="tenant", label="Tenant", value=tenant),
                    Field(name="action", label="Rule", words=ACTIONS),
                    Field(name="host", label="Host", hint="name, *.name, address, network or *"),
                    Field(name="ports", label="Ports", hint="443 8000-8100; empty: every port"),
                    Field(name="protocol", label="How", words=PROTOCOLS),
                    Field(name="model", label="Model", value="*", hint="* for every model"),
                    Field(name="before", label="Before rule", hint="an id; empty: last"),
                    Field(name="reason", label="Reason", hint="kept in the audit ledger"),
                ],
                verb="Add rule",
                check=_wrong,
                describe=_effect,
            )
        )
        if values is None:
            return
        ports = values["ports"].replace(",", " ").split()
        options = "".join(f" --port {port}" for port in ports)
        reply = await self.console.perform(
            "POST",
            path_of("api", "v1", "tenants", values["tenant"], "egress"),
            body={
                "action": values["action"],
                "host": values["host"],
                "ports": ports,
                "protocol": values["protocol"],
                "model": values["model"],
                "before": values["before"],
                "reason": values["reason"],
            },
            doing=f"Add egress rule for {values['host']}",
            done=f"Rule added: {values['action']} {values['host']}",
            cli=f"appliance egress {values['action']} {values['tenant']} {values['host']}{options}",
        )
        if reply is not None and isinstance(reply.data, dict):
            self.table.aim(str(reply.data.get("id", "")))

    @work(exclusive=True, group="dialog")
    async def action_remove(self) -> None:
        """``x`` removes the rule under the cursor."""
        row = self.row
        if row is None or not self.console.may("Remove egress rule"):
            return
        name = f"{row['action']} {destination(row)}"
        consent = await self.app.push_screen_wait(
            Confirm(
                title=f"Remove egress rule {row['id']}",
                effect=(
                    f"'{name}' of {row['tenant']} ends now. Connections that no other rule"
                    " allows are closed; what a deny rule held back may be allowed by a later one."
                ),
                verb="Remove rule",
                ask_reason=True,
            )
        )
        if consent is None:
            return
        reason = consent.reason or "from the console"
        base = path_of("api", "v1", "tenants", row["tenant"], "egress", row["id"])
        await self.console.perform(
            "DELETE",
            f"{base}?reason={quote(reason, safe='')}",
            doing=f"Remove egress rule {row['id']}",
            done=f"Rule removed: {name}",
            cli=f"appliance egress rm {row['tenant']} {row['id']}",
        )


def _wrong(values: Mapping[str, str]) -> str:
    """What keeps this form from being sent; empty when nothing does."""
    for name, words in (
        ("tenant", "Type the tenant's name."),
        ("host", "Type a host: a name, *.name, an address, a network or *."),
        ("model", "Type a model's name, or * for every model."),
        ("reason", "Type a reason; it is kept in the audit ledger."),
    ):
        if not values[name].strip():
            return words
    return ""


def _effect(values: Mapping[str, str]) -> str:
    who = "every model" if values["model"] in ("*", "") else values["model"]
    where = values["host"] or "the host"
    if values["action"] == "deny":
        return f"{who} of {values['tenant'] or 'the tenant'} may not connect to {where}."
    return f"{who} of {values['tenant'] or 'the tenant'} may connect to {where}, on record."


def _decision(row: Row) -> str:
    word = {"egress.denied": "DENIED", "egress.opened": "opened", "egress.passed": "passed"}
    what = word.get(str(row["kind"]), str(row["kind"]).removeprefix("egress."))
    more = f"  {row['detail']}" if row.get("detail") else ""
    who = f"{row['tenant']}/{row['model'] or '-'}"
    return f"{text.clock(row['time'])}  {what:<7} {row['to']}  {who}{more}"
