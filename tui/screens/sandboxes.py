"""Sandboxes: the models running at this moment.

Owns: the columns of the sandboxes table, the pool line, stop.
Never: offers a shell.
Read next: ``frame.ListPage``.
"""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Static

from tui import text
from tui.client import Row, Snapshot, path_of
from tui.dialogs import Confirm
from tui.frame import ListPage
from tui.nav import Place
from tui.screens.gpus import numbers
from tui.table import Column


def name_of(row: Row) -> str:
    """What a sandbox runs, in words."""
    if row["state"] == "zygote":
        return "(started ahead)"
    return f"{row['tenant']}/{row['model']} v{row['version']}"


class Sandboxes(ListPage):
    """One row per container; Enter shows the version it runs."""

    VIEW = "sandboxes"
    EMPTY = "No sandbox is running.\nOne starts when a model is called, and ends when idle."
    VERBS = frozenset(("stop",))
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "version"),
        Binding("x", "stop", "stop"),
    ]
    COLUMNS = (
        Column(
            name="model",
            title="MODEL",
            text=lambda r: name_of(r),
            width=22,
            flex=2,
        ),
        Column(name="state", title="STATE", text=lambda r: text.word(r["state"]), width=8),
        Column(
            name="age",
            title="AGE",
            text=lambda r: text.age(r["created_at"]),
            order=lambda r: r["created_at"],
            width=6,
            right=True,
        ),
        Column(
            name="idle",
            title="IDLE",
            text=lambda r: text.age(r.get("last_used_at")),
            order=lambda r: r.get("last_used_at"),
            width=6,
            right=True,
        ),
        Column(
            name="calls",
            title="CALLS",
            text=lambda r: text.count(r["calls"]),
            order=lambda r: r["calls"],
            width=5,
            right=True,
        ),
        Column(
            name="memory",
            title="MEMORY / LIMIT",
            text=lambda r: f"{text.size(r['rss_bytes'])} / {text.size(r['memory_bytes'])}",
            order=lambda r: r["rss_bytes"],
            width=17,
            right=True,
        ),
        Column(
            name="cpu",
            title="CPU",
            text=lambda r: text.duration(r["cpu_ms"] / 1000),
            order=lambda r: r["cpu_ms"],
            width=7,
            right=True,
            least=90,
        ),
        Column(
            name="gpu",
            title="GPU",
            text=lambda r: ",".join(r.get("gpus") or ()) or "-",
            width=5,
            least=96,
        ),
        Column(name="id", title="ID", text=lambda r: r["id"], width=17, least=106),
        Column(name="pid", title="PID", text=lambda r: str(r["pid"]), width=7, wide=True),
    )

    def body(self) -> ComposeResult:
        """The pool line above the table."""
        yield Static(id="facts", markup=False)
        yield from super().body()

    def draw(self, snapshot: Snapshot) -> None:
        """Rows and the pool line."""
        super().draw(snapshot)
        pool = snapshot.extras.get("pool") or {}
        line = (
            f"{pool.get('running', snapshot.total)} of {pool.get('max', '?')} running,"
            f" {pool.get('waiting', 0)} calls waiting"
        )
        if pool.get("warm"):
            line += f", {pool.get('warm_ready', 0)} of {pool['warm']} kept warm"
        if held := numbers(dict(snapshot.extras)):
            waiting = snapshot.extras.get("gpu_calls_waiting", 0)
            line += f"; {held} in use" + (f", {waiting} waiting for one" if waiting else "")
        self.query_one("#facts", Static).update(Text(text.clean(line)), layout=False)

    def key_of(self, row: Row) -> str:
        """Sandboxes are named by their id."""
        return str(row["id"])

    def open_row(self, row: Row) -> Place | None:
        """The version it runs; one that was started ahead runs none yet."""
        if row["state"] == "zygote":
            return None
        return Place("version", (str(row["tenant"]), str(row["model"]), str(row["version"])))

    @work(exclusive=True, group="dialog")
    async def action_stop(self) -> None:
        """``x`` stops the sandbox under the cursor."""
        row = self.row
        if row is None or not self.console.may("Stop sandbox"):
            return
        name = name_of(row)
        consent = await self.app.push_screen_wait(
            Confirm(
                title=f"Stop sandbox {row['id']}",
                effect=(
                    f"Ends the process of {name} after {text.count(row['calls'])} calls;"
                    " a call in flight fails. The next call starts a new sandbox."
                ),
                verb="Stop sandbox",
            )
        )
        if consent is not None:
            await self.console.perform(
                "DELETE",
                path_of("admin", "v1", "sandboxes", row["id"]),
                doing=f"Stop sandbox {row['id']}",
                done=f"Sandbox of {name} stopped",
            )
