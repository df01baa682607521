"""Registrations that outlive the request that asked for them: promised versions, kept or not.

Owns: giving out a version's number, running its registration beside everything else, one at a
time, what a restart does to it, and the archive that a draft's files make.
Never: parses HTTP, or registers by itself: that is ``lifecycle``.
Read next: ``lifecycle``, ``tracking`` (drafts and files), ``store.tracking`` (what events do).

A promised version is registered exactly as an upload is: nothing is registered before it loaded
once, so one that a restart cut off simply runs again. What fails keeps its number and its reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

from appliance import archive, clock
from appliance.errors import (
    ApplianceError,
    AuditUnavailable,
    CapacityExhausted,
    Draining,
    Forbidden,
    Gone,
    HostError,
    NotFound,
    PodmanUnavailable,
    QuotaExceeded,
)
from appliance.events import Event, PromiseRemoved, VersionFailed, VersionPromised
from appliance.lifecycle import Lifecycle
from appliance.records import Model, Tenant
from appliance.store import Store
from appliance.store.tracking import at
from appliance.tracked import Promise
from appliance.tracking import Tracking, below

_log = logging.getLogger(__name__)
_ACTOR = "appliance"
_RETRY_S = 5.0
_TRIES_MAX = 60
_PASSING = (CapacityExhausted, Draining, PodmanUnavailable, AuditUnavailable)
_PENDING_MAX = 20
_FAILED_MAX = 200
_REASON_CHARACTERS_MAX = 2000
_TAR = "application/x-tar"


class Intake:
    """Gives promises and keeps them; one per unsealed node."""

    def __init__(self, store: Store, lifecycle: Lifecycle, tracking: Tracking) -> None:
        """Register through ``lifecycle`` what ``tracking`` keeps; ``follow`` does the work."""
        self._store = store
        self._lifecycle = lifecycle
        self._tracking = tracking
        self._wake = asyncio.Event()
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._tries: dict[str, int] = {}

    async def promise(self, model: Model, wanted: Promise, *, actor: str) -> Promise:
        """A promise of the model's next version; its registration begins when it is its turn.

        Args:
            model: of which model.
            wanted: where the files are; number, times and names are filled in.
            actor: in whose name the version is registered.

        Raises:
            NotFound: there is no such model, or no file where the source says.
            QuotaExceeded: too many registrations of the tenant wait, or failed and are listed.
        Audit: version.promised.
        """
        self._require_files(model, wanted)
        made: list[Promise] = []

        def make() -> list[Event]:
            snapshot = self._store.registry.snapshot
            known = snapshot.model_by_id(model.id)
            if known is None or known.removed_ns:
                raise NotFound("There is no such model.")
            promises = list(self._tracking.of(model.tenant_id).promises.values())
            waiting = sum(one.state == "pending" for one in promises)
            failed = sum(one.state == "failed" for one in promises)
            if waiting >= _PENDING_MAX or failed >= _FAILED_MAX:
                raise QuotaExceeded(
                    f"{waiting} versions wait to be registered and {failed} could not be; there "
                    f"may be {_PENDING_MAX} and {_FAILED_MAX}.",
                    hint="wait, or delete versions whose registration failed",
                )
            now = clock.now_ns()
            fresh = Promise(
                model_id=model.id,
                number=snapshot.next_number(model),
                source=wanted.source,
                run_id=wanted.run_id,
                draft_id=wanted.draft_id,
                folder=wanted.folder,
                of_model=wanted.of_model,
                of_number=wanted.of_number,
                created_ns=now,
                created_by=actor,
                changed_ns=now,
            )
            made.append(fresh)
            return [VersionPromised(promise=fresh)]

        await self._change(model.tenant_id, make, actor)
        self._wake.set()
        return made[0]

    async def dismiss(self, model: Model, number: int, *, actor: str) -> None:
        """No longer list a version that could not be registered; its number stays given.

        Raises:
            NotFound: there is none, or it is still being registered.
        Audit: version.dismissed.
        """

        def make() -> list[Event]:
            known = self._tracking.of(model.tenant_id).promise(model.id, number)
            if known is None or known.state != "failed":
                raise NotFound("There is no failed registration of this number.")
            return [PromiseRemoved(model_id=model.id, number=number)]

        await self._change(model.tenant_id, make, actor)

    async def settled(self, tenant_id: str, promise: Promise, timeout_s: float) -> None:
        """Wait until a promise is kept or failed, or for a time."""
        event = asyncio.Event()
        key = at(promise.model_id, promise.number)
        watching = self._watchers.setdefault(key, set())
        watching.add(event)
        try:
            now = self._tracking.of(tenant_id).promises.get(key)
            if now is not None and now.state == "pending":
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(timeout_s):
                        await event.wait()
        finally:
            watching.discard(event)
            if not watching:
                self._watchers.pop(key, None)

    async def follow(self) -> None:
        """Keep promises, oldest first, for ever; those of an earlier life of the node as well."""
        while True:
            self._wake.clear()
            found = self._next()
            if found is None:
                await self._wake.wait()
                continue
            try:
                await self._keep(*found)
            except ApplianceError as error:
                _log.warning("a registration waits: %s", error.detail)
                await asyncio.sleep(_RETRY_S)

    def _next(self) -> tuple[Tenant, Promise] | None:
        snapshot = self._store.registry.snapshot
        pending = [
            (tenant, promise)
            for tenant in snapshot.tenants()
            for promise in snapshot.tracking(tenant.id).promises.values()
            if promise.state == "pending"
        ]
        return min(pending, key=lambda one: one[1].created_ns, default=None)

    async def _keep(self, tenant: Tenant, promise: Promise) -> None:
        key = at(promise.model_id, promise.number)
        try:
            await self._register(tenant, promise)
        except ApplianceError as error:
            tries = self._tries[key] = self._tries.get(key, 0) + 1
            if isinstance(error, _PASSING) and tries < _TRIES_MAX:
                raise  # no sandbox, no room: tried again
            await self._fail(tenant, promise, _reason_of(error))
        except Exception:  # noqa: BLE001 - a promise must end, whatever happens
            _log.exception("registering %s/%d", promise.model_id, promise.number)
            problem = HostError("Something failed inside the appliance.")
            await self._fail(tenant, promise, _reason_of(problem))
        self._tries.pop(key, None)
        for event in self._watchers.get(key, ()):
            event.set()

    async def _register(self, tenant: Tenant, promise: Promise) -> None:
        snapshot = self._store.registry.snapshot
        model = snapshot.model_by_id(promise.model_id)
        if model is None or model.removed_ns:
            raise NotFound("The model was removed meanwhile.")
        key = snapshot.key(promise.created_by)
        if key is not None and (key.revoked_ns or key.expires_ns <= clock.now_ns()):
            raise Forbidden("The key this was asked with was revoked or has expired.")
        await self._lifecycle.register(
            principal_id=promise.created_by,
            tenant=tenant,
            model_name=model.name,
            media_type=_TAR,
            chunks=self._archive(tenant.id, model, promise),
            promised=promise,
        )

    async def _fail(self, tenant: Tenant, promise: Promise, reason: str) -> None:
        def make() -> list[Event]:
            now = self._tracking.of(tenant.id).promise(promise.model_id, promise.number)
            if now is None or now.state != "pending":
                return []
            return [VersionFailed(model_id=promise.model_id, number=promise.number, reason=reason)]

        with contextlib.suppress(NotFound):  # the tenant was removed meanwhile
            await self._change(tenant.id, make, _ACTOR)

    def _require_files(self, model: Model, wanted: Promise) -> None:
        if wanted.of_model:
            snapshot = self._store.registry.snapshot
            version = snapshot.version(wanted.of_model, wanted.of_number)
            if version is None or version.tenant_id != model.tenant_id:
                raise NotFound("There is no such version to copy.")
            if version.retired_ns:
                raise Gone(f"Version {wanted.of_number} is retired.")
        elif not below(self._tracking.files(model.tenant_id, wanted.draft_id), wanted.folder):
            raise NotFound(
                "No files were logged there.",
                hint="log the model to this appliance first; its artifacts are what is registered",
            )

    async def _archive(self, tenant_id: str, model: Model, wanted: Promise) -> AsyncIterator[bytes]:
        """The files of the source as the archive that an upload would be."""
        self._require_files(model, wanted)
        if wanted.of_model:
            version = self._store.registry.snapshot.version(wanted.of_model, wanted.of_number)
            if version is not None:
                async for piece in self._store.blobs.read(tenant_id, version.artifact.blob.id):
                    yield piece
            return
        files = below(self._tracking.files(tenant_id, wanted.draft_id), wanted.folder)
        prefix = f"{wanted.folder}/" if wanted.folder else ""
        for path, file in sorted(files.items()):
            name = path.removeprefix(prefix)
            yield archive.canonical_header(name, file.size_bytes, is_directory=False)
            async for piece in self._tracking.content(tenant_id, file):
                yield piece
            yield b"\0" * (-file.size_bytes % archive.BLOCK)
        yield b"\0" * archive.END_BYTES

    async def _change(self, tenant_id: str, make: Callable[[], list[Event]], actor: str) -> None:
        await self._store.registry.change(make, tenant_id=tenant_id, actor=actor, obj=tenant_id)


def _reason_of(error: ApplianceError) -> str:
    """A problem in the words its owner may see, the last lines of the model included."""
    lines = [error.detail, *([error.hint] if error.hint else [])]
    stderr = error.extensions.get("stderr") or ()
    lines += [str(line) for line in list(stderr)[-5:]]
    return "\n".join(lines)[:_REASON_CHARACTERS_MAX]
