"""What calls of one batch failed with: each told, once it is known what the model printed.

Owns: the order of ERR, log tail and problem for calls that share a frame.
Never: ends a sandbox or reads a link.
Read next: ``batches`` (who finds faults), ``endings`` (the words).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from appliance.sandbox import endings
from appliance.sandbox.frames import GuestFault
from appliance.sandbox.link import Link
from appliance.sandbox.spec import Batch, SandboxSpec


class Faults:
    """The faults of one batch."""

    def __init__(
        self, link: Link, spec: SandboxSpec, batch: Batch, tail: Callable[[], tuple[str, ...]]
    ) -> None:
        """Args: ``tail`` returns what the model printed last."""
        self.is_fatal = False
        self._link = link
        self._spec = spec
        self._batch = batch
        self._tail = tail
        self._waiting: list[tuple[int, GuestFault]] = []
        self._task: asyncio.Task[None] | None = None

    def add(self, member: int, fault: GuestFault) -> None:
        """A call was answered with ERR."""
        self._waiting.append((member, fault))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._tell())

    async def told(self) -> None:
        """Wait until every caller knows."""
        if self._task is not None:
            await asyncio.shield(self._task)

    async def _tell(self) -> None:
        while self._waiting:
            await self._link.settle_logs()
            told, self._waiting = self._waiting, []
            for member, fault in told:
                if fault.kind == "large":
                    limit = self._batch.requests[member].reply_bytes_max
                    problem = endings.too_large(limit, self._tail())
                    self._batch.answered(member, problem)
                    continue
                self.is_fatal = self.is_fatal or endings.is_fatal(fault)
                problem_of = endings.of_call_fault(self._spec, fault, self._tail())
                self._batch.answered(member, problem_of)
