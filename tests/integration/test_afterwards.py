"""What calls that no caller made directly count for: nested ones, steps, jobs and batches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from inside import Inside, inside
from running import tar_of_files

from appliance import watch
from appliance.invoke import Via
from appliance.records import JOB_ENDS

MODELS = "/api/v1/models/acme"
INNER = f"{MODELS}/inner"
JSON, CSV = {"Content-Type": "application/json"}, {"Content-Type": "text/csv"}
ROWS = '{"rows": [[1], [2], [3]]}'


@asynccontextmanager
async def stage(folder: Path) -> AsyncIterator[tuple[Inside, Any]]:
    """``inner`` has a baseline of the column x, and all its calls are kept; ``outer`` calls it."""
    async with inside(folder, sandbox={"instances_max": 8}) as it:
        await it.tenant("acme")
        await it.version("acme", "inner")
        await it.version("acme", "outer", calls=("inner",))
        async with it.client(await it.key("acme")) as client:
            data = "x\n" + "".join(f"{n}\n" for n in range(200))
            path = f"{INNER}/versions/1/drift/baseline"
            made = await client.put(path, content=data.encode(), headers=CSV)
            assert made.status_code == 200, made.text
            made = await client.put(f"{INNER}/samples", json={"percent": 100})
            assert made.status_code == 200, made.text
            yield it, client


async def call(client: Any, model: str, body: str, **headers: str) -> Any:
    path = f"{MODELS}/{model}/invoke"
    return await client.post(path, content=body.encode(), headers={**JSON, **headers})


async def counted(it: Inside, client: Any) -> tuple[int, int]:
    """Records and calls that ``inner`` was counted with."""
    await it.node.services.watch.counted()
    found = (await client.get(f"{INNER}/versions/1/drift")).json()
    return found["rows"], found["calls"]


async def parents(it: Inside, client: Any) -> dict[str, str]:
    """Kept calls of ``inner``, and which call made each."""
    async with asyncio.timeout(30):
        await it.node.services.samples._queue.join()
    listed = (await client.get(f"{INNER}/samples/calls")).json()["items"]
    model = it.store.registry.snapshot.model(it.store.registry.snapshot.tenant("acme").id, "inner")
    kept = await it.node.services.samples.kept(model.id)
    found = [await it.node.services.samples.read(one) for one in kept]
    assert [one["call_id"] for one in reversed(listed)] == [one.call_id for one in found]
    return {one.call_id: one.parent for one in found}


async def test_a_call_that_a_model_makes_counts_and_is_kept_with_the_call_that_made_it(
    tmp_path: Path,
) -> None:
    async with stage(tmp_path) as (it, client):
        answer = await call(client, "outer", f"call inner {ROWS}")
        assert answer.text == ROWS
        assert await counted(it, client) == (3, 1)
        (parent,) = (await parents(it, client)).values()
        assert parent == answer.headers["request-id"]
        own = await call(client, "inner", ROWS)
        assert (await parents(it, client))[own.headers["request-id"]] == ""
        assert await counted(it, client) == (6, 2)


async def test_a_step_of_a_pipeline_counts_and_is_kept(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client):
        tar = tar_of_files({"pipeline.toml": b'steps = [{ model = "inner" }]'})
        made = await client.post(
            f"{MODELS}/chain/versions", content=tar, headers={"Content-Type": "application/x-tar"}
        )
        assert made.status_code == 201, made.text
        answer = await call(client, "chain", ROWS)
        assert await counted(it, client) == (3, 1)
        assert list((await parents(it, client)).values()) == [answer.headers["request-id"]]


async def test_what_is_called_below_a_trial_or_a_shadow_counts_for_nothing(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client):
        snapshot = it.store.registry.snapshot
        version = snapshot.version(snapshot.model(snapshot.tenant("acme").id, "outer").id, 1)
        me = (await client.get("/api/v1/whoami")).json()["id"]
        for at, via in enumerate((Via(is_trial=True), Via(shadow_of="call_x", caller_id=me))):
            outcome = await it.node.services.invoker.run(
                principal_id=me,
                request_id=f"call_{at}",
                version=version,
                content_type="application/json",
                body=f"call inner {ROWS}".encode(),
                via=via,
            )
            assert outcome.reply == ROWS.encode()
        made = await client.post(
            "/api/v1/comparisons/acme",
            params={"models": "inner:1", "form": "rows"},
            content=b"x\n1\n2\n",
            headers=CSV,
        )
        assert made.status_code == 202, made.text
        ended = await client.get(made.json()["urls"]["get"], params={"wait_s": 30})
        assert ended.json()["status"] == "succeeded", ended.text
        assert await counted(it, client) == (0, 0)
        assert await parents(it, client) == {}


async def test_a_job_counts_and_is_kept(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client):
        taken = await call(client, "inner", ROWS, Prefer="respond-async")
        assert taken.headers["sampled-percent"] == "100"
        made = taken.json()
        for _ in range(6):
            if made["status"] in JOB_ENDS:
                break
            made = (await client.get(made["urls"]["get"], params={"wait_s": 5})).json()
        assert made["status"] == "succeeded", made
        output = await client.get(f"/api/v1/jobs/acme/{made['id']}/output")
        assert (output.text, output.headers["sampled-percent"]) == (ROWS, "100")
        assert await counted(it, client) == (3, 1)
        assert await parents(it, client) == {made["id"]: ""}


async def test_every_row_of_a_batch_counts_once_however_few_may_wait(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(watch, "QUEUE_MAX", 2)
    async with stage(tmp_path) as (it, client):
        data = "x\n" + "".join(f"{n}\n" for n in range(2500))
        made = await client.post(
            f"{INNER}/batch",
            content=data.encode(),
            params={"form": "rows", "chunk_rows": 100},
            headers=CSV,
        )
        assert made.status_code == 202, made.text
        batch = made.json()
        for _ in range(12):
            if batch["status"] in JOB_ENDS:
                break
            batch = (await client.get(batch["urls"]["get"], params={"wait_s": 5})).json()
        assert (batch["status"], batch["rows_done"]) == ("succeeded", 2500)
        output = await client.get(f"/api/v1/batches/acme/{batch['id']}/output")
        told = [one.headers["sampled-percent"] for one in (made, output)]
        assert told == ["100", "100"]
        assert await counted(it, client) == (2500, 25)
        found = (await client.get(f"{INNER}/versions/1/drift")).json()
        assert found["dropped"] == 0
        kept = await parents(it, client)
        assert kept == {f"{batch['id']}.{row}": "" for row in range(0, 2500, 100)}
        await it.node.services.samples.sweep()
        assert await parents(it, client) == kept
