"""GPU memory is added up per sandbox by its processes, and who is over its budget is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from appliance.sandbox.gpu_nvml import Use
from appliance.sandbox.gpu_place import Fill
from appliance.sandbox.gpu_watch import GpuSample, GpuWatch, GpuWatched, fullest
from appliance.sandbox.spec import MIB


class Driver:
    """Says what it is told to, as NVML would."""

    def __init__(self) -> None:
        self.uses: list[Use] = []
        self.error = ""
        self.asked = 0

    def __call__(self, units: frozenset[str]) -> tuple[list[Use], list[Fill]]:
        self.asked += 1
        if self.error:
            raise OSError(self.error)
        return [use for use in self.uses if use.unit in units], []


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def until(condition: object, seconds: float = 3.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_sandbox_over_its_budget_is_killed_and_one_within_is_not(
    child: subprocess.Popen[bytes],
) -> None:
    driver = Driver()
    watch = GpuWatch(driver, poll_s=0.02)
    watch.start()
    pidfd = os.pidfd_open(child.pid)
    watched = GpuWatched(units=("GPU-0",), uids=(os.getuid(),), pidfd=pidfd, share_bytes=100 * MIB)
    try:
        driver.uses = [Use(unit="GPU-0", pid=child.pid, used_bytes=100 * MIB),
                       Use(unit="GPU-0", pid=1, used_bytes=900 * MIB),
                       Use(unit="GPU-1", pid=child.pid, used_bytes=900 * MIB)]  # fmt: skip
        watch.watch("sb", watched)
        until(lambda: watch.sample("sb").used_bytes == 100 * MIB)
        assert child.poll() is None
        driver.uses.append(Use(unit="GPU-0", pid=child.pid, used_bytes=1))
        assert child.wait(timeout=3) == -signal.SIGKILL
        until(lambda: watch.sample("sb").over)
        watch.forget("sb")
        assert watch.sample("sb") == GpuSample()
    finally:
        watch.stop()
        os.close(pidfd)


def test_one_that_has_the_whole_gpu_has_no_budget_to_exceed(child: subprocess.Popen[bytes]) -> None:
    driver = Driver()
    driver.uses = [Use(unit="GPU-0", pid=child.pid, used_bytes=1 << 40)]
    watch = GpuWatch(driver, poll_s=0.02)
    watch.start()
    pidfd = os.pidfd_open(child.pid)
    try:
        watch.watch(
            "sb", GpuWatched(units=("GPU-0",), uids=(os.getuid(),), pidfd=pidfd, share_bytes=0)
        )
        until(lambda: driver.asked > 3)
        assert child.poll() is None
        assert watch.sample("sb") == GpuSample(used_bytes=1 << 40)
    finally:
        watch.stop()
        os.close(pidfd)


def test_a_driver_that_does_not_answer_is_told_and_asked_again(
    child: subprocess.Popen[bytes],
) -> None:
    driver = Driver()
    driver.error = "NVML does not answer: GPU is lost"
    watch = GpuWatch(driver, poll_s=0.02)
    watch.start()
    pidfd = os.pidfd_open(child.pid)
    try:
        watch.watch(
            "sb", GpuWatched(units=("GPU-0",), uids=(os.getuid(),), pidfd=pidfd, share_bytes=1)
        )
        until(lambda: "GPU is lost" in watch.problem)
        driver.error = ""
        until(lambda: not watch.problem)
    finally:
        watch.stop()
        os.close(pidfd)


def test_nobody_is_asked_while_nothing_with_a_gpu_runs() -> None:
    driver = Driver()
    watch = GpuWatch(driver, poll_s=0.01)
    watch.start()
    time.sleep(0.1)
    watch.stop()
    assert driver.asked == 0


def test_the_fullest_unit_counts() -> None:
    rows = (("a", 1, 5), ("a", 2, 5), ("b", 1, 9), ("c", 1, 99))
    uses = [Use(unit=unit, pid=pid, used_bytes=size) for unit, pid, size in rows]
    assert fullest(uses, ("a", "b"), {1, 2}) == 10
    assert fullest([], (), set()) == 0
