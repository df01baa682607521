"""GPUs of a made-up vendor in real sandboxes: exactly its own nodes, libraries and variables."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_gpus
import pytest
from boxes import RUN_MODEL, box, pieces, spec_of, tar_of

from appliance import config
from appliance.errors import CapacityExhausted, GpuLost, GpuOutOfMemory, RunnerCrashed
from appliance.sandbox import kernel
from appliance.sandbox.gpu_nvml import Use
from appliance.sandbox.gpu_watch import GpuWatch
from appliance.sandbox.podman import PodmanExecutor
from appliance.sandbox.pool import Pool
from appliance.sandbox.spec import MIB, Request, SandboxSpec

pytestmark = [pytest.mark.podman, pytest.mark.asyncio(loop_scope="session")]

LOOK = """
import os, stat
nodes = {}
for folder, _, names in os.walk("/dev"):
    for name in names:
        about = os.lstat(f"{folder}/{name}")
        if stat.S_ISCHR(about.st_mode) or stat.S_ISBLK(about.st_mode):
            nodes[f"{folder}/{name}"] = about.st_rdev
def listed(path):
    return sorted(os.listdir(path)) if os.path.isdir(path) else None
answer = {"nodes": nodes, "gpu": listed("/gpu"), "lib": listed("/gpu/lib"),
          "env": dict(os.environ), "driver": listed("/proc/driver")}
"""
ALWAYS = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty", "ptmx",
                                      "pts/ptmx", "console")}  # fmt: skip


@asynccontextmanager
async def engine(
    run_dir: Path, data_dir: Path, settings: config.Sandbox
) -> AsyncIterator[PodmanExecutor]:
    executor = PodmanExecutor(settings, run_dir=run_dir, data_dir=data_dir)
    await executor.start()
    try:
        yield executor
    finally:
        await executor.close()


@pytest.fixture
def settings(tmp_path: Path) -> config.Sandbox:
    return fake_gpus.write(tmp_path / "cdi")


@pytest.fixture
def data_dir(tmp_path: Path, test_data: Path) -> Path:
    return fake_gpus.data_dir_with(tmp_path / "data", test_data)


def own_nodes(seen: dict[str, Any]) -> dict[str, int]:
    return {path: number for path, number in seen["nodes"].items() if path not in ALWAYS}


async def loads() -> AsyncIterator[bytes]:
    async for piece in pieces(tar_of({"model.py": RUN_MODEL})):
        yield piece


async def call(pool: Pool, spec: SandboxSpec, code: str) -> Any:
    async with pool.lease(spec, loads) as lease:
        body = json.dumps({"run": code}).encode()
        reply = await lease.request(
            Request(id="1", content_type="application/json", body=body, timeout_ms=20_000,
                    reply_bytes_max=1 << 20)
        )  # fmt: skip
        return json.loads(reply.body)


async def test_a_sandbox_sees_its_own_gpu_and_one_without_sees_none(
    tmpfs_dir: Path, data_dir: Path, settings: config.Sandbox
) -> None:
    async with engine(tmpfs_dir, data_dir, settings) as executor:
        assert [gpu.id for gpu in executor.places.gpus] == [fake_gpus.id_of(0), fake_gpus.id_of(1)]
        pool = Pool(executor, settings)
        with_one = await call(pool, spec_of("one", gpus=1), LOOK)
        with_two = await call(pool, spec_of("two", gpus=2), LOOK)
        without = await call(pool, spec_of("none"), LOOK)
        await pool.close()
    number = os.stat(fake_gpus.HOST_NODES[0]).st_rdev
    control = os.stat("/dev/tty").st_rdev
    assert own_nodes(with_one) == {"/dev/fakegpu0": number, "/dev/fakectl": control}
    assert with_one["lib"] == ["libfake.so", fake_gpus.LIBRARY, "libz.so.1"]
    env = with_one["env"]
    assert (env["LD_LIBRARY_PATH"], env["FAKE_GPU"], env["FAKE_COMMON"]) == ("/gpu/lib", "0", "yes")
    assert set(own_nodes(with_two)) == {"/dev/fakegpu0", "/dev/fakegpu1", "/dev/fakectl"}
    assert own_nodes(without) == {}
    assert without["gpu"] == []
    assert not {"LD_LIBRARY_PATH", "FAKE_GPU", "NVIDIA_VISIBLE_DEVICES"} & set(without["env"])


async def test_the_driver_bundle_is_loaded_from_inside_and_cannot_be_changed(
    tmpfs_dir: Path, data_dir: Path, settings: config.Sandbox
) -> None:
    look = """
import ctypes
ctypes.CDLL("libfake.so").zlibVersion.restype = ctypes.c_char_p
found = [line.split()[-1] for line in open("/proc/self/maps") if "libfake" in line]
try:
    open("/gpu/lib/libfake.so.1.2.3", "r+b")
    wrote = True
except OSError:
    wrote = False
answer = [sorted(set(found)), wrote]
"""
    async with engine(tmpfs_dir, data_dir, settings) as executor:
        pool = Pool(executor, settings)
        assert await call(pool, spec_of("one", gpus=1), look) == [
            ["/gpu/lib/libfake.so.1.2.3"], False]  # fmt: skip
        await pool.close()
    (bundle,) = (data_dir / "gpu").iterdir()
    assert bundle.name.startswith("appliance.test-")


async def test_two_tenants_have_a_gpu_each_and_a_third_waits_its_turn(
    tmpfs_dir: Path, data_dir: Path, settings: config.Sandbox
) -> None:
    held = LOOK + "\nimport time; time.sleep(1.5)"
    async with engine(tmpfs_dir, data_dir, settings) as executor:
        pool = Pool(executor, settings)
        first = [asyncio.create_task(call(pool, spec_of(key, gpus=1), held)) for key in "ab"]
        while len([info for info in pool.list() if info.gpus]) < 2:
            await asyncio.sleep(0.02)
        third = asyncio.create_task(call(pool, spec_of("c", gpus=1), LOOK))
        await asyncio.sleep(0.2)
        assert (pool.waiting_for_gpus, third.done()) == (1, False)
        nodes = [set(own_nodes(seen)) - {"/dev/fakectl"} for seen in await asyncio.gather(*first)]
        assert sorted(map(sorted, nodes)) == [["/dev/fakegpu0"], ["/dev/fakegpu1"]]
        assert own_nodes(await third)
        short = Pool(executor, replace(settings, queue_timeout_s=1))
        busy = [asyncio.create_task(call(pool, spec_of(key, gpus=1), held)) for key in "de"]
        while not all(executor.places.holds_of(gpu.id) for gpu in executor.places.gpus):
            await asyncio.sleep(0.02)
        with pytest.raises(CapacityExhausted):
            await call(short, spec_of("f", gpus=1), LOOK)
        await asyncio.gather(*busy)
        await short.close()
        await pool.close()


async def test_a_killed_sandbox_frees_its_gpu_and_a_restart_frees_all(
    tmpfs_dir: Path, data_dir: Path, settings: config.Sandbox
) -> None:
    async with engine(tmpfs_dir, data_dir, settings) as executor:
        pool = Pool(executor, settings)
        task = asyncio.create_task(
            call(pool, spec_of("both", gpus=2), "import time; time.sleep(60)")
        )
        while not pool.list():
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.3)
        os.kill(pool.list()[0].pid, 9)
        with pytest.raises(RunnerCrashed):
            await task
        assert own_nodes(await call(pool, spec_of("next", gpus=2), LOOK))
        assert executor.places.holds_of(fake_gpus.id_of(0))
    async with engine(tmpfs_dir, data_dir, settings) as executor:
        assert not executor.places.holds_of(fake_gpus.id_of(0))
        pool = Pool(executor, settings)
        assert own_nodes(await call(pool, spec_of("after", gpus=2), LOOK))
        await pool.close()


async def test_a_gpu_that_went_away_is_a_problem_of_its_own(
    tmpfs_dir: Path, data_dir: Path, settings: config.Sandbox, tmp_path: Path
) -> None:
    async with engine(tmpfs_dir, data_dir, settings) as executor:
        (tmp_path / "cdi" / fake_gpus.LIBRARY).unlink()
        with pytest.raises(GpuLost, match="cannot be read"):
            await executor.create(spec_of("one", gpus=1, gpu_units=(fake_gpus.id_of(0),)))
        with pytest.raises(GpuLost, match="not there any more"):
            await executor.create(spec_of("one", gpus=1, gpu_units=("GPU-gone",)))


async def test_shared_memory_counts_where_a_gpu_needs_it(
    tmpfs_dir: Path, data_dir: Path, settings: config.Sandbox
) -> None:
    grab = """
import mmap
kept["held"] = mmap.mmap(-1, {size}, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
kept["held"].write(b"x" * 4096)
import time; time.sleep(1)
answer = True
"""
    async with engine(tmpfs_dir, data_dir, settings) as executor:
        if executor.limits.level != "supervised":
            pytest.skip("the kernel counts it here")
        spec = spec_of("one", gpus=1, gpu_units=(fake_gpus.id_of(0),))
        async with box(executor, spec) as one:
            assert await one.run(grab.format(size=32 * MIB))
            with pytest.raises(Exception, match="256 MiB"):
                await one.run(grab.format(size=512 * MIB))
        async with box(executor, spec_of("none")) as one:
            with pytest.raises(Exception, match="Errno"):
                await one.run(grab.format(size=MIB))


async def test_more_gpu_memory_than_declared_ends_the_sandbox_with_its_own_problem(
    tmpfs_dir: Path, data_dir: Path, settings: config.Sandbox
) -> None:
    async with engine(tmpfs_dir, data_dir, settings) as executor:
        spec = spec_of("one", gpus=1, gpu_memory_bytes=100 * MIB, gpu_units=(fake_gpus.id_of(0),))
        executor.gpu_watch.stop()
        uses: list[Use] = []
        executor.gpu_watch = GpuWatch(lambda _units: (uses, []), poll_s=0.05)
        executor.gpu_watch.start()
        async with box(executor, spec) as one:
            mine = kernel.descendants(one.sandbox.info().pid)
            uses.append(Use(unit=fake_gpus.id_of(0), pid=mine[0], used_bytes=90 * MIB))
            assert await one.run("import time; time.sleep(0.3); answer = 1") == 1
            assert one.sandbox.info().gpu_memory_bytes == 90 * MIB
            uses.append(Use(unit=fake_gpus.id_of(0), pid=mine[0], used_bytes=11 * MIB))
            with pytest.raises(GpuOutOfMemory, match="100 MiB of GPU memory"):
                await one.run("import time; time.sleep(20)")
