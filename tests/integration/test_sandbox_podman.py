"""The Podman engine against faults: its service dies, its predecessor left things, ids run out."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from boxes import RUN_MODEL, SPEAK, box, pieces, spec_of, tar_of

from appliance import config
from appliance.errors import (
    BuildFailed,
    CapacityExhausted,
    LimitsUnenforced,
    OutOfMemory,
    PodmanUnavailable,
    RunnerCrashed,
    RuntimeMissing,
)
from appliance.sandbox import dependencies, images, kernel
from appliance.sandbox.packages import wheels
from appliance.sandbox.podman import PodmanExecutor
from appliance.sandbox.pool import Pool
from appliance.sandbox.spec import MIB, Request

pytestmark = [pytest.mark.podman, pytest.mark.asyncio(loop_scope="session")]


@asynccontextmanager
async def engine(
    run_dir: Path, data_dir: Path, settings: config.Sandbox | None = None, **more: object
) -> AsyncIterator[PodmanExecutor]:
    executor = PodmanExecutor(
        settings or config.Sandbox(accept_supervised_limits=True),
        run_dir=run_dir,
        data_dir=data_dir,
        **more,  # type: ignore[arg-type]
    )
    await executor.start()
    try:
        yield executor
    finally:
        await executor.close()


def processes_of(run_dir: Path) -> list[str]:
    needle = str(run_dir).encode()
    found = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdigit() and needle in Path(f"/proc/{name}/cmdline").read_bytes():
                found.append(name)
    return [name for name in found if int(name) != os.getpid()]


async def test_limits_are_reported_by_what_happened(podman_executor: PodmanExecutor) -> None:
    report = podman_executor.limits
    assert report.level in ("enforced", "supervised")
    assert "NOT" not in report.detail
    about = podman_executor.info()
    assert about["version"]
    assert about["oci_runtime"] in ("runc", "crun")


async def test_the_process_limits_are_exact(podman_executor: PodmanExecutor) -> None:
    spec = spec_of(memory_mb=200, pids=17)
    async with box(podman_executor, spec) as one:
        found = kernel.limits_of(one.sandbox.pid)
        assert found["nproc"] == 18
        assert found["core"] == 0
        if podman_executor.limits.level == "supervised":
            assert found["data"] == 200 * MIB


async def test_weaker_limits_need_to_be_accepted(tmpfs_dir: Path, test_data: Path) -> None:
    async with engine(tmpfs_dir, test_data, config.Sandbox()) as executor:
        if executor.limits.level == "enforced":
            pytest.skip("limits are enforced here")
        with pytest.raises(LimitsUnenforced, match="not accepted"):
            await executor.create(spec_of())


async def test_without_a_runtime_nothing_runs(tmpfs_dir: Path, tmp_path: Path) -> None:
    async with engine(tmpfs_dir, tmp_path) as executor:
        assert executor.limits.level == "none"
        with pytest.raises((LimitsUnenforced, RuntimeMissing)):
            await executor.create(spec_of())


async def test_a_runtime_installed_later_is_used(
    tmpfs_dir: Path, tmp_path: Path, runtime: images.Runtime
) -> None:
    async with engine(tmpfs_dir, tmp_path) as executor:
        target = tmp_path / "runtimes" / runtime.rootfs.parent.name
        subprocess.run(["cp", "-a", "--reflink=auto", runtime.rootfs.parent, target], check=True)
        async with box(executor) as one:
            assert await one.run("answer = 1") == 1


async def test_containers_outlive_the_service(tmpfs_dir: Path, test_data: Path) -> None:
    async with engine(tmpfs_dir, test_data) as executor, box(executor) as one:
        assert executor.service is not None
        os.kill(executor.service.pid, signal.SIGKILL)
        assert await one.run("answer = 1") == 1
        for _ in range(200):
            if executor.service.restarts and executor.service.pid:
                break
            await asyncio.sleep(0.05)
        assert executor.service.restarts == 1
        async with box(executor) as two:
            assert await two.run("answer = 2") == 2
        assert await one.run("answer = 3") == 3


async def test_nothing_is_left_after_close(tmpfs_dir: Path, test_data: Path) -> None:
    async with engine(tmpfs_dir, test_data) as executor:
        for _ in range(3):
            sandbox = await executor.create(spec_of())
        uid = sandbox.slot.user_uid
    assert kernel.pids_by_uid({uid}) == {uid: []}
    assert processes_of(tmpfs_dir) == []
    assert {path.name for path in tmpfs_dir.iterdir()} <= {"podman.lock"}


async def test_two_engines_never_share_a_run_folder(tmpfs_dir: Path, test_data: Path) -> None:
    async with engine(tmpfs_dir, test_data) as executor, box(executor) as one:
        with pytest.raises(PodmanUnavailable, match="another appliance"):
            async with engine(tmpfs_dir, test_data):
                pass
        assert await one.run("answer = 1") == 1


LEFT_BEHIND = """
import asyncio, json, sys
from pathlib import Path
sys.path[:0] = {path!r}
from boxes import spec_of, tar_of, pieces, RUN_MODEL
from appliance import config
from appliance.sandbox.podman import PodmanExecutor
from appliance.sandbox.spec import Request
async def main():
    executor = PodmanExecutor(config.Sandbox(accept_supervised_limits=True),
                              run_dir=Path(sys.argv[1]), data_dir=Path(sys.argv[2]))
    await executor.start()
    for _ in range(2):
        sandbox = await executor.create(spec_of())
        await sandbox.load(pieces(tar_of({{"model.py": RUN_MODEL}})))
        code = "import os, time\\nif os.fork() == 0:\\n  os.setsid()\\n  time.sleep(60)"
        text = json.dumps({{"run": code}}).encode()
        await sandbox.request(Request(id="1", content_type="application/json", body=text,
                                      timeout_ms=5000, reply_bytes_max=1000))
        print(sandbox.slot.user_uid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


async def test_what_a_killed_appliance_left_is_swept(tmpfs_dir: Path, test_data: Path) -> None:
    script = LEFT_BEHIND.format(path=[p for p in sys.path if p])
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(tmpfs_dir), str(test_data), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    uids = {int(await asyncio.wait_for(process.stdout.readline(), 60)) for _ in range(2)}
    process.kill()
    await process.wait()
    async with engine(tmpfs_dir, test_data) as executor:
        found = kernel.pids_by_uid(uids)
        assert all(not pids for pids in found.values()), found
        assert len(list(executor.boxes.glob("sb_*"))) == 0
        async with box(executor) as one:
            assert await one.run("answer = 1") == 1
    assert processes_of(tmpfs_dir) == []


async def test_ids_are_used_again_only_after_removal(tmpfs_dir: Path, test_data: Path) -> None:
    own = kernel.own_sub_ids()
    few = kernel.SubIds(uid_base=own.uid_base, gid_base=own.gid_base, count=6, skip=own.count - 12)
    async with engine(tmpfs_dir, test_data, ids=few) as executor:
        held = [await executor.create(spec_of(f"v{n}")) for n in range(3)]
        assert len({sandbox.slot.user_uid for sandbox in held}) == 3
        with pytest.raises(CapacityExhausted):
            await executor.create(spec_of())
        await held[1].destroy()
        again = await executor.create(spec_of())
        assert again.slot == held[1].slot


async def test_a_sandbox_killed_from_outside_is_a_crash(podman_executor: PodmanExecutor) -> None:
    async with box(podman_executor) as one:
        call = asyncio.ensure_future(one.run("import time; time.sleep(20)"))
        await asyncio.sleep(0.2)
        os.kill(one.sandbox.pid, signal.SIGKILL)
        with pytest.raises(RunnerCrashed) as caught:
            await call
        assert caught.value.extensions["exit_code"] == 137


async def test_a_sandbox_that_dies_idle_is_replaced(podman_executor: PodmanExecutor) -> None:
    pool = Pool(podman_executor, config.Sandbox(instances_per_version_max=1))
    request = Request(id="1", content_type="application/json", body=b"1", timeout_ms=5000,
                      reply_bytes_max=100)  # fmt: skip

    def load() -> AsyncIterator[bytes]:
        return pieces(tar_of({"model.py": RUN_MODEL}))

    async with pool.lease(spec_of(), load) as lease:
        await lease.request(request)
        first = lease.sandbox_id
    os.kill(pool.list()[0].pid, signal.SIGKILL)
    await asyncio.sleep(0.3)
    async with pool.lease(spec_of(), load) as lease:
        assert (await lease.request(request)).body == b"1"
        assert lease.cold
        assert lease.sandbox_id != first
    await pool.close()


async def test_garbage_while_idle_ends_the_sandbox(podman_executor: PodmanExecutor) -> None:
    async with box(podman_executor) as one:
        text = (
            SPEAK
            + """
import threading, time
def later():
    time.sleep(0.3)
    link.sendall(b"\\xff" * 64)
threading.Thread(target=later).start()
answer = 1
"""
        )
        assert await one.run(text) == 1
        assert one.sandbox.alive
        await asyncio.sleep(0.8)
        assert not one.sandbox.alive


async def test_a_model_that_outgrows_its_memory_while_idle_is_ended(
    podman_executor: PodmanExecutor,
) -> None:
    async with box(podman_executor, spec_of(memory_mb=128)) as one:
        text = """
import os, time
for _ in range(4):
    if os.fork() == 0:
        time.sleep(0.3)
        held = [bytearray(b"x") * (1 << 20) for _ in range(90)]
        time.sleep(30)
        os._exit(0)
answer = 1
"""
        await one.run(text)
        await asyncio.sleep(2.5)
        assert not one.sandbox.alive
        with pytest.raises(OutOfMemory):
            await one.run("answer = 1")


async def test_calls_and_memory_are_shown(podman_executor: PodmanExecutor) -> None:
    async with box(podman_executor) as one:
        await one.run("kept['x'] = bytearray(b'x') * (50 << 20); answer = 1")
        await asyncio.sleep(0.4)
        info = one.sandbox.info()
        assert info.calls == 1
        assert 50 * MIB < info.memory_bytes < 120 * MIB
        assert info.rss_bytes > 50 * MIB
        assert info.cpu_ms > 0
        assert info.pid == one.sandbox.pid


async def test_a_large_model_is_streamed_into_memory(podman_executor: PodmanExecutor) -> None:
    files = {"model.py": RUN_MODEL, "weights.bin": os.urandom(1 << 20) * 150}
    spec = spec_of(memory_mb=128, files=files)
    started = time.monotonic()
    async with box(podman_executor, spec, files) as one:
        print(f"150 MiB loaded in {time.monotonic() - started:.2f} s")
        assert await one.run("import os; answer = os.path.getsize('weights.bin')") == 150 << 20
        # The model's own files are not charged to its memory.
        assert await one.run("x = bytearray(b'x') * (60 << 20); answer = 1") == 1


@pytest.mark.slow
async def test_dependencies_are_built_once_and_need_no_network_after(
    podman_executor: PodmanExecutor, runtime: images.Runtime
) -> None:
    steps: list[str] = []
    pins = wheels.parse_requirements("six==1.17.0")
    data_dir = podman_executor.data_dir
    known = [about.key for about in dependencies.described(data_dir) if len(about.lock) == 1]
    for key in (*known, dependencies.request_key(runtime, pins)):
        dependencies.remove(data_dir, key)
    built = await dependencies.ensure(
        podman_executor, runtime, pins, config.Build(), lambda step, _: steps.append(step)
    )
    nowhere = config.Build(wheelhouse="/nonexistent")
    again = await dependencies.ensure(podman_executor, runtime, pins, nowhere, lambda *_: None)
    assert built == again
    assert [(one.name, one.version, one.digest[:7]) for one in built.lock] == [
        ("six", "1.17.0", "sha256:")
    ]
    assert any("Successfully installed six-1.17.0" in step for step in steps), "no streamed log"
    folder = podman_executor.data_dir / "deps" / built.key
    assert (folder / "six.py").exists()
    assert list((folder / "__pycache__").glob("six.*.pyc"))
    files = {"model.py": b"import six\n" + RUN_MODEL}
    async with box(podman_executor, spec_of(deps_key=built.key), files) as one:
        assert await one.run("import six; answer = six.__version__") == "1.17.0"
        assert await one.run("import six; answer = six.__file__") == "/deps/six.py"
    assert not [p for p in (podman_executor.data_dir / "deps").iterdir() if p.name[0] == "."]
    assert not list((podman_executor.data_dir / "wheels").glob(".build-*"))


async def test_a_package_without_a_wheel_is_named(
    podman_executor: PodmanExecutor, runtime: images.Runtime, tmp_path: Path
) -> None:
    pins = wheels.parse_requirements("no-such-package-anywhere==1.0")
    build = config.Build(wheelhouse=str(tmp_path))
    with pytest.raises(BuildFailed) as caught:
        await dependencies.ensure(podman_executor, runtime, pins, build, lambda *_: None)
    assert "no-such-package-anywhere==1.0" in caught.value.detail
    assert caught.value.extensions["lines"]
