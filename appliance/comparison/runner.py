"""Comparisons at work: taken on durably, run in the background, kept for a while.

Owns: what a comparison goes through, which runs next, what a restart does to it, and its files.
Never: parses HTTP, decides who may ask, or computes a measure.
Read next: ``passes`` and ``replay`` (the work), ``store.shelf`` (where it lies).

    starting --> processing --> succeeded | failed | canceled

Its calls use few of the sandboxes there may be, so that callers find room. One that a restart cut
off in the middle fails as ``interrupted``, because its calls may have had effects; one that had
not started runs. The data set is deleted when its comparison ends, the report after a day.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec

from appliance import clock, config
from appliance.comparison import dataset, passes, pieces
from appliance.comparison.calls import Calls
from appliance.comparison.record import (
    Comparison,
    bytes_from_comparison,
    comparison_from_bytes,
)
from appliance.comparison.replay import ReplayReport, replay
from appliance.comparison.report import ComparisonReport, report_of, show_inputs
from appliance.errors import (
    ApplianceError,
    AuditUnavailable,
    CapacityExhausted,
    DiskFull,
    Draining,
    HostError,
    Interrupted,
    NotFound,
    QuotaExceeded,
    kept_problem,
)
from appliance.events import ComparisonEnded, ComparisonQueued, ComparisonsRemoved
from appliance.followers import Followers
from appliance.invoke import Invoker
from appliance.records import JobStatus
from appliance.samples import Samples
from appliance.sandbox.pool import Pool
from appliance.store import Store

_log = logging.getLogger(__name__)
_ACTOR = "appliance"
_DIGEST_LABEL = "comparison-data"
_TICK_S = 1.0
_SWEEP_S = 30.0
_RETRY_S_MAX = 30.0
_TAKE_UP_S = 30.0
_HEAD, _REPORT = "head", "report"


class Comparisons:
    """Takes on, runs, cancels and forgets comparisons; one per unsealed node."""

    def __init__(
        self,
        store: Store,
        invoker: Invoker,
        samples: Samples,
        pool: Callable[[], Pool],
        settings: config.Settings,
    ) -> None:
        """Make it; ``run`` runs it."""
        self._store = store
        self._invoker = invoker
        self._samples = samples
        self._pool = pool
        self._settings = settings.comparisons
        self._shelf = store.comparisons
        self._known: dict[str, dict[str, Comparison]] = {}
        self._done: dict[str, int] = {}
        self._calls: dict[str, Calls] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._canceled: set[str] = set()
        self._settling: set[str] = set()
        self._arriving: set[str] = set()
        self._slots: asyncio.Semaphore | None = None
        self._followers = Followers()
        self._wake = asyncio.Event()
        self._taken_up = asyncio.Event()
        self.is_draining = False

    @property
    def settings(self) -> config.Comparisons:
        """The limits in force."""
        return self._settings

    # --- what callers do ---------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def received(
        self, comparison: Comparison, chunks: AsyncIterator[bytes]
    ) -> AsyncIterator[tuple[Comparison, dataset.Rows]]:
        """A comparison with its data set, which is kept as it arrives and can be read to its end.

        If it is not submitted within the block, nothing of it stays.

        Raises:
            InputInvalid, TooLarge: as ``dataset.opened``.
            DiskFull, Draining, QuotaExceeded: it is not taken on.
        """
        await self.taken_up()
        self._require_room(comparison.tenant_id)
        try:
            found = await pieces.put(self._shelf, comparison.tenant_id, comparison.id, chunks)
            digest = self._store.keyring.digest(comparison.tenant_id, _DIGEST_LABEL, found.sha256)
            comparison = replace(comparison, data_bytes=found.size_bytes, data_digest=digest)
            async with self._opened(comparison) as rows:
                await rows.require_readable()
                yield replace(comparison, rows=rows.facts.count), rows
        finally:
            if self.find(comparison.tenant_id, comparison.id) is None:
                await asyncio.shield(self._remove(comparison.tenant_id, comparison.id))

    async def submit(self, comparison: Comparison) -> Comparison:
        """Take a comparison on.

        Args:
            comparison: what is asked; its rows are counted, its data set received and its targets
                callable.

        Raises:
            QuotaExceeded: the tenant has as many unfinished comparisons as it may.
            DiskFull, Draining: it was not taken on.
        Audit: comparison.queued, before this returns.
        """
        await self.taken_up()
        tenant_id = comparison.tenant_id
        self._require_room(tenant_id)
        event = ComparisonQueued(
            comparison_id=comparison.id,
            source=comparison.source,
            targets=tuple(f"{one.model_id}/{one.number}" for one in comparison.targets),
            rows=comparison.rows,
            data_bytes=comparison.data_bytes,
            data_digest=comparison.data_digest,
        )
        self._arriving.add(comparison.id)  # nobody starts it, and saves it so, before it is saved
        self._keep(comparison)
        try:
            await self._store.ledger.append(
                event, tenant_id=tenant_id, actor=comparison.created_by, object=tenant_id
            )
            await self._save(comparison)  # last: what lies there is run by the next start
        except BaseException:
            self._forget(comparison)
            await self._shelf.remove(tenant_id, _names(comparison))
            raise
        finally:
            self._arriving.discard(comparison.id)
        self._wake.set()
        return comparison

    async def taken_up(self) -> None:
        """Return once what an earlier run left is known again: a moment after the start."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TAKE_UP_S):
                await self._taken_up.wait()

    def find(self, tenant_id: str, comparison_id: str) -> Comparison | None:
        """A comparison as it is now."""
        return self._known.get(tenant_id, {}).get(comparison_id)

    def all(self, tenant_id: str) -> Sequence[Comparison]:
        """A tenant's comparisons, oldest first."""
        return sorted(self._known.get(tenant_id, {}).values(), key=lambda one: one.created_ns)

    def done(self, comparison: Comparison) -> int:
        """How much of ``total`` is done."""
        if comparison.status == "succeeded":
            return comparison.total
        return self._done.get(comparison.id, 0)

    async def report(self, comparison: Comparison) -> ComparisonReport | ReplayReport | None:
        """The report of one that succeeded, while it is kept; of any other ``None``."""
        if comparison.status != "succeeded":
            return None
        try:
            text = await self._shelf.get(comparison.tenant_id, f"{comparison.id}.{_REPORT}")
        except NotFound:
            return None
        if comparison.source == "replay":
            return msgspec.json.decode(text, type=ReplayReport)
        return msgspec.json.decode(text, type=ComparisonReport)

    async def changed(self, comparison: Comparison, timeout_s: float) -> Comparison | None:
        """It once it is other than given, or as it is after a time; ``None`` if forgotten."""
        look = partial(self.find, comparison.tenant_id, comparison.id)
        return await self._followers.changed(comparison.id, look, comparison, timeout_s)

    async def cancel(self, comparison: Comparison) -> Comparison:
        """Cancel it; one that ended stays as it is. Audit: comparison.ended."""
        task = self._running.get(comparison.id)
        if task is not None:
            if comparison.id not in self._settling:
                self._canceled.add(comparison.id)
                task.cancel()
            await asyncio.wait([task])
        else:
            await self._end(comparison, "canceled")
        return self.find(comparison.tenant_id, comparison.id) or comparison

    # --- the life of the whole ---------------------------------------------------------------

    async def run(self) -> None:
        """Run comparisons while there is room, for ever."""
        while True:
            try:
                await self.recover()
                break
            except (ApplianceError, OSError) as error:
                _log.warning("comparisons are not taken up yet: %s", error)
                await asyncio.sleep(_TICK_S)
        swept_ns = 0
        while True:
            self._wake.clear()
            if not self.is_draining:
                while (one := self._next()) is not None:
                    self._start(one)
            if clock.monotonic_ns() - swept_ns > _SWEEP_S * 1e9:
                swept_ns = clock.monotonic_ns()
                try:
                    await self.sweep()
                except (ApplianceError, OSError) as error:
                    _log.warning("old comparisons could not be removed: %s", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await self._wake.wait()

    async def recover(self) -> None:
        """Take up what lies there: run what had not started, fail what was cut off."""
        listing = await asyncio.to_thread(self._shelf.listing)
        for tenant_id, names in listing.items():
            heads = {name.partition(".")[0] for name in names if name.endswith(f".{_HEAD}")}
            for comparison_id in heads:
                await self._take_up(tenant_id, f"{comparison_id}.{_HEAD}")
            # A data set that a crash cut off belongs to nothing.
            left = [name for name in names if name.partition(".")[0] not in heads]
            await self._shelf.remove(tenant_id, left)
        self._taken_up.set()

    async def _take_up(self, tenant_id: str, name: str) -> None:
        try:
            found = comparison_from_bytes(await self._shelf.get(tenant_id, name))
        except (ApplianceError, msgspec.DecodeError) as error:
            _log.warning("comparison %s cannot be read: %s", name, error)
            return
        self._keep(found)
        if found.status == "processing":
            problem = Interrupted("The appliance ended while this comparison was at work.")
            await self._end(found, "failed", problem)

    def drain(self) -> None:
        """Start no more; let everybody who waits for one go."""
        self.is_draining = True
        self._followers.let_go()

    async def close(self) -> None:
        """Stop the work; what is cut off fails as interrupted at the next start."""
        self.drain()
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def sweep(self) -> int:
        """Forget ended comparisons whose time is over, and delete what belongs to nobody.

        Audit: comparison.removed.
        """
        registry = self._store.registry
        await self._shelf.sweep(lambda one: registry.snapshot.tenant_by_id(one))
        for tenant_id in tuple(self._known):
            if registry.snapshot.tenant_by_id(tenant_id) is None:
                del self._known[tenant_id]
        count = 0
        for tenant_id in tuple(self._known):
            over = self._over(tenant_id)
            if not over:
                continue
            event = ComparisonsRemoved(comparison_ids=tuple(one.id for one in over))
            await self._store.ledger.append(
                event, tenant_id=tenant_id, actor=_ACTOR, object=tenant_id
            )
            await self._shelf.remove(tenant_id, [n for one in over for n in _names(one)])
            for one in over:
                self._forget(one)
            count += len(over)
        return count

    def _over(self, tenant_id: str) -> list[Comparison]:
        ended = [one for one in self._known[tenant_id].values() if one.is_ended]
        ended.sort(key=lambda one: one.ended_ns)
        oldest_ns = clock.now_ns() - self._settings.kept_s * 1_000_000_000
        surplus = len(ended) - self._settings.kept_max
        return [one for at, one in enumerate(ended) if at < surplus or one.ended_ns < oldest_ns]

    # --- which runs next ---------------------------------------------------------------------

    def _next(self) -> Comparison | None:
        """The oldest that waits, of the tenant with the fewest running."""
        if len(self._running) >= self._settings.running_max:
            return None
        try:
            self._pool()
        except ApplianceError:
            return None  # tried again in a moment
        every = [one for by_id in self._known.values() for one in by_id.values()]
        busy = [one.tenant_id for one in every if one.id in self._running]
        begun = self._running.keys() | self._arriving
        waiting = [one for one in every if one.status == "starting" and one.id not in begun]
        return min(waiting, key=lambda o: (busy.count(o.tenant_id), o.created_ns), default=None)

    def _start(self, comparison: Comparison) -> None:
        task = asyncio.create_task(self._run_one(comparison))
        self._running[comparison.id] = task
        task.add_done_callback(lambda done: self._finished(comparison, done))

    def _finished(self, comparison: Comparison, task: asyncio.Task[None]) -> None:
        self._running.pop(comparison.id, None)
        self._calls.pop(comparison.id, None)
        self._canceled.discard(comparison.id)
        self._settling.discard(comparison.id)
        if not task.cancelled() and task.exception():
            _log.error("comparison %s", comparison.id, exc_info=task.exception())
        self._wake.set()

    # --- one comparison ----------------------------------------------------------------------

    async def _run_one(self, comparison: Comparison) -> None:
        try:
            await self._work(comparison)
        except asyncio.CancelledError:
            if comparison.id not in self._canceled:
                raise  # the appliance ends; the next start meets it as it is
            await self._end(comparison, "canceled")
        except BaseExceptionGroup as group:
            await self._end(comparison, "failed", passes.only_problem(group))
        except Exception as error:  # noqa: BLE001 - a comparison must end, whatever happens
            await self._end(comparison, "failed", error)

    async def _work(self, comparison: Comparison) -> None:
        comparison = replace(comparison, status="processing", started_ns=clock.now_ns())
        self._keep(comparison)
        await self._save(comparison)
        if self._slots is None:
            most = self._settings.calls_max or max(1, self._pool().instances_max // 4)
            self._slots = asyncio.Semaphore(most)
        calls = self._calls[comparison.id] = Calls(
            self._store,
            self._invoker,
            comparison,
            self._slots,
            wait_s_max=self._settings.wait_s_max,
            tell=lambda count: self._advance(comparison.id, count),
        )
        if comparison.source == "replay":
            found = await replay(self._samples, comparison, calls)
            report = msgspec.json.encode(found)
        else:
            report = await self._compare(comparison, calls)
        name = f"{comparison.id}.{_REPORT}"
        await self._patiently(lambda: self._shelf.put(comparison.tenant_id, name, report))
        await self._end(comparison, "succeeded")

    async def _compare(self, comparison: Comparison, calls: Calls) -> bytes:
        """The report of a data set, as JSON."""
        async with self._opened(comparison) as rows:
            heard = await passes.through_all(rows, comparison, calls)
            report = await asyncio.to_thread(
                report_of,
                rows.facts,
                heard,
                task=comparison.task,
                label=comparison.label,
                tolerance=comparison.tolerance,
                worst_max=comparison.worst,
            )
            show_inputs(report, await rows.some({one.row - 1 for one in report.worst}))
        return msgspec.json.encode(report)

    def _opened(
        self, comparison: Comparison
    ) -> contextlib.AbstractAsyncContextManager[dataset.Rows]:
        """A comparison's data set. Raises as ``dataset.opened``."""
        kept = pieces.Pieces(self._shelf, comparison.tenant_id, comparison.id)
        return dataset.opened(
            kept.read_at,
            size_bytes=comparison.data_bytes,
            media_type=comparison.media_type,
            label=comparison.label,
            group=comparison.group,
            rows_max=self._settings.rows_max,
        )

    async def _end(
        self, comparison: Comparison, status: JobStatus, error: BaseException | None = None
    ) -> None:
        """Record how it ended, unless it has, and delete its data set."""
        now = self.find(comparison.tenant_id, comparison.id)
        if now is None or now.is_ended:
            return
        self._settling.add(now.id)
        if error is not None and not isinstance(error, ApplianceError):
            _log.error("comparison %s failed", comparison.id, exc_info=error)
            error = HostError(f"Something failed inside the appliance; {comparison.id}.")
        problem = kept_problem(error) if isinstance(error, ApplianceError) else None
        calls = self._calls.get(comparison.id)
        ended = replace(now, status=status, ended_ns=clock.now_ns(), problem=problem)
        event = ComparisonEnded(
            comparison_id=now.id,
            status=status,
            code=problem["code"] if problem else "",
            calls=calls.count if calls else 0,
        )

        async def record() -> None:
            await self._save(ended)
            await self._store.ledger.append(
                event, tenant_id=now.tenant_id, actor=_ACTOR, object=now.tenant_id
            )

        await self._patiently(record)
        await self._shelf.remove(now.tenant_id, pieces.names_of(now.id, now.data_bytes))
        self._keep(ended)

    async def _patiently(self, work: Callable[[], Any]) -> None:
        """Do what must be on disk, however long the disk is full."""
        wait_s = 1.0
        while True:
            try:
                await work()
                return
            except NotFound:
                return  # its tenant was removed meanwhile
            except (DiskFull, CapacityExhausted, AuditUnavailable) as error:
                _log.warning("a comparison's end waits: %s", error.detail)
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, _RETRY_S_MAX)

    # --- helpers -----------------------------------------------------------------------------

    def _advance(self, comparison_id: str, count: int) -> None:
        self._done[comparison_id] = self._done.get(comparison_id, 0) + count

    async def _save(self, comparison: Comparison) -> None:
        data = bytes_from_comparison(comparison)
        await self._shelf.put(comparison.tenant_id, f"{comparison.id}.{_HEAD}", data)

    def _keep(self, comparison: Comparison) -> None:
        self._known.setdefault(comparison.tenant_id, {})[comparison.id] = comparison
        self._followers.tell(comparison.id)

    def _forget(self, comparison: Comparison) -> None:
        self._known.get(comparison.tenant_id, {}).pop(comparison.id, None)
        self._done.pop(comparison.id, None)
        self._followers.tell(comparison.id)

    async def _remove(self, tenant_id: str, comparison_id: str) -> None:
        """Delete all that lies there of a comparison, however much of its data set arrived."""
        most = pieces.names_of(comparison_id, self._settings.data_bytes_max)
        await self._shelf.remove(tenant_id, most)

    def _require_room(self, tenant_id: str) -> None:
        if self.is_draining:
            raise Draining("The appliance is shutting down; it takes on no more comparisons.")
        unfinished = sum(not one.is_ended for one in self._known.get(tenant_id, {}).values())
        if unfinished >= self._settings.queued_max:
            raise QuotaExceeded(
                f"{unfinished} comparisons of this tenant wait or run; it may have "
                f"{self._settings.queued_max}.",
                hint="wait for one to end, or have IT raise comparisons.queued_max",
            )


def _names(comparison: Comparison) -> list[str]:
    own = [f"{comparison.id}.{part}" for part in (_HEAD, _REPORT)]
    return own + pieces.names_of(comparison.id, comparison.data_bytes)
