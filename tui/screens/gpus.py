"""GPUs: what models may compute on, how full it is, and whose it is now.

Owns: the columns of the GPU table and the line above it.
Never: gives a GPU to anybody; the appliance does, when a model is called.
Read next: ``frame.ListPage``.
"""

from __future__ import annotations

from typing import Any, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Static

from tui import text
from tui.client import Row, Snapshot
from tui.frame import ListPage
from tui.nav import Place
from tui.table import Column


def numbers(totals: dict[str, Any]) -> str:
    """Held and all, as the dashboard and the sandboxes screen say it; empty without GPUs."""
    count = totals.get("gpus") or 0
    return f"{totals.get('gpus_held', 0)} of {count} GPU" if count else ""


def _share(part: int | None, whole: int | None) -> str:
    if part is None:
        return "-"
    return text.size(part) if not whole else f"{text.size(part)} / {text.size(whole)}"


class Gpus(ListPage):
    """One row per GPU or partition; Enter shows the sandboxes."""

    VIEW = "gpus"
    EMPTY = "No GPU: models run on the processor.\n:h health says what was found."
    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "open", "sandboxes")]
    COLUMNS = (
        Column(name="index", title="GPU", text=lambda r: r["index"], width=4),
        Column(
            name="name", title="NAME", text=lambda r: r["name"] or r["vendor"], width=16, flex=2
        ),
        Column(name="state", title="STATE", text=lambda r: text.word(r["state"]), width=7),
        Column(name="tenant", title="TENANT", text=lambda r: r["tenant"] or "-", width=10, flex=1),
        Column(
            name="used",
            title="USED / MEMORY",
            text=lambda r: _share(r["used_bytes"], r["memory_bytes"]),
            order=lambda r: r["used_bytes"] or 0,
            width=17,
            right=True,
        ),
        Column(
            name="promised",
            title="PROMISED",
            text=lambda r: text.size(r["allocated_bytes"]),
            order=lambda r: r["allocated_bytes"],
            width=9,
            right=True,
        ),
        Column(
            name="busy",
            title="BUSY",
            text=lambda r: "-" if r["busy_percent"] is None else f"{r['busy_percent']}%",
            order=lambda r: r["busy_percent"] or 0,
            width=5,
            right=True,
            least=90,
        ),
        Column(
            name="driver", title="DRIVER", text=lambda r: r["driver"] or "-", width=12, least=110
        ),
        Column(name="id", title="ID", text=lambda r: r["id"], width=42, wide=True),
    )

    def body(self) -> ComposeResult:
        """The line above the table."""
        yield Static(id="facts", markup=False)
        yield from super().body()

    def draw(self, snapshot: Snapshot) -> None:
        """Rows and the line."""
        super().draw(snapshot)
        waiting = snapshot.extras.get("gpu_calls_waiting", 0)
        held = numbers(dict(snapshot.extras)) or "none"
        line = f"{held} in use, {waiting} calls waiting"
        self.query_one("#facts", Static).update(Text(text.clean(line)), layout=False)

    def key_of(self, row: Row) -> str:
        """GPUs are named by their id."""
        return str(row["id"])

    def open_row(self, row: Row) -> Place:
        """Who runs on it."""
        return Place("sandboxes")
