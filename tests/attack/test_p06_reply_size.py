"""P06: an answer of ten gigabytes, announced or sent."""

from __future__ import annotations

from pathlib import Path

import pytest
from boxes import SPEAK, box, spec_of

from appliance.errors import InvokeTimeout, ReplyTooLarge
from appliance.sandbox.podman import PodmanExecutor
from appliance.sandbox.spec import MIB

pytestmark = [pytest.mark.podman, pytest.mark.asyncio(loop_scope="session")]


def resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError


async def test_an_answer_over_the_cap_is_cut(podman_executor: PodmanExecutor) -> None:
    async with box(podman_executor, spec_of(memory_mb=1024)) as one:
        with pytest.raises(ReplyTooLarge) as caught:
            await one.run("answer = 'x' * (200 << 20)", reply_bytes_max=MIB)
        assert caught.value.status == 502
        assert not one.sandbox.alive


@pytest.mark.parametrize("size", [10 << 30, (1 << 64) - 1])
async def test_a_forged_giant_answer_costs_the_appliance_no_memory(
    podman_executor: PodmanExecutor, size: int
) -> None:
    text = (
        SPEAK
        + f"""
send({{"type": "RES", "id": "r1", "content_type": "text/plain", "compute_us": 1}}, {size})
piece = b"x" * (1 << 20)
while True:
    link.sendall(piece)
"""
    )
    async with box(podman_executor, spec_of(invoke_timeout_ms=5000)) as one:
        before = resident_bytes()
        with pytest.raises(ReplyTooLarge) as caught:
            await one.run(text)
        assert caught.value.status == 502
        assert not one.sandbox.alive
        assert resident_bytes() - before < 64 * MIB


async def test_many_frames_nobody_asked_for_cost_no_memory(podman_executor: PodmanExecutor) -> None:
    text = (
        SPEAK
        + """
while True:
    send({"type": "LOG", "stream": "stdout", "dropped": 1 << 70}, 65536, b"y" * 65536)
"""
    )
    async with box(podman_executor, spec_of(invoke_timeout_ms=2000)) as one:
        before = resident_bytes()
        with pytest.raises(InvokeTimeout):
            await one.run(text)
        assert resident_bytes() - before < 64 * MIB
