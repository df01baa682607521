"""A share moved with the arrow keys, and the dialog around it.

Owns: the slider ``[#####-----]  25 %`` and what a person sees before a share changes.
Never: sends anything; the screen that opened it does.
Read next: ``screens/routes``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import Button, Input, Static

from tui import text
from tui.dialogs import Dialog

_CELLS = 30


def bar(percent: float, cells: int = _CELLS) -> str:
    """A share as a bar: ``[###-------]``; marks, so that it needs no colour."""
    full = round(percent / 100 * cells)
    return f"[{'#' * full}{'-' * (cells - full)}]"


class Slider(Static, can_focus=True):
    """A share in percent; arrows change it by 1, with Shift (or < and >) by 10."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right,l", "shift(1)", "more", show=False),
        Binding("left,h", "shift(-1)", "less", show=False),
        Binding("shift+right,greater_than_sign", "shift(10)", "much more", show=False),
        Binding("shift+left,less_than_sign", "shift(-10)", "much less", show=False),
    ]

    class Changed(Message):
        """The share changed."""

    def __init__(self, value: float, most: float) -> None:
        """Start at ``value``; it stays within 0 and ``most``."""
        super().__init__(id="slider", markup=False)
        self.value, self.most = value, most

    def on_mount(self) -> None:
        """Draw it."""
        self._show()

    def action_shift(self, by: int) -> None:
        """Change the share."""
        self.value = round(min(self.most, max(0.0, self.value + by)), 2)
        self._show()
        self.post_message(self.Changed())

    def _show(self) -> None:
        line = f"{bar(self.value)} {self.value:>6g} %   arrows 1, < > 10"
        self.update(Text(line, no_wrap=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """The share that was chosen, and why."""

    percent: float
    reason: str


class Weigh(Dialog["Weighed | None"]):
    """Choose a share: nothing changes before the button is pressed."""

    AUTO_FOCUS = "#slider"

    def __init__(
        self, *, title: str, value: float, most: float, effect: Callable[[float], str], note: str
    ) -> None:
        """Make the dialog.

        Args:
            title: whose share.
            value: the share now, percent.
            most: the largest it may get.
            effect: one sentence for a share.
            note: which revision is overwritten.
        """
        super().__init__()
        self._head, self._value, self._most = title, value, most
        self._effect, self._note = effect, note

    def compose(self) -> ComposeResult:
        """Title, slider, effect, reason, buttons."""
        with Vertical(classes="dialog"):
            yield Static(Text(text.clean(self._head), style="bold"), classes="title")
            yield Slider(self._value, self._most)
            yield Static(id="effect", classes="effect", markup=False)
            yield Static(Text(text.clean(self._note)), classes="note")
            yield Static("Reason (kept in the audit ledger)", classes="label")
            yield Input(id="reason", compact=True, max_length=200)
            yield from self._buttons("Apply", is_danger=False)

    def ready(self) -> None:
        """Say what the present share means."""
        self._describe()

    def on_slider_changed(self, _event: Slider.Changed) -> None:
        """Say what it would mean now."""
        self._describe()

    def on_input_submitted(self, _event: Input.Submitted) -> None:
        """Enter in the reason goes to the buttons, never to the verb itself."""
        self.app.action_focus_next()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Answer."""
        if event.button.id == "cancel":
            self.dismiss(None)
            return
        reason = self.query_one("#reason", Input).value.strip()
        self.dismiss(Weighed(percent=self.query_one(Slider).value, reason=reason))

    def _describe(self) -> None:
        found = self._effect(self.query_one(Slider).value)
        self.query_one("#effect", Static).update(Text(text.clean(found)))
