"""The closed list of audit events, one dataclass each.

Owns: every kind of entry the ledger may hold, its fields, and whether they are sealed under the
tenant's own key (``SEALED``), so that destroying that key destroys them.
Never: writes, reads or interprets the ledger.
Read next: ``store.registry`` (applies them), ``store/FORMAT.md`` (their bytes).

Adding an event is one dataclass in the file of its subject and one name here; kinds are never
renamed and fields never change meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.events.base import Event
from appliance.events.batches import (
    BatchAdvanced,
    BatchEnded,
    BatchesRemoved,
    BatchQueued,
    BatchStarted,
)
from appliance.events.calls import (
    CallIntent,
    CallOutcome,
    JobEnded,
    JobPrinted,
    JobQueued,
    JobRequeued,
    JobsRemoved,
    JobStarted,
    MetricReported,
)
from appliance.events.comparisons import (
    ComparisonEnded,
    ComparisonQueued,
    ComparisonsRemoved,
    SamplesRemoved,
    SamplingRemoved,
    SamplingSet,
)
from appliance.events.drift import (
    BaselineRemoved,
    BaselineSet,
    DriftBreached,
    DriftRecovered,
    ThresholdsSet,
)
from appliance.events.egress import (
    EgressDenied,
    EgressOpened,
    EgressPassed,
    EgressRuleAdded,
    EgressRuleRemoved,
    EgressSuppressed,
)
from appliance.events.machine import (
    AuditVerified,
    BackupMade,
    BlobRemoved,
    DependenciesRemoved,
    Initialised,
    LimitsProbed,
    Recovered,
    RequestRefused,
    RuntimeExported,
    RuntimeInstalled,
    RuntimeRemoved,
    RuntimeRequested,
    RuntimeVerified,
    SandboxStopped,
    SealedAgain,
    Unsealed,
)
from appliance.events.registry import (
    AliasRemoved,
    AliasSet,
    KeyCreated,
    KeyRevoked,
    ModelCreated,
    ModelRemoved,
    ReservationRemoved,
    ReservationSet,
    RouteRemoved,
    RouteSet,
    SecretRemoved,
    SecretSet,
    TenantCreated,
    TenantIsolationSet,
    TenantRemoved,
    VersionRegistered,
    VersionRetired,
)
from appliance.events.schedules import (
    ScheduleCreated,
    SchedulePaused,
    ScheduleRan,
    ScheduleRemoved,
    ScheduleResumed,
    ScheduleStopped,
)
from appliance.events.tracking import (
    DraftRemoved,
    DraftSet,
    FileKept,
    FilesRemoved,
    NotesSet,
    PromiseRemoved,
    RunChanged,
    RunGroupSet,
    RunStarted,
    VersionFailed,
    VersionPromised,
)
from appliance.events.webhooks import (
    DeliveryAttempted,
    DeliveryOpened,
    DeliveryQueued,
    WebhookCreated,
    WebhookDisabled,
    WebhookEnabled,
    WebhookRemoved,
    WebhookRotated,
)

__all__ = [
    "AliasRemoved",
    "AliasSet",
    "AuditVerified",
    "BackupMade",
    "BaselineRemoved",
    "BaselineSet",
    "BatchAdvanced",
    "BatchEnded",
    "BatchQueued",
    "BatchStarted",
    "BatchesRemoved",
    "BlobRemoved",
    "CallIntent",
    "CallOutcome",
    "ComparisonEnded",
    "ComparisonQueued",
    "ComparisonsRemoved",
    "DeliveryAttempted",
    "DeliveryOpened",
    "DeliveryQueued",
    "DependenciesRemoved",
    "DraftRemoved",
    "DraftSet",
    "DriftBreached",
    "DriftRecovered",
    "EgressDenied",
    "EgressOpened",
    "EgressPassed",
    "EgressRuleAdded",
    "EgressRuleRemoved",
    "EgressSuppressed",
    "Event",
    "FileKept",
    "FilesRemoved",
    "Initialised",
    "JobEnded",
    "JobPrinted",
    "JobQueued",
    "JobRequeued",
    "JobStarted",
    "JobsRemoved",
    "KeyCreated",
    "KeyRevoked",
    "LimitsProbed",
    "MetricReported",
    "ModelCreated",
    "ModelRemoved",
    "NotesSet",
    "PromiseRemoved",
    "Recovered",
    "RequestRefused",
    "ReservationRemoved",
    "ReservationSet",
    "RouteRemoved",
    "RouteSet",
    "RunChanged",
    "RunGroupSet",
    "RunStarted",
    "RuntimeExported",
    "RuntimeInstalled",
    "RuntimeRemoved",
    "RuntimeRequested",
    "RuntimeVerified",
    "SamplesRemoved",
    "SamplingRemoved",
    "SamplingSet",
    "SandboxStopped",
    "ScheduleCreated",
    "SchedulePaused",
    "ScheduleRan",
    "ScheduleRemoved",
    "ScheduleResumed",
    "ScheduleStopped",
    "SealedAgain",
    "SecretRemoved",
    "SecretSet",
    "TenantCreated",
    "TenantIsolationSet",
    "TenantRemoved",
    "ThresholdsSet",
    "Unsealed",
    "VersionFailed",
    "VersionPromised",
    "VersionRegistered",
    "VersionRetired",
    "WebhookCreated",
    "WebhookDisabled",
    "WebhookEnabled",
    "WebhookRemoved",
    "WebhookRotated",
    "event_classes",
    "shown",
]


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
