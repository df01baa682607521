"""What a link makes of answers to a batch: a good runner's, and those of one that cheats."""

from __future__ import annotations

import asyncio
import json
import os
import struct
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from plain_runner import PlainRunner, plain_runner

from appliance.records import Batching
from appliance.sandbox.frames import GuestFault, LinkLost, frame
from appliance.sandbox.link import Link
from appliance.sandbox.spec import Batch, Reply, Request

HELLO = frame({"type": "HELLO", "proto": 1, "role": "runner", "batch": True})
PREFIX = struct.Struct(">IQ")


def part(**changes: Any) -> dict[str, Any]:
    return {
        "type": "PART", "id": "b", "content_type": "text/plain", "members": [0, 1],
        "sizes": [2, 1], "rows": [1, 1], "group": 0, "calls": 2, "group_rows": 2,
        "compute_us": 5, **changes,
    }  # fmt: skip


class Guest:
    """A runner that says what it is told."""

    def __init__(self, link: Link, reader: Any, writer: Any) -> None:
        self.link, self.reader, self.writer = link, reader, writer
        self.found: dict[int, Any] = {}
        self.splits: list[str] = []

    async def asked(self) -> tuple[dict[str, Any], bytes]:
        size, body = PREFIX.unpack(await self.reader.readexactly(PREFIX.size))
        return json.loads(await self.reader.readexactly(size)), await self.reader.readexactly(body)

    def say(self, header: dict[str, Any], body: bytes = b"") -> None:
        self.writer.write(frame(header, len(body)) + body)

    def batch(self, ident: str = "b", *, timeout_ms: int = 30_000) -> asyncio.Task[None]:
        def settle(place: int, result: Any) -> None:
            assert place not in self.found
            self.found[place] = result

        requests = [
            Request(id=f"r{n}", content_type="text/plain", body=b"x" * n, timeout_ms=timeout_ms,
                    reply_bytes_max=100)
            for n in (3, 4)
        ]  # fmt: skip
        one = Batch(
            id=ident, requests=requests, batching=Batching(max_rows=9, inputs=("p",)),
            answered=settle, split=self.splits.append,
        )  # fmt: skip
        return asyncio.create_task(self.link.batch(one, settle))


@asynccontextmanager
async def guest() -> AsyncIterator[Guest]:
    link = Link()
    with tempfile.TemporaryDirectory() as name:
        await link.listen(Path(name) / "a.sock", uid=os.geteuid())
        reader, writer = await asyncio.open_unix_connection(f"{name}/a.sock")
        writer.write(HELLO)
        await asyncio.wait_for(link.hello(), 30)
        yield Guest(link, reader, writer)
        writer.close()
        await link.close()


async def test_what_is_sent_and_how_answers_find_their_calls() -> None:
    async with guest() as one:
        assert one.link.can_batch
        task = one.batch()
        header, body = await one.asked()
        assert body == b"xxxxxxx"
        assert header["sizes"] == [3, 4]
        assert (header["axis"], header["max_rows"], header["inputs"]) == (0, 9, ["p"])
        one.say({"type": "SPLIT", "id": "b", "kind": "whatever \x1b"})
        one.say(part(members=[1], sizes=[2], rows=[1]), b"yy")
        one.say({"type": "ERR", "id": "b", "member": 0, "kind": "raised", "detail": "no\x1b"})
        await asyncio.wait_for(task, 30)
        assert one.found[1].body == b"yy"
        assert isinstance(one.found[0], GuestFault)
        assert one.splits == ["raised"]


async def test_claims_are_kept_within_what_was_sent() -> None:
    async with guest() as one:
        task = one.batch()
        one.say(part(calls=10**9, group_rows=-5, rows=[10**9, -1], compute_us=1 << 60), b"abc")
        await asyncio.wait_for(task, 30)
        reply: Reply = one.found[0]
        assert reply.merged is not None
        assert (reply.merged.calls, reply.merged.rows, reply.merged.own_rows) == (2, 0, 0)
        assert reply.compute_us == 30_000_000


BAD: dict[str, tuple[dict[str, Any], bytes]] = {
    "another batch": (part(id="c"), b"abc"),
    "a call that is not": (part(members=[0, 2]), b"abc"),
    "a call twice": (part(members=[0, 0]), b"abc"),
    "no call": (part(members=[], sizes=[], rows=[]), b""),
    "sizes that do not add up": (part(sizes=[2, 2]), b"abc"),
    "a size below nothing": (part(sizes=[4, -1]), b"abc"),
    "more sizes than calls": (part(sizes=[1, 1, 1]), b"abc"),
    "fewer rows than calls": (part(rows=[1]), b"abc"),
    "over the cap": (part(sizes=[200, 1]), b"a" * 201),
    "a content type of control characters": (part(content_type="a\n"), b"abc"),
    "the answer to a single call": ({"type": "RES", "id": "b", "content_type": "a/b"}, b""),
    "an ERR for no call": ({"type": "ERR", "id": "b", "kind": "raised"}, b""),
    "an ERR with a body": ({"type": "ERR", "id": "b", "member": 0}, b"a"),
    "a SPLIT with a body": ({"type": "SPLIT", "id": "b"}, b"a"),
}


@pytest.mark.parametrize(("header", "body"), BAD.values(), ids=BAD)
async def test_anything_else_is_a_protocol_error(header: dict[str, Any], body: bytes) -> None:
    async with guest() as one:
        task = one.batch()
        await one.asked()
        one.say(header, body)
        with pytest.raises(LinkLost) as caught:
            await asyncio.wait_for(task, 30)
        assert caught.value.protocol
        assert one.found == {}


async def test_no_call_is_answered_twice() -> None:
    async with guest() as one:
        task = one.batch()
        one.say(part(members=[0], sizes=[1], rows=[1]), b"a")
        one.say(part(members=[0], sizes=[1], rows=[1]), b"b")
        with pytest.raises(LinkLost):
            await asyncio.wait_for(task, 30)
        assert one.found[0].body == b"a"


async def test_splits_do_not_move_the_deadline_for_ever() -> None:
    async with guest() as one:
        task = one.batch()
        for _ in range(3):
            one.say({"type": "SPLIT", "id": "b"})
        with pytest.raises(LinkLost):
            await asyncio.wait_for(task, 30)


async def test_two_may_be_open_and_the_oldest_is_answered_first() -> None:
    async with guest() as one:
        first, second = one.batch("b"), one.batch("c")
        await one.asked()
        await one.asked()
        one.say(part(), b"abc")
        await asyncio.wait_for(first, 30)
        assert not second.done()
        one.found.clear()
        one.say(part(id="c"), b"def")
        await asyncio.wait_for(second, 30)
        one.found.clear()
        third, fourth = one.batch("d"), one.batch("e")
        one.say(part(id="e"), b"abc")
        for task in (third, fourth):
            with pytest.raises(LinkLost):
                await asyncio.wait_for(task, 30)


async def test_each_frame_of_an_answer_has_its_time_and_no_more() -> None:
    async with guest() as one:
        task = one.batch(timeout_ms=100)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(task, 30)
        assert one.found == {}


async def test_a_lost_link_ends_all_that_are_open() -> None:
    async with guest() as one:
        tasks = [one.batch("b"), one.batch("c")]
        await one.asked()
        one.writer.close()
        for task in tasks:
            with pytest.raises(LinkLost) as caught:
                await asyncio.wait_for(task, 30)
            assert not caught.value.protocol


# --- the real runner ------------------------------------------------------------------------------


def text(reply: Any) -> Any:
    return json.loads(reply.body) if isinstance(reply, Reply) else (reply.kind, reply.detail)


SUM = b"""
calls = []
class Model:
    def __init__(self, path): pass
    def predict(self, inputs):
        if inputs == "calls":
            return calls
        calls.append(inputs)
        if "bad" in repr(inputs):
            raise ValueError("bad")
        return [sum(row) for row in inputs]
"""


async def asked(
    model: bytes, bodies: list[Any], plan: Batching | None = None, *, cap: int = 1 << 20
) -> tuple[list[Any], list[Any], PlainRunner]:
    async with plain_runner(model) as runner:
        requests = [runner.request(json.dumps(body).encode(), cap=cap) for body in bodies]
        found = await runner.batch(requests, plan)
        calls = text(await runner.one(runner.request(b'"calls"')))
        return found, calls, runner


async def test_calls_of_one_form_are_one_call_of_the_model() -> None:
    bodies = [[[1, 2]], [[3, 4], [5, 6]], [[0.5, 1]], [[7]], [[8, 9]]]
    found, calls, _ = await asked(SUM, bodies)
    assert [text(reply) for reply in found] == [[3], [7, 11], [1.5], [7], [17]]
    assert calls == [[[1, 2], [3, 4], [5, 6], [8, 9]], [[0.5, 1]], [[7]]]
    assert found[1].merged is not None
    merged = found[1].merged
    assert (merged.calls, merged.rows, merged.own_rows) == (3, 4, 2)


async def test_rows_are_the_cap_and_a_larger_call_goes_alone_unsplit() -> None:
    bodies = [[[1]], [[2]], [[n] for n in range(5)], [[3]], [[4]]]
    found, calls, _ = await asked(SUM, bodies, Batching(max_rows=3))
    assert [len(call) for call in calls] == [2, 5, 2]
    assert text(found[2]) == [0, 1, 2, 3, 4]


async def test_one_that_raises_harms_no_neighbour() -> None:
    bodies = [[["a"]], [["bad"]], [["b"]]]
    model = SUM.replace(b"sum(row)", b"row[0] * 2")
    found, _, runner = await asked(model, bodies)
    assert [text(one) for one in found] == [["aa"], ("raised", "ValueError: bad"), ["bb"]]
    assert runner.splits == ["raised"]


async def test_rows_that_do_not_come_back_are_asked_for_one_by_one() -> None:
    model = SUM.replace(b"return [sum(row) for row in inputs]", b"return [len(inputs)]")
    found, calls, runner = await asked(model, [[[1]], [[2]], [[3]]])
    assert [text(one) for one in found] == [[1], [1], [1]]
    assert [len(call) for call in calls] == [3, 1, 1, 1]
    assert runner.splits == ["rows"]
    assert all(one.merged.calls == 1 for one in found)


async def test_a_model_that_is_never_joined_well_is_joined_less() -> None:
    model = SUM.replace(b"return [sum(row) for row in inputs]", b"return 1")
    async with plain_runner(model) as runner:
        for _ in range(20):
            await runner.batch([runner.request(b"[[1]]"), runner.request(b"[[2]]")])
        assert 3 <= len(runner.splits) < 8


async def test_an_answer_over_its_cap_is_that_callers_alone_and_the_rest_travels_in_parts() -> None:
    model = SUM.replace(b"sum(row)", b"'x' * row[0]")
    found, _, _ = await asked(model, [[[40]], [[300]], [[50]], [[60]]], cap=100)
    assert [text(one) for one in (found[0], found[2], found[3])] == [
        ["x" * 40], ["x" * 50], ["x" * 60]
    ]  # fmt: skip
    assert found[1].kind == "large"


async def test_members_that_hold_no_rows_have_to_be_equal() -> None:
    model = SUM.replace(
        b"return [sum(row) for row in inputs]",
        b"return {'out': [x * inputs['by'] for x in inputs['rows']], 'by': inputs['by']}",
    )
    plan = Batching(inputs=("rows",), outputs=("out",))
    bodies = [{"rows": [1], "by": 2}, {"rows": [2, 3], "by": 2}, {"rows": [4], "by": 3}]
    found, calls, _ = await asked(model, bodies, plan)
    assert [text(one) for one in found] == [
        {"out": [2], "by": 2}, {"out": [4, 6], "by": 2}, {"out": [12], "by": 3}
    ]  # fmt: skip
    assert calls == [{"rows": [1, 2, 3], "by": 2}, {"rows": [4], "by": 3}]


async def test_rows_may_be_the_second_level() -> None:
    model = SUM.replace(
        b"return [sum(row) for row in inputs]", b"return [[x * 2 for x in row] for row in inputs]"
    )
    found, calls, _ = await asked(model, [[[1], [2]], [[3, 4], [5, 6]]], Batching(axis=1))
    assert calls == [[[1, 3, 4], [2, 5, 6]]]
    assert [text(one) for one in found] == [[[2], [4]], [[6, 8], [10, 12]]]
