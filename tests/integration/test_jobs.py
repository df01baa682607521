"""Jobs: taken on with 202, run once, followed, cancelled, kept and forgotten."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from inside import Inside, inside

from appliance import config
from appliance.records import JOB_ENDS

ASYNC = {"Prefer": "respond-async", "Content-Type": "application/json"}
INVOKE = "/api/v1/models/acme/echo/invoke"
JOBS = "/api/v1/jobs/acme"


@asynccontextmanager
async def stage(folder: Path, **sandbox: Any) -> AsyncIterator[tuple[Inside, Any]]:
    async with inside(folder, sandbox=sandbox) as it:
        await it.tenant("acme")
        await it.version("acme", "echo")
        async with it.client(await it.key("acme")) as client:
            yield it, client


async def submit(client: Any, body: bytes = b'{"a":1}', **headers: str) -> dict[str, Any]:
    answer = await client.post(INVOKE, content=body, headers={**ASYNC, **headers})
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


async def ended(client: Any, job: dict[str, Any]) -> dict[str, Any]:
    for _ in range(10):
        job = (await client.get(job["urls"]["get"], params={"wait_s": 5})).json()
        if job["status"] in JOB_ENDS:
            return job
    raise AssertionError(job)


async def reached(client: Any, job: dict[str, Any], status: str) -> None:
    for _ in range(200):
        if (await client.get(job["urls"]["get"])).json()["status"] == status:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"never {status}")


def with_jobs(it: Inside, **settings: Any) -> None:
    """Change the settings of jobs of a node that runs."""
    jobs = it.node.services.jobs
    jobs._settings = config.replace(config.Settings(), "jobs", **settings).jobs


async def test_a_job_goes_from_202_to_its_output_and_the_ledger_tells_the_same(
    tmp_path: Path,
) -> None:
    async with stage(tmp_path) as (_it, client):
        answer = await client.post(INVOKE, content=b'{"a":1}', headers=ASYNC)
        assert answer.status_code == 202
        assert answer.headers["preference-applied"] == "respond-async"
        job = answer.json()
        assert answer.headers["location"] == f"{JOBS}/{job['id']}" == job["urls"]["get"]
        assert job["status"] == "starting"
        assert (job["output"], job["error"], job["completed_at"]) == (None, None, None)
        job = await ended(client, job)
        assert job["status"] == "succeeded"
        assert job["output"] == {"a": 1}
        assert (job["input_bytes"], job["output_bytes"]) == (7, 7)
        assert (job["version"], job["metrics"]["attempts"]) == (1, 1)
        output = await client.get(job["urls"]["output"])
        assert (output.content, output.headers["content-type"]) == (b'{"a":1}', "application/json")
        outcome = (await client.get(f"/api/v1/audit/{job['audit_seq']}")).json()
        assert (outcome["kind"], outcome["event"]["call_id"]) == ("call.outcome", job["id"])
        listed = (await client.get("/api/v1/audit", params={"after": 0})).json()["entries"]
        kinds = [e["kind"] for e in listed if e["kind"].startswith(("job.", "call."))]
        assert kinds == ["job.queued", "job.started", "call.intent", "call.outcome", "job.ended"]


async def test_a_failed_job_carries_the_problem_and_only_its_owner_sees_the_models_words(
    tmp_path: Path,
) -> None:
    async with stage(tmp_path) as (it, client):
        async with it.client(await it.key("acme", "caller")) as caller:
            job = await ended(caller, await submit(caller, b"raise"))
            assert job["status"] == "failed"
            assert job["error"]["code"] == "model-raised"
            assert job["error"]["status"] == 502
            assert "secret line two" not in msgspec.json.encode(job).decode()
            refused = await caller.get(f"{JOBS}/{job['id']}/output")
            assert (refused.status_code, refused.json()["code"]) == (409, "job-unfinished")
        shown = (await client.get(f"{JOBS}/{job['id']}")).json()
        assert shown["error"]["stderr"] == ["line one", "secret line two"]


async def test_the_same_key_and_request_is_the_same_job_and_another_request_is_refused(
    tmp_path: Path,
) -> None:
    async with stage(tmp_path) as (it, client):
        headers = {**ASYNC, "Idempotency-Key": "night-1"}
        sent = [client.post(INVOKE, content=b"1", headers=headers) for _ in range(8)]
        answers = await asyncio.gather(*sent)
        assert {a.status_code for a in answers} == {202}
        assert len({a.json()["id"] for a in answers}) == 1
        assert sum("idempotent-replayed" not in a.headers for a in answers) == 1
        for body, path in ((b"2", INVOKE), (b"1", INVOKE.replace("invoke", "versions/1/invoke"))):
            other = await client.post(path, content=body, headers=headers)
            assert (other.status_code, other.json()["code"]) == (422, "idempotency-key-reused")
        async with it.client(await it.key("acme")) as another:  # a key of one caller is its own
            assert (await submit(another, b"2", **headers))["id"] != answers[0].json()["id"]
        bad = await client.post(INVOKE, content=b"1", headers={**ASYNC, "Idempotency-Key": "a b"})
        assert (bad.status_code, bad.json()["code"]) == (400, "malformed")
        # What lost the race has left no payload behind.
        blobs = {path.name for path in (tmp_path / "data/blobs").glob("*/??/*")}
        await ended(client, answers[0].json())
        assert blobs <= it.store.registry.snapshot.blob_ids()


async def test_a_caller_sees_its_own_jobs_only_and_another_tenant_none(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client):
        await it.tenant("beta")
        mine = await submit(client)
        async with (
            it.client(await it.key("acme", "caller")) as caller,
            it.client(await it.key("beta")) as beta,
            it.client(await it.key("", "auditor")) as auditor,
        ):
            own = await submit(caller)
            assert [j["id"] for j in (await caller.get(JOBS)).json()["items"]] == [own["id"]]
            for path in (f"{JOBS}/{mine['id']}", f"{JOBS}/{mine['id']}/output"):
                assert (await caller.get(path)).status_code == 404
                assert (await beta.get(path)).status_code == 404
                assert (await auditor.get(path)).status_code == 403
            assert (await caller.post(f"{JOBS}/{mine['id']}/cancel")).status_code == 404
            moved = mine["urls"]["get"].replace("acme", "beta")
            assert (await beta.get(moved)).status_code == 404
        both = [j["id"] for j in (await client.get(JOBS)).json()["items"]]
        assert both == [own["id"], mine["id"]]
        after = (await client.get(JOBS, params={"before": own["id"]})).json()["items"]
        assert [j["id"] for j in after] == [mine["id"]]
        await ended(client, own)
        done = (await client.get(JOBS, params={"status": "succeeded", "model": "echo"})).json()
        assert own["id"] in {j["id"] for j in done["items"]}
        assert (await client.get(JOBS, params={"model": "other"})).json()["items"] == []
        assert (await client.get(JOBS, params={"status": "x"})).status_code == 422


async def test_a_waiting_job_that_is_cancelled_never_starts_and_a_running_one_is_ended(
    tmp_path: Path,
) -> None:
    async with stage(tmp_path, instances_per_version_max=1) as (it, client):
        running = await submit(client, b"sleep 30")
        await reached(client, running, "processing")
        waiting = await submit(client, b"1")
        gone = (await client.post(waiting["urls"]["cancel"])).json()
        assert (gone["status"], gone["metrics"]["attempts"]) == ("canceled", 0)
        began = asyncio.get_running_loop().time()
        gone = (await client.post(running["urls"]["cancel"])).json()
        assert gone["status"] == "canceled"
        assert asyncio.get_running_loop().time() - began < 5
        again = (await client.post(running["urls"]["cancel"])).json()
        assert again["completed_at"] == gone["completed_at"]
        assert (await ended(client, await submit(client)))["status"] == "succeeded"
        kinds = [e.kind for e in it.store.ledger.read(0, 999)]
        assert kinds.count("job.started") == 2


async def test_a_restart_does_not_take_up_what_was_cancelled_meanwhile(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client):
        jobs = it.node.services.jobs
        for headers in ({}, {"Idempotency-Key": "k"}):
            job = await submit(client, b"sleep 30", **headers)
            await reached(client, job, "processing")
            before = jobs.find(it.store.registry.snapshot.tenant("acme").id, job["id"])
            await client.post(job["urls"]["cancel"])
            await jobs._take_up(before)  # as a restart would, that saw it still running
            assert (await client.get(job["urls"]["get"])).json()["status"] == "canceled"
            assert jobs.waiting == 0


async def test_jobs_leave_room_for_calls_that_wait_for_their_answer(tmp_path: Path) -> None:
    async with stage(tmp_path, instances_per_version_max=2, instances_max=4) as (it, client):
        jobs = [await submit(client, b"sleep 30") for _ in range(6)]
        await reached(client, jobs[0], "processing")
        answer = await asyncio.wait_for(client.post(INVOKE, content=b"1"), 20)
        assert answer.status_code == 200
        statuses = [j["status"] for j in (await client.get(JOBS)).json()["items"]]
        assert statuses.count("processing") == 1
        async with it.client(await it.key("", "operator")) as operator:
            metrics = (await operator.get("/metrics")).text
        assert "appliance_jobs_waiting 5.0" in metrics
        assert "appliance_jobs_running 1.0" in metrics
        for job in jobs:
            await client.post(job["urls"]["cancel"])


async def test_tenants_take_turns(tmp_path: Path) -> None:
    async with stage(tmp_path, instances_max=2) as (it, client):
        await it.tenant("beta")
        await it.version("beta", "echo")
        async with it.client(await it.key("beta")) as beta:
            first = await submit(client, b"sleep 0.5")
            await reached(client, first, "processing")
            many = [await submit(client, b"sleep 0.3") for _ in range(5)]
            path = INVOKE.replace("acme", "beta")
            theirs = (await beta.post(path, content=b"1", headers=ASYNC)).json()
            await ended(beta, theirs)
            left = [(await client.get(j["urls"]["get"])).json()["status"] for j in many]
            assert left.count("starting") >= 3


async def test_a_tenant_has_so_many_jobs_and_no_more(tmp_path: Path) -> None:
    async with stage(tmp_path, instances_per_version_max=1) as (it, client):
        with_jobs(it, queued_max=3)
        for _ in range(3):
            await submit(client, b"sleep 20")
        refused = await client.post(INVOKE, content=b"1", headers=ASYNC)
        assert (refused.status_code, refused.json()["code"]) == (429, "quota-exceeded")
        assert refused.headers["retry-after"]
        blobs = {path.name for path in (tmp_path / "data/blobs").glob("*/??/*")}
        assert blobs <= it.store.registry.snapshot.blob_ids()
        for job in (await client.get(JOBS)).json()["items"]:
            await client.post(job["urls"]["cancel"])


async def test_an_ended_job_is_forgotten_with_its_payloads_and_their_keys(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client):
        job = await ended(client, await submit(client, b'{"same":1}'))
        other = await ended(client, await submit(client, b'{"same":1}'))
        tenant = it.store.registry.snapshot.tenant("acme")
        before = it.store.registry.snapshot.blob_ids()
        with_jobs(it, kept_max=1)
        assert await it.node.services.jobs.sweep() == 1
        assert (await client.get(job["urls"]["get"])).status_code == 404
        assert (await client.get(other["urls"]["output"])).json() == {"same": 1}
        gone = before - it.store.registry.snapshot.blob_ids()
        assert len(gone) == 2
        assert not gone & {path.name for path in (tmp_path / "data/blobs").glob("*/??/*")}
        assert not gone & it.store.keyring.object_ids(tenant.id)
        with_jobs(it, kept_s=1)
        await asyncio.sleep(1.1)
        assert await it.node.services.jobs.sweep() == 1
        assert (await client.get(JOBS)).json()["items"] == []


async def test_progress_comes_as_events_from_the_beginning_whenever_one_asks(
    tmp_path: Path,
) -> None:
    async with stage(tmp_path) as (_it, client):
        headers = {"Accept": "text/event-stream"}
        job = await submit(client, b"sleep 0.3")
        live = await client.get(job["urls"]["stream"], headers=headers)
        assert live.headers["content-type"] == "text/event-stream"
        names = re.findall(r"^event: (\w+)$", live.text, re.MULTILINE)
        assert names == ["start", "completed"]
        datas = [
            msgspec.json.decode(t) for t in re.findall(r"^data: (.*)$", live.text, re.MULTILINE)
        ]
        assert [d["status"] for d in datas] == ["processing", "succeeded"]
        again = await client.get(job["urls"]["stream"], headers=headers)
        assert re.findall(r"^event: (\w+)$", again.text, re.MULTILINE) == names
        failed = await ended(client, await submit(client, b"raise"))
        told = await client.get(failed["urls"]["stream"], headers=headers)
        assert re.findall(r"^event: (\w+)$", told.text, re.MULTILINE) == [
            "start", "log", "log", "completed",
        ]  # fmt: skip


async def test_a_job_of_a_key_that_was_revoked_or_a_version_that_was_retired_does_not_run(
    tmp_path: Path,
) -> None:
    async with stage(tmp_path, instances_per_version_max=1) as (it, client):
        running = await submit(client, b"sleep 1")
        await reached(client, running, "processing")
        async with it.client(await it.key("acme", "caller")) as caller:
            waiting = await submit(caller, b"1")
            key_id = waiting["created_by"]
        await client.delete(f"/api/v1/tenants/acme/keys/{key_id}")
        done = await ended(client, waiting)
        assert (done["error"]["code"], done["metrics"]["attempts"]) == ("forbidden", 0)
        running = await submit(client, b"sleep 1")
        await reached(client, running, "processing")
        late = await submit(client, b"1")
        await client.delete("/api/v1/models/acme/echo/versions/1")
        assert (await ended(client, late))["error"]["code"] == "gone"


async def test_a_job_that_finds_no_room_waits_again_and_runs_later(tmp_path: Path) -> None:
    async with stage(tmp_path, instances_per_version_max=1, instances_max=1, queue_timeout_s=1) as (
        it,
        client,
    ):
        call = asyncio.create_task(client.post(INVOKE, content=b"sleep 2.2"))
        await asyncio.sleep(0.2)
        job = await ended(client, await submit(client))
        assert job["status"] == "succeeded"
        assert job["metrics"]["attempts"] >= 2
        assert (await call).status_code == 200
        kinds = [e.kind for e in it.store.ledger.read(0, 999)]
        assert "job.requeued" in kinds


async def test_jobs_outlive_a_seal_and_what_never_started_runs_afterwards(tmp_path: Path) -> None:
    async with stage(tmp_path, instances_per_version_max=1) as (it, client):
        done = await ended(client, await submit(client, b'{"kept":1}'))
        await submit(client, b"sleep 1")
        waiting = await submit(client, b'{"later":1}')
        await it.node.seal()
        assert (await client.get(done["urls"]["get"])).status_code == 503
        await it.node.unseal(key_file=tmp_path / "unseal.key")
        assert (await ended(client, waiting))["output"] == {"later": 1}
        assert (await client.get(done["urls"]["output"])).json() == {"kept": 1}


async def test_nothing_of_a_job_is_readable_in_the_data_folder(tmp_path: Path) -> None:
    async with stage(tmp_path) as (_it, client):
        headers = {"Idempotency-Key": "canary-key-canary"}
        await ended(client, await submit(client, b'{"x":"canary-body-canary"}', **headers))
        await asyncio.sleep(1.0)
    found = b"".join(p.read_bytes() for p in (tmp_path / "data").rglob("*") if p.is_file())
    assert b"canary-body" not in found
    assert b"canary-key" not in found


@pytest.mark.parametrize("prefer", ["wait=10, respond-async", "Respond-Async; foo"])
async def test_the_preference_is_found_among_others(tmp_path: Path, prefer: str) -> None:
    async with stage(tmp_path) as (_it, client):
        answer = await client.post(INVOKE, content=b"1", headers={"Prefer": prefer})
        assert answer.status_code == 202
        plain = await client.post(INVOKE, content=b"1", headers={"Prefer": "wait=10"})
        assert plain.status_code == 200


async def test_no_job_starts_while_the_disk_is_nearly_full(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client):
        jobs = it.node.services.jobs
        kept, jobs._free_bytes_min = jobs._free_bytes_min, 1 << 60
        job = await submit(client)
        await asyncio.sleep(1.2)
        assert (await client.get(job["urls"]["get"])).json()["status"] == "starting"
        jobs._free_bytes_min = kept
        done = await ended(client, job)
        assert (done["status"], done["metrics"]["attempts"]) == ("succeeded", 1)
