"""Calls that outlive their request: taken on durably, run when there is room, kept for a while.

Owns: what a job goes through, which job runs next, what a restart does to jobs, how long they and
their payloads are kept.
Never: parses HTTP, decides who may call, or talks to a sandbox (``invoke``).
Read next: ``store.jobs`` (what events do to a job), ``invoke`` (the call itself).

    starting --started--> processing --ended--> succeeded | failed | canceled
        ^----- requeued -----'

A job is handed to its model at most once. One that a restart cut off while it was with its model
fails as ``interrupted``, unless its caller sent an Idempotency-Key and so said that running it
twice is harmless: that one runs again. One that had not started always runs. Jobs use fewer
sandboxes than there may be, so that calls that wait for their answer always find room.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from functools import partial

from appliance import clock, config, job_log
from appliance.errors import (
    ApplianceError,
    AuditUnavailable,
    CapacityExhausted,
    DiskFull,
    Draining,
    Forbidden,
    Gone,
    HostError,
    IdempotencyKeyReused,
    Interrupted,
    NotFound,
    PodmanUnavailable,
    QuotaExceeded,
    kept_problem,
)
from appliance.events import Event, JobEnded, JobQueued, JobRequeued, JobsRemoved, JobStarted
from appliance.followers import Followers
from appliance.invoke import Exchange, Invoker, Via
from appliance.job_queue import JobQueue
from appliance.records import JOB_ENDS, Blob, Job, JobEnd, Version
from appliance.sandbox.pool import Pool
from appliance.store import Store
from appliance.store.jobs import blobs_of, head_of

_log = logging.getLogger(__name__)
_ACTOR = "appliance"
_LABEL = "job-request"
_TICK_S = 1.0
_SWEEP_S = 30.0
_SWEEP_MAX = 200
_RETRY_S_MAX = 30.0
_HOLDING = (CapacityExhausted, Draining, DiskFull, PodmanUnavailable)


class Jobs:
    """Takes on, runs, cancels and forgets jobs; one per unsealed node."""

    def __init__(
        self,
        store: Store,
        invoker: Invoker,
        pool: Callable[[], Pool],
        settings: config.Jobs,
        *,
        free_bytes_min: int,
    ) -> None:
        """Make it; ``run`` runs it.

        Args:
            store: where jobs and their payloads are.
            invoker: makes the calls.
            pool: returns the pool, or raises the problem that keeps sandboxes away.
            settings: limits.
            free_bytes_min: free disk below which no job starts, as no call does.
        """
        self._store = store
        self._invoker = invoker
        self._pool = pool
        self._settings = settings
        self._free_bytes_min = free_bytes_min
        self._queue = JobQueue()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._versions: dict[str, tuple[str, int]] = {}
        self._canceled: set[str] = set()
        self.answered: Callable[[Version, Exchange], None] = lambda _version, _exchange: None
        """Told of each call that was answered."""
        self._followers = Followers()
        self._wake = asyncio.Event()
        self.is_draining = False
        self.beside: Callable[[], int] = lambda: 0
        """Calls of others that count as running jobs: those of batches."""

    # --- what callers do ---------------------------------------------------------------------

    async def submit(
        self,
        *,
        principal_id: str,
        version: Version,
        target: str,
        content_type: str,
        body: bytes,
        idempotency_key: str = "",
        route_revision: int = 0,
        webhook: str = "",
        webhook_events: tuple[str, ...] = (),
        scheduled_by: str = "",
        also: Callable[[Job], list[Event]] = lambda _job: [],
    ) -> tuple[Job, bool]:
        """A job that will call a version, and whether it is a new one.

        Args:
            principal_id: who asks; the call is made and recorded in this name.
            version: what to call; an alias that moves later does not change it.
            target: how the caller named it; part of what an idempotency key stands for.
            content_type: media type of ``body``.
            body: the request.
            idempotency_key: the caller's; with it the same request gives the same job, and a
                restart may run the job twice.
            route_revision: of the route that chose the version, 0 for none.
            webhook: where the caller wants to be told of it, checked already.
            webhook_events: of what, of ``announce.JOB_TYPES``.
            scheduled_by: the schedule that submits it, if one does.
            also: what is recorded in one unit with a new job; may refuse it.

        Raises:
            IdempotencyKeyReused: the key came with another request.
            InputInvalid: the body breaks the version's schema.
            QuotaExceeded: the tenant has as many unfinished jobs as it may.
            DiskFull, Draining: it was not taken on.
        Audit: job.queued, before this returns.
        """
        if self.is_draining:
            raise Draining("The appliance is shutting down; it takes on no more jobs.")
        self._invoker.require_input(version, content_type, body)
        tenant_id = version.tenant_id
        asked = b"\0".join((version.model_id.encode(), target.encode(), content_type.encode()))
        digest = self._store.keyring.digest(tenant_id, _LABEL, asked + b"\0" + body)
        known = self._repeated(tenant_id, principal_id, idempotency_key, digest)
        if known is not None:
            return known, False
        self._require_room(tenant_id)
        job_id = clock.new_id("job")
        blob = await self._write(tenant_id, head_of(job_id), body)
        job = Job(
            id=job_id,
            tenant_id=tenant_id,
            model_id=version.model_id,
            number=version.number,
            content_type=content_type,
            input=blob,
            request_digest=digest,
            route_revision=route_revision,
            idempotency_key=idempotency_key,
            webhook=webhook,
            webhook_events=webhook_events,
            scheduled_by=scheduled_by,
            created_ns=clock.now_ns(),
            created_by=principal_id,
        )

        return await self._take_on(job, also)

    async def _take_on(self, job: Job, also: Callable[[Job], list[Event]]) -> tuple[Job, bool]:
        """Record a job whose input is written; of equal ones with one key the first is the job."""
        known: Job | None = None

        def make() -> list[Event]:
            nonlocal known
            asked = job.created_by, job.idempotency_key, job.request_digest
            known = self._repeated(job.tenant_id, *asked)
            if known is not None:
                return []
            self._require_room(job.tenant_id)
            return [JobQueued(job=job), *also(job)]

        try:
            await self._change(job, make, job.created_by)
        except ApplianceError:
            await self._store.blobs.discard(job.tenant_id, {job.input.id})
            raise
        if known is not None:
            await self._store.blobs.discard(job.tenant_id, {job.input.id})
            return known, False
        self._enqueue(job)
        return job, True

    def require_input(self, version: Version, content_type: str, body: bytes) -> None:
        """Return if a body is what a version takes. Raises InputInvalid."""
        self._invoker.require_input(version, content_type, body)

    def find(self, tenant_id: str, job_id: str) -> Job | None:
        """A job as it is now."""
        return self._store.registry.snapshot.job(tenant_id, job_id)

    async def cancel(self, job: Job, *, actor: str) -> Job:
        """Cancel a job; one that ended stays as it is.

        A waiting job never starts. The sandbox of one that is with its model is ended; what the
        model did until then is done.

        Audit: job.ended.
        """
        self._queue.forget(job)
        task = self._running.get(job.id)
        if task is not None:
            self._canceled.add(job.id)
            task.cancel()
            await asyncio.wait([task])
        await self._change(job, self._ending(job, JobEnd(status="canceled")), actor)
        self._followers.tell(job.id)
        return self.find(job.tenant_id, job.id) or job

    async def changed(self, job: Job, timeout_s: float) -> Job | None:
        """The job once it is other than given, or as it is after a time; ``None`` if forgotten."""
        look = partial(self.find, job.tenant_id, job.id)
        return await self._followers.changed(job.id, look, job, timeout_s)

    async def output(self, job: Job) -> AsyncGenerator[bytes]:
        """The output of a job that succeeded, in pieces.

        Raises:
            NotFound: there is none, or it was deleted after its time.
            StoreCorrupt: it is damaged.
        """
        if job.end is None or job.end.output is None:
            raise NotFound("There is no output.")
        offset = len(head_of(job.id, is_output=True))
        async for piece in self._store.blobs.read(job.tenant_id, job.end.output.id, offset=offset):
            yield piece

    # --- the life of the whole ---------------------------------------------------------------

    async def recover(self) -> None:
        """Take up what the registry has: wait again, run again, or fail as interrupted."""
        snapshot = self._store.registry.snapshot
        for tenant in snapshot.tenants():
            for job in snapshot.jobs(tenant.id):
                if job.status == "processing":
                    await self._take_up(job)
                elif job.status == "starting" and job.id not in self._running:
                    self._enqueue(job)

    async def _take_up(self, job: Job) -> None:
        if job.idempotency_key:
            await self._change(job, self._requeueing(job, "restart"), _ACTOR)
            now = self.find(job.tenant_id, job.id)
            if now is not None and now.status == "starting":
                self._enqueue(now)
            return
        problem = Interrupted("The appliance ended while the model was at work on this job.")
        await self._end(job, _failed(problem))

    async def run(self) -> None:
        """Start jobs while there is room, for ever."""
        while True:
            try:
                await self.recover()
                break
            except ApplianceError as error:
                _log.warning("jobs are not taken up yet: %s", error.detail)
                await asyncio.sleep(_TICK_S)
        swept_ns = 0
        while True:
            self._wake.clear()
            if not self.is_draining:
                while (job := self._next()) is not None:
                    self._start(job)
            if clock.monotonic_ns() - swept_ns > _SWEEP_S * 1e9:
                swept_ns = clock.monotonic_ns()
                await self._sweep_safely()
            with contextlib.suppress(TimeoutError):  # asyncio.wait_for loses a cancellation (3.11)
                async with asyncio.timeout(_TICK_S):
                    await self._wake.wait()

    def drain(self) -> None:
        """Start no more jobs; let everybody who waits for one go."""
        self.is_draining = True
        self._followers.let_go()

    async def close(self, timeout_s: float) -> None:
        """Let the running jobs end, for a time; what is cut off is met by the next start."""
        self.drain()
        running = set(self._running.values())
        if running:
            _done, late = await asyncio.wait(running, timeout=timeout_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    @property
    def waiting(self) -> int:
        """Jobs that wait for their turn now."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Jobs that are being run now."""
        return len(self._running)

    async def sweep(self) -> int:
        """Forget ended jobs whose time is over and delete their payloads; returns how many.

        Audit: job.removed, blob.removed.
        """
        count = 0
        for tenant in self._store.registry.snapshot.tenants():
            while over := self._over(tenant.id):
                event = JobsRemoved(job_ids=tuple(job.id for job in over))
                await self._store.registry.change(
                    partial(_only, event), tenant_id=tenant.id, actor=_ACTOR, obj=tenant.id
                )
                blob_ids = {blob.id for job in over for blob in blobs_of(job)}
                await self._store.blobs.discard(tenant.id, blob_ids)
                count += len(over)
        return count

    async def _sweep_safely(self) -> None:
        try:
            await self.sweep()
        except (ApplianceError, OSError) as error:
            _log.warning("old jobs could not be removed: %s", error)

    def _over(self, tenant_id: str) -> list[Job]:
        """Ended jobs to forget now, oldest first, at most a batch of them."""
        ended = [j for j in self._store.registry.snapshot.jobs(tenant_id) if j.status in JOB_ENDS]
        ended.sort(key=lambda job: job.ended_ns)
        oldest_ns = clock.now_ns() - self._settings.kept_s * 1_000_000_000
        surplus = len(ended) - self._settings.kept_max
        over = [job for at, job in enumerate(ended) if at < surplus or job.ended_ns < oldest_ns]
        return over[:_SWEEP_MAX]

    # --- which job runs next -----------------------------------------------------------------

    def _enqueue(self, job: Job) -> None:
        self._queue.add(job)
        self._wake.set()

    def _next(self) -> Job | None:
        """The next job to start: tenants in turn, each one's oldest first."""
        if not self._queue:
            return None
        try:
            pool = self._pool()
        except ApplianceError:
            return None  # tried again in a moment
        if self._store.free_bytes() < self._free_bytes_min:
            return None
        if len(self._running) + self.beside() >= self.running_max(pool):
            return None
        per_version = max(1, pool.per_version_max - 1)
        busy = list(self._versions.values())
        return self._queue.next(lambda job: busy.count((job.model_id, job.number)) < per_version)

    def running_max(self, pool: Pool) -> int:
        """How many jobs may run at once."""
        return self._settings.running_max or max(1, pool.instances_max // 2)

    def wake(self) -> None:
        """Look for room at once."""
        self._wake.set()

    def _start(self, job: Job) -> None:
        self._queue.take(job)
        self._versions[job.id] = (job.model_id, job.number)
        task = asyncio.create_task(self._run_one(job))
        self._running[job.id] = task
        task.add_done_callback(lambda done: self._ended(job, done))

    def _ended(self, job: Job, task: asyncio.Task[None]) -> None:
        self._running.pop(job.id, None)
        self._versions.pop(job.id, None)
        self._canceled.discard(job.id)
        if not task.cancelled() and task.exception():
            _log.error("job %s: its end could not be recorded", job.id, exc_info=task.exception())
        self._followers.tell(job.id)
        self._wake.set()

    # --- one job -----------------------------------------------------------------------------

    async def _run_one(self, job: Job) -> None:
        try:
            end = await self._call(job)
        except asyncio.CancelledError:
            if job.id not in self._canceled:
                raise  # the appliance ends; the next start meets the job as it is
            end = JobEnd(status="canceled")
        except ApplianceError as error:
            if self._is_held_up(job, error):
                await self._hold(job)
                return
            end = _failed(error)
        except Exception:  # noqa: BLE001 - a job must end, whatever happens
            _log.exception("job %s", job.id)
            end = _failed(HostError(f"Something failed inside the appliance; job {job.id}."))
        await self._end(job, end)

    async def _call(self, job: Job) -> JobEnd:
        version = self._version_of(job)
        body = b"".join([p async for p in self._store.blobs.read(job.tenant_id, job.input.id)])
        await self._change(job, lambda: [JobStarted(job_id=job.id)], job.created_by)
        self._followers.tell(job.id)
        async with job_log.following(self._store, job) as tail:
            outcome = await self._invoker.run(
                principal_id=job.created_by,
                request_id=job.id,
                version=version,
                content_type=job.content_type,
                body=(asked := body[len(head_of(job.id)) :]),
                via=Via(route_revision=job.route_revision, tail=tail),
            )
        head = head_of(job.id, is_output=True)
        output = await self._write(job.tenant_id, head, outcome.reply)
        exchange = Exchange(
            call_id=job.id, content_type=job.content_type, body=asked, outcome=outcome
        )
        self.answered(version, exchange)
        return JobEnd(
            status="succeeded",
            output=output,
            content_type=outcome.content_type,
            audit_seq=outcome.audit_seq,
            cold=outcome.cold,
            run_us=outcome.total_us,
        )

    def _version_of(self, job: Job) -> Version:
        """The version to call, if it still may be called in the name of who submitted the job."""
        snapshot = self._store.registry.snapshot
        version = snapshot.version(job.model_id, job.number)
        if version is None or version.retired_ns:
            raise Gone(f"Version {job.number} is no longer in service.", number=job.number)
        key = snapshot.key(job.created_by)
        if key is not None and (key.revoked_ns or key.expires_ns <= clock.now_ns()):
            raise Forbidden("The key this job was submitted with was revoked or has expired.")
        return version

    def _is_held_up(self, job: Job, error: ApplianceError) -> bool:
        """Whether a job that found no room has not reached its model, and may go on waiting."""
        if not isinstance(error, _HOLDING):
            return False
        waited_s = (clock.now_ns() - job.created_ns) // 1_000_000_000
        now = self.find(job.tenant_id, job.id)
        # A call that was concluded with one of these never had a sandbox; any other may have.
        is_untouched = "audit_seq" in error.extensions or (now and now.status == "starting")
        return bool(is_untouched) and waited_s < self._settings.wait_s_max

    async def _hold(self, job: Job) -> None:
        """Let a job that found no room wait again, longer each time."""
        await self._record(job, self._requeueing(job, "capacity"))
        if self.find(job.tenant_id, job.id) is None:
            return
        self._queue.add_later(job)
        self._wake.set()

    def _requeueing(self, job: Job, reason: str) -> Callable[[], list[Event]]:
        """What lets a started job wait again, unless it is not a started one by then."""

        def make() -> list[Event]:
            now = self.find(job.tenant_id, job.id)
            is_started = now is not None and now.status == "processing"
            return [JobRequeued(job_id=job.id, reason=reason)] if is_started else []

        return make

    def _ending(self, job: Job, end: JobEnd) -> Callable[[], list[Event]]:
        """What ends a job, unless it has ended (or is gone) by then."""

        def make() -> list[Event]:
            now = self.find(job.tenant_id, job.id)
            is_over = now is None or now.status in JOB_ENDS
            return [] if is_over else [JobEnded(job_id=job.id, end=end)]

        return make

    async def _end(self, job: Job, end: JobEnd) -> None:
        self._queue.forget(job)
        await self._record(job, self._ending(job, end))
        self._followers.tell(job.id)

    async def _record(self, job: Job, make: Callable[[], list[Event]]) -> None:
        """Record what became of a job, however long the disk is full."""
        wait_s = 1.0
        while True:
            try:
                await self._change(job, make, _ACTOR)
                return
            except NotFound:
                return  # its tenant was removed meanwhile
            except (DiskFull, CapacityExhausted, AuditUnavailable) as error:
                _log.warning("job %s: what became of it waits: %s", job.id, error.detail)
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, _RETRY_S_MAX)

    # --- helpers -----------------------------------------------------------------------------

    async def _change(self, job: Job, make: Callable[[], list[Event]], actor: str) -> None:
        await self._store.registry.change(
            make, tenant_id=job.tenant_id, actor=actor, obj=job.model_id
        )

    async def _write(self, tenant_id: str, head: bytes, payload: bytes) -> Blob:
        async with self._store.blobs.writer(tenant_id) as writer:
            await writer.write(head)
            await writer.write(payload)
            return await writer.commit()

    def _repeated(self, tenant_id: str, principal_id: str, key: str, digest: str) -> Job | None:
        """The job this idempotency key stands for already."""
        if not key:
            return None
        for job in self._store.registry.snapshot.jobs(tenant_id):
            if (job.created_by, job.idempotency_key) == (principal_id, key):
                if job.request_digest != digest:
                    raise IdempotencyKeyReused(
                        "This Idempotency-Key came with another request before.",
                        hint="use a new key for a new request",
                        job=job.id,
                    )
                return job
        return None

    def _require_room(self, tenant_id: str) -> None:
        jobs = self._store.registry.snapshot.jobs(tenant_id)
        unfinished = sum(job.status not in JOB_ENDS for job in jobs)
        if unfinished >= self._settings.queued_max:
            raise QuotaExceeded(
                f"{unfinished} jobs of this tenant wait or run; it may have "
                f"{self._settings.queued_max}.",
                hint="wait for jobs to end, or have IT raise jobs.queued_max",
            )


def _only(event: Event) -> list[Event]:
    return [event]


def _failed(error: ApplianceError) -> JobEnd:
    """The end of a job that met a problem."""
    seq = error.extensions.get("audit_seq", 0)
    return JobEnd(status="failed", problem=kept_problem(error), audit_seq=int(seq))
