"""Events of calls: jobs, intents, outcomes, and what callers report of them.

Owns: the record of every execution.
Never: changes of the registry (``registry``).
Read next: ``events`` (the list of all), ``store/FORMAT.md`` (their bytes).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from appliance.events.base import Event
from appliance.records import Job, JobEnd, Merged, Printed


@dataclass(frozen=True, slots=True, kw_only=True)
class JobQueued(Event):
    """A call was taken on as a job; its input is a sealed blob."""

    KIND: ClassVar[str] = "job.queued"
    SEALED: ClassVar[bool] = True
    HIDDEN: ClassVar[tuple[tuple[str, ...], ...]] = (("job", "webhook"),)
    job: Job


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStarted(Event):
    """A job is about to be handed to its model; durable before that."""

    KIND: ClassVar[str] = "job.started"
    job_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPrinted(Event):
    """The model of a job printed these lines; its webhook is to be told of them."""

    KIND: ClassVar[str] = "job.printed"
    SEALED: ClassVar[bool] = True
    job_id: str
    printed: Printed


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
class CallIntent(Event):
    """A call was admitted; durable before the model sees the request. Digests are keyed (HMAC).

    ``route_revision`` is the revision of the route that chose the version, 0 if none did.
    ``shadow_of`` is the call whose body is repeated, empty for a call of its own. ``parent`` is the
    call that made this one, ``root`` the one that began it all; ``root`` is the call itself where
    it makes calls, and both are empty for one that neither makes nor was made by one.
    ``replay_of`` is a kept call that its owner had repeated.
    """

    KIND: ClassVar[str] = "call.intent"
    call_id: str
    model_id: str
    number: int
    request_digest: str
    request_bytes: int
    route_revision: int = 0
    shadow_of: str = ""
    parent: str = ""
    root: str = ""
    replay_of: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOutcome(Event):
    """How a call ended; durable before the reply leaves. ``code`` is ``ok`` or a problem slug.

    ``code`` is ``unknown`` for an intent whose process died before an outcome was written.
    ``match`` is how a shadow's or replay's reply compares with the caller's: ``equal``,
    ``close`` or ``different``. ``merged`` is about the call of the model that answered it, in a
    version whose calls may be joined. ``parent`` and ``root`` are as in its intent.
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
    replay_of: str = ""
    merged: Merged | None = None
    parent: str = ""
    root: str = ""


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
