"""``appliance --version`` answers at once, and the command line loads only what a command needs."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("duckdb", "textual", "podman", "starlette", "hypercorn", "rich", "cryptography", "httpx")
VERSION_MS_MAX = 150


def imported(*arguments):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "appliance", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}


@pytest.mark.parametrize("arguments", [("--version",), ("--help",), ("model", "push", "--help")])
def test_help_and_version_load_no_heavy_library(arguments):
    allowed = {"httpx", "rich"} if arguments[0] == "model" else set()
    assert imported(*arguments) & (set(HEAVY) - allowed) == set()


def test_version_loads_not_even_click():
    assert imported("--version") & {"click", "msgspec", "asyncio"} == set()


def test_version_takes_less_than_150_ms_of_processor_time():  # the wall also counts who else runs
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "appliance", "--version"],
            check=True,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        times.append(spent * 1000)
    assert min(times) < VERSION_MS_MAX, times
