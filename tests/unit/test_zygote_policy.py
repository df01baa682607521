"""How many sandboxes are kept ready: arithmetic that never exceeds its memory."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from appliance.sandbox import zygote_policy as policy
from appliance.sandbox.zygote_policy import Candidate, Demand

S = 1_000_000_000
MIB = 1024 * 1024
TIMES = st.lists(st.integers(0, 600 * S), min_size=1, max_size=60).map(sorted)
CANDIDATES = st.dictionaries(
    st.integers(0, 20),
    st.builds(
        Candidate,
        wanted=st.integers(0, 16),
        cost_bytes=st.integers(1, 500 * MIB),
        last_ns=st.integers(0, 100 * S),
    ),
    max_size=12,
)


def demand_of(times: list[int]) -> Demand:
    demand = Demand()
    for at in times:
        demand = demand.arrived(at)
    return demand


@given(TIMES)
def test_the_rate_is_never_negative_and_decays(times: list[int]) -> None:
    demand = demand_of(times)
    now = times[-1]
    assert 0 < demand.rate_at(now) <= len(times) / policy.WINDOW_S + 1e-9
    assert demand.rate_at(now + 60 * S) < demand.rate_at(now)
    assert demand.rate_at(now + 3600 * S) < 1e-9


def test_a_steady_rate_is_found() -> None:
    demand = demand_of([at * S // 2 for at in range(1200)])
    assert math.isclose(demand.rate_at(599 * S + S // 2), 2.0, rel_tol=0.05)


@given(TIMES, st.floats(0.01, 10), st.integers(1, 600))
def test_none_is_wanted_when_unused_and_at_least_one_while_used(
    times: list[int], start_s: float, idle_s: int
) -> None:
    demand = demand_of(times)
    soon, late = times[-1] + idle_s * S // 2, times[-1] + idle_s * S
    assert policy.wanted(demand, now_ns=soon, start_s=start_s, idle_s=idle_s) >= 1
    assert policy.wanted(demand, now_ns=soon, start_s=start_s, idle_s=idle_s) <= policy.PER_KEY_MAX
    assert policy.wanted(demand, now_ns=late, start_s=start_s, idle_s=idle_s) == 0


def test_one_cold_start_keeps_one_ready_and_many_keep_what_arrives_meanwhile() -> None:
    one = demand_of([0])
    assert policy.wanted(one, now_ns=0, start_s=1.5, idle_s=300) == 1
    many = demand_of([at * S // 4 for at in range(1200)])
    assert policy.wanted(many, now_ns=1199 * S // 4, start_s=1.5, idle_s=300) == 7


@given(CANDIDATES, st.integers(0, 2000 * MIB))
def test_shares_fit_the_memory_and_nobody_gets_more_than_wanted(
    candidates: dict[int, Candidate], budget: int
) -> None:
    granted = policy.share(candidates, budget)
    assert granted.keys() == candidates.keys()
    assert sum(candidates[key].cost_bytes * n for key, n in granted.items()) <= budget
    assert all(0 <= n <= candidates[key].wanted for key, n in granted.items())


@given(CANDIDATES, st.integers(0, 2000 * MIB))
def test_no_room_is_left_that_somebody_wants(candidates: dict[int, Candidate], budget: int) -> None:
    granted = policy.share(candidates, budget)
    left = budget - sum(candidates[key].cost_bytes * n for key, n in granted.items())
    for key, one in candidates.items():
        assert granted[key] == one.wanted or one.cost_bytes > left


@given(CANDIDATES)
def test_no_memory_means_none_and_enough_means_all(candidates: dict[int, Candidate]) -> None:
    assert not any(policy.share(candidates, 0).values())
    everything = sum(one.cost_bytes * one.wanted for one in candidates.values())
    granted = policy.share(candidates, everything)
    assert granted == {key: one.wanted for key, one in candidates.items()}


def test_everybody_gets_one_before_anybody_gets_two() -> None:
    candidates = {
        "busy": Candidate(wanted=9, cost_bytes=10, last_ns=2),
        "quiet": Candidate(wanted=1, cost_bytes=10, last_ns=1),
    }
    assert policy.share(candidates, 30) == {"busy": 2, "quiet": 1}
    assert policy.share(candidates, 10) == {"busy": 1, "quiet": 0}


def test_the_second_failure_waits_and_each_next_one_longer() -> None:
    waits = [policy.back_off_s(n) for n in range(9)]
    assert waits[:4] == [0, 0, 30, 60]
    assert waits == sorted(waits)
    assert policy.back_off_s(1000) == policy.BACK_OFF_MAX_S


def test_the_memory_is_a_tenth_and_at_most_two_gibibytes() -> None:
    assert policy.budget_bytes(-1, 8 * 1024 * MIB) == 8 * 1024 * MIB // 10
    assert policy.budget_bytes(-1, 1 << 40) == 2 * 1024 * MIB
    assert policy.budget_bytes(0, 1 << 40) == 0
    assert policy.budget_bytes(77, 1 << 30) == 77
