"""The dialogs: confirm, form, a secret shown once, a problem, a text to read, the keys.

Owns: what a person is asked before anything changes, and how a refusal is shown.
Never: sends a request; the screen that opened the dialog does.
Read next: ``frame.Page`` (opens them), ``screens/keys`` (uses most of them).

Cancel has the focus when a dialog opens; a button that destroys stays disabled until the name is
typed. Esc is always Cancel, except where a secret would be lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Static

from tui import text
from tui.client import Problem

T = TypeVar("T")


class Choice(Static, can_focus=True):
    """One of a few words, changed with left, right or Space: ``< owner >``."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right,space,l", "step(1)", "next", show=False),
        Binding("left,h", "step(-1)", "previous", show=False),
    ]

    class Changed(Message):
        """Another word was chosen."""

        def __init__(self, choice: Choice) -> None:
            """Carry the choice."""
            super().__init__()
            self.choice = choice

    def __init__(self, words: Sequence[str], value: str = "", *, id: str | None = None) -> None:  # noqa: A002
        """Offer these words."""
        super().__init__(id=id, markup=False)
        self.words = tuple(words)
        self.value = value if value in words else self.words[0]

    def on_mount(self) -> None:
        """Draw the present word."""
        self._show()

    def action_step(self, by: int) -> None:
        """Choose the next or previous word."""
        at = (self.words.index(self.value) + by) % len(self.words)
        self.value = self.words[at]
        self._show()
        self.post_message(self.Changed(self))

    def _show(self) -> None:
        line = Text("< ", no_wrap=True)
        line.append(text.clean(self.value), "bold")
        line.append(f" >   {self.words.index(self.value) + 1} of {len(self.words)}, arrows change")
        self.update(line)


class Dialog(ModalScreen[T]):
    """A box in the middle; Esc answers None. ``holds`` means it must not be closed by others."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "cancel", "Cancel", show=False)]
    AUTO_FOCUS = "#cancel"
    holds = False

    def action_cancel(self) -> None:
        """Answer None."""
        self.dismiss(None)

    def on_mount(self) -> None:
        """No blinking, so that a still screen sends nothing."""
        for field in self.query(Input):
            field.cursor_blink = False
        self.ready()

    def ready(self) -> None:
        """The widgets exist."""

    def on_key(self, event: events.Key) -> None:
        """Arrows move between buttons."""
        if isinstance(self.focused, Button) and event.key in ("left", "right", "up", "down"):
            event.stop()
            forward = event.key in ("right", "down")
            self.app.action_focus_next() if forward else self.app.action_focus_previous()

    def _buttons(self, verb: str, *, is_danger: bool, disabled: bool = False) -> ComposeResult:
        with Horizontal(classes="buttons"):
            yield Button("Cancel", id="cancel", compact=True)
            yield Button(
                text.clean(verb),
                id="verb",
                compact=True,
                disabled=disabled,
                variant="error" if is_danger else "primary",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Consent:
    """A confirmed verb and the reason typed for it."""

    reason: str = ""


class Confirm(Dialog["Consent | None"]):
    """Ask before a verb: its effect, the revision it overwrites, the name, a reason."""

    def __init__(
        self,
        *,
        title: str,
        effect: str,
        verb: str,
        type_name: str = "",
        revision: str = "",
        ask_reason: bool = False,
    ) -> None:
        """Make the dialog.

        Args:
            title: what would be done to what.
            effect: one sentence with counts.
            verb: text of the button.
            type_name: name that has to be typed first; empty for verbs that can be undone.
            revision: which revision is overwritten, for example ``41 -> 42``.
            ask_reason: whether the audit entry carries a reason.
        """
        super().__init__()
        self._head, self._effect, self._verb = title, effect, verb
        self._typed, self._revision, self._ask_reason = type_name, revision, ask_reason

    def compose(self) -> ComposeResult:
        """Title, effect, what to type, and the buttons."""
        with Vertical(classes="dialog danger"):
            yield Static(Text(text.clean(self._head), style="bold"), classes="title")
            yield Static(Text(text.clean(self._effect, lines=True)), classes="effect")
            if self._revision:
                yield Static(Text(f"Revision {text.clean(self._revision)}"), classes="note")
            if self._ask_reason:
                yield Static("Reason (kept in the audit ledger)", classes="label")
                yield Input(id="reason", compact=True, max_length=200)
            if self._typed:
                yield Static(Text(f"Type {text.clean(self._typed)} to confirm"), classes="label")
                yield Input(id="name", compact=True)
            yield from self._buttons(self._verb, is_danger=True, disabled=bool(self._typed))

    def on_input_changed(self, event: Input.Changed) -> None:
        """Enable the verb once the name is right."""
        if event.input.id == "name":
            self.query_one("#verb", Button).disabled = event.value != text.clean(self._typed)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Enter in a field goes to the next one, never to the verb itself."""
        self.app.action_focus_next()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Answer."""
        if event.button.id == "cancel":
            self.dismiss(None)
            return
        reason = self.query_one("#reason", Input).value if self._ask_reason else ""
        self.dismiss(Consent(reason=reason.strip()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field of a form; with ``words`` it is a choice, with ``hidden`` a secret."""

    name: str
    label: str
    value: str = ""
    hint: str = ""
    words: tuple[str, ...] = ()
    hidden: bool = False


class Form(Dialog["dict[str, str] | None"]):
    """Ask for a few fields; ``check`` says what is wrong with them, empty when nothing is."""

    def __init__(
        self,
        *,
        title: str,
        fields: Sequence[Field],
        verb: str,
        effect: str = "",
        check: Callable[[Mapping[str, str]], str] | None = None,
        describe: Callable[[Mapping[str, str]], str] | None = None,
    ) -> None:
        """Make the form; ``describe`` recomputes the effect from what is typed."""
        super().__init__()
        self._head, self._fields, self._verb, self._effect = title, fields, verb, effect
        self._check, self._describe = check, describe

    AUTO_FOCUS = "Input, Choice"

    def compose(self) -> ComposeResult:
        """Labels and fields, the effect, an error line, the buttons."""
        with Vertical(classes="dialog"):
            yield Static(Text(text.clean(self._head), style="bold"), classes="title")
            for field in self._fields:
                with Horizontal(classes="field"):
                    yield Static(Text(text.clip(field.label, 16)), classes="label")
                    if field.words:
                        yield Choice(field.words, field.value, id=f"f-{field.name}")
                    else:
                        yield Input(
                            field.value,
                            id=f"f-{field.name}",
                            compact=True,
                            password=field.hidden,
                            placeholder=field.hint,
                        )
            yield Static(Text(text.clean(self._effect, lines=True)), id="effect", classes="effect")
            yield Static("", id="error", classes="error", markup=False)
            yield from self._buttons(self._verb, is_danger=False)

    def ready(self) -> None:
        """Show the effect of the values offered."""
        self._changed()

    def values(self) -> dict[str, str]:
        """What is in the fields now."""
        found = {}
        for field in self._fields:
            widget = self.query_one(f"#f-{field.name}")
            value = widget.value if isinstance(widget, (Input, Choice)) else ""
            found[field.name] = value if field.hidden else value.strip()
        return found

    def on_input_changed(self, _event: Input.Changed) -> None:
        """Recompute the effect."""
        self._changed()

    def on_choice_changed(self, _event: Choice.Changed) -> None:
        """Recompute the effect."""
        self._changed()

    def _changed(self) -> None:
        if self._describe is not None:
            words = text.clean(self._describe(self.values()), lines=True)
            self.query_one("#effect", Static).update(Text(words))
        self.query_one("#error", Static).update("")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Enter in the last field sends, in another it goes on."""
        inputs = list(self.query(Input))
        if event.input is inputs[-1]:
            self._send()
        else:
            self.app.action_focus_next()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Answer, or say what is wrong."""
        if event.button.id == "cancel":
            self.dismiss(None)
        else:
            self._send()

    def _send(self) -> None:
        values = self.values()
        wrong = self._check(values) if self._check is not None else ""
        if wrong:
            self.query_one("#error", Static).update(Text(f"X {wrong}"))
            return
        self.dismiss(values)


class Secret(Dialog[bool]):
    """Show a secret once; it goes away only after its last four characters were typed back."""

    AUTO_FOCUS = "#back"
    holds = True

    def __init__(self, *, title: str, secret: str, note: str) -> None:
        """Show ``secret``; ``note`` says what it is for."""
        super().__init__()
        self._head, self._secret, self._note = title, secret, note

    def compose(self) -> ComposeResult:
        """The secret on a line of its own, and the field to type back into."""
        with Vertical(classes="dialog"):
            yield Static(Text(text.clean(self._head), style="bold"), classes="title")
            yield Static(Text(text.clean(self._note, lines=True)), classes="effect")
            yield Static(Text(text.clean(self._secret), style="bold"), id="secret")
            yield Static("It is not shown again. Store it now.", classes="note")
            with Horizontal(classes="field"):
                yield Static("Last 4 characters", classes="label")
                yield Input(id="back", compact=True, max_length=4)
            yield Static("", id="error", classes="error", markup=False)
            with Horizontal(classes="buttons"):
                yield Button("Stored", id="verb", compact=True, disabled=True, variant="primary")

    def on_input_changed(self, event: Input.Changed) -> None:
        """Enable the button once it matches."""
        self.query_one("#verb", Button).disabled = event.value != self._secret[-4:]

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Enter closes when it matches, and says so when it does not."""
        if event.value == self._secret[-4:]:
            self._close()
        else:
            self.query_one("#error", Static).update("X These are not its last 4 characters.")
            self.query_one("#back", Input).value = ""

    def on_button_pressed(self, _event: Button.Pressed) -> None:
        """Close."""
        self._close()

    def action_cancel(self) -> None:
        """Esc would lose the secret."""
        self.query_one("#error", Static).update(
            "X Esc would lose it: type its last 4 characters first."
        )

    def _close(self) -> None:
        self._secret = "\0"  # noqa: S105  (nothing left to show)
        self.query_one("#secret", Static).update("")
        self.dismiss(True)


class Notice(Dialog[None]):
    """Something to know: a title, a text, and notes below it."""

    def __init__(
        self, title: str, body: str, *, notes: Sequence[str] = (), is_bad: bool = False
    ) -> None:
        """Show this; every part is cleaned here."""
        super().__init__()
        self._head, self._body, self._notes, self._is_bad = title, body, tuple(notes), is_bad

    def compose(self) -> ComposeResult:
        """Title, text, notes, Close."""
        with Vertical(classes="dialog danger" if self._is_bad else "dialog"):
            yield Static(Text(text.clean(self._head), style="bold"), classes="title")
            with VerticalScroll(classes="scroll"):
                yield Static(Text(text.clean(self._body, lines=True)), classes="effect")
            for note in self._notes:
                yield Static(Text(text.clean(note)), classes="note")
            with Horizontal(classes="buttons"):
                yield Button("Close", id="cancel", compact=True)

    def on_button_pressed(self, _event: Button.Pressed) -> None:
        """Close."""
        self.dismiss(None)


class Refusal(Notice):
    """Why a request was refused: detail, fields at fault, the hint, and the request id."""

    def __init__(self, problem: Problem, doing: str = "") -> None:
        """Show this problem of ``doing`` something."""
        status = f"  {problem.status}" if problem.status else ""
        request = problem.request_id or "none: no answer came"
        hints = [f"Try: {problem.hint}"] if problem.hint else []
        super().__init__(
            f"X {problem.title}{status}  {problem.code}",
            "\n".join(line for line in (doing, problem.detail, *problem.errors) if line),
            notes=(*hints, f"Request id: {request}"),
            is_bad=True,
        )


class Reading(Dialog[None]):
    """A text to read, larger than a box: arrows scroll, Esc closes."""

    AUTO_FOCUS = "#reading"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,y,enter", "cancel", "Close", show=False),
        Binding("j", "scroll(1)", "Down", show=False),
        Binding("k", "scroll(-1)", "Up", show=False),
    ]

    def __init__(self, title: str, content: str) -> None:
        """Show ``content``, already cleaned line by line."""
        super().__init__()
        self._head, self._content = title, content

    def compose(self) -> ComposeResult:
        """Title, the text, and how to leave."""
        with Vertical(classes="dialog large"):
            yield Static(Text(text.clip(self._head, 70), style="bold"), classes="title")
            with VerticalScroll(id="reading"):
                yield Static(Text(self._content))
            yield Static("arrows scroll  Esc close", classes="note")

    def action_scroll(self, by: int) -> None:
        """Scroll by one line."""
        self.query_one("#reading").scroll_relative(y=by, animate=False)


class Help(Reading):
    """The keys of a screen, made from its bindings."""

    def __init__(self, title: str, rows: Iterable[tuple[str, str, str]]) -> None:
        """Rows are key, what it does, and why it does nothing now (empty if it does)."""
        lines = [
            f"{key:<7}{label}{'  (disabled: ' + why + ')' if why else ''}"
            for key, label, why in rows
        ]
        lines += ["", "j k g G arrows PgUp PgDn   move      Enter   open"]
        lines += ["Filter: word, !word for without, column:word in one column"]
        super().__init__(f"Keys of {title}", "\n".join(lines))


def missing(values: Mapping[str, str], **words: str) -> str:
    """What to type into the first of these fields that is empty; empty when none is."""
    return next((told for name, told in words.items() if not values[name].strip()), "")


def answer_of(value: Any) -> str:
    """A member of a JSON answer as text, empty if it is missing."""
    return "" if value is None else str(value)
