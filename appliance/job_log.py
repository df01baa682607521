"""What a job's model prints while it is at work, told to the job's webhook in parts.

Owns: how often a part is told, how large it is, and that nobody waits for a receiver.
Never: sends anything (``webhooks``), or keeps a line of a job whose webhook wants no logs.
Read next: ``sandbox.link`` (``LogTail``, which bounds a part), ``store.announce``.

A part is a sealed blob, recorded in one unit with its delivery. There is one on its way at most:
while a receiver has not answered, what is printed is gathered, the last 64 KiB and 200 lines of it,
and the next part says how much was left out. So a slow receiver gets fewer parts, in order, and the
job never waits. Only the last part does not wait for the one before: its lines are numbered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import msgspec

from appliance.errors import ApplianceError
from appliance.events import Event, JobPrinted
from appliance.records import Job, Printed
from appliance.sandbox.link import LogTail
from appliance.store import Store
from appliance.store.jobs import head_of_printed

_log = logging.getLogger(__name__)
_ACTOR = "appliance"
_EVERY_S = 0.5
_LATER_S = 10.0
_OFTEN_MAX = 100
"""Parts that are told often; those of a job that goes on printing come more slowly."""


@contextlib.asynccontextmanager
async def following(store: Store, job: Job) -> AsyncIterator[LogTail | None]:
    """Who is to be told what is printed while a job is with its model; ``None`` for nobody."""
    if not job.webhook or "logs" not in job.webhook_events:
        yield None
        return
    told, is_over = _JobLog(store, job), asyncio.Event()
    telling = asyncio.create_task(told.run(is_over), name=f"job-log-{job.id}")
    try:
        yield told.tail
    finally:
        is_over.set()
        await asyncio.wait([telling])


class _JobLog:
    def __init__(self, store: Store, job: Job) -> None:
        self.tail = LogTail()
        self._store = store
        self._job = job
        self._next = sum(one.lines for one in job.printed)
        self._parts = 0

    async def run(self, is_over: asyncio.Event) -> None:
        """Tell what there is, again and again, and what is left once it is over."""
        while not is_over.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_EVERY_S if self._parts < _OFTEN_MAX else _LATER_S):
                    await is_over.wait()
            if is_over.is_set() or not self._is_on_its_way():
                await self._tell(is_over=is_over.is_set())

    def _is_on_its_way(self) -> bool:
        deliveries = self._store.registry.snapshot.deliveries(self._job.tenant_id)
        return any(
            one.job_id == self._job.id and one.type == "job.logs" and one.state == "waiting"
            for one in deliveries
        )

    async def _tell(self, *, is_over: bool) -> None:
        """Record what was printed since the last time, if anything was."""
        lines = self.tail.take(is_over=is_over)
        if not lines:
            return
        first, self._next = self._next, self._next + len(lines)
        self._parts += 1
        try:
            await self._record(first, lines)
        except (ApplianceError, OSError) as error:  # the numbers of lines say what is missing
            _log.warning("job %s: what it printed is not told: %s", self._job.id, error)

    async def _record(self, first: int, lines: tuple[str, ...]) -> None:
        job, registry = self._job, self._store.registry
        async with self._store.blobs.writer(job.tenant_id) as writer:
            await writer.write(head_of_printed(job.id, first))
            await writer.write(msgspec.json.encode(lines))
            blob = await writer.commit()
        event = JobPrinted(job_id=job.id, printed=Printed(first=first, lines=len(lines), blob=blob))
        is_kept = False

        def make() -> list[Event]:
            now = registry.snapshot.job(job.tenant_id, job.id)
            return [event] if now is not None and now.status == "processing" else []

        try:
            await registry.change(make, tenant_id=job.tenant_id, actor=_ACTOR, obj=job.model_id)
            now = registry.snapshot.job(job.tenant_id, job.id)
            is_kept = now is not None and event.printed in now.printed
        finally:
            if not is_kept:
                await self._store.blobs.discard(job.tenant_id, {blob.id})
