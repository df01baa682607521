"""Keys in order: each one has its whole effect before the next is looked at.

Owns: following a key through the widgets, its binding, and the dialog it opens.
Never: looks at which key it is.
Read next: ``app.ConsoleApp`` (is one of these).
"""

from __future__ import annotations

import asyncio
import time

from textual import events
from textual.app import App
from textual.message import Message
from textual.screen import ModalScreen
from textual.widget import Widget

KEY_WAIT_S = 1.0
"""Longest time a key waits for the one before it to have its effect."""


class OrderedKeys(App[int]):
    """An app in which typing ahead is safe.

    Attributes:
        key_at: monotonic time of the last key, for an idle lock.
        sending: requests of verbs in flight; keys do not wait for those.
    """

    key_at = 0.0
    sending = 0
    _followed: events.Key | None = None
    _is_back = False

    async def on_event(self, event: events.Event) -> None:
        """Let a key have its whole effect before the next one is looked at.

        Textual looks a key's binding up only after it bubbled back here, behind keys typed ahead;
        ``/q``, ``:t`` Enter, or a passphrase and Enter would then reach the widget that had the
        focus before. So each key is followed to its end: through the widgets, then its binding,
        then the dialog it opens.
        """
        if not isinstance(event, events.Key) or event.is_forwarded:
            await super().on_event(event)
            return
        self.key_at = time.monotonic()
        until = self.key_at + KEY_WAIT_S
        target: Widget = self.focused or self.screen
        self._followed, self._is_back = event, False
        await super().on_event(event)
        path = (target, *(node for node in target.ancestors if isinstance(node, Widget)))
        for node in path:
            await _drained(node, until)
        self._followed = None
        if self._is_back:
            await self._on_key(event)
            for node in path:  # what the binding posted: a submitted field, a selected row
                await _drained(node, until)
        while self._is_opening() and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.001)  # a screen has no event for its focus

    def _post(self, message: Message) -> bool:
        """Keep a followed key that bubbled back here; ``on_event`` goes on with it."""
        if message is self._followed and self._followed.is_forwarded:
            self._is_back = True
            return True
        return super().post_message(message)

    post_message = _post  # Textual's name for it

    def _is_opening(self) -> bool:
        """Whether a dialog was asked for and has no focus yet."""
        if self.sending or not any(w.group == "dialog" and w.is_running for w in self.workers):
            return False
        return not isinstance(self.screen, ModalScreen) or self.screen.focused is None


async def _drained(node: Widget, until: float) -> None:
    """Wait until a widget handled everything it was sent so far, or is gone."""
    acted = asyncio.Event()
    if not node.is_running or not node.call_later(acted.set):
        return
    while not acted.is_set() and node.is_running and time.monotonic() < until:  # noqa: ASYNC110
        await asyncio.sleep(0.001)  # a closing widget never sets it
