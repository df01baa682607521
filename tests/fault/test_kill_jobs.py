"""kill -9 while jobs wait and run: none is lost, none without a key is handed to its model twice.

``APPLIANCE_TEST_KILLS`` sets the number of kills at random moments: three by default.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from running import RunningAppliance

pytestmark = [pytest.mark.podman, pytest.mark.timeout(3600)]
KILLS = int(os.environ.get("APPLIANCE_TEST_KILLS", "3"))
MODEL = {
    "appliance.toml": b'runtime = "python3.11"\nentry = "model:Model"\n',
    "model.py": (
        b"import time\n"
        b"class Model:\n"
        b"    def __init__(self, path): pass\n"
        b"    def predict(self, inputs):\n"
        b"        time.sleep(inputs['s'])\n"
        b"        return {'n': inputs['n']}\n"
    ),
}
ENDS = ("succeeded", "failed", "canceled")


@pytest.fixture
def appliance(tmp_path: Path, run_root: Path) -> Iterator[RunningAppliance]:
    made = RunningAppliance(
        tmp_path / "data", run_root, jobs__running_max=3, sandbox__instances_per_version_max=4
    )
    made.initialise()
    yield made
    made.close()


def submit(client: httpx.Client, n: int, s: float, key: str = "") -> dict[str, Any]:
    headers = {"Prefer": "respond-async", **({"Idempotency-Key": key} if key else {})}
    path = "/api/v1/models/acme/slow/invoke"
    answer = client.post(path, json={"n": n, "s": s}, headers=headers)
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


def ended(client: httpx.Client, job: dict[str, Any]) -> dict[str, Any]:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = client.get(job["urls"]["get"], params={"wait_s": 10}).json()
        if found["status"] in ENDS:
            return dict(found)
    raise AssertionError(found)


def reach(client: httpx.Client, job: dict[str, Any], status: str) -> None:
    deadline = time.monotonic() + 60
    while client.get(job["urls"]["get"]).json()["status"] != status:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_a_kill_cuts_off_is_told_apart_and_the_rest_goes_on(
    appliance: RunningAppliance,
) -> None:
    appliance.start()
    secret = appliance.tenant("acme")
    assert appliance.push(secret, "acme/slow", MODEL).status_code == 201
    with appliance.https(secret) as client:
        done = ended(client, submit(client, 1, 0))
        cut, again = submit(client, 2, 4), submit(client, 3, 4, key="may-run-twice")
        third = submit(client, 4, 4, key="also")
        for job in (cut, again, third):
            reach(client, job, "processing")
        waiting = submit(client, 5, 0)
        assert client.get(waiting["urls"]["get"]).json()["status"] == "starting"
        appliance.kill()
    appliance.start()
    with appliance.https(secret) as client:
        assert client.get(done["urls"]["output"]).json() == {"n": 1}
        cut = ended(client, cut)
        assert (cut["status"], cut["error"]["code"]) == ("failed", "interrupted")
        assert cut["metrics"]["attempts"] == 1
        again = ended(client, again)
        assert (again["output"], again["metrics"]["attempts"]) == ({"n": 3}, 2)
        waiting = ended(client, waiting)
        assert (waiting["output"], waiting["metrics"]["attempts"]) == ({"n": 5}, 1)
        same = submit(client, 3, 4, key="may-run-twice")
        assert same["id"] == again["id"]
    place = f"acme/{waiting['id']}"
    assert appliance.cli("job", "output", place).stdout == b'{"n":5}'
    assert appliance.cli("job", "wait", place).returncode == 0
    failed = appliance.cli("job", "wait", f"acme/{cut['id']}")
    assert failed.returncode == 75
    assert b"interrupted" in failed.stdout
    listed = appliance.cli("job", "list", "acme", "--status", "failed")
    assert cut["id"].encode() in listed.stdout
    assert waiting["id"].encode() not in listed.stdout


def test_kills_at_any_moment_lose_no_job_and_start_none_twice(
    appliance: RunningAppliance,
) -> None:
    draw = random.Random(4)
    appliance.start()
    secret = appliance.tenant("acme")
    assert appliance.push(secret, "acme/slow", MODEL).status_code == 201
    jobs: list[dict[str, Any]] = []
    for _ in range(KILLS):
        with appliance.https(secret) as client:
            for _ in range(8):
                jobs.append(submit(client, len(jobs), 0.1))
        time.sleep(draw.uniform(0.0, 1.0))
        appliance.kill()
        appliance.start()
    with appliance.https(secret) as client:
        ends = [ended(client, job) for job in jobs]
        for number, end in enumerate(ends):
            if end["status"] == "succeeded":
                assert client.get(end["urls"]["output"]).json() == {"n": number}
            else:
                assert end["error"]["code"] == "interrupted", end
    with appliance.admin() as client:
        page = client.get("/api/v1/audit", params={"after": 0, "limit": 1000}).json()
    kinds: dict[str, list[str]] = {}
    for entry in page["entries"]:
        if entry["kind"].startswith("job."):
            event = entry["event"]
            kinds.setdefault(event.get("job_id") or event["job"]["id"], []).append(entry["kind"])
    for job in jobs:
        told = kinds[job["id"]]
        assert (told[0], told[-1]) == ("job.queued", "job.ended")
        starts = told.count("job.started") - told.count("job.requeued")
        assert starts == 1, told
    cut = sum(end["status"] == "failed" for end in ends)
    print(f"{KILLS} kills: {len(jobs)} jobs, {cut} interrupted, 0 lost, 0 started twice")


def test_a_stop_ends_the_streams_lets_what_runs_end_and_keeps_what_waits(
    appliance: RunningAppliance,
) -> None:
    appliance.start()
    secret = appliance.tenant("acme")
    assert appliance.push(secret, "acme/slow", MODEL).status_code == 201
    with appliance.https(secret) as client:
        running = [submit(client, n, 5) for n in range(3)]
        for job in running:
            reach(client, job, "processing")
        waiting = submit(client, 9, 0)
        streams = {"Accept": "text/event-stream"}
        with client.stream("GET", waiting["urls"]["stream"], headers=streams) as stream:
            assert stream.status_code == 200  # at once, though there is nothing to tell yet
            began = time.monotonic()
            assert appliance.process is not None
            appliance.process.terminate()
            assert stream.read() == b": following\n\n"  # not cut off in the middle
            assert time.monotonic() - began < 20
    assert appliance.process.wait(30) == 0
    assert time.monotonic() - began < 30
    appliance.process = None
    appliance.start()
    with appliance.https(secret) as client:
        for job in running:
            found = ended(client, job)
            assert (found["status"], found["metrics"]["attempts"]) == ("succeeded", 1)
        assert ended(client, waiting)["output"] == {"n": 9}
