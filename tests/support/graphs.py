"""Registries made in memory: any number of versions, no ledger, no disk."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from appliance.records import (
    Alias,
    Artifact,
    ArtifactFile,
    Blob,
    Lineage,
    Manifest,
    Model,
    Parent,
    Tenant,
    Version,
)
from appliance.store.snapshot import Snapshot
from appliance.store.state import Tables

TENANT = Tenant(id="ten_acme", name="acme", created_ns=1, created_by="uid:0")


def artifact_of(files: Mapping[str, bytes | tuple[str, int]]) -> Artifact:
    """An artifact of these contents, or of (digest, size) pairs."""
    listed = []
    for path, content in files.items():
        if isinstance(content, bytes):
            content = (f"sha256:{content.hex()[:64]:0<64}", len(content))
        listed.append(ArtifactFile(path=path, size_bytes=content[1], digest=content[0]))
    size = sum(file.size_bytes for file in listed)
    return Artifact(
        blob=Blob(id="0" * 64, size_bytes=size, digest="sha256:00"), files=tuple(listed)
    )


class Made:
    """Tables that are filled in and then frozen."""

    def __init__(self) -> None:
        self.tables = Tables()
        self.add_tenant(TENANT)

    def add_tenant(self, tenant: Tenant) -> None:
        self.tables.tenants[tenant.id] = tenant
        self.tables.names["", tenant.name] = tenant.id

    def add(
        self,
        name: str,
        *,
        tenant: Tenant = TENANT,
        files: Mapping[str, bytes | tuple[str, int]] | None = None,
        parents: tuple[Parent, ...] = (),
        created_by: str = "uid:0",
        retired_ns: int = 0,
        **manifest: Any,
    ) -> Version:
        """The next version of a model; the model, and ``live`` on its first version, if new."""
        told: dict[str, Any] = {"runtime": "python3.11", "entry": "model:Model", **manifest}
        model_id = f"mod_{tenant.name}_{name}"
        if model_id not in self.tables.models:
            self.tables.models[model_id] = Model(
                id=model_id, tenant_id=tenant.id, name=name,
                description=told.get("description", ""), created_ns=1, created_by=created_by,
            )  # fmt: skip
            self.tables.names[tenant.id, name] = model_id
            live = Alias(
                model_id=model_id, tenant_id=tenant.id, name="live", number=1, revision=1,
                set_ns=1, set_by=created_by,
            )  # fmt: skip
            self.tables.aliases[model_id] = {"live": live}
        before = self.tables.versions.get(model_id, ())
        version = Version(
            model_id=model_id, tenant_id=tenant.id, number=len(before) + 1,
            manifest=Manifest(**told), artifact=artifact_of(files or {"model.py": b"x"}),
            runtime_digest="sha256:11", parents=parents, created_ns=len(before) + 1,
            created_by=created_by, retired_ns=retired_ns,
        )  # fmt: skip
        self.tables.versions[model_id] = (*before, version)
        return version

    def remove(self, name: str) -> None:
        self.tables._remove_model(f"mod_acme_{name}", 9)

    def snapshot(self) -> Snapshot:
        return Tables.of(self.tables.freeze()).freeze()


def snapshot_of(
    models: Mapping[str, Sequence[Sequence[str]]], *, removed: Collection[str] = ()
) -> Snapshot:
    """Models by name, each a list of versions, each a list of parents as text.

    A text that names a version here is an edge too, wherever in the order that version is.
    """
    made = Made()
    for name, versions in models.items():
        rows: list[Version] = []
        for texts in versions:
            split = [text.partition("@") for text in texts]
            edges = tuple(
                Parent(model_id=f"mod_acme_{other}", number=int(number))
                for other, _, number in split
                if other in models and int(number) <= len(models[other])
            )
            rows.append(
                Version(
                    model_id=f"mod_acme_{name}", tenant_id=TENANT.id, number=len(rows) + 1,
                    manifest=Manifest(
                        runtime="python3.11", entry="model:Model",
                        lineage=Lineage(parents=tuple(texts)),
                    ),
                    artifact=artifact_of({"model.py": b"x"}), runtime_digest="sha256:11",
                    parents=edges, created_ns=1, created_by="uid:0",
                )
            )  # fmt: skip
        made.add(name)
        made.tables.versions[f"mod_acme_{name}"] = tuple(rows)
    for name in removed:
        made.remove(name)
    return made.snapshot()
