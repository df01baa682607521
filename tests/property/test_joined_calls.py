"""Joined calls: whatever is joined, each caller gets what its call alone would have got.

The runner is the real one, in a process of its own; each example is a frame of many calls.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_runner import PlainRunner, plain_runner

from appliance.records import Batching
from appliance.sandbox.frames import GuestFault
from appliance.sandbox.spec import Reply

# What a model may do with rows: answer row by row in several shapes, refuse some, and count wrong.
MODEL = b"""
import numpy

class Model:
    def __init__(self, path):
        pass
    def predict(self, inputs):
        if isinstance(inputs, dict):
            mode = inputs.get("mode", "columns")
            columns = {k: v for k, v in inputs.items() if isinstance(v, list)}
            if mode == "odd":
                return {"n": sum(len(v) for v in columns.values())}
            if any("bad" in json for json in map(repr, columns.values())):
                raise ValueError("a bad column")
            first = next(iter(columns.values()))
            return {"first": first, "texts": [repr(row) for row in zip(*columns.values())]}
        if not isinstance(inputs, list):
            return {"alone": inputs}
        if inputs and isinstance(inputs[0], dict):
            for row in inputs:
                row.pop("b", None)  # what a model changes in place is nobody else's either
                if row.get("a") == "bad":
                    raise ValueError(f"a bad row among {len(inputs)}")
            return [sorted(row.items()) for row in inputs]
        table = numpy.asarray(inputs)
        if table.dtype.kind in "OUS":
            return [str(row) for row in inputs]
        if (table == 13.0).any():
            raise ValueError("unlucky")
        if table.ndim > 1 and table.shape[1] == 3:
            return inputs[1:]  # one row too few
        return numpy.concatenate([table, table * 2], axis=-1) if table.ndim > 1 else table + 1
"""

INTS, FLOATS = [*range(-9, 10)] * 3 + [13], [0.5, 1.0, -2.25, 3.0] * 8 + [13.0]
MIXED = [*INTS, *FLOATS, 2**70, True, False, None, "", "text"]
BROKEN = [b"{", b"NaN", b"", b"\xff"]


def rows(chance: Random, cells: list[Any]) -> list[Any]:
    """Rows of scalars, of one width (3 of them are answered wrong), or of several."""
    count, width = chance.choice((1, 1, 1, 2, 3, 4)), chance.choice((0, 1, 1, 2, 2, 4, 4, 3))
    if not width:
        return [chance.choice(cells) for _ in range(count - 1)]
    ragged = chance.random() < 0.03
    return [
        [chance.choice(cells) for _ in range(chance.randint(1, 3) if ragged else width)]
        for _ in range(count)
    ]


def table(chance: Random) -> list[Any]:
    cells = chance.choice((INTS, FLOATS, MIXED))
    names = chance.choice(("a", "ab", "ba", "b"))
    bad = "bad" if chance.random() < 0.05 else "good"
    row_of = {"a": lambda: chance.choice([*cells, bad]), "b": lambda: chance.choice(MIXED)}
    return [{name: row_of[name]() for name in names} for _ in range(chance.randint(1, 3))]


def columns(chance: Random) -> dict[str, Any]:
    count = chance.randint(0, 3)
    words = ["u", "v", "bad" if chance.random() < 0.05 else "w"]
    found: dict[str, Any] = {
        name: [chance.choice(chance.choice((INTS, words))) for _ in range(count)]
        for name in chance.choice(("p", "q", "pq", "pq", "qp", "rp"))
    }
    mode = chance.choice(("", "", "columns", "other", "odd" if chance.random() < 0.2 else ""))
    return {**found, "mode": mode} if mode else found


def body(chance: Random) -> bytes:
    """The body of a call: most of them one of few forms, some broken."""
    kind = chance.random()
    if kind < 0.03:
        return chance.choice(BROKEN)
    if kind < 0.08:
        return json.dumps(chance.choice(MIXED)).encode()
    if kind < 0.2:
        return json.dumps(table(chance)).encode()
    if kind < 0.4:
        return json.dumps(columns(chance)).encode()
    cells = INTS if kind < 0.6 else FLOATS if kind < 0.9 else MIXED
    return json.dumps(rows(chance, cells)).encode()


PLANS = st.sampled_from(
    [
        Batching(),
        Batching(max_rows=2),
        Batching(max_rows=7, inputs=("p", "q"), outputs=("first", "texts")),
    ]
)


def told(result: Reply | GuestFault) -> tuple[str, Any]:
    """What a caller sees, but for times; the numbers as numbers."""
    if isinstance(result, GuestFault):
        return result.kind, result.detail
    if result.content_type == "application/json":
        return result.content_type, json.loads(result.body)
    return result.content_type, result.body


@pytest.fixture(scope="module")
def loop() -> AsyncIterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


def test_joined_answers_are_those_of_single_calls_and_reach_their_callers(
    loop: asyncio.AbstractEventLoop,
) -> None:
    seen: Counter[str] = Counter()
    alone: dict[bytes, tuple[str, Any]] = {}

    async def check(runner: PlainRunner, bodies: list[bytes], plan: Batching) -> None:
        for text in bodies:
            if text not in alone:
                alone[text] = told(await runner.one(runner.request(text)))
        together = await runner.batch([runner.request(text) for text in bodies], plan)
        for text, result in zip(bodies, together, strict=True):
            assert told(result) == alone[text], text
        seen["cases"] += len(bodies)
        seen["faults"] += sum(isinstance(result, GuestFault) for result in together)
        seen["joined"] += sum(
            isinstance(result, Reply) and result.merged is not None and result.merged.calls > 1
            for result in together
        )

    opened = plain_runner(MODEL)
    runner = loop.run_until_complete(opened.__aenter__())
    try:

        @settings(max_examples=190, deadline=None)
        @given(st.integers(0, 2**64), st.integers(1, 150), PLANS)
        def check_all(seed: int, size: int, plan: Batching) -> None:
            chance = Random(seed)
            bodies = [body(chance) for _ in range(size)]
            loop.run_until_complete(check(runner, bodies, plan))

        while seen["cases"] < 10_000:
            check_all()

        assert seen["joined"] > 500, seen
        assert seen["faults"] > 100, seen
        assert runner.splits, "no joined call was split"

    finally:
        loop.run_until_complete(opened.__aexit__(None, None, None))
