"""Baselines as they are kept: a sealed blob of bins and counts, and the record that names it.

Owns: the blob's form, setting and removing one, and deleting what a replaced one had.
Never: counts calls or judges them (``appliance.watch``).
Read next: ``store.baselines`` (revisions), ``appliance.drift.sketch`` (plan and sketch).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec

from appliance import clock
from appliance.drift.sketch import Plan, Sketch, bytes_of, sketch_from_bytes
from appliance.errors import ApplianceError, NotFound, QuotaExceeded, StoreCorrupt
from appliance.events import BaselineRemoved, BaselineSet, ThresholdsSet
from appliance.records import Baseline, Blob, Thresholds, Version
from appliance.store import Place, Store


class _Form(msgspec.Struct, array_like=True):
    """A baseline's blob. Equal blobs of a tenant are one; ``head`` keeps each deletable."""

    head: bytes
    plan: Plan
    sketch: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Who changes a baseline and why; ``revision`` is the one the caller saw, ``None``: any."""

    actor: str
    reason: str = ""
    revision: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A baseline that is to be: where it came from, its bins and its counts."""

    source: str
    plan_id: str
    plan: Plan
    sketch: Sketch


Change = tuple[Baseline, Baseline | None]
"""The new revision of a baseline and the one it replaced."""


class Baselines:
    """Reads, sets and removes baselines."""

    def __init__(self, store: Store, tenant_max: int) -> None:
        """Keep them in ``store``, at most ``tenant_max`` of a tenant."""
        self._store = store
        self._tenant_max = tenant_max

    async def read(self, baseline: Baseline) -> tuple[Plan, Sketch]:
        """The bins and counts of a baseline in force.

        Raises:
            StoreCorrupt: they are damaged.
            NotFound: it was replaced meanwhile.
        """
        if baseline.blob is None:
            raise no_baseline()
        blobs = self._store.blobs
        pieces = [piece async for piece in blobs.read(baseline.tenant_id, baseline.blob.id)]
        try:
            form = msgspec.msgpack.decode(b"".join(pieces), type=_Form)
            return form.plan, sketch_from_bytes(form.sketch)
        except (msgspec.MsgspecError, ValueError) as error:
            raise StoreCorrupt("A baseline is damaged; set it again.") from error

    async def set(self, version: Version, draft: Draft, asked: Asked) -> Change:
        """Have a version compared with the draft.

        Raises:
            Gone, NotFound: the version is not in service.
            QuotaExceeded: the tenant has as many baselines as it may.
            RevisionStale: somebody changed the baseline since.
            DiskFull: there is no room for it.
        Audit: drift.baseline-set.
        """
        blob = await self._write(version.tenant_id, draft)
        baseline = Baseline(
            model_id=version.model_id,
            tenant_id=version.tenant_id,
            number=version.number,
            blob=blob,
            plan_id=draft.plan_id,
            source=draft.source,
            rows=draft.sketch.rows,
            inputs=len(draft.plan.inputs),
            outputs=len(draft.plan.outputs),
            set_ns=0,
            set_by="",
        )
        try:
            return await self._change(version, self._setting(baseline), asked)
        except ApplianceError:
            await self._store.blobs.discard(version.tenant_id, {blob.id})
            raise

    async def learn(self, version: Version, records: int, asked: Asked) -> Change:
        """Have a version's baseline made of its next so many records.

        Raises: as ``set``. Audit: drift.baseline-set.
        """
        baseline = Baseline(
            model_id=version.model_id,
            tenant_id=version.tenant_id,
            number=version.number,
            blob=None,
            plan_id="",
            source="learning",
            rows=records,
            inputs=0,
            outputs=0,
            set_ns=0,
            set_by="",
        )
        return await self._change(version, self._setting(baseline), asked)

    def _setting(self, baseline: Baseline) -> Callable[[Baseline | None], BaselineSet]:
        def make(current: Baseline | None) -> BaselineSet:
            if current is None:
                self._require_room(baseline.tenant_id)
            known = current.thresholds if current else Thresholds()
            return BaselineSet(baseline=replace(baseline, thresholds=known))

        return make

    async def set_thresholds(
        self, version: Version, merge: Callable[[Thresholds], Thresholds], asked: Asked
    ) -> Change:
        """Change the thresholds only. Raises NotFound, RevisionStale.

        Audit: drift.thresholds-set.
        """

        def make(current: Baseline | None) -> ThresholdsSet:
            known = _present(current)
            return ThresholdsSet(baseline=replace(known, thresholds=merge(known.thresholds)))

        return await self._change(version, make, asked)

    async def remove(self, version: Version, asked: Asked) -> Change:
        """Have a version compared with nothing. Raises as above. Audit: drift.baseline-removed."""

        def make(current: Baseline | None) -> BaselineRemoved:
            known = _present(current)
            return BaselineRemoved(baseline=replace(known, blob=None, source="removed"))

        return await self._change(version, make, asked)

    async def forget(self, baseline: Baseline) -> None:
        """Delete the blob of a baseline that was replaced or removed."""
        if baseline.blob is not None:
            await self._store.blobs.discard(baseline.tenant_id, {baseline.blob.id})

    async def _change(
        self,
        version: Version,
        make: Callable[[Baseline | None], BaselineSet | BaselineRemoved | ThresholdsSet],
        asked: Asked,
    ) -> Change:
        return await self._store.registry.drift.change(
            model_id=version.model_id,
            number=version.number,
            make=make,
            revision=asked.revision,
            reason=asked.reason,
            actor=asked.actor,
        )

    async def _write(self, tenant_id: str, draft: Draft) -> Blob:
        form = _Form(clock.new_id("baseline").encode(), draft.plan, bytes_of(draft.sketch))
        async with self._store.blobs.writer(tenant_id) as writer:
            await writer.write(msgspec.msgpack.encode(form))
            return await writer.commit()

    def _require_room(self, tenant_id: str) -> None:
        if self._store.registry.snapshot.baselines_in(tenant_id) >= self._tenant_max:
            raise QuotaExceeded(
                f"A tenant has at most {self._tenant_max} baselines; remove one.",
                hint="appliance drift baseline rm TENANT/MODEL:VERSION",
            )


def place_of(baseline: Baseline) -> Place:
    """Where the sketches of a baseline's version are."""
    return Place(
        tenant_id=baseline.tenant_id,
        model_id=baseline.model_id,
        number=baseline.number,
        plan_id=baseline.plan_id,
    )


def no_baseline() -> NotFound:
    """The problem of a version without one."""
    return NotFound(
        "The version has no baseline, so its calls are not counted.",
        hint="appliance drift baseline set TENANT/MODEL:VERSION --data train.csv",
    )


def _present(baseline: Baseline | None) -> Baseline:
    if baseline is None:
        raise no_baseline()
    return baseline
