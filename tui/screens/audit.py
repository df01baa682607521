"""The audit ledger: entries newest first, one entry in full, verification and proofs.

Owns: the columns of the audit table, its server-side filter, paging, verify all, save proof.
Never: decides that an entry is genuine; the server verifies, and a saved proof needs no server.
Read next: ``frame.ListPage``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Static

from tui import text
from tui.client import VERIFY_TIMEOUT_S, Problem, Query, Row, Snapshot, path_of
from tui.dialogs import Field, Form, Notice, Reading
from tui.files import save_new
from tui.frame import ListPage, Page
from tui.nav import Place
from tui.table import Column

SERVER_TERMS = ("kind", "actor", "tenant")


class Audit(ListPage):
    """One row per entry; ``kind:``, ``actor:`` and ``tenant:`` filter on the server."""

    VIEW = "audit"
    EMPTY = "No entries."
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "open"),
        Binding("v", "verify", "verify all"),
        Binding("right_square_bracket", "page(1)", "older"),
        Binding("left_square_bracket", "page(-1)", "newer"),
    ]
    COLUMNS = (
        Column(
            name="seq",
            title="SEQ",
            text=lambda r: str(r["seq"]),
            order=lambda r: r["seq"],
            width=6,
            right=True,
        ),
        Column(name="time", title="TIME (UTC)", text=lambda r: text.stamp(r["time"])[5:], width=14),
        Column(
            name="kind",
            title="WHAT",
            text=lambda r: f"{r['kind']} {r['outcome']}".strip(),
            width=17,
            flex=2,
        ),
        Column(name="actor", title="ACTOR", text=lambda r: r["actor"], width=9, flex=1),
        Column(name="object", title="OBJECT", text=lambda r: r["object"] or "-", width=9, flex=2),
        Column(name="leaf", title="LEAF", text=lambda r: r["leaf"][:8], width=8),
        Column(
            name="tenant", title="TENANT", text=lambda r: r["tenant"] or "-", width=12, least=100
        ),
    )

    def __init__(self, place: Place) -> None:
        """Start at the newest entry."""
        super().__init__(place)
        self._pages: list[int] = []

    def query_now(self) -> Query:
        """The server's part of the filter, and the page."""
        words = self.table.filter_text
        params = dict(_server_terms(words))
        if self._pages:
            params["before"] = str(self._pages[-1])
        return Query(view="audit", params=tuple(sorted(params.items())))

    def body(self) -> ComposeResult:
        """The chain's head above the table."""
        yield Static(id="facts", markup=False)
        yield from super().body()

    def key_of(self, row: Row) -> str:
        """Entries are named by their number."""
        return str(row["seq"])

    def open_row(self, row: Row) -> Place:
        """The entry in full."""
        return Place("entry", (str(row["seq"]),))

    def draw(self, snapshot: Snapshot) -> None:
        """Rows and head."""
        super().draw(snapshot)
        head = snapshot.extras.get("head") or {}
        page = f"   before {self._pages[-1]}, [ newer" if self._pages else ""
        line = (
            f"Head: {head.get('size', 0)} entries, root {str(head.get('root', ''))[:16]},"
            f" {text.stamp(head.get('time'))} UTC{page}"
        )
        shown = Text(text.clip(line, max(20, self.size.width - 2)))
        self.query_one("#facts", Static).update(shown, layout=False)

    def action_page(self, by: int) -> None:
        """``]`` shows older entries, ``[`` newer ones."""
        rows = self._drawn.rows if self._drawn else ()
        if by > 0 and rows:
            last = min(int(row["seq"]) for row in rows)
            if last > 1:
                self._pages.append(last)
        elif by < 0 and self._pages:
            self._pages.pop()
        self.watch_now()

    def action_verify(self) -> None:
        """``v`` verifies the whole ledger on the server; the console stays usable."""
        if self.console.may("Verify"):
            self.console.say("Verifying the whole ledger; the result is shown when it is there.")
            self.app.run_worker(verify(self), group="verify", exclusive=True)


async def verify(page: Page) -> None:
    """Ask the server to verify every entry and show what it found."""
    console = page.console
    reply = await console.perform(
        "POST",
        "/api/v1/audit/verify",
        doing="Verify the audit ledger",
        timeout_s=VERIFY_TIMEOUT_S,
    )
    if reply is None or not isinstance(reply.data, dict):
        return
    data = reply.data
    head = data.get("head") or {}
    is_ok = data.get("ok") is True
    lines = [
        f"{data.get('entries')} entries checked in {text.millis(data.get('elapsed_ms'))} ms",
        f"Head: {head.get('size')} entries at {text.stamp(head.get('time'))} UTC",
        f"Root: {head.get('root')}",
    ]
    if not is_ok:
        lines.insert(0, f"First entry that fails: {data.get('first_bad_seq')}")
    if data.get("detail"):
        lines.append(str(data["detail"]))
    title = "OK  The audit ledger is whole" if is_ok else "X FAIL  The audit ledger is damaged"
    note = f"Request id: {reply.request_id}"
    await console.push_screen_wait(
        Notice(title, "\n".join(lines), notes=(note, "$ appliance audit verify"), is_bad=not is_ok)
    )


class EntryPage(Page):
    """One entry: its members, its canonical JSON, its leaf digest."""

    AUTO_FOCUS = "#pane"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("o", "save", "save proof"),
        Binding("y", "raw", "indented JSON"),
        Binding("left_square_bracket", "step(1)", "newer"),
        Binding("right_square_bracket", "step(-1)", "older"),
        Binding("c", "copy", "copy the leaf", show=False),
        Binding("j", "scroll(1)", "down", show=False),
        Binding("k", "scroll(-1)", "up", show=False),
    ]

    def __init__(self, place: Place) -> None:
        """Nothing is known before the answer."""
        super().__init__(place)
        self._entry: Mapping[str, Any] | None = None

    @property
    def seq(self) -> int:
        """The entry's number."""
        return int(self.place.args[0])

    def query_now(self) -> Query:
        """The audit head."""
        return Query(view="audit")

    def body(self) -> ComposeResult:
        """One scrolling text."""
        with VerticalScroll(id="pane"):
            yield Static("Waiting for the answer.", id="text", markup=False)

    def ready(self) -> None:
        """Fetch the entry; it never changes."""
        self._load()

    @work(exclusive=True, group="load")
    async def _load(self) -> None:
        try:
            reply = await self.console.client.call("GET", path_of("api", "v1", "audit", self.seq))
        except Problem as problem:
            words = f"X {problem.title}: {problem.detail}\nRequest id: {problem.request_id}"
            self.call_later(self._paint, words)
            return
        if isinstance(reply.data, dict):
            self._entry = reply.data
            self.call_later(self._paint, entry_text(reply.data))

    def _paint(self, words: str) -> None:
        if not self.is_shown:
            return
        self.query_one("#text", Static).update(Text(text.clean(words, lines=True)))

    def action_step(self, by: int) -> None:
        """``[`` and ``]`` show the neighbours."""
        seq = self.seq + by
        newest = self.feed.latest(self.query_now())
        size = int(((newest.extras.get("head") if newest else None) or {}).get("size") or 0)
        if seq >= 0 and (not size or seq <= size):
            self.console.go(Place("entry", (str(seq),)))

    def action_scroll(self, by: int) -> None:
        """``j`` and ``k`` scroll."""
        self.query_one("#pane").scroll_relative(y=by, animate=False)

    @work(exclusive=True, group="dialog")
    async def action_raw(self) -> None:
        """``y`` shows the entry indented."""
        if self._entry is not None:
            await self.app.push_screen_wait(Reading(f"Entry {self.seq}", text.pretty(self._entry)))

    def action_copy(self) -> None:
        """``c`` copies the leaf digest."""
        if self._entry is not None:
            self.app.copy_to_clipboard(str(self._entry.get("leaf", "")))
            self.console.say("Copied the leaf digest")

    @work(exclusive=True, group="dialog")
    async def action_save(self) -> None:
        """``o`` saves the entry's proof to a file on the machine the console runs on."""
        reply = await self.console.perform(
            "GET", path_of("api", "v1", "audit", self.seq, "proof"), doing="Fetch the proof"
        )
        if reply is None:
            return
        proof = reply.text
        values = await self.app.push_screen_wait(
            Form(
                title=f"Save the proof of entry {self.seq}",
                fields=[Field(name="path", label="File", value=f"entry-{self.seq}.proof")],
                verb="Save",
                effect="Checked later with the appliance's public key alone, without the server.",
                check=lambda v: save_new(Path(v["path"]), proof) if v["path"] else "Type a path.",
            )
        )
        if values is not None:
            cli = f"appliance audit prove {self.seq} --out {values['path']}"
            self.console.say(f"Saved {values['path']}\n{reply.request_id}\n$ {cli}")


def entry_text(entry: Mapping[str, Any]) -> str:
    """An entry for reading: its members, leaf digest, and canonical JSON."""
    lines = [
        f"{name:<8} {entry.get(name) or text.NONE}"
        for name in ("seq", "time", "kind", "tenant", "actor", "object")
    ]
    lines += ["", "leaf digest (RFC 6962, hex)", f"{entry.get('leaf')}", ""]
    if entry.get("event") is None:
        lines.append("The tenant's key was destroyed, and the event's fields with it.")
    else:
        lines += ["event, canonical JSON", text.canonical(entry["event"])]
    return "\n".join(lines)


def _server_terms(words: str) -> list[tuple[str, str]]:
    """The part of a filter the server applies before its limit."""
    found = []
    for part in words.split():
        name, colon, value = part.partition(":")
        if colon and value and name in SERVER_TERMS:
            if name == "kind" and "." not in value:
                value += "."
            found.append((name, value))
    return found
