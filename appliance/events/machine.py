"""Events of the machine itself: its keys, limits, backups, runtimes, and what it refused.

Owns: what happens to the appliance as a whole.
Never: anything of one tenant's models.
Read next: ``events`` (the list of all), ``store/FORMAT.md`` (their bytes).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from appliance.events.base import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Initialised(Event):
    """The data folder was created; ``slots`` names the unseal slots made."""

    KIND: ClassVar[str] = "appliance.initialised"
    slots: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsealed(Event):
    """The root key was opened through the named slot and the store verified."""

    KIND: ClassVar[str] = "appliance.unsealed"
    slot: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedAgain(Event):
    """The appliance dropped its keys; ``reason`` is ``command`` or ``shutdown``."""

    KIND: ClassVar[str] = "appliance.sealed"
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered(Event):
    """A torn, never acknowledged tail was cut off the ledger when it was opened."""

    KIND: ClassVar[str] = "ledger.recovered"
    segment: str
    cut_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsProbed(Event):
    """The resource limits in force, as probed; ``accepted`` if less than enforced was accepted."""

    KIND: ClassVar[str] = "limits.probed"
    level: str
    mechanism: str
    accepted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRefused(Event):
    """A request was refused; ``target`` is the route template, never the caller's own text."""

    KIND: ClassVar[str] = "request.refused"
    request_id: str
    method: str
    target: str
    status: int
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditVerified(Event):
    """The whole ledger was verified up to ``entries``; ``ok`` tells the result."""

    KIND: ClassVar[str] = "audit.verified"
    entries: int
    ok: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupMade(Event):
    """A backup was written; ``digest`` is the sha-256 of its manifest."""

    KIND: ClassVar[str] = "backup.made"
    name: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobRemoved(Event):
    """An unreferenced blob is about to be deleted."""

    KIND: ClassVar[str] = "blob.removed"
    blob_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxStopped(Event):
    """An administrator stopped a running sandbox."""

    KIND: ClassVar[str] = "sandbox.stopped"
    sandbox_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeRequested(Event):
    """Somebody asked for a runtime to be built (``verb`` build) or imported from a file (import).

    ``name`` is empty for a bundle, which says itself what it holds.
    """

    KIND: ClassVar[str] = "runtime.requested"
    verb: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeInstalled(Event):
    """A runtime was built or imported, or was there already; ``signer`` is its bundle's.

    ``sets`` are the dependency sets that came with it.
    """

    KIND: ClassVar[str] = "runtime.installed"
    verb: str
    name: str
    digest: str
    signer: str = ""
    sets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeVerified(Event):
    """A runtime's files were read back: ``state`` is same, different or unrecorded."""

    KIND: ClassVar[str] = "runtime.verified"
    name: str
    digest: str
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeExported(Event):
    """A runtime, and the dependency sets named, were written to a signed bundle."""

    KIND: ClassVar[str] = "runtime.exported"
    name: str
    digest: str
    sets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeRemoved(Event):
    """A runtime that no version used was removed."""

    KIND: ClassVar[str] = "runtime.removed"
    name: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DependenciesRemoved(Event):
    """Dependency sets that no version used were removed."""

    KIND: ClassVar[str] = "dependencies.removed"
    sets: tuple[str, ...]
