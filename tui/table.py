"""LiveTable: rows that change under a cursor that does not.

Owns: columns as data, widths for the terminal at hand, filter, sort, and the row under the cursor.
Never: fetches rows or knows a noun.
Read next: ``frame.ListPage`` (puts one on a screen).

Textual's table keeps its cursor by position; here it follows the row, so that a key pressed after
a refresh still means the row the person looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text
from textual import events
from textual.binding import Binding
from textual.widgets import DataTable

from tui import text
from tui.client import Row

_PADDING = 2
_SCROLLBAR = 2
STYLES = {"! ": "bold yellow", "X ": "bold red", "- ": "dim"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column: how a row reads there, how wide it is, and how it sorts.

    Attributes:
        name: word used in ``col:x`` filters and in the sort title.
        text: the row's cell; cleaned and clipped by the table.
        width: cells it needs at least.
        flex: share of the cells left over.
        order: sort key of the row; the text when missing.
        least: width of the table below which the column is left out.
        wide: shown only after ``w``.
    """

    name: str
    title: str
    text: Callable[[Row], str]
    width: int
    flex: int = 0
    right: bool = False
    order: Callable[[Row], Any] | None = None
    least: int = 0
    wide: bool = False


class Cell(Text):
    """A cell that knows the row it belongs to, so that a sort can look at the row."""

    row_key: str = ""


@dataclass(frozen=True, slots=True)
class _Term:
    """One word of a filter: ``x``, ``!x`` or ``col:x``."""

    column: str
    word: str
    inverse: bool


class LiveTable(DataTable[Text]):
    """A row table that diffs by key, re-sorts, and keeps the cursor on its row."""

    BINDINGS = [  # noqa: RUF012  (Textual declares it as a class variable)
        Binding("j", "cursor_down", "Down", show=False),
        Binding("k", "cursor_up", "Up", show=False),
        Binding("g", "scroll_top", "First row", show=False),
        Binding("G", "scroll_bottom", "Last row", show=False),
    ]

    def __init__(
        self,
        columns: Sequence[Column],
        key: Callable[[Row], str],
        *,
        id: str | None = None,  # noqa: A002
    ) -> None:
        """Make an empty table; ``key`` names a row for as long as it exists."""
        super().__init__(
            id=id, cursor_type="row", cell_padding=1, show_row_labels=False, zebra_stripes=False
        )
        self.specs = tuple(columns)
        self.sort_name = ""
        self.sort_reverse = False
        self.filter_text = ""
        self.is_wide = False
        self._key_of = key
        self._all: dict[str, Row] = {}
        self._shown: dict[str, Row] = {}
        self._plan: tuple[tuple[str, int], ...] = ()
        self._wanted = ""

    @property
    def selected_key(self) -> str:
        """The key of the row under the cursor, empty when there is none."""
        if not self.row_count or not 0 <= self.cursor_row < self.row_count:
            return ""
        return str(self.ordered_rows[self.cursor_row].key.value)

    @property
    def selected(self) -> Row | None:
        """The row under the cursor."""
        return self._shown.get(self.selected_key)

    @property
    def shown(self) -> int:
        """How many rows pass the filter."""
        return len(self._shown)

    @property
    def sort_title(self) -> str:
        """``^p95`` or ``vp95``; empty for the server's order."""
        return f"{'v' if self.sort_reverse else '^'}{self.sort_name}" if self.sort_name else ""

    def show(self, rows: Iterable[Row]) -> None:
        """Draw these rows, changing only what differs."""
        self._all = {self._key_of(row): row for row in rows}
        self._draw()

    def filter(self, words: str) -> None:
        """Show only rows that match every word; ``!x`` inverts, ``col:x`` looks at one column."""
        self.filter_text = words
        self._draw()

    def sort_by(self, name: str, *, reverse: bool = False) -> None:
        """Sort by a column's name; empty means the server's order."""
        self.sort_name = name if any(c.name == name for c in self.specs) else ""
        self.sort_reverse = reverse and bool(self.sort_name)
        self._draw(rebuild=True)

    def sort_next(self) -> None:
        """Sort by the column after the present one, then back to the server's order."""
        names = ["", *(name for name, _ in self._plan)]
        at = names.index(self.sort_name) if self.sort_name in names else 0
        self.sort_by(names[(at + 1) % len(names)])

    def toggle_wide(self) -> None:
        """Show or hide the columns marked wide."""
        self.is_wide = not self.is_wide
        self._draw(rebuild=True)

    def aim(self, key: str) -> None:
        """Put the cursor on this row now, or when it first appears."""
        self._wanted = key
        self._draw()

    def on_resize(self, _event: events.Resize) -> None:
        """Give the columns their share of the new width."""
        self._draw()

    def _draw(self, *, rebuild: bool = False) -> None:
        key, at = self._wanted or self.selected_key, self.cursor_row
        self._shown = {k: row for k, row in self._all.items() if self._passes(row)}
        if not self.is_attached or self.size.width <= 0:
            return  # drawn when it gets a size
        layout = self._fit(self.size.width)
        with self.app.batch_update():
            if rebuild or layout != self._plan or self._is_rewrite():
                self._plan = layout
                self._rebuild()
            else:
                self._diff()
            self._order()
            self._follow(key, at)

    def _is_rewrite(self) -> bool:
        same = sum(1 for row in self.rows if row.value in self._shown)
        return same * 2 < max(len(self.rows), len(self._shown))

    def _passes(self, row: Row) -> bool:
        for term in _terms(self.filter_text, {c.name for c in self.specs}):
            columns = [c for c in self.specs if not term.column or c.name == term.column]
            found = any(term.word in text.clean(_shown(c, row)).casefold() for c in columns)
            if found is term.inverse:
                return False
        return True

    def _fit(self, width: int) -> tuple[tuple[str, int], ...]:
        """The columns that fit and their widths; the last ones go first, the first one stays."""
        specs = [c for c in self.specs if c.least <= width and (self.is_wide or not c.wide)]
        room = width - _SCROLLBAR
        while len(specs) > 1 and sum(c.width + _PADDING for c in specs) > room:
            loose = [c for c in specs if c.least > 0] or specs[1:]
            specs.remove(loose[-1])
        spare = max(0, room - sum(c.width + _PADDING for c in specs))
        shares = sum(c.flex for c in specs)
        widths = {c.name: c.width + (spare * c.flex // shares if c.flex else 0) for c in specs}
        lost = spare - sum(widths[c.name] - c.width for c in specs)
        if shares:
            widths[next(c.name for c in specs if c.flex)] += lost
        return tuple(widths.items())

    def _specs(self) -> list[tuple[Column, int]]:
        by_name = {c.name: c for c in self.specs}
        return [(by_name[name], width) for name, width in self._plan]

    def _rebuild(self) -> None:
        self.clear(columns=True)
        for spec, width in self._specs():
            mark = ("v" if self.sort_reverse else "^") if spec.name == self.sort_name else ""
            title = text.fit(spec.title + mark, width, right=spec.right)
            self.add_column(Text(title, no_wrap=True), width=width, key=spec.name)
        for key, row in self._shown.items():
            self.add_row(*self._cells(key, row), key=key)

    def _diff(self) -> None:
        for old in [r.value for r in self.rows if r.value not in self._shown]:
            self.remove_row(str(old))
        present = {r.value for r in self.rows}
        for key, row in self._shown.items():
            cells = self._cells(key, row)
            if key not in present:
                self.add_row(*cells, key=key)
                continue
            for (spec, _), cell in zip(self._specs(), cells, strict=True):
                if self.get_cell(key, spec.name).plain != cell.plain:
                    self.update_cell(key, spec.name, cell)

    def _cells(self, key: str, row: Row) -> list[Text]:
        cells: list[Text] = []
        for spec, width in self._specs():
            shown = text.fit(_shown(spec, row), width, right=spec.right)
            cell = Cell(shown, style=STYLES.get(shown[:2], ""), no_wrap=True, end="")
            cell.row_key = key
            cells.append(cell)
        return cells

    def _order(self) -> None:
        keys = list(self._shown)
        spec = next((c for c in self.specs if c.name == self.sort_name), None)
        if spec is not None:
            keys.sort(key=lambda k: _sortable(spec, self._shown[k]), reverse=self.sort_reverse)
        if [row.key.value for row in self.ordered_rows] == keys:
            return
        ranks = {key: rank for rank, key in enumerate(keys)}
        first = self._plan[0][0]
        self.sort(first, key=lambda cell: ranks[cell.row_key])

    def _follow(self, key: str, at: int) -> None:
        if not self.row_count:
            return
        if key in self._shown:
            self._wanted = ""
            at = self.get_row_index(key)
        at = min(max(at, 0), self.row_count - 1)
        if at != self.cursor_row:
            self.move_cursor(row=at, animate=False, scroll=True)


def _terms(words: str, columns: set[str]) -> list[_Term]:
    terms = []
    for part in words.casefold().split():
        inverse = part.startswith("!") and len(part) > 1
        part = part[1:] if inverse else part
        column, colon, word = part.partition(":")
        is_column = bool(colon) and column in columns
        terms.append(_Term(column if is_column else "", word if is_column else part, inverse))
    return [t for t in terms if t.word]


def _sortable(spec: Column, row: Row) -> tuple[int, Any]:
    """None sorts last; text without regard to case."""
    try:
        value = spec.order(row) if spec.order else spec.text(row).casefold()
    except (TypeError, AttributeError, ValueError):
        return (1, 0)
    return (1, 0) if value is None else (0, value)


def _shown(spec: Column, row: Row) -> str:
    """The row's text in this column; ``-`` where the member is missing or of another type."""
    try:
        value = spec.text(row)
    except (TypeError, AttributeError, ValueError):
        return text.NONE
    return text.NONE if value is None else str(value)
