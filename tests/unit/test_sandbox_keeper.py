"""Reservations, freezing and short memory, over an executor without processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from fake_executor import FakeExecutor

from appliance import config
from appliance.sandbox import keeper, zygote_policy
from appliance.sandbox.pool import Pool
from appliance.sandbox.spec import MIB, ReservationInfo, SandboxSpec


def spec_of(key: str = "v1", **changes: Any) -> SandboxSpec:
    values: dict[str, Any] = {"version_key": key, "tenant_id": "t", "runtime": "r",
                              "runtime_digest": "d", "entry": "e:e", **changes}  # fmt: skip
    return SandboxSpec(**values)


async def files() -> AsyncIterator[bytes]:
    yield b""


async def bad_files() -> AsyncIterator[bytes]:
    yield b"import nothing_of_this_name"


def pool_of(
    executor: FakeExecutor,
    *,
    freeze_s: float = 60.0,
    free: list[int] | None = None,
    **settings: Any,
) -> Pool:
    """A pool that looks oftener than once a second; ``free`` holds the memory left."""
    values = {"instances_max": 6, "instances_per_version_max": 4, "reserved_max": 4,
              "zygote_memory_bytes_max": 0, **settings}  # fmt: skip
    left = [0] if free is None else free
    pace = keeper.Pace(freeze_s=freeze_s, tick_s=0.02, shed_max=1, free_bytes=lambda: left[0])
    return Pool(executor, config.Sandbox(**values), pace=pace)


async def until(what: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not what():
            await asyncio.sleep(0.005)


def info_of(pool: Pool, key: str = "v1") -> ReservationInfo:
    return next(info for info in pool.reservations() if info.version_key == key)


async def call(pool: Pool, spec: SandboxSpec) -> tuple[str, bool]:
    async with pool.lease(spec, files) as lease:
        return lease.sandbox_id, lease.cold


@pytest.fixture
def executor() -> FakeExecutor:
    return FakeExecutor()


async def test_reserved_sandboxes_are_loaded_before_anybody_calls(executor: FakeExecutor) -> None:
    pool = pool_of(executor)
    pool.reserve(spec_of(), files, 3)
    await until(lambda: info_of(pool).ready == 3)
    assert [info.state for info in pool.list()] == ["ready"] * 3
    _, cold = await call(pool, spec_of())
    assert not cold
    assert executor.made == 3
    await pool.close()
    assert not executor.sandboxes


async def test_reserved_ones_outlive_their_idle_time_and_others_do_not(
    executor: FakeExecutor,
) -> None:
    pool = pool_of(executor)
    strict = spec_of(idle_timeout_s=0)
    pool.reserve(strict, files, 2)
    await until(lambda: info_of(pool).ready == 2)
    await call(pool, spec_of("other", idle_timeout_s=0))
    await asyncio.sleep(0.1)
    assert [info.version_key for info in pool.list()] == ["v1", "v1"]
    first, cold = await call(pool, strict)  # destroyed after its call, as asked, and replaced
    assert not cold
    await until(lambda: info_of(pool).ready == 2)
    assert first not in executor.sandboxes
    pool.unreserve("v1")
    await until(lambda: not executor.sandboxes)
    assert pool.reservations() == ()
    await pool.close()


async def test_a_reserved_sandbox_makes_no_room_for_others(executor: FakeExecutor) -> None:
    pool = pool_of(executor, instances_max=3, reserved_max=2)
    pool.reserve(spec_of(), files, 2)
    await until(lambda: info_of(pool).ready == 2)
    kept = {info.id for info in pool.list()}
    for number in range(5):
        await call(pool, spec_of(f"other{number}"))
    assert kept <= set(executor.sandboxes)
    await pool.close()


async def test_one_place_is_never_reserved(executor: FakeExecutor) -> None:
    pool = pool_of(executor, instances_max=2, reserved_max=9)
    pool.reserve(spec_of(), files, 2)
    await until(lambda: info_of(pool).ready == 1)
    await asyncio.sleep(0.1)
    assert (info_of(pool).ready, executor.made) == (1, 1)
    assert "1 of 2" in info_of(pool).problem
    await call(pool, spec_of("other"))
    await pool.close()


async def test_one_that_dies_is_made_again_and_then_with_a_pause(executor: FakeExecutor) -> None:
    pool = pool_of(executor)
    pool.reserve(spec_of(), files, 1)
    for made in (1, 2):
        await until(lambda made=made: executor.made == made and info_of(pool).ready == 1)
        await next(iter(executor.sandboxes.values())).destroy()
    await until(lambda: bool(info_of(pool).problem))
    await asyncio.sleep(0.1)
    assert executor.made == 2
    assert 0 < info_of(pool).retry_s <= zygote_policy.BACK_OFF_S
    await pool.close()


async def test_one_that_does_not_load_is_tried_again_with_a_pause_and_says_why(
    executor: FakeExecutor,
) -> None:
    pool = pool_of(executor)
    pool.reserve(spec_of(), bad_files, 1)
    await until(lambda: executor.made == 2)
    await asyncio.sleep(0.1)
    assert executor.made == 2
    assert "nothing_of_this_name" in info_of(pool).problem
    assert not executor.sandboxes
    pool.reserve(spec_of(), files, 1)  # set anew, it is tried at once
    await until(lambda: info_of(pool).ready == 1)
    assert info_of(pool).problem == ""
    await pool.close()


async def test_a_version_that_is_withdrawn_is_kept_no_longer(executor: FakeExecutor) -> None:
    pool = pool_of(executor)
    pool.reserve(spec_of(), files, 2)
    await until(lambda: info_of(pool).ready == 2)
    await pool.evict("v1")
    await asyncio.sleep(0.1)
    assert not executor.sandboxes
    assert pool.reservations() == ()
    await pool.close()


async def test_a_reservation_dropped_while_it_is_made_leaves_nothing(
    executor: FakeExecutor,
) -> None:
    executor.load_s = 0.05
    pool = pool_of(executor)
    pool.reserve(spec_of(idle_timeout_s=0), files, 2)
    await asyncio.sleep(0.02)
    pool.unreserve("v1")
    await asyncio.sleep(0.15)
    assert not executor.sandboxes
    pool.reserve(spec_of(), files, 2)
    await asyncio.sleep(0.02)
    await pool.close()
    assert not executor.sandboxes


async def test_an_idle_sandbox_is_frozen_and_one_in_use_is_not(executor: FakeExecutor) -> None:
    pool = pool_of(executor, freeze_s=0.03)
    first, _ = await call(pool, spec_of())
    await until(lambda: executor.sandboxes[first].is_frozen)
    assert pool.list()[0].state == "frozen"
    async with pool.lease(spec_of(), files):
        await asyncio.sleep(0.06)
        assert executor.sandboxes[first].freezes == 1
    for _ in range(20):
        await call(pool, spec_of())
        await asyncio.sleep(0.005)
    assert executor.sandboxes[first].freezes == 1  # calls close to each other never meet it
    await pool.close()


async def test_one_that_works_while_frozen_is_ended(executor: FakeExecutor) -> None:
    pool = pool_of(executor, freeze_s=0.01)
    moving, _ = await call(pool, spec_of())
    still, _ = await call(pool, spec_of("v2"))
    await until(lambda: all(box.is_frozen for box in executor.sandboxes.values()))
    executor.sandboxes[moving].moves = True
    await until(lambda: moving not in executor.sandboxes)
    assert [info.id for info in pool.list()] == [still]
    await pool.close()


async def test_short_memory_ends_what_waits_the_longest_unused_first(
    executor: FakeExecutor,
) -> None:
    free = [1024 * MIB]
    pool = pool_of(executor, free=free, free_memory_bytes_min=256 * MIB)
    pool.reserve(spec_of("reserved"), files, 1)
    await until(lambda: info_of(pool, "reserved").ready == 1)
    async with pool.lease(spec_of("lent"), files):
        for key in ("old", "new", "newest"):
            await call(pool, spec_of(key))
        await asyncio.sleep(0.1)
        assert not executor.ended
        free[0] = 100 * MIB
        await until(lambda: len(executor.ended) == 3)
        await asyncio.sleep(0.1)
        assert executor.ended == ["old", "new", "newest"]
        assert {info.version_key for info in pool.list()} == {"reserved", "lent"}
    await pool.close()


async def test_short_memory_ends_zygotes_before_anything_else(
    executor: FakeExecutor,
) -> None:
    free = [1024 * MIB]
    executor.memory_bytes = 20 * MIB
    pool = pool_of(
        executor, free=free, free_memory_bytes_min=256 * MIB, zygote_memory_bytes_max=100 * MIB
    )
    await call(pool, spec_of())
    await until(lambda: any(info.state == "zygote" for info in pool.list()))
    free[0] = 100 * MIB
    await until(lambda: not any(info.state == "zygote" for info in pool.list()))
    free[0] = 1024 * MIB
    made = executor.made_ahead
    await call(pool, spec_of("v2"))
    await asyncio.sleep(0.2)
    assert executor.made_ahead == made  # none for a while
    await pool.close()


def test_the_memory_to_keep_free_is_a_twentieth_unless_set() -> None:
    assert keeper.free_bytes_min(-1, 2000) == 100
    assert keeper.free_bytes_min(0, 2000) == 0
    assert keeper.free_bytes_min(7, 2000) == 7


async def test_one_made_for_what_a_version_was_is_replaced(executor: FakeExecutor) -> None:
    pool = pool_of(executor)
    pool.reserve(spec_of(), files, 2)
    await until(lambda: info_of(pool).ready == 2)
    before = set(executor.sandboxes)
    changed = spec_of(entry="other:e")
    pool.reserve(changed, files, 2)
    await until(lambda: info_of(pool).ready == 2 and not before & set(executor.sandboxes))
    _, cold = await call(pool, changed)
    assert not cold
    await pool.close()
