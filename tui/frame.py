"""The frame every screen shares: breadcrumb, status line, body, key line; and the list screen.

Owns: the four rows of the frame, the filter line, and the keys that mean the same everywhere.
Never: fetches (``feed``) or changes anything on the server (``app.perform``).
Read next: ``screens/tenants`` (the shortest screen), ``table`` (the rows).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from rich.cells import cell_len
from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import Screen
from textual.widgets import DataTable, Input, Static

from tui import text
from tui.client import Query, Row, Snapshot
from tui.feed import Feed, Link
from tui.nav import Place
from tui.table import Column, LiveTable

if TYPE_CHECKING:
    from tui.app import ConsoleApp

_KEY_NAMES = {
    "colon": ":",
    "slash": "/",
    "question_mark": "?",
    "escape": "Esc",
    "enter": "Enter",
    "minus": "-",
    "left_square_bracket": "[",
    "right_square_bracket": "]",
    "space": "Space",
}
_STATE_WORDS = {"sealed": "SEALED", "uninitialised": "NOT INITIALISED", "draining": "DRAINING"}
_LINK_STYLES = {
    Link.LIVE: "bold green",
    Link.STALE: "bold yellow",
    Link.PAUSED: "bold yellow",
    Link.DISCONNECTED: "bold red",
    Link.DENIED: "bold red",
    Link.CONNECTING: "bold",
}


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a screen as the key line and the help show it."""

    key: str
    label: str
    action: str
    is_shown: bool


class Page(Screen[None]):
    """A screen with the frame around it.

    Class attributes:
        KIND: ``place``, ``sealed`` or ``first-run``: in which state of the appliance it shows.
        VERBS: actions that change something; read-only mode says why they do nothing.
    """

    KIND: ClassVar[str] = "place"
    VERBS: ClassVar[frozenset[str]] = frozenset()
    AUTO_FOCUS = ""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("colon", "goto", "go"),
        Binding("question_mark", "keys", "keys"),
        Binding("escape", "back", "back", show=False),
        Binding("minus", "last", "last screen", show=False),
        Binding("p", "pause", "pause", show=False),
        Binding("r", "refresh", "refresh", show=False),
        Binding("q", "leave", "quit"),
    ]

    def __init__(self, place: Place) -> None:
        """Make the screen of a place; ``holds`` keeps it while something must not be lost."""
        super().__init__()
        self.place = place
        self.holds = False
        self._drawn: Snapshot | None = None
        self._is_ready = False

    @property
    def console(self) -> ConsoleApp:
        """The app, with its type."""
        return cast("ConsoleApp", self.app)

    @property
    def feed(self) -> Feed:
        """The app's one poller."""
        return self.console.feed

    # -- what a screen says about itself -------------------------------------------------------

    def query_now(self) -> Query:
        """What to poll while this screen is shown."""
        return Query(view="dashboard")

    def body(self) -> ComposeResult:
        """The widgets between status line and key line."""
        yield from ()

    def draw(self, snapshot: Snapshot) -> None:
        """Draw a new answer to ``query_now``."""

    def crumbs(self) -> list[str]:
        """The breadcrumb, outermost first."""
        return [p.label for p in self.place.ancestors() if p.noun != "dashboard"] + [
            self.place.label
        ]

    def crumb_notes(self) -> str:
        """Filter and sort, shown after the breadcrumb."""
        return ""

    # -- life ----------------------------------------------------------------------------------

    def compose(self) -> ComposeResult:
        """The frame around ``body``."""
        yield Static(id="crumbs", markup=False)
        yield Static(id="status", markup=False)
        yield Static(id="banner", markup=False)
        with Vertical(id="body"):
            yield from self.body()
        with Horizontal(id="filter-line"):
            yield Static("/", id="filter-mark", markup=False)
            yield Input(id="filter", compact=True)
        yield Static(id="keyline", markup=False)

    def on_mount(self) -> None:
        """Subscribe and draw what is known already."""
        for field in self.query(Input):
            field.cursor_blink = False
        self._is_ready = True
        self.feed.changed.subscribe(self, self._on_feed)
        self.set_interval(1.0, self.draw_frame)
        self.watch_now()
        self.ready()
        self.call_after_refresh(self._on_feed, self.feed)

    def ready(self) -> None:
        """The widgets exist; nothing is drawn yet. Textual calls every class's ``on_mount``."""

    def on_screen_resume(self) -> None:
        """Poll this screen's view again after a dialog or another screen."""
        if self._is_ready:
            self.watch_now()

    def on_resize(self) -> None:
        """Fit the one-line texts to the new width."""
        if self._is_ready:
            self.call_after_refresh(self.resized)

    def resized(self) -> None:
        """Draw again at the new size."""
        self.draw_frame()

    def remember(self) -> None:
        """Keep what should be as it was when somebody comes back; called before leaving."""

    def watch_now(self) -> None:
        """Tell the poller what this screen shows."""
        self.feed.watch(self.query_now())

    @property
    def is_shown(self) -> bool:
        """Whether its widgets exist: not before they are made, not after it was left."""
        return self._is_ready and self in self.app.screen_stack

    def _on_feed(self, feed: Feed) -> None:
        if not self.is_shown:
            return
        snapshot = feed.latest(self.query_now())
        if snapshot is not None and snapshot is not self._drawn:
            self._drawn = snapshot
            self.draw(snapshot)
        self.draw_frame()

    # -- the frame -----------------------------------------------------------------------------

    def draw_frame(self) -> None:
        """Redraw the frame's own lines; cheap, once a second."""
        if not self.is_shown:
            return
        width = max(10, self.size.width - 2)
        self._line("#crumbs", self._crumb_line(width))
        self._line("#status", self._status_line(width))
        self._line("#keyline", self._key_line(width))
        banner = self._banner()
        self.query_one("#banner").display = bool(banner)
        self._line("#banner", Text(text.clip(banner, width), style="bold reverse"))
        is_old = self.feed.link in (Link.DISCONNECTED, Link.STALE, Link.DENIED)
        self.query_one("#body").set_class(is_old, "-old")

    def _line(self, selector: str, content: Text) -> None:
        widget = self.query_one(selector, Static)
        if getattr(widget, "shown_text", None) != content:
            widget.shown_text = content  # type: ignore[attr-defined]
            widget.update(content, layout=False)

    def _crumb_line(self, width: int) -> Text:
        flag = "[read-only]" if self.console.is_readonly else "[read-write]"
        left = " > ".join(("appliance", *self.crumbs()))
        notes = self.crumb_notes()
        left = f"{left}  {notes}" if notes else left
        room = width - len(flag) - 1
        return Text(f"{text.fit(left, room)} {flag}", style="bold", no_wrap=True)

    def _status_line(self, width: int) -> Text:
        feed, link = self.feed, self.feed.link
        newest = feed.newest
        word = link.value
        if link is Link.LIVE:
            word = _STATE_WORDS.get(feed.state, word)
        parts = [word]
        if link in (Link.STALE, Link.DISCONNECTED, Link.PAUSED) and newest is not None:
            parts[0] += f" {text.duration(feed.age_s)}"
        if link is Link.DISCONNECTED:
            parts.append(f"retry every {max(1, round(feed.retry_s))}s")
        if newest is not None:
            node = newest.node
            if feed.state not in _STATE_WORDS:
                parts.append(feed.state)
            parts.append(text.clip(node.get("name") or "", 20))
            parts.append("v" + text.clip(node.get("version", "?"), 14))
            if link is Link.LIVE and feed.uptime_s is not None:
                parts.append(f"up {text.duration(feed.uptime_s)}")
            parts.append(f"alerts: {newest.warn} WARN {newest.fail} FAIL")
        line = "  ".join(part for part in parts if part)
        style = "bold yellow" if word in _STATE_WORDS.values() else _LINK_STYLES[link]
        shown = Text(text.clip(line, width), no_wrap=True)
        shown.stylize(style, 0, len(parts[0]))
        return shown

    def _banner(self) -> str:
        feed = self.feed
        problem = feed.problem
        if not feed.is_compatible:
            return "This console does not match the server's version; verbs are disabled."
        if problem is None or problem.code in ("sealed", "uninitialised"):
            return ""
        if feed.link is Link.DENIED:
            return f"X {problem.title}: {problem.detail}  r tries again"
        if problem.is_unreachable:
            return f"! No answer: {problem.detail}"
        request = f"  [{problem.request_id}]" if problem.request_id else ""
        return f"! {problem.title}: {problem.detail}{request}"

    def keys(self) -> Iterator[Key]:
        """Every key of this screen, its own verbs first."""
        seen: set[str] = set()
        for cls in type(self).__mro__:
            for binding in cls.__dict__.get("BINDINGS", ()):
                if not isinstance(binding, Binding) or not issubclass(cls, Page):
                    continue
                if binding.key not in seen:
                    seen.add(binding.key)
                    name = _KEY_NAMES.get(binding.key, binding.key)
                    yield Key(name, binding.description, binding.action, binding.show)

    def _key_line(self, width: int) -> Text:
        shown = [k for k in self.keys() if k.is_shown]
        order = {":": 0, "/": 1, "?": 2, "q": 9}
        shown.sort(key=lambda k: order.get(k.key, 5))
        while shown and sum(cell_len(f"{k.key} {k.label}") + 2 for k in shown) - 2 > width:
            loose = [k for k in shown if order.get(k.key, 5) == 5] or shown
            shown.remove(loose[-1])
        line = Text(no_wrap=True)
        for at, key in enumerate(shown):
            line.append("  " if at else "")
            line.append(key.key, "bold")
            dim = self.console.is_readonly and key.action in self.VERBS
            line.append(f" {key.label}", "strike dim" if dim else "")
        return line

    # -- keys ----------------------------------------------------------------------------------

    @work(exclusive=True, group="dialog")
    async def action_goto(self) -> None:
        """``:`` asks where to go."""
        from tui.nav import GoTo

        place = await self.app.push_screen_wait(GoTo())
        if place is not None:
            self.console.go(place)

    @work(exclusive=True, group="dialog")
    async def action_keys(self) -> None:
        """``?`` lists the keys of this screen."""
        from tui.dialogs import Help

        reason = self.console.why_not()
        rows = [
            (k.key, k.label, reason if reason and k.action in self.VERBS else "")
            for k in self.keys()
        ]
        await self.app.push_screen_wait(Help(self.crumbs()[-1], rows))

    def action_back(self) -> None:
        """Esc goes one breadcrumb up."""
        self.console.back()

    def action_last(self) -> None:
        """``-`` goes to the screen before this one."""
        self.console.last()

    def action_refresh(self) -> None:
        """``r`` asks now."""
        self.console.ask_again()

    def action_pause(self) -> None:
        """``p`` stops and resumes the refresh."""
        self.feed.pause(not self.feed.paused)

    def action_leave(self) -> None:
        """``q`` leaves the console; the appliance runs on."""
        self.app.exit(0)


class ListPage(Page):
    """A screen that is one table: filter, sort, details and verbs of the row under the cursor.

    Class attributes:
        COLUMNS: the columns, leftmost first; those with ``least`` go first when it is narrow.
        EMPTY: what to say, and to do, when there are no rows.
    """

    COLUMNS: ClassVar[Sequence[Column]] = ()
    VIEW: ClassVar[str] = ""
    EMPTY: ClassVar[str] = "Nothing here yet."
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "filter"),
        Binding("s", "sort", "sort"),
        Binding("S", "sort_reverse", "sort the other way", show=False),
        Binding("y", "raw", "raw JSON", show=False),
        Binding("c", "copy", "copy the id", show=False),
        Binding("w", "wide", "wide columns", show=False),
    ]

    def key_of(self, row: Row) -> str:
        """What names a row for as long as it exists."""
        return str(row.get("id") or row.get("name") or "")

    def open_row(self, row: Row) -> Place | None:
        """Where Enter on a row goes."""
        return None

    def query_now(self) -> Query:
        """The view of this noun, within the place's tenant."""
        params = (("tenant", self.place.args[0]),) if self.place.args else ()
        return Query(view=self.VIEW, params=params)

    @property
    def table(self) -> LiveTable:
        """The one table."""
        return self.query_one("#table", LiveTable)

    @property
    def row(self) -> Row | None:
        """The row under the cursor."""
        return self.table.selected

    def body(self) -> ComposeResult:
        """Title line, table, and the sentence that replaces it when there is none."""
        yield LiveTable(self.COLUMNS, self.key_of, id="table")
        yield Static(id="empty", markup=False)

    def ready(self) -> None:
        """Bring back what this screen looked like when it was left."""
        memory = self.console.memory_of(self.place)
        table = self.table
        if self.place.filter is not None:
            memory.filter = self.place.filter
        table.sort_name, table.sort_reverse = memory.sort, memory.reverse
        table.filter_text = memory.filter
        table.is_wide = memory.wide
        table.aim(memory.key)
        self.query_one("#filter", Input).value = memory.filter
        table.focus()
        self._show_empty()

    def remember(self) -> None:
        """Keep filter, sort and row."""
        if not self.is_shown:
            return
        memory = self.console.memory_of(self.place)
        table = self.table
        memory.filter, memory.sort = table.filter_text, table.sort_name
        memory.reverse, memory.key, memory.wide = (
            table.sort_reverse,
            table.selected_key,
            table.is_wide,
        )

    def draw(self, snapshot: Snapshot) -> None:
        """Show the rows."""
        self.table.show(snapshot.rows)

    def draw_frame(self) -> None:
        """The frame's lines and the empty sentence."""
        super().draw_frame()
        self._show_empty()

    def crumb_notes(self) -> str:
        """Filter, sort, and how many rows are not shown."""
        table = self.table
        notes = [f"/{table.filter_text}" if table.filter_text else "", table.sort_title]
        if self._drawn is not None and self._drawn.total > len(self._drawn.rows):
            notes.append(f"first {len(self._drawn.rows)} of {self._drawn.total}")
        return "  ".join(note for note in notes if note)

    def _show_empty(self) -> None:
        if not self.is_shown:
            return
        table, empty = self.table, self.query_one("#empty", Static)
        is_empty = table.shown == 0
        if empty.display is not is_empty or table.display is is_empty:
            table.display, empty.display = not is_empty, is_empty
            if not is_empty and self.focused is None:
                table.focus()
        if not is_empty:
            return
        self._line("#empty", Text(text.clean(self.empty_words(), lines=True)))

    def empty_words(self) -> str:
        """What stands there without rows."""
        if self._drawn is None:
            return "No data yet: waiting for the first answer."
        if self._drawn.rows:
            return f"Nothing matches /{self.table.filter_text}\nEsc clears the filter."
        return self.EMPTY

    # -- keys ----------------------------------------------------------------------------------

    def action_filter(self) -> None:
        """``/`` opens the filter line."""
        self.query_one("#filter-line").display = True
        self.set_focus(self.query_one("#filter", Input))

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter while typing."""
        if event.input.id == "filter":
            self.table.filter(event.value)
            self._show_empty()
            self.draw_frame()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Enter keeps the filter and goes back to the rows."""
        if event.input.id == "filter":
            self._close_filter()
            self.watch_now()

    def _close_filter(self) -> None:
        self.query_one("#filter-line").display = False
        self._show_empty()
        self.set_focus(self.table)

    def action_back(self) -> None:
        """Esc clears the filter first, then goes up."""
        field = self.query_one("#filter", Input)
        if self.query_one("#filter-line").display or self.table.filter_text:
            field.value = ""
            self.table.filter("")
            self._close_filter()
            self.watch_now()
            self.draw_frame()
            return
        super().action_back()

    def action_sort(self) -> None:
        """``s`` sorts by the next column."""
        self.table.sort_next()
        self.draw_frame()

    def action_sort_reverse(self) -> None:
        """``S`` turns the sort round."""
        self.table.sort_by(self.table.sort_name, reverse=not self.table.sort_reverse)
        self.draw_frame()

    def action_wide(self) -> None:
        """``w`` shows the wide columns."""
        self.table.toggle_wide()

    @work(exclusive=True, group="dialog")
    async def action_raw(self) -> None:
        """``y`` shows the row as it came."""
        from tui.dialogs import Reading

        row = self.row
        if row is not None:
            await self.app.push_screen_wait(Reading(self.table.selected_key, text.pretty(row)))

    def action_copy(self) -> None:
        """``c`` copies the row's id to the terminal's clipboard."""
        key = self.table.selected_key
        if key:
            self.app.copy_to_clipboard(key)
            self.console.say(f"Copied {text.clip(key, 50)}")

    def action_open(self) -> None:
        """Enter drills down."""
        row = self.row
        place = self.open_row(row) if row is not None else None
        if place is not None:
            self.console.go(place)

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Enter, or a click on the row under the cursor."""
        if event.data_table.id == "table":
            self.action_open()
