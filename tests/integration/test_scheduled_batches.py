"""Schedules of tables: what is due becomes a batch of the file that is there by then."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from inside import EchoSandbox, Inside, inside

from appliance import config
from appliance.records import JOB_ENDS

SCHEDULES = "/api/v1/schedules/acme"
CREATE = "/api/v1/models/acme/echo/schedules"
BATCHES = "/api/v1/batches/acme"
MANY = {"instances_max": 8, "instances_per_version_max": 4}
ASKED = {"form": "records", "into": "ndjson", "carry": "false"}
DAY = 86_400
HELD = b'"held"'


class Due:
    """The clock that decides what is due, and the only one that looks."""

    def __init__(self, it: Inside) -> None:
        self.schedules = it.node.services.schedules
        self.now_s = datetime.fromisoformat("2026-01-31T12:00:00+00:00").timestamp()
        self.schedules._now_ns = lambda: int(self.now_s * 1e9)
        for task in it.node._background:
            if task.get_coro().__qualname__ == "Schedules.follow":
                task.cancel()

    async def skip(self, seconds: float) -> int:
        """Go on, look, and let what is submitted be submitted; how many had something."""
        self.now_s += seconds
        found = await self.schedules.look()
        async with asyncio.timeout(60):
            await asyncio.gather(*self.schedules._submitting.values(), return_exceptions=True)
        return int(found)


@asynccontextmanager
async def stage(folder: Path) -> AsyncIterator[tuple[Inside, Any, Due]]:
    for name in ("lake", "out"):
        (folder / name).mkdir()
    folders = {
        "lake": config.Folder(path=str(folder / "lake"), tenants=("acme",)),
        "out": config.Folder(path=str(folder / "out"), tenants=("acme",), writable=True),
    }
    async with inside(folder, sandbox=MANY, folders=folders) as it:
        await it.tenant("acme")
        await it.version("acme", "echo")
        async with it.client(await it.key("acme")) as client:
            yield it, client, Due(it)


def table(count: int, text: str = "t") -> bytes:
    return ("i,t\n" + "".join(f"{i},{text}\n" for i in range(count))).encode()


async def create(client: Any, cron: str = "0 2 * * *", **query: str) -> dict[str, Any]:
    answer = await client.post(CREATE, params={"cron": cron, **ASKED, **query})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def runs(client: Any, made: Any) -> list[dict[str, Any]]:
    return list((await client.get(f"{SCHEDULES}/{made['id']}")).json()["runs"])


async def ended(client: Any, url: str) -> dict[str, Any]:
    for _ in range(20):
        batch = (await client.get(url, params={"wait_s": 5})).json()
        if batch["status"] in JOB_ENDS:
            return dict(batch)
    raise AssertionError(batch)


async def test_what_is_due_becomes_a_batch_of_the_file_of_that_day(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client, due):
        places = {"from": "lake/{date}/at-{time}.csv", "to": "out/{date}.ndjson"}
        made = await create(client, timezone="Europe/Berlin", **places)
        assert made["batch"]["taken_from"] == places["from"]
        assert (made["batch"]["form"], made["batch"]["into"]) == ("records", "ndjson")
        assert (made["input_type"], made["input_bytes"]) == ("", 0)
        for day, count in (("2026-02-01", 40), ("2026-02-02", 50)):
            (tmp_path / f"lake/{day}").mkdir()
            (tmp_path / f"lake/{day}/at-0200.csv").write_bytes(table(count))
            assert await due.skip(DAY) == 1
            assert await due.skip(1) == 0
            run = (await runs(client, made))[0]
            assert (run["code"], run["job"]) == ("started", None)
            batch = await ended(client, run["url"])
            assert (batch["id"], batch["status"]) == (run["batch"], "succeeded")
            assert (batch["scheduled_by"], batch["rows"]) == (made["id"], count)
            assert (await runs(client, made))[0]["status"] == "succeeded"
            lines = (tmp_path / f"out/{day}.ndjson").read_bytes().splitlines()
            assert [json.loads(line)["i"] for line in lines] == list(range(count))
        kinds = [entry.kind for entry in it.store.ledger.read(0, 9999)]
        assert kinds.index("schedule.ran") == kinds.index("batch.queued") + 1


async def test_what_is_not_there_is_skipped_and_a_folder_that_is_away_is_waited_for(
    tmp_path: Path,
) -> None:
    async with stage(tmp_path) as (_it, client, due):
        made = await create(client, **{"from": "lake/rows.csv"})
        await due.skip(DAY)
        assert [(r["code"], r["batch"]) for r in await runs(client, made)] == [
            ("input-invalid", None)
        ]
        (tmp_path / "lake").rename(tmp_path / "away")
        await due.skip(DAY)
        assert len(await runs(client, made)) == 1
        (tmp_path / "away").rename(tmp_path / "lake")
        (tmp_path / "lake/rows.csv").write_bytes(table(5))
        await due.skip(1)
        (run, _) = await runs(client, made)
        assert (run["code"], run["due_at"][:13]) == ("started", "2026-02-02T02")
        await ended(client, run["url"])


async def test_a_run_by_hand_and_one_that_overlaps(tmp_path: Path) -> None:
    async with stage(tmp_path) as (_it, client, due):
        (tmp_path / "lake/rows.csv").write_bytes(table(5, "held"))
        made = await create(client, cron="* * * * *", **{"from": "lake/rows.csv"})
        EchoSandbox.HELD.add(HELD)
        try:
            answer = await client.post(f"{SCHEDULES}/{made['id']}/run")
            assert answer.status_code == 202, answer.text
            assert (answer.json()["rows"], answer.json()["scheduled_by"]) == (5, made["id"])
            assert answer.headers["location"] == answer.json()["urls"]["get"]
            await due.skip(60)
            found = [(r["code"], r["manual"]) for r in await runs(client, made)]
            assert found == [("overlap", False), ("started", True)]
        finally:
            EchoSandbox.HELD.discard(HELD)
        await client.post(answer.json()["urls"]["cancel"])
        await due.skip(60)
        assert (await runs(client, made))[0]["code"] == "started"
        assert (await client.delete(f"{SCHEDULES}/{made['id']}")).status_code == 204
        assert await due.skip(600) == 0
        assert len((await client.get(BATCHES)).json()["items"]) == 2


async def test_a_schedule_of_a_table_is_checked_when_it_is_made(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client, _due):
        wrong: list[tuple[dict[str, str], int]] = [
            ({"from": "none/rows.csv"}, 422), ({"from": "lake/../rows.csv"}, 422),
            ({"from": "lake/rows.csv", "to": "lake/x.csv"}, 422), ({"to": "out/x.csv"}, 422),
            ({"from": "lake/rows.csv", "chunk_rows": "0"}, 422),
            ({"from": "lake/rows.csv", "version": "9"}, 404),
        ]  # fmt: skip
        for query, status in wrong:
            answer = await client.post(CREATE, params={"cron": "0 2 * * *", **query})
            assert answer.status_code == status, (query, answer.text)
        both = {"cron": "0 2 * * *", "from": "lake/rows.csv"}
        assert (await client.post(CREATE, params=both, content=b"1")).status_code == 400
        scopes = ["schedule:set", "schedule:read", "model:invoke"]
        async with it.client(await it.key("acme", scopes=scopes)) as narrow:
            refused = await narrow.post(CREATE, params=both)
            assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
            made = await create(client, **{"from": "lake/rows.csv"})
            assert (await narrow.post(f"{SCHEDULES}/{made['id']}/run")).status_code == 403
        await create(client, **{"from": "lake/not-there-yet-{date}.csv"})
