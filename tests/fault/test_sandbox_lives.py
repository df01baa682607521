"""Many lives of sandboxes, of every kind of end, and nothing of them is left.

``APPLIANCE_TEST_LIVES`` says how many; 60 by default, 1,000 before a release.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator

import pytest
from boxes import RUN_MODEL, key_of, pieces, spec_of, tar_of
from traces import entries, settled, traces

from appliance import config
from appliance.errors import ApplianceError
from appliance.sandbox.podman import PodmanExecutor
from appliance.sandbox.pool import Pool
from appliance.sandbox.spec import MIB, Request

pytestmark = [
    pytest.mark.podman,
    pytest.mark.timeout(3600),
    pytest.mark.asyncio(loop_scope="session"),
]

LIVES = int(os.environ.get("APPLIANCE_TEST_LIVES", "60"))
AT_ONCE = 4
# Podman's client and the loop's own threads open theirs at first use.
SLACK = {"handles": 2 * len(os.sched_getaffinity(0)) + 12}
ENDS = (
    "answer = 1",
    "raise ValueError('as asked')",
    "import os; os._exit(3)",
    "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "import time; time.sleep(60)",
    "import os\nif os.fork() == 0:\n  os.setsid()\n  while True: pass\nanswer = 1",
    "open('/tmp/f', 'w').write('x' * 1000000); answer = 1",
    "import os; [os.write(fd, b'\\xff' * 64) for fd in range(3, 9)]",
)


def load() -> AsyncIterator[bytes]:
    return pieces(tar_of({"model.py": RUN_MODEL}))


def broken() -> AsyncIterator[bytes]:
    return pieces(tar_of({"model.py": b"import nothing_of_this_name"}))


async def life(pool: Pool, executor: PodmanExecutor, number: int) -> None:
    """One life through the pool; every tenth otherwise: cancelled, unloadable, never bound."""
    if number % 10 == 7:
        one = await executor.create_ahead(key_of(spec_of(), "decimal"))
        await one.destroy()
        return
    spec = spec_of(f"v{number % 5}", idle_timeout_s=0 if number % 3 else 5)
    text = ENDS[number % len(ENDS)]
    body = json.dumps({"run": text}).encode()
    request = Request(id="1", content_type="application/json", body=body,
                      timeout_ms=700 if "sleep" in text else 20_000,
                      reply_bytes_max=1000)  # fmt: skip
    with contextlib.suppress(ApplianceError, TimeoutError):
        async with asyncio.timeout(0.05 * (number % 7) if number % 10 == 3 else 60):
            async with pool.lease(spec, broken if number % 10 == 5 else load) as lease:
                await lease.request(request)


async def lives(executor: PodmanExecutor, count: int) -> None:
    settings = config.Sandbox(zygote_memory_bytes_max=100 * MIB, instances_per_version_max=4)
    pool = Pool(executor, settings)
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await life(pool, executor, number)

    try:
        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    finally:
        await pool.close()


async def test_many_lives_leave_nothing(podman_executor: PodmanExecutor) -> None:
    await lives(podman_executor, 2 * AT_ONCE)
    await asyncio.sleep(1)
    before, paths = await traces(podman_executor), entries(podman_executor)
    started = asyncio.get_running_loop().time()
    await lives(podman_executor, LIVES)
    took_s = asyncio.get_running_loop().time() - started
    after, more = await settled(podman_executor, before, SLACK)
    print(f"\n{LIVES} lives in {took_s:.0f} s\nbefore {before}\nafter  {after}")
    late = set(more) == {"run_entries"} and _are_late(entries(podman_executor) - paths)
    assert not more or late, (more, sorted(entries(podman_executor) - paths))
    assert (after.containers, after.boxes, after.slots) == (0, 0, 0)


def _are_late(paths: set[str]) -> bool:
    """Whether these are notes on how the last few ended, which go with the next life."""
    return len(paths) <= AT_ONCE and all("/libpod/tmp/exits/" in path for path in paths)
