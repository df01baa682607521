"""Batches whose table is a file of the machine, and whose output becomes one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from inside import EchoSandbox, Inside, inside

from appliance import config
from appliance.records import JOB_ENDS

BATCHES = "/api/v1/batches/acme"
MODEL = "/api/v1/models/acme/echo"
MANY = {"instances_max": 8, "instances_per_version_max": 4}
QUERY = {"form": "records", "into": "ndjson", "carry": "false", "chunk_rows": "50"}
HELD = b'"held"'


def declared(folder: Path) -> dict[str, config.Folder]:
    for name in ("lake", "out", "theirs"):
        (folder / name).mkdir(exist_ok=True)
    return {
        "lake": config.Folder(path=str(folder / "lake"), tenants=("acme",)),
        "out": config.Folder(path=str(folder / "out"), tenants=("acme",), writable=True),
        "theirs": config.Folder(path=str(folder / "theirs"), tenants=("globex",), writable=True),
    }


@asynccontextmanager
async def stage(folder: Path) -> AsyncIterator[tuple[Inside, Any]]:
    async with inside(folder, sandbox=MANY, folders=declared(folder)) as it:
        await it.tenant("acme")
        await it.version("acme", "echo")
        async with it.client(await it.key("acme")) as client:
            yield it, client


def table(count: int, **odd: str) -> bytes:
    lines = [f"{i},{odd.get(f'r{i}', 't')}" for i in range(count)]
    return "\n".join(["i,t", *lines]).encode() + b"\n"


async def submit(client: Any, **query: str) -> Any:
    return await client.post(f"{MODEL}/batch", params={**QUERY, **query})


async def ended(client: Any, batch: dict[str, Any]) -> dict[str, Any]:
    for _ in range(20):
        batch = (await client.get(batch["urls"]["get"], params={"wait_s": 5})).json()
        if batch["status"] in JOB_ENDS:
            return batch
    raise AssertionError(batch)


async def test_a_table_is_taken_from_a_folder_and_its_output_put_into_one(tmp_path: Path) -> None:
    async with stage(tmp_path) as (_it, client):
        (tmp_path / "lake/day").mkdir()
        (tmp_path / "lake/day/rows.csv").write_bytes(table(120))
        (tmp_path / "out/scored.ndjson").write_bytes(b"of the night before")
        asked = {"from": "lake/day/rows.csv", "to": "out/scored.ndjson"}
        answer = await submit(client, **asked)
        assert answer.status_code == 202, answer.text
        batch = await ended(client, answer.json())
        assert (batch["status"], batch["rows"], batch["source"]) == ("succeeded", 120, "csv")
        assert (batch["taken_from"], batch["put_into"]) == (asked["from"], asked["to"])
        written = (tmp_path / "out/scored.ndjson").read_bytes()
        assert [json.loads(line)["i"] for line in written.splitlines()] == list(range(120))
        assert (await client.get(batch["urls"]["output"])).content == written
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["scored.ndjson"]
        listed = (await client.get("/api/v1/tenants/acme/folders")).json()["items"]
        assert listed == [{"name": "lake", "writable": False}, {"name": "out", "writable": True}]


async def test_what_cannot_be_used_is_refused_before_anything_is_kept(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client):
        lake = tmp_path / "lake"
        (lake / "rows.csv").write_bytes(table(9))
        (tmp_path / "theirs/rows.csv").write_bytes(table(9))
        (lake / "link.csv").symlink_to(tmp_path / "theirs/rows.csv")
        for query in (
            {"from": "theirs/rows.csv"}, {"from": "none/rows.csv"}, {"from": "lake/none.csv"},
            {"from": "lake/../theirs/rows.csv"}, {"from": "lake/link.csv"},
            {"from": "lake/rows.csv", "to": "lake/out.ndjson"},
            {"from": "lake/rows.csv", "to": "theirs/out.ndjson"},
            {"from": "lake/rows.csv", "to": "out/no/such/folder.ndjson"},
        ):  # fmt: skip
            answer = await submit(client, **query)
            assert (answer.status_code, answer.json()["code"]) == (422, "input-invalid"), query
        both = await client.post(
            f"{MODEL}/batch", params={**QUERY, "from": "lake/rows.csv"}, content=table(3)
        )
        assert (both.status_code, both.json()["code"]) == (400, "malformed")
        async with it.client(await it.key("acme", "caller")) as caller:
            refused = await submit(caller, **{"from": "lake/rows.csv"})
            assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
            assert (await caller.get("/api/v1/tenants/acme/folders")).status_code == 403
        (tmp_path / "lake").rename(tmp_path / "away")
        away = await submit(client, **{"from": "lake/rows.csv"})
        assert (away.status_code, away.json()["code"]) == (503, "folder-unavailable")
        assert (await client.get(BATCHES)).json()["items"] == []
        stored = {path.name for path in (tmp_path / "data/blobs").glob("*/??/*")}
        assert stored <= it.store.registry.snapshot.blob_ids()


async def test_a_key_names_the_file_whatever_is_in_it_by_then(tmp_path: Path) -> None:
    async with stage(tmp_path) as (_it, client):
        (tmp_path / "lake/rows.csv").write_bytes(table(9))
        (tmp_path / "lake/more.csv").write_bytes(table(9))
        client.headers["idempotency-key"] = "night"
        first = await submit(client, **{"from": "lake/rows.csv"})
        (tmp_path / "lake/rows.csv").unlink()
        again = await submit(client, **{"from": "lake/rows.csv"})
        assert again.json()["id"] == first.json()["id"]
        other = await submit(client, **{"from": "lake/more.csv"})
        assert other.json()["code"] == "idempotency-key-reused"
        await ended(client, first.json())


async def test_a_restart_goes_on_with_what_was_taken_though_the_file_is_gone(
    tmp_path: Path,
) -> None:
    EchoSandbox.HELD.add(HELD)
    try:
        async with stage(tmp_path) as (_it, client):
            (tmp_path / "lake/rows.csv").write_bytes(table(400, r105="held"))
            asked = {"from": "lake/rows.csv", "to": "out/scored.ndjson"}
            batch = (await submit(client, **asked)).json()
            async with asyncio.timeout(60):
                while (await client.get(batch["urls"]["get"])).json()["rows_done"] < 350:
                    await asyncio.sleep(0.02)
    finally:
        EchoSandbox.HELD.discard(HELD)
    (tmp_path / "lake/rows.csv").write_bytes(b"another\n1\n")
    assert not list((tmp_path / "out").iterdir())
    (tmp_path / f"out/.{batch['id']}.part").write_bytes(b"left by a process that was killed")
    folders = declared(tmp_path)
    async with inside(tmp_path, initialise=False, sandbox=MANY, folders=folders) as it:
        await it.node.unseal(key_file=tmp_path / "unseal.key")
        async with it.client(admin=True) as client:
            assert (await ended(client, batch))["status"] == "succeeded"
    written = (tmp_path / "out/scored.ndjson").read_bytes()
    assert [json.loads(line)["i"] for line in written.splitlines()] == list(range(400))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["scored.ndjson"]


async def test_an_output_that_cannot_be_put_down_waits_and_is_not_lost(tmp_path: Path) -> None:
    EchoSandbox.HELD.add(HELD)
    try:
        async with stage(tmp_path) as (_it, client):
            (tmp_path / "lake/rows.csv").write_bytes(table(60, r5="held"))
            asked = {"from": "lake/rows.csv", "to": "out/scored.ndjson"}
            batch = (await submit(client, **asked)).json()
            (tmp_path / "out").rename(tmp_path / "away")  # an unmounted share, say
            EchoSandbox.HELD.discard(HELD)
            second = (await submit(client, **{"from": "lake/rows.csv"})).json()
            assert second["status"] == "starting"  # one batch of a tenant at a time
            async with asyncio.timeout(60):
                while (await client.get(batch["urls"]["get"])).json()["rows_done"] < 60:
                    await asyncio.sleep(0.05)
            now = (await client.get(batch["urls"]["get"])).json()
            assert now["status"] == "processing"
            (tmp_path / "away").rename(tmp_path / "out")
            assert (await ended(client, batch))["status"] == "succeeded"
            assert (tmp_path / "out/scored.ndjson").read_bytes().count(b"\n") == 60
            assert (await ended(client, second))["status"] == "succeeded"

            (tmp_path / "out/scored.ndjson").unlink()
            EchoSandbox.HELD.add(HELD)
            third = (await submit(client, **asked)).json()
            (tmp_path / "out/scored.ndjson").mkdir()
            EchoSandbox.HELD.discard(HELD)
            failed = await ended(client, third)
            assert (failed["status"], failed["error"]["code"]) == ("failed", "input-invalid")
            assert failed["rows_done"] == 60  # every row has its result: they can be fetched
            output = await client.get(failed["urls"]["output"])
            assert output.content.count(b"\n") == 60
    finally:
        EchoSandbox.HELD.discard(HELD)
