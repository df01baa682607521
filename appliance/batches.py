"""Batches: a table goes in, each of its rows gets one result, a table comes out.

Owns: what a batch goes through, which of its rows are scored next, and what a restart does.
Never: parses a table (``tables``, in a process without keys), parses HTTP, or decides who may.
Read next: ``batch_rows`` (bodies and answers), ``store.batches`` (what events do), ``jobs``.

    starting --started--> processing --advanced ...--> succeeded | failed | canceled

The table is a sealed blob, read at random; rows go to the model in chunks, one ordinary call each,
and the results of a chunk are sealed and recorded (``batch.advanced``) before the next ones count.
A restart goes on with the rows that have none: a chunk that was with its model then is scored
again. Results are lines, told apart by their first row, so the output is the same however often it
was cut off, and in whatever order chunks ended. Calls of batches count as running jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from appliance import batch_rows, clock, config, tables
from appliance.batch_records import Batch, BatchPlan
from appliance.batch_scoring import Joined, Run, Scoring
from appliance.errors import (
    ApplianceError,
    AuditUnavailable,
    CapacityExhausted,
    DiskFull,
    Draining,
    HostError,
    InputInvalid,
    InvokeTimeout,
    JobUnfinished,
    NotFound,
    OutOfMemory,
    PodmanUnavailable,
    QuotaExceeded,
    ReplyTooLarge,
    TooLarge,
)
from appliance.events import (
    BatchEnded,
    BatchesRemoved,
    BatchQueued,
    BatchStarted,
    Event,
)
from appliance.invoke import Invoker
from appliance.jobs import Jobs, kept_problem
from appliance.records import (
    JOB_ENDS,
    Version,
)
from appliance.sandbox.pool import Pool
from appliance.store import Store
from appliance.store.batches import blobs_of_batch, head_of_table

_log = logging.getLogger(__name__)
_ACTOR = "appliance"
_JSON = "application/json"
_TICK_S = 1.0
_SWEEP_S = 30.0
_SWEEP_MAX = 20
_RETRY_S_MAX = 30.0
_DRIVERS_MAX = 8
_BATCH_BYTES_MAX = 8 * 1024 * 1024
_BATCH_BYTES_MIN = 64 * 1024
_HOLDING = (CapacityExhausted, Draining, DiskFull, PodmanUnavailable, AuditUnavailable)
_TOO_MUCH = (TooLarge, ReplyTooLarge, InvokeTimeout, OutOfMemory)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a batch is.

    ``rows_per_s`` is of this process, 0.0 until it has scored some; ``eta_s`` follows from it and
    is ``None`` while it is not known.
    """

    rows_done: int
    rows_failed: int
    rows_per_s: float
    eta_s: float | None


class Batches:
    """Takes on, scores, cancels and forgets batches; one per unsealed node."""

    def __init__(
        self,
        store: Store,
        invoker: Invoker,
        jobs: Jobs,
        pool: Callable[[], Pool],
        settings: config.Jobs,
    ) -> None:
        """Make it; ``run`` runs it.

        Args:
            store: where batches and their payloads are.
            invoker: makes the calls.
            jobs: with whom the sandboxes for jobs are shared.
            pool: returns the pool, or raises the problem that keeps sandboxes away.
            settings: limits of jobs, which hold for batches too.
        """
        self._store = store
        self._scoring = Scoring(store, invoker, self, wait_s_max=settings.wait_s_max)
        self._jobs = jobs
        self._pool = pool
        self._settings = settings
        self._runs: dict[str, Run] = {}
        self._calls = 0
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self.is_draining = False
        jobs.beside = lambda: self._calls

    # --- what callers do ---------------------------------------------------------------------

    async def submit(
        self,
        *,
        principal_id: str,
        version: Version,
        plan: BatchPlan,
        pieces: AsyncIterator[bytes],
        media_type: str,
        name: str = "",
    ) -> Batch:
        """A batch that will score the rows of a table.

        Args:
            principal_id: who asks; the calls are made and recorded in this name.
            version: what scores them.
            plan: how; its ``source`` is found out where it is empty.
            pieces: the table's bytes.
            media_type: what the caller says it is.
            name: of its file, for its extension.

        Raises:
            InputInvalid: it is no table, or has no rows.
            UnsupportedMedia: it is not clear what it is.
            QuotaExceeded: the tenant has as many unfinished batches as it may.
            DiskFull, Draining: it was not taken on.
        Audit: batch.queued, before this returns.
        """
        if self.is_draining:
            raise Draining("The appliance is shutting down; it takes on no more batches.")
        self._require_room(version.tenant_id)
        batch_id = clock.new_id("batch")
        head = b""
        async with self._store.blobs.writer(version.tenant_id) as writer:
            await writer.write(head_of_table(batch_id))
            async for piece in pieces:
                head = (head + piece[: tables.HEAD_BYTES])[: tables.HEAD_BYTES]
                await writer.write(piece)
            source = plan.source or tables.format_of(name=name, media_type=media_type, head=head)
            blob = await writer.commit()
        batch = Batch(
            id=batch_id,
            tenant_id=version.tenant_id,
            model_id=version.model_id,
            number=version.number,
            plan=replace(plan, source=tables.require_format(source)),
            input=blob,
            columns=(),
            rows=0,
            created_ns=clock.now_ns(),
            created_by=principal_id,
        )
        try:
            batch = await self._looked_at(batch)
            event = BatchQueued(batch=batch)
            await self._change(batch, partial(_only, event), principal_id)
        except ApplianceError:
            await self._store.blobs.discard(version.tenant_id, {blob.id})
            raise
        self._wake.set()
        return batch

    async def _looked_at(self, batch: Batch) -> Batch:
        async with self._scoring.table(batch) as table:
            if not table.rows:
                raise InputInvalid("The table has no rows.")
            return replace(batch, columns=table.columns, rows=table.rows)

    def find(self, tenant_id: str, batch_id: str) -> Batch | None:
        """A batch as it is now."""
        return self._store.registry.snapshot.batch(tenant_id, batch_id)

    def progress(self, batch: Batch) -> Progress:
        """How far a batch is."""
        done = sum(part.rows for part in batch.parts)
        rate, run = 0.0, self._runs.get(batch.id)
        if run is not None and run.began_ns and done > run.rows_before:
            rate = (done - run.rows_before) * 1e9 / (clock.monotonic_ns() - run.began_ns)
        elif batch.status in JOB_ENDS and batch.started_ns:
            rate = done * 1e9 / max(1, batch.ended_ns - batch.started_ns)
        is_going = batch.status == "processing" and rate
        return Progress(
            rows_done=done,
            rows_failed=sum(part.failed for part in batch.parts),
            rows_per_s=rate,
            eta_s=(batch.rows - done) / rate if is_going else None,
        )

    async def cancel(self, batch: Batch, *, actor: str) -> Batch:
        """Cancel a batch; one that ended stays as it is. What was scored is kept no longer.

        Audit: batch.ended.
        """
        run = self._runs.get(batch.id)
        if run is not None and run.task is not None:
            run.is_canceled = True
            run.task.cancel()
            await asyncio.wait([run.task])
        await self._change(batch, self._ending(batch, "canceled", None), actor)
        self.tell(batch.id)
        return self.find(batch.tenant_id, batch.id) or batch

    async def changed(self, batch: Batch, timeout_s: float) -> Batch | None:
        """The batch once it is other than given, or as it is after a time."""
        event = asyncio.Event()
        self._watchers.setdefault(batch.id, set()).add(event)
        try:
            if self.find(batch.tenant_id, batch.id) == batch and not self.is_draining:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(timeout_s):
                        await event.wait()
        finally:
            self._watchers[batch.id].discard(event)
            if not self._watchers[batch.id]:
                del self._watchers[batch.id]
        return self.find(batch.tenant_id, batch.id)

    def output(self, batch: Batch) -> AsyncGenerator[bytes]:
        """The output of a batch that succeeded: a table in the format it was asked in.

        Raises:
            JobUnfinished: there is none.
        """
        if batch.status != "succeeded":
            raise JobUnfinished(
                f"The batch is {batch.status} and has no output.", job_status=batch.status
            )
        parts = sorted(batch.parts, key=lambda part: part.row)
        names = batch_rows.merged(part.names for part in parts)
        taken = [name for name, _ in batch.columns] if batch.plan.carry else []
        joined = Joined(self._store, batch, parts)
        sources = [
            tables.Input(
                read_at=joined.read_at,
                size_bytes=joined.size_bytes,
                format="ndjson",
                columns=names,
                renamed=batch_rows.renamed(names, taken),
            )
        ]
        if batch.plan.carry:
            sources.insert(
                0,
                tables.Input(
                    read_at=self._scoring.reader(batch),
                    size_bytes=batch.input.size_bytes - len(head_of_table(batch.id)),
                    format=tables.require_format(batch.plan.source),
                ),
            )
        return tables.converted(sources, into=tables.require_format(batch.plan.into))

    # --- the life of the whole ---------------------------------------------------------------

    async def run(self) -> None:
        """Score what there is to score, for ever; what a restart cut off goes on."""
        swept_ns = 0
        while True:
            self._wake.clear()
            if not self.is_draining:
                self._start_some()
            if clock.monotonic_ns() - swept_ns > _SWEEP_S * 1e9:
                swept_ns = clock.monotonic_ns()
                try:
                    await self.sweep()
                except (ApplianceError, OSError) as error:
                    _log.warning("old batches could not be removed: %s", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await self._wake.wait()

    def _start_some(self) -> None:
        """Start the oldest unfinished batch of each tenant that has none at work."""
        snapshot = self._store.registry.snapshot
        for tenant in snapshot.tenants():
            waiting = [b for b in snapshot.batches(tenant.id) if b.status not in JOB_ENDS]
            if not waiting or len(self._runs) >= _DRIVERS_MAX:
                continue
            if any(run.batch.tenant_id == tenant.id for run in self._runs.values()):
                continue
            self._start(waiting[0])

    def _start(self, batch: Batch) -> None:
        version = self._store.registry.snapshot.version(batch.model_id, batch.number)
        if version is None:
            return
        run = Run(batch=batch, version=version, call_rows=batch.plan.chunk_rows)
        self._runs[batch.id] = run
        run.task = asyncio.create_task(self._run_one(run), name=f"batch-{batch.id}")
        run.task.add_done_callback(lambda done: self._ended(run, done))

    def _ended(self, run: Run, task: asyncio.Task[None]) -> None:
        self._runs.pop(run.batch.id, None)
        if not task.cancelled() and task.exception():
            _log.error("batch %s: its end is not recorded", run.batch.id, exc_info=task.exception())
        self.tell(run.batch.id)
        self._wake.set()

    def drain(self) -> None:
        """Start no more calls; let everybody who waits for a batch go."""
        self.is_draining = True
        for watching in self._watchers.values():
            for event in watching:
                event.set()

    async def close(self) -> None:
        """Stop at once; the next start goes on with the rows that have no result."""
        self.drain()
        tasks = [run.task for run in self._runs.values() if run.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def sweep(self) -> int:
        """Forget ended batches whose time is over and delete their payloads; returns how many.

        Audit: batch.removed, blob.removed.
        """
        count = 0
        for tenant in self._store.registry.snapshot.tenants():
            while over := self._over(tenant.id):
                event = BatchesRemoved(batch_ids=tuple(batch.id for batch in over))
                await self._store.registry.change(
                    partial(_only, event), tenant_id=tenant.id, actor=_ACTOR, obj=tenant.id
                )
                blob_ids = {blob.id for batch in over for blob in blobs_of_batch(batch)}
                await self._store.blobs.discard(tenant.id, blob_ids)
                count += len(over)
        return count

    def _over(self, tenant_id: str) -> list[Batch]:
        batches = self._store.registry.snapshot.batches(tenant_id)
        ended = sorted((b for b in batches if b.status in JOB_ENDS), key=lambda b: b.ended_ns)
        oldest_ns = clock.now_ns() - self._settings.kept_s * 1_000_000_000
        surplus = len(ended) - self._settings.kept_max
        over = [b for at, b in enumerate(ended) if at < surplus or b.ended_ns < oldest_ns]
        return over[:_SWEEP_MAX]

    # --- one batch ---------------------------------------------------------------------------

    async def _run_one(self, run: Run) -> None:
        batch = run.batch
        try:
            if batch.status == "starting":
                event = BatchStarted(batch_id=batch.id)
                await self._change(batch, partial(_only, event), _ACTOR)
                self.tell(batch.id)
            await self._scoring.score(run)
            await self._record(batch, self._ending(batch, "succeeded", None))
        except asyncio.CancelledError:
            if not run.is_canceled:
                raise  # the appliance ends; the next start goes on
        except ApplianceError as error:
            await self._record(batch, self._ending(batch, "failed", kept_problem(error)))
        except Exception:  # noqa: BLE001 - a batch must end, whatever happens
            _log.exception("batch %s", batch.id)
            problem = HostError(f"Something failed inside the appliance; batch {batch.id}.")
            await self._record(batch, self._ending(batch, "failed", kept_problem(problem)))

    async def take(self, run: Run) -> None:
        """Wait until one more call may be made for this batch; ``give_back`` gives it back."""
        while not self._has_room(run):
            self._room.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await self._room.wait()
        self._calls += 1
        run.calls += 1

    def give_back(self, run: Run) -> None:
        """A call of this batch has ended."""
        self._calls -= 1
        run.calls -= 1
        self._room.set()
        self._jobs.wake()

    def _has_room(self, run: Run) -> bool:
        if self.is_draining:
            return False
        try:
            pool = self._pool()
        except ApplianceError:
            return False
        if run.calls >= max(1, pool.per_version_max - 1):
            return False
        most = self._jobs.running_max(pool)
        left = 1 if self._jobs.waiting and most > 1 else 0  # a job that waits is next
        return self._calls + self._jobs.running < most - left

    async def _change(self, batch: Batch, make: Callable[[], list[Event]], actor: str) -> None:
        await self._store.registry.change(
            make, tenant_id=batch.tenant_id, actor=actor, obj=batch.model_id
        )

    def _ending(
        self, batch: Batch, status: Any, problem: dict[str, Any] | None
    ) -> Callable[[], list[Event]]:
        """What ends a batch, unless it has ended (or is gone) by then."""

        def make() -> list[Event]:
            now = self.find(batch.tenant_id, batch.id)
            is_over = now is None or now.status in JOB_ENDS
            event = BatchEnded(batch_id=batch.id, status=status, problem=problem)
            return [] if is_over else [event]

        return make

    async def _record(self, batch: Batch, make: Callable[[], list[Event]]) -> None:
        with contextlib.suppress(NotFound):  # its tenant was removed meanwhile
            await self._scoring.patiently(partial(self._change, batch, make, _ACTOR))

    def _require_room(self, tenant_id: str) -> None:
        batches = self._store.registry.snapshot.batches(tenant_id)
        unfinished = sum(batch.status not in JOB_ENDS for batch in batches)
        if unfinished >= self._settings.queued_max:
            raise QuotaExceeded(
                f"{unfinished} batches of this tenant wait or run; it may have "
                f"{self._settings.queued_max}.",
                hint="wait for batches to end, or have IT raise jobs.queued_max",
            )

    def tell(self, batch_id: str) -> None:
        """Let those who follow a batch look again."""
        for event in self._watchers.get(batch_id, ()):
            event.set()


def _only(event: Event) -> list[Event]:
    return [event]
