"""P05: print a gigabyte to stdout and stderr."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest
from boxes import box, spec_of

from appliance.errors import ModelRaised
from appliance.sandbox.podman import PodmanExecutor
from appliance.sandbox.spec import MIB

pytestmark = [pytest.mark.podman, pytest.mark.asyncio(loop_scope="session")]

PRINT = """
import sys
line = "x" * 8191
for _ in range(inputs["mib"] * 64):
    print(line)
    print(line, file=sys.stderr)
print("the end")
answer = "done"
"""


def resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError


def kept_bytes(executor: PodmanExecutor) -> int:
    """What is on the disk and in the run folder of an engine; others write to the same disk."""
    found = 0
    for folder in (executor.data_dir, executor.run_dir):
        for path in folder.rglob("*"):
            with contextlib.suppress(OSError):  # it may be gone meanwhile
                found += path.lstat().st_size
    return found


async def test_a_gigabyte_of_output_is_cut_and_marked(podman_executor: PodmanExecutor) -> None:
    kept = kept_bytes(podman_executor)
    async with box(podman_executor, spec_of(invoke_timeout_ms=60_000)) as one:
        before = resident_bytes()
        started = time.monotonic()
        assert await one.run(PRINT, mib=1024) == "done"
        print(f"1 GiB printed in {time.monotonic() - started:.1f} s")
        with pytest.raises(ModelRaised) as caught:
            await one.run("1 / 0")
        assert resident_bytes() - before < 16 * MIB
        tail = caught.value.stderr
        assert "left out" in tail[0]
        assert "the end" in tail
        assert sum(len(line) for line in tail) < 128 * 1024
        assert len(tail) < 300
    assert kept_bytes(podman_executor) - kept < 16 * MIB


async def test_output_of_control_characters_is_defused(podman_executor: PodmanExecutor) -> None:
    async with box(podman_executor) as one:
        with pytest.raises(ModelRaised) as caught:
            await one.run(
                r"print('\x1b]0;owned\x07\x1b[2J\u202eabc'); raise ValueError('\x1b[31m')"
            )
        text = "\n".join((*caught.value.stderr, caught.value.detail))
        assert "\x1b" not in text
        assert "\x07" not in text
        assert "\u202e" not in text
