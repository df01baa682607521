"""A lease: one sandbox, lent for one call.

Owns: whether the sandbox may serve another call afterwards.
Never: makes, ends or keeps a sandbox.
Read next: ``pool`` (who lends).
"""

from __future__ import annotations

from appliance.errors import ModelRaised
from appliance.sandbox.executor import Sandbox
from appliance.sandbox.spec import Reply, Request


class Lease:
    """A sandbox lent for one call. ``queue_us`` waited, ``load_us`` made and loaded (0 if warm).

    ``cold`` is whether it was made or bound for this call, ``ahead`` whether it was made ahead.
    """

    def __init__(
        self, sandbox: Sandbox, *, cold: bool, queue_us: int, load_us: int, ahead: bool = False
    ) -> None:
        self.sandbox_id = sandbox.id
        self.cold = cold
        self.ahead = ahead
        self.queue_us = queue_us
        self.load_us = load_us
        self._sandbox = sandbox
        self._in_flight = False

    @property
    def is_clean(self) -> bool:
        """Whether nothing is in flight, so that the sandbox may serve another call."""
        return not self._in_flight and self._sandbox.alive

    async def request(self, request: Request) -> Reply:
        """The call; see ``Sandbox.request`` for what it raises."""
        self._in_flight = True
        try:
            reply = await self._sandbox.request(request)
        except ModelRaised:
            self._in_flight = False
            raise
        self._in_flight = False
        return reply
