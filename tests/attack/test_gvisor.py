"""The tier with a kernel of its own: what is held in another way than by the host's kernel."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from boxes import Ways, box, spec_of

from appliance.errors import GuestError, IsolationUnavailable, OutOfMemory
from appliance.sandbox import kernel, tiers
from appliance.sandbox.gvisor import TASKS_EACH, TASKS_OWN, faults
from appliance.sandbox.podman import PodmanExecutor

pytestmark = [pytest.mark.podman, pytest.mark.asyncio(loop_scope="session")]

HOARDS = {
    "memory": "kept['x'] = bytearray(b'x') * size",
    "shared memory": "import mmap; kept['m'] = mmap.mmap(-1, size); kept['m'].write(b'x' * size)",
    "a memory file": """
import os
kept['f'] = os.memfd_create('x')
for _ in range(size >> 20): os.write(kept['f'], b'x' * (1 << 20))""",
}
FORKS = """
import os, time
answer = 0
for _ in range(400):
    if os.fork() == 0:
        time.sleep(3)
        os._exit(0)
    answer += 1
"""


@pytest.fixture(autouse=True)
def gvisor() -> Iterator[None]:
    if not tiers.runsc_path():
        pytest.skip(f"gVisor is not installed here: {tiers.INSTALL}")
    Ways.isolation = "gvisor"
    yield
    Ways.isolation = "standard"


def tasks_of(pid: int) -> int:
    pids = (pid, *kernel.descendants(pid))
    found = 0
    for one in pids:
        with contextlib.suppress(OSError):
            found += len(list(Path(f"/proc/{one}/task").iterdir()))
    return found


async def test_the_model_sees_another_kernel_and_no_path_of_the_host(
    podman_executor: PodmanExecutor,
) -> None:
    async with box(podman_executor) as one:
        text = "answer = [open(p).read() for p in ('/proc/version', '/proc/self/mountinfo')]"
        version, mounts = await one.run(text)
    assert os.uname().release not in version
    for path in (podman_executor.data_dir, podman_executor.run_dir):
        assert str(path) not in mounts


async def test_the_sentry_has_no_user_of_the_host_and_no_way_to_more(
    podman_executor: PodmanExecutor,
) -> None:
    async with box(podman_executor) as one, box(podman_executor, spec_of("other")) as other:
        for each in (one, other):
            found = kernel.confinement(each.sandbox.pid)  # type: ignore[attr-defined]
            assert faults(found, is_running=True) == []
        slots = [each.sandbox.slot for each in (one, other)]  # type: ignore[attr-defined]
        assert not {slots[0].root_uid, slots[0].user_uid} & {slots[1].root_uid, slots[1].user_uid}
        assert podman_executor.gvisor is not None
        (sentry_uid,) = podman_executor.gvisor.service.also_uids
        assert all(sentry_uid not in (slot.root_uid, slot.user_uid) for slot in slots)


@pytest.mark.parametrize("text", HOARDS.values(), ids=HOARDS)
async def test_memory_of_every_kind_is_counted(podman_executor: PodmanExecutor, text: str) -> None:
    spec = spec_of(memory_mb=96, model_bytes=1)
    async with box(podman_executor, spec) as one:
        with pytest.raises(OutOfMemory):
            await one.run(f"import time; size = 400 << 20\n{text}\ntime.sleep(5); answer = 1")


async def test_a_fork_bomb_ends_its_own_sandbox_only(podman_executor: PodmanExecutor) -> None:
    async with box(podman_executor, spec_of("neighbour")) as neighbour:
        async with box(podman_executor, spec_of("bomb", pids=32)) as bomb:
            running = asyncio.create_task(bomb.run(FORKS))
            most = 0
            while not running.done():
                most = max(most, tasks_of(bomb.sandbox.pid))  # type: ignore[attr-defined]
                await asyncio.sleep(0.05)
            with pytest.raises(GuestError):
                await running
        assert most <= TASKS_EACH * 64 + TASKS_OWN
        assert await neighbour.run("answer = 1") == 1


async def test_without_runsc_nothing_weaker_is_used(
    podman_executor: PodmanExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiers, "_PATH", "/nonexistent")
    with pytest.raises(IsolationUnavailable) as caught:
        await podman_executor.create(spec_of())
    assert caught.value.hint == tiers.INSTALL
