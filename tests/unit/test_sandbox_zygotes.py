"""Sandboxes made ahead, over an executor without processes: who gets which, and when none is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from fake_executor import FakeExecutor

from appliance import config
from appliance.errors import LoadFailed
from appliance.records import Resources
from appliance.sandbox.lease import Lease
from appliance.sandbox.pool import Pool
from appliance.sandbox.spec import MIB, SandboxSpec
from appliance.sandbox.zygotes import Zygotes


def spec_of(key: str = "v1", **changes: Any) -> SandboxSpec:
    values: dict[str, Any] = {"version_key": key, "tenant_id": "t", "runtime": "r",
                              "runtime_digest": "d", "entry": "e:e", "idle_timeout_s": 0,
                              **changes}  # fmt: skip
    return SandboxSpec(**values)


async def files() -> AsyncIterator[bytes]:
    yield b""


async def bad_files() -> AsyncIterator[bytes]:
    yield b"import nothing_of_this_name"


def pool_of(executor: FakeExecutor, **settings: Any) -> Pool:
    values = {"instances_max": 8, "zygote_memory_bytes_max": 512 * MIB, **settings}
    return Pool(executor, config.Sandbox(**values))


async def call(pool: Pool, spec: SandboxSpec) -> Lease:
    async with pool.lease(spec, files) as lease:
        return lease


def ready(pool: Pool) -> list[str]:
    return [info.id for info in pool.list() if info.state == "zygote"]


async def until(what: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not what():
            await asyncio.sleep(0.005)


@pytest.fixture
def executor() -> FakeExecutor:
    executor = FakeExecutor()
    executor.memory_bytes = 50 * MIB
    return executor


async def test_the_call_after_the_first_is_bound_to_one_made_ahead(executor: FakeExecutor) -> None:
    pool = pool_of(executor)
    assert not (await call(pool, spec_of())).ahead
    await until(lambda: len(ready(pool)) == 1)
    waiting = ready(pool)[0]
    second = await call(pool, spec_of())
    assert (second.ahead, second.cold, second.sandbox_id) == (True, True, waiting)
    await until(lambda: bool(ready(pool)))
    assert ready(pool) != [waiting]
    await pool.close()
    assert not executor.sandboxes


async def test_every_one_serves_one_version_and_is_never_returned(executor: FakeExecutor) -> None:
    pool = pool_of(executor)
    served: dict[str, set[str]] = {}
    for number in range(40):
        spec = spec_of(f"v{number % 3}", tenant_id=f"t{number % 3}")
        lease = await call(pool, spec)
        served.setdefault(lease.sandbox_id, set()).add(spec.version_key)
        await asyncio.sleep(0.002)
    assert len(served) == 40
    assert all(len(versions) == 1 for versions in served.values())
    await pool.close()


async def test_what_does_not_fit_is_not_used(executor: FakeExecutor) -> None:
    pool = pool_of(executor)
    await call(pool, spec_of())
    await until(lambda: bool(ready(pool)))
    for other in (
        {"deps_key": "other"},
        {"runtime_digest": "other"},
        {"resources": Resources(memory_bytes=64 * MIB)},
        {"resources": Resources(pids=3)},
        {"resources": Resources(cpus=2.0)},
        {"resources": Resources(tmp_bytes=1)},
    ):
        assert not (await call(pool, spec_of("v2", tenant_id="other", **other))).ahead
    await pool.close()


async def test_what_one_tenants_model_imports_decides_nothing_about_anothers(
    executor: FakeExecutor,
) -> None:
    executor.modules = {"a": ("sklearn.ensemble", "sklearn"), "b": ("numpy",), "c": ("numpy",)}
    pool = pool_of(executor)
    await call(pool, spec_of("a", tenant_id="ta"))
    await until(lambda: bool(ready(pool)))
    assert not (await call(pool, spec_of("b", tenant_id="tb"))).ahead
    await until(lambda: len(ready(pool)) == 2)
    lease = await call(pool, spec_of("b", tenant_id="tb"))
    key = executor.sandboxes[lease.sandbox_id].key if lease.sandbox_id in executor.sandboxes else 0
    assert lease.ahead
    assert key == 0 or (key is not None and key.modules == ("numpy",))  # fmt: skip
    # Equal needs are one kind, whoever has them.
    assert not (await call(pool, spec_of("c", tenant_id="tc"))).ahead
    await until(lambda: len(ready(pool)) == 2)
    await pool.close()


async def test_a_new_version_of_a_tenant_starts_from_its_last_load(executor: FakeExecutor) -> None:
    executor.modules = {"trial": ("sklearn",), "final": ("sklearn",)}
    pool = pool_of(executor)
    await call(pool, spec_of("trial"))
    await until(lambda: bool(ready(pool)))
    assert (await call(pool, spec_of("final"))).ahead
    await pool.close()


async def test_a_version_that_imports_more_gets_its_own_kind(executor: FakeExecutor) -> None:
    executor.modules = {"trial": ("sklearn",), "more": ("scipy", "sklearn")}
    pool = pool_of(executor)
    await call(pool, spec_of("trial"))
    await until(lambda: bool(ready(pool)))
    await call(pool, spec_of("more"))
    await until(lambda: len(ready(pool)) == 2)
    assert (await call(pool, spec_of("more"))).ahead
    await pool.close()


async def test_nought_disables(executor: FakeExecutor) -> None:
    pool = pool_of(executor, zygote_memory_bytes_max=0)
    for _ in range(3):
        assert not (await call(pool, spec_of())).ahead
        await asyncio.sleep(0.02)
    assert executor.made_ahead == 0
    await pool.close()


async def test_the_memory_is_kept_to(executor: FakeExecutor) -> None:
    pool = pool_of(executor, zygote_memory_bytes_max=120 * MIB)
    for number in range(6):
        await call(pool, spec_of(f"v{number}", deps_key=f"d{number}"))
    await until(lambda: len(ready(pool)) >= 2)
    await asyncio.sleep(2.2)
    assert len(ready(pool)) == 2
    executor.memory_bytes = 100 * MIB  # they grew
    await until(lambda: len(ready(pool)) == 1)
    await pool.close()


async def test_none_is_kept_when_unused(executor: FakeExecutor) -> None:
    pool = pool_of(executor, zygote_idle_s=1)
    await call(pool, spec_of())
    await until(lambda: bool(ready(pool)))
    await until(lambda: not executor.sandboxes)
    await pool.close()


async def test_a_dead_one_is_replaced_and_never_handed_out(executor: FakeExecutor) -> None:
    pool = pool_of(executor)
    await call(pool, spec_of())
    await until(lambda: bool(ready(pool)))
    dead = ready(pool)[0]
    await executor.sandboxes[dead].destroy()
    assert not (await call(pool, spec_of())).ahead
    await until(lambda: bool(ready(pool)) and ready(pool) != [dead])
    await pool.close()


async def test_one_that_cannot_be_bound_costs_the_caller_nothing_but_time(
    executor: FakeExecutor,
) -> None:
    pool = pool_of(executor)
    await call(pool, spec_of())
    await until(lambda: bool(ready(pool)))
    executor.bind_fails = True
    lease = await call(pool, spec_of())
    assert not lease.ahead
    await pool.close()
    assert not executor.sandboxes


async def test_a_load_that_fails_in_one_is_tried_in_a_sandbox_of_its_own(
    executor: FakeExecutor,
) -> None:
    pool = pool_of(executor)
    await call(pool, spec_of())
    await until(lambda: bool(ready(pool)))
    asked = 0

    async def bad_at_first() -> AsyncIterator[bytes]:
        nonlocal asked
        asked += 1
        yield b"import nothing_of_this_name" if asked == 1 else b""

    async with pool.lease(spec_of(), bad_at_first) as lease:
        assert not lease.ahead
    assert asked == 2
    await pool.close()
    assert not executor.sandboxes


async def test_failures_are_not_repeated_at_once(executor: FakeExecutor) -> None:
    pool = pool_of(executor)
    executor.ahead_fails = True
    await call(pool, spec_of())
    await asyncio.sleep(0.3)
    assert executor.tried_ahead == 2
    await pool.close()


async def test_those_of_removed_packages_end(executor: FakeExecutor) -> None:
    kept = Zygotes(executor, config.Sandbox(zygote_memory_bytes_max=512 * MIB), look_s=0)
    kept.loaded(spec_of(deps_key="gone"), (), ahead=False)
    kept.loaded(spec_of("v2", deps_key="kept"), (), ahead=False)
    await until(lambda: len(kept.list()) == 2)
    executor.gone.add("gone")
    await until(lambda: len(kept.list()) == 1)
    assert await kept.take(spec_of(deps_key="gone")) is None
    assert await kept.take(spec_of("v2", deps_key="kept"))
    await kept.close()


async def test_nothing_is_made_ahead_while_a_caller_waits(executor: FakeExecutor) -> None:
    pool = pool_of(executor)
    await call(pool, spec_of())
    executor.create_s = 0.05
    await asyncio.gather(*(call(pool, spec_of(f"n{n}", tenant_id=f"t{n}")) for n in range(3)))
    assert executor.held[-1] is False
    assert executor.held.count(True) == executor.held.count(False)
    made = executor.made_ahead
    executor.load_s = 0.1
    busy = asyncio.create_task(call(pool, spec_of("slow", tenant_id="x", deps_key="slow")))
    await asyncio.sleep(0.06)
    began = executor.made_ahead
    await asyncio.sleep(0.05)
    assert began - made <= 1  # one may have been under way
    assert executor.made_ahead == began
    await busy
    await until(lambda: executor.made_ahead > began)
    await pool.close()


async def test_a_load_that_fails_teaches_nothing(executor: FakeExecutor) -> None:
    pool = pool_of(executor)
    with pytest.raises(LoadFailed):
        async with pool.lease(spec_of(), bad_files):
            pass
    await asyncio.sleep(0.05)
    assert executor.made_ahead == 0
    await pool.close()


async def test_one_can_be_stopped_by_hand(executor: FakeExecutor) -> None:
    pool = pool_of(executor)
    await call(pool, spec_of())
    await until(lambda: bool(ready(pool)))
    assert await pool.stop(ready(pool)[0])
    assert not ready(pool)
    assert not await pool.stop("none")
    await pool.close()


async def test_closing_while_one_is_made_leaves_none(executor: FakeExecutor) -> None:
    pool = pool_of(executor)
    await call(pool, spec_of())
    executor.create_s = 0.05
    await call(pool, spec_of("v2", deps_key="d"))
    await asyncio.sleep(0.02)
    await pool.close()
    await asyncio.sleep(0.1)
    assert not executor.sandboxes
