"""The console application: places, state switching, verbs, theme and the one poller.

Owns: which screen is shown, where Esc and ``-`` lead, and how a verb is sent.
Never: draws a row; never logs, and writes no secret into a crash file.
Read next: ``frame.Page`` (what it shows), ``feed.Feed`` (what it polls), ``nav`` (where it goes).
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from textual.binding import Binding, BindingType
from textual.screen import ModalScreen

from tui import text
from tui.client import VERB_TIMEOUT_S, Client, Problem, Reply
from tui.feed import INTERVAL_S, Feed
from tui.frame import Page
from tui.nav import HOME, Place, open_place
from tui.ordered_keys import OrderedKeys

IDLE_LOCK_S = 15 * 60
"""Remote mode only: seconds without a key press after which the admin key is asked for again."""
SHOWN_SEALED = ("health",)


@dataclass(slots=True)
class Memory:
    """What a screen looked like when it was left."""

    filter: str = ""
    sort: str = ""
    reverse: bool = False
    key: str = ""
    wide: bool = False
    tab: str = ""


class ConsoleApp(OrderedKeys):
    """One window on one appliance."""

    TITLE = "appliance"
    CSS_PATH = Path(__file__).with_name("console.tcss")
    ENABLE_COMMAND_PALETTE = False
    HORIZONTAL_BREAKPOINTS = [  # noqa: RUF012  (declared by Textual)
        (0, "-narrow"),
        (80, "-normal"),
        (100, "-wide"),
        (140, "-detail"),
    ]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+c", "quit", "Quit", show=False, priority=True)
    ]

    def __init__(
        self,
        client: Client,
        *,
        readonly: bool = False,
        interval_s: float = INTERVAL_S,
        is_mono: bool | None = None,
    ) -> None:
        """Make the console; nothing is asked before it is on screen."""
        mono = is_monochrome() if is_mono is None else is_mono
        super().__init__(ansi_color=True if mono else None)
        if mono:
            self.theme = "ansi-dark"
        self.client = client
        self.feed = Feed(self, client, interval_s=interval_s)
        self.trail: list[Place] = [HOME]
        self.incident = ""
        self._readonly = readonly
        self._before: list[Place] = []
        self._memories: dict[Place, Memory] = {}
        self._is_locked = False
        self.key_at = time.monotonic()

    # -- life ----------------------------------------------------------------------------------

    def on_mount(self) -> None:
        """Draw the frame at once, then start asking."""
        self.push_screen(open_place(HOME))
        self.feed.changed.subscribe(self, self._on_feed)
        self.run_worker(self.feed.run(), group="feed", exclusive=True)
        if self.client.is_remote:
            self.set_interval(1.0, self._lock_when_idle)

    async def on_unmount(self) -> None:
        """Close the connection."""
        await self.client.close()

    def _log(self, *_args: Any, **_kwargs: Any) -> None:
        """Log nothing: key presses and answers may be secret."""

    def _fatal_error(self) -> None:
        """Keep the traceback, without any values, in a 0600 file; show its id."""
        error = sys.exc_info()[1] or self._exception
        lines = traceback.format_exception(error) if error is not None else ["unknown\n"]
        if error is not None:
            lines = [*traceback.format_tb(error.__traceback__), type(error).__name__ + "\n"]
        handle, name = tempfile.mkstemp(prefix="appliance-tui-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.writelines(lines)
        self.incident = Path(name).stem
        self.panic(f"The console failed. Incident {self.incident}; details in {name}")

    # -- places --------------------------------------------------------------------------------

    @property
    def page(self) -> Page | None:
        """The screen under any dialogs."""
        return next((s for s in reversed(self.screen_stack) if isinstance(s, Page)), None)

    def memory_of(self, place: Place) -> Memory:
        """What the screen of this place looked like, kept for the session."""
        return self._memories.setdefault(Place(place.noun, place.args), Memory())

    def go(self, place: Place) -> None:
        """Show a place; Esc leads to its ancestors."""
        if self._kind_of(place) == "sealed" and self.feed.state == "sealed":
            self.say("The appliance is sealed: only health can be shown.", is_error=True)
            return
        if place != self.trail[-1]:
            self._before = self.trail
        self.trail = [*place.ancestors(), place]
        self._show()

    def back(self) -> None:
        """One breadcrumb up."""
        if len(self.trail) > 1:
            self._before, self.trail = self.trail, self.trail[:-1]
            self._show()

    def last(self) -> None:
        """The screen before this one."""
        if self._before:
            self._before, self.trail = self.trail, self._before
            self._show()

    def _kind_of(self, place: Place) -> str:
        state = self.feed.state
        if state == "uninitialised":
            return "first-run"
        return "sealed" if state == "sealed" and place.noun not in SHOWN_SEALED else "place"

    def _show(self) -> None:
        if self.page is not None:
            self.page.remember()
        place = self.trail[-1]
        kind = self._kind_of(place)
        page: Page
        if kind == "first-run":
            from tui.screens.first_run import FirstRun

            page = FirstRun(HOME)
        elif kind == "sealed":
            from tui.screens.sealed import Sealed

            page = Sealed(place)
        else:
            page = open_place(place)
            self.trail[-1] = Place(place.noun, place.args)
        self.switch_screen(page)

    def _on_feed(self, _feed: Feed) -> None:
        """Follow the appliance's state: sealed and first run have screens of their own."""
        page = self.page
        if page is None or not self.feed.state or page.holds:
            return
        if self._kind_of(self.trail[-1]) == page.KIND:
            return
        if getattr(self.screen, "holds", False):
            return
        while isinstance(self.screen, ModalScreen):
            self.screen.dismiss(None)
        self.call_next(self._show)

    # -- verbs ---------------------------------------------------------------------------------

    @property
    def is_readonly(self) -> bool:
        """Whether verbs are disabled."""
        return bool(self.why_not())

    def why_not(self) -> str:
        """Why verbs are disabled, empty when they are not."""
        if self._readonly:
            return "started with --readonly"
        if not self.feed.is_compatible:
            return "the server's version does not match this console"
        return ""

    def may(self, doing: str) -> bool:
        """Whether a verb may go on; says why when not."""
        reason = self.why_not()
        if reason:
            self.say(f"{doing}: disabled, {reason}.", is_error=True)
        return not reason

    async def perform(
        self,
        method: str,
        path: str,
        *,
        doing: str,
        body: Mapping[str, Any] | None = None,
        data: bytes | None = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        done: str = "",
        cli: str = "",
        timeout_s: float = VERB_TIMEOUT_S,
    ) -> Reply | None:
        """Send a verb from a screen's worker; a refusal is shown and answers None.

        Args:
            method: HTTP method; anything but GET needs read-write mode.
            path: where to.
            doing: what is being done, for the refusal.
            body: JSON body.
            data: the body as it is, instead; its type is in ``headers``.
            params: the query.
            headers: for example If-Match with the revision that was on screen.
            done: toast after success, with the request id.
            cli: the same thing as a command line, taught by the toast.
            timeout_s: how long to wait for the answer.
        """
        if method != "GET" and not self.may(doing):
            return None
        self.sending += 1
        try:
            reply = await self.client.call(
                method,
                path,
                body=body,
                data=data,
                params=params,
                headers=headers,
                timeout_s=timeout_s,
            )
        except Problem as problem:
            self.sending -= 1
            self.feed.wake()
            await self.show_problem(problem, doing)
            return None
        self.sending -= 1
        if done:
            self.say(f"{done}\n{reply.request_id}" + (f"\n$ {cli}" if cli else ""))
        if method != "GET":
            self.feed.wake()
        return reply

    async def show_problem(self, problem: Problem, doing: str) -> None:
        """Show a refusal and wait until it is closed; call from a worker."""
        from tui.dialogs import Refusal

        await self.push_screen_wait(Refusal(problem, doing))

    def say(self, words: str, *, is_error: bool = False) -> None:
        """A toast; never anything secret."""
        self.notify(
            text.clean(words, lines=True),
            severity="error" if is_error else "information",
            markup=False,
            timeout=6,
        )

    def ask_again(self) -> None:
        """Poll now; after a refusal in remote mode ask for another key first."""
        problem = self.feed.problem
        if self.client.is_remote and problem is not None and problem.status == 401:
            self.ask_key("The server refused this key.")
        else:
            self.feed.wake()

    # -- remote mode ---------------------------------------------------------------------------

    def ask_key(self, why: str) -> None:
        """Ask for the admin key and use it from now on."""
        from tui.dialogs import Field, Form

        def use(values: dict[str, str] | None) -> None:
            self._is_locked, self.key_at = False, time.monotonic()
            if values and values["key"]:
                self.client.set_key(values["key"].strip())
                self.feed.wake()
            elif self.feed.link.value == "DENIED" or why.startswith("Locked"):
                self.exit(0)

        field = Field(name="key", label="Admin key", hidden=True)
        self.push_screen(Form(title=why, fields=[field], verb="Use key"), use)

    def _lock_when_idle(self) -> None:
        if not self._is_locked and time.monotonic() - self.key_at > IDLE_LOCK_S:
            self._is_locked = True
            self.client.set_key("")
            self.ask_key("Locked after 15 minutes without a key press.")


def is_monochrome() -> bool:
    """Whether the terminal has less than 16 colours or NO_COLOR is set."""
    if os.environ.get("NO_COLOR"):
        return True
    if "COLORTERM" in os.environ or "256" in os.environ.get("TERM", ""):
        return False
    try:
        import curses

        curses.setupterm()
        return 0 <= curses.tigetnum("colors") < 16
    except Exception:  # noqa: BLE001  (curses.error is not always importable; colour is optional)
        return False


def run(
    socket: str | None = None,
    url: str | None = None,
    api_key: str | None = None,
    ca_file: str | None = None,
    readonly: bool = False,
) -> int:
    """Run the console until it is left.

    Args:
        socket: path of the admin socket; used when there is no ``url``.
        url: base URL of an appliance, reached with ``api_key``.
        api_key: admin key for ``url``.
        ca_file: PEM file that signs the server's certificate.
        readonly: disable every verb.

    Returns:
        The exit status: 0 after leaving, 1 after a crash, 64 without a terminal.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        sys.stderr.write("The console needs a terminal; scripts use the appliance command.\n")
        return 64
    client = Client(
        socket=socket or "/run/appliance/admin.sock", url=url, api_key=api_key, ca_file=ca_file
    )
    app = ConsoleApp(client, readonly=readonly)
    app.run()
    return app.return_code or 0
