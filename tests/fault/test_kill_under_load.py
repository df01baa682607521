"""kill -9 of the whole process under load loses nothing that was acknowledged.

``APPLIANCE_TEST_KILLS`` sets the number of kills: few by default, 200 for the release figure.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from running import ECHO_MODEL, RunningAppliance

pytestmark = [pytest.mark.podman, pytest.mark.timeout(3600)]
KILLS = int(os.environ.get("APPLIANCE_TEST_KILLS", "6"))
CLIENTS = 3


class Load:
    """Clients that call and register without pause and remember what was acknowledged."""

    def __init__(self, appliance: RunningAppliance, secret: str) -> None:
        self.appliance = appliance
        self.secret = secret
        self.calls: dict[int, str] = {}
        self.models: set[str] = set()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(n,)) for n in range(CLIENTS)]
        self._threads.append(threading.Thread(target=self._register))

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _call(self, number: int) -> None:
        count = 0
        while not self._stop.is_set():
            try:
                with self.appliance.https(self.secret) as client:
                    while not self._stop.is_set():
                        count += 1
                        body = {"n": f"{number}-{count}"}
                        reply = client.post("/api/v1/models/acme/echo/invoke", json=body)
                        if reply.status_code == 200:
                            assert reply.json() == {"echo": body}
                            self.calls[int(reply.headers["Audit-Seq"])] = reply.headers[
                                "Request-Id"
                            ]
            except (httpx.HTTPError, OSError):
                time.sleep(0.05)

    def _register(self) -> None:
        count = 0
        while not self._stop.is_set():
            count += 1
            name = f"m-{len(self.models)}-{count}"
            try:
                made = self.appliance.push(self.secret, f"acme/{name}", ECHO_MODEL)
                if made.status_code == 201:
                    self.models.add(name)
            except (httpx.HTTPError, OSError):
                time.sleep(0.05)
            time.sleep(0.3)


@pytest.fixture
def appliance(tmp_path: Path, run_root: Path) -> Iterator[RunningAppliance]:
    made = RunningAppliance(tmp_path / "data", run_root)
    made.initialise()
    yield made
    made.close()


def entries(appliance: RunningAppliance) -> dict[int, dict[str, object]]:
    found: dict[int, dict[str, object]] = {}
    after = 0
    with appliance.admin() as client:
        while True:
            page = client.get("/api/v1/audit", params={"after": after, "limit": 500}).json()
            for entry in page["entries"]:
                found[entry["seq"]] = entry
            if not page["entries"]:
                return found
            after = max(found)


def test_no_acknowledged_call_or_registration_is_lost(appliance: RunningAppliance) -> None:
    draw = random.Random(20)
    appliance.start()
    secret = appliance.tenant("acme")
    assert appliance.push(secret, "acme/echo", ECHO_MODEL).status_code == 201
    with Load(appliance, secret) as load:
        for _ in range(KILLS):
            time.sleep(draw.uniform(0.05, 2.0))
            appliance.kill()
            appliance.start()
        time.sleep(1.0)
    found = entries(appliance)
    assert load.calls, "no call was ever acknowledged"
    for seq, request_id in load.calls.items():
        assert found[seq]["kind"] == "call.outcome"
        assert found[seq]["event"]["call_id"] == request_id  # type: ignore[index]
    assert sorted(found) == list(range(min(found), max(found) + 1))
    with appliance.https(secret) as client:
        kept = {item["name"] for item in client.get("/api/v1/models/acme").json()["items"]}
    assert load.models <= kept
    verified = appliance.cli("audit", "verify")
    assert verified.returncode == 0, verified.stderr
    print(f"{KILLS} kills: {len(load.calls)} calls, {len(load.models)} registrations, 0 lost")
