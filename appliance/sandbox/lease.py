"""A lease: one sandbox, lent for one call, or for calls that are joined.

Owns: whether the sandbox may serve another call afterwards.
Never: makes, ends or keeps a sandbox.
Read next: ``pool`` (who lends).
"""

from __future__ import annotations

from collections.abc import Callable

from appliance.errors import ModelRaised
from appliance.sandbox.executor import Sandbox
from appliance.sandbox.spec import Batch, Reply, Request


class Lease:
    """A sandbox lent for one call, or for several of one version.

    ``queue_us`` it was waited for, ``load_us`` it was made and loaded (0 if warm).
    ``cold`` is whether it was made or bound for this call, ``ahead`` whether it was made ahead.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        *,
        cold: bool,
        queue_us: int,
        load_us: int,
        ahead: bool = False,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """Args: ``is_wanted`` tells whether the sandbox may still take calls that were not sent."""
        self.sandbox_id = sandbox.id
        self.cold = cold
        self.ahead = ahead
        self.queue_us = queue_us
        self.load_us = load_us
        self._sandbox = sandbox
        self._is_wanted = is_wanted
        self._in_flight = 0

    @property
    def is_clean(self) -> bool:
        """Whether nothing is in flight, so that the sandbox may serve another call."""
        return not self._in_flight and self._sandbox.alive

    @property
    def is_usable(self) -> bool:
        """Whether further calls may be sent over this lease."""
        return self._sandbox.alive and self._is_wanted()

    @property
    def can_batch(self) -> bool:
        """Whether ``batch`` may be used."""
        return self._sandbox.can_batch

    async def request(self, request: Request) -> Reply:
        """The call; see ``Sandbox.request`` for what it raises."""
        self._in_flight += 1
        try:
            reply = await self._sandbox.request(request)
        except ModelRaised:
            self._in_flight -= 1
            raise
        self._in_flight -= 1
        return reply

    async def batch(self, batch: Batch) -> None:
        """Calls in one frame; see ``Sandbox.batch`` for what it raises."""
        self._in_flight += 1
        await self._sandbox.batch(batch)
        self._in_flight -= 1
