"""Edges between versions as the registry holds them: each names its parents and whom it calls.

Owns: what an edge asks of the registry it is added to, which version a called name stands for now,
and the edges the other way round.
Never: reads the words of a manifest (``appliance.lineage``) or walks further than one edge.
Read next: ``registry`` (registers a version with its edges), ``appliance.lineage`` (the graph).
"""

from __future__ import annotations

from collections.abc import Iterator

from appliance.errors import ManifestInvalid
from appliance.records import LIVE, Parent, Version
from appliance.store.snapshot import Snapshot
from appliance.targets import Target, target_from_text


def require_parents(snapshot: Snapshot, tenant_id: str, parents: tuple[Parent, ...]) -> None:
    """Return if every parent is a version of the tenant, retired or not.

    Raises:
        ManifestInvalid: one is not, or is not any more.
    """
    for parent in parents:
        model = snapshot.model_by_id(parent.model_id)
        is_there = model is not None and model.tenant_id == tenant_id and not model.removed_ns
        if not is_there or snapshot.version(parent.model_id, parent.number) is None:
            raise ManifestInvalid(
                "lineage.parents: a version it names was removed while this one was being made.",
                hint="Register it again; the answer then names the line.",
            )


def children_of(snapshot: Snapshot, tenant_id: str) -> dict[Parent, list[Parent]]:
    """The tenant's edges from parent to children, by model and number of the child.

    Cost: O(versions of the tenant), 30 ms of a processor for 10,000.
    """
    found: dict[Parent, list[Parent]] = {}
    for model in snapshot.models(tenant_id):
        for version in snapshot.versions(model.id):
            for parent in version.parents:
                child = Parent(model_id=model.id, number=version.number)
                found.setdefault(parent, []).append(child)
    return found


def targets_of(version: Version) -> tuple[Target, ...]:
    """Whom a version calls, each once: the steps of a pipeline, or what its manifest declares."""
    manifest = version.manifest
    declared = [target_from_text(text) for text in manifest.calls]
    found = [step.target for step in manifest.steps] + [one for one in declared if one]
    return tuple(dict.fromkeys(found))


def called_by(snapshot: Snapshot, version: Version) -> Iterator[tuple[Parent, Target]]:
    """The versions that those whom a version calls stand for now, and how it names them.

    A name alone stands for the version ``live`` points at, whatever a route sends elsewhere. What
    is not there is left out.
    """
    for target in targets_of(version):
        model = snapshot.model(version.tenant_id, target.model)
        if model is None:
            continue
        number = target.number
        if not number:
            alias = snapshot.alias(model.id, target.alias or LIVE)
            number = alias.number if alias else 0
        if snapshot.version(model.id, number) is not None:
            yield Parent(model_id=model.id, number=number), target


def callers_of(snapshot: Snapshot, tenant_id: str) -> dict[Parent, list[tuple[Parent, Target]]]:
    """The tenant's versions that call each version, by model and number of the caller.

    Cost: O(versions of the tenant and what they call).
    """
    found: dict[Parent, list[tuple[Parent, Target]]] = {}
    for model in snapshot.models(tenant_id):
        for version in snapshot.versions(model.id):
            if version.manifest.calls or version.manifest.steps:
                caller = Parent(model_id=model.id, number=version.number)
                for called, target in called_by(snapshot, version):
                    found.setdefault(called, []).append((caller, target))
    return found
