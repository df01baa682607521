"""kill -9 between a blob and the record that refers to it: the next start removes the blob."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

from inside import inside

MODEL = "/api/v1/models/acme/m"
ASYNC = {"Prefer": "respond-async", "Content-Type": "text/plain"}


def submit_and_die(base: str) -> None:
    """A job that runs, and one that is cut off when its body is written."""
    asyncio.run(_submit_and_die(Path(base)))


async def _submit_and_die(base: Path) -> None:
    async with inside(base, sandbox={"instances_max": 4}) as it:
        await it.tenant("acme")
        await it.version("acme", "m")
        async with it.client(await it.key("acme")) as client:
            await client.post(f"{MODEL}/invoke", content=b"sleep 3600", headers=ASYNC)
            before = len(folders(base))
            change = it.store.registry.change

            async def change_or_die(*arguments: Any, **more: Any) -> Any:
                if len(folders(base)) > before:
                    os.kill(os.getpid(), signal.SIGKILL)
                return await change(*arguments, **more)

            type(it.store.registry).change = lambda _self, *a, **m: change_or_die(*a, **m)
            await client.post(f"{MODEL}/invoke", content=b"cut off", headers=ASYNC)
    raise AssertionError("still alive")


def folders(base: Path) -> set[str]:
    return {path.name for path in (base / "data" / "blobs").glob("*/??/*")}


async def test_a_body_without_its_job_is_gone_after_the_next_start(tmp_path: Path) -> None:
    child = multiprocessing.get_context("spawn").Process(
        target=submit_and_die, args=(str(tmp_path),)
    )
    child.start()
    await asyncio.to_thread(child.join, 120)
    assert child.exitcode == -signal.SIGKILL
    left = folders(tmp_path)
    async with inside(tmp_path, initialise=False) as it:
        await it.node.unseal(key_file=tmp_path / "unseal.key")
        (tenant,) = it.store.registry.snapshot.tenants()
        wanted = it.store.registry.snapshot.blob_ids()
        removed = [
            entry.event["blob_id"]
            for entry in it.store.ledger.read(0, 999)
            if entry.kind == "blob.removed"
        ]
        assert removed == sorted(left - wanted)
        assert len(removed) == 1
        assert wanted <= folders(tmp_path)
        assert removed[0] not in folders(tmp_path)
        for blob_id in wanted:
            assert [piece async for piece in it.store.blobs.read(tenant.id, blob_id)]
