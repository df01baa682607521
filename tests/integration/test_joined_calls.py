"""Joined calls through the product: what callers, the audit and the figures say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from inside import Inside, inside

from appliance.records import Batching

ECHO = "/api/v1/models/acme/echo/invoke"


@pytest.fixture
async def it(tmp_path: Path) -> AsyncIterator[Inside]:
    async with inside(tmp_path, sandbox={"instances_per_version_max": 1}) as made:
        await made.tenant("acme")
        yield made


async def post(it: Inside, secret: str, body: bytes, path: str = ECHO, **headers: str) -> Any:
    async with it.client(secret) as client:
        return await client.post(
            path, content=body, headers={"content-type": "text/plain", **headers}
        )


async def outcomes(it: Inside) -> list[dict[str, Any]]:
    found = await asyncio.to_thread(it.store.ledger.read, 0, 10_000)
    return [entry.event for entry in found if entry.kind == "call.outcome"]


async def test_each_joined_call_has_its_answer_its_entry_and_its_share_of_the_figures(
    it: Inside,
) -> None:
    await it.version("acme", "echo", batch=Batching())
    secret = await it.key("acme")
    bodies = [b"body %d" % number for number in range(30)]
    replies = await asyncio.gather(*(post(it, secret, body) for body in bodies))
    assert [reply.content for reply in replies] == bodies
    seqs = {int(reply.headers["audit-seq"]) for reply in replies}
    assert len(seqs) == 30
    events = await outcomes(it)
    assert len({event["call_id"] for event in events}) == 30
    calls: dict[str, int] = {}
    for event in events:
        assert event["code"] == "ok"
        assert event["sandbox_id"]
        assert event["merged"]["own_rows"] == 1
        calls[event["merged"]["id"]] = event["merged"]["calls"]
    assert sum(calls.values()) == 30
    assert len(calls) < 30
    await it.store.queries.wait(it.store.ledger.head.size, 30)
    async with it.client(secret) as client:
        stats = (await client.get("/t/acme/v2/models/echo/stats")).json()["model_stats"][0]
    assert (stats["inference_count"], stats["execution_count"]) == (30, len(calls))
    async with it.client(admin=True) as client:
        text = (await client.get("/metrics")).text
    assert f"appliance_batch_rows_count {len(calls)}.0" in text
    assert "appliance_batch_rows_sum 30.0" in text
    assert "appliance_call_queue_seconds_count 30.0" in text


async def test_the_open_inference_protocol_is_joined_too(it: Inside) -> None:
    await it.version("acme", "echo", batch=Batching())
    secret = await it.key("acme")

    def asked(number: float) -> dict[str, Any]:
        one = {"name": "rows", "shape": [1, 2], "datatype": "FP64", "data": [number, number]}
        return {"id": f"id-{number}", "inputs": [one]}

    async with it.client(secret) as client:
        replies = await asyncio.gather(
            *(client.post("/t/acme/v2/models/echo/infer", json=asked(n / 2)) for n in range(20))
        )
    for number, reply in enumerate(replies):
        document = reply.json()
        assert document["id"] == f"id-{number / 2}"
        assert document["outputs"][0]["data"] == [number / 2, number / 2]
    assert max(event["merged"]["calls"] for event in await outcomes(it)) > 1


async def test_a_patience_that_ends_in_the_line_is_504_and_the_model_is_not_called(
    it: Inside,
) -> None:
    for model, declared in (("echo", {"batch": Batching()}), ("plain", {})):
        await it.version("acme", model, **declared)
        secret, path = await it.key("acme"), ECHO.replace("echo", model)
        held = [asyncio.create_task(post(it, secret, b"sleep 1", path)) for _ in range(2)]
        async with asyncio.timeout(30):
            while not any(box.calls for box in it.node.services.pool().list()):
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        late = await post(it, secret, b"late", path, prefer="wait=0")
        assert late.status_code == 504, late.text
        assert late.json()["type"].endswith("deadline-passed")
        for reply in await asyncio.gather(*held):
            assert reply.status_code == 200
        for box in it.node.services.pool().list():
            await it.node.services.pool().stop(box.id)


async def test_a_patience_that_is_no_number_is_refused(it: Inside) -> None:
    await it.version("acme", "echo")
    secret = await it.key("acme")
    for text in ("wait=soon", "wait=-1", 'wait="1.5"', "wait"):
        assert (await post(it, secret, b"x", prefer=text)).status_code == 400
    assert (await post(it, secret, b"x", prefer="respond-sync, Wait=30")).status_code == 200
    asked = {"inputs": [{"name": "a", "shape": [1], "datatype": "FP64", "data": [1]}]}
    async with it.client(secret) as client:
        for value, status in ((-1, 422), ("soon", 422), (True, 422), (30_000_000, 200)):
            path = "/t/acme/v2/models/echo/infer"
            reply = await client.post(path, json={**asked, "parameters": {"timeout": value}})
            assert reply.status_code == status, reply.text
