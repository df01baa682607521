"""Recorded calls once more, to another version: what it answers now, and how that compares.

Owns: ``ReplayReport`` and how it comes about.
Never: decides what is kept (``samples``) or who may repeat it.
Read next: ``calls`` (each is on record with the id of the call it repeats), ``shadow.likeness``.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Struct

from appliance import clock
from appliance.comparison.answers import is_number
from appliance.comparison.calls import Calls
from appliance.comparison.metrics import percentile
from appliance.comparison.record import Comparison
from appliance.comparison.report import CallLatency, latency_of
from appliance.errors import ApplianceError, GuestError, NotFound, StoreCorrupt, TooLarge
from appliance.invoke import Outcome, Via
from appliance.samples import Kept, Sample, Samples
from appliance.sandbox.spec import Reply
from appliance.shadow import likeness

_AT_ONCE = 4
_SHOWN_BYTES_MAX = 4096


class ReplayDifference(Struct, kw_only=True):
    """A call that is answered differently now; what is long or no JSON is left out.

    ``parent`` is the call that made it, empty where a caller did.
    ``distance`` is the largest difference of two numbers at the same place, and ``None`` where the
    answers differ otherwise.
    """

    call_id: str
    parent: str
    at: str
    version: int
    distance: float | None
    input: Any
    then: Any
    now: Any


class ReplayReport(Struct, kw_only=True):
    """What a replay shows: ``calls`` were repeated; ``gone`` were deleted meanwhile.

    ``latency_ratio`` is the median of a call's time now over its time then, starts left out.
    """

    model: str
    against: int
    calls: int
    equal: int
    close: int
    different: int
    failed: int
    gone: int
    problems: dict[str, int]
    versions: dict[str, int]
    latency_then: CallLatency
    latency_now: CallLatency
    latency_ratio: float | None
    worst: list[ReplayDifference]


def chosen(kept: tuple[Kept, ...], comparison: Comparison) -> list[Kept]:
    """The samples a replay repeats, newest first."""
    found = [one for one in reversed(kept) if one.time_ns >= comparison.since_ns]
    return found[: comparison.limit]


async def replay(samples: Samples, comparison: Comparison, calls: Calls) -> ReplayReport:
    """Repeat a model's kept calls to the comparison's only target, a few at a time.

    Raises:
        Gone, Forbidden, CapacityExhausted: as ``Calls.call``.
    """
    (target,) = comparison.targets
    work = _Replay(samples, comparison, calls)
    rest = iter(chosen(await samples.kept(target.model_id), comparison))
    async with asyncio.TaskGroup() as group:
        for _ in range(_AT_ONCE):
            group.create_task(work.repeat(rest))
    return work.report()


@dataclass(slots=True, kw_only=True)
class _Heard:
    """One call's answer then and now."""

    sample: Sample
    distance: float | None
    now: bytes


class _Replay:
    def __init__(self, samples: Samples, comparison: Comparison, calls: Calls) -> None:
        self._samples = samples
        self._calls = calls
        self._worst_max = comparison.worst
        (self._target,) = comparison.targets
        self._verdicts: Counter[str] = Counter()
        self._problems: Counter[str] = Counter()
        self._versions: Counter[str] = Counter()
        self._then_us: list[int] = []
        self._now_us: list[int] = []
        self._ratios: list[float] = []
        self._different: list[_Heard] = []
        self._gone = 0

    async def repeat(self, rest: Iterator[Kept]) -> None:
        for kept in rest:
            try:
                sample = await self._samples.read(kept)
            except (NotFound, StoreCorrupt):
                self._gone += 1
            else:
                await self._repeat(sample)
            self._calls.tell(1)

    async def _repeat(self, sample: Sample) -> None:
        self._versions[str(sample.number)] += 1
        verdict = "failed"

        def compare(reply: Reply) -> str:
            nonlocal verdict
            verdict = likeness(sample.reply, reply.body)
            return verdict

        via = Via(replay_of=sample.call_id, compare=compare)
        try:
            outcome = await self._calls.call(
                self._target, content_type=sample.content_type, body=sample.body, via=via
            )
        except (GuestError, TooLarge) as error:
            self._failed(error)
            return
        self._answered(sample, outcome, verdict)

    def _failed(self, error: ApplianceError) -> None:
        self._verdicts["failed"] += 1
        self._problems[error.slug] += 1

    def _answered(self, sample: Sample, outcome: Outcome, verdict: str) -> None:
        self._verdicts[verdict] += 1
        took_us = outcome.total_us - outcome.queue_us - outcome.load_us
        self._then_us.append(sample.took_us)
        self._now_us.append(took_us)
        if sample.took_us > 0:
            self._ratios.append(took_us / sample.took_us)
        if verdict == "different":
            far = distance(sample.reply, outcome.reply)
            self._different.append(_Heard(sample=sample, distance=far, now=outcome.reply))
            self._different.sort(key=_rank)
            del self._different[self._worst_max :]

    def report(self) -> ReplayReport:
        found, calls = self._verdicts, sum(self._verdicts.values())
        failed = found["failed"]
        return ReplayReport(
            model=self._target.model,
            against=self._target.number,
            calls=calls,
            equal=found["equal"],
            close=found["close"],
            different=found["different"],
            failed=failed,
            gone=self._gone,
            problems=dict(sorted(self._problems.items())),
            versions=dict(sorted(self._versions.items())),
            latency_then=latency_of(self._then_us, 0, 0),
            latency_now=latency_of(self._now_us, failed, 0),
            latency_ratio=percentile(self._ratios, 0.5),
            worst=[_shown(one) for one in self._different],
        )


def distance(one: bytes, other: bytes) -> float | None:
    """The largest difference of numbers at the same places of two replies.

    ``None`` where they differ in anything but numbers, or are no JSON.
    """
    try:
        left = [(msgspec.json.decode(one), msgspec.json.decode(other))]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    far = 0.0
    while left:
        a, b = left.pop()
        if is_number(a) and is_number(b):
            far = max(far, abs(a - b))
        elif isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
            left += [(a[key], b[key]) for key in a]
        elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
            left += zip(a, b, strict=True)
        elif a != b:
            return None
    return far


def _rank(one: _Heard) -> float:
    """What differs in more than numbers first, then what differs most."""
    return -math.inf if one.distance is None else -one.distance


def _shown(one: _Heard) -> ReplayDifference:
    sample = one.sample
    return ReplayDifference(
        call_id=sample.call_id,
        parent=sample.parent,
        at=clock.text_from_ns(sample.time_ns),
        version=sample.number,
        distance=one.distance,
        input=_short(sample.body),
        then=_short(sample.reply),
        now=_short(one.now),
    )


def _short(text: bytes) -> Any:
    if len(text) > _SHOWN_BYTES_MAX:
        return None
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
