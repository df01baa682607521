"""Health: every check with its remedy, and the facts of this node.

Owns: the columns of the checks table, the detail of the selected check, the node's facts.
Never: runs a check itself.
Read next: ``frame.ListPage``.
"""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.widgets import DataTable, Static

from tui import text
from tui.client import Node, Query, Row, Snapshot
from tui.frame import ListPage
from tui.table import Column

_RANK = {"fail": 0, "warn": 1, "ok": 2, "off": 3}


class Health(ListPage):
    """One row per check, the worst first; also shown while the appliance is sealed."""

    VIEW = "health"
    EMPTY = "The server reports no checks."
    BINDINGS: ClassVar[list[BindingType]] = []
    COLUMNS = (
        Column(
            name="state",
            title="STATE",
            text=lambda r: text.word(r["state"]),
            order=lambda r: _RANK.get(r["state"], 0),
            width=7,
        ),
        Column(name="check", title="CHECK", text=lambda r: r["title"] or r["name"], width=20),
        Column(name="detail", title="DETAIL", text=lambda r: r["detail"], width=26, flex=3),
        Column(
            name="age",
            title="AGE",
            text=lambda r: text.age(r.get("checked_at")),
            order=lambda r: r.get("checked_at"),
            width=7,
            right=True,
        ),
        Column(
            name="remedy", title="REMEDY", text=lambda r: r["remedy"], width=30, flex=2, least=110
        ),
    )

    def query_now(self) -> Query:
        """All checks."""
        return Query(view="health")

    def body(self) -> ComposeResult:
        """Facts above, the selected check below the table."""
        yield Static(id="facts", markup=False)
        yield from super().body()
        yield Static(id="detail", markup=False)

    def key_of(self, row: Row) -> str:
        """Checks are named by their name."""
        return str(row["name"])

    def draw(self, snapshot: Snapshot) -> None:
        """Rows, facts and the selected check."""
        rows = sorted(snapshot.rows, key=lambda row: _RANK.get(str(row["state"]), 0))
        self.table.show(rows)
        width = max(20, self.size.width - 2)
        lines = [text.clip(line, width) for line in facts(snapshot.node)]
        self.query_one("#facts", Static).update(Text("\n".join(lines)))
        self._detail()

    def on_data_table_row_highlighted(self, _event: DataTable.RowHighlighted) -> None:
        """Show the check under the cursor in full."""
        self._detail()

    def _detail(self) -> None:
        row = self.row
        if row is None:
            return
        lines = [f"{text.word(row['state'])}  {text.clean(row['detail'])}"]
        if row["remedy"]:
            lines.append(f"Remedy: {text.clean(row['remedy'])}")
        room = 5 * max(20, self.size.width - 2)
        self.query_one("#detail", Static).update(
            Text(
                text.clip("\n".join(lines), room)
                if len("\n".join(lines)) > room
                else "\n".join(lines)
            )
        )


def facts(node: Node) -> list[str]:
    """What a status says about the machine, one line each."""
    lines = [f"Listens on {node.get('url') or text.NONE}   data in {node.get('data_dir', '?')}"]
    limits = node.get("limits")
    if limits:
        lines.append(
            f"Limits {limits.get('level', '?')} by {limits.get('mechanism', '?')}:"
            f" memory {limits.get('memory', '?')}, processes {limits.get('pids', '?')},"
            f" cpu {limits.get('cpu', '?')}"
        )
    ledger, disk, tls = node.get("ledger"), node.get("disk"), node.get("tls")
    words = []
    if ledger:
        words.append(f"Ledger {ledger.get('state', '?')}, {ledger.get('seq', 0)} entries")
    if disk:
        words.append(
            f"Disk {text.size(disk.get('free_bytes'))} free of {text.size(disk.get('total_bytes'))}"
        )
    if tls:
        words.append(f"TLS until {text.day(tls.get('not_after'))}")
    if words:
        lines.append("   ".join(words))
    return lines
