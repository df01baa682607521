"""P07: a model that ignores SIGTERM and spins past its deadline."""

from __future__ import annotations

import asyncio
import time

import pytest
from boxes import SPEAK, Ways, box

from appliance.errors import InvokeTimeout
from appliance.sandbox import kernel
from appliance.sandbox.podman import PodmanExecutor

pytestmark = [
    pytest.mark.podman,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.usefixtures("each_tier"),
]

SPIN = """
import os, signal
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
for _ in range(3):
    if os.fork() == 0:
        break
while True:
    pass
"""


async def test_everything_is_gone_soon_after_the_deadline(podman_executor: PodmanExecutor) -> None:
    async with box(podman_executor) as one:
        slot = one.sandbox.slot
        family = (one.sandbox.pid, *kernel.descendants(one.sandbox.pid))
        started = time.monotonic()
        with pytest.raises(InvokeTimeout) as caught:
            await one.run(SPIN, timeout_ms=500)
        assert caught.value.status == 504
        assert time.monotonic() - started < 0.5 + 2
        assert kernel.pids_by_uid({slot.root_uid, slot.user_uid}) == {
            slot.root_uid: [],
            slot.user_uid: [],
        }
        assert not any(kernel.is_running(pid) for pid in family)
        apis = [podman_executor.api]
        if Ways.isolation == "gvisor":
            assert podman_executor.gvisor is not None
            apis.append(podman_executor.gvisor.api)
        for api in apis:
            names = await podman_executor.run(
                api.must, "get", "/containers/json", params={"all": "true"}
            )
            assert one.sandbox.id not in str(names)
        assert time.monotonic() - started < 0.5 + 2


async def test_an_answer_that_trickles_in_does_not_extend_the_deadline(
    podman_executor: PodmanExecutor,
) -> None:
    text = (
        SPEAK
        + """
import time
send({"type": "RES", "id": "r1", "content_type": "text/plain", "compute_us": 1}, 100000)
while True:
    link.sendall(b"x")
    time.sleep(0.05)
"""
    )
    async with box(podman_executor) as one:
        started = asyncio.get_running_loop().time()
        with pytest.raises(InvokeTimeout):
            await one.run(text, timeout_ms=700)
        assert asyncio.get_running_loop().time() - started < 3
