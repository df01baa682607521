"""Samples and replays: off by default, sealed, deleted, repeated on record, compared."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from inside import Inside, inside
from scripted import ScriptedExecutor

from appliance import clock, samples
from appliance.errors import ModelRaised

MODEL = "/api/v1/models/acme/m"
SAMPLES, REPLAY = MODEL + "/samples", MODEL + "/replay"
CANARY = 77123456


def script(number: int, body: Any) -> Any:
    """1 doubles; 2 does too but for 3 (much) and 4 (little), and refuses 5; 3 never answers."""
    n = body["n"]
    if number == 2 and n == 5:
        raise ModelRaised("ValueError: 5")
    if number == 3:
        return None
    more = {3: 100, 4: 1e-12}.get(n, 0) if number == 2 else 0
    return {"twice": 2 * n + more}


@asynccontextmanager
async def stage(folder: Path) -> AsyncIterator[tuple[Inside, Any]]:
    is_new = not (folder / "data").exists()
    executor = functools.partial(ScriptedExecutor, script=script)
    async with inside(folder, executor=executor, initialise=is_new) as it:
        if is_new:
            await it.tenant("acme")
            for _ in range(3):
                await it.version("acme", "m")
        else:
            await it.node.unseal(key_file=folder / "unseal.key")
        async with it.client(await it.key("acme")) as client:
            yield it, client


async def sampled(client: Any, **body: Any) -> dict[str, Any]:
    answer = await client.put(SAMPLES, json={"percent": 100, **body})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def call(client: Any, n: int, version: int = 1) -> Any:
    path = f"{MODEL}/versions/{version}/invoke"
    reply = await client.post(path, json={"n": n})
    assert reply.status_code == 200, reply.text
    return reply


async def settled(it: Inside) -> None:
    async with asyncio.timeout(30):
        await it.node.services.samples._queue.join()


async def kept(client: Any) -> dict[str, Any]:
    return dict((await client.get(SAMPLES)).json())


async def replayed(client: Any, **body: Any) -> dict[str, Any]:
    made = await client.post(REPLAY, json={"against": 2, **body})
    assert made.status_code == 202, made.text
    for _ in range(12):
        found = (await client.get(made.json()["urls"]["get"], params={"wait_s": 5})).json()
        if found["status"] in ("succeeded", "failed", "canceled"):
            return dict(found)
    raise AssertionError(found)


def files(folder: Path) -> list[Path]:
    return sorted((folder / "data/samples").glob("*/*"))


async def test_nothing_is_kept_unless_an_owner_asks_and_then_callers_see_it(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client):
        reply = await call(client, 1)
        assert "sampled-percent" not in reply.headers
        await settled(it)
        found = await kept(client)
        assert (found["percent"], found["kept"], files(tmp_path)) == (0.0, 0, [])
        set_ = await sampled(client, days=3)
        assert (set_["percent"], set_["days"], set_["count_max"]) == (100.0, 3, 1000)
        async with it.client(await it.key("acme", "caller")) as caller:
            reply = await call(caller, CANARY)
            assert reply.headers["sampled-percent"] == "100"
            for answer in (
                await caller.get(SAMPLES), await caller.put(SAMPLES, json={"percent": 1}),
                await caller.delete(SAMPLES), await caller.post(REPLAY, json={"against": 2}),
            ):  # fmt: skip
                assert answer.status_code == 403
        await settled(it)
        assert (await kept(client))["kept"] == 1
        assert (await client.get(MODEL)).json()["sampled_percent"] == 100.0
        (path,) = files(tmp_path)
        assert str(CANARY).encode() not in path.read_bytes()
        off = (await client.put(SAMPLES, json={"percent": 0})).json()
        assert (off["percent"], off["kept"]) == (0.0, 1)
        assert "sampled-percent" not in (await call(client, 2)).headers
        await settled(it)
        assert len(files(tmp_path)) == 1
        kinds = [e.kind for e in it.store.ledger.read(0, 999) if e.kind.startswith("sampl")]
        assert kinds == ["sampling.set", "sampling.removed"]


async def test_a_share_of_the_calls_is_kept(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client):
        await sampled(client, percent=25)
        wants = it.node.services.samples.wants_call
        model = it.store.registry.snapshot.models()[0]
        drawn = sum(wants(model.id) for _ in range(10_000))
        assert 2200 < drawn < 2800  # six standard deviations
        assert not wants("mod_other")
        refused = await client.put(SAMPLES, json={"percent": 0.001})
        assert "0.01" in refused.json()["detail"]


async def test_a_replay_counts_compares_and_is_on_record_with_what_it_repeats(
    tmp_path: Path,
) -> None:
    async with stage(tmp_path) as (it, client):
        await sampled(client)
        calls = [(await call(client, n)).headers["request-id"] for n in range(1, 7)]
        await settled(it)
        await client.put(SAMPLES, json={"percent": 0})
        found = await replayed(client)
        assert found["status"] == "succeeded", found["error"]
        assert (found["source"], found["done"], found["total"]) == ("replay", 6, 6)
        report = found["replay"]
        counts = [report[name] for name in ("calls", "equal", "close", "different", "failed")]
        assert counts == [6, 3, 1, 1, 1]
        assert report["problems"] == {"model-raised": 1}
        assert report["versions"] == {"1": 6}
        assert report["latency_ratio"] > 0
        assert report["latency_now"]["calls"] == 6
        (worst,) = report["worst"]
        assert (worst["call_id"], worst["distance"]) == (calls[2], 100)
        assert (worst["input"], worst["then"], worst["now"]) == (
            {"n": 3}, {"twice": 6}, {"twice": 106},
        )  # fmt: skip
        for kind in ("call.intent", "call.outcome"):
            entries = (await client.get(f"/api/v1/audit?kind={kind}&limit=99")).json()["entries"]
            mine = [e for e in entries if e["event"]["replay_of"]]
            assert {e["event"]["replay_of"] for e in mine} == set(calls)
            assert {e["actor"] for e in mine} == {found["created_by"]}
            assert {e["event"]["number"] for e in mine} == {2}
        matches = sorted(e["event"]["match"] for e in mine)
        assert matches == ["", "close", "different", "equal", "equal", "equal"]
        assert (await kept(client))["kept"] == 6  # a replay is never kept itself
        newest = (await replayed(client, limit=2))["replay"]
        assert (newest["calls"], newest["failed"]) == (2, 1)


async def test_a_replay_is_shown_with_its_rows_to_owners_of_the_tenant_only(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client):
        await it.tenant("beta")
        await sampled(client)
        await call(client, 3)
        await settled(it)
        found = await replayed(client)
        assert len(found["replay"]["worst"]) == 1
        async with (
            it.client(await it.key("acme", "caller")) as caller,
            it.client(await it.key("beta")) as beta,
        ):
            assert (await caller.get(found["urls"]["get"])).status_code == 404
            assert (await beta.get(found["urls"]["get"])).status_code == 404
            assert (await beta.get(SAMPLES)).status_code == 404
            assert (await beta.post(REPLAY, json={"against": 2})).status_code == 404


async def test_samples_are_deleted_by_command_with_their_model_and_with_their_tenant(
    tmp_path: Path,
) -> None:
    async with stage(tmp_path) as (it, client):
        await sampled(client)
        await call(client, 1)
        removed = await client.delete(SAMPLES)  # also what is on its way to the disk
        assert removed.json() == {"removed": 1}
        assert files(tmp_path) == []
        assert it.store.ledger.read(0, 999)[-1].kind == "samples.removed"
        refused = await client.post(REPLAY, json={"against": 2})
        assert (refused.status_code, "No calls" in refused.json()["detail"]) == (422, True)
        await call(client, 2)
        await settled(it)
        assert len(files(tmp_path)) == 1
        assert (await client.delete(MODEL)).status_code == 204
        await it.node.services.samples.sweep()
        assert files(tmp_path) == []
        await it.version("acme", "m")
        await sampled(client)
        await call(client, 3)
        await settled(it)
        async with it.client(admin=True) as admin:
            assert (await admin.delete("/api/v1/tenants/acme")).status_code == 204
        await it.node.services.samples.sweep()
        assert list((tmp_path / "data/samples").iterdir()) == []


async def test_samples_are_deleted_after_their_days_and_beyond_their_caps(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client):
        await sampled(client, count_max=3)
        ids = [(await call(client, n)).headers["request-id"] for n in range(5)]
        await settled(it)
        assert [path.name.rpartition(".")[2] for path in files(tmp_path)] == ids[2:]
        await sampled(client, count_max=3, bytes_max=1024)
        size = (await kept(client))["kept_bytes"]
        assert 0 < size <= 1024
        keeper = it.node.services.samples
        model = it.store.registry.snapshot.models()[0]
        one = await keeper.read((await keeper.kept(model.id))[-1])
        day_ns = 86_400 * 1_000_000_000
        old = replace(one, call_id="req_old", time_ns=clock.now_ns() - 8 * day_ns)
        await sampled(client, days=90)
        keeper.offer(old)
        await settled(it)
        assert any("req_old" in path.name for path in files(tmp_path))
        await sampled(client, days=7)
        assert not any("req_old" in path.name for path in files(tmp_path))
        await client.put(SAMPLES, json={"percent": 0})
        await keeper.sweep()
        assert files(tmp_path) != []  # their own days are not over


async def test_samples_outlive_a_restart_and_a_damaged_one_is_passed_over(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client):
        await sampled(client)
        for n in (1, 2):
            await call(client, n)
        await settled(it)
    paths = files(tmp_path)
    paths[0].write_bytes(paths[0].read_bytes()[:-1])
    async with stage(tmp_path) as (it, client):
        assert (await kept(client))["percent"] == 100.0
        assert (await kept(client))["kept"] == 2
        report = (await replayed(client))["replay"]
        assert (report["calls"], report["gone"], report["equal"]) == (1, 1, 1)


async def test_what_is_too_much_or_too_large_is_dropped_and_counted(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client):
        await sampled(client)
        await call(client, 1)
        await settled(it)
        keeper = it.node.services.samples
        model = it.store.registry.snapshot.models()[0]
        one = await keeper.read((await keeper.kept(model.id))[0])
        keeper.offer(replace(one, body=b"x" * (samples.SAMPLE_BYTES_MAX + 1)))
        for number in range(samples.QUEUE_MAX + 5):
            keeper.offer(replace(one, call_id=f"req_{number}"))
        assert (await kept(client))["dropped"] == 6
        await settled(it)
        assert keeper._held_bytes == 0
        assert (await kept(client))["kept"] == samples.QUEUE_MAX + 1


async def test_nothing_is_kept_before_the_reply_has_left(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client):
        await sampled(client)
        key = await it.key("acme")
        keeper, sent = it.node.services.samples, []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b'{"n": 1}', "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            await asyncio.sleep(0.05)  # a caller that takes its time
            assert keeper._held_bytes == 0
            assert files(tmp_path) == []
            sent.append(message["type"])

        path = f"{MODEL}/versions/1/invoke"
        scope = {
            "type": "http", "method": "POST", "path": path, "raw_path": path.encode(),
            "query_string": b"", "headers": [(b"authorization", b"Bearer " + key.encode())],
            "state": {}, "http_version": "1.1",
        }  # fmt: skip
        await it.apps.public(scope, receive, send)
        assert sent[0] == "http.response.start"
        await settled(it)
        assert len(files(tmp_path)) == 1


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({"against": 9}, 422, "no version 9"),
        ({"against": 0}, 422, ""),
        ({"against": 2, "since_s": 1, "limit": 0}, 422, ""),
        ({"against": 3}, 410, "retired"),
    ],
)
async def test_a_replay_that_cannot_be_is_refused(
    tmp_path: Path, body: dict[str, Any], status: int, word: str
) -> None:
    async with stage(tmp_path) as (_it, client):
        await client.delete(f"{MODEL}/versions/3")
        answer = await client.post(REPLAY, json=body)
        assert answer.status_code == status
        assert word in answer.json()["detail"]
