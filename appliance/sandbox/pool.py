"""The pool: which sandbox serves a call, when one is made and when one ends.

Owns: reuse (same version only), the bounded queue, caps, idle time, eviction, draining.
Never: talks to Podman or the runner; sees a tenant's name.
Read next: ``executor`` (what it drives), ``zygotes`` (what is ready before it is asked for),
``keeper`` (reservations, and the regular look at what waits).

A call becomes a waiter, served in turn (``waiting.Waiting``): by an idle sandbox of its version,
else by the right to make one (if need be by ending an idle sandbox of another version), else when a
sandbox is freed.
A waiter whose own version is at its cap does not hold up those behind it. A sandbox that is idle
for a moment is frozen until it is used again.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from appliance import clock, config
from appliance.errors import (
    ApplianceError,
    CapacityExhausted,
    DeadlinePassed,
    Draining,
    GpuLost,
)
from appliance.sandbox.executor import Executor, Sandbox
from appliance.sandbox.gpu_place import Fill, Hold, Places
from appliance.sandbox.keeper import Keeper, Load, Pace, free_bytes_min
from appliance.sandbox.lease import Lease
from appliance.sandbox.nesting import Holders, Line
from appliance.sandbox.spec import ReservationInfo, SandboxInfo, SandboxSpec
from appliance.sandbox.waiting import IN_VAIN, Entry, Grant, Waiter, Waiting, is_in_vain
from appliance.sandbox.zygotes import Zygotes

_LOG = logging.getLogger(__name__)


class Pool:
    """All sandboxes of this appliance; used from one event loop."""

    def __init__(
        self, executor: Executor, settings: config.Sandbox, *, pace: Pace | None = None
    ) -> None:
        """Make an empty pool.

        Args:
            executor: a started engine.
            settings: the ``[sandbox]`` section.
            pace: how soon and how often idle sandboxes are seen to.
        """
        cores = len(os.sched_getaffinity(0))
        self._executor = executor
        self._settings = settings
        self._instances_max = settings.instances_max or 4 * cores
        self._per_version_max = settings.instances_per_version_max or cores
        self._creations = asyncio.Semaphore(2 * cores)
        self._zygotes = Zygotes(executor, settings)
        self._pace = pace or Pace()
        asked = settings.reserved_max if settings.reserved_max >= 0 else self._instances_max // 2
        # One place at least is for whoever has no reservation.
        self.reserved_max = min(asked, self._instances_max - 1)
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self._keeper = Keeper(
            self,
            reserved_max=self.reserved_max,
            per_version_max=self._per_version_max,
            free_bytes_min=free_bytes_min(settings.free_memory_bytes_min, total),
            pace=self._pace,
        )
        self._entries: dict[str, Entry] = {}
        self._counts: dict[str, int] = {}  # sandboxes of a version, those being made included
        self._waiters = Waiting()
        self._holders = Holders(self._instances_max)
        self._lent: Counter[str] = Counter()  # sandboxes granted to waiters, by tenant
        self._gpus_awaited = False  # somebody ahead in the queue waits for GPUs
        self._freeing: set[Hold] = set()  # of idle sandboxes that are ended for their GPUs
        self._background: set[asyncio.Task[None]] = set()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._leases = 0
        self._closing = False

    @asynccontextmanager
    async def lease(
        self,
        spec: SandboxSpec,
        load: Load,
        *,
        spare: bool = False,
        deadline: float | None = None,
        line: Line | None = None,
    ) -> AsyncIterator[Lease]:
        """A loaded sandbox of this version for the length of the block.

        Args:
            spec: the version's sandbox.
            load: makes the tar stream of the model's files; called once per cold start, and again
                if the load in a sandbox made ahead failed.
            spare: take only what nobody would miss: never wait, nor end another's idle sandbox.
            deadline: loop time after which nobody wants it any more.
            line: the call it is for, where that is made by a call or may make some.

        Raises:
            CapacityExhausted: the queue is full, the wait was too long, nothing is to spare, or
                what it waits for is held by calls that wait for it.
            DeadlinePassed: it was not there in time.
            Draining: the pool is closing.
            ApplianceError: what ``Executor.create`` and ``Sandbox.load`` raise.
        """
        if spare and not self._can_spare(spec):
            raise CapacityExhausted("No sandbox is to spare.")
        self._leases += 1
        self._quiet.clear()
        self._keeper.start()
        try:
            started = clock.monotonic_ns()
            grant = await self._wait_for_grant(Waiter(spec=spec, line=line), deadline)
            granted = clock.monotonic_ns()
            cold = grant.entry is None
            try:
                entry = grant.entry or await self._make(spec, load, grant)
            except BaseException:
                self._lent[spec.tenant_id] -= 1
                raise
            entry.line = line
            lease = Lease(
                entry.sandbox,
                cold=cold,
                ahead=entry.ahead,
                queue_us=(granted - started) // 1000,
                load_us=(clock.monotonic_ns() - granted) // 1000 if cold else 0,
                is_wanted=lambda: not entry.retiring,
            )
            try:
                if deadline is not None and asyncio.get_running_loop().time() >= deadline:
                    raise DeadlinePassed("The call's deadline passed while its model was loaded.")
                yield lease
            finally:
                self._lent[spec.tenant_id] -= 1
                self._release(entry, lease)
        finally:
            self._leases -= 1
            if line is not None:
                self._holders.end(line)
                self._dispatch()
            if not self._leases:
                self._quiet.set()

    @property
    def waiting(self) -> int:
        """Calls waiting for a sandbox now."""
        return len(self._waiters)

    @property
    def places(self) -> Places:
        """The GPUs there are and who holds them."""
        return self._executor.places

    async def gpu_fills(self) -> dict[str, Fill]:
        """How full each GPU is now, by its id; without those of which nothing tells."""
        return await self._executor.gpu_fills()

    @property
    def waiting_for_gpus(self) -> int:
        """Calls of versions with GPUs waiting for a sandbox now."""
        return sum(bool(waiter.spec.resources.gpus) for waiter in self._waiters)

    @property
    def instances_max(self) -> int:
        """How many sandboxes there may be at once."""
        return self._instances_max

    @property
    def per_version_max(self) -> int:
        """How many sandboxes of one version there may be at once."""
        return self._per_version_max

    def reserve(self, spec: SandboxSpec, load: Load, warm: int) -> None:
        """Keep ``warm`` sandboxes of this version loaded, until ``unreserve`` or ``evict``.

        Those that were made for another spec of the version are ended.
        """
        self._end_idle(spec.version_key, but=spec)
        self._keeper.reserve(spec, load, warm)

    def unreserve(self, version_key: str) -> None:
        """Make sandboxes of a version on demand only; no-op if it has no reservation."""
        self._keeper.drop(version_key)

    def reservations(self) -> tuple[ReservationInfo, ...]:
        """Every reservation and how it goes."""
        return self._keeper.list()

    def list(self) -> tuple[SandboxInfo, ...]:
        """Every loaded sandbox and every one made ahead, oldest first."""
        found = [entry.sandbox.info() for entry in self._entries.values()]
        found += self._zygotes.list()
        return tuple(sorted(found, key=lambda info: info.created_ns))

    async def stop(self, sandbox_id: str) -> bool:
        """Destroy one sandbox now, a call in it included; False if there is none of this id."""
        entry = self._entries.get(sandbox_id)
        if entry is None:
            return await self._zygotes.stop(sandbox_id)
        if entry.lent:
            entry.retiring = True
            await entry.sandbox.destroy()
        else:
            await self._end(self._remove(entry))
        return True

    async def evict(self, version_key: str) -> None:
        """Destroy a version's idle sandboxes and, after their call, the busy ones; keep none.

        One that does not end is logged, and leased to nobody: it is no fault of who asked.
        """
        self._keeper.drop(version_key)
        await asyncio.gather(*self._end_idle(version_key), return_exceptions=True)

    def _end_idle(
        self, version_key: str, *, but: SandboxSpec | None = None
    ) -> tuple[asyncio.Task[None], ...]:
        """End a version's idle sandboxes, but those of one spec; busy ones end after their call."""
        mine = [e for e in self._entries.values() if e.spec.version_key == version_key]
        found = [entry for entry in mine if entry.spec != but]
        for entry in found:
            entry.retiring = True
        return tuple(self._spawn(self._end(self._remove(e))) for e in found if not e.lent)

    async def close(self, timeout_s: float = 60.0) -> None:
        """Take no new leases, wait for those out, then destroy everything."""
        self._closing = True
        for waiter in self._waiters:
            if not waiter.grant.done():
                waiter.grant.set_exception(Draining("The appliance is shutting down."))
        self._waiters.clear()
        await self._keeper.close()
        await self._zygotes.close()
        try:
            async with asyncio.timeout(timeout_s):
                await self._quiet.wait()
        except TimeoutError:
            _LOG.warning("%d calls were still in sandboxes when the wait ended", self._leases)
        entries = [self._remove(entry) for entry in list(self._entries.values())]
        await asyncio.gather(*(entry.sandbox.destroy() for entry in entries))
        while self._background:
            await asyncio.gather(*self._background, return_exceptions=True)

    async def _wait_for_grant(self, waiter: Waiter, deadline: float | None) -> Grant:
        spec = waiter.spec
        if self._closing:
            raise Draining("The appliance is shutting down.")
        if refusal := self._executor.places.refusal(spec.resources):
            raise GpuLost(refusal, hint="appliance gpu list")
        self._waiters.add(waiter)
        self._dispatch()
        if waiter.grant.done():
            return waiter.grant.result()
        if self._waiters.of(spec.version_key) > self._settings.queue_max:
            self._waiters.remove(waiter)
            raise CapacityExhausted(
                f"{self._settings.queue_max} calls already wait for this version."
            )
        self._require_hope(waiter)
        loop = asyncio.get_running_loop()
        due = loop.time() + self._settings.queue_timeout_s
        is_late = deadline is not None and deadline < due
        due = due if deadline is None else min(due, deadline)
        timer = loop.call_at(due, self._give_up, waiter, is_late)
        try:
            return await waiter.grant
        except asyncio.CancelledError:
            self._withdraw(waiter)
            raise
        finally:
            timer.cancel()

    def _give_up(self, waiter: Waiter, is_late: bool) -> None:
        """A waiter has waited long enough, or its call is late."""
        if not waiter.grant.done():
            within = f"No sandbox became free within {self._settings.queue_timeout_s} s."
            late = "The call's deadline passed while it waited."
            waiter.grant.set_exception(
                DeadlinePassed(late) if is_late else CapacityExhausted(within)
            )
            self._withdraw(waiter)

    def _withdraw(self, waiter: Waiter) -> None:
        """A waiter gives up; a grant that came at the same moment goes to the next."""
        if self._waiters.remove(waiter):
            self._dispatch()  # it may have held up those behind it
        elif waiter.grant.done() and not waiter.grant.cancelled():
            if waiter.grant.exception() is not None:
                return
            grant = waiter.grant.result()
            self._lent[waiter.spec.tenant_id] -= 1
            if grant.entry is not None:
                self._shelve(grant.entry)
            else:
                self._spawn(self._give_back(waiter.spec.version_key, grant))
                return
            self._dispatch()

    async def _give_back(self, key: str, grant: Grant) -> None:
        """Return a right to make a sandbox that was not used."""
        if grant.victim is not None:
            await self._replace(grant.victim)
        self._give_gpus(grant.hold)
        self._forget(key)

    async def _replace(self, victim: Entry) -> None:
        """End a sandbox whose place another got already."""
        try:
            await victim.sandbox.destroy()
        finally:
            self._give_gpus(victim.hold)

    def _give_gpus(self, hold: Hold | None) -> None:
        if hold is not None:
            self._freeing.discard(hold)
            self._executor.places.give(hold)

    def _dispatch(self) -> None:
        """Serve every waiter that can be served now, each in its turn."""
        self._gpus_awaited = False
        for waiter in self._waiters.in_turn(self._lent):
            if waiter.grant.done():
                self._waiters.remove(waiter)
                continue
            grant = self._grant(waiter.spec) if self._holders.may_have(waiter.line) else None
            if grant is not None:
                self._holders.begin(waiter.line)
                self._lent[waiter.spec.tenant_id] += 1
                waiter.grant.set_result(grant)
                self._waiters.remove(waiter)

    def _require_hope(self, waiter: Waiter) -> None:
        """Return unless a call below others waits for what is held by calls that wait."""
        is_full = sum(self._counts.values()) >= self._instances_max and self._least_needed() is None
        full = {key for key, count in self._counts.items() if count >= self._per_version_max}
        every = (self._waiters, self._entries.values(), self._counts, self._holders)
        if is_in_vain(waiter, *every, full=full, is_full=is_full):
            self._waiters.remove(waiter)
            raise CapacityExhausted(IN_VAIN, hint="have IT raise sandbox.instances_max")

    def _grant(self, spec: SandboxSpec) -> Grant | None:
        key = spec.version_key
        for entry in reversed(list(self._entries.values())):  # the last used first
            if entry.lent or entry.spec.version_key != key:
                continue
            if not entry.sandbox.alive or entry.retiring or entry.spec != spec:
                self._spawn(self._end(self._remove(entry)))
                continue
            self._lend(entry)
            return Grant(entry=entry)
        return self._right(spec)

    def _right(self, spec: SandboxSpec) -> Grant | None:
        """The right to make a sandbox of a version, if there is a place or can be."""
        key = spec.version_key
        if self._counts.get(key, 0) >= self._per_version_max:
            return None
        hold = self._take_gpus(spec)
        if hold is None:
            return None
        victim = None
        if sum(self._counts.values()) >= self._instances_max:
            victim = self._least_needed()
            if victim is None:
                self._give_gpus(hold)
                return None
            self._remove(victim)
            self._drop_count(victim.spec.version_key)
        self._counts[key] = self._counts.get(key, 0) + 1
        return Grant(victim=victim, hold=hold)

    def _can_spare(self, spec: SandboxSpec) -> bool:
        if self._waiters or self._closing:
            return False
        if any(not entry.lent and entry.spec == spec for entry in self._entries.values()):
            return True
        is_room = sum(self._counts.values()) < self._instances_max - 1 and not spec.resources.gpus
        return is_room and self._counts.get(spec.version_key, 0) < self._per_version_max

    def _take_gpus(self, spec: SandboxSpec) -> Hold | None:
        """The GPUs a new sandbox of this version gets; ``None`` while it has to wait for them.

        One that waits is not overtaken by a later one, or who needs several would wait for ever.
        While one waits, idle sandboxes that hold what it could use are ended one by one.
        """
        places, resources = self._executor.places, spec.resources
        if not resources.gpus:
            return places.take(spec.tenant_id, resources)
        hold = None if self._gpus_awaited else places.take(spec.tenant_id, resources)
        if hold is not None:
            return hold
        self._gpus_awaited = True
        if not self._freeing:
            for entry in self._entries.values():
                free = not entry.lent and not self._is_reserved(entry)
                if free and places.can_use(entry.hold, resources):
                    self._freeing.add(entry.hold)
                    self._spawn(self._end(self._remove(entry)))
                    break
        return None

    def _least_needed(self) -> Entry | None:
        """The idle sandbox that was unused longest, of those no reservation keeps."""
        idle = (e for e in self._entries.values() if not e.lent and not self._is_reserved(e))
        return next(idle, None)

    def _is_reserved(self, entry: Entry) -> bool:
        key = entry.spec.version_key
        return not entry.retiring and self.ready(key) <= self._keeper.wanted(key)

    def _lend(self, entry: Entry) -> None:
        entry.cancel_timers()
        entry.lent = True
        # Entries are kept in order of use: the first idle one is the longest unused.
        self._entries.pop(entry.sandbox.id, None)
        self._entries[entry.sandbox.id] = entry

    async def _make(self, spec: SandboxSpec, load: Load, grant: Grant) -> Entry:
        """Make and load a sandbox; the right to do so is returned if it fails."""
        sandbox: Sandbox | None = None
        hold = grant.hold or Hold(tenant_id=spec.tenant_id, units=(), share_bytes=0)
        try:
            if grant.victim is not None:
                await asyncio.shield(self._spawn(self._replace(grant.victim)))
            with self._zygotes.callers_start():
                sandbox = await self._zygotes.bound(spec, load)
                ahead = sandbox is not None
                if sandbox is None:
                    async with self._creations:
                        sandbox = await self._executor.create(replace(spec, gpu_units=hold.units))
                    await sandbox.load(load())
            self._zygotes.loaded(spec, sandbox.modules, ahead=ahead)
        except BaseException:
            self._spawn(self._undo(spec.version_key, sandbox, hold))
            raise
        entry = Entry(sandbox=sandbox, spec=spec, hold=hold, ahead=ahead)
        self._entries[sandbox.id] = entry
        return entry

    async def _undo(self, key: str, sandbox: Sandbox | None, hold: Hold) -> None:
        if sandbox is not None:
            await sandbox.destroy()
        self._give_gpus(hold)
        self._forget(key)

    def _release(self, entry: Entry, lease: Lease) -> None:
        """A lease ended: keep the sandbox if it is clean and wanted, else end it."""
        if entry.sandbox.id not in self._entries:
            return  # close() took it already
        reusable = lease.is_clean and not entry.retiring and not self._closing
        if not reusable or (entry.spec.idle_timeout_s == 0):
            self._spawn(self._end(self._remove(entry)))
            return
        self._keeper.served(entry.spec.version_key)
        self._shelve(entry)
        self._dispatch()

    def _shelve(self, entry: Entry) -> None:
        """Make an entry idle and start its clocks."""
        entry.lent, entry.line = False, None
        self._entries.pop(entry.sandbox.id, None)
        self._entries[entry.sandbox.id] = entry
        loop = asyncio.get_running_loop()
        entry.freezer = loop.call_later(self._pace.freeze_s, self._freeze, entry)
        entry.timer = loop.call_later(entry.spec.idle_timeout_s, self._expire, entry)

    def _freeze(self, entry: Entry) -> None:
        entry.freezer = None
        if not entry.lent and entry.sandbox.id in self._entries:
            self._spawn(self._frozen(entry))

    async def _frozen(self, entry: Entry) -> None:
        if not entry.lent:  # nothing may come between this and what it awaits first
            await entry.sandbox.freeze()

    def _expire(self, entry: Entry) -> None:
        entry.timer = None
        if not entry.lent and entry.sandbox.id in self._entries and not self._is_reserved(entry):
            self._spawn(self._end(self._remove(entry)))

    # --- what the keeper asks -----------------------------------------------------------------

    def held(self, version_key: str) -> int:
        """See ``keeper.Host``."""
        return self._counts.get(version_key, 0)

    def ready(self, version_key: str) -> int:
        """See ``keeper.Host``."""
        return sum(
            1
            for e in self._entries.values()
            if e.spec.version_key == version_key and not e.retiring and e.sandbox.alive
        )

    async def prepare(self, spec: SandboxSpec, load: Load) -> bool:
        """See ``keeper.Host``."""
        grant = None if self._closing else self._right(spec)
        if grant is None:
            return False
        entry = await self._make(spec, load, grant)
        self._shelve(entry)
        self._dispatch()
        return True

    async def look(self) -> tuple[tuple[str, float], ...]:
        """See ``keeper.Host``."""
        found = []
        for entry in [entry for entry in self._entries.values() if not entry.lent]:
            moved = entry.sandbox.alive and await entry.sandbox.has_moved()
            if entry.lent or entry.sandbox.id not in self._entries:
                continue
            if moved:
                _LOG.warning("sandbox %s worked while it was frozen; ended", entry.sandbox.id)
            if moved or not entry.sandbox.alive:
                age_s = (clock.now_ns() - entry.sandbox.info().created_ns) / 1e9
                found.append((entry.spec.version_key, age_s))
                self._spawn(self._end(self._remove(entry)))
        return tuple(found)

    async def shed(self) -> bool:
        """See ``keeper.Host``."""
        if await self._zygotes.shed():
            return True
        entry = self._least_needed()
        if entry is not None:
            await self._end(self._remove(entry))
        return entry is not None

    def let_go(self, version_key: str) -> None:
        """See ``keeper.Host``."""
        for entry in [*self._entries.values()]:
            if entry.spec.version_key == version_key and not entry.lent and entry.timer is None:
                entry.timer = asyncio.get_running_loop().call_later(
                    entry.spec.idle_timeout_s, self._expire, entry
                )

    def _remove(self, entry: Entry) -> Entry:
        """Take an entry out of the pool's sight; it still counts until it is gone."""
        entry.cancel_timers()
        self._entries.pop(entry.sandbox.id, None)
        return entry

    async def _end(self, entry: Entry) -> None:
        """Destroy a removed entry; then its place is free."""
        try:
            await self._replace(entry)
        finally:
            self._forget(entry.spec.version_key)

    def _forget(self, key: str) -> None:
        self._drop_count(key)
        self._dispatch()
        self._keeper.wake()

    def _drop_count(self, key: str) -> None:
        left = self._counts.get(key, 0) - 1
        if left > 0:
            self._counts[key] = left
        else:
            self._counts.pop(key, None)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Work that outlives the call it came from; ``close`` waits for it."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._spawned_ended)
        return task

    def _spawned_ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            detail = error.detail if isinstance(error, ApplianceError) else repr(error)
            _LOG.error("ending a sandbox failed: %s", detail)
