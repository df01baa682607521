"""What a version needs to run: its sandbox spec, its decrypted files and its secrets.

Owns: the one path on which plaintext of a model and its secrets goes from the store to a sandbox.
Never: writes it anywhere, decides when to run, or records anything.
Read next: ``invoke`` and ``lifecycle``, the only users.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from appliance import archive, config
from appliance.egress import closed, rules
from appliance.errors import NotFound, SecretMissing
from appliance.records import CallLimits, Isolation, Version, stronger
from appliance.sandbox.spec import Outlets, SandboxSpec
from appliance.store import Store


def spec_from_version(
    version: Version,
    settings: config.Sandbox,
    *,
    version_key: str = "",
    isolation: Isolation = "standard",
    outlets: Outlets | None = None,
) -> SandboxSpec:
    """The sandbox a version runs in.

    Args:
        version: the version, or a draft of one with number 0.
        settings: supplies the idle time where the manifest does not.
        version_key: overrides the key under which sandboxes are shared, for a trial run.
        isolation: the least its tenant's sandboxes get; the version may ask for more.
        outlets: the ways out that egress rules give it now.
    """
    manifest = version.manifest
    idle = manifest.idle_timeout_s
    tier = stronger(manifest.isolation, isolation)
    key = version_key or f"{version.model_id}/{version.number}"
    return SandboxSpec(
        version_key=key,
        tenant_id=version.tenant_id,
        runtime=manifest.runtime,
        runtime_digest=version.runtime_digest,
        deps_key=version.deps_key,
        resources=manifest.resources,
        limits=_within(manifest.limits, settings),
        model_bytes=version.artifact.blob.size_bytes,
        # What was registered before a ceiling was lowered meets it all the same.
        idle_timeout_s=settings.idle_timeout_s
        if idle is None
        else min(idle, settings.idle_timeout_s_max),
        entry=manifest.entry,
        outlets=outlets if tier == "standard" else None,  # others have a network stack inside
        caution=closed.CAUTION if outlets is not None and tier != "standard" else "",
        container=manifest.container,
        options=manifest.options,
        isolation=tier,
        batch=manifest.batch,
        makes_calls=bool(manifest.calls),
    )


def spec_in_force(store: Store, version: Version, settings: config.Sandbox) -> SandboxSpec:
    """The sandbox a version runs in by what its tenant's settings and egress rules say now."""
    return spec_from_version(
        version,
        settings,
        isolation=isolation_of(store, version.tenant_id),
        outlets=outlets_of_version(store, version),
    )


def _within(limits: CallLimits, settings: config.Sandbox) -> CallLimits:
    return replace(
        limits,
        load_timeout_ms=min(limits.load_timeout_ms, settings.load_timeout_ms_max),
        invoke_timeout_ms=min(limits.invoke_timeout_ms, settings.invoke_timeout_ms_max),
    )


def isolation_of(store: Store, tenant_id: str) -> Isolation:
    """The least isolation a tenant's sandboxes get."""
    tenant = store.registry.snapshot.tenant_by_id(tenant_id)
    return tenant.isolation if tenant else "standard"


def secrets_in_force(store: Store, version: Version, *, model_id: str = "") -> tuple[str, ...]:
    """Ids of the secrets a version gets if it starts now, in the order of their names.

    Args:
        store: where they are.
        version: the version, or a draft of one.
        model_id: the model whose secrets they are, for a draft.

    Raises:
        SecretMissing: one it needs is not set; ``extensions["missing"]`` lists all such names.
    """
    snapshot = store.registry.snapshot
    found = {s.name: s.id for s in snapshot.secrets(model_id or version.model_id)}
    missing = [name for name in version.manifest.secrets if name not in found]
    if missing:
        raise SecretMissing(
            f"The version needs the secret '{missing[0]}', which is not set for its model.",
            hint=f"appliance secret set TENANT/MODEL {missing[0]}",
            missing=missing,
        )
    return tuple(found[name] for name in version.manifest.secrets)


def outlets_of_version(store: Store, version: Version) -> Outlets | None:
    """The ways out of a version's sandboxes by the egress rules of now; ``None`` for none."""
    model = store.registry.snapshot.model_by_id(version.model_id)
    return outlets_of_model(store, version.tenant_id, model.name) if model else None


def outlets_of_model(store: Store, tenant_id: str, model: str) -> Outlets | None:
    """The same for any version of a model, which need not exist yet."""
    known = store.registry.snapshot.egress_rules(tenant_id)
    return rules.outlets_for(known, model) if known else None


def files_of_version(
    store: Store, version: Version, *, model_id: str = ""
) -> Callable[[], AsyncIterator[bytes]]:
    """A function that opens the version's files as one decrypted tar stream, at each call anew.

    The secrets the version names, and no others, are the last files of it.
    """
    tenant_id, blob = version.tenant_id, version.artifact.blob
    owner_id = model_id or version.model_id

    async def with_secrets() -> AsyncIterator[bytes]:
        kept = blob.size_bytes - archive.END_BYTES
        async for piece in store.blobs.read(tenant_id, blob.id, length=kept):
            yield piece
        values = {name: _value(store, owner_id, name) for name in version.manifest.secrets}
        yield archive.closing_with_secrets(values)

    def open_stream() -> AsyncIterator[bytes]:
        return with_secrets() if version.manifest.secrets else store.blobs.read(tenant_id, blob.id)

    return open_stream


def _value(store: Store, model_id: str, name: str) -> bytes:
    registry = store.registry
    for _attempt in range(2):  # one that is replaced in between loses its key
        secret = registry.snapshot.secret(model_id, name)
        if secret is None:
            break
        try:
            return registry.secrets.value(secret)
        except NotFound:
            continue
    raise SecretMissing(f"The secret '{name}' was removed while the model started.")
