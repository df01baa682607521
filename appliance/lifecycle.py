"""Registration: an upload becomes an immutable version, or nothing at all.

Owns: the steps of a registration and their order: receive, check, build, try, register.
Never: parses HTTP or decides who may register; changes a version once it exists.
Read next: ``archive``, ``manifest``, ``sandbox.dependencies``, ``store.registry``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from appliance import (
    archive,
    clock,
    config,
    conventions,
    lineage,
    manifest,
    probe,
    provision,
    trial,
)
from appliance.catalogue import Catalogue, found_alike
from appliance.catalogue.alike import text_of
from appliance.errors import (
    BuildFailed,
    FieldError,
    GuestError,
    LoadFailed,
    ManifestInvalid,
    SecretMissing,
    UnsupportedMedia,
)
from appliance.records import (
    LIVE,
    Alike,
    Artifact,
    Container,
    Manifest,
    Parent,
    Tenant,
    Version,
    require_name,
)
from appliance.sandbox import compiling, dependencies, images
from appliance.sandbox.executor import Executor
from appliance.sandbox.pool import Pool
from appliance.store import Store
from appliance.tracked import Promise

_log = logging.getLogger(__name__)

Progress = Callable[[str, str, float], None]
"""Called with (step, detail, fraction 0..1) as a registration advances."""

_BATCH_BYTES = 1024 * 1024
_GZIP_BATCH_BYTES = 128 * 1024  # at the largest ratio accepted, 12.5 MiB come out of one batch
_MEDIA_TYPES = {
    "application/x-tar": False,
    "application/gzip": True,
    "application/x-gzip": True,
    "application/x-gtar": True,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """How far a registration is, by names a person knows; ``fraction`` is of the whole."""

    tenant: str
    model: str
    step: str
    detail: str
    fraction: float
    started_at: str


class Lifecycle:
    """Registers versions; one per unsealed node."""

    def __init__(
        self,
        store: Store,
        pool: Callable[[], Pool],
        executor: Callable[[], Executor],
        settings: config.Settings,
    ) -> None:
        """Args: ``pool`` and ``executor`` raise the problem that keeps sandboxes away, if any."""
        self.catalogue = Catalogue()
        self._store = store
        self._pool = pool
        self._executor = executor
        self._settings = settings
        self._data_dir = Path(settings.paths.data_dir)
        self._registrations: dict[str, Registration] = {}

    async def register(
        self,
        *,
        principal_id: str,
        tenant: Tenant,
        model_name: str,
        media_type: str,
        chunks: AsyncIterator[bytes],
        may_see: lineage.MaySee = lambda _name: True,
        progress: Progress = lambda _step, _detail, _fraction: None,
        promised: Promise | None = None,
    ) -> Version:
        """A new version made from an uploaded archive, after it proved that it loads.

        Args:
            principal_id: who registers, for the audit.
            tenant: the owner.
            model_name: an existing model's name, or a new one that is then created.
            media_type: ``application/x-tar`` or ``application/gzip``.
            chunks: the archive as it arrives.
            may_see: which of the tenant's models may be named to who registers.
            progress: told about each step.
            promised: the number it gets, and the run it comes from where its files say none.

        Raises:
            UnsupportedMedia, ArchiveRejected, TooLarge, ManifestInvalid: the upload is refused.
            BuildFailed: a requirement cannot be installed, or the source does not compile.
            SecretMissing: the manifest names a secret that is not set for this model.
            LoadFailed: the model does not load; ``extensions["stderr"]`` has its last lines.
            StateError, HostError: the appliance cannot build or try the model now.
        Audit: model.created (new name), version.registered, alias.set (first version), one frame.
        """
        require_name(model_name, "model")
        name = clock.new_id("reg")
        started_at = clock.text_from_ns(clock.now_ns())

        def tell(step: str, detail: str, fraction: float) -> None:
            self._registrations[name] = Registration(
                tenant=tenant.name,
                model=model_name,
                step=step,
                detail=detail,
                fraction=fraction,
                started_at=started_at,
            )
            progress(step, detail, fraction)

        try:
            return await self._register(
                principal_id, tenant, model_name, media_type, chunks, may_see, tell, promised
            )
        finally:
            self._registrations.pop(name, None)

    def registrations(self) -> tuple[Registration, ...]:
        """What is being registered now, oldest first."""
        return tuple(self._registrations.values())

    async def _register(
        self,
        principal_id: str,
        tenant: Tenant,
        model_name: str,
        media_type: str,
        chunks: AsyncIterator[bytes],
        may_see: lineage.MaySee,
        progress: Progress,
        promised: Promise | None,
    ) -> Version:
        is_gzip = _is_gzip(media_type)
        progress("receive", "reading the archive", 0.0)
        artifact, declared, captured = await self._receive(tenant, chunks, is_gzip=is_gzip)
        if promised and promised.run_id:
            declared = self._with_run(tenant, declared, promised.run_id)
        for note in declared.notes:
            progress("recognise", note, 0.1)
        parents = self._parents(tenant, declared, captured, may_see)
        early = await self._alike(tenant, model_name, declared, artifact)
        self._tell(early, may_see, progress, 0.1)
        if declared.steps:
            self._require_steps(tenant, model_name, declared, may_see)
            return await self._store.registry.register_version(
                tenant_id=tenant.id, model_name=model_name, manifest=declared, artifact=artifact,
                runtime_digest="", parents=parents, alike=early, actor=principal_id,
                number=promised.number if promised else 0)  # fmt: skip
        model_id = self._require_secrets(tenant, model_name, declared)
        runtime = images.require(self._data_dir, declared.runtime)
        if runtime.image is not None:
            images.require_servable(runtime, declared.container or Container())
        built = await self._build(runtime, declared, captured, progress)
        artifact = await self._compile(tenant, declared, artifact, built.key, progress)
        draft = _draft(tenant, declared, artifact, runtime, built, principal_id)
        progress("try", "loading the model in a sandbox", 0.8)
        declared = await self._try(draft, model_id, model_name)
        for note in declared.notes[len(draft.manifest.notes) :]:
            progress("try", note, 0.9)
        alike = await self._alike(tenant, model_name, declared, artifact)
        self._tell((one for one in alike if one not in early), may_see, progress, 0.9)
        progress("register", "writing the version", 0.95)
        return await self._store.registry.register_version(
            tenant_id=tenant.id,
            model_name=model_name,
            manifest=declared,
            artifact=artifact,
            runtime_digest=runtime.digest,
            deps_key=built.key,
            lock=built.lock,
            parents=parents,
            alike=alike,
            number=promised.number if promised else 0,
            actor=principal_id,
        )

    async def _receive(
        self, tenant: Tenant, chunks: AsyncIterator[bytes], *, is_gzip: bool
    ) -> tuple[Artifact, Manifest, dict[str, bytes]]:
        """Stream the upload through the parser into a sealed blob; nothing is kept on failure.

        The third part is the text of the files a manifest is or names.
        """
        http = self._settings.http
        probes = probe.Probes()
        reader = archive.Reader(
            archive.Limits(bytes_max=http.upload_bytes_max, files_max=http.upload_files_max),
            is_gzip=is_gzip,
            watch=probes.watch,
        )
        async with self._store.blobs.writer(tenant.id) as writer:
            async for batch in _batched(chunks, _GZIP_BATCH_BYTES if is_gzip else _BATCH_BYTES):
                # Hashing and inflating a megabyte would hold the event loop for milliseconds.
                await writer.write(await asyncio.to_thread(_joined, reader, batch))
            tail, listing = reader.finish()
            await writer.write(tail)
            imported = await asyncio.to_thread(images.imported, self._data_dir)
            paths = [file.path for file in listing.files]
            # A manifest of 200 KiB takes a tenth of a second to read.
            declared = await asyncio.to_thread(
                conventions.manifest_of, paths, listing.captured, probes.claims, imported
            )
            self._require_modest(declared, listing.captured)
            blob = await writer.commit()
        return Artifact(blob=blob, files=listing.files), declared, listing.captured

    async def _build(
        self,
        runtime: images.Runtime,
        declared: Manifest,
        captured: dict[str, bytes],
        progress: Progress,
    ) -> dependencies.Built:
        """The installed dependencies; a package that fails is named with the line that wants it."""
        if not declared.requirements:
            return dependencies.Built()
        progress("build", "installing dependencies", 0.2)
        try:
            return await dependencies.ensure(
                self._executor(),
                runtime,
                declared.requirements,
                self._settings.build,
                lambda detail, fraction: progress("build", detail, 0.2 + 0.6 * fraction),
            )
        except BuildFailed as error:
            place = manifest.place_of(captured, str(error.extensions.get("package", "")))
            if not place:
                raise
            raise BuildFailed(
                f"{place}: {error.detail}",
                hint=error.hint,
                fields=(FieldError(pointer=place, detail=error.detail),),
                **error.extensions,
            ) from error

    async def _compile(
        self,
        tenant: Tenant,
        declared: Manifest,
        artifact: Artifact,
        deps_key: str,
        progress: Progress,
    ) -> Artifact:
        """The artifact with what its source compiles to; itself where nothing is to compile."""
        compiler, path = compiling.target_of(declared.runtime)
        if not compiler or any(file.path == path for file in artifact.files):
            return artifact
        progress("build", "compiling", 0.3)
        blobs = self._store.blobs
        program = await compiling.compiled(
            self._executor(),
            images.require(self._data_dir, compiler),
            tenant_id=tenant.id,
            entry=declared.entry,
            model_bytes=artifact.blob.size_bytes,
            tar=blobs.read(tenant.id, artifact.blob.id),
            build=self._settings.build,
            deps_key=deps_key,
        )
        tail, file = archive.closing_with(path, program)
        kept = artifact.blob.size_bytes - archive.END_BYTES
        async with blobs.writer(tenant.id) as writer:
            async for piece in blobs.read(tenant.id, artifact.blob.id, length=kept):
                await writer.write(piece)
            await writer.write(tail)
            blob = await writer.commit()
        return Artifact(blob=blob, files=(*artifact.files, file))

    async def _try(self, draft: Version, model_id: str, model_name: str) -> Manifest:
        """Load the draft once in a sandbox of its own; its manifest with what that showed.

        The sandbox is then destroyed.

        Raises:
            LoadFailed: it did not load, whatever way it failed.
        """
        isolation = provision.isolation_of(self._store, draft.tenant_id)
        files = provision.files_of_version(self._store, draft, model_id=model_id)
        outlets = provision.outlets_of_model(self._store, draft.tenant_id, model_name)
        spec = provision.spec_from_version(
            draft, self._settings.sandbox, isolation=isolation, outlets=outlets
        )
        pool = self._pool()
        try:
            async with pool.lease(spec, files) as lease:
                declared = await trial.completed(lease, draft.manifest)
                notes = (spec.caution,) if spec.caution else ()
                return replace(declared, notes=(*declared.notes, *notes))
        except GuestError as error:
            raise LoadFailed(
                error.detail, hint=error.hint, stderr=list(error.stderr), cause=error.slug
            ) from error
        finally:
            await pool.evict(spec.version_key)

    def _with_run(self, tenant: Tenant, declared: Manifest, run_id: str) -> Manifest:
        """The manifest with the run and its data sets as lineage, where it names none itself."""
        run = self._store.registry.snapshot.tracking(tenant.id).runs.get(run_id)
        data = tuple(f"{one.name} {one.digest}" for one in run.data) if run else ()
        told = declared.lineage
        own = replace(told, run=told.run or run_id, data=told.data or data)
        return replace(declared, lineage=own)

    def _parents(
        self,
        tenant: Tenant,
        declared: Manifest,
        captured: Mapping[str, bytes],
        may_see: lineage.MaySee,
    ) -> tuple[Parent, ...]:
        """The versions that the manifest names as parents; one that is not there is a problem."""
        return lineage.parents_of(
            self._store.registry.snapshot,
            tenant,
            declared.lineage.parents,
            may_see=may_see,
            place=manifest.place_of_key(captured, "lineage", "parents"),
        )

    async def _alike(
        self, tenant: Tenant, model_name: str, declared: Manifest, artifact: Artifact
    ) -> tuple[Alike, ...]:
        """What is registered already that is much like this."""
        snapshot = self._store.registry.snapshot

        def find() -> tuple[Alike, ...]:
            shelves = self.catalogue.shelves(snapshot, tenant.id)
            return found_alike(shelves, model_name, declared, artifact)

        return await asyncio.to_thread(find)

    def _tell(
        self, found: Iterable[Alike], may_see: lineage.MaySee, progress: Progress, fraction: float
    ) -> None:
        """Say so, before time is spent on what is there already."""
        for one in found:
            model = self._store.registry.snapshot.model_by_id(one.model_id)
            if model is not None and may_see(model.name):
                progress("compare", text_of(one, model.name), fraction)

    def _require_secrets(self, tenant: Tenant, model_name: str, declared: Manifest) -> str:
        """The id of the model, empty while there is none, if what the version needs is set."""
        snapshot = self._store.registry.snapshot
        model = snapshot.model(tenant.id, model_name)
        known = {secret.name for secret in snapshot.secrets(model.id)} if model else set()
        missing = [name for name in declared.secrets if name not in known]
        if missing:
            raise SecretMissing(
                f"The manifest names the secret '{missing[0]}', which is not set.",
                hint=f"appliance secret set {tenant.name}/{model_name} {missing[0]}",
                missing=missing,
            )
        return model.id if model else ""

    def _require_steps(
        self, tenant: Tenant, model_name: str, declared: Manifest, may_see: lineage.MaySee
    ) -> None:
        """Return if a pipeline's steps are there and none of them leads back to it.

        Raises:
            ManifestInvalid: one is not, or does.
        """
        snapshot = self._store.registry.snapshot
        left = [(step.name, step.target) for step in declared.steps]
        seen = set()
        while left:
            name, target = left.pop()
            model = snapshot.model(tenant.id, target.model) if may_see(target.model) else None
            if not target.number and target.model == model_name:
                raise ManifestInvalid(f"pipeline.toml: step '{name}' leads back to the pipeline.")
            number = target.number
            if model is not None and not number:
                alias = snapshot.alias(model.id, target.alias or LIVE)
                number = alias.number if alias else 0
            version = snapshot.version(model.id, number) if model is not None else None
            if version is None or version.retired_ns:
                raise ManifestInvalid(
                    f"pipeline.toml: step '{name}' calls '{target}', which is not in service.",
                    hint=f"appliance model list {tenant.name}",
                )
            if (version.model_id, number) not in seen:
                seen.add((version.model_id, number))
                left += [(name, step.target) for step in version.manifest.steps]

    def _require_modest(self, declared: Manifest, captured: Mapping[str, bytes]) -> None:
        """The appliance's own ceilings, and what GPUs there are."""
        manifest.require_modest(declared, captured, self._settings.sandbox)
        if declared.resources.gpus and (
            refusal := self._executor().places.refusal(declared.resources)
        ):
            raise ManifestInvalid(refusal, hint="Ask for less; 'appliance gpu list' shows them.")


def _is_gzip(media_type: str) -> bool:
    """Whether an archive of this type is compressed. Raises UnsupportedMedia."""
    if media_type not in _MEDIA_TYPES:
        raise UnsupportedMedia(
            f"'{media_type[:80]}' is not an archive type accepted here.",
            hint="Send application/x-tar or application/gzip; 'appliance model push' does.",
        )
    return _MEDIA_TYPES[media_type]


def _joined(reader: archive.Reader, batch: bytes) -> bytes:
    return b"".join(reader.feed(batch))


async def _batched(chunks: AsyncIterator[bytes], size_bytes: int) -> AsyncIterator[bytes]:
    """The same bytes in pieces of about ``size_bytes``."""
    held = bytearray()
    async for chunk in chunks:
        held += chunk
        if len(held) >= size_bytes:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)


def _draft(
    tenant: Tenant,
    declared: Manifest,
    artifact: Artifact,
    runtime: images.Runtime,
    built: dependencies.Built,
    principal_id: str,
) -> Version:
    """A version of nothing, to try."""
    return Version(
        model_id=clock.new_id("try"),
        tenant_id=tenant.id,
        number=0,
        manifest=declared,
        artifact=artifact,
        runtime_digest=runtime.digest,
        deps_key=built.key,
        lock=built.lock,
        created_ns=clock.now_ns(),
        created_by=principal_id,
    )
