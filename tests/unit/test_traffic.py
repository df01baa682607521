"""Choice: exact shares, keys that stay, what a route may not be, when a candidate is worse."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from storing import artifact, manifest

from appliance import clock, traffic
from appliance.errors import RouteInvalid
from appliance.records import WEIGHT_ALL, Arm, Canary, Route, Version
from appliance.traffic import Figures

SECRET = b"s" * 32
LIVE, CANDIDATE = 1, 2


def route(arms=((1, 10_000),), **more):
    return Route(
        model_id="mod_a", tenant_id="ten_a", set_ns=1, set_by="key",
        arms=tuple(Arm(number=n, weight=w) for n, w in arms), **more,
    )  # fmt: skip


def versions(count=4, retired=()):
    return [
        Version(
            model_id="mod_a", tenant_id="ten_a", number=n, manifest=manifest(),
            artifact=artifact(), runtime_digest="d", created_ns=1, created_by="k",
            retired_ns=1 if n in retired else 0,
        )
        for n in range(1, count + 1)
    ]  # fmt: skip


@st.composite
def weights(draw, numbers=(1, 2, 3, 4)):
    cuts = sorted(draw(st.lists(st.integers(0, WEIGHT_ALL), min_size=len(numbers) - 1,
                                max_size=len(numbers) - 1)))  # fmt: skip
    sizes = [b - a for a, b in pairwise([0, *cuts, WEIGHT_ALL])]
    return list(zip(numbers, sizes, strict=True))


def owners(arms):
    return [traffic.number_at(arms, point) for point in range(WEIGHT_ALL)]


# The two-sided 99.9 % interval of a binomial share, normal approximation: 3.2905 deviations.
@pytest.mark.parametrize("share", [1, 50, 500, 1000, 5000, 9900])
def test_over_100_000_calls_each_share_is_within_the_binomial_interval(share):
    arms = traffic.arms_of([(LIVE, WEIGHT_ALL - share), (CANDIDATE, share)])
    calls, p = 100_000, share / WEIGHT_ALL
    found = Counter(traffic.number_at(arms, clock.draw(WEIGHT_ALL)) for _ in range(calls))
    deviation = 3.2905 * math.sqrt(calls * p * (1 - p)) + 1
    assert abs(found[CANDIDATE] - calls * p) <= deviation
    assert found.total() == calls


def test_over_100_000_keys_each_share_is_within_the_binomial_interval():
    arms = traffic.arms_of([(LIVE, 9000), (CANDIDATE, 1000)])
    keys = 100_000
    points = (traffic.point_of_key(SECRET, "mod_a", f"key_{n}") for n in range(keys))
    found = Counter(traffic.number_at(arms, point) for point in points)
    assert abs(found[CANDIDATE] - keys * 0.1) <= 3.2905 * math.sqrt(keys * 0.1 * 0.9)


@given(weights(), st.text())
def test_a_sticky_key_never_changes_arm_while_the_weights_stand(found, key):
    arms = traffic.arms_of(found)
    again = traffic.arms_of(found, arms)
    assert again == arms
    point = traffic.point_of_key(SECRET, "mod_a", key)
    assert point == traffic.point_of_key(SECRET, "mod_a", key)
    assert traffic.number_at(arms, point) == traffic.number_at(again, point)


@given(weights())
def test_every_point_has_one_owner_and_every_arm_as_many_as_its_weight(found):
    arms = traffic.arms_of(found)
    assert Counter(owners(arms)) == Counter({n: w for n, w in found if w})
    spans = sorted(span for arm in arms for span in arm.spans)
    assert sum(end - start for start, end in spans) == WEIGHT_ALL


@given(st.integers(0, WEIGHT_ALL), st.integers(0, WEIGHT_ALL))
def test_growing_a_canary_moves_keys_from_live_to_the_canary_only(one, other):
    less, more = sorted((one, other))
    before = traffic.arms_of([(LIVE, WEIGHT_ALL - less), (CANDIDATE, less)], traffic.all_to(LIVE))
    after = traffic.arms_of([(LIVE, WEIGHT_ALL - more), (CANDIDATE, more)], before)
    moved = [(a, b) for a, b in zip(owners(before), owners(after), strict=True) if a != b]
    assert set(moved) <= {(LIVE, CANDIDATE)}
    assert len(moved) == more - less


@given(weights(), weights(), weights())
def test_a_key_moves_only_from_an_arm_that_shrank_to_one_that_grew(first, second, third):
    arms = traffic.arms_of(second, traffic.arms_of(first))
    later = traffic.arms_of(third, arms)
    was, now = dict(second), dict(third)
    moved = [(a, b) for a, b in zip(owners(arms), owners(later), strict=True) if a != b]
    assert all(now[a] < was[a] and now[b] > was[b] for a, b in moved)
    assert len(moved) == sum(max(0, now[n] - was[n]) for n in now)


def test_the_same_key_falls_elsewhere_for_another_model_and_another_appliance():
    keys = [f"k{n}" for n in range(50)]
    here = [traffic.point_of_key(SECRET, "mod_a", k) for k in keys]
    assert here != [traffic.point_of_key(SECRET, "mod_b", k) for k in keys]
    assert here != [traffic.point_of_key(b"t" * 32, "mod_a", k) for k in keys]


RULE = Canary(number=2, against=1, error_rate_max=0.02, latency_ratio_max=1.5, calls_min=100)
BOTH = ((1, 9000), (2, 1000))


@pytest.mark.parametrize(
    ("wrong", "pointer", "words"),
    [
        (route(((1, 9000), (2, 500))), "/arms", "95 percent, not 100: 5 percent are missing"),
        (route(((1, 9000), (2, 1001))), "/arms", "sum to 100.01 percent, not 100: 0.01 percent"),
        (route(()), "/arms", "1 to 16"),
        (route(((1, 5000), (1, 5000))), "/arms/1/version", "named twice"),
        (route(((1, 11_000), (2, -1000))), "/arms/0/percent", "0 to 100"),
        (route(((1, 9000), (9, 1000))), "/arms/1/version", "no version 9; the newest is 4"),
        (route(((1, 9000), (3, 1000))), "/arms/1/version", "version 3 is retired"),
        (route(shadows=(3,)), "/shadows/0", "version 3 is retired"),
        (route(shadows=(1,)), "/shadows/0", "answers callers already"),
        (route(shadows=(2, 2)), "/shadows", "named once"),
        (route(sticky="cookie"), "/sticky", "header:NAME"),
        (route(sticky="header:X-User"), "/sticky", "lower case"),
        (route(BOTH, canary=replace(RULE, number=4)), "/canary/version", "not one of the arms"),
        (route(BOTH, canary=replace(RULE, against=2)), "/canary/against", "own measure"),
        (route(BOTH, canary=replace(RULE, against=0)), "/canary/against", "not an arm"),
        (route(BOTH, canary=replace(RULE, latency_ratio_max=0.5)), "/canary/latency_ratio_max", ""),
        (route(BOTH, canary=replace(RULE, steps=(500, 100))), "/canary/steps_percent", "rising"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_route_is_named_with_its_field(wrong, pointer, words):
    with pytest.raises(RouteInvalid) as caught:
        traffic.require_route(wrong, versions(retired=(3,)))
    named = {field.pointer: field.detail for field in caught.value.fields}
    assert words in named[pointer]


def test_a_good_route_is_taken():
    traffic.require_route(
        route(BOTH, sticky="header:x-user", shadows=(4,), canary=replace(RULE, steps=(100, 500))),
        versions(retired=(3,)),
    )


BASE = Figures(calls=1000, errors=10, p95_us=10_000)


@pytest.mark.parametrize(
    ("candidate", "words"),
    [
        (Figures(calls=100, errors=3, p95_us=14_000), ""),
        (Figures(calls=100, errors=4, p95_us=10_000), "+3.00 points, more than 2"),
        (Figures(calls=100, errors=1, p95_us=16_000), "1.60 times, more than 1.5"),
        (Figures(calls=99, errors=99, p95_us=90_000), ""),
    ],
)
def test_a_candidate_is_complained_about_with_figures(candidate, words):
    found = traffic.complaint(RULE, BASE, candidate)
    assert (words in found) if words else found == ""


def test_a_threshold_of_zero_does_not_look():
    blind = replace(RULE, error_rate_max=0.0, latency_ratio_max=0.0)
    assert traffic.complaint(blind, BASE, Figures(calls=500, errors=500, p95_us=9e9)) == ""


def test_shifting_and_giving_back_touch_the_baseline_only():
    arms = traffic.arms_of([(1, 7000), (2, 1000), (3, 2000)])
    stands = replace(route(), arms=arms, canary=RULE)
    grown = traffic.shifted(stands, 2, 5000)
    assert [(a.number, a.weight) for a in grown.arms] == [(1, 3000), (2, 5000), (3, 2000)]
    assert grown.arms[2] == arms[2]
    assert traffic.shifted(stands, 2, 10_000).arms[1].weight == 8000
    back = traffic.given_back(stands)
    assert [(a.number, a.weight) for a in back.arms] == [(1, 10_000), (2, 0), (3, 0)]


def test_the_schedule_goes_up_step_by_step():
    rule = replace(RULE, steps=(500, 2500, 10_000))
    arms = traffic.arms_of([(1, 10_000), (2, 0)])
    found, stands = [], replace(route(), arms=arms, canary=rule)
    while (step := traffic.next_step(stands)) is not None:
        found.append(step)
        stands = traffic.shifted(stands, 2, step)
    assert found == [500, 2500, 10_000]
    assert traffic.next_step(route()) is None


def test_a_window_counts_what_is_in_it_and_forgets_what_is_not():
    window = traffic.Window(60)
    for second in range(100):
        window.add(float(second), is_error=second % 10 == 0, took_us=1000)
    found = window.figures(99.0)
    assert 58 <= found.calls <= 60
    assert found.errors == 6
    assert found.p95_us == pytest.approx(1000, rel=0.01)
    assert window.figures(1000.0) == Figures()
    assert len(window._slots) == 0


@given(st.lists(st.integers(1, 60_000_000), min_size=1, max_size=300))
def test_a_windows_percentile_is_within_one_percent(took):
    window = traffic.Window(30)
    for one in took:
        window.add(1.0, is_error=False, took_us=one)
    exact = sorted(took)[math.ceil(0.95 * len(took)) - 1]
    assert window.figures(1.0).p95_us == pytest.approx(exact, rel=0.0101)
