"""The calls a comparison makes: each on record, each in the name of who asked for it.

Owns: their ids, how many run at once, and waiting for a sandbox.
Never: decides what is called with what.
Read next: ``invoke`` (the call itself), ``passes`` and ``replay`` (who makes them).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from appliance import clock
from appliance.comparison.record import Comparison, Target
from appliance.errors import (
    ApplianceError,
    CapacityExhausted,
    DiskFull,
    Draining,
    Forbidden,
    Gone,
    PodmanUnavailable,
)
from appliance.invoke import DIRECT, Invoker, Outcome, Via
from appliance.records import Version
from appliance.store import Store

_HOLDING = (CapacityExhausted, Draining, DiskFull, PodmanUnavailable)
_RETRY_S_MAX = 10.0


class Calls:
    """Makes one comparison's calls."""

    def __init__(
        self,
        store: Store,
        invoker: Invoker,
        comparison: Comparison,
        slots: asyncio.Semaphore,
        *,
        wait_s_max: float,
        tell: Callable[[int], None],
    ) -> None:
        """Make it.

        Args:
            store: where versions and keys are.
            invoker: makes the calls.
            comparison: whose calls these are.
            slots: bounds the calls of all comparisons.
            wait_s_max: longest wait for a sandbox.
            tell: told how many rows, or calls, are done more.
        """
        self._store = store
        self._invoker = invoker
        self._comparison = comparison
        self._slots = slots
        self._wait_s_max = wait_s_max
        self.tell = tell
        self.count = 0

    def version(self, target: Target) -> Version:
        """The version of a target, if it still may be called in the name of who asked.

        Raises:
            Gone: it was retired or removed.
            Forbidden: the key is no longer valid.
        """
        snapshot = self._store.registry.snapshot
        version = snapshot.version(target.model_id, target.number)
        if version is None or version.retired_ns:
            raise Gone(f"{target.model}:{target.number} is no longer in service.")
        key = snapshot.key(self._comparison.created_by)
        if key is not None and (key.revoked_ns or key.expires_ns <= clock.now_ns()):
            raise Forbidden("The key this comparison was asked for with is no longer valid.")
        return version

    async def call(
        self, target: Target, *, content_type: str, body: bytes, via: Via = DIRECT
    ) -> Outcome:
        """One call of a target, made when there is room for it.

        Raises:
            GuestError, TooLarge: as ``Invoker.run``.
            Gone, Forbidden: as ``version``.
            CapacityExhausted: no sandbox was to be had in all the time there was.
        """
        started_ns, wait_s = clock.monotonic_ns(), 0.25
        while True:
            async with self._slots:
                version = self.version(target)
                self.count += 1
                try:
                    return await self._invoker.run(
                        principal_id=self._comparison.created_by,
                        request_id=f"{self._comparison.id}-{self.count}",
                        version=version,
                        content_type=content_type,
                        body=body,
                        via=replace(via, is_trial=True),
                    )
                except ApplianceError as error:
                    waited_s = (clock.monotonic_ns() - started_ns) / 1e9
                    if not isinstance(error, _HOLDING) or waited_s > self._wait_s_max:
                        raise
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, _RETRY_S_MAX)
