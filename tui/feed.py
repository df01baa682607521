"""The one poller: a snapshot every two seconds, back-off when nobody answers, one Signal out.

Owns: when to ask, the last answer of each view, and the word for the link's health.
Never: touches a widget; screens subscribe to ``changed`` and draw for themselves.
Read next: ``frame.Page`` (subscribes), ``client.Client.snapshot`` (what is asked).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from typing import Any

from textual.dom import DOMNode
from textual.signal import Signal

from tui.client import CONTRACT, Client, Problem, Query, Snapshot

INTERVAL_S = 2.0
STALE_AFTER = 3.0
"""Intervals without an answer after which the data on screen counts as stale."""
BACKOFF_S = (1.0, 2.0, 4.0, 8.0, 10.0)
VIEWS_KEPT = 24


class Link(Enum):
    """How fresh what is on screen is."""

    CONNECTING = "CONNECTING"
    LIVE = "LIVE"
    STALE = "STALE"
    DISCONNECTED = "DISCONNECTED"
    DENIED = "DENIED"
    PAUSED = "PAUSED"


class Feed:
    """Polls the view on screen and publishes after every attempt.

    Attributes:
        changed: published with the feed after every answer and every failure.
        problem: why the last attempt failed; None after an answer.
        retry_s: seconds until the next attempt while disconnected.
    """

    def __init__(
        self,
        owner: DOMNode,
        client: Client,
        *,
        interval_s: float = INTERVAL_S,
        monotonic: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Make a feed that asks nothing until ``run`` is awaited and ``watch`` was called."""
        self.changed: Signal[Any] = Signal(owner, "feed")
        self.problem: Problem | None = None
        self.retry_s = 0.0
        self.paused = False
        self.failures = 0
        self._client = client
        self._interval_s = interval_s
        self._monotonic = monotonic
        self._jitter = jitter
        self._query: Query | None = None
        self._kept: OrderedDict[Query, Snapshot] = OrderedDict()
        self._newest: Snapshot | None = None
        self._answered_at: float | None = None
        self._denied = False
        self._wake = asyncio.Event()

    @property
    def link(self) -> Link:
        """The link's health, as one word."""
        if self._denied:
            return Link.DENIED
        if self.problem is not None and self.problem.is_unreachable:
            return Link.DISCONNECTED
        if self._answered_at is None:
            return Link.CONNECTING if self.problem is None else Link.DISCONNECTED
        if self.paused:
            return Link.PAUSED
        if self.problem is not None or self.age_s > STALE_AFTER * self._interval_s:
            return Link.STALE
        return Link.LIVE

    @property
    def age_s(self) -> float:
        """Seconds since the last answer; 0 before the first."""
        return 0.0 if self._answered_at is None else self._monotonic() - self._answered_at

    @property
    def newest(self) -> Snapshot | None:
        """The last answer of any view: node, state and alerts."""
        return self._newest

    @property
    def state(self) -> str:
        """The appliance's state as last heard, empty before the first answer."""
        if self.problem is not None and self.problem.code in ("sealed", "uninitialised"):
            return self.problem.code
        return self._newest.state if self._newest else ""

    @property
    def uptime_s(self) -> float | None:
        """The server's uptime, extrapolated from the last full answer."""
        if self._newest is None or self._newest.node.get("uptime_s") is None:
            return None
        return float(self._newest.node["uptime_s"]) + self._monotonic() - self._newest.received_s

    @property
    def is_compatible(self) -> bool:
        """Whether the server speaks the contract this console was written for."""
        return self._newest is None or self._newest.contract == CONTRACT

    def latest(self, query: Query) -> Snapshot | None:
        """The last answer to this query, None if there was none."""
        return self._kept.get(query)

    def watch(self, query: Query) -> None:
        """Poll this from now on, at once."""
        if query != self._query:
            self._query = query
            self.wake()

    def wake(self) -> None:
        """Ask now instead of at the next tick; also ends a pause after a refusal."""
        self._denied = False
        self._wake.set()

    def pause(self, paused: bool) -> None:
        """Stop or resume polling; ``wake`` still asks once."""
        self.paused = paused
        self._wake.set() if not paused else None
        self.changed.publish(self)

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            self._wake.clear()
            if self._query is not None:
                await self._ask(self._query)
                self.changed.publish(self)
            await self._rest()

    async def _rest(self) -> None:
        wait: float | None = self._interval_s
        if self._denied or self._query is None or (self.paused and not self.failures):
            wait = None
        elif self.failures:
            step = BACKOFF_S[min(self.failures, len(BACKOFF_S)) - 1]
            asked = self.problem.retry_after_s if self.problem else None
            wait = max(step, min(asked or 0.0, 60.0)) * (1 + 0.2 * self._jitter())
        self.retry_s = wait or 0.0
        try:
            await asyncio.wait_for(self._wake.wait(), wait)
        except TimeoutError:
            return

    async def _ask(self, query: Query) -> None:
        kept = self._kept.get(query)
        try:
            answer = await self._client.snapshot(query, kept.etag if kept else "")
        except Problem as problem:
            self.problem = problem
            self._denied = problem.is_denied
            is_refusal = 400 <= problem.status < 500 and problem.status != 429
            self.failures = 0 if is_refusal else self.failures + 1
            if is_refusal or problem.code in ("sealed", "uninitialised"):
                self._answered_at = self._monotonic()
                self.failures = 0
            return
        self.problem = None
        self.failures = 0
        self._answered_at = self._monotonic()
        if answer is None:
            answer = kept
        elif answer is not None:
            answer = self._kept[query] = replace(answer, received_s=self._answered_at)
        if answer is not None:
            self._newest = answer
            self._kept.move_to_end(query)
        while len(self._kept) > VIEWS_KEPT:
            self._kept.popitem(last=False)
