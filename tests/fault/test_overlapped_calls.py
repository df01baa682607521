"""Calls of versions whose audit may overlap, on a disk that is slow, or full."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from inside import Inside, inside
from storing import ACTOR, Folder, intent, outcome

from appliance import config
from appliance.errors import DiskFull
from appliance.events import CallOutcome
from appliance.records import Batching, Entry
from appliance.store.appended import LATER
from appliance.store.verify import State

ECHO = "/api/v1/models/acme/echo/invoke"
SMALL = config.Store(free_bytes_min=0, segment_bytes=65536)


@pytest.fixture
async def it(tmp_path: Path) -> AsyncIterator[Inside]:
    async with inside(tmp_path) as made:
        await made.tenant("acme")
        yield made


async def post(it: Inside, secret: str, body: bytes) -> Any:
    async with it.client(secret) as client:
        return await client.post(ECHO, content=body, headers={"content-type": "text/plain"})


async def outcomes(it: Inside) -> list[dict[str, Any]]:
    found = await asyncio.to_thread(it.store.ledger.read, 0, 10_000)
    return [entry.event for entry in found if entry.kind == "call.outcome"]


class Stalled:
    """A ledger whose disk does not answer until told."""

    def __init__(self, it: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, put = threading.Event(), it.store.ledger._segments._put

        def slow(data: bytes, at: State, segment: int) -> None:
            assert self.go.wait(60)
            put(data, at, segment)

        monkeypatch.setattr(it.store.ledger._segments, "_put", slow)


def calls_in(it: Inside) -> int:
    return sum(box.calls for box in it.node.services.pool().list())


@pytest.mark.parametrize("batch", [None, Batching()])
async def test_an_overlapped_call_runs_before_its_intent_is_durable_and_replies_after_both(
    it: Inside, monkeypatch: pytest.MonkeyPatch, batch: Batching | None
) -> None:
    await it.version("acme", "echo", audit="overlap", batch=batch)
    secret = await it.key("acme")
    await post(it, secret, b"first")
    disk = Stalled(it, monkeypatch)
    call = asyncio.create_task(post(it, secret, b"second"))
    async with asyncio.timeout(30):
        while calls_in(it) != 2:
            await asyncio.sleep(0.005)
    assert not call.done()
    assert len(await outcomes(it)) == 1
    disk.go.set()
    reply = await call
    assert reply.content == b"second"
    found = await asyncio.to_thread(it.store.ledger.read, 0, 10_000)
    intent, outcome = [entry for entry in found if entry.kind.startswith("call.")][2:]
    assert outcome.event["intent_seq"] == intent.seq
    assert outcome.event["call_id"] == intent.event["call_id"]
    assert int(reply.headers["audit-seq"]) == outcome.seq
    await it.store.queries.wait(outcome.seq, 30)
    assert await it.store.queries.open_intents(it.store.ledger.boot) == []


async def test_a_strict_call_does_not_run_before_its_intent_is_durable(
    it: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    await it.version("acme", "echo")
    secret = await it.key("acme")
    await post(it, secret, b"first")
    disk = Stalled(it, monkeypatch)
    call = asyncio.create_task(post(it, secret, b"second"))
    await asyncio.sleep(0.2)
    assert calls_in(it) == 1
    disk.go.set()
    assert (await call).content == b"second"


async def test_an_overlapped_call_whose_intent_is_lost_is_not_answered(
    it: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    await it.version("acme", "echo", audit="overlap")
    secret = await it.key("acme")
    await post(it, secret, b"first")

    def full(data: bytes, at: State, segment: int) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr(it.store.ledger._segments, "_put", full)
    reply = await post(it, secret, b"second")
    assert reply.status_code in (503, 507), reply.text
    assert b"second" not in reply.content


def late(number: int) -> CallOutcome:
    of = Entry(seq=LATER, time_ns=0, monotonic_ns=0, boot="", kind="", tenant_id="", actor="",
               object="", event=msgspec.to_builtins(intent(number)), leaf="")  # fmt: skip
    return outcome(of)


async def test_what_comes_after_another_has_its_number(tmp_path: Path) -> None:
    folder = Folder(tmp_path).make()
    async with folder.open(SMALL) as store:
        begun = [
            store.ledger.begin(intent(n), tenant_id="ten_x", actor=ACTOR, object="mod_x")
            for n in range(50)
        ]
        seqs = await asyncio.gather(
            *(store.ledger.record(late(n), actor=ACTOR, after=begun[n]) for n in range(50))
        )
        read = {entry.seq: entry.event for entry in store.ledger.read(0, 1000)}
        for seq in seqs:
            assert read[read[seq]["intent_seq"]]["call_id"] == read[seq]["call_id"]
    assert folder.verify()[0] == 0


async def test_nothing_is_recorded_after_what_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Folder(tmp_path).make().open(SMALL) as store:
        put = store.ledger._segments._put

        def full(data: bytes, at: State, segment: int) -> None:
            monkeypatch.setattr(store.ledger._segments, "_put", put)
            raise OSError(28, "no space left")

        monkeypatch.setattr(store.ledger._segments, "_put", full)
        begun = store.ledger.begin(intent(1), actor=ACTOR)
        while not begun.problem:
            await asyncio.sleep(0.001)
        with pytest.raises(DiskFull):
            await store.ledger.record(late(1), actor=ACTOR, after=begun)
        await store.ledger.record(intent(2), actor=ACTOR)
        assert [entry.event["call_id"] for entry in store.ledger.read(0, 10)] == ["call_2"]
