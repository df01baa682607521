"""The models that a model under test calls, as its link sees them."""

from __future__ import annotations

import asyncio

from appliance.errors import ApplianceError, CapacityExhausted, Forbidden
from appliance.sandbox.spec import Asked, Reply


class Other:
    """The other models: ``echo`` answers at once, ``slow`` never, ``second`` once
    another is open, ``no`` is refused."""

    def __init__(self) -> None:
        self.parallel_max = 3
        self.frames_max = 20
        self.body_bytes_max = 1000
        self.deadline_ns = 0
        self.room = 10_000
        self.asked: list[Asked] = []
        self.open = self.most = self.cancelled = 0

    def hold(self, size: int) -> None:
        if size > self.room:
            raise CapacityExhausted("no room")
        self.room -= size

    def told(self, error: ApplianceError) -> str:
        return error.detail

    async def call(self, asked: Asked) -> Reply:
        self.asked.append(asked)
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            if asked.target == "no":
                raise Forbidden("you may not")
            if asked.target == "crash":
                raise RuntimeError("a secret of the host")
            while asked.target == "second" and self.open < 2:
                await asyncio.sleep(0.01)
            await asyncio.sleep(600 if asked.target == "slow" else 0.01)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.open -= 1
        return Reply(content_type=asked.content_type, body=asked.body, compute_us=1)
