"""P08: a daemon made by double fork that outlives the call."""

from __future__ import annotations

import asyncio

import pytest
from boxes import box

from appliance.errors import RunnerCrashed
from appliance.sandbox import kernel
from appliance.sandbox.podman import PodmanExecutor

pytestmark = [pytest.mark.podman, pytest.mark.asyncio(loop_scope="session")]

DAEMON = """
import os, time
child = os.fork()
if child == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(600)
    os._exit(0)
os.waitpid(child, 0)
answer = 1
"""


def count(executor: PodmanExecutor, sandbox: object) -> int:
    slot = sandbox.slot  # type: ignore[attr-defined]
    found = kernel.pids_by_uid({slot.root_uid, slot.user_uid})
    return sum(len(pids) for pids in found.values())


async def test_a_daemon_ends_with_its_sandbox(podman_executor: PodmanExecutor) -> None:
    async with box(podman_executor) as one:
        assert await one.run(DAEMON) == 1
        await asyncio.sleep(0.2)
        assert count(podman_executor, one.sandbox) == 3
    assert count(podman_executor, one.sandbox) == 0


async def test_a_daemon_ends_with_the_runner(podman_executor: PodmanExecutor) -> None:
    async with box(podman_executor) as one:
        with pytest.raises(RunnerCrashed):
            await one.run(DAEMON + "\nos._exit(1)")
        assert count(podman_executor, one.sandbox) == 0
