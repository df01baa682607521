"""Those who wait until a thing is other than it was: jobs and batches tell, callers wait.

Owns: who waits for what, and that nobody waits for what changed before they began to.
Never: knows what is waited for, or how long it takes.
Read next: ``jobs`` and ``batches`` (who tell), ``api.native.following`` (who waits).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


class Followers:
    """Who waits, by the id of what they wait for."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._is_over = False

    async def changed(
        self, name: str, look: Callable[[], _T | None], known: _T, timeout_s: float
    ) -> _T | None:
        """What ``look`` finds once it is other than ``known``, or as it is after a time.

        Args:
            name: of what is waited for; whoever changes it calls ``tell`` with it.
            look: finds it as it is now; ``None`` if it is gone.
            known: as it was.
            timeout_s: longest wait, seconds.
        """
        told = asyncio.Event()
        self._waiting.setdefault(name, set()).add(told)
        try:
            if look() == known and not self._is_over:
                with contextlib.suppress(TimeoutError):  # wait_for loses a cancellation (3.11)
                    async with asyncio.timeout(timeout_s):
                        await told.wait()
        finally:
            waiting = self._waiting[name]
            waiting.discard(told)
            if not waiting:
                del self._waiting[name]
        return look()

    def tell(self, name: str) -> None:
        """Let those who wait for a thing look again."""
        for told in self._waiting.get(name, ()):
            told.set()

    def let_go(self) -> None:
        """Let everybody go, and nobody wait any more: the appliance is about to end."""
        self._is_over = True
        for name in self._waiting:
            self.tell(name)
