"""Which version answers a call: weights, sticky keys, and when a candidate is worse.

Owns: how the arms of a route share [0, 10000), the choice within them, what a legal route is, and
the judgement of a canary's figures.
Never: does I/O, draws random numbers, or knows who calls.
Read next: ``routing`` (who asks), ``records.Route``.

Each arm owns spans of [0, 10000), as long as its weight. A call falls on a point: drawn, or, where
the route is sticky, a keyed hash of the model and the key. When weights change, an arm that shrinks
gives up the end of what it has and one that grows takes what was given up, so a key moves only from
an arm that shrank to one that grew, however many arms there are.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from appliance.errors import FieldError, RouteInvalid
from appliance.records import WEIGHT_ALL, Arm, Canary, Route, Version

ARMS_MAX = 16
SHADOWS_MAX = 4
STEPS_MAX = 20
WINDOW_S_MAX = 3600
STICKY_KEY = "key"
STICKY_HEADER = "header:"

_STICKY = re.compile(r"(?:|key|header:[a-z0-9][a-z0-9_-]{0,63})")
_WHOLE = ((0, WEIGHT_ALL),)
_SLOTS = 30
_CLASS = math.log(1.02)

Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What is known about one arm in a window: ``p95_us`` is of answered calls, in microseconds."""

    calls: int = 0
    errors: int = 0
    p95_us: float = 0.0

    @property
    def error_rate(self) -> float:
        """Share of calls that failed; 0 without calls."""
        return self.errors / self.calls if self.calls else 0.0


def number_at(arms: Sequence[Arm], point: int) -> int:
    """The version whose span holds a point of [0, 10000)."""
    for arm in arms:
        for start, end in arm.spans:
            if start <= point < end:
                return arm.number
    raise ValueError(f"no arm owns {point}")


def point_of_key(secret: bytes, model_id: str, key: str) -> int:
    """Where in [0, 10000) a sticky key falls: the same always, and not to be guessed by callers.

    Args:
        secret: at most 64 bytes that callers do not know.
        model_id: so that the same key falls elsewhere for another model.
        key: what the route is sticky by.
    """
    text = f"{model_id}\0{key}".encode()
    digest = hashlib.blake2b(text, key=secret, digest_size=16).digest()
    return int.from_bytes(digest, "big") % WEIGHT_ALL


def arms_of(weights: Sequence[tuple[int, int]], before: Sequence[Arm] = ()) -> tuple[Arm, ...]:
    """Arms of these weights that move as few keys as the weights allow.

    Args:
        weights: version and weight of each arm; the weights sum to ``WEIGHT_ALL``.
        before: the arms until now.
    """
    owned = {arm.number: arm.spans for arm in before}
    kept = {number: _first(owned.get(number, ()), weight) for number, weight in weights}
    free = _gaps([span for spans in kept.values() for span in spans])
    arms = []
    for number, weight in weights:
        lacking = weight - _length(kept[number])
        taken = _first(free, lacking)
        free = _without(free, lacking)
        arms.append(Arm(number=number, weight=weight, spans=_joined([*kept[number], *taken])))
    return tuple(arms)


def all_to(number: int) -> tuple[Arm, ...]:
    """One arm that gets every call."""
    return (Arm(number=number, weight=WEIGHT_ALL, spans=_WHOLE),)


def shifted(route: Route, number: int, weight: int) -> Route:
    """The route with one arm's weight changed at the expense, or to the gain, of its baseline."""
    base = baseline_of(route)
    weights = {arm.number: arm.weight for arm in route.arms}
    both = weights.get(number, 0) + weights.get(base, 0)
    weight = min(weight, both)
    weights |= {number: weight, base: both - weight}
    return replace(route, arms=arms_of(list(weights.items()), route.arms))


def given_back(route: Route) -> Route:
    """The route with every call going to its baseline; the other arms stay, with weight 0."""
    base = baseline_of(route)
    weights = [(arm.number, WEIGHT_ALL * (arm.number == base)) for arm in route.arms]
    return replace(route, arms=arms_of(weights, route.arms))


def baseline_of(route: Route) -> int:
    """The version the others are compared with: the canary's, else the first arm."""
    return route.canary.against if route.canary else route.arms[0].number


def candidate_of(route: Route) -> int | None:
    """The version that may become live: the canary's, else the only arm beside the baseline."""
    if route.canary:
        return route.canary.number
    others = [arm.number for arm in route.arms[1:]]
    return others[0] if len(others) == 1 else None


def require_route(route: Route, versions: Sequence[Version]) -> None:
    """Return if a route of this model can be.

    Args:
        route: as asked for; its arms may lack spans.
        versions: every version of the model.

    Raises:
        RouteInvalid: each thing that is wrong is named with its field and what to change.
    """
    problems = [*_wrong_arms(route.arms), *_wrong_numbers(route, versions)]
    if not _STICKY.fullmatch(route.sticky):
        detail = "empty, 'key' or 'header:NAME' with NAME in lower case"
        problems.append(FieldError(pointer="/sticky", detail=detail))
    if route.canary:
        problems += _wrong_canary(route, route.canary)
    if problems:
        first = problems[0]
        raise RouteInvalid(f"{first.pointer[1:]}: {first.detail}.", fields=tuple(problems))


def complaint(rule: Canary, base: Figures, candidate: Figures) -> str:
    """What is wrong with the candidate, with figures; empty if nothing is or too little is known.

    Args:
        rule: the owner's thresholds.
        base: the version it is compared with, in the window.
        candidate: the candidate, in the same window.
    """
    if min(base.calls, candidate.calls) < rule.calls_min:
        return ""
    difference = candidate.error_rate - base.error_rate
    if rule.error_rate_max and difference > rule.error_rate_max:
        return (
            f"error rate {candidate.error_rate:.2%} of {candidate.calls} calls of version "
            f"{rule.number}, {base.error_rate:.2%} of {base.calls} of version {rule.against}: "
            f"{difference * 100:+.2f} points, more than {rule.error_rate_max * 100:g}"
        )
    ratio = candidate.p95_us / base.p95_us if base.p95_us else 0.0
    if rule.latency_ratio_max and ratio > rule.latency_ratio_max:
        return (
            f"95th percentile {candidate.p95_us / 1000:.1f} ms of version {rule.number}, "
            f"{base.p95_us / 1000:.1f} ms of version {rule.against}: {ratio:.2f} times, more than "
            f"{rule.latency_ratio_max:g}"
        )
    return ""


def next_step(route: Route) -> int | None:
    """The weight the schedule gives the candidate next; ``None`` at its end or without one."""
    if route.canary is None:
        return None
    weight = next((a.weight for a in route.arms if a.number == route.canary.number), 0)
    return next((step for step in route.canary.steps if step > weight), None)


def _wrong_arms(arms: Sequence[Arm]) -> list[FieldError]:
    if not 1 <= len(arms) <= ARMS_MAX:
        return [FieldError(pointer="/arms", detail=f"1 to {ARMS_MAX} arms are needed")]
    problems = []
    seen: set[int] = set()
    for index, arm in enumerate(arms):
        if not 0 <= arm.weight <= WEIGHT_ALL:
            detail = "a share is 0 to 100 percent, in steps of 0.01"
            problems.append(FieldError(pointer=f"/arms/{index}/percent", detail=detail))
        if arm.number in seen:
            detail = f"version {arm.number} is named twice"
            problems.append(FieldError(pointer=f"/arms/{index}/version", detail=detail))
        seen.add(arm.number)
    total = sum(arm.weight for arm in arms)
    if total != WEIGHT_ALL:
        less = WEIGHT_ALL - total
        change = f"{abs(less) / 100:g} percent {'are missing' if less > 0 else 'too much'}"
        detail = f"the shares sum to {total / 100:g} percent, not 100: {change}"
        problems.append(FieldError(pointer="/arms", detail=detail))
    return problems


def _wrong_numbers(route: Route, versions: Sequence[Version]) -> list[FieldError]:
    known = {version.number: version for version in versions}
    places = [(f"/arms/{at}/version", arm.number) for at, arm in enumerate(route.arms)]
    places += [(f"/shadows/{at}", number) for at, number in enumerate(route.shadows)]
    problems = []
    for pointer, number in places:
        version = known.get(number)
        if version is None:
            newest = f"the newest is {max(known)}" if known else "it has none"
            detail = f"this model has no version {number}; {newest}"
            problems.append(FieldError(pointer=pointer, detail=detail))
        elif version.retired_ns:
            detail = f"version {number} is retired; name one in service"
            problems.append(FieldError(pointer=pointer, detail=detail))
    if len(route.shadows) > SHADOWS_MAX or len(set(route.shadows)) != len(route.shadows):
        detail = f"at most {SHADOWS_MAX} shadows, each named once"
        problems.append(FieldError(pointer="/shadows", detail=detail))
    answering = {arm.number for arm in route.arms if arm.weight}
    problems += [
        FieldError(pointer=f"/shadows/{at}", detail=f"version {number} answers callers already")
        for at, number in enumerate(route.shadows)
        if number in answering
    ]
    return problems


def _wrong_canary(route: Route, rule: Canary) -> list[FieldError]:
    numbers = {arm.number for arm in route.arms}
    found = [
        ("version", rule.number in numbers, "the candidate is not one of the arms"),
        ("against", rule.against in numbers, "the version to compare with is not an arm"),
        ("against", rule.against != rule.number, "the candidate cannot be its own measure"),
        ("error_rate_max", 0 <= rule.error_rate_max <= 1, "0 to 1"),
        (
            "latency_ratio_max",
            rule.latency_ratio_max == 0 or 1 <= rule.latency_ratio_max <= 100,
            "1 to 100, or 0 not to look",
        ),
        ("calls_min", 1 <= rule.calls_min <= 1_000_000, "1 to 1000000"),
        ("window_s", 10 <= rule.window_s <= WINDOW_S_MAX, f"10 to {WINDOW_S_MAX} seconds"),
        ("step_s", 1 <= rule.step_s <= 30 * 86_400, "1 second to 30 days"),
        ("steps_percent", len(rule.steps) <= STEPS_MAX, f"at most {STEPS_MAX} steps"),
        (
            "steps_percent",
            list(rule.steps) == sorted(set(rule.steps))
            and all(0 < step <= WEIGHT_ALL for step in rule.steps),
            "rising shares above 0, at most 100 percent",
        ),
    ]
    return [
        FieldError(pointer=f"/canary/{name}", detail=detail)
        for name, is_good, detail in found
        if not is_good
    ]


def _length(spans: Spans) -> int:
    return sum(end - start for start, end in spans)


def _first(spans: Spans, length: int) -> Spans:
    """The first ``length`` points of the spans, or all of them if there are fewer."""
    found = []
    for start, end in spans:
        if length <= 0:
            break
        found.append((start, min(end, start + length)))
        length -= end - start
    return tuple(found)


def _without(spans: Spans, length: int) -> Spans:
    """The spans after their first ``length`` points."""
    found = []
    for start, end in spans:
        taken = min(length, end - start)
        length -= taken
        if start + taken < end:
            found.append((start + taken, end))
    return tuple(found)


def _gaps(spans: Sequence[tuple[int, int]]) -> Spans:
    """What of [0, 10000) nobody owns."""
    found, at = [], 0
    for start, end in sorted(spans):
        if at < start:
            found.append((at, start))
        at = end
    return (*found, (at, WEIGHT_ALL)) if at < WEIGHT_ALL else tuple(found)


def _joined(spans: Sequence[tuple[int, int]]) -> Spans:
    """The same points in as few spans as possible, in order."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return tuple(found)


class Window:
    """The calls of one version in the last seconds, in bounded memory.

    Time is cut into thirty slots; latencies are kept in classes 2 % wide, so that a percentile is
    within 1 % of the exact one.
    """

    def __init__(self, window_s: int) -> None:
        self._slot_s = window_s / _SLOTS
        self._slots: dict[int, tuple[list[int], Counter[int]]] = {}

    def add(self, now_s: float, *, is_error: bool, took_us: int) -> None:
        """Count a call that ended now; the latency of one that failed does not count."""
        at = int(now_s / self._slot_s)
        if at not in self._slots:
            self._forget(at)
            self._slots[at] = ([0, 0], Counter())
        counts, latencies = self._slots[at]
        counts[0] += 1
        if is_error:
            counts[1] += 1
        else:
            latencies[int(math.log(max(took_us, 1)) / _CLASS)] += 1

    def figures(self, now_s: float) -> Figures:
        """What the window shows now."""
        self._forget(int(now_s / self._slot_s))
        slots = list(self._slots.values())
        latencies = sum((found for _, found in slots), Counter[int]())
        return Figures(
            calls=sum(counts[0] for counts, _ in slots),
            errors=sum(counts[1] for counts, _ in slots),
            p95_us=_percentile(latencies, 0.95),
        )

    def _forget(self, at: int) -> None:
        for old in [slot for slot in self._slots if slot <= at - _SLOTS]:
            del self._slots[old]


def _percentile(classes: Counter[int], share: float) -> float:
    left = math.ceil(classes.total() * share)
    for one in sorted(classes):
        left -= classes[one]
        if left <= 0:
            return math.exp((one + 0.5) * _CLASS)
    return 0.0
