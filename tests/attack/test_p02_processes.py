"""P02: a thousand forks, then a thousand threads."""

from __future__ import annotations

import asyncio
import time

import pytest
from boxes import Box, box, spec_of

from appliance.errors import ModelRaised
from appliance.sandbox.podman import PodmanExecutor

pytestmark = [
    pytest.mark.podman,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.usefixtures("each_way"),
]

FORKS = """
import os, time
answer = 0
for _ in range(1000):
    try:
        pid = os.fork()
    except OSError:
        break
    if pid == 0:
        end = time.time() + 6
        while time.time() < end:
            pass
        os._exit(0)
    answer += 1
"""
THREADS = """
import threading, time
answer = 0
for _ in range(1000):
    try:
        threading.Thread(target=time.sleep, args=(6,), daemon=True).start()
    except (RuntimeError, MemoryError):
        break
    answer += 1
"""


async def p99_ms(one: Box, seconds: float) -> float:
    took = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        started = time.perf_counter()
        await one.run("answer = 1")
        took.append((time.perf_counter() - started) * 1000)
        await asyncio.sleep(0.002)
    return sorted(took)[int(len(took) * 0.99)]


@pytest.mark.parametrize("text", [FORKS, THREADS], ids=["forks", "threads"])
async def test_processes_are_refused_at_the_limit(
    podman_executor: PodmanExecutor, text: str
) -> None:
    async with box(podman_executor, spec_of(pids=32, memory_mb=512)) as one:
        made = await one.run(text)
        assert 20 <= made <= 32


async def test_two_sandboxes_have_a_limit_each(podman_executor: PodmanExecutor) -> None:
    spec = spec_of(pids=32, memory_mb=512)
    async with box(podman_executor, spec) as one, box(podman_executor, spec) as two:
        made = await asyncio.gather(one.run(FORKS), two.run(FORKS))
        assert min(made) >= 20
        assert max(made) <= 32


async def test_a_fork_bomb_leaves_its_neighbour_answering(podman_executor: PodmanExecutor) -> None:
    async with (
        box(podman_executor, spec_of("neighbour")) as neighbour,
        box(podman_executor, spec_of("bomb", pids=64, memory_mb=512)) as bomb,
    ):
        quiet = await p99_ms(neighbour, 2)
        assert await bomb.run(FORKS) > 20
        under = await p99_ms(neighbour, 3)
        # Twice, and never under the few milliseconds a scheduler tick takes.
        assert under < max(2 * quiet, 25), f"{quiet:.1f} ms, then {under:.1f} ms"


async def test_the_process_limit_cannot_be_raised(podman_executor: PodmanExecutor) -> None:
    async with box(podman_executor) as one:
        for limit in ("RLIMIT_NPROC", "RLIMIT_FSIZE", "RLIMIT_DATA"):
            with pytest.raises(ModelRaised, match=r"ValueError|PermissionError"):
                await one.run(
                    f"import resource as r; n = r.getrlimit(r.{limit})[1];"
                    f"r.setrlimit(r.{limit}, (r.RLIM_INFINITY if n < 0 else n + 1,) * 2);"
                    "answer = n; assert n >= 0 or 1 / 0"
                )
