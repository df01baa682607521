"""``appliance --version`` answers at once, and the command line loads only what a command needs."""

import subprocess
import sys
import time
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


def test_version_answers_within_150_ms():
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "appliance", "--version"],
            check=True,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
        )
        times.append((time.perf_counter() - start) * 1000)
    assert min(times) < VERSION_MS_MAX, times
