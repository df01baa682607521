"""Batches as their callers follow them: one per key, progress as it comes, webhooks, figures."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import standardwebhooks
from inside import EchoSandbox, Inside, inside
from receiver import Receiver, receiver

from appliance.records import JOB_ENDS

BATCHES = "/api/v1/batches/acme"
MODEL = "/api/v1/models/acme/echo"
HOOKS = "/api/v1/tenants/acme/webhooks"
MANY = {"instances_max": 8, "instances_per_version_max": 4}
RECORDS = {"form": "records", "into": "ndjson", "carry": "false"}
EVENTS = {"Accept": "text/event-stream"}
HELD = b'"held"'


@asynccontextmanager
async def stage(
    folder: Path, hears: Receiver | None = None, **declared: Any
) -> AsyncIterator[tuple[Inside, Any]]:
    webhooks = {"allow": (hears.origin,)} if hears else None
    async with inside(folder, sandbox=MANY, webhooks=webhooks) as it:
        await it.tenant("acme")
        await it.version("acme", "echo", **declared)
        async with it.client(await it.key("acme")) as client:
            yield it, client


def table(count: int, **odd: str) -> bytes:
    lines = [f"{i},{odd.get(f'r{i}', 't')}" for i in range(count)]
    return "\n".join(["i,t", *lines]).encode() + b"\n"


async def send(client: Any, data: bytes, path: str = MODEL, query: Any = (), **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await client.post(
        f"{path}/batch",
        content=data,
        params={**RECORDS, **dict(query)},
        headers={"Content-Type": "text/csv", **named},
    )


async def submit(client: Any, data: bytes, query: Any = (), **headers: str) -> dict[str, Any]:
    answer = await send(client, data, MODEL, query, **headers)
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


async def ended(client: Any, batch: dict[str, Any]) -> dict[str, Any]:
    for _ in range(20):
        batch = (await client.get(batch["urls"]["get"], params={"wait_s": 5})).json()
        if batch["status"] in JOB_ENDS:
            return batch
    raise AssertionError(batch)


def told(text: str) -> list[tuple[str, Any]]:
    names = re.findall(r"^event: (\w+)$", text, re.MULTILINE)
    datas = re.findall(r"^data: (.*)$", text, re.MULTILINE)
    return [(n, msgspec.json.decode(d)) for n, d in zip(names, datas, strict=True)]


async def test_one_key_is_one_batch_and_of_another_request_a_problem(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client):
        first = await send(client, table(20), Idempotency_Key="night-1")
        assert first.status_code == 202, first.text
        assert "idempotent-replayed" not in first.headers
        assert first.json()["idempotency_key"] == "night-1"
        stored = it.store.registry.snapshot.blob_ids()
        again = await send(client, table(20), Idempotency_Key="night-1")
        assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
        assert again.headers["idempotent-replayed"] == "true"
        await ended(client, first.json())
        later = await send(client, table(20), Idempotency_Key="night-1")
        assert (later.json()["id"], later.json()["status"]) == (first.json()["id"], "succeeded")
        for other in (
            await send(client, table(21), Idempotency_Key="night-1"),
            await send(client, table(20), f"{MODEL}/versions/1", Idempotency_Key="night-1"),
            await send(client, table(20), MODEL, {"chunk_rows": 7}, Idempotency_Key="night-1"),
        ):
            assert (other.status_code, other.json()["code"]) == (422, "idempotency-key-reused")
            assert other.json()["batch"] == first.json()["id"]
        assert len((await client.get(BATCHES)).json()["items"]) == 1
        async with it.client(await it.key("acme", "caller")) as caller:
            its = await send(caller, table(5), Idempotency_Key="night-1")
            assert its.json()["id"] != first.json()["id"]  # a key is its principal's
            await ended(client, its.json())
        bad = await send(client, table(5), Idempotency_Key="a b")
        assert (bad.status_code, bad.json()["code"]) == (400, "malformed")
        known = it.store.registry.snapshot.blob_ids()
        assert stored <= known
        kept = {path.name for path in (tmp_path / "data/blobs").glob("*/??/*")}
        assert kept <= known


async def test_two_at_once_with_one_key_are_one_batch(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client):
        answers = await asyncio.gather(
            *(send(client, table(50), Idempotency_Key="k") for _ in range(4))
        )
        assert {a.status_code for a in answers} == {202}
        assert len({a.json()["id"] for a in answers}) == 1
        assert sum("idempotent-replayed" in a.headers for a in answers) == 3
        await ended(client, answers[0].json())
        kept = {path.name for path in (tmp_path / "data/blobs").glob("*/??/*")}
        assert kept <= it.store.registry.snapshot.blob_ids()


async def test_a_key_outlives_a_restart(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client):
        secret = client.headers["authorization"].removeprefix("Bearer ")
        batch = await submit(client, table(20), Idempotency_Key="k")
        await ended(client, batch)
    async with inside(tmp_path, initialise=False, sandbox=MANY) as it:
        await it.node.unseal(key_file=tmp_path / "unseal.key")
        async with it.client(secret) as client:
            again = await send(client, table(20), Idempotency_Key="k")
            assert (again.status_code, again.json()["id"]) == (202, batch["id"])


async def test_the_events_of_a_batch_say_its_start_its_progress_and_its_end(
    tmp_path: Path,
) -> None:
    async with stage(tmp_path) as (_it, client):
        EchoSandbox.HELD.add(HELD)
        try:
            batch = await submit(client, table(100, r95="held"), {"chunk_rows": 10})
            assert batch["urls"]["stream"] == batch["urls"]["get"]
            live = asyncio.create_task(client.get(batch["urls"]["stream"], headers=EVENTS))
            async with asyncio.timeout(60):
                while (await client.get(batch["urls"]["get"])).json()["rows_done"] < 90:
                    await asyncio.sleep(0.02)
        finally:
            EchoSandbox.HELD.discard(HELD)
        await client.post(batch["urls"]["cancel"])
        answer = await live
        assert answer.headers["content-type"] == "text/event-stream"
        events = told(answer.text)
        assert (events[0][0], events[-1][0]) == ("start", "completed")
        assert events[0][1]["status"] == "processing"
        assert events[-1][1]["status"] == "canceled"
        progress = [data for name, data in events if name == "progress"]
        assert progress
        done = [one["rows_done"] for one in progress]
        assert done == sorted(set(done))
        assert all(one["rows"] == 100 and one["rows_failed"] == 0 for one in progress)
        for one in progress:
            assert (one["eta_s"] is None) == (one["rows_per_s"] == 0.0)
        again = told((await client.get(batch["urls"]["stream"], headers=EVENTS)).text)
        assert [name for name, _ in again] == ["start", "completed"]


async def test_webhooks_are_told_of_batches_by_tenths_and_a_batch_may_have_its_own(
    tmp_path: Path,
) -> None:
    async with receiver() as hears, stage(tmp_path, hears) as (_it, client):
        url = f"{hears.origin}/in"
        wanted = ["batch.started", "batch.progress", "batch.completed"]
        made = await client.post(HOOKS, json={"url": url, "events": wanted})
        assert made.status_code == 201, made.text
        data = table(200, r3="poison")
        await ended(client, await submit(client, data, {"chunk_rows": 5, "on_error": "null"}))
        got = [one.message for one in await hears.until(11)]
        assert len(hears.got) == 11
        assert sorted({m["type"] for m in got}) == sorted(wanted)
        progress = sorted(m["data"]["rows_done"] for m in got if m["type"] == wanted[1])
        assert progress == list(range(20, 200, 20))
        done = next(m["data"] for m in got if m["type"] == wanted[2])
        assert (done["status"], done["code"], done["rows"]) == ("succeeded", None, 200)
        assert (done["rows_done"], done["rows_failed"], done["model"]) == (200, 1, "echo")
        standardwebhooks.Webhook(made.json()["secret"]).verify(
            hears.got[0].body, hears.got[0].headers
        )

        refused = await send(client, table(9), Webhook=f"{hears.origin}/own")
        assert refused.status_code == 422  # there is no secret to sign with
        signing = (await client.post(HOOKS, json={"url": "", "events": []})).json()
        wrong = await send(
            client, table(9), Webhook=f"{hears.origin}/own", Webhook_Events_Filter="logs"
        )
        assert (wrong.status_code, wrong.json()["code"]) == (422, "input-invalid")
        batch = await submit(
            client,
            table(9, r4="poison"),
            Webhook=f"{hears.origin}/own?secret=1",
            Webhook_Events_Filter="completed",
        )
        assert batch["webhook"] == hears.origin
        page = (await client.get("/api/v1/audit", params={"kind": "batch.queued"})).text
        assert batch["id"] in page
        assert "secret=1" not in page
        await ended(client, batch)
        async with asyncio.timeout(60):
            while not (own := [one for one in hears.got if one.path.startswith("/own")]):
                await asyncio.sleep(0.02)
        assert len(own) == 1
        message = standardwebhooks.Webhook(signing["secret"]).verify(own[0].body, own[0].headers)
        assert message["type"] == "batch.completed"
        assert message["data"]["batch"] == batch["id"]
        assert (message["data"]["status"], message["data"]["code"]) == ("failed", "model-raised")


async def test_the_figures_of_batches_are_in_the_metrics(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client):
        good = table(30, r3="poison")
        await ended(client, await submit(client, good, {"chunk_rows": 10, "on_error": "null"}))
        await ended(client, await submit(client, table(30, r12="poison"), {"chunk_rows": 10}))
        async with it.client(admin=True) as admin:
            text = (await admin.get("/metrics")).text
        assert 'appliance_batches_ended_total{status="succeeded"} 1.0' in text
        assert 'appliance_batches_ended_total{status="failed"} 1.0' in text
        assert 'appliance_batches_rows_total{result="failed"} 1.0' in text
        rows = re.search(r'appliance_batches_rows_total{result="ok"} (\d+)', text)
        assert rows
        assert 29 <= int(rows[1]) <= 29 + 20
        assert "appliance_batches_waiting 0.0" in text
        assert "appliance_batches_running" in text


async def test_lists_of_batches_take_the_queries_that_lists_of_jobs_take(tmp_path: Path) -> None:
    async with stage(tmp_path) as (_it, client):
        made = [await submit(client, table(5)) for _ in range(3)]
        for one in made:
            await ended(client, one)
        ids = [one["id"] for one in made]

        async def found(**query: Any) -> list[str]:
            return [b["id"] for b in (await client.get(BATCHES, params=query)).json()["items"]]

        assert await found() == ids[::-1]
        assert await found(before=ids[2]) == [ids[1], ids[0]]
        assert await found(before=ids[2], limit=1) == [ids[1]]
        assert await found(status="succeeded", model="echo", limit=2) == [ids[2], ids[1]]
        assert await found(model="other") == []
        assert (await client.get(BATCHES, params={"status": "odd"})).status_code == 422
