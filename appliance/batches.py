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
import hashlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import msgspec

from appliance import clock, config, tables
from appliance.batch_output import BatchOutput
from appliance.batch_records import Batch, BatchPart, BatchWish
from appliance.batch_scoring import Answered, Run, Scoring
from appliance.errors import (
    ApplianceError,
    Draining,
    HostError,
    IdempotencyKeyReused,
    InputInvalid,
    JobUnfinished,
    NotFound,
    QuotaExceeded,
    StateError,
    kept_problem,
)
from appliance.events import (
    BatchEnded,
    BatchesRemoved,
    BatchQueued,
    BatchStarted,
    Event,
)
from appliance.folders import Folders
from appliance.followers import Followers
from appliance.invoke import Invoker
from appliance.jobs import Jobs
from appliance.metrics import Metrics
from appliance.records import JOB_ENDS
from appliance.sandbox.pool import Pool
from appliance.store import Store
from appliance.store.batches import blobs_of_batch, head_of_table

_log = logging.getLogger(__name__)
_ACTOR = "appliance"
_LABEL = "batch-request"
_TICK_S = 1.0
_SWEEP_S = 30.0
_SWEEP_MAX = 20
_DRIVERS_MAX = 8
_Record = Callable[[Batch, Callable[[], list[Event]]], Awaitable[None]]


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
        settings: config.Settings,
        metrics: Metrics,
    ) -> None:
        """Make it; ``run`` runs it.

        Args:
            store: where batches and their payloads are.
            invoker: makes the calls.
            jobs: with whom the sandboxes for jobs are shared.
            pool: returns the pool, or raises the problem that keeps sandboxes away.
            settings: limits of jobs, which hold for batches too, and the folders there are.
            metrics: counts rows and ends.
        """
        self._store = store
        self._scoring = Scoring(store, invoker, self, wait_s_max=settings.jobs.wait_s_max)
        self._jobs = jobs
        self._pool = pool
        self._settings = settings.jobs
        self._bytes_max = settings.http.upload_bytes_max
        self.folders = Folders(settings.batches.folders)
        self._output = BatchOutput(store, self._scoring, self.folders)
        self._metrics = metrics
        self._runs: dict[str, Run] = {}
        self._calls = 0
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._followers = Followers()
        self.is_draining = False
        jobs.beside = lambda: self._calls

    # --- what callers do ---------------------------------------------------------------------

    def tell(self, answered: Answered) -> None:
        """Have somebody told of each call that was answered; the next waits for that."""
        self._scoring.answered = answered

    async def submit(
        self,
        wish: BatchWish,
        pieces: AsyncIterator[bytes] | None = None,
        *,
        also: Callable[[Batch], list[Event]] = lambda _batch: [],
    ) -> tuple[Batch, bool]:
        """A batch that will score the rows of a table, and whether it is a new one.

        Args:
            wish: what is asked for; the calls are made and recorded in its principal's name.
            pieces: the table's bytes; without any it is taken from where the wish says.
            also: what is recorded in one unit with a new batch; may refuse it.

        Raises:
            IdempotencyKeyReused: the key came with another request.
            InputInvalid: it is no table, has no rows, or a file that is named cannot be used.
            TooLarge: the file that is named is.
            FolderUnavailable: its folder is not there now.
            UnsupportedMedia: it is not clear what it is.
            QuotaExceeded: the tenant has as many unfinished batches as it may.
            DiskFull, Draining: it was not taken on.
        Audit: batch.queued, before this returns.
        """
        if self.is_draining:
            raise Draining("The appliance is shutting down; it takes on no more batches.")
        tenant_id, hashed = wish.version.tenant_id, hashlib.sha256()
        if self._known(tenant_id, wish.principal_id, wish.idempotency_key):
            if pieces is not None:
                async for piece in pieces:
                    hashed.update(piece)
            known = self._repeated(wish, self._digest(wish, hashed.digest()))
            if known is not None:
                return known, False
            raise StateError("What this Idempotency-Key stood for was removed just now.")
        self._require_room(tenant_id)
        await self._require_place(wish)
        batch_id = clock.new_id("batch")
        head = b""
        async with (
            self._store.blobs.writer(tenant_id) as writer,
            self._pieces(wish, pieces) as table,
        ):
            await writer.write(head_of_table(batch_id))
            async for piece in table:
                head = (head + piece[: tables.HEAD_BYTES])[: tables.HEAD_BYTES]
                if wish.idempotency_key:
                    hashed.update(piece)
                await writer.write(piece)
            source = wish.plan.source or tables.format_of(
                name=wish.taken_from, media_type=wish.media_type, head=head
            )
            blob = await writer.commit()
        batch = Batch(
            id=batch_id,
            tenant_id=tenant_id,
            model_id=wish.version.model_id,
            number=wish.version.number,
            plan=replace(wish.plan, source=tables.require_format(source)),
            input=blob,
            columns=(),
            rows=0,
            created_ns=clock.now_ns(),
            created_by=wish.principal_id,
            idempotency_key=wish.idempotency_key,
            request_digest=self._digest(wish, hashed.digest()),
            webhook=wish.webhook,
            webhook_events=wish.webhook_events,
            taken_from=wish.taken_from,
            put_into=wish.put_into,
            scheduled_by=wish.scheduled_by,
        )
        return await self._take_on(wish, batch, also)

    async def _take_on(
        self, wish: BatchWish, batch: Batch, also: Callable[[Batch], list[Event]]
    ) -> tuple[Batch, bool]:
        """Record a batch whose table is written; of equal ones with one key the first is it."""
        known: Batch | None = None
        try:
            batch = await self._looked_at(batch)

            def make() -> list[Event]:
                nonlocal known
                known = self._repeated(wish, batch.request_digest)
                if known is not None:
                    return []
                self._require_room(batch.tenant_id)
                return [BatchQueued(batch=batch), *also(batch)]

            await self._change(batch, make, wish.principal_id)
        except ApplianceError:
            await self._store.blobs.discard(batch.tenant_id, {batch.input.id})
            raise
        if known is not None:
            await self._store.blobs.discard(batch.tenant_id, {batch.input.id})
            return known, False
        self._wake.set()
        return batch, True

    def require_folder(self, tenant_id: str, place: str, *, is_written: bool) -> None:
        """Return if a tenant may name this file, be it there or not. Raises InputInvalid."""
        self.folders.require_named(self._tenant(tenant_id), place, is_written=is_written)

    async def _require_place(self, wish: BatchWish) -> None:
        """Return if what a wish has put down could be put there now."""
        if not wish.put_into:
            return
        if wish.put_into == wish.taken_from:
            raise InputInvalid("The output would replace the table it is made from.")
        await self.folders.require_writable(self._tenant(wish.version.tenant_id), wish.put_into)

    @contextlib.asynccontextmanager
    async def _pieces(
        self, wish: BatchWish, pieces: AsyncIterator[bytes] | None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The table's bytes: those that were sent, or those of the file that is named."""
        if pieces is not None:
            yield pieces
            return
        tenant = self._tenant(wish.version.tenant_id)
        file = self.folders.read(tenant, wish.taken_from, bytes_max=self._bytes_max)
        async with contextlib.aclosing(file):
            yield file

    def _tenant(self, tenant_id: str) -> str:
        """A tenant's name. Raises NotFound: it was removed meanwhile."""
        tenant = self._store.registry.snapshot.tenant_by_id(tenant_id)
        if tenant is None:
            raise NotFound("There is no such tenant.")
        return tenant.name

    def _digest(self, wish: BatchWish, table: bytes) -> str:
        """What tells requests with one key apart; ``table`` is the digest of what was sent."""
        plan, named = wish.plan, (wish.taken_from, wish.put_into)
        asked = (wish.version.model_id, wish.target, wish.media_type, plan, named)
        text = msgspec.json.encode(asked) + b"\0" + (b"" if wish.taken_from else table)
        return self._store.keyring.digest(wish.version.tenant_id, _LABEL, text)

    def _known(self, tenant_id: str, principal_id: str, key: str) -> Batch | None:
        """The batch that an idempotency key of this principal stands for already."""
        batches = self._store.registry.snapshot.batches(tenant_id) if key else ()
        named = (b for b in batches if (b.created_by, b.idempotency_key) == (principal_id, key))
        return next(named, None)

    def _repeated(self, wish: BatchWish, digest: str) -> Batch | None:
        """The same, if it is of the same request."""
        known = self._known(wish.version.tenant_id, wish.principal_id, wish.idempotency_key)
        if known is not None and known.request_digest != digest:
            raise IdempotencyKeyReused(
                "This Idempotency-Key came with another request before.",
                hint="use a new key for a new request",
                batch=known.id,
            )
        return known

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
        done = batch.rows_done
        rate, run = 0.0, self._runs.get(batch.id)
        if run is not None and run.began_ns and done > run.rows_before:
            rate = (done - run.rows_before) * 1e9 / (clock.monotonic_ns() - run.began_ns)
        elif batch.status in JOB_ENDS and batch.started_ns:
            rate = done * 1e9 / max(1, batch.ended_ns - batch.started_ns)
        is_going = batch.status == "processing" and rate
        return Progress(
            rows_done=done,
            rows_failed=batch.rows_failed,
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
        await self._end(batch, "canceled", None, partial(self._change, actor=actor))
        return self.find(batch.tenant_id, batch.id) or batch

    async def changed(self, batch: Batch, timeout_s: float) -> Batch | None:
        """The batch once it is other than given, or as it is after a time."""
        look = partial(self.find, batch.tenant_id, batch.id)
        return await self._followers.changed(batch.id, look, batch, timeout_s)

    def output(self, batch: Batch) -> AsyncGenerator[bytes]:
        """The output of a batch all of whose rows have results: a table in the format asked for.

        Raises:
            JobUnfinished: there is none.
        """
        if not batch.has_output:
            raise JobUnfinished(
                f"The batch is {batch.status} and has no output.", job_status=batch.status
            )
        return self._output.table(batch)

    @property
    def waiting(self) -> int:
        """Batches that wait for their turn now."""
        snapshot = self._store.registry.snapshot
        found = (one for tenant in snapshot.tenants() for one in snapshot.batches(tenant.id))
        return sum(one.status not in JOB_ENDS and one.id not in self._runs for one in found)

    @property
    def running(self) -> int:
        """Batches that are being scored now."""
        return len(self._runs)

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
        self._followers.tell(run.batch.id)
        self._wake.set()

    def drain(self) -> None:
        """Start no more calls; let everybody who waits for a batch go."""
        self.is_draining = True
        self._followers.let_go()

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
                self._followers.tell(batch.id)
            await self._scoring.score(run)
            await self._scoring.patiently(partial(self._output.put_down, batch))
            await self._end(batch, "succeeded", None, self._record)
        except asyncio.CancelledError:
            if not run.is_canceled:
                raise  # the appliance ends; the next start goes on
        except ApplianceError as error:
            await self._end(batch, "failed", kept_problem(error), self._record)
        except Exception:  # noqa: BLE001 - a batch must end, whatever happens
            _log.exception("batch %s", batch.id)
            problem = HostError(f"Something failed inside the appliance; batch {batch.id}.")
            await self._end(batch, "failed", kept_problem(problem), self._record)

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

    async def _change(
        self, batch: Batch, make: Callable[[], list[Event]], actor: str = _ACTOR
    ) -> None:
        await self._store.registry.change(
            make, tenant_id=batch.tenant_id, actor=actor, obj=batch.model_id
        )

    async def _end(
        self, batch: Batch, status: Any, problem: dict[str, Any] | None, record: _Record
    ) -> None:
        """End a batch, unless it has ended (or is gone) by then, and count it."""
        made: list[Event] = []

        def make() -> list[Event]:
            made.clear()
            now = self.find(batch.tenant_id, batch.id)
            if now is not None and now.status not in JOB_ENDS:
                made.append(BatchEnded(batch_id=batch.id, status=status, problem=problem))
            return made

        await record(batch, make)
        if made:
            self._metrics.table_ended(status)
        self._followers.tell(batch.id)

    def advanced(self, batch_id: str, part: BatchPart) -> None:
        """Some rows have their results, durably: count them and let followers look."""
        self._metrics.table_scored(rows=part.rows, failed=part.failed)
        self._followers.tell(batch_id)

    async def _record(self, batch: Batch, make: Callable[[], list[Event]]) -> None:
        with contextlib.suppress(NotFound):  # its tenant was removed meanwhile
            await self._scoring.patiently(partial(self._change, batch, make))

    def _require_room(self, tenant_id: str) -> None:
        batches = self._store.registry.snapshot.batches(tenant_id)
        unfinished = sum(batch.status not in JOB_ENDS for batch in batches)
        if unfinished >= self._settings.queued_max:
            raise QuotaExceeded(
                f"{unfinished} batches of this tenant wait or run; it may have "
                f"{self._settings.queued_max}.",
                hint="wait for batches to end, or have IT raise jobs.queued_max",
            )


def _only(event: Event) -> list[Event]:
    return [event]
