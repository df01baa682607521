"""Distances of two samples, of values or of counts in the same bins.

Owns: PSI, Jensen-Shannon, the two-sample Kolmogorov-Smirnov test, and how large each is by chance.
Never: decides what is too much (``scores``).
Read next: ``sketch`` (where counts come from).

Counts of no observations at all say nothing: every distance to or from them is 0. Sources:
N. Siddiqi 2006 (PSI, which is Jeffreys' divergence of the two shares); J. Lin 1991 (Jensen-Shannon,
here its square root, in nats); N. Smirnov 1939 and J. Durbin 1973 (the exact distribution by
counting paths); M. Stephens 1970 (its limit); E. B. Wilson and M. M. Hilferty 1931 (quantiles of
chi squared).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

FLOOR = 0.5
"""Observations an empty bin counts as in PSI, whose logarithm would have no value.

A share that does not depend on the sample, such as a millionth, would make a bin of a tenth that
happens to be empty a shift of more than 1, however few were observed.
"""

EXACT_CELLS_MAX = 4_000_000
"""Up to this product of the sample sizes a KS p-value is exact; above, it is the limit's."""

CHANCE = 0.001
"""How seldom chance alone exceeds what ``*_by_chance`` say."""

_Z = NormalDist().inv_cdf(1 - CHANCE)
_Z_TWO_SIDED = NormalDist().inv_cdf(1 - CHANCE / 2)
_KS_CRITICAL = math.sqrt(-math.log(CHANCE / 2) / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ks:
    """The largest difference of two distribution functions, and how often chance makes one."""

    statistic: float
    p_value: float
    is_exact: bool


def psi(expected: Sequence[int], actual: Sequence[int]) -> float:
    """Population stability index: a sum over bins, in nats, at least 0.

    Args:
        expected: counts of the baseline, one per bin.
        actual: counts of the window, in the same bins; those empty on both sides count nothing.
    """
    total_expected, total_actual = sum(expected), sum(actual)
    if not total_expected or not total_actual:
        return 0.0
    found = 0.0
    for e, a in zip(expected, actual, strict=True):
        if e or a:
            p, q = max(e, FLOOR) / total_expected, max(a, FLOOR) / total_actual
            found += (q - p) * math.log(q / p)
    return found


def jensen_shannon(expected: Sequence[int], actual: Sequence[int]) -> float:
    """Jensen-Shannon distance of two shares of counts: 0 to the root of log 2, in nats."""
    total_expected, total_actual = sum(expected), sum(actual)
    if not total_expected or not total_actual:
        return 0.0
    found = 0.0
    for e, a in zip(expected, actual, strict=True):
        p, q = e / total_expected, a / total_actual
        middle = (p + q) / 2
        found += (p * math.log(p / middle) if p else 0.0) + (q * math.log(q / middle) if q else 0.0)
    return math.sqrt(max(0.0, found / 2))


def ks_of_counts(expected: Sequence[int], actual: Sequence[int]) -> Ks:
    """The KS test of ordered bins: that of the samples with each value put at its bin's place.

    The p-value holds for values without ties; with bins it is on the careful side, too large.
    """
    return _tested(_gap(expected, actual), sum(expected), sum(actual))


def ks_distance(expected: Sequence[int], actual: Sequence[int]) -> float:
    """The statistic of ``ks_of_counts`` alone, which costs next to nothing."""
    m, n = sum(expected), sum(actual)
    return _gap(expected, actual) / (m * n) if m and n else 0.0


def _gap(expected: Sequence[int], actual: Sequence[int]) -> int:
    """The largest difference of the distribution functions, times both totals."""
    m, n = sum(expected), sum(actual)
    gap = below_expected = below_actual = 0
    for e, a in zip(expected, actual, strict=True):
        below_expected += e
        below_actual += a
        gap = max(gap, abs(below_expected * n - below_actual * m))
    return gap


def ks(one: Iterable[float], other: Iterable[float]) -> Ks:
    """The KS test of two samples, two-sided; ``nan`` is to be left out before.

    Cost: sorting, then at most ``EXACT_CELLS_MAX`` steps for the p-value.
    """
    a, b = sorted(one), sorted(other)
    m, n = len(a), len(b)
    gap = i = j = 0
    while i < m and j < n:
        value = min(a[i], b[j])
        while i < m and a[i] == value:
            i += 1
        while j < n and b[j] == value:
            j += 1
        gap = max(gap, abs(i * n - j * m))
    return _tested(gap, m, n)


def _tested(gap: int, m: int, n: int) -> Ks:
    """The test, from the largest difference times ``m * n``."""
    if not m or not n:
        return Ks(statistic=0.0, p_value=1.0, is_exact=True)
    statistic = gap / (m * n)
    if m * n <= EXACT_CELLS_MAX:
        return Ks(statistic=statistic, p_value=_outside(m, n, gap), is_exact=True)
    p_value = kolmogorov(math.sqrt(m * n / (m + n)) * statistic)
    return Ks(statistic=statistic, p_value=p_value, is_exact=False)


def _outside(m: int, n: int, gap: int) -> float:
    """The part of all orders of ``m`` and ``n`` values whose difference reaches ``gap``.

    An order is a path from (0, 0) to (m, n); one whose values at (i, j) differ by i/m - j/n is
    outside where ``abs(i * n - j * m) >= gap``. ``row[j]`` is the part of the paths to (i, j) that
    were outside somewhere; only places inside have to be computed, all others are 1.
    """
    if gap <= 0:
        return 1.0
    row = [1.0] * (n + 2)
    for i in range(m + 1):
        low = max(0, (i * n - gap) // m + 1)
        high = min(n, -((-i * n - gap) // m) - 1)
        if low > high:
            return 1.0
        left = 1.0
        for j in range(low, high + 1):
            steps = i + j
            if not steps:
                left = 0.0
            else:
                up = row[j] if i else 0.0
                before = left if j else 0.0
                left = (i * up + j * before) / steps
            row[j] = left
        if low:
            row[low - 1] = 1.0
        row[high + 1] = 1.0
    return row[n]


def kolmogorov(x: float) -> float:
    """How often the limit of the scaled KS statistic exceeds ``x``."""
    if x < 0.04:  # 1 to within 1e-300
        return 1.0
    if x < 1.18:  # the series below converges slowly; this one is its theta transform
        t = math.exp(-math.pi * math.pi / (8 * x * x))
        return 1 - math.sqrt(2 * math.pi) / x * (t + t**9 + t**25 + t**49)
    t = math.exp(-2 * x * x)
    return 2 * (t - t**4 + t**9 - t**16)


def chi_squared(freedom: int) -> float:
    """What chi squared exceeds once in a thousand times."""
    if freedom < 1:
        return 0.0
    part = 2 / (9 * freedom)
    return freedom * float((1 - part + _Z * math.sqrt(part)) ** 3)


def psi_by_chance(bins: int, m: int, n: int) -> float:
    """The PSI that two samples of the same distribution exceed once in a thousand times, about."""
    return chi_squared(bins - 1) * (1 / m + 1 / n) if m and n else math.inf


def jensen_shannon_by_chance(bins: int, m: int, n: int) -> float:
    """The same of the Jensen-Shannon distance."""
    return math.sqrt(psi_by_chance(bins, m, n) / 8)


def ks_by_chance(m: int, n: int) -> float:
    """The same of the KS statistic."""
    return _KS_CRITICAL * math.sqrt(1 / m + 1 / n) if m and n else math.inf


def rate_by_chance(count: int, m: int, other: int, n: int) -> float:
    """The same of the difference of two rates, ``count`` of ``m`` and ``other`` of ``n``.

    Where both are rare, a handful of observations in the smaller sample is still chance.
    """
    if not m or not n:
        return math.inf
    rate = (count + other + 1) / (m + n + 2)
    return _Z_TWO_SIDED * math.sqrt(rate * (1 - rate) * (1 / m + 1 / n))
