"""The closed list of audit events, one dataclass each.

Owns: every kind of entry the ledger may hold, its fields, and whether they are sealed under the
tenant's own key (``SEALED``), so that destroying that key destroys them.
Never: writes, reads or interprets the ledger.
Read next: ``store.registry`` (applies them), ``store/FORMAT.md`` (their bytes).

Adding an event is one dataclass here; kinds are never renamed and fields never change meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from appliance.records import (
    Alias,
    ApiKey,
    EgressRule,
    Isolation,
    Job,
    JobEnd,
    Model,
    Reservation,
    Route,
    Secret,
    Tenant,
    Version,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base of all events: ``KIND`` is stable text; ``SEALED`` fields are under the tenant's key.

    ``HIDDEN`` members are never shown: paths of names, into the event's own fields.
    """

    KIND: ClassVar[str] = ""
    SEALED: ClassVar[bool] = False
    HIDDEN: ClassVar[tuple[tuple[str, ...], ...]] = ()


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
class TenantCreated(Event):
    """A tenant was created."""

    KIND: ClassVar[str] = "tenant.created"
    SEALED: ClassVar[bool] = True
    tenant: Tenant


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantIsolationSet(Event):
    """How strongly a tenant's sandboxes are kept apart, from their next start on."""

    KIND: ClassVar[str] = "tenant.isolation-set"
    tenant_id: str
    isolation: Isolation


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantRemoved(Event):
    """A tenant was removed and its keys destroyed; its sealed events are unreadable from now on."""

    KIND: ClassVar[str] = "tenant.removed"
    tenant_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyCreated(Event):
    """An API key was issued; only its HMAC is recorded."""

    KIND: ClassVar[str] = "key.created"
    SEALED: ClassVar[bool] = True
    HIDDEN: ClassVar[tuple[tuple[str, ...], ...]] = (("key", "mac"),)
    key: ApiKey


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRevoked(Event):
    """An API key was revoked and is refused from now on."""

    KIND: ClassVar[str] = "key.revoked"
    key_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCreated(Event):
    """A model name was taken."""

    KIND: ClassVar[str] = "model.created"
    SEALED: ClassVar[bool] = True
    model: Model


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRemoved(Event):
    """A model and all its versions were removed from service."""

    KIND: ClassVar[str] = "model.removed"
    model_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRegistered(Event):
    """An immutable version was registered."""

    KIND: ClassVar[str] = "version.registered"
    SEALED: ClassVar[bool] = True
    version: Version


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRetired(Event):
    """A version was taken out of service; it answers 410 from now on."""

    KIND: ClassVar[str] = "version.retired"
    model_id: str
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasSet(Event):
    """An alias was created or moved."""

    KIND: ClassVar[str] = "alias.set"
    SEALED: ClassVar[bool] = True
    alias: Alias


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasRemoved(Event):
    """An alias was removed."""

    KIND: ClassVar[str] = "alias.removed"
    SEALED: ClassVar[bool] = True
    model_id: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteSet(Event):
    """A model's route was set or changed, by somebody or by its canary rule; one revision."""

    KIND: ClassVar[str] = "route.set"
    SEALED: ClassVar[bool] = True
    route: Route


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteRemoved(Event):
    """A model's route ended, by promotion or removal: ``live`` decides again; its last revision."""

    KIND: ClassVar[str] = "route.removed"
    SEALED: ClassVar[bool] = True
    route: Route


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservationSet(Event):
    """A number of a version's sandboxes is kept loaded from now on."""

    KIND: ClassVar[str] = "reservation.set"
    reservation: Reservation


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservationRemoved(Event):
    """A version's sandboxes are made on demand again; retiring it does this too, unsaid."""

    KIND: ClassVar[str] = "reservation.removed"
    model_id: str
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretSet(Event):
    """A model's secret was set or replaced; its value is sealed once more inside this event."""

    KIND: ClassVar[str] = "secret.set"
    SEALED: ClassVar[bool] = True
    HIDDEN: ClassVar[tuple[tuple[str, ...], ...]] = (("secret", "box"),)
    secret: Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretRemoved(Event):
    """A model's secret was removed and the key of its value destroyed."""

    KIND: ClassVar[str] = "secret.removed"
    SEALED: ClassVar[bool] = True
    model_id: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobQueued(Event):
    """A call was taken on as a job; its input is a sealed blob."""

    KIND: ClassVar[str] = "job.queued"
    SEALED: ClassVar[bool] = True
    job: Job


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStarted(Event):
    """A job is about to be handed to its model; durable before that."""

    KIND: ClassVar[str] = "job.started"
    job_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequeued(Event):
    """A started job waits again: ``capacity`` kept it from its model, or a ``restart`` cut it off.

    Only a job whose caller declared that it may run twice is queued again after a restart.
    """

    KIND: ClassVar[str] = "job.requeued"
    job_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnded(Event):
    """A job has its answer, failed or was cancelled; nothing more happens to it."""

    KIND: ClassVar[str] = "job.ended"
    SEALED: ClassVar[bool] = True
    job_id: str
    end: JobEnd


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsRemoved(Event):
    """Ended jobs were forgotten after their time; their payloads are about to be deleted."""

    KIND: ClassVar[str] = "job.removed"
    job_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobRemoved(Event):
    """An unreferenced blob is about to be deleted."""

    KIND: ClassVar[str] = "blob.removed"
    blob_id: str


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
class CallIntent(Event):
    """A call was admitted; durable before the model sees the request. Digests are keyed (HMAC).

    ``route_revision`` is the revision of the route that chose the version, 0 if none did.
    ``shadow_of`` is the call whose body is repeated, empty for a call of its own.
    """

    KIND: ClassVar[str] = "call.intent"
    call_id: str
    model_id: str
    number: int
    request_digest: str
    request_bytes: int
    route_revision: int = 0
    shadow_of: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOutcome(Event):
    """How a call ended; durable before the reply leaves. ``code`` is ``ok`` or a problem slug.

    ``code`` is ``unknown`` for an intent whose process died before an outcome was written.
    ``match`` is how a shadow's reply compares with the caller's: ``equal``, ``close`` or
    ``different``.
    """

    KIND: ClassVar[str] = "call.outcome"
    call_id: str
    intent_seq: int
    model_id: str
    number: int
    code: str
    status: int
    reply_digest: str
    reply_bytes: int
    cold: bool
    queue_us: int
    load_us: int
    compute_us: int
    total_us: int
    sandbox_id: str
    route_revision: int = 0
    shadow_of: str = ""
    match: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricReported(Event):
    """A caller said how good a routed call's answer turned out to be; the last word counts."""

    KIND: ClassVar[str] = "metric.reported"
    SEALED: ClassVar[bool] = True
    call_id: str
    model_id: str
    number: int
    route_revision: int
    value: float


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
class EgressRuleAdded(Event):
    """An egress rule was added, before the rule ``before``, or last."""

    KIND: ClassVar[str] = "egress.rule-added"
    SEALED: ClassVar[bool] = True
    rule: EgressRule
    before: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressRuleRemoved(Event):
    """An egress rule was removed."""

    KIND: ClassVar[str] = "egress.rule-removed"
    SEALED: ClassVar[bool] = True
    tenant_id: str
    rule_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressOpened(Event):
    """A model was let out to a destination; durable before the first connection is made."""

    KIND: ClassVar[str] = "egress.opened"
    SEALED: ClassVar[bool] = True
    sandbox_id: str
    model_id: str
    number: int
    rule_id: str
    host: str
    port: int
    protocol: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressPassed(Event):
    """What passed to a destination since it was opened, or since the last such entry.

    ``code`` is ``closed``, ``open`` (more will follow) or ``revoked`` (a rule was changed).
    """

    KIND: ClassVar[str] = "egress.passed"
    SEALED: ClassVar[bool] = True
    sandbox_id: str
    model_id: str
    number: int
    rule_id: str
    host: str
    port: int
    protocol: str
    connections: int
    failed: int
    sent_bytes: int
    received_bytes: int
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressDenied(Event):
    """A model was refused a destination, ``count`` times; without ``rule_id`` no rule allowed it.

    ``reason`` is ``rule``, ``default`` or what is wrong with the host or the address.
    """

    KIND: ClassVar[str] = "egress.denied"
    SEALED: ClassVar[bool] = True
    sandbox_id: str
    model_id: str
    number: int
    rule_id: str
    host: str
    port: int
    protocol: str
    reason: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressSuppressed(Event):
    """Refusals of a sandbox that were only counted: it asked for too many destinations."""

    KIND: ClassVar[str] = "egress.suppressed"
    sandbox_id: str
    model_id: str
    number: int
    count: int


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


def event_classes() -> dict[str, type[Event]]:
    """Every event class by its kind."""
    return {cls.KIND: cls for cls in Event.__subclasses__()}


def shown(kind: str, event: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """An event's fields as people and programs see them: without its ``HIDDEN`` members."""
    if event is None:
        return None
    found = dict(event)
    cls = event_classes().get(kind)
    for *folders, name in cls.HIDDEN if cls else ():
        inner = found
        for folder in folders:
            inner[folder] = dict(inner.get(folder) or {})
            inner = inner[folder]
        inner.pop(name, None)
    return found
