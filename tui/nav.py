"""Where one can go: one line per screen, places with arguments, and the go-to prompt.

Owns: the nouns, their aliases and parents, and how ``:m risk /fraud`` is read.
Never: builds a screen before somebody goes there.
Read next: ``app.ConsoleApp.go`` (walks), ``frame.Page`` (what a screen is).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from tui import text

if TYPE_CHECKING:
    from tui.frame import Page


@dataclass(frozen=True, slots=True, kw_only=True)
class Noun:
    """One screen: its word, alias, class, and how it is reached."""

    name: str
    screen: str
    help: str
    alias: str = ""
    parent: str = "dashboard"
    needs: int = 0
    takes: int = 0


SCREENS: tuple[Noun, ...] = (
    Noun(name="dashboard", alias="d", screen="dashboard:Dashboard", help="the appliance now"),
    Noun(name="models", alias="m", screen="models:Models", help="all models", takes=1),
    Noun(
        name="catalogue",
        alias="l",
        screen="catalogue:Catalogue",
        help="models, and why",
        takes=99,
    ),
    Noun(name="versions", alias="v", screen="versions:Versions", help="all versions", takes=1),
    Noun(name="tenants", alias="t", screen="tenants:Tenants", help="tenants"),
    Noun(name="keys", alias="k", screen="keys:Keys", help="API keys", takes=1),
    Noun(name="sandboxes", alias="s", screen="sandboxes:Sandboxes", help="running models"),
    Noun(name="gpus", alias="g", screen="gpus:Gpus", help="whose GPUs are"),
    Noun(name="egress", alias="e", screen="egress:Egress", help="ways out", takes=1),
    Noun(name="routes", alias="r", screen="routes:Routes", help="shares of calls"),
    Noun(name="drift", alias="f", screen="drift:Drift", help="baselines"),
    Noun(name="jobs", alias="j", screen="jobs:Jobs", help="queued calls", takes=1),
    Noun(name="batches", alias="b", screen="batches:Batches", help="tables scored", takes=1),
    Noun(name="schedules", alias="i", screen="schedules:Schedules", help="by the clock", takes=1),
    Noun(name="webhooks", alias="w", screen="webhooks:Webhooks", help="who is told", takes=1),
    Noun(
        name="comparisons",
        alias="c",
        screen="comparisons:Comparisons",
        help="versions compared",
        takes=1,
    ),
    Noun(name="samples", alias="y", screen="samples:Samples", help="kept calls", takes=1),
    Noun(name="runtimes", alias="rt", screen="runtimes:Runtimes", help="languages, images"),
    Noun(name="audit", alias="a", screen="audit:Audit", help="the audit ledger"),
    Noun(name="health", alias="h", screen="health:Health", help="checks, this node"),
    Noun(
        name="model",
        screen="models:ModelPage",
        help="one model: tenant model",
        parent="models",
        needs=2,
        takes=2,
    ),
    Noun(
        name="version",
        screen="versions:VersionPage",
        help="one version: tenant model number",
        parent="model",
        needs=3,
        takes=3,
    ),
    Noun(
        name="job",
        screen="jobs:JobPage",
        help="one job: tenant id",
        parent="jobs",
        needs=2,
        takes=2,
    ),
    Noun(
        name="batch",
        screen="batches:BatchPage",
        help="one batch: tenant id",
        parent="batches",
        needs=2,
        takes=2,
    ),
    Noun(
        name="schedule",
        screen="schedules:SchedulePage",
        help="one schedule: tenant id",
        parent="schedules",
        needs=2,
        takes=2,
    ),
    Noun(
        name="webhook",
        screen="webhooks:WebhookPage",
        help="one webhook: tenant id",
        parent="webhooks",
        needs=2,
        takes=2,
    ),
    Noun(
        name="comparison",
        screen="comparisons:ComparisonPage",
        help="one comparison: tenant id",
        parent="comparisons",
        needs=2,
        takes=2,
    ),
    Noun(
        name="entry",
        screen="audit:EntryPage",
        help="one audit entry: number",
        parent="audit",
        needs=1,
        takes=1,
    ),
)
_BY_WORD = {word: noun for noun in SCREENS for word in (noun.name, noun.alias) if word}


@dataclass(frozen=True, slots=True)
class Place:
    """A screen with its arguments; ``filter`` is what to type into it, None for what it had."""

    noun: str
    args: tuple[str, ...] = ()
    filter: str | None = None

    @property
    def label(self) -> str:
        """The breadcrumb: ``models``, ``models risk``, ``risk/fraud``, ``v7``, ``entry 12``."""
        if self.noun == "model":
            return "/".join(self.args)
        if self.noun == "version":
            return f"v{self.args[2]}"
        if self.noun in ("job", "batch", "schedule", "webhook", "comparison"):
            return self.args[1]
        return " ".join((self.noun, *self.args))

    def ancestors(self) -> tuple[Place, ...]:
        """The breadcrumbs before this place, outermost first."""
        if self.noun == "dashboard":
            return ()
        parent = _BY_WORD[_BY_WORD[self.noun].parent]
        up = Place(parent.name, self.args[: parent.needs])
        return (*up.ancestors(), up)


HOME = Place("dashboard")


def open_place(place: Place) -> Page:
    """The screen of a place, made now."""
    module, _, name = _BY_WORD[place.noun].screen.partition(":")
    page: Page = getattr(import_module(f"tui.screens.{module}"), name)(place)
    return page


def place_from(words: str) -> Place | str:
    """The place some typed words mean, or a sentence saying why they mean none."""
    before, slash, wanted = (" " + words.strip()).partition(" /")
    parts = before.replace("/", " ").split()
    if not parts:
        return "Type a noun, for example: models"
    args = tuple(parts[1:])
    noun = _BY_WORD.get(parts[0].lower())
    if noun is None:
        close = _close(parts[0])
        if not close:
            return f"There is no screen called '{text.clip(parts[0], 30)}'."
        noun = next((n for n in close if n.needs <= len(args) <= n.takes), close[0])
    if len(args) < noun.needs:
        return f"'{noun.name}' is {noun.help}."
    if len(args) > noun.takes:
        return f"'{noun.name}' takes {noun.takes or 'no'} arguments."
    if noun.name in ("version", "entry") and not args[-1].lstrip("v").isdigit():
        return f"'{text.clip(args[-1], 30)}' is not a number."
    if noun.name in ("version", "entry"):
        args = (*args[:-1], args[-1].lstrip("v"))
    return Place(noun.name, args, wanted.strip() if slash else None)


class GoTo(ModalScreen["Place | None"]):
    """The ``:`` prompt: type a noun or its letter, Enter goes there."""

    def compose(self) -> ComposeResult:
        """One input line above the list of nouns."""
        with Vertical(id="goto", classes="dialog"):
            yield Input(id="goto-words", placeholder="noun  arguments  /filter")
            yield Static(id="goto-nouns", markup=False)
            yield Static(id="goto-error", markup=False)

    def on_mount(self) -> None:
        """List every noun."""
        self.query_one(Input).cursor_blink = False
        self._list("")

    def on_key(self, event: events.Key) -> None:
        """Esc leaves; Tab completes the first noun that fits."""
        field = self.query_one(Input)
        if event.key == "escape":
            event.stop()
            self.dismiss(None)
        elif event.key == "tab":
            event.stop()
            event.prevent_default()
            close = _close(field.value)
            if close:
                field.value = close[0].name + " "
                field.cursor_position = len(field.value)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Narrow the list."""
        self._list(event.value)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Go, or say why not."""
        place = place_from(event.value)
        if isinstance(place, str):
            self.query_one("#goto-error", Static).update(Text(place))
            return
        self.dismiss(place)

    def _list(self, words: str) -> None:
        self.query_one("#goto-error", Static).update("")
        close = _close(words)
        if words.strip() and close:
            lines = [_noun_line(noun) for noun in close]
        else:  # all that can be gone to without knowing a name, in two columns
            lines = _columns([_noun_line(noun) for noun in SCREENS if not noun.needs])
        self.query_one("#goto-nouns", Static).update(Text("\n".join(lines), no_wrap=True))


def _noun_line(noun: Noun) -> str:
    return f"{noun.alias or ' ':<3}{noun.name:<12}{noun.help}"


def _columns(lines: list[str], width: int = 34) -> list[str]:
    """Two columns, read downwards."""
    half = (len(lines) + 1) // 2
    right = [*lines[half:], ""]
    pairs = zip(lines[:half], right, strict=False)
    return [f"{text.fit(one, width)}{text.clip(other, width)}".rstrip() for one, other in pairs]


def _close(words: str) -> list[Noun]:
    first = (words.split() or [""])[0].lower()
    exact = [n for n in SCREENS if first in (n.name, n.alias)] if first else []
    return exact or [n for n in SCREENS if n.name.startswith(first)]
