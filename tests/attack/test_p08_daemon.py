"""P08: a daemon made by double fork that outlives the call."""

from __future__ import annotations

import asyncio
import json
import os

import pytest
from boxes import RUN_MODEL, Ways, box, pieces, spec_of, tar_of

from appliance import config
from appliance.errors import RunnerCrashed
from appliance.sandbox import kernel
from appliance.sandbox.keeper import Pace
from appliance.sandbox.podman import PodmanExecutor
from appliance.sandbox.pool import Pool
from appliance.sandbox.spec import Request

pytestmark = [
    pytest.mark.podman,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.usefixtures("each_tier"),
]

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
    if Ways.isolation == "gvisor":  # the user of the Sentries is the same for all
        pid = sandbox.pid  # type: ignore[attr-defined]
        found[-1] = [
            one for one in (pid, *kernel.descendants(pid)) if os.path.exists(f"/proc/{one}")
        ]
    return sum(len(pids) for pids in found.values())


async def test_a_daemon_ends_with_its_sandbox(podman_executor: PodmanExecutor) -> None:
    async with box(podman_executor) as one:
        assert await one.run(DAEMON) == 1
        await asyncio.sleep(0.2)
        assert count(podman_executor, one.sandbox) >= 3
    assert count(podman_executor, one.sandbox) == 0


async def test_a_daemon_ends_with_the_runner(podman_executor: PodmanExecutor) -> None:
    async with box(podman_executor) as one:
        with pytest.raises(RunnerCrashed):
            await one.run(DAEMON + "\nos._exit(1)")
        assert count(podman_executor, one.sandbox) == 0


WAKES_ITSELF = """
import ctypes, os, signal, threading
signal.signal(signal.SIGCONT, lambda *_: None)  # ignored, a periodic timer is not armed again
libc = ctypes.CDLL(None, use_errno=True)
class Event(ctypes.Structure):
    _fields_ = [("value", ctypes.c_void_p), ("signo", ctypes.c_int), ("notify", ctypes.c_int),
                ("pad", ctypes.c_int * 16)]
class Spec(ctypes.Structure):
    _fields_ = [("each_s", ctypes.c_long), ("each_ns", ctypes.c_long),
                ("first_s", ctypes.c_long), ("first_ns", ctypes.c_long)]
event, timer = Event(0, signal.SIGCONT, 0), ctypes.c_void_p()
made = libc.timer_create(1, ctypes.byref(event), ctypes.byref(timer))
every = Spec(0, 20_000_000, 0, 20_000_000)
made = made or libc.timer_settime(timer, 0, ctypes.byref(every), None)
def spin():
    while True:
        pass
threading.Thread(target=spin, daemon=True).start()
answer = [made, ctypes.get_errno()]
"""


async def test_one_that_wakes_itself_while_it_is_frozen_is_ended(
    podman_executor: PodmanExecutor,
) -> None:
    """With a kernel of its own it cannot: its timers stop with that kernel."""
    settings = config.Sandbox(zygote_memory_bytes_max=0)
    pool = Pool(podman_executor, settings, pace=Pace(freeze_s=0.05))
    body = json.dumps({"run": WAKES_ITSELF}).encode()
    request = Request(id="1", content_type="application/json", body=body, timeout_ms=9000,
                      reply_bytes_max=1000)  # fmt: skip
    try:
        async with pool.lease(spec_of(), lambda: pieces(tar_of({"model.py": RUN_MODEL}))) as lease:
            assert json.loads((await lease.request(request)).body)[0] == 0  # or the test is void
        if Ways.isolation == "gvisor":
            async with asyncio.timeout(30):
                while [one.state for one in pool.list()] != ["frozen"]:
                    await asyncio.sleep(0.05)
            (before,) = pool.list()
            await asyncio.sleep(1)
            (after,) = pool.list()
            assert (after.state, after.cpu_ms - before.cpu_ms <= 10) == ("frozen", True)
            return
        async with asyncio.timeout(30):
            while pool.list():
                await asyncio.sleep(0.05)
    finally:
        await pool.close()
