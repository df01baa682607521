"""Sealed: the appliance holds no key; enter the passphrase or name the key file.

Owns: the unseal form, and what still works while sealed.
Never: keeps what was typed after the request was sent.
Read next: ``app.ConsoleApp`` (goes back to where you were once it is unsealed).
"""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Button, Input, Static

from tui import text
from tui.client import Problem, Query, Snapshot
from tui.dialogs import Choice
from tui.frame import Page

WAYS = ("passphrase", "key file")
STILL_WORKS = (
    "Still works: this screen, health (:h), /livez, `appliance status`. Calls, models, keys and"
    " audit answer 503 until it is unsealed; nothing was lost."
)


class Sealed(Page):
    """Asks for what opens the root key; returns to the screen it replaced."""

    KIND = "sealed"
    VERBS = frozenset(("unseal",))
    AUTO_FOCUS = "#secret-in"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "unseal", "unseal")]

    def query_now(self) -> Query:
        """Health works in every state."""
        return Query(view="health")

    def crumbs(self) -> list[str]:
        """Not a place one can go to."""
        return ["sealed"]

    def body(self) -> ComposeResult:
        """Since when, the form, what still works."""
        with Vertical(classes="card"):
            yield Static("The appliance is sealed.", classes="headline")
            yield Static(id="since", markup=False)
            yield Static("")
            with Horizontal(classes="field"):
                yield Static("Unseal with", classes="label")
                yield Choice(WAYS, id="way")
            with Horizontal(classes="field"):
                yield Static("Passphrase", classes="label", id="secret-label")
                yield Input(id="secret-in", compact=True, password=True)
            yield Static(id="error", classes="error", markup=False)
            with Horizontal(classes="buttons"):
                yield Button("Unseal", id="unseal", compact=True, variant="primary")
            yield Static("")
            yield Static(STILL_WORKS, markup=False)

    def draw(self, snapshot: Snapshot) -> None:
        """Since when it is sealed, and by which slots it opens."""
        node = snapshot.node
        since = text.stamp(node.get("sealed_since"))
        slots = [f"{s.get('name')} ({s.get('kind')})" for s in node.get("slots") or ()]
        lines = [f"Sealed since {since} UTC." if since != text.NONE else "It started sealed."]
        if slots:
            lines.append(f"Opens with one of: {', '.join(slots)}.")
        self.query_one("#since", Static).update(Text(text.clean("\n".join(lines), lines=True)))

    def on_choice_changed(self, event: Choice.Changed) -> None:
        """A passphrase is hidden, a path is not."""
        is_file = event.choice.value == WAYS[1]
        field = self.query_one("#secret-in", Input)
        field.value, field.password = "", not is_file
        field.placeholder = "path on the server" if is_file else ""
        self.query_one("#secret-label", Static).update("Key file" if is_file else "Passphrase")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Enter unseals."""
        if event.input.id == "secret-in":
            self.action_unseal()

    def on_button_pressed(self, _event: Button.Pressed) -> None:
        """So does the button."""
        self.action_unseal()

    @work(exclusive=True, group="unseal")
    async def action_unseal(self) -> None:
        """Send what was typed, once, and forget it."""
        error = self.query_one("#error", Static)
        field = self.query_one("#secret-in", Input)
        if self.console.is_readonly:
            error.update(Text(f"X Unseal is disabled: {self.console.why_not()}."))
            return
        if not field.value:
            error.update("X Type it first.")
            return
        is_file = self.query_one("#way", Choice).value == WAYS[1]
        body = {"key_file" if is_file else "passphrase": field.value}
        field.value = ""
        error.update("Opening the root key; this takes a moment.")
        try:
            await self.console.client.call("POST", "/admin/v1/unseal", body=body)
        except Problem as problem:
            error.update(Text(problem_words(problem)))
            field.focus()
        else:
            error.update("Unsealed.")
            self.console.say("Unsealed\n$ appliance unseal")
        finally:
            body.clear()
            self.feed.wake()


def problem_words(problem: Problem) -> str:
    """A refusal in the form it belongs to: title, detail, request id."""
    words = f"X {problem.title}: {problem.detail}"
    if problem.request_id:
        words += f" [{problem.request_id}]"
    return text.clean(words)
