"""What a version needs to run: its sandbox spec and its decrypted files.

Owns: the one path on which plaintext model bytes go from the store to a sandbox.
Never: writes them anywhere, decides when to run, or records anything.
Read next: ``invoke`` and ``lifecycle``, the only users.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from appliance import config
from appliance.records import Version
from appliance.sandbox.spec import SandboxSpec
from appliance.store import Store


def spec_from_version(
    version: Version, settings: config.Sandbox, *, version_key: str = ""
) -> SandboxSpec:
    """The sandbox a version runs in.

    Args:
        version: the version, or a draft of one with number 0.
        settings: supplies the idle time where the manifest does not.
        version_key: overrides the key under which sandboxes are shared, for a trial run.
    """
    manifest = version.manifest
    idle = manifest.idle_timeout_s
    return SandboxSpec(
        version_key=version_key or f"{version.model_id}/{version.number}",
        tenant_id=version.tenant_id,
        runtime=manifest.runtime,
        runtime_digest=version.runtime_digest,
        deps_key=version.deps_key,
        resources=manifest.resources,
        limits=manifest.limits,
        model_bytes=version.artifact.blob.size_bytes,
        idle_timeout_s=settings.idle_timeout_s if idle is None else idle,
        entry=manifest.entry,
        container=manifest.container,
        options=manifest.options,
    )


def files_of_version(store: Store, version: Version) -> Callable[[], AsyncIterator[bytes]]:
    """A function that opens the version's files as one decrypted tar stream, at each call anew."""

    def open_stream() -> AsyncIterator[bytes]:
        return store.blobs.read(version.tenant_id, version.artifact.blob.id)

    return open_stream
