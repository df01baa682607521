"""Sandboxes made ahead, under real Podman: what they are, become, cost and leave behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from boxes import RUN_MODEL, Box, key_of, pieces, spec_of, tar_of

from appliance import config
from appliance.errors import OutOfMemory, RunnerCrashed
from appliance.sandbox import hardening, kernel
from appliance.sandbox.container import PodmanSandbox
from appliance.sandbox.podman import PodmanExecutor
from appliance.sandbox.pool import Pool
from appliance.sandbox.spec import MIB, Request, SandboxSpec

pytestmark = [pytest.mark.podman, pytest.mark.asyncio(loop_scope="session")]

USES_DECIMAL = b"import decimal\n" + RUN_MODEL


def load() -> AsyncIterator[bytes]:
    return pieces(tar_of({"model.py": USES_DECIMAL}))


async def call(pool: Pool, spec: SandboxSpec, text: str = "answer = 1") -> tuple[Any, Any]:
    async with pool.lease(spec, load) as lease:
        request = Request(id="1", content_type="application/json",
                          body=json.dumps({"run": text}).encode(), timeout_ms=9000,
                          reply_bytes_max=10_000)  # fmt: skip
        return lease, json.loads((await lease.request(request)).body)


def ready(pool: Pool) -> list[Any]:
    return [info for info in pool.list() if info.state == "zygote"]


async def until(what: Callable[[], bool], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not what():
            await asyncio.sleep(0.02)


@asynccontextmanager
async def pool_of(executor: PodmanExecutor, **settings: Any) -> AsyncIterator[Pool]:
    values = {"zygote_memory_bytes_max": 256 * MIB, **settings}
    pool = Pool(executor, config.Sandbox(**values))
    try:
        yield pool
    finally:
        await pool.close()


@asynccontextmanager
async def zygote(
    executor: PodmanExecutor, spec: SandboxSpec, *modules: str
) -> AsyncIterator[PodmanSandbox]:
    one = await executor.create_ahead(key_of(spec, *modules))
    try:
        yield one
    finally:
        await one.destroy()


async def test_the_second_call_finds_its_imports_done(podman_executor: PodmanExecutor) -> None:
    spec = spec_of(idle_timeout_s=0)
    async with pool_of(podman_executor) as pool:
        first, _ = await call(pool, spec)
        await until(lambda: bool(ready(pool)))
        info = ready(pool)[0]
        assert (info.version_key, info.tenant_id, info.calls) == ("", "", 0)
        assert 0 < info.memory_bytes < 40 * MIB
        second, names = await call(pool, spec, "import sys; answer = 'decimal' in sys.modules")
        assert (first.ahead, second.ahead, names) == (False, True, True)
        assert second.sandbox_id == info.id
        assert second.load_us < first.load_us


async def test_one_serves_one_version_and_is_gone_after_it(
    podman_executor: PodmanExecutor,
) -> None:
    async with pool_of(podman_executor) as pool:
        users: dict[int, str] = {}
        for number in range(6):
            spec = spec_of(f"v{number % 2}", tenant_id=f"t{number % 2}", idle_timeout_s=0)
            lease, uid = await call(
                pool, spec, "answer = int(open('/proc/self/uid_map').read().split()[4])"
            )
            assert uid not in users
            users[uid] = lease.sandbox_id
            await until(lambda: bool(ready(pool)))
        await until(lambda: not any(kernel.pids_by_uid(set(users)).values()))


async def test_a_bound_one_cannot_be_bound_again(podman_executor: PodmanExecutor) -> None:
    spec = spec_of()
    async with zygote(podman_executor, spec) as one:
        await one.bind(spec)
        with pytest.raises(ValueError, match="not free"):
            await one.bind(spec_of("v2"))
        await one.load(load())
        with pytest.raises(ValueError, match="not free"):
            await one.bind(spec_of("v2"))
        assert await Box(one, spec).run("answer = 5") == 5
        assert (one.info().version_key, one.info().tenant_id) == ("v1", "tenant-of-v1")


async def test_what_was_made_for_a_version_cannot_be_bound(podman_executor: PodmanExecutor) -> None:
    one = await podman_executor.create(spec_of())
    with pytest.raises(ValueError, match="not free"):
        await one.bind(spec_of("v2"))
    await one.destroy()


async def test_other_resources_do_not_fit(podman_executor: PodmanExecutor) -> None:
    async with zygote(podman_executor, spec_of()) as one:
        for other in ({"memory_mb": 257}, {"pids": 3}, {"tmp_bytes": MIB}, {"cpus": 2.0}):
            with pytest.raises(ValueError, match="not made for"):
                await one.bind(spec_of(**other))  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, 200 * MIB])
async def test_every_limit_is_the_versions_own(podman_executor: PodmanExecutor, size: int) -> None:
    spec = spec_of(memory_mb=200, pids=17, tmp_bytes=9 * MIB, model_bytes=size)
    made = await podman_executor.create(spec)
    async with zygote(podman_executor, spec) as bound:
        await bound.bind(spec)
        for one in (made, bound):
            pids = [one.pid, *kernel.descendants(one.pid)]
            assert len(pids) == 2
            wanted = hardening.process_limits(spec, one.level)
            for pid in pids:
                found = kernel.limits_of(pid)
                assert {name: found[name] for name in wanted} == wanted
            sizes = hardening.tmpfs_sizes(spec)
            for mount in sizes.bytes:
                at = os.statvfs(f"/proc/{one.pid}/root{mount}")
                assert at.f_blocks * at.f_frsize == -(-sizes.bytes[mount] // 4096) * 4096
                assert at.f_files == sizes.inodes[mount]
            assert len(os.sched_getaffinity(one.pid)) == 1 or os.cpu_count() == 1
    await made.destroy()


async def test_a_large_model_fits_and_is_not_charged(podman_executor: PodmanExecutor) -> None:
    files = {"model.py": RUN_MODEL, "weights.bin": os.urandom(1 << 20) * 150}
    spec = spec_of(memory_mb=128, files=files)
    async with zygote(podman_executor, spec) as one:
        await one.bind(spec)
        await one.load(pieces(tar_of(files)))
        asking = Box(one, spec)
        assert await asking.run("import os; answer = os.path.getsize('weights.bin')") == 150 << 20
        assert await asking.run("x = bytearray(b'x') * (60 << 20); answer = 1") == 1
        with pytest.raises(OutOfMemory):
            await asking.run(
                "import os, time\nfor _ in range(3):\n  if os.fork() == 0:\n"
                "    x = bytearray(b'x') * (60 << 20); time.sleep(9)\ntime.sleep(9)"
            )


async def test_a_models_own_module_wins_over_one_imported_ahead(
    podman_executor: PodmanExecutor,
) -> None:
    files = {
        "model.py": b"import csv, decimal, colorsys\n" + RUN_MODEL,
        "csv.py": b"mine = True",
        "decimal/__init__.py": b"mine = True",
        "colorsys/data.txt": b"a folder of data hides no module",
    }
    spec = spec_of(files=files)
    async with zygote(podman_executor, spec, "csv", "decimal", "colorsys") as one:
        await one.bind(spec)
        await one.load(pieces(tar_of(files)))
        text = (
            "import csv, decimal, colorsys; answer = [csv.mine, decimal.mine, colorsys.ONE_SIXTH]"
        )
        assert (await Box(one, spec).run(text))[:2] == [True, True]


async def test_an_import_that_fails_is_left_out(podman_executor: PodmanExecutor) -> None:
    spec = spec_of()
    async with zygote(podman_executor, spec, "no_such_module", "decimal") as one:
        await one.bind(spec)
        await one.load(load())
        text = "import sys; answer = 'decimal' in sys.modules"
        assert await Box(one, spec).run(text) is True


async def test_a_crashed_one_is_replaced(podman_executor: PodmanExecutor) -> None:
    async with pool_of(podman_executor) as pool:
        await call(pool, spec_of(idle_timeout_s=0))
        await until(lambda: bool(ready(pool)))
        dead = ready(pool)[0]
        os.kill(dead.pid, signal.SIGKILL)
        await until(lambda: bool(ready(pool)) and ready(pool)[0].id != dead.id)
        lease, answer = await call(pool, spec_of(idle_timeout_s=0))
        assert (lease.ahead, answer) == (True, 1)


async def test_one_that_dies_while_it_is_bound_is_no_callers_problem(
    podman_executor: PodmanExecutor,
) -> None:
    async with pool_of(podman_executor) as pool:
        await call(pool, spec_of(idle_timeout_s=0))
        await until(lambda: bool(ready(pool)))
        os.kill(kernel.descendants(ready(pool)[0].pid)[0], signal.SIGKILL)
        lease, answer = await call(pool, spec_of(idle_timeout_s=0))
        assert (lease.ahead, answer) == (False, 1)


async def test_one_with_more_processes_than_it_should_is_not_bound(
    podman_executor: PodmanExecutor,
) -> None:
    spec = spec_of()
    async with zygote(podman_executor, spec) as one:
        await one.bind(spec)
        await one.load(load())
        await Box(one, spec).run("import os, time\nif os.fork() == 0:\n  time.sleep(30)")
        with pytest.raises(RunnerCrashed, match="1 processes behind"):
            await asyncio.to_thread(one._fit, spec)


async def test_the_memory_is_kept_to_and_nought_disables(podman_executor: PodmanExecutor) -> None:
    async with pool_of(podman_executor, zygote_memory_bytes_max=30 * MIB) as pool:
        for number in range(5):
            await call(pool, spec_of(f"v{number}", pids=20 + number, idle_timeout_s=0))
        await until(lambda: bool(ready(pool)))
        for _ in range(30):
            assert sum(info.memory_bytes for info in ready(pool)) <= 30 * MIB
            await asyncio.sleep(0.1)
    async with pool_of(podman_executor, zygote_memory_bytes_max=0) as pool:
        for _ in range(2):
            lease, _ = await call(pool, spec_of(idle_timeout_s=0))
            assert not lease.ahead
        assert not ready(pool)


async def test_making_one_is_held_back_while_a_caller_starts(
    podman_executor: PodmanExecutor,
) -> None:
    spec = spec_of()
    podman_executor.hold_back(True)
    try:
        making = asyncio.ensure_future(podman_executor.create_ahead(key_of(spec, "decimal")))
        await asyncio.sleep(2)
        assert not making.done()
    finally:
        podman_executor.hold_back(False)
    one = await asyncio.wait_for(making, 30)
    assert one.info().state == "zygote"
    await one.destroy()


LEFT_BEHIND = """
import asyncio, sys
from pathlib import Path
sys.path[:0] = {path!r}
from boxes import key_of, spec_of
from appliance import config
from appliance.sandbox.podman import PodmanExecutor
async def main():
    executor = PodmanExecutor(config.Sandbox(accept_supervised_limits=True),
                              run_dir=Path(sys.argv[1]), data_dir=Path(sys.argv[2]))
    await executor.start()
    for _ in range(2):
        sandbox = await executor.create_ahead(key_of(spec_of(), "decimal"))
        print(sandbox.slot.user_uid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


async def test_a_killed_appliance_leaves_none(tmpfs_dir: Path, test_data: Path) -> None:
    script = LEFT_BEHIND.format(path=[p for p in sys.path if p])
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(tmpfs_dir), str(test_data), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    uids = {int(await asyncio.wait_for(process.stdout.readline(), 60)) for _ in range(2)}
    process.kill()
    await process.wait()
    await until(lambda: not any(kernel.pids_by_uid(uids).values()), 10)
    settings = config.Sandbox(accept_supervised_limits=True)
    executor = PodmanExecutor(settings, run_dir=tmpfs_dir, data_dir=test_data)
    await executor.start()
    try:
        assert not any(kernel.pids_by_uid(uids).values())
        assert not list(executor.boxes.glob("sb_*"))
    finally:
        await executor.close()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            assert str(tmpfs_dir).encode() not in words or int(pid) == os.getpid()


async def test_packages_that_were_removed_fit_nobody(
    podman_executor: PodmanExecutor, test_data: Path
) -> None:
    assert podman_executor.has_installed(key_of(spec_of()))
    assert not podman_executor.has_installed(key_of(spec_of(deps_key="never-built")))
    assert not podman_executor.has_installed(key_of(spec_of(runtime_digest="0" * 64)))
