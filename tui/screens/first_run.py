"""First run: preflight, the secret that opens the appliance, the first tenant and its key.

Owns: the four steps; the state lives in the server, so quitting half-way loses nothing.
Never: keeps what was typed after the request was sent.
Read next: ``dialogs.Secret`` (the key is shown once).
"""

from __future__ import annotations

from typing import Any, ClassVar

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import Button, ContentSwitcher, Input, Static

from tui import text
from tui.client import Problem, Query, Snapshot, path_of
from tui.dialogs import Choice, Secret, answer_of
from tui.frame import Page
from tui.nav import Place
from tui.screens.sealed import WAYS, problem_words

STEPS = ("preflight", "root key", "first tenant")
PASSPHRASE_MIN = 12
_ERRORS = {"root key": "#key-error", "first tenant": "#tenant-error"}


class FirstRun(Page):
    """Three steps from an empty data folder to an appliance with a tenant."""

    KIND = "first-run"
    VERBS = frozenset(("next",))
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "next", "next step"),
    ]

    def __init__(self, place: Place) -> None:
        """Start with the preflight."""
        super().__init__(place)
        self._step = STEPS[0]
        self._checks: list[dict[str, Any]] | None = None
        self._why = "Checking this machine."

    def query_now(self) -> Query:
        """Health works in every state."""
        return Query(view="health")

    def crumbs(self) -> list[str]:
        """Where in the steps."""
        return ["first run", f"{STEPS.index(self._step) + 1} of {len(STEPS)} {self._step}"]

    def body(self) -> ComposeResult:
        """One container per step."""
        with ContentSwitcher(initial="step-0", id="panes"):
            with Vertical(id="step-0", classes="step"):
                yield Static("This machine, before anything is created", classes="headline")
                with VerticalScroll(classes="checks", id="checks-pane"):
                    yield Static(id="checks", markup=False)
                with Horizontal(classes="buttons"):
                    yield Button("Check again", id="again", compact=True)
                    yield Button("Continue", id="go-key", compact=True, variant="primary")
            with Vertical(id="step-1", classes="step"):
                yield Static("The secret that opens this appliance", classes="headline")
                yield Static(
                    "It is asked for after every start. Nobody can recover it: without it"
                    " everything stored is lost. A key file lets the server open itself.",
                    id="key-note",
                )
                yield Static("")
                with Horizontal(classes="field"):
                    yield Static("Open with", classes="label")
                    yield Choice(WAYS, id="way")
                with Horizontal(classes="field"):
                    yield Static("Passphrase", classes="label", id="first-label")
                    yield Input(id="first", compact=True, password=True)
                with Horizontal(classes="field", id="again-line"):
                    yield Static("Once more", classes="label")
                    yield Input(id="second", compact=True, password=True)
                yield Static(id="key-error", classes="error", markup=False)
                with Horizontal(classes="buttons"):
                    yield Button("Back", id="go-checks", compact=True)
                    yield Button("Initialise", id="init", compact=True, variant="primary")
            with Vertical(id="step-2", classes="step"):
                yield Static("OK  Initialised and unsealed", classes="headline")
                yield Static("A tenant owns models. Its owner key registers and calls them.")
                yield Static("")
                with Horizontal(classes="field"):
                    yield Static("First tenant", classes="label")
                    yield Input(id="tenant", compact=True, placeholder="a-z, 0-9 and '-'")
                yield Static(id="tenant-error", classes="error", markup=False)
                with Horizontal(classes="buttons"):
                    yield Button("Skip", id="skip", compact=True)
                    yield Button("Create", id="create", compact=True, variant="primary")

    def ready(self) -> None:
        """Run the preflight."""
        self._enter(STEPS[0])
        self._check()

    # -- step 1 --------------------------------------------------------------------------------

    @work(exclusive=True, group="checks")
    async def _check(self) -> None:
        try:
            reply = await self.console.client.call("GET", "/admin/v1/checks")
        except Problem as problem:
            self._why = problem_words(problem)
        else:
            items = reply.data.get("items") if isinstance(reply.data, dict) else None
            self._checks = [_check_from(i) for i in items or () if isinstance(i, dict)]
        self.call_later(self._paint_checks)

    def draw(self, snapshot: Snapshot) -> None:
        """The poll brings the same checks; it also ends this screen when others initialise."""
        if snapshot.rows:
            self._checks = [dict(row) for row in snapshot.rows]
            self._paint_checks()

    def _paint_checks(self) -> None:
        if not self.is_shown:
            return
        pane = self.query_one("#checks", Static)
        if self._checks is None:
            pane.update(Text(self._why))
            return
        lines = Text()
        for check in self._checks:
            word = text.word(check.get("state"))
            bad = check.get("state") in ("fail", "warn")
            title = text.clean(check.get("title") or check.get("name"))
            lines.append(f"{word:<7} ", "bold" if bad else "")
            lines.append(f"{title}: {text.clean(check.get('detail', ''))}\n")
            if bad and check.get("remedy"):
                lines.append(f"        remedy: {text.clean(check['remedy'])}\n")
        fails = sum(1 for c in self._checks if c.get("state") == "fail")
        if fails:
            lines.append(f"\n{fails} failed. You can go on; models run once that is fixed.", "bold")
        pane.update(lines)

    # -- step 2 --------------------------------------------------------------------------------

    def on_choice_changed(self, event: Choice.Changed) -> None:
        """A passphrase is typed twice and hidden; a path is neither."""
        is_file = event.choice.value == WAYS[1]
        first = self.query_one("#first", Input)
        first.value, first.password = "", not is_file
        first.placeholder = "absolute path on the server; made if missing" if is_file else ""
        self.query_one("#first-label", Static).update("Key file" if is_file else "Passphrase")
        self.query_one("#again-line").display = not is_file

    def _secret(self) -> dict[str, str] | str:
        """The body of the request, or what is wrong with the fields."""
        first = self.query_one("#first", Input).value
        if self.query_one("#way", Choice).value == WAYS[1]:
            return {"key_file": first} if first.startswith("/") else "Type an absolute path."
        if len(first) < PASSPHRASE_MIN:
            return f"Use at least {PASSPHRASE_MIN} characters."
        if first != self.query_one("#second", Input).value:
            return "The two passphrases differ."
        return {"passphrase": first}

    @work(exclusive=True, group="init")
    async def _initialise(self) -> None:
        error = self.query_one("#key-error", Static)
        body = self._secret()
        if isinstance(body, str):
            error.update(Text(f"X {body}"))
            return
        error.update("Creating the root key and the ledger; this takes a moment.")
        self.holds = True
        call = self.console.client.call
        try:
            if self.feed.state == "uninitialised":
                reply = await call("POST", "/admin/v1/init", body=body)
                state = reply.data.get("state") if isinstance(reply.data, dict) else ""
            else:
                state = self.feed.state
            if state != "ready":
                await call("POST", "/admin/v1/unseal", body=body)
        except Problem as problem:
            self.holds = False
            error.update(Text(problem_words(problem)))
            return
        finally:
            body.clear()
            self.feed.wake()
        for name in ("#first", "#second"):
            self.query_one(name, Input).value = ""
        self._enter(STEPS[2])

    # -- step 3 --------------------------------------------------------------------------------

    @work(exclusive=True, group="init")
    async def _create(self) -> None:
        error = self.query_one("#tenant-error", Static)
        name = self.query_one("#tenant", Input).value.strip()
        if not name:
            error.update("X Type a name, or skip.")
            return
        call = self.console.client.call
        try:
            try:
                await call("POST", "/api/v1/tenants", body={"name": name})
            except Problem as problem:
                if problem.code != "name-taken":
                    raise
            reply = await call(
                "POST",
                path_of("api", "v1", "tenants", name, "keys"),
                body={"name": "owner", "role": "owner", "expires_in_days": 90, "scopes": []},
            )
        except Problem as problem:
            error.update(Text(problem_words(problem)))
            return
        secret = answer_of(reply.data.get("secret")) if isinstance(reply.data, dict) else ""
        await self.app.push_screen_wait(
            Secret(
                title=f"Owner key of tenant {name}",
                secret=secret,
                note="Registers and calls models of this tenant; valid 90 days.",
            )
        )
        self._finish()

    def _finish(self) -> None:
        self.holds = False
        self.feed.wake()

    # -- steps ---------------------------------------------------------------------------------

    def _enter(self, step: str) -> None:
        self._step = step
        at = STEPS.index(step)
        self.query_one("#panes", ContentSwitcher).current = f"step-{at}"
        self.set_focus(self.query_one(("#go-key", "#first", "#tenant")[at]))
        self.draw_frame()

    def action_next(self) -> None:
        """Enter goes on to the next step."""
        if self._step == STEPS[0]:
            self._enter(STEPS[1])
        elif self._is_refused():
            return
        elif self._step == STEPS[1]:
            self._initialise()
        else:
            self._create()

    def _is_refused(self) -> bool:
        reason = self.console.why_not()
        if reason:
            words = Text(f"X Disabled: {reason}.")
            self.query_one(_ERRORS[self._step], Static).update(words)
        return bool(reason)

    def action_back(self) -> None:
        """Esc goes back, until something was created."""
        if self._step == STEPS[1] and not self.holds:
            self._enter(STEPS[0])

    def action_refresh(self) -> None:
        """``r`` checks again."""
        self._check()
        super().action_refresh()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Enter in the first of two fields goes to the second."""
        if event.input.id == "first" and self.query_one("#again-line").display:
            self.set_focus(self.query_one("#second", Input))
        elif event.input.id in ("first", "second", "tenant"):
            self.action_next()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """The buttons of the three steps."""
        if event.button.id == "again":
            self.action_refresh()
        elif event.button.id == "go-checks":
            self.action_back()
        elif event.button.id == "skip":
            self._finish()
        else:
            self.action_next()


def _check_from(item: dict[str, Any]) -> dict[str, Any]:
    """A check of ``/admin/v1/checks`` with the members of a health row."""
    return {
        **item,
        "state": item.get("state") or item.get("status"),
        "remedy": item.get("remedy") or item.get("fix"),
    }
