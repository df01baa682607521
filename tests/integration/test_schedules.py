"""Schedules: what is due becomes a job once, whatever happens to the appliance meanwhile."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from inside import Inside, inside

from appliance import clock, config
from appliance.errors import RevisionStale
from appliance.records import JOB_ENDS

SCHEDULES = "/api/v1/schedules/acme"
CREATE = "/api/v1/models/acme/echo/schedules"
JOBS = "/api/v1/jobs/acme"
MINUTE = 60
DAY = 86_400


class Skipping:
    """The clock that decides what is due: it stands still until it is told to go on.

    Nobody else looks meanwhile, so that what a look found is what the test asked for.
    """

    def __init__(self, it: Inside, start: str = "2026-01-31T12:00:00+00:00") -> None:
        self.now_s = datetime.fromisoformat(start).timestamp()
        self.take(it)

    def take(self, it: Inside) -> Skipping:
        it.node.services.schedules._now_ns = lambda: int(self.now_s * 1e9)
        for task in it.node._background:
            if task.get_coro().__qualname__ == "Schedules.follow":
                task.cancel()
        return self

    async def skip(self, it: Inside, seconds: float) -> int:
        self.now_s += seconds
        return int(await it.node.services.schedules.look())


@asynccontextmanager
async def stage(folder: Path, **sandbox: Any) -> AsyncIterator[tuple[Inside, Any, Skipping]]:
    async with inside(folder, sandbox=sandbox) as it:
        await it.tenant("acme")
        await it.version("acme", "echo")
        async with it.client(await it.key("acme")) as client:
            yield it, client, Skipping(it)


async def create(client: httpx.AsyncClient, cron: str, body: bytes = b"1", **query: str) -> Any:
    headers = {"Content-Type": "application/json"}
    answer = await client.post(
        CREATE, params={"cron": cron, **query}, content=body, headers=headers
    )
    assert answer.status_code == 201, answer.text
    return answer.json()


async def runs(client: httpx.AsyncClient, made: Any) -> list[tuple[str, str, int]]:
    shown = (await client.get(f"{SCHEDULES}/{made['id']}")).json()
    return [(one["due_at"][:16], one["code"], one["count"]) for one in shown["runs"]]


async def jobs_of(client: httpx.AsyncClient) -> list[Any]:
    return list((await client.get(JOBS)).json()["items"])


async def ended(client: httpx.AsyncClient, job_id: str) -> Any:
    for _ in range(10):
        job = (await client.get(f"{JOBS}/{job_id}", params={"wait_s": 5})).json()
        if job["status"] in JOB_ENDS:
            return job
    raise AssertionError(job)


async def test_what_is_due_becomes_a_job_with_the_kept_body_and_says_who_submitted_it(
    tmp_path: Path,
) -> None:
    async with stage(tmp_path) as (it, client, time):
        made = await create(client, "0 2 * * *", b'{"x":"canary-body"}', timezone="Europe/Berlin")
        assert [at[:16] for at in made["next"]] == [
            "2026-02-01T01:00", "2026-02-02T01:00", "2026-02-03T01:00",
        ]  # fmt: skip
        assert await time.skip(it, 13 * 3600 - 1) == 0
        assert await time.skip(it, 1) == 1
        assert await time.skip(it, 1) == 0
        (listed,) = await jobs_of(client)
        job = await ended(client, listed["id"])
        assert (job["output"], job["scheduled_by"]) == ({"x": "canary-body"}, made["id"])
        assert job["input_type"] == "application/json"
        assert await runs(client, made) == [("2026-02-01T01:00", "started", 1)]
        (shown,) = (await client.get(SCHEDULES)).json()["items"]
        assert shown["next"][0].startswith("2026-02-02T01:00")
        assert (shown["last"]["job"], shown["state"]) == (job["id"], "active")
        kinds = [entry.kind for entry in it.store.ledger.read(0, 999)]
        assert kinds.index("schedule.ran") == kinds.index("job.queued") + 1
    found = b"".join(p.read_bytes() for p in (tmp_path / "data").rglob("*") if p.is_file())
    assert b"canary-body" not in found


async def test_after_downtime_one_run_makes_up_for_all_or_none_does(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client, time):
        one = await create(client, "0 2 * * *")
        none = await create(client, "0 2 * * *", catch_up="none")
        await it.node.seal()
        await it.node.unseal(key_file=tmp_path / "unseal.key")
        time.take(it)
        assert await time.skip(it, 3 * DAY) == 2
        assert await runs(client, one) == [
            ("2026-02-03T02:00", "started", 1), ("2026-02-02T02:00", "missed", 2),
        ]  # fmt: skip
        assert await runs(client, none) == [("2026-02-03T02:00", "missed", 3)]
        assert len(await jobs_of(client)) == 1
        # What is noticed within a minute was not missed.
        assert await time.skip(it, 14 * 3600 + 59) == 2
        assert (await runs(client, none))[0] == ("2026-02-04T02:00", "started", 1)


async def test_no_run_begins_while_the_one_before_goes_on_unless_it_may(tmp_path: Path) -> None:
    async with stage(tmp_path, instances_per_version_max=1) as (it, client, time):
        single = await create(client, "* * * * *", b"sleep 30")
        double = await create(client, "* * * * *", b"sleep 30", overlap="yes")
        await time.skip(it, MINUTE)
        await time.skip(it, MINUTE)
        assert [run[1] for run in await runs(client, single)] == ["overlap", "started"]
        assert [run[1] for run in await runs(client, double)] == ["started", "started"]
        for job in await jobs_of(client):
            await client.post(f"{JOBS}/{job['id']}/cancel")
        await time.skip(it, MINUTE)
        assert (await runs(client, single))[0][1] == "started"
        for job in await jobs_of(client):
            await client.post(f"{JOBS}/{job['id']}/cancel")


async def test_a_time_has_one_job_however_often_and_from_where_it_is_looked_at(
    tmp_path: Path,
) -> None:
    async with stage(tmp_path) as (it, client, time):
        made = await create(client, "* * * * *")
        schedules = it.node.services.schedules
        tenant = it.store.registry.snapshot.tenant("acme").id
        stale = it.store.registry.snapshot.schedule(tenant, made["id"])
        time.now_s += MINUTE
        await asyncio.gather(*(schedules.look() for _ in range(8)))
        # As a process would that had died between reading and recording.
        with pytest.raises(RevisionStale):
            await schedules._fall_due(stale, int(time.now_s * 1e9))
        assert len(await jobs_of(client)) == 1
        assert await runs(client, made) == [("2026-01-31T12:01", "started", 1)]
        (job,) = it.store.registry.snapshot.jobs(tenant)
        blobs = {path.name for path in (tmp_path / "data/blobs").glob("*/??/*")}
        assert job.input.id in blobs
        assert blobs <= it.store.registry.snapshot.blob_ids()


async def test_a_kill_before_or_after_a_time_is_dealt_with_leaves_it_one_job(
    tmp_path: Path,
) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    async with stage(tmp_path) as (it, client, time):
        await create(client, "* * * * *")
        time.now_s += MINUTE
        for folder in (before, after):
            if folder is after:
                await time.skip(it, 0)
            shutil.copytree(tmp_path / "data", folder / "data")  # as kill -9 leaves it now
            shutil.copy2(tmp_path / "unseal.key", folder)
    for folder, fell_due in ((before, 1), (after, 0)):
        async with inside(folder, initialise=False) as it:
            await it.node.unseal(key_file=folder / "unseal.key")
            tenant = it.store.registry.snapshot.tenant("acme").id
            time.take(it)
            assert await time.skip(it, 0) == fell_due
            assert len(it.store.registry.snapshot.jobs(tenant)) == 1


async def test_a_schedule_stops_with_the_key_it_runs_under_and_goes_on_in_another_name(
    tmp_path: Path,
) -> None:
    async with stage(tmp_path) as (it, client, time):
        other = await it.key("acme")
        async with it.client(other) as leaving:
            made = await create(leaving, "* * * * *")
        assert (await client.delete(f"/api/v1/tenants/acme/keys/{other[4:13]}")).is_success
        await time.skip(it, 0)
        shown = (await client.get(f"{SCHEDULES}/{made['id']}")).json()
        assert (shown["state"], shown["next"]) == ("stopped: key-revoked", [])
        stopped = [e for e in it.store.ledger.read(0, 999) if e.kind == "schedule.stopped"]
        assert [e.event["reason"] for e in stopped] == ["key-revoked"]
        await time.skip(it, 5 * MINUTE)
        assert await jobs_of(client) == []
        resumed = (await client.post(f"{SCHEDULES}/{made['id']}/resume")).json()
        assert (resumed["state"], resumed["run_as"] != made["run_as"]) == ("active", True)
        assert await time.skip(it, 0) == 0  # what passed meanwhile is not made up for
        await time.skip(it, MINUTE)
        (job,) = await jobs_of(client)
        assert job["created_by"] == resumed["run_as"]


async def test_paused_by_hand_removed_and_the_model_gone(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client, time):
        made = await create(client, "* * * * *", b'{"n":1}')
        path = f"{SCHEDULES}/{made['id']}"
        assert (await client.post(f"{path}/pause")).json()["state"] == "paused"
        assert await time.skip(it, 5 * MINUTE) == 0
        answer = await client.post(f"{path}/run")
        assert answer.status_code == 202
        assert answer.headers["location"] == f"{JOBS}/{answer.json()['id']}"
        assert (await ended(client, answer.json()["id"]))["output"] == {"n": 1}
        shown = (await client.get(path)).json()
        assert (shown["runs"][0]["manual"], shown["state"]) == (True, "paused")
        await client.post(f"{path}/resume")
        tenant = it.store.registry.snapshot.tenant("acme").id
        body = it.store.registry.snapshot.schedule(tenant, made["id"]).body.id
        assert (await client.delete(path)).status_code == 204
        assert (await client.get(path)).status_code == 404
        assert not [p for p in (tmp_path / "data/blobs").glob("*/??/*") if p.name == body]
        assert body not in it.store.keyring.object_ids(tenant)
        last = await create(client, "* * * * *")
        assert (await client.delete("/api/v1/models/acme/echo")).is_success
        await time.skip(it, 0)
        shown = (await client.get(f"{SCHEDULES}/{last['id']}")).json()
        assert shown["state"] == "stopped: model-removed"
        assert (await client.post(f"{SCHEDULES}/{last['id']}/resume")).status_code in (403, 404)


async def test_the_version_is_chosen_when_it_is_due(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client, time):
        await it.version("acme", "echo")
        live = await create(client, "* * * * *")
        fixed = await create(client, "* * * * *", version="1")
        await client.put("/api/v1/models/acme/echo/aliases/best", json={"version": 1})
        named = await create(client, "* * * * *", alias="best")
        await client.put("/api/v1/models/acme/echo/aliases/live", json={"version": 2})
        await time.skip(it, MINUTE)
        found = {job["scheduled_by"]: job["version"] for job in await jobs_of(client)}
        assert found == {live["id"]: 2, fixed["id"]: 1, named["id"]: 1}
        await client.delete("/api/v1/models/acme/echo/aliases/best")
        await client.delete("/api/v1/models/acme/echo/versions/1")
        for job in await jobs_of(client):
            await ended(client, job["id"])
        await time.skip(it, MINUTE)
        assert (await runs(client, fixed))[0][1] == "gone"
        assert (await runs(client, named))[0][1] == "not-found"
        assert (await runs(client, live))[0][1] == "started"


async def test_what_is_no_schedule_is_refused_with_its_field(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client, _time):
        for query, pointer in (
            ({"cron": "61 * * * *"}, "?cron"),
            ({}, "?cron"),
            ({"cron": "0 2 * * *", "timezone": "Mars/Base"}, "?timezone"),
            ({"cron": "0 2 * * *", "catch_up": "all"}, "?catch_up"),
            ({"cron": "0 2 * * *", "overlap": "true"}, "?overlap"),
            ({"cron": "0 2 * * *", "version": "x"}, "?version"),
            ({"cron": "0 2 * * *", "version": "1", "alias": "live"}, "?alias"),
        ):
            answer = await client.post(CREATE, params=query, content=b"1")
            assert answer.status_code == 422, (query, answer.text)
            assert answer.json()["errors"][0]["pointer"] == pointer
        answer = await client.post(
            CREATE, params={"cron": "0 2 * * *", "version": "9"}, content=b"1"
        )
        assert answer.status_code == 404
        large = b"1" * (16 * 1024 * 1024)
        it.node.settings = config.replace(it.node.settings, "http", body_bytes_max=len(large) + 9)
        answer = await client.post(CREATE, params={"cron": "0 2 * * *"}, content=large + b"1")
        assert (answer.status_code, answer.json()["code"]) == (413, "too-large")
        narrow = await it.key("acme", scopes=["schedule:set", "model:invoke:other"])
        async with it.client(narrow) as caller:
            answer = await caller.post(CREATE, params={"cron": "0 2 * * *"}, content=b"1")
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        schedules = it.node.services.schedules
        schedules._settings = config.Schedules(schedules_max=1)
        await create(client, "0 2 * * *")
        answer = await client.post(CREATE, params={"cron": "0 2 * * *"}, content=b"1")
        assert (answer.status_code, answer.json()["code"]) == (429, "quota-exceeded")
        blobs = {path.name for path in (tmp_path / "data/blobs").glob("*/??/*")}
        assert blobs <= it.store.registry.snapshot.blob_ids()


async def test_a_run_that_a_restart_cut_off_runs_again_only_if_it_may(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client, time):
        once = await create(client, "* * * * *")
        again = await create(client, "* * * * *", repeatable="yes")
        await time.skip(it, MINUTE)
        keys = {job["scheduled_by"]: job["idempotency_key"] for job in await jobs_of(client)}
        due_ns = int(datetime.fromisoformat("2026-01-31T12:01:00+00:00").timestamp()) * 10**9
        assert keys == {once["id"]: None, again["id"]: f"{again['id']}/{due_ns}"}
        assert clock.text_from_ns(due_ns) == "2026-01-31T12:01:00.000Z"
