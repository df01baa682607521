"""Shadows through HTTP: after the reply, on record, compared, dropped under pressure."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from inside import Inside, inside

from appliance import shadow
from appliance.sandbox.spec import MIB

MODEL = "/api/v1/models/acme/m"
ROUTE = MODEL + "/route"


@pytest.fixture
async def it(tmp_path: Path) -> AsyncIterator[Inside]:
    async with inside(tmp_path, sandbox={"instances_max": 6}) as found:
        await found.tenant("acme")
        for _ in range(3):
            await found.version("acme", "m")
        yield found


@pytest.fixture
async def client(it: Inside) -> AsyncIterator[Any]:
    async with it.client(await it.key("acme")) as found:
        yield found


async def shadowed(client: Any, *shadows: int) -> None:
    body = {"arms": [{"version": 1, "percent": 100}], "shadows": list(shadows)}
    assert (await client.put(ROUTE, json=body)).status_code == 200


async def call(client: Any, body: bytes) -> Any:
    reply = await client.post(MODEL + "/invoke", content=body)
    assert reply.status_code == 200, reply.text
    assert reply.headers["model-version"] == "1"
    return reply


async def settled(client: Any, total: int) -> dict[int, dict[str, Any]]:
    """The shadows' figures once every offered call came to an end."""
    async with asyncio.timeout(30):
        while True:
            found = (await client.get(ROUTE + "/stats")).json()["shadows"]
            if sum(one["calls"] + one["dropped"] for one in found) >= total:
                return {one["version"]: one for one in found}
            await asyncio.sleep(0.05)


async def test_a_shadow_gets_the_same_body_on_record_and_its_reply_is_compared(
    it: Inside, client: Any
) -> None:
    await shadowed(client, 2, 3)
    first = await call(client, b'{"a": 1}')
    await settled(client, 2)
    await call(client, b'at 2 {"b": 2}')
    await settled(client, 4)
    await call(client, b"at 3 raise")
    found = await settled(client, 6)
    counts = {n: [one[k] for k in ("equal", "close", "different", "failed")]
              for n, one in found.items()}  # fmt: skip
    assert counts == {2: [2, 0, 1, 0], 3: [2, 0, 0, 1]}
    entries = (await client.get("/api/v1/audit?kind=call.outcome")).json()["entries"]
    parent = first.headers["request-id"]
    mine = [e for e in entries if e["event"]["shadow_of"] == parent]
    assert sorted(e["event"]["number"] for e in mine) == [2, 3]
    assert {(e["actor"], e["event"]["match"]) for e in mine} == {("appliance", "equal")}
    intents = (await client.get("/api/v1/audit?kind=call.intent")).json()["entries"]
    assert sum(e["event"]["shadow_of"] == parent for e in intents) == 2
    own = next(e for e in entries if e["event"]["call_id"] == parent)
    assert own["event"]["shadow_of"] == ""
    assert min(e["seq"] for e in mine) > own["seq"], "after the caller's outcome"
    (arm,) = (await client.get(ROUTE + "/stats")).json()["arms"]
    assert (arm["calls"], arm["errors"]) == (3, 0)


async def test_a_slow_or_failing_shadow_neither_delays_nor_fails_callers(
    it: Inside, client: Any
) -> None:
    await shadowed(client, 2)
    await call(client, b"x")
    started = time.monotonic()
    for _ in range(10):
        await call(client, b"at 2 sleep 5")
    assert time.monotonic() - started < 15, "ten callers, each shadow takes five seconds"
    await call(client, b"at 2 raise")
    text = it.node.metrics.text().decode()
    assert 'appliance_shadow_calls_total{match="equal"}' in text


async def test_no_shadow_begins_before_the_reply_has_left(it: Inside) -> None:
    sent: list[str] = []
    key = await it.key("acme")
    async with it.client(key) as client:
        await shadowed(client, 2)
    shadows = it.node.services.shadows
    queue = shadows._queue

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"x", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        assert queue.empty()
        await asyncio.sleep(0.05)  # a caller that takes its time
        assert shadows._held_bytes == 0
        sent.append(message["type"])

    path = f"{MODEL}/invoke".encode()
    scope = {
        "type": "http", "method": "POST", "path": path.decode(), "raw_path": path,
        "query_string": b"", "headers": [(b"authorization", b"Bearer " + key.encode())],
        "state": {}, "http_version": "1.1",
    }  # fmt: skip
    await it.apps.public(scope, receive, send)
    assert sent[0] == "http.response.start"
    assert shadows._held_bytes > 0


async def test_what_is_too_much_is_dropped_and_counted(it: Inside, client: Any) -> None:
    await shadowed(client, 2)
    await call(client, b"x")
    await settled(client, 1)
    for _ in range(shadow.QUEUE_MAX + shadow.WORKERS + 8):
        await call(client, b"at 2 sleep 5")
    (one,) = (await client.get(ROUTE + "/stats")).json()["shadows"]
    assert 6 <= one["dropped"] <= 10
    assert it.node.services.shadows._queue.qsize() <= shadow.QUEUE_MAX


async def test_bodies_are_kept_up_to_a_bound_only(it: Inside, client: Any) -> None:
    await shadowed(client, 2)
    shadows = it.node.services.shadows
    await call(client, b"at 2 sleep 5")
    await call(client, b"at 2 sleep 5")
    for _ in range(6):
        await call(client, b"y" * (8 * MIB))
        assert shadows._held_bytes <= shadow.QUEUE_BYTES_MAX
    assert shadows.dropped((await it_model(it)).id, 2) == 3


async def it_model(it: Inside) -> Any:
    snapshot = it.store.registry.snapshot
    return snapshot.model(snapshot.tenant("acme").id, "m")


async def test_a_shadow_takes_no_sandbox_that_callers_could_want(tmp_path: Path) -> None:
    async with inside(tmp_path, sandbox={"instances_max": 2}) as it:
        await it.tenant("acme")
        for _ in range(2):
            await it.version("acme", "m")
        async with it.client(await it.key("acme")) as client:
            await shadowed(client, 2)
            await call(client, b"x")
            found = await settled(client, 1)
            assert (found[2]["calls"], found[2]["dropped"]) == (0, 1)
            running = [box.version_key for box in it.node.services.pool().list()]
            assert [key.rpartition("/")[2] for key in running] == ["1"]


async def test_calls_that_name_a_version_are_not_repeated(it: Inside, client: Any) -> None:
    await shadowed(client, 2)
    await client.post(MODEL + "/versions/1/invoke", content=b"x")
    await client.post(MODEL + "/aliases/live/invoke", content=b"x")
    await asyncio.sleep(0.2)
    entries = (await client.get("/api/v1/audit?kind=call.intent")).json()["entries"]
    assert len(entries) == 2
