"""PURE: the nouns of what goes on by itself: schedules, webhooks, deliveries, sampling.

Owns: what each of them is; frozen records like all others.
Never: does I/O, knows HTTP, or decides what is due.
Read next: ``records`` (the nouns they are about), ``store.schedules`` and ``store.webhooks``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from appliance.batch_records import BatchPlan
from appliance.records import Blob


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleRun:
    """What became of a time that was due: ``started`` with its job or batch, or why there is none.

    ``code`` is otherwise ``overlap`` (the run before had not ended), ``missed`` (nobody was there)
    or a problem's slug. ``count`` is of how many times in a row, ``due_ns`` the last of them;
    ``is_manual``: somebody asked for it, it was not due.
    """

    due_ns: int
    code: str
    job_id: str = ""
    batch_id: str = ""
    count: int = 1
    is_manual: bool = False


CatchUp = Literal["none", "one"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduledBatch:
    """A table that is taken from a folder each time, and where its output is put.

    In both places ``{date}`` and ``{time}`` stand for when it was due, in the schedule's zone.
    ``is_form_told`` says that ``plan.form`` was asked for; otherwise each version says its own.
    """

    plan: BatchPlan
    taken_from: str
    put_into: str = ""
    is_form_told: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A call that is submitted as a job again and again, or a table as a batch.

    ``body`` is the call's, a sealed blob; ``batch`` is there instead of it.

    ``target`` is ``""`` for what the model's route or ``live`` says at each time, ``@alias`` or
    ``:number``. ``cron`` has five fields, read in ``timezone`` (IANA). Times after ``since_ns`` are
    due. Jobs are submitted in the name of ``run_as``. ``repeatable``: a run that a restart cut off
    runs again. ``runs`` are the last, oldest first.
    """

    id: str
    tenant_id: str
    model_id: str
    target: str = ""
    cron: str
    timezone: str
    content_type: str
    body: Blob | None = None
    batch: ScheduledBatch | None = None
    catch_up: CatchUp = "one"
    overlaps: bool = False
    repeatable: bool = False
    state: Literal["active", "paused", "stopped"] = "active"
    reason: str = ""
    run_as: str
    since_ns: int
    runs: tuple[ScheduleRun, ...] = ()
    created_ns: int
    created_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSecret:
    """What deliveries are signed with; ``box`` is sealed under a key of its own, named ``id``.

    ``until_ns`` is when it ends to be used beside its successor, 0 for the one in force.
    """

    id: str
    box: str
    made_ns: int
    until_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """An address of a tenant that is told of events; ``secrets`` are the newest first.

    Without ``url`` it is what the webhooks of single jobs are signed with. ``has_output``: what a
    model answered goes along when its job is completed. ``disabled`` says why nothing is sent, and
    is empty if it is. ``failing_ns`` is since when no delivery succeeded, 0 after one that did.
    """

    id: str
    tenant_id: str
    url: str = ""
    events: tuple[str, ...] = ()
    has_output: bool = False
    secrets: tuple[WebhookSecret, ...]
    disabled: str = ""
    failing_ns: int = 0
    created_ns: int
    created_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One event on its way to one webhook, until it arrived or was given up.

    ``id`` is the ``webhook-id`` of every attempt. ``url`` is a job's own webhook, ``""`` for the
    webhook's. ``job_id`` is the job whose output or log goes along. ``next_ns`` is when the next
    attempt is due, ``code`` how the last one ended, empty while one is made.
    """

    id: str
    tenant_id: str
    webhook_id: str
    url: str = ""
    type: str
    data: dict[str, Any]
    job_id: str = ""
    queued_ns: int
    state: Literal["waiting", "delivered", "failed"] = "waiting"
    attempts: int = 0
    next_ns: int = 0
    code: str = ""
    status: int = 0
    ended_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """That some calls of a model are kept, sealed, for replays: an owner's wish; none by default.

    ``weight`` is the share of the calls that succeed, in hundredths of a percent. At most
    ``count_max`` samples of together ``bytes_max`` bytes are kept, the newest, each ``kept_s``.
    """

    model_id: str
    tenant_id: str
    weight: int
    count_max: int
    bytes_max: int
    kept_s: int
    set_ns: int
    set_by: str
