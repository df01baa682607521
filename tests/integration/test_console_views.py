"""The console's views say the same on every screen and hold what each screen draws."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from inside import Inside, inside


@pytest.fixture
async def it(tmp_path: Path) -> AsyncIterator[Inside]:
    async with inside(tmp_path) as found:
        await found.tenant("acme")
        yield found


async def view(it: Inside, name: str, **params: str) -> dict[str, Any]:
    async with it.client(admin=True) as admin:
        answer = await admin.get("/admin/v1/snapshot", params={"view": name, **params})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())


async def test_every_view_counts_the_same_alerts_as_the_health_view_lists(it: Inside) -> None:
    rows = (await view(it, "health"))["rows"]
    states = [row["state"] for row in rows]
    expected = {"warn": states.count("warn"), "fail": states.count("fail")}
    assert states == sorted(states, key=["fail", "warn", "ok"].index), "worst first"
    for name in ("dashboard", "models", "audit", "health"):
        assert (await view(it, name))["alerts"] == expected


async def test_the_dashboard_shows_changes_and_leaves_out_calls(it: Inside) -> None:
    await it.version("acme", "m")
    async with it.client(await it.key("acme")) as client:
        for _ in range(3):
            await client.post("/api/v1/models/acme/m/invoke", content=b"x")
        asked = {"Prefer": "respond-async"}
        job = await client.post("/api/v1/models/acme/m/invoke", content=b"x", headers=asked)
        await client.get(job.json()["urls"]["get"], params={"wait_s": 30})
    shown = await view(it, "dashboard")
    assert shown["totals"]["models"] == 1
    assert shown["totals"]["sandboxes_max"] >= shown["totals"]["sandboxes"] == 1
    kinds = [row["kind"] for row in shown["recent"]]
    assert kinds
    assert not [kind for kind in kinds if kind.startswith(("call.", "job."))]


async def test_a_models_versions_come_with_the_model_itself(it: Inside) -> None:
    await it.version("acme", "m")
    shown = await view(it, "versions", tenant="acme", model="m")
    assert shown["model"]["model"] == "m"
    assert shown["model"]["created_by"]
    async with it.client(admin=True) as admin:
        params = {"view": "versions", "tenant": "acme", "model": "none"}
        assert (await admin.get("/admin/v1/snapshot", params=params)).status_code == 404


async def test_sandboxes_come_with_the_numbers_of_the_pool(it: Inside) -> None:
    pool = (await view(it, "sandboxes"))["pool"]
    assert pool["running"] == 0
    assert pool["waiting"] == 0
    assert pool["max"] > 0


async def test_a_kind_that_ends_with_a_dot_means_its_whole_family(it: Inside) -> None:
    await it.version("acme", "m")
    async with it.client(await it.key("acme")) as client:
        await client.post("/api/v1/models/acme/m/invoke", content=b"x")
    store = it.node.services.store
    await store.queries.wait(store.ledger.head.size)
    rows = (await view(it, "audit", kind="call."))["rows"]
    assert {row["kind"] for row in rows} == {"call.intent", "call.outcome"}
    assert "event" not in rows[0]


async def test_runtimes_come_with_sets_work_and_what_can_be_built(it: Inside) -> None:
    shown = await view(it, "runtimes")
    assert shown["rows"] == []
    assert shown["sets"] == shown["builds"] == shown["jobs"] == []
    assert "python3.11" in shown["available"]
    async with it.client(admin=True) as admin:
        body = {"name": "cobol", "wait": False}
        assert (await admin.post("/admin/v1/runtimes/build", json=body)).status_code == 202
    for _ in range(200):
        (job,) = (await view(it, "runtimes"))["jobs"]
        if job["ended_at"]:
            break
        await asyncio.sleep(0.05)
    assert (job["verb"], job["name"], job["state"]) == ("build", "cobol", "failed")
