"""Freezing under real Podman: what waits uses no CPU, and waking it costs a warm call nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from boxes import RUN_MODEL, Box, box, key_of, pieces, spec_of, tar_of
from way_fixtures import each_tier  # noqa: F401

from appliance import config
from appliance.sandbox import kernel
from appliance.sandbox.keeper import Pace
from appliance.sandbox.podman import PodmanExecutor
from appliance.sandbox.pool import Pool
from appliance.sandbox.spec import Request

pytestmark = [pytest.mark.podman, pytest.mark.asyncio(loop_scope="session")]

SPINS = """
import os
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True:
            pass
    os._exit(0)
answer = 1
"""
SPINS_IN_A_THREAD = """
import threading
def spin():
    while True:
        pass
threading.Thread(target=spin, daemon=True).start()
answer = 1
"""
FORKS_FOR_EVER = """
import os, time
if os.fork() == 0:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            if os.fork():
                os._exit(0)
        except OSError:
            pass
answer = 1
"""


STILL_MS = 10  # the clock's tick
MOVES_MS = 60  # on a busy machine


def load() -> AsyncIterator[bytes]:
    return pieces(tar_of({"model.py": RUN_MODEL}))


def family(one: Box) -> list[int]:
    pid = one.sandbox.pid  # type: ignore[attr-defined]
    return [pid, *kernel.descendants(pid)]


async def used_ms(one: Box, seconds: float) -> int:
    before = kernel.cpu_ms(family(one))
    await asyncio.sleep(seconds)
    return kernel.cpu_ms(family(one)) - before


@pytest.mark.usefixtures("each_tier")
@pytest.mark.parametrize("text", [SPINS, SPINS_IN_A_THREAD], ids=["daemon", "thread"])
async def test_what_a_call_left_running_stops_and_goes_on_with_the_next(
    podman_executor: PodmanExecutor, text: str
) -> None:
    async with box(podman_executor) as one:
        assert await one.run(text) == 1
        assert await used_ms(one, 1) > MOVES_MS
        await one.sandbox.freeze()
        assert one.sandbox.info().state == "frozen"
        assert await used_ms(one, 0.5) <= STILL_MS
        assert not await one.sandbox.has_moved()
        assert await one.run("answer = 2") == 2
        assert one.sandbox.info().state == "ready"
        assert await used_ms(one, 1) > MOVES_MS


@pytest.mark.usefixtures("each_tier")
async def test_processes_that_make_processes_are_all_stopped(
    podman_executor: PodmanExecutor,
) -> None:
    async with box(podman_executor) as one:
        assert await one.run(FORKS_FOR_EVER) == 1
        await one.sandbox.freeze()
        if one.sandbox.alive:  # one that could not be stopped was ended, which is as good
            assert await used_ms(one, 0.5) <= STILL_MS
            assert await one.run("answer = 3") == 3


@pytest.mark.usefixtures("each_tier")
async def test_freezing_and_thawing_many_times_loses_no_answer(
    podman_executor: PodmanExecutor,
) -> None:
    async with box(podman_executor) as one:
        for number in range(60):
            freezing = asyncio.ensure_future(one.sandbox.freeze())
            await asyncio.sleep(0 if number % 2 else 0.002)
            assert await one.run(f"answer = {number}") == number
            await freezing


SLEEPS = """
import socket, threading, time
kept["ticks"], kept["pair"] = [], socket.socketpair()
def tick():
    for _ in range(20):
        time.sleep(0.05)
        kept["ticks"].append(time.monotonic())
def echo():
    while True:
        kept["pair"][1].send(kept["pair"][1].recv(1))
threading.Thread(target=tick, daemon=True).start()
threading.Thread(target=echo, daemon=True).start()
answer = 1
"""
AWAKE = """
import os, signal, subprocess, time
started = time.monotonic()
kept["pair"][0].send(b"x")
echoed = kept["pair"][0].recv(1).decode()
signal.setitimer(signal.ITIMER_REAL, 0.05)
signal.signal(signal.SIGALRM, lambda *_: kept.__setitem__("alarm", True))
while len(kept["ticks"]) < 20 and time.monotonic() < started + 5:
    time.sleep(0.05)
said = subprocess.run(["/bin/echo", "y"], capture_output=True).stdout.decode()
answer = [echoed, len(kept["ticks"]), kept.get("alarm", False), said]
"""


@pytest.mark.usefixtures("each_tier")
async def test_timers_pipes_and_children_work_after_a_freeze(
    podman_executor: PodmanExecutor,
) -> None:
    async with box(podman_executor) as one:
        assert await one.run(SLEEPS) == 1
        await one.sandbox.freeze()
        await asyncio.sleep(1.5)
        assert await one.run(AWAKE) == ["x", 20, True, "y\n"]


async def test_waking_costs_a_warm_call_next_to_nothing(podman_executor: PodmanExecutor) -> None:
    async with box(podman_executor) as one:
        took: dict[bool, list[float]] = {False: [], True: []}
        for number in range(80):
            frozen = number % 2 == 0
            if frozen:
                await one.sandbox.freeze()
            started = time.perf_counter()
            await one.run("answer = 1")
            took[frozen].append(time.perf_counter() - started)
    warm, woken = (sorted(took[frozen])[20] for frozen in (False, True))
    assert woken - warm < 0.005, (warm, woken)


async def test_calls_close_to_each_other_meet_no_frozen_sandbox_and_later_ones_do(
    podman_executor: PodmanExecutor,
) -> None:
    settings = config.Sandbox(zygote_memory_bytes_max=0)
    pool = Pool(podman_executor, settings, pace=Pace(freeze_s=0.2))
    spec = spec_of()

    async def call() -> None:
        async with pool.lease(spec, load) as lease:
            request = Request(id="1", content_type="application/json",
                              body=b'{"run": "answer = 1"}', timeout_ms=9000,
                              reply_bytes_max=1000)  # fmt: skip
            assert (await lease.request(request)).body == b"1"

    try:
        for _ in range(10):
            await call()
            await asyncio.sleep(0.02)
            assert [info.state for info in pool.list()] == ["ready"]
        for _ in range(3):
            await asyncio.sleep(0.5)
            assert [info.state for info in pool.list()] == ["frozen"]
            await call()
    finally:
        await pool.close()


async def test_a_zygote_waits_frozen_and_is_bound_awake(podman_executor: PodmanExecutor) -> None:
    spec = spec_of()
    one = await podman_executor.create_ahead(key_of(spec, "decimal"))
    try:
        assert not any(kernel.is_running(pid) for pid in (one.pid, *kernel.descendants(one.pid)))
        assert one.info().state == "zygote"
        await one.bind(spec)
        await one.load(load())
        assert await Box(one, spec).run("answer = 7") == 7
    finally:
        await one.destroy()


async def test_a_frozen_sandbox_is_destroyed_like_any_other(
    podman_executor: PodmanExecutor,
) -> None:
    async with box(podman_executor) as one:
        await one.run(SPINS)
        await one.sandbox.freeze()
        slot = one.sandbox.slot  # type: ignore[attr-defined]
        started = time.monotonic()
    assert time.monotonic() - started < 10
    assert not any(kernel.pids_by_uid({slot.root_uid, slot.user_uid}).values())
