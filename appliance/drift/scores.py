"""The judgement: every statistic of every column, and which of them crossed its threshold.

Owns: the closed list of statistics with their default thresholds, and the verdicts.
Never: does I/O; says nothing about too few records.
Read next: ``statistics`` (the arithmetic), ``appliance.watch`` (tells when a verdict changes).

A score is a breach where it exceeds its threshold and also what chance makes of so few records once
in a thousand times. Adding a statistic is a function and a line in ``STATISTICS``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from appliance.drift import statistics
from appliance.drift.sketch import Column, Plan, Sketch, Tally
from appliance.records import Thresholds

Verdict = Literal["ok", "breach", "few", "unjudged"]
Measure = Callable[[Column, Tally, Tally], tuple[float, float]]
"""A statistic of a column from the tallies of baseline and window, and what chance makes of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistic:
    """One way to tell two samples apart.

    ``limit`` is the default threshold, 0 for shown and not judged.
    """

    name: str
    doc: str
    limit: float
    measure: Measure
    is_numeric_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One statistic of one column over a window.

    ``threshold`` is 0 where it is not judged. ``by_chance`` is what two samples of this size from
    the same distribution exceed once in a thousand times. ``verdict``: ``few`` is fewer records
    than asked for.
    """

    feature: str
    is_output: bool
    kind: str
    statistic: str
    value: float
    threshold: float
    by_chance: float
    verdict: Verdict


def _psi(column: Column, base: Tally, window: Tally) -> tuple[float, float]:
    expected, actual = column.coarse(base.counts), column.coarse(window.counts)
    chance = statistics.psi_by_chance(_filled(expected, actual), base.seen, window.seen)
    return statistics.psi(expected, actual), chance


def _jensen_shannon(column: Column, base: Tally, window: Tally) -> tuple[float, float]:
    expected, actual = column.coarse(base.counts), column.coarse(window.counts)
    bins = _filled(expected, actual)
    chance = statistics.jensen_shannon_by_chance(bins, base.seen, window.seen)
    return statistics.jensen_shannon(expected, actual), chance


def _ks(_column: Column, base: Tally, window: Tally) -> tuple[float, float]:
    gap = statistics.ks_distance(base.counts, window.counts)
    return gap, statistics.ks_by_chance(base.seen, window.seen)


def _missing(_column: Column, base: Tally, window: Tally) -> tuple[float, float]:
    m, n = base.seen + base.missing, window.seen + window.missing
    if not m or not n:
        return 0.0, float("inf")
    chance = statistics.rate_by_chance(base.missing, m, window.missing, n)
    return abs(window.missing / n - base.missing / m), chance


def _outside(column: Column, base: Tally, window: Tally) -> tuple[float, float]:
    m, n = base.seen, window.seen
    if not m or not n:
        return 0.0, float("inf")
    before, now = (_outer(column, tally) for tally in (base, window))
    return max(0.0, now / n - before / m), statistics.rate_by_chance(before, m, now, n)


def _outer(column: Column, tally: Tally) -> int:
    below = tally.counts[0] if column.kind == "numeric" else 0
    return below + tally.counts[-1]


def _filled(expected: list[int], actual: list[int]) -> int:
    return sum(1 for e, a in zip(expected, actual, strict=True) if e or a)


STATISTICS: dict[str, Statistic] = {
    one.name: one
    for one in (
        Statistic(
            name="psi", limit=0.25, measure=_psi,
            doc="population stability index; 0.1 is a small shift, 0.25 a large one",
        ),
        Statistic(
            name="js", limit=0.0, measure=_jensen_shannon,
            doc="Jensen-Shannon distance, 0 to 0.83",
        ),
        Statistic(
            name="ks", limit=0.0, measure=_ks, is_numeric_only=True,
            doc="largest difference of the distribution functions, 0 to 1",
        ),
        Statistic(
            name="missing", limit=0.1, measure=_missing,
            doc="change of the share of missing values",
        ),
        Statistic(
            name="outside", limit=0.1, measure=_outside,
            doc="share of values the baseline never had: out of range, or a new category",
        ),
    )
}  # fmt: skip
"""Every statistic there is, by the name thresholds are set by."""

DEFAULTS = {name: one.limit for name, one in STATISTICS.items()}


def limit_of(thresholds: Thresholds, feature: str, statistic: str) -> float:
    """The threshold of a statistic of a column; 0 where it is not judged."""
    own = thresholds.features.get(feature, {})
    return own.get(statistic, thresholds.limits.get(statistic, DEFAULTS[statistic]))


def scores(plan: Plan, base: Sketch, window: Sketch, thresholds: Thresholds) -> list[Score]:
    """Every score of a window against its baseline, in the plan's order."""
    return [
        _score(column, tally, seen, thresholds, statistic, is_output=is_output)
        for column, tally, seen, is_output in _pairs(plan, base, window)
        for statistic in STATISTICS.values()
        if column.kind == "numeric" or not statistic.is_numeric_only
    ]


def _pairs(plan: Plan, base: Sketch, window: Sketch) -> Iterator[tuple[Column, Tally, Tally, bool]]:
    for column, before, now in zip(plan.inputs, base.inputs, window.inputs, strict=True):
        yield column, before, now, False
    for column, before, now in zip(plan.outputs, base.outputs, window.outputs, strict=True):
        yield column, before, now, True


def _score(
    column: Column,
    base: Tally,
    window: Tally,
    thresholds: Thresholds,
    statistic: Statistic,
    *,
    is_output: bool,
) -> Score:
    value, by_chance = statistic.measure(column, base, window)
    threshold = limit_of(thresholds, column.name, statistic.name)
    verdict: Verdict = "ok"
    if not threshold:
        verdict = "unjudged"
    elif window.seen + window.missing < thresholds.rows_min:
        verdict = "few"
    elif value > threshold and value > by_chance:
        verdict = "breach"
    return Score(
        feature=column.name,
        is_output=is_output,
        kind=column.kind,
        statistic=statistic.name,
        value=value,
        threshold=threshold,
        by_chance=by_chance,
        verdict=verdict,
    )


Limits = Mapping[str, float | None]


def merged(
    known: Thresholds,
    *,
    limits: Limits,
    features: Mapping[str, Limits],
    rows_min: int,
    window_s: int,
) -> Thresholds:
    """Thresholds with some changed; a limit of ``None`` is as if it had never been set."""
    named = set(known.features) | set(features)
    by_feature = {
        name: _changed(known.features.get(name, {}), features.get(name, {})) for name in named
    }
    return Thresholds(
        limits=_changed(known.limits, limits),
        features={name: own for name, own in sorted(by_feature.items()) if own},
        rows_min=rows_min,
        window_s=window_s,
    )


def _changed(known: Mapping[str, float], new: Limits) -> dict[str, float]:
    both = {**known, **new}
    return {name: value for name, value in both.items() if value is not None}
