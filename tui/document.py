"""A page of one thing: its document, fetched again while it may change, as lines to read.

Owns: fetching, the scrolling text, raw JSON, and what stands there when it cannot be had.
Never: knows a noun; ``screens`` say where a document is and how it reads.
Read next: ``screens/jobs`` (the shortest such page), ``frame.Page``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Static

from tui import text
from tui.client import Problem, Query, loose
from tui.feed import Feed, Link
from tui.frame import Page
from tui.nav import Place

_LABEL = 13
ENDS = ("succeeded", "failed", "canceled")


def pairs(members: Mapping[str, object]) -> list[str]:
    """``name value`` a line; members that are None or empty are left out."""
    return [
        f"{name:<{_LABEL}} {text.clean(value)}"
        for name, value in members.items()
        if value not in (None, "")
    ]


def problem_lines(error: Mapping[str, Any] | None) -> list[str]:
    """A problem document as lines: what, why, what to do, and what the model printed."""
    if not error:
        return []
    lines = ["", f"X {error.get('title', '')}  {error.get('code', '')}".rstrip()]
    lines += [text.clean(error[name]) for name in ("detail", "hint") if error.get(name)]
    printed = error.get("stderr") or ()
    if printed:
        lines += ["", "printed", *(f"  {text.clean(line)}" for line in printed)]
    return lines


class DocumentPage(Page):
    """One thing of a tenant; ``where`` is its address, ``lines_of`` how it reads."""

    AUTO_FOCUS = "#pane"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "raw", "raw JSON"),
        Binding("c", "copy", "copy the id", show=False),
        Binding("j", "scroll(1)", "down", show=False),
        Binding("k", "scroll(-1)", "up", show=False),
        Binding("g", "home", "top", show=False),
        Binding("G", "end", "bottom", show=False),
    ]

    def __init__(self, place: Place) -> None:
        """Nothing is known before the first answer."""
        super().__init__(place)
        self.document: Mapping[str, Any] | None = None
        self._why = "Waiting for the first answer."

    # -- what a page says ----------------------------------------------------------------------

    def where(self) -> str:
        """The address of the document."""
        raise NotImplementedError

    def lines_of(self, document: Mapping[str, Any]) -> Sequence[str]:
        """How it reads, a line each; they are cleaned before they are drawn."""
        raise NotImplementedError

    def is_over(self, document: Mapping[str, Any]) -> bool:
        """Whether it changes no more."""
        return document.get("status") in ENDS

    # -- life ----------------------------------------------------------------------------------

    def query_now(self) -> Query:
        """The checks: the cheapest view that says how the appliance is."""
        return Query(view="health")

    @property
    def row(self) -> Mapping[str, Any] | None:
        """What verbs act on: the document, once it is there."""
        return self.document

    def body(self) -> ComposeResult:
        """One scrolling text."""
        with VerticalScroll(id="pane"):
            yield Static(id="text", markup=False)

    def ready(self) -> None:
        """Ask at once."""
        self._paint()
        self.load()

    def _on_feed(self, feed: Feed) -> None:
        super()._on_feed(feed)
        document = self.document
        if feed.link is Link.LIVE and (document is None or not self.is_over(document)):
            self.load()

    @work(exclusive=True, group="load")
    async def load(self) -> None:
        """Fetch the document and draw it."""
        try:
            reply = await self.console.client.call("GET", self.where())
        except Problem as problem:
            if problem.status == 404:
                self.document = None
            self._why = f"X {problem.title}: {problem.detail}\nRequest id: {problem.request_id}"
        else:
            if isinstance(reply.data, dict):
                self.document = loose(reply.data)
        self.call_later(self._paint)

    def _paint(self) -> None:
        if not self.is_shown:
            return
        lines: Sequence[str] = [self._why]
        if self.document is not None:
            try:
                lines = self.lines_of(self.document)
            except (TypeError, ValueError, AttributeError, LookupError):
                lines = ["! This console cannot read what the server sent; y shows it as it came."]
        shown = "\n".join(text.clean(line, lines=True) for line in lines)
        widget = self.query_one("#text", Static)
        if getattr(widget, "shown_text", None) != shown:
            widget.shown_text = shown  # type: ignore[attr-defined]
            widget.update(Text(shown))

    def resized(self) -> None:
        """Lines may depend on the width."""
        super().resized()
        self._paint()

    # -- keys ----------------------------------------------------------------------------------

    def action_refresh(self) -> None:
        """``r`` asks now, also for what is over."""
        super().action_refresh()
        self.load()

    def action_scroll(self, by: int) -> None:
        """``j`` and ``k`` scroll."""
        self.query_one("#pane").scroll_relative(y=by, animate=False)

    def action_home(self) -> None:
        """``g`` goes to the top."""
        self.query_one("#pane").scroll_home(animate=False)

    def action_end(self) -> None:
        """``G`` goes to the end."""
        self.query_one("#pane").scroll_end(animate=False)

    @work(exclusive=True, group="dialog")
    async def action_raw(self) -> None:
        """``y`` shows the document as it came."""
        from tui.dialogs import Reading

        if self.document is not None:
            title = str(self.document.get("id") or self.place.label)
            await self.app.push_screen_wait(Reading(title, text.pretty(dict(self.document))))

    def action_copy(self) -> None:
        """``c`` copies the id."""
        name = str((self.document or {}).get("id") or "")
        if name:
            self.app.copy_to_clipboard(name)
            self.console.say(f"Copied {text.clip(name, 50)}")
