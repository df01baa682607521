"""Whose turn it is among those who wait for a sandbox."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

from boxes import spec_of
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.sandbox.nesting import Line
from appliance.sandbox.spec import SandboxSpec
from appliance.sandbox.waiting import Waiter, Waiting

TENANTS = ("a", "b", "c")
SPECS = tuple(
    replace(spec_of(f"{tenant}{number}", gpus=number == 2), tenant_id=tenant)
    for tenant in TENANTS
    for number in range(3)
)
WAITERS = st.lists(st.tuples(st.sampled_from(SPECS), st.booleans()), max_size=30)


def served_one_by_one(
    waiters: list[Waiter], lent: dict[str, int], free: dict[str, int], most: int
) -> list[Waiter]:
    """The rule as it is meant, looking at everybody."""

    def turn(one: Waiter) -> int:
        if one.line is not None and one.line.holder is not None:
            return -2
        return -1 if one.spec.resources.gpus else lent[one.spec.tenant_id]

    served = []
    for waiter in sorted(waiters, key=turn):
        if free[waiter.spec.version_key] and len(served) < most:
            free[waiter.spec.version_key] -= 1
            served.append(waiter)
    return served


@settings(max_examples=300, deadline=None)
@given(
    WAITERS,
    st.fixed_dictionaries({tenant: st.integers(0, 3) for tenant in TENANTS}),
    st.fixed_dictionaries({spec.version_key: st.integers(0, 3) for spec in SPECS}),
    st.integers(0, 12),
)
def test_whoever_is_served_is_who_a_look_at_everybody_would_have_served(
    who: list[tuple[SandboxSpec, bool]], lent: dict[str, int], free: dict[str, int], most: int
) -> None:
    async def run() -> None:
        waiting, waiters = Waiting(), []
        for spec, is_below in who:
            above = Line()
            above.is_holding = True
            waiter = Waiter(spec=spec, line=Line(above=above) if is_below else None)
            waiters.append(waiter)
            waiting.add(waiter)
        left, served = Counter(free), []
        for waiter in waiting.in_turn(lent):
            if left[waiter.spec.version_key] and len(served) < most:
                left[waiter.spec.version_key] -= 1
                served.append(waiter)
                assert waiting.remove(waiter)
        assert served == served_one_by_one(waiters, lent, dict(free), most)
        assert len(waiting) == len(waiters) - len(served)
        assert set(waiting) == set(waiters) - set(served)

    asyncio.run(run())


async def test_those_who_wait_for_the_same_are_looked_at_once() -> None:
    waiting = Waiting()
    for _ in range(1000):
        waiting.add(Waiter(spec=SPECS[0]))
    waiting.add(Waiter(spec=SPECS[1]))
    assert [waiter.spec for waiter in waiting.in_turn({})] == [SPECS[0], SPECS[1]]
    assert waiting.of(SPECS[0].version_key) == 1000


async def test_one_who_left_is_not_among_them() -> None:
    waiting, one, other = Waiting(), Waiter(spec=SPECS[0]), Waiter(spec=SPECS[0])
    waiting.add(one)
    waiting.add(other)
    assert waiting.remove(one)
    assert not waiting.remove(one)
    assert list(waiting) == [other]
    assert waiting.remove(other)
    assert not waiting
    assert waiting.of(SPECS[0].version_key) == 0
