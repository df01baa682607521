"""Drift statistics equal scipy's on the same data, on random data and on what is meant to hurt."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from scipy.spatial.distance import jensenshannon
from scipys import ks_exact

from appliance.drift import statistics

CLOSE = 1e-9
VALUES = st.lists(
    st.one_of(
        st.floats(-1e6, 1e6),
        st.integers(-3, 3).map(float),
        st.sampled_from([0.0, -0.0, 1e-300, 1e300, -1e300]),
    ),
    min_size=1,
    max_size=60,
)
COUNTS = st.lists(
    st.tuples(*[st.one_of(st.just(0), st.integers(0, 10**9))] * 2), min_size=1, max_size=60
).filter(lambda pairs: any(a for a, _ in pairs) and any(b for _, b in pairs))


def sides(pairs):
    return [a for a, _ in pairs], [b for _, b in pairs]


@settings(max_examples=300, deadline=None)
@given(VALUES, VALUES)
def test_the_ks_test_of_two_samples_is_scipys_exact_one(one, other):
    found = statistics.ks(one, other)
    assert found.is_exact
    assert (found.statistic, found.p_value) == pytest.approx(ks_exact(one, other), abs=CLOSE)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (7, 1000), (300, 300), (450, 500), (1000, 999)])
@pytest.mark.parametrize("shift", [0.0, 0.1, 1.0])
def test_so_it_is_of_larger_samples_however_small_the_p_value(m, n, shift):
    rng = random.Random(m * n)
    one = [rng.gauss(0, 1) for _ in range(m)]
    other = [rng.gauss(shift, 1) for _ in range(n)]
    wanted = stats.ks_2samp(one, other, method="exact")
    found = statistics.ks(one, other)
    assert found.statistic == pytest.approx(wanted.statistic, abs=CLOSE)
    assert found.p_value == pytest.approx(wanted.pvalue, rel=1e-6, abs=1e-300)


def test_beyond_what_can_be_counted_the_p_value_is_that_of_the_limit():
    rng = random.Random(5)
    one = [rng.gauss(0, 1) for _ in range(20_000)]
    other = [rng.gauss(0.02, 1) for _ in range(10_000)]
    found = statistics.ks(one, other)
    assert not found.is_exact
    assert found.statistic == pytest.approx(stats.ks_2samp(one, other).statistic, abs=CLOSE)
    scaled = found.statistic * math.sqrt(len(one) * len(other) / (len(one) + len(other)))
    assert found.p_value == pytest.approx(stats.kstwobign.sf(scaled), abs=CLOSE)


@settings(deadline=None)
@given(st.floats(0.0, 10.0))
def test_the_limit_of_the_ks_statistic_is_scipys(x):
    assert statistics.kolmogorov(x) == pytest.approx(special.kolmogorov(x), abs=CLOSE)


@settings(max_examples=300, deadline=None)
@given(COUNTS)
def test_psi_and_jensen_shannon_are_scipys(pairs):
    expected, actual = sides(pairs)
    found = statistics.jensen_shannon(expected, actual)
    assert found == pytest.approx(jensenshannon(expected, actual), abs=1e-8)
    kept = np.array(expected) + np.array(actual) > 0
    p = np.maximum(np.array(expected)[kept], statistics.FLOOR) / sum(expected)
    q = np.maximum(np.array(actual)[kept], statistics.FLOOR) / sum(actual)
    wanted = float(np.sum(special.rel_entr(p, q) + special.rel_entr(q, p)))
    assert statistics.psi(expected, actual) == pytest.approx(wanted, abs=CLOSE)


def test_a_jensen_shannon_distance_is_scipys_to_nine_places_where_it_is_no_rounding_noise():
    rng = random.Random(2)
    for _ in range(500):
        expected = [rng.choice([0, rng.randint(1, 1000)]) for _ in range(12)] + [1]
        actual = [rng.choice([0, rng.randint(1, 1000)]) for _ in range(12)] + [1]
        wanted = jensenshannon(expected, actual)
        assert statistics.jensen_shannon(expected, actual) == pytest.approx(wanted, abs=CLOSE)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30))
def test_the_ks_test_of_bins_is_scipys_of_values_put_at_their_bins(pairs):
    expected, actual = sides([*pairs, (1, 1)])
    one = np.repeat(np.arange(len(expected)), expected)
    other = np.repeat(np.arange(len(actual)), actual)
    found = statistics.ks_of_counts(expected, actual)
    assert (found.statistic, found.p_value) == pytest.approx(ks_exact(one, other), abs=CLOSE)
    assert statistics.ks_distance(expected, actual) == found.statistic


def test_nothing_observed_says_nothing():
    for distance in (statistics.psi, statistics.jensen_shannon, statistics.ks_distance):
        assert distance([0, 0], [1, 2]) == distance([1, 2], [0, 0]) == 0.0
    assert statistics.ks([], [1.0]).p_value == 1.0


@pytest.mark.parametrize("freedom", [1, 2, 5, 9, 50, 200])
def test_chance_is_chi_squareds_to_three_percent(freedom):
    wanted = stats.chi2.ppf(1 - statistics.CHANCE, freedom)
    assert statistics.chi_squared(freedom) == pytest.approx(wanted, rel=0.031)


def test_what_chance_exceeds_it_does_exceed_about_as_seldom_as_is_said():
    rng = np.random.default_rng(1)
    m, n, trials = 4000, 300, 4000
    over = dict.fromkeys(("psi", "js", "ks", "rate"), 0)
    for _ in range(trials):
        e, a = rng.multinomial(m, [0.1] * 10), rng.multinomial(n, [0.1] * 10)
        e, a = e.tolist(), a.tolist()
        over["psi"] += statistics.psi(e, a) > statistics.psi_by_chance(10, m, n)
        over["js"] += statistics.jensen_shannon(e, a) > statistics.jensen_shannon_by_chance(
            10, m, n
        )
        over["ks"] += statistics.ks_distance(e, a) > statistics.ks_by_chance(m, n)
        rate = abs(a[0] / n - e[0] / m)
        over["rate"] += rate > statistics.rate_by_chance(e[0], m, a[0], n)
    assert all(count <= trials * 0.004 for count in over.values()), over
