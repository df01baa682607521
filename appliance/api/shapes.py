"""The JSON documents of the native contract: one struct each, and how records become them.

Owns: member names and types that callers see; OpenAPI is generated from these structs.
Never: decides who sees a document, or reads the store.
Read next: ``native`` (uses them), ``openapi`` (describes them).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from appliance import clock
from appliance.auth.api_key import DEFAULT_DAYS, MAX_DAYS
from appliance.catalogue import alike
from appliance.events import shown
from appliance.policy import Principal
from appliance.records import (
    NAME_PATTERN,
    Alias,
    ApiKey,
    Entry,
    Isolation,
    Model,
    Secret,
    Tenant,
    Version,
)
from appliance.standing import Sampling

Name = Annotated[str, Meta(pattern=NAME_PATTERN, description="1 to 63 of a-z, 0-9 and '-'.")]
Time = Annotated[str, Meta(description="RFC 3339, UTC.")]


class Document(Struct, kw_only=True, omit_defaults=False):
    """Base of the answers."""


class Body(Struct, kw_only=True, forbid_unknown_fields=True):
    """Base of the request bodies: an unknown member is an error, not a typo passed over."""


class TenantNew(Body):
    """A tenant to create."""

    name: Name


class KeyNew(Body):
    """A tenant's API key to issue."""

    name: Name
    role: Literal["owner", "caller"]
    expires_in_days: Annotated[int, Meta(ge=1, le=MAX_DAYS)] = DEFAULT_DAYS
    scopes: Annotated[list[Annotated[str, Meta(max_length=128)]], Meta(max_length=64)] = []


class ApplianceKeyNew(Body):
    """An appliance-wide API key to issue."""

    name: Name
    role: Literal["admin", "operator", "auditor"]
    expires_in_days: Annotated[int, Meta(ge=1, le=MAX_DAYS)] = DEFAULT_DAYS
    scopes: Annotated[list[Annotated[str, Meta(max_length=128)]], Meta(max_length=64)] = []


class AliasSet(Body):
    """Where an alias shall point, and why."""

    version: Annotated[int, Meta(ge=1)]
    reason: Annotated[str, Meta(max_length=1000)] = ""


class IsolationSet(Body):
    """How strongly a tenant's sandboxes shall be kept apart."""

    isolation: Isolation


class SecretValue(Body):
    """A secret's value: text, or any bytes in base64."""

    value: Annotated[str, Meta(max_length=65_536)] = ""
    value_base64: Annotated[str, Meta(max_length=90_000)] = ""


class ReservationNew(Body):
    """How many sandboxes of a version to keep loaded."""

    warm: Annotated[int, Meta(ge=1, le=4096)]


class WhoAmI(Document):
    """The caller, as the appliance sees it."""

    id: str
    kind: Literal["api-key", "peer"]
    name: str
    role: str
    tenant: Annotated[str, Meta(description="Empty for appliance-wide principals.")]
    scopes: list[str]


class TenantDoc(Document):
    """A tenant."""

    id: str
    name: str
    isolation: Annotated[str, Meta(description="The least its sandboxes get.")]
    created_at: Time
    created_by: str


class SecretDoc(Document):
    """A model's secret; its value is never shown."""

    tenant: str
    model: str
    name: str
    needed_by: Annotated[list[int], Meta(description="Versions in service that name it.")]
    set_at: Time
    set_by: str


class KeyDoc(Document):
    """An API key without its secret."""

    id: str
    tenant: Annotated[str, Meta(description="Empty for appliance-wide keys.")]
    name: str
    role: str
    scopes: list[str]
    state: Literal["active", "expired", "revoked"]
    created_at: Time
    created_by: str
    expires_at: Time
    revoked_at: Time | None


class KeyIssued(KeyDoc):
    """A new API key; ``secret`` is shown this once and never again."""

    secret: str


class AliasDoc(Document):
    """An alias; ``revision`` goes into If-Match."""

    tenant: str
    model: str
    name: str
    version: int
    revision: int
    reason: str
    set_at: Time
    set_by: str


class ModelDoc(Document):
    """A model."""

    id: str
    tenant: str
    name: str
    description: str
    versions: Annotated[int, Meta(description="Versions ever registered.")]
    newest: int | None
    live: Annotated[int | None, Meta(description="The version the alias 'live' points at.")]
    sampled_percent: Annotated[
        float, Meta(description="Share of its calls that its owner has kept, sealed, for replays.")
    ]
    created_at: Time
    created_by: str
    url: str


class FileDoc(Document):
    """One file of an artifact."""

    path: str
    size_bytes: int
    digest: str


class PackageDoc(Document):
    """One installed package of a version's dependencies."""

    name: str
    version: str
    digest: str


class VersionName(Document):
    """A version of the same tenant."""

    model: str
    version: int


class AlikeDoc(VersionName):
    """A version that was there already when this one, which is much like it, was registered."""

    kind: Literal["files", "most-files", "columns"]
    share: Annotated[float, Meta(description="How much of the bytes both have; 1: all.")]
    text: str


class VersionDoc(Document):
    """An immutable version."""

    tenant: str
    model: str
    version: int
    state: Literal["ready", "retired"]
    description: str
    runtime: str
    entry: str
    requirements: list[str]
    lock: list[PackageDoc]
    resources: dict[str, Any]
    limits: dict[str, Any]
    idle_timeout_s: int | None
    container: dict[str, Any] | None
    digest: str
    size_bytes: int
    files: list[FileDoc]
    lineage: Annotated[dict[str, Any], Meta(description="As its manifest has it.")]
    parents: Annotated[
        list[VersionName], Meta(description="Versions it was made from, those one may see.")
    ]
    alike: Annotated[
        list[AlikeDoc], Meta(description="What was like it when it came, as far as one may see.")
    ]
    tags: dict[str, str]
    input_schema: dict[str, Any] | None
    check_input: bool
    output_schema: dict[str, Any] | None
    options: dict[str, Any]
    convention: Annotated[
        str, Meta(description="What was recognised where nothing was declared; else empty.")
    ]
    notes: Annotated[list[str], Meta(description="What was assumed on the way.")]
    sample: Annotated[
        str, Meta(description="A body the model answered; empty where none is known.")
    ]
    secrets: Annotated[list[str], Meta(description="Names of the secrets it gets.")]
    calls: Annotated[list[str], Meta(description="Models of its tenant that it may call.")]
    steps: Annotated[list[dict[str, Any]], Meta(description="The steps of a pipeline.")]
    isolation: str
    batch: Annotated[
        dict[str, Any] | None, Meta(description="How calls may be joined; null: they are not.")
    ]
    audit: str
    created_at: Time
    created_by: str
    retired_at: Time | None
    url: str


class ReservationDoc(Document):
    """Sandboxes of a version that are kept loaded."""

    tenant: str
    model: str
    version: int
    warm: Annotated[int, Meta(description="How many are wanted.")]
    ready: Annotated[int, Meta(description="How many are loaded now, those in a call included.")]
    state: Annotated[
        Literal["kept", "starting", "failing"],
        Meta(description="All are there, the rest is being made, or something is in the way."),
    ]
    problem: Annotated[str, Meta(description="What is in the way; empty otherwise.")]
    retry_s: Annotated[int, Meta(description="Seconds until the next try, where there is one.")]
    set_at: Time
    set_by: str


class EntryDoc(Document):
    """One audit entry; ``event`` is null when its tenant's key was destroyed."""

    seq: int
    time: Time
    kind: str
    tenant: str
    actor: str
    object: str
    event: dict[str, Any] | None
    leaf: Annotated[str, Meta(description="RFC 6962 leaf hash, hex.")]


class HeadDoc(Document):
    """The ledger's head: how many entries, and the Merkle root over them."""

    size: int
    root: str
    time: Time


class AuditPage(Document):
    """A page of audit entries, newest first unless ``after`` was given."""

    entries: list[EntryDoc]
    head: HeadDoc


class VerifyDoc(Document):
    """The result of checking every byte of the ledger."""

    ok: bool
    entries: int
    first_bad_seq: int | None
    detail: str
    head: HeadDoc
    elapsed_ms: int


class KeyPublic(Document):
    """The ledger's public key, for checking proofs elsewhere."""

    public_key: str


class TenantList(Document):
    """Tenants this caller may see."""

    items: list[TenantDoc]


class KeyList(Document):
    """API keys, revoked ones included."""

    items: list[KeyDoc]


class ModelList(Document):
    """Models this caller may see."""

    items: list[ModelDoc]


class SecretList(Document):
    """Secrets of a model, by name; and those its versions name but nobody set."""

    items: list[SecretDoc]
    missing: list[str]


class KeyRevoked(KeyDoc):
    """A revoked key; ``also_revoked`` are the keys that were issued with it."""

    also_revoked: list[str]


class AliasList(Document):
    """Aliases of a model."""

    items: list[AliasDoc]


def whoami_from_principal(principal: Principal, tenant: str) -> WhoAmI:
    """The caller; ``tenant`` is its tenant's name."""
    return WhoAmI(
        id=principal.id,
        kind=principal.kind,
        name=principal.name,
        role=principal.role,
        tenant=tenant,
        scopes=list(principal.scopes),
    )


def tenant_doc_from_tenant(tenant: Tenant) -> TenantDoc:
    """A tenant as callers see it."""
    return TenantDoc(
        id=tenant.id,
        name=tenant.name,
        isolation=tenant.isolation,
        created_at=clock.text_from_ns(tenant.created_ns),
        created_by=tenant.created_by,
    )


def key_doc_from_key(key: ApiKey, tenant: str) -> KeyDoc:
    """A key as callers see it; ``tenant`` is its tenant's name."""
    return KeyDoc(**_key_members(key, tenant))


def issued_from_key(key: ApiKey, tenant: str, secret: str) -> KeyIssued:
    """A key with its secret, for the one answer that shows it."""
    return KeyIssued(**_key_members(key, tenant), secret=secret)


def revoked_from_keys(keys: tuple[ApiKey, ...], tenant: str) -> KeyRevoked:
    """What a revocation did: the key first, then the keys that went with it."""
    return KeyRevoked(
        **_key_members(keys[0], tenant), also_revoked=[other.id for other in keys[1:]]
    )


def secret_doc_from_secret(
    secret: Secret, tenant: str, model: str, versions: tuple[Version, ...]
) -> SecretDoc:
    """A secret as callers see it: everything but the value."""
    return SecretDoc(
        tenant=tenant,
        model=model,
        name=secret.name,
        needed_by=[
            v.number for v in versions if secret.name in v.manifest.secrets and not v.retired_ns
        ],
        set_at=clock.text_from_ns(secret.set_ns),
        set_by=secret.set_by,
    )


def _key_members(key: ApiKey, tenant: str) -> dict[str, Any]:
    state = "revoked" if key.revoked_ns else "active"
    if state == "active" and clock.now_ns() >= key.expires_ns:
        state = "expired"
    return {
        "id": key.id,
        "tenant": tenant,
        "name": key.name,
        "role": key.role,
        "scopes": list(key.scopes),
        "state": state,
        "created_at": clock.text_from_ns(key.created_ns),
        "created_by": key.created_by,
        "expires_at": clock.text_from_ns(key.expires_ns),
        "revoked_at": clock.text_from_ns(key.revoked_ns) if key.revoked_ns else None,
    }


def alias_doc_from_alias(alias: Alias, tenant: str, model: str) -> AliasDoc:
    """An alias as callers see it."""
    return AliasDoc(
        tenant=tenant,
        model=model,
        name=alias.name,
        version=alias.number,
        revision=alias.revision,
        reason=alias.reason,
        set_at=clock.text_from_ns(alias.set_ns),
        set_by=alias.set_by,
    )


def model_doc_from_model(
    model: Model,
    tenant: str,
    *,
    versions: tuple[Version, ...],
    live: int | None,
    url: str,
    sampling: Sampling | None = None,
) -> ModelDoc:
    """A model as callers see it; ``url`` is the appliance's base address."""
    return ModelDoc(
        id=model.id,
        tenant=tenant,
        name=model.name,
        description=model.description,
        versions=len(versions),
        newest=max((version.number for version in versions), default=None),
        live=live,
        sampled_percent=sampling.weight / 100 if sampling else 0.0,
        created_at=clock.text_from_ns(model.created_ns),
        created_by=model.created_by,
        url=f"{url}/api/v1/models/{tenant}/{model.name}",
    )


def version_doc_from_version(
    version: Version, tenant: str, model: str, url: str, name_of: Callable[[str], str]
) -> VersionDoc:
    """A version as callers see it.

    Args:
        version: the version.
        tenant: its tenant's name.
        model: its model's name.
        url: the appliance's base address.
        name_of: the name of a model by its id; empty where the caller may not see it.
    """
    manifest = version.manifest
    return VersionDoc(
        tenant=tenant,
        model=model,
        version=version.number,
        state="retired" if version.retired_ns else "ready",
        description=manifest.description,
        runtime=manifest.runtime,
        entry=manifest.entry,
        requirements=list(manifest.requirements),
        lock=[
            PackageDoc(name=one.name, version=one.version, digest=one.digest)
            for one in version.lock
        ],
        resources=msgspec.to_builtins(manifest.resources),
        limits=msgspec.to_builtins(manifest.limits),
        idle_timeout_s=manifest.idle_timeout_s,
        container=msgspec.to_builtins(manifest.container),
        digest=version.artifact.blob.digest,
        size_bytes=version.artifact.blob.size_bytes,
        files=[
            FileDoc(path=file.path, size_bytes=file.size_bytes, digest=file.digest)
            for file in version.artifact.files
        ],
        lineage=msgspec.to_builtins(manifest.lineage),
        parents=[
            VersionName(model=name, version=parent.number)
            for parent in version.parents
            if (name := name_of(parent.model_id))
        ],
        alike=_alike_docs(version, name_of),
        tags=dict(manifest.tags),
        input_schema=manifest.input_schema,
        check_input=manifest.check_input,
        output_schema=manifest.output_schema,
        options=dict(manifest.options),
        convention=manifest.convention,
        notes=list(manifest.notes),
        sample=manifest.sample,
        secrets=list(manifest.secrets),
        calls=list(manifest.calls),
        steps=[
            {"name": one.name, "target": str(one.target), "take": one.take}
            for one in manifest.steps
        ],
        isolation=manifest.isolation,
        batch=msgspec.to_builtins(manifest.batch),
        audit=manifest.audit,
        created_at=clock.text_from_ns(version.created_ns),
        created_by=version.created_by,
        retired_at=clock.text_from_ns(version.retired_ns) if version.retired_ns else None,
        url=f"{url}/api/v1/models/{tenant}/{model}/versions/{version.number}",
    )


def _alike_docs(version: Version, name_of: Callable[[str], str]) -> list[AlikeDoc]:
    return [
        AlikeDoc(
            model=name,
            version=one.number,
            kind=one.kind,
            share=one.share,
            text=alike.text_of(one, name),
        )
        for one in version.alike
        if (name := name_of(one.model_id))
    ]


def entry_doc_from_entry(entry: Entry, tenant: str) -> EntryDoc:
    """An audit entry as callers see it; ``tenant`` is its tenant's name, or id once it is gone."""
    return EntryDoc(
        seq=entry.seq,
        time=clock.text_from_ns(entry.time_ns),
        kind=entry.kind,
        tenant=tenant,
        actor=entry.actor,
        object=entry.object,
        event=shown(entry.kind, entry.event),
        leaf=entry.leaf,
    )
