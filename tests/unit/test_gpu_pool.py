"""The pool and GPUs: exclusive to a tenant, queued in order, given on, and always given back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fake_executor import FakeExecutor

from appliance import config
from appliance.errors import CapacityExhausted, GpuLost, LoadFailed, RunnerCrashed
from appliance.records import Resources
from appliance.sandbox.gpu_place import Gpu, Places
from appliance.sandbox.pool import Pool
from appliance.sandbox.spec import MIB, Reply, Request, SandboxSpec


def spec_of(key: str, tenant: str = "t", *, gpus: int = 1, mib: int = 0) -> SandboxSpec:
    resources = Resources(gpus=gpus, gpu_memory_bytes=mib * MIB)
    return SandboxSpec(version_key=key, tenant_id=tenant, runtime="r", runtime_digest="d",
                       resources=resources)  # fmt: skip


async def no_files() -> AsyncIterator[bytes]:
    yield b""


async def bad_files() -> AsyncIterator[bytes]:
    yield b"import nothing_of_this_name"


def pool_of(executor: FakeExecutor, **settings: Any) -> Pool:
    values = {"instances_max": 8, "instances_per_version_max": 4, "queue_timeout_s": 5,
              "zygote_memory_bytes_max": 0, **settings}  # fmt: skip
    return Pool(executor, config.Sandbox(**values))


async def call(pool: Pool, spec: SandboxSpec, body: bytes = b"1") -> Reply:
    async with pool.lease(spec, no_files) as lease:
        return await lease.request(
            Request(
                id="1",
                content_type="application/json",
                body=body,
                timeout_ms=5000,
                reply_bytes_max=1000,
            )
        )


@pytest.fixture
def executor() -> FakeExecutor:
    fake = FakeExecutor()
    fake.places = Places(
        Gpu(id=f"GPU-{n}", vendor="nvidia", name="A", index=str(n), memory_bytes=1000 * MIB)
        for n in (0, 1)
    )
    return fake


def given(pool: Pool) -> list[tuple[str, ...]]:
    return [info.gpus for info in pool.list()]


def is_all_free(executor: FakeExecutor) -> bool:
    return not any(executor.places.holds_of(gpu.id) for gpu in executor.places.gpus)


async def test_a_third_tenant_waits_until_a_gpu_is_free(executor: FakeExecutor) -> None:
    pool = pool_of(executor)
    busy = b'{"do": "sleep", "s": 0.2}'
    first = [asyncio.create_task(call(pool, spec_of(k, k), busy)) for k in ("a", "b")]
    await asyncio.sleep(0.05)
    assert sorted(given(pool)) == [("GPU-0",), ("GPU-1",)]
    third = asyncio.create_task(call(pool, spec_of("c", "c")))
    await asyncio.sleep(0.05)
    assert (pool.waiting_for_gpus, third.done()) == (1, False)
    await asyncio.gather(*first, third)
    assert pool.waiting_for_gpus == 0
    await pool.close()


async def test_an_idle_sandbox_makes_room_for_who_waits_but_a_cpu_one_is_left_alone(
    executor: FakeExecutor,
) -> None:
    pool = pool_of(executor)
    for key in ("a", "b"):
        await call(pool, spec_of(key, key))
    await call(pool, spec_of("cpu", gpus=0))
    await call(pool, spec_of("c", "c"))
    assert {info.version_key for info in pool.list()} == {"b", "cpu", "c"}
    await call(pool, spec_of("b", "b"))
    assert executor.made == 4  # b's own was still there
    await pool.close()


async def test_who_needs_two_is_not_overtaken_for_ever(executor: FakeExecutor) -> None:
    pool = pool_of(executor, instances_per_version_max=2)
    stop = False

    async def stream(key: str) -> None:
        while not stop:
            await call(pool, spec_of(key, "t"), b'{"do": "sleep", "s": 0.01}')

    streams = [asyncio.create_task(stream(f"s{n}")) for n in range(4)]
    await asyncio.sleep(0.05)
    await asyncio.wait_for(call(pool, spec_of("two", "z", gpus=2)), 30)
    stop = True
    await asyncio.gather(*streams)
    await pool.close()


@pytest.mark.parametrize("body", [b'{"do": "exit", "code": 9}', b'{"do": "spin"}'])
async def test_a_crash_or_a_stopped_call_gives_its_gpu_back(
    executor: FakeExecutor, body: bytes
) -> None:
    pool = pool_of(executor)
    task = asyncio.create_task(call(pool, spec_of("a"), body))
    await asyncio.sleep(0.05)
    for info in pool.list():
        await pool.stop(info.id)
    with pytest.raises(RunnerCrashed):
        await task
    await asyncio.sleep(0.05)
    assert is_all_free(executor)
    await pool.close()


async def test_a_failed_load_and_a_caller_that_leaves_give_their_gpus_back(
    executor: FakeExecutor,
) -> None:
    pool = pool_of(executor)
    with pytest.raises(LoadFailed):
        async with pool.lease(spec_of("bad", gpus=2), bad_files):
            pass
    await asyncio.sleep(0.05)
    assert is_all_free(executor)
    executor.create_s = 5
    task = asyncio.create_task(call(pool, spec_of("a", gpus=2)))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.sleep(0.05)
    assert is_all_free(executor)
    await pool.close()


async def test_the_wait_for_a_gpu_is_bounded_and_the_next_in_line_is_served(
    executor: FakeExecutor,
) -> None:
    pool = pool_of(executor, queue_timeout_s=1, queue_max=1)
    busy = asyncio.create_task(call(pool, spec_of("a", "a"), b'{"do": "sleep", "s": 2}'))
    await asyncio.sleep(0.02)
    waits = asyncio.create_task(call(pool, spec_of("two", "b", gpus=2)))
    await asyncio.sleep(0.02)
    with pytest.raises(CapacityExhausted, match="already wait"):
        await call(pool, spec_of("two", "b", gpus=2))
    behind = asyncio.create_task(call(pool, spec_of("c", "c")))
    with pytest.raises(CapacityExhausted, match="No sandbox became free"):
        await waits
    await asyncio.wait_for(behind, 30)
    await busy
    await pool.close()


async def test_versions_of_one_tenant_share_a_gpu_within_their_budgets(
    executor: FakeExecutor,
) -> None:
    pool = pool_of(executor)
    busy = b'{"do": "sleep", "s": 0.1}'
    calls = [asyncio.create_task(call(pool, spec_of(f"v{n}", mib=400), busy)) for n in range(3)]
    await asyncio.sleep(0.05)
    assert sorted(given(pool)) == [("GPU-0",), ("GPU-0",), ("GPU-1",)]
    await asyncio.gather(*calls)
    await pool.close()


async def test_a_version_whose_gpu_is_gone_is_told_so_at_once(executor: FakeExecutor) -> None:
    executor.places = Places()
    pool = pool_of(executor)
    with pytest.raises(GpuLost, match="has no GPU"):
        await call(pool, spec_of("a"))
    await pool.close()


async def test_nothing_with_a_gpu_is_made_ahead(executor: FakeExecutor) -> None:
    pool = pool_of(executor, zygote_memory_bytes_max=1 << 30)
    await call(pool, spec_of("a"))
    await asyncio.sleep(0.05)
    assert (executor.made, executor.tried_ahead) == (1, 0)
    await pool.close()
