"""Building, importing and verifying runtimes through the admin contract, while it serves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from inside import Inside, inside
from oci_images import ImageParts, docker_archive, file, layer
from tiny_runtime import tiny_runtime

from appliance.errors import RuntimeMissing
from appliance.sandbox import images, installing
from appliance.sandbox.installing import Done, Order


@pytest.fixture
async def it(tmp_path: Path) -> AsyncIterator[Inside]:
    async with inside(tmp_path) as found:
        yield found


async def post(it: Inside, verb: str, body: dict[str, Any], *, lines: bool = False) -> Any:
    async with it.client(admin=True) as admin:
        headers = {"Accept": "application/x-ndjson"} if lines else {}
        path = f"/admin/v1/runtimes/{verb}"
        return await admin.post(path, json=body, headers=headers, timeout=60)


async def listed(it: Inside) -> dict[str, Any]:
    async with it.client(admin=True) as admin:
        return dict((await admin.get("/admin/v1/runtimes")).json())


async def events(it: Inside, kind: str) -> list[dict[str, Any]]:
    queries = it.node.services.store.queries
    await queries.wait(it.node.services.store.ledger.head.size)
    return [entry.event for entry in await queries.audit(kind=kind, limit=10)]


async def test_verifying_tells_each_step_and_ends_with_what_it_found(it: Inside) -> None:
    runtime = tiny_runtime(it.node.data_dir)
    answer = await post(it, "verify", {}, lines=True)
    *steps, last = [json.loads(line) for line in answer.text.splitlines()]
    assert steps
    assert all(step["step"] == "verify" and 0 <= step["fraction"] <= 1 for step in steps)
    (row,) = last["work"]["runtimes"]
    assert (row["name"], row["state"]) == ("ruby3.1", "same")
    assert [job["state"] for job in (await listed(it))["jobs"]] == ["done"]
    (seen,) = await events(it, "runtime.verified")
    assert runtime.digest in json.dumps(seen)


async def test_a_changed_file_is_named_by_a_verification(it: Inside) -> None:
    changed = tiny_runtime(it.node.data_dir).rootfs / "usr/bin/ruby3.1"
    changed.chmod(0o644)
    changed.write_bytes(b"y" * 3000)
    done = (await post(it, "verify", {"name": "ruby3.1"})).json()
    assert done["runtimes"][0]["state"] == "different"
    assert "usr/bin/ruby3.1" in done["runtimes"][0]["differences"][0]
    assert "not as installed" in done["job"]["detail"]


async def test_a_problem_in_the_other_process_is_the_same_problem_here(it: Inside) -> None:
    answer = await post(it, "build", {"name": "cobol"})
    assert answer.json()["code"] == RuntimeMissing.slug
    (job,) = (await listed(it))["jobs"]
    assert (job["verb"], job["name"], job["state"]) == ("build", "cobol", "failed")
    assert "cobol" in job["detail"]
    assert await events(it, "runtime.requested")
    assert not await events(it, "runtime.installed")


async def test_an_image_is_imported_while_it_serves(it: Inside, tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    archive.write_bytes(docker_archive(ImageParts([layer(file("srv/x"))])))
    answer = await post(it, "import", {"path": str(archive), "name": "acme"})
    assert answer.status_code == 202, answer.text
    assert answer.json()["runtimes"][0]["kind"].startswith("image")
    assert "acme" in {one["name"] for one in (await listed(it))["runtimes"]}
    assert await events(it, "runtime.installed")


@pytest.mark.parametrize(("path", "words"), [("/nowhere/x", "cannot read"), ("/tmp", "is no file")])
async def test_what_cannot_be_read_is_refused_at_once(it: Inside, path: str, words: str) -> None:
    answer = await post(it, "import", {"path": path, "name": "x"})
    assert answer.status_code == 422
    assert words in answer.json()["detail"]


class Slow:
    """Work that goes on until told; what it was told and whether it was ended."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.is_ended = False

    async def __call__(self, order: Order, progress: images.Progress) -> Done:
        progress("Retrieving packages", 0.25)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.is_ended = True
            raise
        return Done(rows=[])


@pytest.fixture
def slow(it: Inside) -> Slow:
    made = Slow()
    it.node.services.supply._carry = made
    return made


async def test_work_that_nobody_waits_for_is_shown_until_it_ends(it: Inside, slow: Slow) -> None:
    answer = await post(it, "build", {"name": "ruby3.1", "wait": False})
    assert answer.status_code == 202
    assert answer.json()["job"]["state"] == "running"
    async with asyncio.timeout(30):
        while (job := (await listed(it))["jobs"][0])["detail"] != "Retrieving packages":
            await asyncio.sleep(0.01)
    assert (job["state"], job["detail"]) == ("running", "Retrieving packages")
    assert job["fraction"] == 0.25
    again = await post(it, "build", {"name": "ruby3.1", "wait": False})
    assert (again.status_code, again.json()["code"]) == (409, "runtime-busy")
    slow.go.set()
    async with asyncio.timeout(30):
        while not (await listed(it))["jobs"][0]["ended_at"]:
            await asyncio.sleep(0.02)
    assert (await listed(it))["jobs"][0]["state"] == "done"


async def test_sealing_ends_the_work(it: Inside, slow: Slow) -> None:
    await post(it, "build", {"name": "ruby3.1", "wait": False})
    async with asyncio.timeout(30):
        while (await listed(it))["jobs"][0]["detail"] != "Retrieving packages":
            await asyncio.sleep(0.01)
    await it.node.seal("test")
    assert slow.is_ended


async def test_an_ended_job_ends_its_process(tmp_path: Path) -> None:
    """A process that waits for a fifo is gone a moment after its job was cancelled."""
    import os

    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    order = Order(verb="import", data_dir=str(tmp_path), name="x", path=str(fifo))

    def children() -> set[str]:
        found = Path("/proc/self/task").glob("*/children")
        return {word for file in found for word in file.read_text().split()}

    before = children()
    task = asyncio.ensure_future(installing.in_child(order, lambda *_: None))
    async with asyncio.timeout(30):
        while not (mine := children() - before):
            await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not children() & mine
