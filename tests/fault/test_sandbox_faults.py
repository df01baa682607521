"""kill -9 of everything a sandbox depends on, in turn, while calls are under way.

Each call is answered or fails with a problem of its own, the next one works, nothing is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest
from boxes import RUN_MODEL, pieces, spec_of, tar_of
from running import ECHO_MODEL, RunningAppliance
from traces import settled, traces

from appliance import config
from appliance.errors import CapacityExhausted, GuestError, PodmanUnavailable
from appliance.sandbox import kernel, service
from appliance.sandbox.keeper import Pace
from appliance.sandbox.podman import PodmanExecutor
from appliance.sandbox.pool import Pool
from appliance.sandbox.spec import Request

pytestmark = [
    pytest.mark.podman,
    pytest.mark.timeout(300),
    # The client library drops a connection whose other end was killed without closing it.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
in_one_loop = pytest.mark.asyncio(loop_scope="session")
ROUNDS = 4
# Podman, killed while it makes a container, leaves runc's note of it, three names: no process.
SLACK = {"handles": 2 * len(os.sched_getaffinity(0)) + 16, "run_entries": 8 + 4 * ROUNDS}


def load() -> AsyncIterator[bytes]:
    return pieces(tar_of({"model.py": RUN_MODEL}))


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def podman_service(executor: PodmanExecutor, _pool: Pool) -> int:
    return executor.service.pid if executor.service else 0


def a_first_process(_executor: PodmanExecutor, pool: Pool) -> int:
    pids = [info.pid for info in pool.list() if info.pid]
    return random.choice(pids) if pids else 0


def a_runner(executor: PodmanExecutor, pool: Pool) -> int:
    pids = kernel.descendants(a_first_process(executor, pool) or os.getpid() + 10**7)
    return pids[0] if pids else 0


def a_monitor(executor: PodmanExecutor, pool: Pool) -> int:
    pid = a_first_process(executor, pool)
    with contextlib.suppress(OSError):
        monitor = parent_of(pid) if pid else 0
        if monitor and b"conmon" in Path(f"/proc/{monitor}/cmdline").read_bytes():
            return monitor
    return 0


def the_remounter(executor: PodmanExecutor, _pool: Pool) -> int:
    process = executor.remounter._process
    return process.pid if process is not None else 0


class Load:
    """Callers, one after the other in each of some tasks, who note how each call ended."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.answered = 0
        self.problems: list[Exception] = []
        self._stopping = False

    async def call(self, key: str, idle_timeout_s: int) -> None:
        spec = spec_of(key, idle_timeout_s=idle_timeout_s)
        request = Request(id="1", content_type="application/json",
                          body=b'{"run": "import time; time.sleep(0.05); answer = 41 + 1"}',
                          timeout_ms=20_000, reply_bytes_max=1000)  # fmt: skip
        async with self.pool.lease(spec, load) as lease:
            assert (await lease.request(request)).body == b"42"

    async def call_once_it_answers(self, key: str) -> None:
        while True:
            try:
                return await self.call(key, 60)
            except PodmanUnavailable:  # its service is starting again
                await asyncio.sleep(0.1)

    async def _caller(self, number: int) -> None:
        while not self._stopping:
            try:
                # The first two keep theirs warm, the third has a new one for each call.
                await self.call(f"v{number}", 0 if number == 2 else 60)
                self.answered += 1
            except (GuestError, PodmanUnavailable, CapacityExhausted) as problem:
                self.problems.append(problem)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._caller(number)) for number in range(3)]
        try:
            yield
        finally:
            self._stopping = True
            await asyncio.gather(*tasks)


@in_one_loop
@pytest.mark.parametrize(
    "victim", [podman_service, a_monitor, a_first_process, a_runner, the_remounter]
)
async def test_killing_it_under_load_costs_at_most_the_calls_it_carried(
    podman_executor: PodmanExecutor, victim: Callable[[PodmanExecutor, Pool], int]
) -> None:
    settings = config.Sandbox(zygote_memory_bytes_max=0)
    pool = Pool(podman_executor, settings, pace=Pace(freeze_s=0.1))
    before = await traces(podman_executor)
    callers, killed = Load(pool), 0
    try:
        async with callers.running():
            await asyncio.sleep(1.5)
            for _ in range(ROUNDS):
                pid = victim(podman_executor, pool)
                if pid:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        killed += 1
                await asyncio.sleep(0.7)
        assert killed
        answered = callers.answered
        assert answered
        async with asyncio.timeout(60):  # and the next call works
            for number in range(3):
                await callers.call_once_it_answers(f"v{number}")
    finally:
        await pool.close()
    assert podman_executor.service is not None
    async with asyncio.timeout(20):
        while not podman_executor.service.pid:
            await asyncio.sleep(0.05)
    _, more = await settled(podman_executor, before, SLACK)
    assert not more
    print(f"\n{killed} killed: {answered} answered, {len(callers.problems)} failed: "
          f"{sorted({problem.slug for problem in callers.problems})}")  # fmt: skip


@pytest.fixture
def appliance(tmp_path: Path, run_root: Path) -> Iterator[RunningAppliance]:
    made = RunningAppliance(tmp_path / "data", run_root)
    made.initialise()
    yield made
    made.close()


def ids_in_use(appliance: RunningAppliance) -> set[int]:
    found: set[int] = set()
    for record in (appliance.run_dir / "box").glob("*/record"):
        found.update(int(word) for word in record.read_text().split())
    return found


def test_killing_the_whole_appliance_ends_its_sandboxes_and_brings_them_back(
    appliance: RunningAppliance,
) -> None:
    appliance.start()
    secret = appliance.tenant("acme")
    assert appliance.push(secret, "acme/echo", ECHO_MODEL).status_code == 201
    path = "/api/v1/models/acme/echo/versions/1/reservation"

    def kept(client: httpx.Client) -> None:
        end = time.monotonic() + 60
        while client.get(path).json()["state"] != "kept":
            assert time.monotonic() < end, client.get(path).text
            time.sleep(0.1)

    with appliance.https(secret) as client:
        assert client.put(path, json={"warm": 2}).status_code == 200
    for _ in range(2):
        with appliance.https(secret) as client:
            kept(client)
            for number in range(5):
                answer = client.post("/api/v1/models/acme/echo/invoke", json=number)
                assert answer.json() == {"echo": number}
        time.sleep(0.6)  # they are frozen by now: they could not notice anything
        ids = ids_in_use(appliance)
        assert any(kernel.pids_by_uid(ids).values())
        appliance.kill()
        end = time.monotonic() + 30
        while any(kernel.pids_by_uid(ids).values()):
            assert time.monotonic() < end, "sandboxes outlived the appliance"
            time.sleep(0.05)
        appliance.start()
    with appliance.https(secret) as client:
        kept(client)
        assert client.get(path).json()["warm"] == 2
    assert appliance.stop() == 0
    assert not list((appliance.run_dir / "box").glob("*")) if appliance.run_dir.exists() else True
    left = service.PodmanService(appliance.run_dir, runtime="", binds={})._strays()
    assert left == []
