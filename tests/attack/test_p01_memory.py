"""P01: a model that touches four times its memory, by any road."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from boxes import RUN_MODEL, box, spec_of

from appliance.errors import LoadFailed, ModelRaised, OutOfMemory
from appliance.sandbox.podman import PodmanExecutor
from appliance.sandbox.spec import MIB

pytestmark = [
    pytest.mark.podman,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.usefixtures("each_way"),
]

LIMIT_MB = 128
ROADS = {
    "one process": """
held = []
for _ in range(4 * 128):
    held.append(bytearray(b"x") * (1 << 20))
""",
    "four processes": """
import os, time
for _ in range(4):
    if os.fork() == 0:
        held = [bytearray(b"x") * (1 << 20) for _ in range(100)]
        time.sleep(30)
        os._exit(0)
time.sleep(15)
""",
    "files in /tmp, /dev/shm and /model": """
import os
held = [bytearray(b"x") * (1 << 20) for _ in range(60)]
for folder in ("/tmp", "/dev/shm", "/model"):
    try:
        with open(folder + "/fill", "wb", buffering=0) as out:
            while True:
                out.write(b"x" * (1 << 20))
    except OSError:
        pass
import time
time.sleep(15)
""",
    "a deleted file that stays open": """
import os, time
fds = []
for folder in ("/tmp", "/dev/shm", "/model"):
    fds.append(os.open(folder + "/gone", os.O_RDWR | os.O_CREAT))
    os.unlink(folder + "/gone")
held = [bytearray(b"x") * (1 << 20) for _ in range(60)]
for fd in fds:
    try:
        while True:
            os.write(fd, b"x" * (1 << 20))
    except OSError:
        pass
time.sleep(15)
""",
    "an undumpable process": """
import ctypes, os, time
for _ in range(4):
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
        held = [bytearray(b"x") * (1 << 20) for _ in range(100)]
        time.sleep(30)
        os._exit(0)
time.sleep(15)
""",
}
REFUSED = {
    "a shared anonymous mapping": "import mmap; mmap.mmap(-1, 512 << 20)",
    "memfd_create": "import os; os.memfd_create('x')",
    "a shared mapping of /dev/zero": """
import mmap, os
fd = os.open("/dev/zero", os.O_RDWR)
mmap.mmap(fd, 512 << 20)
""",
    "System V shared memory": """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
if libc.shmget(0, 512 << 20, 0o1666) < 0:
    raise OSError(ctypes.get_errno(), "refused")
""",
}


def available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise AssertionError


@pytest.mark.parametrize("road", ROADS)
async def test_memory_over_the_limit_ends_the_sandbox(
    podman_executor: PodmanExecutor, road: str
) -> None:
    async with (
        box(podman_executor, spec_of("neighbour")) as neighbour,
        box(podman_executor, spec_of(memory_mb=LIMIT_MB, tmp_bytes=64 * MIB)) as one,
    ):
        before = least = available_bytes()
        call = asyncio.ensure_future(one.run(ROADS[road]))
        while not call.done():
            least = min(least, available_bytes())
            assert await neighbour.run("answer = 1") == 1
            await asyncio.sleep(0.01)
        with pytest.raises(OutOfMemory) as caught:
            await call
        assert caught.value.status == 507
        assert not one.sandbox.alive
        # Other tests' and processes' memory moves too: some slack above limit + 10 %.
        assert before - least < LIMIT_MB * MIB * 1.1 + 96 * MIB


@pytest.mark.parametrize("road", REFUSED)
async def test_memory_that_cannot_be_counted_is_refused(
    podman_executor: PodmanExecutor, road: str
) -> None:
    if podman_executor.limits.level == "enforced":
        pytest.skip("the kernel counts all of it here")
    async with box(podman_executor) as one:
        with pytest.raises(ModelRaised):
            await one.run(REFUSED[road])


async def test_the_limit_holds_while_loading(podman_executor: PodmanExecutor) -> None:
    eager = b"held = [bytearray(b'x') * (1 << 20) for _ in range(512)]\n" + RUN_MODEL
    with pytest.raises((OutOfMemory, LoadFailed)):
        async with box(podman_executor, spec_of(memory_mb=96), {"model.py": eager}):
            pass
