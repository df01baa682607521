"""kill -9 between the moment something is due and the moment it runs: it runs once, or is missed.

The schedules are made by a clock that is behind, so the first start of a real process finds all of
them due; it is killed at several moments before, while and after it deals with them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from inside import inside
from running import RunningAppliance

from appliance import clock, config

DEADLINE_S = 90.0
ROWS = 200_000
DELAYS_S = (0.0, 0.3, 0.8)
SCHEDULES = "/api/v1/schedules/acme"


@pytest.fixture
def appliance(tmp_path: Path, run_root: Path) -> Iterator[RunningAppliance]:
    (tmp_path / "lake").mkdir()
    folders = {"lake": {"path": str(tmp_path / "lake"), "tenants": ["acme"]}}
    made = RunningAppliance(tmp_path / "data", run_root, batches__folders=json.dumps(folders))
    yield made
    made.close()


async def make(folder: Path) -> tuple[str, dict[str, str]]:
    """Three schedules that were due three minutes ago; an owner's secret, and their ids."""
    lake = config.Folder(path=str(folder / "lake"), tenants=("acme",))
    due = datetime.now(UTC) - timedelta(minutes=3)
    cron = f"{due.minute} {due.hour} {due.day} {due.month} *"
    async with inside(folder, folders={"lake": lake}) as it:
        await it.tenant("acme")
        await it.version("acme", "echo")
        secret = await it.key("acme")
        an_hour_ago = clock.now_ns() - 3600 * 1_000_000_000
        it.node.services.schedules._now_ns = lambda: an_hour_ago
        found = {}
        async with it.client(secret) as client:
            for name, query in (
                ("job", {}), ("batch", {"from": "lake/rows.csv"}), ("none", {"catch_up": "none"}),
            ):  # fmt: skip
                body = b"" if "from" in query else b"1"
                answer = await client.post(
                    "/api/v1/models/acme/echo/schedules",
                    params={"cron": cron, **query},
                    content=body,
                    headers={"Content-Type": "application/json"},
                )
                assert answer.status_code == 201, answer.text
                found[name] = answer.json()["id"]
    return secret, found


async def test_a_server_that_is_killed_when_something_is_due_runs_it_once_after_its_restart(
    tmp_path: Path, appliance: RunningAppliance
) -> None:
    lines = "".join(f"{i},{i}\n" for i in range(ROWS))
    (tmp_path / "lake/rows.csv").write_text(f"i,t\n{lines}")
    secret, made = await make(tmp_path)
    for delay_s in DELAYS_S:
        appliance.start_process()
        time.sleep(delay_s)  # the moments of the kills; what they meet is not what is asserted
        appliance.kill()

    def runs(client: Any, name: str) -> list[Any]:
        return list(client.get(f"{SCHEDULES}/{made[name]}").json()["runs"])

    seen: list[Any] = []
    for _ in range(2):  # and a restart after all is dealt with submits nothing again
        appliance.start()
        with appliance.https(secret) as client:
            deadline = time.monotonic() + DEADLINE_S
            while not all(runs(client, name) for name in made):
                assert time.monotonic() < deadline, {n: runs(client, n) for n in made}
                time.sleep(0.1)
            jobs = client.get("/api/v1/jobs/acme").json()["items"]
            batches = client.get("/api/v1/batches/acme").json()["items"]
            found = {name: runs(client, name) for name in made}
        assert {name: [one["code"] for one in some] for name, some in found.items()} == {
            "job": ["started"], "batch": ["started"], "none": ["missed"],
        }  # fmt: skip
        assert [one["id"] for one in jobs] == [found["job"][0]["job"]]
        assert [one["scheduled_by"] for one in jobs] == [made["job"]]
        assert jobs[0]["metrics"]["attempts"] <= 1
        assert [one["id"] for one in batches] == [found["batch"][0]["batch"]]
        assert [one["rows"] for one in batches] == [ROWS]
        assert (found["none"][0]["job"], found["none"][0]["batch"]) == (None, None)
        seen.append([one["id"] for one in (*jobs, *batches)])
        appliance.kill()
    assert seen[0] == seen[1]
