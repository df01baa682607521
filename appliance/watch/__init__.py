"""What versions that have a baseline are called with and answer: counted, kept, judged, told.

Owns: the queue of bodies still to be counted and its bounds, the current period's sketches, the
window every version is judged by, and when a breach is told.
Never: delays or fails a caller: it begins after the model answered and drops what is too much; only
batches wait for it. Keeps a value: bodies are counted and forgotten.
Read next: ``drift`` (the arithmetic), ``store.sketches`` (where counts are kept), ``store.drift``.

    call --offer--> queue --count--> this minute --flush--> sealed file
                                                      +--> window --judge--> drift.breach, recovered

A breach is told once, when a score crosses its threshold, and recovers below four fifths of it, so
that a value that sways about the threshold is no stream of events.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

from appliance import clock, config
from appliance.drift import bodies, scores
from appliance.drift.bodies import Table
from appliance.drift.scores import Score
from appliance.drift.sketch import (
    Plan,
    Sketch,
    bytes_of,
    plan_of,
    sketch_from_bytes,
    sum_of_bytes,
)
from appliance.errors import InputInvalid, NotFound, RevisionStale
from appliance.events import Event
from appliance.metrics import Metrics
from appliance.records import Baseline, Breach, Thresholds, Version
from appliance.store import Place, Store
from appliance.watch.baselines import Asked, Baselines, Change, Draft, no_baseline, place_of
from appliance.watch.counting import Seen, add_call, news_of
from appliance.watch.learning import Learner

QUEUE_MAX = 256
QUEUE_BYTES_MAX = 32 * 1024 * 1024
LEARNERS_CELLS_MAX = 3_000_000
_ACTOR = "appliance"
_BESIDE_BYTES = 64 * 1024  # from here on a body is counted in a thread
_TIDY_S = 3600
_EASED_S = 30
_NS = 1_000_000_000
_log = logging.getLogger(__name__)
Key = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A version's last ``since_s`` seconds against its baseline.

    ``dropped`` calls were not counted since the start because too many waited.
    """

    baseline: Baseline
    plan: Plan
    base: Sketch
    window: Sketch
    since_s: int
    scores: tuple[Score, ...]
    breaches: tuple[Breach, ...]
    dropped: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The last judgement of a version: its scores over ``rows`` records."""

    rows: int = 0
    scores: tuple[Score, ...] = ()


@dataclass(slots=True)
class _Watched:
    """A version with a baseline: its bins, what is counted now, and the window it is judged by."""

    baseline: Baseline
    plan: Plan
    base: Sketch
    current: Sketch
    total: Sketch
    window: deque[tuple[int, bytes]] = field(default_factory=deque)
    is_stale: bool = True
    judged: Judged | None = None

    @property
    def place(self) -> Place:
        """Where its sketches are."""
        return place_of(self.baseline)


class Watch:
    """Counts and judges what versions are called with; one per unsealed node."""

    def __init__(self, store: Store, settings: config.Settings, metrics: Metrics) -> None:
        """Read baselines from the store, and keep there what is counted."""
        self._store = store
        self._settings = settings.drift
        self._metrics = metrics
        self._free_bytes_min = settings.store.free_bytes_min
        self._baselines = Baselines(store, settings.drift.baselines_max)
        self._queue: asyncio.Queue[Seen] = asyncio.Queue()
        self._held_bytes = 0
        self._eased = asyncio.Event()
        self._dropped: Counter[Key] = Counter()
        self._watched: dict[Key, _Watched] = {}
        self._learners: dict[Key, tuple[Baseline, Learner]] = {}
        self._loading = asyncio.Lock()
        self._flushing = asyncio.Lock()
        self._making = asyncio.Lock()

    # --- on the way of a call ----------------------------------------------------------------

    def wants_calls(self, model_id: str, number: int) -> bool:
        """Whether a version's calls are counted."""
        last = self._store.registry.snapshot.last_baseline(model_id, number)
        return last is not None and last.source != "removed"

    def offer_call(self, version: Version, content_type: str, body: bytes, reply: bytes) -> None:
        """``offer`` a call if its version has a baseline."""
        if self.wants_calls(version.model_id, version.number):
            self.offer(
                Seen(
                    model_id=version.model_id,
                    number=version.number,
                    content_type=content_type,
                    body=body,
                    reply=reply,
                )
            )

    def offer(self, seen: Seen) -> None:
        """Have a call counted, or dropped if too many wait; returns at once."""
        size = self._held_bytes + seen.size_bytes
        if self._queue.qsize() >= QUEUE_MAX or size > QUEUE_BYTES_MAX:
            self._dropped[seen.model_id, seen.number] += 1
            self._metrics.drift_call("dropped")
            return
        self._held_bytes = size
        self._queue.put_nowait(seen)

    async def eased(self) -> None:
        """Wait, a while at most, until a call of many would not crowd out those of callers."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_EASED_S):
                while self._is_crowded():
                    self._eased.clear()
                    await self._eased.wait()

    def _is_crowded(self) -> bool:
        is_long = self._queue.qsize() >= QUEUE_MAX // 2
        return is_long or self._held_bytes >= QUEUE_BYTES_MAX // 2

    async def counted(self) -> None:
        """Wait until everything that was offered is counted."""
        await self._queue.join()

    # --- what owners do ----------------------------------------------------------------------

    async def set_from_data(
        self, version: Version, table: Table, asked: Asked, *, output: str = ""
    ) -> Baseline:
        """Compare a version's calls with data, such as what it was trained on.

        Args:
            version: the version.
            table: columns as the version is called with.
            asked: who asks, and why.
            output: the column of ``table`` that is what the version answers; empty for none.

        Raises:
            InputInvalid: there is nothing to compare with in the data.
            ApplianceError: as ``Baselines.set``.
        Audit: drift.baseline-set.
        """
        columns = dict(table.columns)
        if output and output not in columns:
            raise InputInvalid(
                f"The data has no column '{output}'; it has {', '.join(list(columns)[:20])}."
            )
        outputs = {bodies.OUTPUT: columns.pop(output)} if output else {}
        async with self._making:  # one table at a time: it may be large
            plan, sketch = await asyncio.to_thread(plan_of, columns, outputs, table.rows)
        if not plan.inputs:
            raise InputInvalid("Every column of the data is empty; there is nothing to compare.")
        plan_id = clock.new_id("plan")
        draft = Draft(source="data", plan_id=plan_id, plan=plan, sketch=sketch)
        return await self._changed(await self._baselines.set(version, draft, asked))

    async def set_from_window(
        self, version: Version, asked: Asked, *, window_s: int, of: int
    ) -> Baseline:
        """Compare a version's calls with those of the last ``window_s`` seconds.

        The bins stay those of the baseline that version has now.

        Args:
            version: the version.
            asked: who asks, and why.
            window_s: how far back.
            of: the number of the version whose calls these were, of the same model.

        Raises:
            NotFound: that version has no baseline, so its calls were not counted.
            InputInvalid: it was called with too few records.
            ApplianceError: as ``Baselines.set``.
        Audit: drift.baseline-set.
        """
        watched = await self._required(version.model_id, of)
        sketch = await self._period(watched, window_s)
        least = watched.baseline.thresholds.rows_min
        if sketch.rows < least:
            raise InputInvalid(
                f"Version {of} was called with {sketch.rows} records in that window; a baseline "
                f"takes at least {least}."
            )
        plan_id = watched.baseline.plan_id
        draft = Draft(source="window", plan_id=plan_id, plan=watched.plan, sketch=sketch)
        return await self._changed(await self._baselines.set(version, draft, asked))

    async def learn(self, version: Version, records: int, asked: Asked) -> Baseline:
        """Make a version's baseline of its next records, from the first call on.

        Raises: as ``Baselines.set``. Audit: drift.baseline-set, now and once it has learned.
        """
        return await self._changed(await self._baselines.learn(version, records, asked))

    async def set_thresholds(
        self, version: Version, merge: Callable[[Thresholds], Thresholds], asked: Asked
    ) -> Baseline:
        """Change when a version has drifted. Raises as ``Baselines.set_thresholds``.

        Audit: drift.thresholds-set.
        """
        made, _before = await self._baselines.set_thresholds(version, merge, asked)
        await self._find(version.model_id, version.number)
        return made

    async def remove(self, version: Version, asked: Asked) -> None:
        """Count a version's calls no more, and forget what was counted.

        Raises: as ``Baselines.remove``. Audit: drift.baseline-removed.
        """
        await self._changed(await self._baselines.remove(version, asked))

    async def _changed(self, change: Change) -> Baseline:
        """The new revision, once what the old one had is deleted and the new one is watched."""
        made, before = change
        if before is not None:
            if made.blob is None or before.plan_id != made.plan_id:
                async with self._flushing:
                    await asyncio.to_thread(self._store.sketches.discard, place_of(before))
            await self._baselines.forget(before)
        if await self._find(made.model_id, made.number) is None:
            self._watched.pop((made.model_id, made.number), None)
        return made

    async def report(self, model_id: str, number: int, since_s: int | None = None) -> Report:
        """A version's last seconds against its baseline; ``None`` is its own window.

        Raises:
            NotFound: it has no baseline.
            StoreCorrupt: the baseline is damaged.
        """
        watched = await self._required(model_id, number)
        since_s = since_s or watched.baseline.thresholds.window_s
        window = await self._period(watched, since_s)
        found = scores.scores(watched.plan, watched.base, window, watched.baseline.thresholds)
        return Report(
            baseline=watched.baseline,
            plan=watched.plan,
            base=watched.base,
            window=window,
            since_s=since_s,
            scores=tuple(found),
            breaches=self._store.registry.snapshot.breaches(model_id, number),
            dropped=self._dropped[model_id, number],
        )

    def judged(self, model_id: str, number: int) -> Judged:
        """The last judgement of a version, at most a period old; empty before its first."""
        watched = self._watched.get((model_id, number))
        return (watched.judged if watched else None) or Judged()

    # --- the life of the whole ---------------------------------------------------------------

    async def follow(self) -> None:
        """Count what is offered and judge every period, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._work())
            group.create_task(self._beat())

    async def close(self) -> None:
        """Count what still waits, and keep what was counted of the current period."""
        while not self._queue.empty():
            seen = self._queue.get_nowait()
            await self._safely(partial(self._count, seen))
            self._queue.task_done()
        await self._safely(self.flush)

    async def flush(self) -> None:
        """End the current period of every version: keep it, judge it, tell what changed."""
        async with self._flushing:
            now_s = _now_s()
            for key, watched in tuple(self._watched.items()):
                known = self._store.registry.snapshot.baseline(*key)
                if known is None or known.plan_id != watched.baseline.plan_id:
                    self._watched.pop(key, None)
                    continue
                await self._safely(partial(self._end_period, watched, now_s))
                await self._safely(partial(self._judge, key, watched, now_s))

    async def tidy(self) -> None:
        """Forget sketches that are old or nobody's; roll minutes up to hours."""
        kept = {place_of(one) for one in self._store.registry.snapshot.baselines()}
        await asyncio.to_thread(
            self._store.sketches.tidy,
            kept,
            now_s=_now_s(),
            kept_days=self._settings.kept_days,
            merge=sum_of_bytes,
        )

    async def _work(self) -> None:
        while True:
            seen = await self._queue.get()
            try:
                await self._count(seen)
            except Exception:  # noqa: BLE001 - it must go on; callers do not depend on it
                _log.exception("a call of %s could not be counted", seen.model_id)
            finally:
                self._held_bytes -= seen.size_bytes
                self._queue.task_done()
                self._eased.set()
            await asyncio.sleep(0)  # calls go first

    async def _beat(self) -> None:
        tidied_s = 0
        for one in self._store.registry.snapshot.baselines():  # so that breaches end unasked
            await self._safely(partial(self._watch, one))
        while True:
            await asyncio.sleep(self._settings.period_s)
            await self._safely(self.flush)
            if _now_s() - tidied_s >= _TIDY_S:
                tidied_s = _now_s()
                await self._safely(self.tidy)

    async def _watch(self, one: Baseline) -> None:
        await self._find(one.model_id, one.number)

    async def _safely(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception:  # noqa: BLE001 - it must go on; calls do not depend on it
            _log.exception("drift could not be looked at")

    # --- counting ----------------------------------------------------------------------------

    async def _count(self, seen: Seen) -> None:
        watched = await self._find(seen.model_id, seen.number)
        if watched is None:
            await self._learn(seen)
            return
        if seen.size_bytes < _BESIDE_BYTES:
            result = add_call(watched.plan, watched.current, seen)
        else:
            sketch = Sketch.of(watched.plan)
            result = await asyncio.to_thread(add_call, watched.plan, sketch, seen)
            now = self._watched.get((seen.model_id, seen.number), watched)
            if now.plan is watched.plan:  # it may be watched anew meanwhile
                now.current.add(sketch)
        self._metrics.drift_call(result)

    async def _learn(self, seen: Seen) -> None:
        key = (seen.model_id, seen.number)
        snapshot = self._store.registry.snapshot
        asked, version = snapshot.learning(*key), snapshot.version(*key)
        if asked is None or version is None:
            self._learners.pop(key, None)
            return
        known, learner = self._learners.get(key, (None, Learner(asked.rows)))
        if known is not asked:
            learner = Learner(asked.rows)
            if sum(one.cells for _asked, one in self._learners.values()) > LEARNERS_CELLS_MAX:
                self._metrics.drift_call("dropped")
                return
            self._learners[key] = (asked, learner)
        self._metrics.drift_call(await asyncio.to_thread(learner.add_call, seen))
        if not learner.is_done:
            return
        plan, sketch = await asyncio.to_thread(plan_of, *learner.columns())
        if not plan.inputs:
            del self._learners[key]  # nothing but missing values: begin anew
            return
        draft = Draft(source="calls", plan_id=clock.new_id("plan"), plan=plan, sketch=sketch)
        reason = f"learned from {sketch.rows} records as revision {asked.revision} asked"
        why = Asked(actor=_ACTOR, reason=reason, revision=asked.revision)
        with contextlib.suppress(RevisionStale):  # somebody decided otherwise meanwhile
            await self._changed(await self._baselines.set(version, draft, why))
        self._learners.pop(key, None)

    async def _end_period(self, watched: _Watched, now_s: int) -> None:
        if watched.current.calls:
            current, watched.current = watched.current, Sketch.of(watched.plan)
            start_s = now_s // self._settings.period_s * self._settings.period_s
            data = bytes_of(current)
            watched.window.append((start_s, data))
            watched.total.add(current)
            watched.is_stale = True
            if self._store.free_bytes() > self._free_bytes_min:
                await self._keep(watched.place, start_s, data)
        oldest_s = now_s - watched.baseline.thresholds.window_s
        while watched.window and watched.window[0][0] < oldest_s:
            _start_s, data = watched.window.popleft()
            watched.total.subtract(sketch_from_bytes(data))
            watched.is_stale = True

    async def _keep(self, place: Place, start_s: int, data: bytes) -> None:
        try:
            await asyncio.to_thread(self._store.sketches.append, place, start_s, data)
        except NotFound:
            pass  # the tenant was removed meanwhile
        except OSError as error:
            _log.warning("what was counted is kept in memory only: %s", error)

    async def _judge(self, key: Key, watched: _Watched, now_s: int) -> None:
        if not watched.is_stale:
            return
        watched.is_stale = False
        thresholds = watched.baseline.thresholds
        found = scores.scores(watched.plan, watched.base, watched.total, thresholds)
        rows = watched.total.rows
        watched.judged = Judged(rows=rows, scores=tuple(found))

        def make(known: tuple[Breach, ...]) -> list[Event]:
            news = news_of(
                found, known, rows=rows, window_s=thresholds.window_s, now_ns=now_s * _NS
            )
            return [cls(model_id=key[0], number=key[1], breach=breach) for cls, breach in news]

        if not make(self._store.registry.snapshot.breaches(*key)):
            return
        await self._store.registry.drift.tell(
            model_id=key[0],
            number=key[1],
            plan_id=watched.baseline.plan_id,
            make=make,
            actor=_ACTOR,
        )

    # --- baselines ---------------------------------------------------------------------------

    async def _required(self, model_id: str, number: int) -> _Watched:
        watched = await self._find(model_id, number)
        if watched is not None:
            return watched
        asked = self._store.registry.snapshot.learning(model_id, number)
        if asked is None:
            raise no_baseline()
        found = self._learners.get((model_id, number))
        rows = found[1].rows if found else 0
        raise NotFound(
            f"The version's baseline is still being learned: {rows} of {asked.rows} records."
        )

    async def _find(self, model_id: str, number: int) -> _Watched | None:
        """The version as it is watched now; ``None`` without a baseline."""
        key = (model_id, number)
        baseline = self._store.registry.snapshot.baseline(model_id, number)
        watched = self._watched.get(key)
        if baseline is None or (watched is not None and watched.baseline is baseline):
            return watched if baseline is not None else None
        async with self._loading:
            baseline = self._store.registry.snapshot.baseline(model_id, number)
            watched = self._watched.get(key)
            if baseline is None or (watched is not None and watched.baseline is baseline):
                return watched if baseline is not None else None
            return await self._load(key, baseline, watched)

    async def _load(self, key: Key, baseline: Baseline, known: _Watched | None) -> _Watched:
        """Watch a version by a baseline that is new here, or has changed."""
        if known is not None and known.baseline.blob == baseline.blob:
            plan, base = known.plan, known.base
        else:
            plan, base = await self._baselines.read(baseline)
        is_same_plan = known is not None and known.baseline.plan_id == baseline.plan_id
        place, since_s = place_of(baseline), _now_s() - baseline.thresholds.window_s

        def kept() -> tuple[list[tuple[int, bytes]], Sketch]:
            rows = list(self._store.sketches.read(place, since_s))
            return rows, _sum(plan, [data for _start_s, data in rows])

        async with self._flushing:  # no period ends between reading and watching
            rows, total = await asyncio.to_thread(kept)
            watched = _Watched(
                baseline=baseline,
                plan=plan,
                base=base,
                current=known.current if known and is_same_plan else Sketch.of(plan),
                total=total,
                window=deque(rows),
            )
            self._watched[key] = watched
        return watched

    async def _period(self, watched: _Watched, since_s: int) -> Sketch:
        """What was counted in the last seconds, the current period included."""
        place, start_s = watched.place, _now_s() - since_s
        async with self._flushing:  # a period is in the file or in memory, not in between
            current = bytes_of(watched.current)
            rows = await asyncio.to_thread(
                lambda: [data for _start, data in self._store.sketches.read(place, start_s)]
            )
        return await asyncio.to_thread(_sum, watched.plan, [*rows, current])


def _sum(plan: Plan, rows: list[bytes]) -> Sketch:
    total = Sketch.of(plan)
    for data in rows:
        total.add(sketch_from_bytes(data))
    return total


def _now_s() -> int:
    return clock.now_ns() // _NS
