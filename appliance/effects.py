"""The statistics of two arms: how large a difference is, how sure that is, how many calls it takes.

Owns: Wilson's and Newcombe's intervals for rates, Welch's for means, and sample sizes.
Never: does I/O or knows what is measured.
Read next: ``api.native.routes`` (shows them), ``store.queries`` (counts).

Every interval is at 95 %. Sources: E. B. Wilson 1927; R. G. Newcombe, Statistics in Medicine 17
(1998), method 10; B. L. Welch 1947; Student's distribution by the continued fraction of the
incomplete beta function (Abramowitz and Stegun 26.5.8).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

LEVEL = 0.95
POWER = 0.8
_Z = NormalDist().inv_cdf(0.5 + LEVEL / 2)
_Z_POWER = NormalDist().inv_cdf(POWER)
_TINY = 1e-300


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """What is known of a quantity: how often it was seen, its mean and its sample variance."""

    count: int = 0
    mean: float = 0.0
    variance: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """Candidate minus baseline, with its 95 % interval.

    ``needed`` is how many calls each arm takes to see, at 80 % power, the smallest difference that
    was said to matter; ``is_enough`` whether both have them. ``is_clear`` says that the interval
    leaves zero out.
    """

    difference: float
    low: float
    high: float
    samples: int
    samples_against: int
    needed: int

    @property
    def is_enough(self) -> bool:
        """Whether both arms have been seen often enough."""
        return min(self.samples, self.samples_against) >= self.needed

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


def wilson(count: int, total: int) -> tuple[float, float]:
    """The interval of a rate, in [0, 1]; (0, 1) where nothing was seen."""
    if not total:
        return 0.0, 1.0
    rate, square = count / total, _Z * _Z
    middle = rate + square / (2 * total)
    half = _Z * math.sqrt(rate * (1 - rate) / total + square / (4 * total * total))
    low, high = ((middle + sign * half) / (1 + square / total) for sign in (-1, 1))
    return (0.0 if not count else max(0.0, low)), (1.0 if count == total else min(1.0, high))


def rate_effect(
    count: int, total: int, count_against: int, total_against: int, *, smallest: float
) -> Effect | None:
    """The difference of two rates; ``None`` while one of them is unknown.

    Args:
        count: candidate's events among its ``total``.
        total: how often the candidate was seen.
        count_against: the baseline's.
        total_against: how often the baseline was seen.
        smallest: the smallest difference that matters, above 0.
    """
    if not total or not total_against:
        return None
    p, q = count / total, count_against / total_against
    (low_p, high_p), (low_q, high_q) = wilson(count, total), wilson(count_against, total_against)
    return Effect(
        difference=p - q,
        low=p - q - math.hypot(p - low_p, high_q - q),
        high=p - q + math.hypot(high_p - p, q - low_q),
        samples=total,
        samples_against=total_against,
        needed=samples_for_rate(q, smallest),
    )


def mean_effect(candidate: Mean, against: Mean, *, smallest: float) -> Effect | None:
    """The difference of two means (Welch); ``None`` while one was seen less than twice.

    Args:
        candidate: the candidate's.
        against: the baseline's.
        smallest: the smallest difference that matters, in the same unit, above 0.
    """
    if min(candidate.count, against.count) < 2:
        return None
    one, other = candidate.variance / candidate.count, against.variance / against.count
    error = math.sqrt(one + other)
    half = 0.0
    if error:
        freedom = (one + other) ** 2 / (
            one * one / (candidate.count - 1) + other * other / (against.count - 1)
        )
        half = student(0.5 + LEVEL / 2, freedom) * error
    difference = candidate.mean - against.mean
    return Effect(
        difference=difference,
        low=difference - half,
        high=difference + half,
        samples=candidate.count,
        samples_against=against.count,
        needed=samples_for_mean((candidate.variance + against.variance) / 2, smallest),
    )


def samples_for_rate(rate: float, smallest: float) -> int:
    """Calls per arm to tell ``rate`` from ``rate + smallest``, at 5 % and 80 % power."""
    other = min(1.0, rate + smallest)
    if other - rate < smallest:
        other = max(0.0, rate - smallest)
    middle = (rate + other) / 2
    spread = _Z * math.sqrt(2 * middle * (1 - middle))
    spread += _Z_POWER * math.sqrt(rate * (1 - rate) + other * (1 - other))
    return max(2, math.ceil((spread / smallest) ** 2))


def samples_for_mean(variance: float, smallest: float) -> int:
    """Calls per arm to see a difference of means, at 5 % and 80 % power."""
    if smallest <= 0:
        return 2
    return max(2, math.ceil(2 * variance * ((_Z + _Z_POWER) / smallest) ** 2))


def student(probability: float, freedom: float) -> float:
    """The quantile of Student's distribution, for a probability in [0.5, 1)."""
    low, high = 0.0, 1.0
    while _student_below(high, freedom) < probability:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if _student_below(middle, freedom) < probability:
            low = middle
        else:
            high = middle
        if high - low <= 1e-13 * high:
            break
    return (low + high) / 2


def _student_below(t: float, freedom: float) -> float:
    """Its distribution function, for t >= 0."""
    return 1 - _beta(freedom / 2, 0.5, freedom / (freedom + t * t)) / 2


def _beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
        + a * math.log(x) + b * math.log1p(-x)
    )  # fmt: skip
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(a, b, x) / a
    return 1 - front * _fraction(b, a, 1 - x) / b


def _fraction(a: float, b: float, x: float) -> float:
    """Its continued fraction, by the modified Lentz method."""
    c, d = 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d or _TINY)
    value = d
    for m in range(1, 1000):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / (1 + numerator * d or _TINY)
            c = 1 + numerator / c or _TINY
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value
