"""Schedules: a call with a kept body, or a table in a folder, submitted each time it is due.

Owns: what is due, what happens to times nobody was there for, and the commands on schedules.
Never: runs a job or a batch, chooses a version (``routing``), or reads cron fields.
Read next: ``timetable`` (when), ``store.schedules`` (what events do), ``jobs`` (what then happens).

A time that is due and its job are one unit in the ledger: whatever is killed when, a time has one
job or none yet, never two; so it is with a batch, whose table is taken before that. What becomes
of the job ``jobs`` says: it is handed to its model once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

from appliance import batch_rows, clock, config
from appliance.batch_records import Batch, BatchWish
from appliance.batches import Batches
from appliance.errors import (
    ApplianceError,
    Gone,
    InputInvalid,
    NotFound,
    QuotaExceeded,
    RevisionStale,
    TooLarge,
    UnsupportedMedia,
)
from appliance.events import (
    Event,
    ScheduleCreated,
    SchedulePaused,
    ScheduleRan,
    ScheduleRemoved,
    ScheduleResumed,
    ScheduleStopped,
)
from appliance.jobs import Jobs
from appliance.records import JOB_ENDS, LIVE, Blob, Job, Version
from appliance.routing import Routing
from appliance.standing import CatchUp, Schedule, ScheduledBatch, ScheduleRun
from appliance.store import Store
from appliance.store.schedules import head_of_body
from appliance.timetable import Timetable, zone_from_name

_log = logging.getLogger(__name__)
_ACTOR = "appliance"
_TICK_S = 1.0
_GRACE_NS = 60 * 1_000_000_000
"""How late a time may be noticed and still count as noticed in time."""
_TIMETABLES_MAX = 1000
_SKIPPED = (NotFound, Gone, QuotaExceeded, InputInvalid, TooLarge, UnsupportedMedia)
"""What keeps a time from its job for good; anything else is tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a schedule is to be; see ``standing.Schedule``."""

    tenant_id: str
    model_id: str
    target: str
    cron: str
    timezone: str
    content_type: str = ""
    body: bytes = b""
    batch: ScheduledBatch | None = None
    catch_up: CatchUp = "one"
    overlaps: bool = False
    repeatable: bool = False


class Schedules:
    """Submits what is due; one per unsealed node."""

    def __init__(
        self,
        store: Store,
        jobs: Jobs,
        batches: Batches,
        routing: Routing,
        settings: config.Schedules,
        *,
        now_ns: Callable[[], int] = clock.now_ns,
    ) -> None:
        """Make it; ``follow`` runs it.

        Args:
            store: where schedules are.
            jobs: takes on what is due,
            batches: or does, where it is a table.
            routing: chooses the version for a schedule that names none.
            settings: limits.
            now_ns: the wall time that decides what is due.
        """
        self._store = store
        self._jobs = jobs
        self._batches = batches
        self._submitting: dict[str, asyncio.Task[None]] = {}
        self._routing = routing
        self._settings = settings
        self._now_ns = now_ns
        self._timetables: dict[tuple[str, str], Timetable] = {}
        self._due: dict[str, tuple[int, int]] = {}  # schedule: (since, when it is due next)

    # --- what owners do ------------------------------------------------------------------------

    async def create(self, wish: Wish, *, actor: str) -> Schedule:
        """A new schedule, whose jobs are submitted in the name of ``actor``.

        Raises:
            InputInvalid: the times cannot be read, or the body breaks the version's schema.
            TooLarge: the body is larger than the version takes.
            NotFound, Gone: there is no such version now, or it is retired.
            QuotaExceeded: the tenant has as many schedules as it may.
            DiskFull: the body could not be kept.
        Audit: schedule.created.
        """
        self._timetable(wish.cron, wish.timezone)
        schedule_id = clock.new_id("sch")
        blob = await self._kept(wish, schedule_id) if wish.batch is None else None
        schedule = Schedule(
            id=schedule_id,
            tenant_id=wish.tenant_id,
            model_id=wish.model_id,
            target=wish.target,
            cron=wish.cron,
            timezone=wish.timezone,
            content_type=wish.content_type,
            body=blob,
            batch=wish.batch,
            catch_up=wish.catch_up,
            overlaps=wish.overlaps,
            repeatable=wish.repeatable,
            run_as=actor,
            since_ns=self._now_ns(),
            created_ns=clock.now_ns(),
            created_by=actor,
        )

        def make() -> list[Event]:
            version = self._version(schedule)[0]
            if wish.batch is None:
                self._require_fit(version, wish.content_type, wish.body)
            else:
                self._require_places(schedule, wish.batch)
            known = self._store.registry.snapshot.schedules(wish.tenant_id)
            if len(known) >= self._settings.schedules_max:
                raise QuotaExceeded(
                    f"A tenant has at most {self._settings.schedules_max} schedules.",
                    hint="remove one, or have IT raise schedules.schedules_max",
                )
            return [ScheduleCreated(schedule=schedule)]

        try:
            await self._change(schedule, make, actor)
        except ApplianceError:
            if blob is not None:
                await self._store.blobs.discard(wish.tenant_id, {blob.id})
            raise
        return schedule

    async def _kept(self, wish: Wish, schedule_id: str) -> Blob:
        async with self._store.blobs.writer(wish.tenant_id) as writer:
            await writer.write(head_of_body(schedule_id))
            await writer.write(wish.body)
            return await writer.commit()

    async def pause(self, schedule: Schedule, *, actor: str) -> Schedule:
        """Let nothing be due until it is resumed. Raises NotFound. Audit: schedule.paused."""

        def make() -> list[Event]:
            is_paused = self._required(schedule).state == "paused"
            return [] if is_paused else [SchedulePaused(schedule_id=schedule.id)]

        await self._change(schedule, make, actor)
        return self._required(schedule)

    async def resume(self, schedule: Schedule, *, actor: str) -> Schedule:
        """Go on, in the name of ``actor``; times that passed meanwhile are not made up for.

        Raises:
            NotFound: it was removed, or its model.
        Audit: schedule.resumed.
        """

        def make() -> list[Event]:
            if self._required(schedule).state == "active":
                return []
            if self._stops(schedule, actor) == "model-removed":
                raise NotFound("The model of this schedule was removed.")
            now_ns = self._now_ns()
            return [ScheduleResumed(schedule_id=schedule.id, run_as=actor, since_ns=now_ns)]

        await self._change(schedule, make, actor)
        return self._required(schedule)

    async def run_now(self, schedule: Schedule, *, actor: str) -> Job | Batch:
        """Submit its job or its batch once more, now, in the name of ``actor``, paused or not.

        Raises:
            ApplianceError: as ``Jobs.submit`` and ``Batches.submit`` do.
        Audit: job.queued or batch.queued, and schedule.ran, in one unit.
        """
        return await self._submit(schedule, self._now_ns(), actor, is_manual=True)

    async def remove(self, schedule: Schedule, *, actor: str) -> None:
        """Remove it and its body; jobs it submitted go on. Raises NotFound."""

        def make() -> list[Event]:
            self._required(schedule)
            return [ScheduleRemoved(schedule_id=schedule.id)]

        await self._change(schedule, make, actor)
        if schedule.body is not None:
            await self._store.blobs.discard(schedule.tenant_id, {schedule.body.id})

    def next_ns(self, schedule: Schedule, count: int) -> tuple[int, ...]:
        """When it is due next; nothing for one that is not active."""
        if schedule.state != "active":
            return ()
        since_ns = max(schedule.since_ns, self._now_ns())
        return self._timetable(schedule.cron, schedule.timezone).after(since_ns, count)

    # --- the life of the whole -----------------------------------------------------------------

    async def follow(self) -> None:
        """Submit what is due, for ever."""
        try:
            while True:
                try:
                    await self.look()
                except Exception:  # noqa: BLE001 - it must go on; what is due stays due
                    _log.exception("schedules could not be looked at")
                await asyncio.sleep(_TICK_S)
        finally:
            for task in self._submitting.values():
                task.cancel()

    async def look(self) -> int:
        """Submit what is due now; how many schedules had something."""
        snapshot, count = self._store.registry.snapshot, 0
        if self._jobs.is_draining:
            return 0
        schedules = [s for t in snapshot.tenants() for s in snapshot.schedules(t.id)]
        for gone in self._due.keys() - {schedule.id for schedule in schedules}:
            del self._due[gone]
        for schedule in schedules:
            if schedule.state == "active":
                try:
                    count += await self._look_at(schedule)
                except (NotFound, RevisionStale):
                    continue  # somebody changed or removed it meanwhile
                except ApplianceError as error:
                    _log.warning("schedule %s waits: %s", schedule.id, error.detail)
        return count

    async def _look_at(self, schedule: Schedule) -> bool:
        stops = self._stops(schedule, schedule.run_as)
        if stops:
            await self._record(schedule, ScheduleStopped(schedule_id=schedule.id, reason=stops))
            return True
        if schedule.id in self._submitting:
            return False
        now_ns = self._now_ns()
        known = self._due.get(schedule.id)
        if known is None or known[0] != schedule.since_ns:
            times = self._timetable(schedule.cron, schedule.timezone).after(schedule.since_ns, 1)
            known = schedule.since_ns, times[0] if times else 1 << 63
            self._due[schedule.id] = known
        if known[1] > now_ns:
            return False
        await self._fall_due(schedule, now_ns)
        return True

    async def _fall_due(self, schedule: Schedule, now_ns: int) -> None:
        timetable = self._timetable(schedule.cron, schedule.timezone)
        count, last_ns = timetable.between(schedule.since_ns, now_ns)
        is_late = now_ns - last_ns > _GRACE_NS
        if is_late and schedule.catch_up == "none":
            await self._skip(schedule, ScheduleRun(due_ns=last_ns, code="missed", count=count))
            return
        if count > 1:
            _, before_ns = timetable.between(schedule.since_ns, last_ns - 1)
            missed = ScheduleRun(due_ns=before_ns, code="missed", count=count - 1)
            await self._skip(schedule, missed)
        if not schedule.overlaps and self._is_running(schedule):
            await self._skip(schedule, ScheduleRun(due_ns=last_ns, code="overlap"))
            return
        if schedule.batch is None:
            await self._submit_or_skip(schedule, last_ns)
            return
        # A table may take long to be taken: no other schedule waits for it meanwhile.
        task = asyncio.create_task(self._submit_or_skip(schedule, last_ns))
        self._submitting[schedule.id] = task
        task.add_done_callback(partial(self._submitted, schedule))

    def _submitted(self, schedule: Schedule, task: asyncio.Task[None]) -> None:
        del self._submitting[schedule.id]
        error = None if task.cancelled() else task.exception()
        if isinstance(error, ApplianceError) and not isinstance(error, NotFound | RevisionStale):
            _log.warning("schedule %s waits: %s", schedule.id, error.detail)
        elif error is not None and not isinstance(error, ApplianceError):
            _log.error("schedule %s", schedule.id, exc_info=error)

    async def _submit_or_skip(self, schedule: Schedule, due_ns: int) -> None:
        try:
            await self._submit(schedule, due_ns, schedule.run_as)
        except _SKIPPED as error:
            await self._skip(schedule, ScheduleRun(due_ns=due_ns, code=error.slug))

    async def _submit(
        self, schedule: Schedule, due_ns: int, actor: str, *, is_manual: bool = False
    ) -> Job | Batch:
        """Queue the job or batch of one time; the time and it are recorded as one."""
        if schedule.batch is not None:
            return await self._submit_batch(
                schedule, schedule.batch, due_ns, actor, is_manual=is_manual
            )
        version, revision = self._version(schedule)

        def also(job: Job) -> list[Event]:
            run = ScheduleRun(due_ns=due_ns, code="started", job_id=job.id, is_manual=is_manual)
            return self._ran(schedule, run)

        body = await self._body(schedule)
        self._require_fit(version, schedule.content_type, body)
        job, _is_new = await self._jobs.submit(
            principal_id=actor,
            version=version,
            target=schedule.target,
            content_type=schedule.content_type,
            body=body,
            idempotency_key=f"{schedule.id}/{due_ns}" if schedule.repeatable else "",
            route_revision=revision,
            scheduled_by=schedule.id,
            also=also,
        )
        return job

    async def _submit_batch(
        self,
        schedule: Schedule,
        wished: ScheduledBatch,
        due_ns: int,
        actor: str,
        *,
        is_manual: bool,
    ) -> Batch:
        version, plan = self._version(schedule)[0], wished.plan

        def also(batch: Batch) -> list[Event]:
            run = ScheduleRun(due_ns=due_ns, code="started", batch_id=batch.id, is_manual=is_manual)
            return self._ran(schedule, run)

        if not wished.is_form_told:
            plan = replace(plan, form=batch_rows.form_of(version.manifest))
        wish = BatchWish(
            principal_id=actor,
            version=version,
            plan=plan,
            target=schedule.target,
            taken_from=place_at(wished.taken_from, due_ns, schedule.timezone),
            put_into=place_at(wished.put_into, due_ns, schedule.timezone),
            scheduled_by=schedule.id,
        )
        batch, _is_new = await self._batches.submit(wish, also=also)
        return batch

    def _ran(self, schedule: Schedule, run: ScheduleRun) -> list[Event]:
        self._require_due(schedule, run.due_ns, is_manual=run.is_manual)
        return [ScheduleRan(schedule_id=schedule.id, run=run)]

    async def _body(self, schedule: Schedule) -> bytes:
        if schedule.body is None:
            return b""
        skipped = len(head_of_body(schedule.id))
        pieces = self._store.blobs.read(schedule.tenant_id, schedule.body.id, offset=skipped)
        return b"".join([piece async for piece in pieces])

    async def _skip(self, schedule: Schedule, run: ScheduleRun) -> None:
        await self._record(schedule, ScheduleRan(schedule_id=schedule.id, run=run))

    async def _record(self, schedule: Schedule, event: Event) -> None:
        def make() -> list[Event]:
            due_ns = event.run.due_ns if isinstance(event, ScheduleRan) else 1 << 63
            self._require_due(schedule, due_ns, is_manual=False)
            return [event]

        await self._change(schedule, make, _ACTOR)

    # --- helpers -------------------------------------------------------------------------------

    def _require_due(self, schedule: Schedule, due_ns: int, *, is_manual: bool) -> None:
        """Return if a time still is due; asked under the registry's lock."""
        now = self._required(schedule)
        if not is_manual and (now.state != "active" or now.since_ns >= due_ns):
            raise RevisionStale("The schedule was changed, or this time is dealt with.")

    def _require_fit(self, version: Version, content_type: str, body: bytes) -> None:
        """Return if a version takes a body. Raises InputInvalid, TooLarge."""
        most = version.manifest.limits.body_bytes_max
        if len(body) > most:
            raise TooLarge(
                f"The body has more than the {most} bytes that version {version.number} takes.",
                limit_bytes=most,
            )
        self._jobs.require_input(version, content_type, body)

    def _require_places(self, schedule: Schedule, wished: ScheduledBatch) -> None:
        """Return if the tenant may use the folders of these files. Raises InputInvalid."""
        for place, is_written in ((wished.taken_from, False), (wished.put_into, True)):
            if place:
                there = place_at(place, schedule.since_ns, schedule.timezone)
                self._batches.require_folder(schedule.tenant_id, there, is_written=is_written)

    def _stops(self, schedule: Schedule, principal_id: str) -> str:
        """Why a schedule cannot go on in somebody's name; empty if it can."""
        snapshot = self._store.registry.snapshot
        model = snapshot.model_by_id(schedule.model_id)
        if model is None or model.removed_ns:
            return "model-removed"
        key = snapshot.key(principal_id)
        if key is not None and key.revoked_ns:
            return "key-revoked"
        return "key-expired" if key is not None and key.expires_ns <= clock.now_ns() else ""

    def _is_running(self, schedule: Schedule) -> bool:
        snapshot = self._store.registry.snapshot
        jobs, batches = snapshot.jobs(schedule.tenant_id), snapshot.batches(schedule.tenant_id)
        every: tuple[Job | Batch, ...] = (*jobs, *batches)
        return any(one.scheduled_by == schedule.id and one.status not in JOB_ENDS for one in every)

    def _version(self, schedule: Schedule) -> tuple[Version, int]:
        """The version to call now, and the revision of the route that chose it, 0 for none.

        Raises:
            NotFound: there is none.
            Gone: it is retired.
        """
        snapshot, revision = self._store.registry.snapshot, 0
        target = schedule.target
        if target.startswith(":"):
            number = int(target[1:])
        else:
            choice = None
            if not target and schedule.batch is None:  # a route shares out calls, not tables
                choice = self._routing.choose(schedule.model_id, schedule.run_as, lambda _: "")
            if choice is not None:
                number, revision = choice[0], choice[1].route_revision
            else:
                alias = snapshot.alias(schedule.model_id, target.removeprefix("@") or LIVE)
                number = alias.number if alias else 0
        version = snapshot.version(schedule.model_id, number)
        if version is None:
            raise NotFound("The model has no such version or alias now.")
        if version.retired_ns:
            raise Gone(f"Version {number} is retired.", number=number)
        return version, revision

    def _timetable(self, cron: str, timezone: str) -> Timetable:
        key = cron, timezone
        if key not in self._timetables:
            if len(self._timetables) >= _TIMETABLES_MAX:
                self._timetables.clear()
            self._timetables[key] = Timetable(cron, timezone)
        return self._timetables[key]

    def _required(self, schedule: Schedule) -> Schedule:
        found = self._store.registry.snapshot.schedule(schedule.tenant_id, schedule.id)
        if found is None:
            raise NotFound("There is no such schedule.")
        return found

    async def _change(
        self, schedule: Schedule, make: Callable[[], list[Event]], actor: str
    ) -> None:
        await self._store.registry.change(
            make, tenant_id=schedule.tenant_id, actor=actor, obj=schedule.id
        )


def place_at(place: str, due_ns: int, timezone: str) -> str:
    """A place with ``{date}`` (2026-01-31) and ``{time}`` (0200) of when it was due."""
    due = datetime.fromtimestamp(due_ns // 1_000_000_000, zone_from_name(timezone))
    return place.replace("{date}", f"{due:%Y-%m-%d}").replace("{time}", f"{due:%H%M}")
