"""Effects equal scipy's on the same data, and intervals hold what they say."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from scipy import stats

from appliance import effects
from appliance.effects import Mean

CLOSE = 1e-9
COUNTS = [(0, 10), (1, 10), (10, 10), (3, 1000), (56, 70), (48, 80), (999, 100_000), (0, 1)]


@pytest.mark.parametrize(("count", "total"), COUNTS)
def test_wilsons_interval_is_scipys(count, total):
    found = stats.binomtest(count, total).proportion_ci(0.95, method="wilson")
    assert effects.wilson(count, total) == pytest.approx((found.low, found.high), abs=CLOSE)


def test_nothing_seen_says_nothing():
    assert effects.wilson(0, 0) == (0.0, 1.0)
    assert effects.rate_effect(0, 0, 1, 10, smallest=0.01) is None
    assert effects.mean_effect(Mean(count=1), Mean(count=9), smallest=1) is None


def test_newcombes_interval_is_that_of_his_paper():
    # Newcombe 1998, table II, method 10: 56/70 - 48/80 and 9/10 - 3/10.
    for (a, m, b, n), (low, high) in (
        ((56, 70, 48, 80), (0.0524, 0.3339)),
        ((9, 10, 3, 10), (0.1705, 0.8090)),
        ((10, 10, 0, 20), (0.6791, 1.0)),
    ):
        found = effects.rate_effect(a, m, b, n, smallest=0.01)
        assert (round(found.low, 4), round(found.high, 4)) == (low, high)


@pytest.mark.parametrize("freedom", [1, 1.5, 2, 5, 9.7, 30, 200, 1e4, 1e6])
@pytest.mark.parametrize("probability", [0.6, 0.9, 0.975, 0.999])
def test_students_quantiles_are_scipys(probability, freedom):
    wanted = stats.t.ppf(probability, freedom)
    assert effects.student(probability, freedom) == pytest.approx(wanted, rel=1e-8)


def mean_of(values):
    return Mean(
        count=len(values), mean=statistics.fmean(values), variance=statistics.variance(values)
    )


@pytest.mark.parametrize(("m", "n"), [(2, 2), (5, 400), (300, 40), (2000, 2000)])
def test_welchs_interval_is_scipys(m, n):
    rng = random.Random(m * 1000 + n)
    one = [rng.gauss(5, 2) for _ in range(m)]
    other = [rng.gauss(4, 7) for _ in range(n)]
    found = effects.mean_effect(mean_of(one), mean_of(other), smallest=0.5)
    wanted = stats.ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), rel=1e-8)
    assert found.difference == pytest.approx(statistics.fmean(one) - statistics.fmean(other))


def test_equal_constants_differ_by_nothing():
    found = effects.mean_effect(Mean(count=5, mean=2), Mean(count=9, mean=2), smallest=1)
    assert (found.low, found.high, found.is_clear, found.is_enough) == (0, 0, False, True)


def test_a_sample_of_the_size_needed_finds_the_difference_four_times_in_five():
    rng = random.Random(7)
    needed = effects.samples_for_mean(9.0, 1.0)
    assert needed == math.ceil(2 * 9 * (1.959964 + 0.841621) ** 2)
    found = 0
    for _ in range(300):
        one = [rng.gauss(1, 3) for _ in range(needed)]
        other = [rng.gauss(0, 3) for _ in range(needed)]
        found += effects.mean_effect(mean_of(one), mean_of(other), smallest=1).is_clear
    assert 0.72 <= found / 300 <= 0.88


def test_the_sample_size_of_a_rate_is_fleisss():
    # Fleiss, Statistical Methods for Rates and Proportions, without continuity correction.
    assert effects.samples_for_rate(0.1, 0.05) == 686
    assert effects.samples_for_rate(0.5, 0.1) == 388
    assert effects.samples_for_rate(1.0, 0.1) == effects.samples_for_rate(0.0, 0.1)


def test_the_interval_of_a_rate_holds_the_truth_19_times_in_20():
    rng = random.Random(3)
    held = 0
    for _ in range(1000):
        a = sum(rng.random() < 0.06 for _ in range(200))
        b = sum(rng.random() < 0.03 for _ in range(400))
        found = effects.rate_effect(a, 200, b, 400, smallest=0.01)
        held += found.low <= 0.03 <= found.high
    assert 0.93 <= held / 1000 <= 0.98
