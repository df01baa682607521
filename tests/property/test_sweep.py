"""What a start removes: blobs that nothing refers to, and never one that something does."""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from storing import ACTOR, Folder, artifact, manifest, read_blob, write_blob

from appliance.batch_records import Batch, BatchPart, BatchPlan
from appliance.errors import NotFound
from appliance.events import (
    BaselineSet,
    BatchAdvanced,
    BatchQueued,
    BatchStarted,
    DraftSet,
    FileKept,
    JobEnded,
    JobQueued,
    JobStarted,
    ScheduleCreated,
)
from appliance.records import Baseline, Blob, Job, JobEnd
from appliance.standing import Schedule
from appliance.store import Store
from appliance.tracked import Draft, KeptFile

HOLDERS = (
    "version",
    "retired",
    "removed",
    "job",
    "output",
    "batch",
    "schedule",
    "baseline",
    "file",
)
LOST = {"loose", "removed"}


class Holding:
    """A store where blobs are referred to in every way there is."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.number = 0

    async def begin(self) -> None:
        self.tenant_id = (await self.store.registry.create_tenant(name="acme", actor=ACTOR)).id
        self.model = (await self.version("m", await self.blob())).model_id

    async def blob(self) -> Blob:
        self.number += 1
        return await write_blob(self.store, self.tenant_id, b"blob %d" % self.number)

    async def version(self, name: str, blob: Blob) -> Any:
        return await self.store.registry.register_version(
            tenant_id=self.tenant_id,
            model_name=name,
            manifest=manifest(),
            artifact=artifact(blob),
            runtime_digest="d",
            actor=ACTOR,
        )

    async def change(self, *events: Any) -> None:
        await self.store.registry.change(
            lambda: list(events), tenant_id=self.tenant_id, actor=ACTOR, obj="o"
        )

    async def hold(self, how: str) -> Blob:
        blob, key, registry = await self.blob(), f"{how}-{self.number}", self.store.registry
        at = {"tenant_id": self.tenant_id, "model_id": self.model, "created_ns": 1}
        if how == "version":
            await self.version("m", blob)
        elif how == "retired":
            made = await self.version("m", blob)
            await registry.retire_version(model_id=self.model, number=made.number, actor=ACTOR)
        elif how == "removed":
            made = await self.version(key, blob)
            await registry.remove_model(model_id=made.model_id, actor=ACTOR)
        elif how in ("job", "output"):
            first = blob if how == "job" else await self.blob()
            job = Job(
                id=key, number=1, content_type="-", input=first, request_digest="",
                created_by=ACTOR, **at,
            )  # fmt: skip
            await self.change(JobQueued(job=job))
            if how == "output":
                end = JobEnd(status="succeeded", output=blob)
                await self.change(JobStarted(job_id=key), JobEnded(job_id=key, end=end))
        elif how == "batch":
            plan = BatchPlan(source="csv", into="csv", form="rows", chunk_rows=1)
            batch = Batch(
                id=key, number=1, plan=plan, input=await self.blob(), columns=(("a", "BIGINT"),),
                rows=2, created_by=ACTOR, **at,
            )  # fmt: skip
            part = BatchPart(row=0, rows=1, failed=0, names=("p",), blob=blob)
            await self.change(
                BatchQueued(batch=batch),
                BatchStarted(batch_id=key),
                BatchAdvanced(batch_id=key, part=part),
            )
        elif how == "schedule":
            schedule = Schedule(
                id=key, cron="0 2 * * *", timezone="UTC", content_type="-", body=blob,
                run_as=ACTOR, since_ns=0, created_by=ACTOR, **at,
            )  # fmt: skip
            await self.change(ScheduleCreated(schedule=schedule))
        elif how == "baseline":
            made = await self.version(key, await self.blob())
            baseline = Baseline(
                model_id="", tenant_id="", number=0, blob=blob, plan_id="p", source="data",
                rows=1, inputs=1, outputs=0, set_ns=0, set_by="",
            )  # fmt: skip
            await registry.drift.change(
                model_id=made.model_id, number=1, make=lambda _: BaselineSet(baseline=baseline),
                revision=None, actor=ACTOR,
            )  # fmt: skip
        elif how == "file":  # of a model that an MLflow client is still uploading
            draft = Draft(
                id=key, group_id="g", name="n", status="PENDING", created_ns=1,
                created_by=ACTOR, changed_ns=1,
            )  # fmt: skip
            file = KeptFile(
                id=f"f{key}", owner_id=key, path="a/b", size_bytes=1, blob=blob, created_ns=1
            )
            await self.change(DraftSet(draft=draft), FileKept(file=file))
        return blob


def blobs_in(thing: Any) -> Iterator[str]:
    """Ids of the blobs anywhere in a thing, found without knowing what it is."""
    if isinstance(thing, Blob):
        yield thing.id
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from blobs_in(value)
    elif isinstance(thing, (list, tuple, set, frozenset)):
        for value in thing:
            yield from blobs_in(value)
    elif dataclasses.is_dataclass(thing):
        for field in dataclasses.fields(thing):
            yield from blobs_in(getattr(thing, field.name))
    elif hasattr(thing, "__struct_fields__"):
        for name in thing.__struct_fields__:
            yield from blobs_in(getattr(thing, name))


def blobs_of_registry(store: Store) -> set[str]:
    snapshot = store.registry.snapshot
    return {one for name in snapshot.__slots__ for one in blobs_in(getattr(snapshot, name))}


async def start_over(base: Path, holders: list[str], *, keeps_snapshot: bool) -> None:
    folder = Folder(base).make()
    async with folder.open() as store:
        holding = Holding(store)
        await holding.begin()
        held = [(how, await holding.hold(how)) for how in [*holders, "loose"]]
        assert blobs_of_registry(store) == store.registry.snapshot.blob_ids()
        await store.samples.put(holding.tenant_id, "mod.1.9.call", b"a sample")
        assert await store.sweep() == 0, "what this very process wrote is left alone"
    if not keeps_snapshot:
        (folder.path / "registry.snap").unlink()
    async with folder.open() as store:
        lost = {blob.id for how, blob in held if how in LOST}
        assert await store.sweep() == len(lost)
        assert await store.sweep() == 0
        for how, blob in held:
            if how in LOST:
                with pytest.raises(NotFound):
                    await read_blob(store, holding.tenant_id, blob.id)
        for blob_id in blobs_of_registry(store):
            assert await read_blob(store, holding.tenant_id, blob_id)
        kept = {blob.id for how, blob in held if how not in LOST}
        assert kept <= blobs_of_registry(store)
        assert await store.samples.get(holding.tenant_id, "mod.1.9.call") == b"a sample"
        told = [e.event["blob_id"] for e in store.ledger.read(0, 999) if e.kind == "blob.removed"]
        assert set(told) == lost
        again = await write_blob(store, holding.tenant_id, b"blob %d" % holding.number)
        assert await read_blob(store, holding.tenant_id, again.id)


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
@given(st.lists(st.sampled_from(HOLDERS), max_size=6), st.booleans())
def test_nothing_that_is_referred_to_is_ever_removed(
    holders: list[str], keeps_snapshot: bool
) -> None:
    with tempfile.TemporaryDirectory(prefix="sweep-") as base:
        asyncio.run(start_over(Path(base), holders, keeps_snapshot=keeps_snapshot))


def test_every_way_to_refer_to_a_blob_at_once(tmp_path: Path) -> None:
    asyncio.run(start_over(tmp_path, list(HOLDERS), keeps_snapshot=False))
