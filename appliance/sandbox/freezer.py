"""Freezing: a sandbox that waits for its next call uses no CPU, whatever it left running.

Owns: stopping and continuing every process of one container, and telling when one moved anyway.
Never: decides when (``pool`` does); kills; looks inside.
Read next: ``container`` (thaws before it is used), ``kernel``.

Where a delegated cgroup v2 holds the container, the kernel freezes it as a whole. Elsewhere each
process gets SIGSTOP, which none can refuse. One can be woken by a timer it set before (SIGCONT from
``timer_create(2)``): ``cpu_ms`` then grows, and ``has_moved`` says so. All of this blocks briefly.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from appliance.sandbox import kernel

_SETTLE_S = 0.2
_PAUSE_S = 0.0005
_QUICK_S = 0.001
_STILL_MS = 30  # of CPU a frozen sandbox may have used: the clock's tick, and what was under way


class Freezer:
    """The brake of one container."""

    def __init__(
        self,
        pid: int,
        uids: Collection[int],
        *,
        by_cgroup: bool,
        proc: str = "/proc",
        cgroups: str = "",
    ) -> None:
        """Describe it; nothing happens yet.

        Args:
            pid: the container's first process.
            uids: the host ids of its processes.
            by_cgroup: whether a delegated cgroup v2 holds it.
            proc: where it is read which cgroup that is.
            cgroups: where the cgroup v2 tree is mounted, by default at its usual place.
        """
        self._pid = pid
        self._places = {"proc": proc, "root": cgroups}
        self._uids = frozenset(uids)
        self._by_cgroup = by_cgroup
        self._used_ms = 0
        self.is_quick = False  # so few processes that an event loop may wait for thaw()

    def freeze(self) -> bool:
        """Stop all of it; False if it keeps making processes faster than they are stopped."""
        done = self._freeze_cgroup() or self._stop_all()
        started = time.monotonic()
        self._used_ms = kernel.cpu_ms(self._family())
        self.is_quick = time.monotonic() - started < _QUICK_S
        return done

    def thaw(self) -> None:
        """Let all of it go on."""
        if self._by_cgroup:
            with contextlib.suppress(OSError):
                kernel.set_frozen(self._pid, False, **self._places)
        for pid in self._family():
            kernel.send(pid, signal.SIGCONT, self._uids)

    def has_moved(self) -> bool:
        """Whether it worked since it was frozen."""
        return kernel.cpu_ms(self._family()) > self._used_ms + _STILL_MS

    def _family(self) -> tuple[int, ...]:
        return (self._pid, *kernel.descendants(self._pid))

    def _freeze_cgroup(self) -> bool:
        if not self._by_cgroup:
            return False
        until = time.monotonic() + _SETTLE_S
        try:
            kernel.set_frozen(self._pid, True, **self._places)
            while not kernel.is_frozen(self._pid, **self._places) and time.monotonic() < until:
                time.sleep(_PAUSE_S)  # past that one waits for a device: frozen when it is over
        except OSError:
            return False
        return True

    def _stop_all(self) -> bool:
        """Stop what is there until nothing new appears: a stopped process makes no others."""
        stopped: set[int] = set()
        until = time.monotonic() + _SETTLE_S
        while True:
            fresh = [pid for pid in self._family() if pid not in stopped]
            for pid in fresh:
                kernel.send(pid, signal.SIGSTOP, self._uids)
            stopped.update(fresh)
            if not fresh and not any(kernel.is_running(pid) for pid in stopped):
                return True
            if time.monotonic() > until:
                return not fresh  # waiting for a device, say: it stops when that is over
            time.sleep(_PAUSE_S)


class Brake:
    """A container's ``Freezer`` for one event loop: a thaw waits for the freeze before it."""

    def __init__(self, uids: Collection[int], run: Callable[..., Awaitable[Any]]) -> None:
        """Describe it.

        Args:
            uids: the host ids of its processes.
            run: runs a blocking call in a thread.
        """
        self._uids = uids
        self._run = run
        self._freezer: Freezer | None = None  # only while it is frozen
        self._busy = asyncio.Lock()

    async def freeze(self, pid: int, *, by_cgroup: bool) -> bool:
        """Stop the container of this first process; False if that is not possible."""
        if self._freezer is not None:
            return True
        freezer = self._freezer = Freezer(pid, self._uids, by_cgroup=by_cgroup)
        async with self._busy:
            done = await self._run(freezer.freeze)
        return bool(done) or self._freezer is not freezer

    async def has_moved(self) -> bool:
        """Whether it worked although it is frozen."""
        freezer = self._freezer
        if freezer is None or self._busy.locked():
            return False
        return bool(await self._run(freezer.has_moved)) and self._freezer is freezer

    async def thaw(self) -> None:
        """Let it go on; nothing if it was not frozen."""
        freezer, self._freezer = self._freezer, None
        if freezer is None:
            return
        async with self._busy:
            if freezer.is_quick:
                freezer.thaw()
            else:
                await self._run(freezer.thaw)
