"""Batches: every row of a table gets one result, in order, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import duckdb
import pytest
from inside import EchoSandbox, Inside, inside

from appliance import config
from appliance.records import JOB_ENDS, CallLimits

BATCHES = "/api/v1/batches/acme"
MODEL = "/api/v1/models/acme/echo"
MANY = {"instances_max": 8, "instances_per_version_max": 4}
RECORDS = {"form": "records", "into": "ndjson", "carry": "false"}


@asynccontextmanager
async def stage(folder: Path, **declared: Any) -> AsyncIterator[tuple[Inside, Any]]:
    async with inside(folder, sandbox=MANY) as it:
        await it.tenant("acme")
        await it.version("acme", "echo", **declared)
        async with it.client(await it.key("acme")) as client:
            yield it, client


def table(count: int, **odd: str) -> bytes:
    """A CSV table; ``odd`` is ``r<row>=text`` for rows that are not like the others."""
    lines = [f"{i},{odd.get(f'r{i}', 't')}" for i in range(count)]
    return "\n".join(["i,t", *lines]).encode() + b"\n"


async def submit(client: Any, data: bytes, path: str = MODEL, **query: Any) -> dict[str, Any]:
    answer = await client.post(
        f"{path}/batch",
        content=data,
        params={**RECORDS, **query},
        headers={"Content-Type": "text/csv"},
    )
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == answer.json()["urls"]["get"]
    return dict(answer.json())


async def ended(client: Any, batch: dict[str, Any]) -> dict[str, Any]:
    for _ in range(20):
        batch = (await client.get(batch["urls"]["get"], params={"wait_s": 5})).json()
        if batch["status"] in JOB_ENDS:
            return batch
    raise AssertionError(batch)


async def output(client: Any, batch: dict[str, Any]) -> bytes:
    answer = await client.get(f"{BATCHES}/{batch['id']}/output")
    assert answer.status_code == 200, answer.text
    return bytes(answer.content)


async def intents(client: Any, batch: dict[str, Any]) -> list[str]:
    """Ids of the calls made for a batch, in order."""
    found, after = [], 0
    while True:
        page = (await client.get("/api/v1/audit", params={"after": after, "limit": 500})).json()
        if not page["entries"]:
            return [call for call in found if call.startswith(batch["id"])]
        after = page["entries"][-1]["seq"]
        found += [e["event"]["call_id"] for e in page["entries"] if e["kind"] == "call.intent"]


async def test_every_row_gets_one_result_in_order_and_each_chunk_is_a_recorded_call(
    tmp_path: Path,
) -> None:
    async with stage(tmp_path) as (_it, client):
        batch = await submit(client, table(2500), chunk_rows=100)
        assert (batch["rows"], batch["source"], batch["version"]) == (2500, "csv", 1)
        assert batch["columns"][0] == {"name": "i", "type": "BIGINT"}
        batch = await ended(client, batch)
        assert (batch["status"], batch["rows_done"], batch["rows_failed"]) == ("succeeded", 2500, 0)
        lines = [json.loads(line) for line in (await output(client, batch)).splitlines()]
        assert lines == [{"i": i, "t": "t"} for i in range(2500)]
        calls = await intents(client, batch)
        assert sorted(calls) == sorted(f"{batch['id']}.{row}" for row in range(0, 2500, 100))
        listed = (await client.get(BATCHES)).json()["items"]
        assert [one["id"] for one in listed] == [batch["id"]]


@pytest.mark.parametrize("into", ["parquet", "csv", "ndjson"])
async def test_the_columns_of_the_table_are_carried_with_their_types(
    tmp_path: Path, into: str
) -> None:
    path = tmp_path / "in.parquet"
    query = "SELECT i, (i / 8)::DECIMAL(30,3) AS d, DATE '2020-01-01' + i::INT AS day"
    duckdb.connect().execute(f"COPY ({query} FROM range(500) t(i)) TO '{path}'")
    async with stage(tmp_path) as (_it, client):
        query = {"form": "records", "into": into, "chunk_rows": 90}
        answer = await client.post(
            f"{MODEL}/versions/1/batch", content=path.read_bytes(), params=query
        )
        assert answer.status_code == 202, answer.text
        batch = await ended(client, answer.json())
        data = await output(client, batch)
    out = tmp_path / f"out.{into}"
    out.write_bytes(data)
    db = duckdb.connect()
    rows = db.execute(f"SELECT i, d::VARCHAR, day::VARCHAR, i_result FROM '{out}'").fetchall()
    first = db.execute("SELECT (7 / 8)::DECIMAL(30,3)::VARCHAR").fetchone()[0]
    assert rows[7] == (7, first if into == "parquet" else rows[7][1], "2020-01-08", 7)
    assert [row[0] for row in rows] == [row[3] for row in rows] == list(range(500))
    if into == "parquet":
        types = {row[0]: row[1] for row in db.execute(f"DESCRIBE FROM '{out}'").fetchall()}
        assert (types["d"], types["day"]) == ("DECIMAL(30,3)", "DATE")


async def test_a_restart_goes_on_with_the_rows_that_have_no_result(tmp_path: Path) -> None:
    mark = b'"held"'
    EchoSandbox.HELD.add(mark)
    try:
        async with stage(tmp_path) as (_it, client):
            batch = await submit(client, table(1000, r305="held"), chunk_rows=50)
            for _ in range(600):
                now = (await client.get(batch["urls"]["get"])).json()
                if now["rows_done"] == 950:
                    break
                await asyncio.sleep(0.05)
            assert (now["status"], now["rows_done"]) == ("processing", 950)
            before = await intents(client, batch)
    finally:
        EchoSandbox.HELD.discard(mark)
    async with inside(tmp_path, initialise=False, sandbox=MANY) as it:
        await it.node.unseal(key_file=tmp_path / "unseal.key")
        async with it.client(admin=True) as client:
            batch = await ended(client, batch)
            assert (batch["status"], batch["rows_done"]) == ("succeeded", 1000)
            lines = [json.loads(line) for line in (await output(client, batch)).splitlines()]
            assert [line["i"] for line in lines] == list(range(1000))
            again = (await intents(client, batch))[len(before) :]
            assert again == [f"{batch['id']}.300"]


async def test_a_row_that_fails_ends_the_batch_and_is_named(tmp_path: Path) -> None:
    async with stage(tmp_path) as (_it, client):
        batch = await ended(client, await submit(client, table(300, r120="poison"), chunk_rows=100))
        assert batch["status"] == "failed"
        assert batch["error"]["code"] == "model-raised"
        assert "Rows 100 to 199" in batch["error"]["detail"]
        refused = await client.get(f"{BATCHES}/{batch['id']}/output")
        assert (refused.status_code, refused.json()["code"]) == (409, "job-unfinished")


async def test_with_null_only_the_failing_rows_have_an_error_instead(tmp_path: Path) -> None:
    async with stage(tmp_path) as (_it, client):
        data = table(300, r120="poison", r299="poison")
        batch = await ended(client, await submit(client, data, chunk_rows=100, on_error="null"))
        assert (batch["status"], batch["rows_failed"]) == ("succeeded", 2)
        lines = [json.loads(line) for line in (await output(client, batch)).splitlines()]
        wrong = {at for at, line in enumerate(lines) if line["error"] is not None}
        assert (len(lines), wrong) == (300, {120, 299})
        assert lines[120] == {"i": None, "t": None, "error": "model-raised: ValueError: poison"}
        assert lines[121] == {"i": 121, "t": "t", "error": None}


@pytest.mark.parametrize("on_error", ["fail", "null"])
async def test_an_answer_with_another_number_of_results_is_a_problem_that_names_the_rows(
    tmp_path: Path, on_error: str
) -> None:
    async with stage(tmp_path) as (_it, client):
        data = table(300, r120="short")
        batch = await ended(client, await submit(client, data, chunk_rows=100, on_error=on_error))
        assert (batch["status"], batch["error"]["code"]) == ("failed", "results-differ")
        assert batch["error"]["detail"] == (
            "Rows 100 to 199: The model answered 99 results to 100 rows."
        )


async def test_chunks_become_smaller_where_a_limit_asks_for_it(tmp_path: Path) -> None:
    limits = CallLimits(body_bytes_max=2000, reply_bytes_max=2000)
    async with stage(tmp_path, limits=limits) as (_it, client):
        batch = await ended(client, await submit(client, table(1000), chunk_rows=1000))
        assert (batch["status"], batch["error"]) == ("succeeded", None)
        lines = (await output(client, batch)).splitlines()
        assert [json.loads(line)["i"] for line in lines] == list(range(1000))
        assert len(await intents(client, batch)) >= 10


async def test_a_cancelled_batch_ends_and_lets_its_sandboxes_go(tmp_path: Path) -> None:
    mark = b'"held"'
    EchoSandbox.HELD.add(mark)
    try:
        async with stage(tmp_path) as (it, client):
            batch = await submit(client, table(100, r5="held"), chunk_rows=10)
            for _ in range(600):
                if await intents(client, batch):
                    break
                await asyncio.sleep(0.05)
            answer = await client.post(f"{BATCHES}/{batch['id']}/cancel")
            assert answer.json()["status"] == "canceled"
            assert it.node.services.batches._calls == 0
            again = await client.post(f"{BATCHES}/{batch['id']}/cancel")
            assert again.json()["status"] == "canceled"
            assert (await client.post(f"{MODEL}/invoke", content=b"1")).status_code == 200
    finally:
        EchoSandbox.HELD.discard(mark)


async def test_what_is_no_table_is_refused_and_nothing_of_it_kept(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client):
        known = it.store.registry.snapshot.blob_ids()
        for data, media, code in (
            (b"a,b\n1\n", "text/csv", "input-invalid"),
            (b"a,b\n", "text/csv", "input-invalid"),
            (b"PAR1 and no more", "", "input-invalid"),
            (b"what is this", "", "unsupported-media"),
            (b"\x1f\x8b\x08", "text/csv", "input-invalid"),
        ):
            answer = await client.post(
                f"{MODEL}/batch", content=data, headers={"Content-Type": media} if media else {}
            )
            assert answer.json()["code"] == code, answer.text
        for query in ({"into": "xml"}, {"form": "x"}, {"chunk_rows": "0"}, {"format": "xls"}):
            answer = await client.post(f"{MODEL}/batch", content=b"a\n1\n", params=query)
            assert answer.status_code == 422, answer.text
        assert (await client.get(BATCHES)).json()["items"] == []
        stored = {path.name for path in (tmp_path / "data/blobs").glob("*/??/*")}
        assert stored <= known


async def test_an_ended_batch_is_forgotten_with_its_tables(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client):
        batches = it.node.services.batches
        batch = await ended(client, await submit(client, table(50), chunk_rows=10))
        stored = {path.name for path in (tmp_path / "data/blobs").glob("*/??/*")}
        assert len(stored) >= 6
        batches._settings = config.replace(config.Settings(), "jobs", kept_max=0).jobs
        await batches.sweep()
        assert (await client.get(f"{BATCHES}/{batch['id']}")).status_code == 404
        left = {path.name for path in (tmp_path / "data/blobs").glob("*/??/*")}
        assert left == it.store.registry.snapshot.blob_ids() & left
        assert len(stored - left) == 6


async def test_a_caller_sees_its_own_batches_only(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client):
        mine = await submit(client, table(10))
        async with it.client(await it.key("acme", "caller")) as caller:
            own = await submit(caller, table(10, r3="poison"), on_error="null")
            assert (await caller.get(f"{BATCHES}/{mine['id']}")).status_code == 404
            assert [b["id"] for b in (await caller.get(BATCHES)).json()["items"]] == [own["id"]]
            own = await ended(caller, own)
            lines = (await output(caller, own)).splitlines()
            assert json.loads(lines[3])["error"] == "model-raised: The model raised an exception"
        await ended(client, mine)


async def test_a_batch_leaves_room_for_jobs(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client):
        it.node.services.jobs._settings = config.replace(
            config.Settings(), "jobs", running_max=2
        ).jobs
        batch = await submit(client, table(400), chunk_rows=5)
        asked = {"Prefer": "respond-async", "Content-Type": "application/json"}
        job = (await client.post(f"{MODEL}/invoke", content=b"1", headers=asked)).json()
        for _ in range(20):
            job = (await client.get(job["urls"]["get"], params={"wait_s": 5})).json()
            if job["status"] in JOB_ENDS:
                break
        assert job["status"] == "succeeded"
        assert (await ended(client, batch))["status"] == "succeeded"
