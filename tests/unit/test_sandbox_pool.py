"""The pool over an executor without processes: order, caps, reuse, eviction, draining."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fake_executor import FakeExecutor

from appliance import config
from appliance.errors import (
    CapacityExhausted,
    DeadlinePassed,
    Draining,
    InvokeTimeout,
    LoadFailed,
    ModelRaised,
)
from appliance.sandbox.pool import Pool
from appliance.sandbox.spec import Reply, Request, SandboxSpec


def spec_of(key: str = "v1", **changes: Any) -> SandboxSpec:
    values: dict[str, Any] = {"version_key": key, "tenant_id": "t", "runtime": "r",
                              "runtime_digest": "d", "entry": "e:e", **changes}  # fmt: skip
    return SandboxSpec(**values)


async def no_files() -> AsyncIterator[bytes]:
    yield b""


async def bad_files() -> AsyncIterator[bytes]:
    yield b"import nothing_of_this_name"


def pool_of(executor: FakeExecutor, **settings: Any) -> Pool:
    values = {"instances_max": 4, "instances_per_version_max": 2, "queue_timeout_s": 5,
              "zygote_memory_bytes_max": 0, **settings}  # fmt: skip
    return Pool(executor, config.Sandbox(**values))


async def call(
    pool: Pool, spec: SandboxSpec, body: bytes = b"1", timeout_ms: int = 5000
) -> tuple[Reply, str, bool]:
    async with pool.lease(spec, no_files) as lease:
        request = Request(
            id="1",
            content_type="application/json",
            body=body,
            timeout_ms=timeout_ms,
            reply_bytes_max=1000,
        )
        return await lease.request(request), lease.sandbox_id, lease.cold


@pytest.fixture
def executor() -> FakeExecutor:
    return FakeExecutor()


async def test_the_second_call_is_warm(executor: FakeExecutor) -> None:
    pool = pool_of(executor)
    _, first, cold = await call(pool, spec_of())
    _, second, warm = await call(pool, spec_of())
    assert (cold, warm, first == second) == (True, False, True)
    await pool.close()
    assert not executor.sandboxes


async def test_a_sandbox_serves_its_own_version_only(executor: FakeExecutor) -> None:
    pool = pool_of(executor)
    _, first, _ = await call(pool, spec_of("a"))
    _, second, cold = await call(pool, spec_of("b"))
    assert first != second
    assert cold
    await pool.close()


async def test_one_call_at_a_time_in_a_sandbox_and_caps_hold(executor: FakeExecutor) -> None:
    pool = pool_of(executor)
    executor.create_s = 0.005
    body = b'{"do": "sleep", "s": 0.005}'
    specs = [spec_of(f"v{n % 3}") for n in range(60)]
    await asyncio.gather(*(call(pool, spec, body) for spec in specs))
    assert executor.most_at_once <= 4
    for sandbox in executor.sandboxes.values():
        assert sandbox.alive
    await pool.close()


async def test_no_more_creations_at_once_than_twice_the_cores(executor: FakeExecutor) -> None:
    import os

    pool = pool_of(executor, instances_max=100, instances_per_version_max=100)
    executor.create_s = 0.01
    await asyncio.gather(*(call(pool, spec_of(f"v{n}")) for n in range(40)))
    assert executor.most_creating <= 2 * len(os.sched_getaffinity(0))
    await pool.close()


async def test_calls_are_served_in_order(executor: FakeExecutor) -> None:
    pool = pool_of(executor, instances_per_version_max=1)
    done: list[int] = []

    async def one(number: int) -> None:
        await call(pool, spec_of(), b'{"do": "sleep", "s": 0.001}')
        done.append(number)

    await asyncio.gather(*(one(number) for number in range(20)))
    assert done == list(range(20))
    assert executor.made == 1
    await pool.close()


async def test_a_full_queue_refuses(executor: FakeExecutor) -> None:
    pool = pool_of(executor, instances_per_version_max=1, queue_max=2)
    busy = [
        asyncio.create_task(call(pool, spec_of(), b'{"do": "sleep", "s": 0.1}')) for _ in range(3)
    ]
    await asyncio.sleep(0.02)
    with pytest.raises(CapacityExhausted):
        await call(pool, spec_of())
    await call(pool, spec_of("other"))  # a full queue is one version's own
    await asyncio.gather(*busy)
    await pool.close()


async def test_a_wait_that_is_too_long_refuses(executor: FakeExecutor) -> None:
    pool = pool_of(executor, instances_per_version_max=1, queue_timeout_s=1)
    busy = asyncio.create_task(call(pool, spec_of(), b'{"do": "sleep", "s": 1.3}'))
    await asyncio.sleep(0.01)
    with pytest.raises(CapacityExhausted):
        await call(pool, spec_of())
    await busy
    await call(pool, spec_of())
    await pool.close()


async def test_an_idle_sandbox_of_another_version_makes_room(executor: FakeExecutor) -> None:
    pool = pool_of(executor, instances_max=2)
    executor.destroy_s = 0.01
    _, oldest, _ = await call(pool, spec_of("a"))
    await call(pool, spec_of("b"))
    await call(pool, spec_of("c"))
    assert oldest not in executor.sandboxes
    assert executor.most_at_once <= 2
    assert [info.version_key for info in pool.list()] == ["b", "c"]
    await pool.close()


async def test_idle_time_zero_ends_the_sandbox_after_the_call(executor: FakeExecutor) -> None:
    pool = pool_of(executor)
    for _ in range(3):
        await call(pool, spec_of(idle_timeout_s=0))
        await asyncio.sleep(0.01)
        assert not executor.sandboxes
    assert executor.made == 3
    await pool.close()


async def test_an_idle_sandbox_ends_after_its_time(executor: FakeExecutor) -> None:
    pool = pool_of(executor)
    await call(pool, spec_of(idle_timeout_s=1))
    await asyncio.sleep(0.7)
    await call(pool, spec_of(idle_timeout_s=1))
    await asyncio.sleep(0.7)
    assert len(executor.sandboxes) == 1
    await asyncio.sleep(0.5)
    assert not executor.sandboxes
    await pool.close()


async def test_a_sandbox_is_kept_after_an_exception_and_ended_after_a_timeout(
    executor: FakeExecutor,
) -> None:
    pool = pool_of(executor)
    _, first, _ = await call(pool, spec_of())
    with pytest.raises(ModelRaised):
        await call(pool, spec_of(), b'{"do": "raise"}')
    _, second, cold = await call(pool, spec_of())
    assert (first, cold) == (second, False)
    with pytest.raises(InvokeTimeout):
        await call(pool, spec_of(), b'{"do": "spin"}', timeout_ms=20)
    _, third, cold = await call(pool, spec_of())
    assert third != first
    assert cold
    await pool.close()


async def test_a_load_that_fails_frees_its_place(executor: FakeExecutor) -> None:
    pool = pool_of(executor, instances_max=1)

    async def failing() -> None:
        async with pool.lease(spec_of(), bad_files):
            pass

    found = await asyncio.gather(*(failing() for _ in range(5)), return_exceptions=True)
    assert all(isinstance(error, LoadFailed) for error in found)
    await call(pool, spec_of())
    await pool.close()


async def test_a_cancelled_waiter_leaves_no_trace(executor: FakeExecutor) -> None:
    pool = pool_of(executor, instances_max=1)
    busy = asyncio.create_task(call(pool, spec_of(), b'{"do": "sleep", "s": 0.05}'))
    await asyncio.sleep(0.01)
    waiting = [asyncio.create_task(call(pool, spec_of("w"))) for _ in range(5)]
    await asyncio.sleep(0.01)
    for task in waiting[:4]:
        task.cancel()
    await busy
    await waiting[4]
    assert await asyncio.gather(*waiting[:4], return_exceptions=True)
    await pool.close()
    assert not executor.sandboxes


async def test_cancelling_at_every_moment_loses_no_place(executor: FakeExecutor) -> None:
    pool = pool_of(executor, instances_max=2, instances_per_version_max=1)
    executor.create_s = executor.load_s = executor.destroy_s = 0.002
    for step in range(30):
        tasks = [
            asyncio.create_task(call(pool, spec_of(f"v{n % 3}"), b'{"do": "sleep", "s": 0.002}'))
            for n in range(6)
        ]
        await asyncio.sleep(step * 0.0005)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert executor.most_at_once <= 2
    for key in ("v0", "v1", "v2"):
        await asyncio.wait_for(call(pool, spec_of(key)), 30)
    await pool.close()
    assert not executor.sandboxes


async def test_a_cancelled_call_ends_its_sandbox(executor: FakeExecutor) -> None:
    pool = pool_of(executor)
    task = asyncio.create_task(call(pool, spec_of(), b'{"do": "spin"}'))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.01)
    assert not executor.sandboxes
    await pool.close()


async def test_stop_ends_one_and_evict_ends_a_versions_own(executor: FakeExecutor) -> None:
    pool = pool_of(executor)
    _, one, _ = await call(pool, spec_of("a"))
    assert await pool.stop(one)
    assert not await pool.stop(one)
    await call(pool, spec_of("a"))
    await call(pool, spec_of("b"))
    busy = asyncio.create_task(call(pool, spec_of("a"), b'{"do": "sleep", "s": 0.05}'))
    await asyncio.sleep(0.01)
    await pool.evict("a")
    await busy
    await asyncio.sleep(0.01)
    assert [info.version_key for info in pool.list()] == ["b"]
    await pool.close()


async def test_a_sandbox_that_does_not_end_is_no_problem_of_who_evicts_its_version(
    executor: FakeExecutor,
) -> None:
    pool = pool_of(executor)
    calls = [call(pool, spec_of("a"), b'{"do": "sleep", "s": 0.05}') for _ in range(2)]
    (_, first, _), (_, second, _) = await asyncio.gather(*calls)
    stuck, well = executor.sandboxes[first], executor.sandboxes[second]

    stuck.is_stuck = True
    await pool.evict("a")
    assert pool.list() == ()
    assert not well.alive
    _, third, cold = await call(pool, spec_of("a"))
    assert cold
    assert third not in (first, second)
    stuck.is_stuck = False
    await pool.close()


async def test_closing_waits_for_calls_and_refuses_new_ones(executor: FakeExecutor) -> None:
    pool = pool_of(executor, instances_per_version_max=1)
    busy = asyncio.create_task(call(pool, spec_of(), b'{"do": "sleep", "s": 0.05}'))
    await asyncio.sleep(0.01)
    waiting = asyncio.create_task(call(pool, spec_of()))
    await asyncio.sleep(0)
    closing = asyncio.create_task(pool.close())
    await asyncio.sleep(0.01)
    with pytest.raises(Draining):
        await waiting
    with pytest.raises(Draining):
        await call(pool, spec_of())
    assert (await busy)[0].body == b"null"
    await closing
    assert not executor.sandboxes


async def test_closing_does_not_wait_for_ever(executor: FakeExecutor) -> None:
    pool = pool_of(executor)
    stuck = asyncio.create_task(call(pool, spec_of(), b'{"do": "spin"}'))
    await asyncio.sleep(0.01)
    await pool.close(timeout_s=0.05)
    assert not executor.sandboxes
    assert isinstance((await asyncio.gather(stuck, return_exceptions=True))[0], Exception)


async def test_a_tenant_with_fewer_sandboxes_comes_first(executor: FakeExecutor) -> None:
    pool = pool_of(executor, instances_max=2, instances_per_version_max=1)
    sleep, order = b'{"do": "sleep", "s": 0.01}', []

    async def one(key: str, tenant: str) -> None:
        await call(pool, spec_of(key, tenant_id=tenant), sleep)
        order.append(tenant)

    loud = [asyncio.create_task(one(f"v{n}", "loud")) for n in range(12)]
    await asyncio.sleep(0)
    quiet = asyncio.create_task(one("q", "quiet"))  # the last to come
    await asyncio.gather(*loud, quiet)
    assert "quiet" in order[:4]
    await pool.close()


async def test_a_deadline_ends_the_wait_and_what_was_loaded_meanwhile_is_kept(
    executor: FakeExecutor,
) -> None:
    pool = pool_of(executor, instances_per_version_max=1)
    executor.load_s = 0.05
    loop = asyncio.get_running_loop()
    with pytest.raises(DeadlinePassed):
        async with pool.lease(spec_of(), no_files, deadline=loop.time() + 0.01):
            raise AssertionError("it came too late")
    _, _, cold = await call(pool, spec_of())
    assert not cold
    async with pool.lease(spec_of(), no_files):
        with pytest.raises(DeadlinePassed):
            async with pool.lease(spec_of(), no_files, deadline=loop.time() + 0.01):
                raise AssertionError("it came too late")
    await pool.close()
