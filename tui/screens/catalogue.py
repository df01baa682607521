"""The catalogue: models found by what they are called, take, give and were made from, and why.

Owns: how a question is typed, the columns of what was found, the reasons, and what is alike.
Never: matches or ranks; the server does, and says why.
Read next: ``frame.ListPage``, ``screens/models`` (all models, without a question).

A question is in the place itself, ``:catalogue churn takes=age tag=team=risk``, so that going back
finds it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import DataTable, Static

from tui import text
from tui.client import Problem, Query, Row, Snapshot, path_of
from tui.dialogs import Field, Form
from tui.feed import Feed, Link
from tui.frame import ListPage
from tui.nav import Place
from tui.table import Column

PAGE = 100
QUESTIONS = (
    ("text", "Words", "in name, description, tags, columns, lineage"),
    ("takes", "Takes columns", "age,income"),
    ("gives", "Gives columns", "score"),
    ("tag", "Tags", "team=risk"),
    ("owner", "Registered by", "a key's id or name"),
    ("runtime", "Runtime", "python, r4.2"),
    ("convention", "Convention", "mlflow, onnx"),
    ("data", "Data", "a reference, or the first digits of a digest"),
    ("code", "Code", "a reference, or the first digits of a commit"),
    ("run", "Training run", ""),
)
_NAMES = tuple(name for name, _, _ in QUESTIONS)


def question_of(args: Sequence[str]) -> dict[str, str]:
    """What a place asks: ``name=value`` for each part, everything else is words."""
    asked: dict[str, str] = {}
    words = []
    for part in args:
        name, equals, value = part.partition("=")
        if equals and value and name in (*_NAMES, "retired"):
            asked[name] = f"{asked[name]},{value}" if name in asked else value
        else:
            words.append(part)
    if words:
        asked["text"] = " ".join(filter(None, (asked.get("text"), *words)))
    return asked


def reasons_of(row: Row) -> list[Text]:
    """Why it was found, a line for each kind of reason; what matched is bold."""
    lines: dict[str, Text] = {}
    for one in row["reasons"] or ():
        line = lines.get(str(one["field"]))
        if line is None:
            line = lines[str(one["field"])] = Text(text.fit(one["field"], 9) + " ")
        else:
            line.append(", ")
        line.append_text(_marked(str(one["text"]), one["spans"] or ()))
    return list(lines.values())


def _marked(words: str, spans: Sequence[Sequence[int]]) -> Text:
    """A text of somebody else's with the places in bold that matched."""
    shown, at = Text(), 0
    for start, end in sorted((int(a), int(b)) for a, b in spans):
        if start < at:
            continue
        shown.append(text.clean(words[at:start]))
        shown.append(text.clean(words[start:end]), "bold")
        at = end
    shown.append(text.clean(words[at:]))
    return shown


class Catalogue(ListPage):
    """One row per model that was found, the best first; below them why, and what is alike."""

    EMPTY = "Nothing was found.\ne asks something else."
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "open"),
        Binding("e", "ask", "ask"),
        Binding("right_square_bracket", "page(1)", "more"),
        Binding("left_square_bracket", "page(-1)", "back", show=False),
    ]
    COLUMNS = (
        Column(
            name="model",
            title="VERSION",
            text=lambda r: f"{r['tenant']}/{r['model']} v{r['version']}",
            width=18,
            flex=2,
        ),
        Column(
            name="live",
            title="LIVE",
            text=lambda r: "- retired" if r["state"] == "retired" else _live(r),
            width=9,
        ),
        Column(
            name="why",
            title="FOUND BY",
            text=lambda r: " ".join(dict.fromkeys(one["field"] for one in r["reasons"])) or "-",
            width=12,
            flex=1,
        ),
        Column(
            name="description",
            title="DESCRIPTION",
            text=lambda r: r["description"],
            width=16,
            flex=3,
        ),
        Column(
            name="matching",
            title="MATCH",
            text=lambda r: text.count(r["matching"]),
            order=lambda r: r["matching"],
            width=5,
            right=True,
        ),
        Column(name="runtime", title="RUNTIME", text=lambda r: r["runtime"], width=12, least=100),
        Column(
            name="owner",
            title="BY",
            text=lambda r: r["owner"] or r["created_by"],
            width=14,
            least=118,
        ),
        Column(
            name="takes", title="TAKES", text=lambda r: " ".join(r["takes"]), width=16, wide=True
        ),
        Column(
            name="gives", title="GIVES", text=lambda r: " ".join(r["gives"]), width=12, wide=True
        ),
    )

    def __init__(self, place: Place) -> None:
        """Nothing is known before the first answer."""
        super().__init__(place)
        self._asked = question_of(place.args)
        self._pages = [0]
        self._found: Mapping[str, Any] | None = None
        self._why = "Waiting for the first answer."
        self._alike: dict[str, tuple[str, ...]] = {}

    def query_now(self) -> Query:
        """The checks; what was found is asked for once, not every two seconds."""
        return Query(view="health")

    def body(self) -> ComposeResult:
        """What is asked, the table, why the row under the cursor is in it."""
        yield Static(id="facts", markup=False)
        yield from super().body()
        yield Static(id="detail", markup=False)

    def key_of(self, row: Row) -> str:
        """Models are named tenant/model."""
        return f"{row['tenant']}/{row['model']}"

    def open_row(self, row: Row) -> Place:
        """The version that matches best."""
        return Place("version", (str(row["tenant"]), str(row["model"]), str(row["version"])))

    def ready(self) -> None:
        """Ask at once."""
        super().ready()
        self._tell()
        self.load()

    def draw(self, snapshot: Snapshot) -> None:
        """The rows are those that were found; the snapshot has the frame's own."""

    def _on_feed(self, feed: Feed) -> None:
        super()._on_feed(feed)
        if feed.link is Link.LIVE and self._found is None and self.is_shown:
            self.load()

    def crumb_notes(self) -> str:
        """Filter, sort, and how many are not shown."""
        total, first = (self._found or {}).get("total", 0), self._pages[-1]
        shown = len((self._found or {}).get("items") or ())
        notes = [f"/{self.table.filter_text}" if self.table.filter_text else ""]
        notes.append(self.table.sort_title)
        if total > shown:
            notes.append(f"{first + 1} to {first + shown} of {total}")
        return "  ".join(note for note in notes if note)

    def empty_words(self) -> str:
        """What stands there without rows: not asked yet, refused, filtered away, nothing."""
        if self._found is None:
            return self._why
        if self._found.get("items"):
            return f"Nothing matches /{self.table.filter_text}\nEsc clears the filter."
        return self.EMPTY

    @work(exclusive=True, group="load")
    async def load(self) -> None:
        """Ask the appliance."""
        params = {**self._asked, "limit": str(PAGE), "offset": str(self._pages[-1])}
        try:
            reply = await self.console.client.call("GET", "/api/v1/catalogue", params=params)
        except Problem as problem:
            self._why = f"X {problem.title}: {problem.detail}\nRequest id: {problem.request_id}"
        else:
            if isinstance(reply.data, dict):
                self._found = reply.data
        self.call_later(self._show_found)

    def _show_found(self) -> None:
        if not self.is_shown:
            return
        self.table.show((self._found or {}).get("items") or ())
        self.draw_frame()
        self._tell()

    def on_data_table_row_highlighted(self, _event: DataTable.RowHighlighted) -> None:
        """The reasons follow the cursor."""
        self._tell()
        self._look()

    @work(exclusive=True, group="alike")
    async def _look(self) -> None:
        """Fetch what the version under the cursor had in common with others when it came."""
        row = self.row
        if row is None or self.key_of(row) in self._alike:
            return
        path = path_of("api", "v1", "models", row["tenant"], row["model"], "versions")
        try:
            reply = await self.console.client.call("GET", f"{path}/{int(row['version'])}")
        except Problem:
            return
        found = (reply.data.get("alike") or ()) if isinstance(reply.data, dict) else ()
        self._alike[self.key_of(row)] = tuple(str(one["text"]) for one in found)
        self.call_later(self._tell)

    def _tell(self) -> None:
        if not self.is_shown:
            return
        width = max(20, self.size.width - 2)
        asked = "  ".join(f"{name} {value}" for name, value in self._asked.items())
        line = f"Asked: {asked}" if asked else "Every model, the newest first; e asks for some."
        self.query_one("#facts", Static).update(Text(text.clip(line, width)), layout=False)
        row = self.row
        lines = reasons_of(row) if row is not None else []
        for words in self._alike.get(self.table.selected_key, ()):
            lines.append(Text(f"{'alike':<9} {text.clean(words)}"))
        if row is not None and not lines:
            lines.append(Text(text.clean(row["description"] or "No description.")))
        for each in lines:
            each.truncate(width, overflow="ellipsis")
        detail = self.query_one("#detail", Static)
        detail.display = bool(lines)
        detail.update(Text("\n").join(lines[:5]))

    def resized(self) -> None:
        """The lines at their new width."""
        super().resized()
        self._tell()

    # -- keys ----------------------------------------------------------------------------------

    def action_refresh(self) -> None:
        """``r`` asks again."""
        super().action_refresh()
        self.load()

    def action_page(self, by: int) -> None:
        """``]`` shows those after these, ``[`` those before."""
        following = (self._found or {}).get("next_offset")
        if by > 0 and following is not None:
            self._pages.append(int(following))
        elif by < 0 and len(self._pages) > 1:
            self._pages.pop()
        else:
            return
        self.load()

    @work(exclusive=True, group="dialog")
    async def action_ask(self) -> None:
        """``e`` asks something else."""
        values = await self.app.push_screen_wait(
            Form(
                title="Search the catalogue",
                fields=[
                    *(
                        Field(name=name, label=label, value=self._asked.get(name, ""), hint=hint)
                        for name, label, hint in QUESTIONS
                    ),
                    Field(
                        name="retired",
                        label="Retired too",
                        words=("no", "yes"),
                        value="yes" if self._asked.get("retired") == "true" else "no",
                    ),
                ],
                verb="Search",
                effect="Everything that is asked must hold; names are separated by commas.",
            )
        )
        if values is None:
            return
        asked = [f"{name}={values[name]}" for name in _NAMES if values[name]]
        if values["retired"] == "yes":
            asked.append("retired=true")
        self.console.go(Place("catalogue", tuple(asked)))


def _live(row: Row) -> str:
    if row["live"] is None:
        return text.NONE
    return "OK live" if row["live"] == row["version"] else f"v{row['live']}"
