"""P28, P31: callers who send slowly, or take no answer, fill no memory but their own share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from inside import Inside, inside

from appliance.errors import CapacityExhausted
from appliance.room import FREE_BYTES, Hold, Room

MIB = 1024 * 1024


class Caller:
    """One request as ASGI, sent and taken in pieces."""

    def __init__(self, it: Inside, key: str, path: str, size: int) -> None:
        self.status = 0
        self.answered = 0
        self.takes = asyncio.Event()
        self._pieces: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        headers = [
            (b"host", b"a"),
            (b"authorization", f"Bearer {key}".encode()),
            (b"content-type", b"text/plain"),
            (b"content-length", str(size).encode()),
        ]
        scope = {
            "type": "http", "http_version": "1.1", "method": "POST", "path": path,
            "raw_path": path.encode(), "query_string": b"", "headers": headers, "state": {},
            "root_path": "", "extensions": {},
        }  # fmt: skip
        self.task = asyncio.ensure_future(it.apps.public(scope, self._pieces.get, self._send))

    def send(self, size: int, *, more: bool) -> None:
        self._pieces.put_nowait({"type": "http.request", "body": b"x" * size, "more_body": more})

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif self.status == 200:
            self.answered += len(message["body"])
            await self.takes.wait()


@pytest.fixture
async def it(tmp_path: Path) -> AsyncIterator[Inside]:
    async with inside(tmp_path) as made:
        made.node.room.bytes_max = 16 * MIB
        for tenant in ("slow", "other"):
            await made.tenant(tenant)
            await made.version(tenant, "echo")
        yield made


async def settled(callers: list[Caller]) -> list[int]:
    """How many were answered with which status, once no more comes."""
    for _ in range(200):
        await asyncio.sleep(0.01)
        if all(one.status or one.task.done() for one in callers):
            break
    return [one.status for one in callers]


async def ended(callers: list[Caller]) -> None:
    for one in callers:
        one.takes.set()
        one.task.cancel()
    await asyncio.gather(*(one.task for one in callers), return_exceptions=True)


async def test_bodies_that_never_end_leave_room_for_other_tenants(it: Inside) -> None:
    slow, other = await it.key("slow"), await it.key("other")
    path = "/api/v1/models/{}/echo/invoke"
    callers = [Caller(it, slow, path.format("slow"), 4 * MIB) for _ in range(12)]
    for one in callers:
        one.send(2 * MIB, more=True)
    await asyncio.sleep(0.3)
    assert [one.status for one in callers].count(503) >= 8
    assert it.node.room.taken <= 8 * MIB

    small = Caller(it, slow, path.format("slow"), 1000)
    small.send(1000, more=False)
    small.takes.set()
    large = Caller(it, other, path.format("other"), 2 * MIB)
    large.send(2 * MIB, more=False)
    large.takes.set()
    assert await settled([small, large]) == [200, 200]
    await ended([*callers, small, large])
    assert it.node.room.taken == 0


async def test_answers_nobody_takes_leave_room_for_other_tenants(it: Inside) -> None:
    slow, other = await it.key("slow"), await it.key("other")
    path = "/api/v1/models/{}/echo/invoke"
    callers = []
    for _ in range(12):
        callers.append(Caller(it, slow, path.format("slow"), MIB))
        callers[-1].send(MIB, more=False)
        await settled(callers)
    statuses = [one.status for one in callers]
    assert statuses[0] == 200
    assert statuses[-1] == 503
    assert it.node.room.taken <= 8 * MIB

    large = Caller(it, other, path.format("other"), 2 * MIB)
    large.send(2 * MIB, more=False)
    large.takes.set()
    assert await settled([large]) == [200]
    await ended([*callers, large])
    assert it.node.room.taken == 0


def test_a_hold_gives_back_exactly_what_it_took() -> None:
    room = Room(4 * MIB)
    holds = [Hold(room, "a"), Hold(room, "a"), Hold(room, "b")]
    for hold in holds:
        for _ in range(100):
            hold.add(8 * 1024)
    assert room.taken == 3 * (800 * 1024 - FREE_BYTES)
    with pytest.raises(CapacityExhausted):
        holds[0].add(MIB)
    with pytest.raises(CapacityExhausted):
        holds[2].add(4 * MIB)
    for hold in (*holds, *holds):
        hold.give_back()
    assert room.taken == 0
    holds[2].add(2 * MIB)
    holds[2].give_back()
    assert room.taken == 0
