"""Which events webhooks are told of: the closed table from audit events to deliveries.

Owns: ``TYPES`` (what a webhook can ask for), ``_TABLE`` (what becomes of an event), and the
deliveries that are recorded in one unit with the event they tell of.
Never: puts an input, an output or a log into a delivery; sends anything.
Read next: ``writer`` (asks at every commit), ``appliance.webhooks`` (sends).

Telling of one more event is one line in ``TYPES`` and one in ``_TABLE``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from appliance import clock
from appliance.batch_records import Batch
from appliance.events import (
    AliasSet,
    BatchAdvanced,
    BatchEnded,
    BatchStarted,
    DeliveryQueued,
    DriftBreached,
    DriftRecovered,
    Event,
    JobEnded,
    JobPrinted,
    JobStarted,
    KeyCreated,
    KeyRevoked,
    RouteRemoved,
    RouteSet,
    ScheduleRan,
    ScheduleStopped,
    VersionRegistered,
    VersionRetired,
    WebhookDisabled,
)
from appliance.records import ApiKey, Job
from appliance.standing import Delivery, Webhook
from appliance.store.snapshot import Snapshot

TYPES: dict[str, str] = {
    "job.completed": "A job ended: it succeeded, failed or was cancelled.",
    "batch.started": "The rows of a table are about to be scored.",
    "batch.progress": "Another tenth of a table's rows has its results.",
    "batch.completed": "A batch ended: it succeeded, failed or was cancelled.",
    "version.registered": "A version was registered.",
    "version.retired": "A version was taken out of service.",
    "route.changed": "A route was set or its weights were changed.",
    "route.held": "A route's weights were frozen.",
    "route.aborted": "A candidate was given up: its baseline has all calls.",
    "route.promoted": "A route ended: one of its versions is live.",
    "route.removed": "A route ended: the alias live decides again.",
    "alias.set": "An alias was created or moved.",
    "drift.breach": "What a version gets or answers went beyond a threshold.",
    "drift.recovered": "It is within the threshold again.",
    "schedule.skipped": "A schedule was due and no job was submitted.",
    "schedule.stopped": "A schedule cannot go on: its key or its model is gone.",
    "key.created": "An API key was issued.",
    "key.revoked": "An API key was revoked.",
}
TEST = "webhook.test"
JOB_TYPES = ("start", "output", "logs", "completed")
"""What a job's own webhook can ask for."""
BATCH_TYPES = ("start", "progress", "completed")
"""What a batch's own webhook can ask for."""
WAITING_MAX = 1000
"""Deliveries that may wait for one webhook; with more it is disabled."""

Told = tuple[str, dict[str, Any], str]
"""The type of a delivery, its data, and the job whose output may go along."""


def announced(
    events: Sequence[Event], before: Snapshot, after: Callable[[], Snapshot], tenant_id: str
) -> list[Event]:
    """What has to be recorded with these events of a tenant so that its webhooks are told.

    Args:
        events: what is about to be recorded.
        before: the registry without them.
        after: makes the registry with them; asked only if there is something to tell.
        tenant_id: whose events they are.
    """
    webhooks = before.webhooks(tenant_id)
    told_of = [event for event in events if _is_told_of(event, before, tenant_id)]
    if not webhooks or not told_of:
        return []
    now = after()
    found: list[Event] = []
    for event in told_of:
        if type(event) in _TABLE:
            told = _TABLE[type(event)](event, now, tenant_id)
            found += [_queued(hook, told, now) for hook in webhooks if told[0] in hook.events]
        if isinstance(event, JobStarted | JobPrinted | JobEnded):
            found += _of_job(event, now, tenant_id, webhooks)
        elif isinstance(event, BatchStarted | BatchAdvanced | BatchEnded):
            found += _of_batch(event, now, tenant_id, webhooks)
    return _bounded(found, before, tenant_id)


def _is_told_of(event: Event, before: Snapshot, tenant_id: str) -> bool:
    if not isinstance(event, BatchAdvanced):
        return type(event) in _TABLE or isinstance(event, JobStarted | JobPrinted)
    batch = before.batch(tenant_id, event.batch_id)
    if batch is None:
        return False
    done = batch.rows_done
    tenth = 10 * (done + event.part.rows) // batch.rows
    return 10 * done // batch.rows < tenth < 10


def delivery_of(webhook: Webhook, told: Told, now: Snapshot, *, url: str = "") -> Delivery:
    """A fresh delivery, due at once."""
    kind, data, job_id = told
    tenant = now.tenant_by_id(webhook.tenant_id)
    return Delivery(
        id=clock.new_id("msg", 26),
        tenant_id=webhook.tenant_id,
        webhook_id=webhook.id,
        url=url,
        type=kind,
        data={"tenant": tenant.name if tenant else "", **data},
        job_id=job_id,
        queued_ns=clock.now_ns(),
    )


def _queued(webhook: Webhook, told: Told, now: Snapshot) -> DeliveryQueued:
    return DeliveryQueued(delivery=delivery_of(webhook, told, now))


def _of_job(
    event: JobStarted | JobPrinted | JobEnded,
    now: Snapshot,
    tenant_id: str,
    webhooks: Sequence[Webhook],
) -> list[Event]:
    """What the job's own webhook is told, signed with the tenant's secret for that."""
    job = now.job(tenant_id, event.job_id)
    signing = next((hook for hook in webhooks if not hook.url), None)
    if job is None or signing is None or not job.webhook:
        return []
    if isinstance(event, JobStarted):
        wanted = ["start"] if job.attempts == 1 else []
    elif isinstance(event, JobPrinted):
        wanted = ["logs"]
    else:
        wanted = [
            name
            for name, is_there in (
                ("output", event.end.output is not None),
                ("logs", bool((event.end.problem or {}).get("stderr"))),
                ("completed", True),
            )
            if is_there
        ]
    data = _job_data(job, now)
    if isinstance(event, JobPrinted):
        data |= {"first_line": event.printed.first, "lines": event.printed.lines}
    told = [(f"job.{name}", data, job.id) for name in wanted if name in job.webhook_events]
    return [
        DeliveryQueued(delivery=delivery_of(signing, one, now, url=job.webhook)) for one in told
    ]


def _of_batch(
    event: BatchStarted | BatchAdvanced | BatchEnded,
    now: Snapshot,
    tenant_id: str,
    webhooks: Sequence[Webhook],
) -> list[Event]:
    """What the batch's own webhook is told, signed as those of jobs are."""
    batch = now.batch(tenant_id, event.batch_id)
    signing = next((hook for hook in webhooks if not hook.url), None)
    told = _batch(event, now, tenant_id)
    if batch is None or signing is None or _OF_BATCH[type(event)] not in batch.webhook_events:
        return []
    return [DeliveryQueued(delivery=delivery_of(signing, told, now, url=batch.webhook))]


def _bounded(found: list[Event], before: Snapshot, tenant_id: str) -> list[Event]:
    """The same, with webhooks disabled that cannot keep up."""
    waiting: dict[str, int] = {}
    for one in before.deliveries(tenant_id):
        if one.state == "waiting":
            waiting[one.webhook_id] = waiting.get(one.webhook_id, 0) + 1
    disabled = {hook.id for hook in before.webhooks(tenant_id) if hook.disabled}
    kept: list[Event] = []
    for event in found:
        hook_id = event.delivery.webhook_id if isinstance(event, DeliveryQueued) else ""
        if hook_id in disabled:
            continue
        waiting[hook_id] = waiting.get(hook_id, 0) + 1
        if waiting[hook_id] > WAITING_MAX:
            disabled.add(hook_id)
            kept.append(WebhookDisabled(webhook_id=hook_id, reason="backlog"))
        else:
            kept.append(event)
    return kept


# --- what each event tells ---------------------------------------------------------------------


def _job_data(job: Job, now: Snapshot) -> dict[str, Any]:
    problem = (job.end.problem if job.end else None) or {}
    return {
        "job": job.id,
        "model": _model(now, job.model_id),
        "version": job.number,
        "status": job.status,
        "code": str(problem.get("code", "")) or None,
        "attempts": job.attempts,
        "scheduled_by": job.scheduled_by or None,
        "created_at": clock.text_from_ns(job.created_ns),
        "started_at": clock.text_from_ns(job.started_ns) if job.started_ns else None,
        "completed_at": clock.text_from_ns(job.ended_ns) if job.ended_ns else None,
    }


def _job(event: JobEnded, now: Snapshot, tenant_id: str) -> Told:
    job = now.job(tenant_id, event.job_id)
    if job is None:
        raise KeyError(event.job_id)
    return "job.completed", _job_data(job, now), job.id


def _batch(event: BatchStarted | BatchAdvanced | BatchEnded, now: Snapshot, tenant_id: str) -> Told:
    batch = now.batch(tenant_id, event.batch_id)
    if batch is None:
        raise KeyError(event.batch_id)
    kind = {"start": "started"}.get(_OF_BATCH[type(event)], _OF_BATCH[type(event)])
    return f"batch.{kind}", _batch_data(batch, now), ""


def _batch_data(batch: Batch, now: Snapshot) -> dict[str, Any]:
    return {
        "batch": batch.id,
        "model": _model(now, batch.model_id),
        "version": batch.number,
        "status": batch.status,
        "code": str((batch.problem or {}).get("code", "")) or None,
        "rows": batch.rows,
        "rows_done": batch.rows_done,
        "rows_failed": batch.rows_failed,
        "scheduled_by": batch.scheduled_by or None,
        "created_at": clock.text_from_ns(batch.created_ns),
        "started_at": clock.text_from_ns(batch.started_ns) if batch.started_ns else None,
        "completed_at": clock.text_from_ns(batch.ended_ns) if batch.ended_ns else None,
    }


def _registered(event: VersionRegistered, now: Snapshot, _tenant_id: str) -> Told:
    version = event.version
    data = {"model": _model(now, version.model_id), "version": version.number}
    return "version.registered", {**data, "by": version.created_by}, ""


def _retired(event: VersionRetired, now: Snapshot, _tenant_id: str) -> Told:
    data = {"model": _model(now, event.model_id), "version": event.number}
    return "version.retired", data, ""


def _route(event: RouteSet | RouteRemoved, now: Snapshot, _tenant_id: str) -> Told:
    route = event.route
    data = {
        "model": _model(now, route.model_id),
        "revision": route.revision,
        "arms": [{"version": arm.number, "percent": arm.weight / 100} for arm in route.arms],
        "shadows": list(route.shadows),
        "reason": route.reason,
        "by": route.set_by,
    }
    return f"route.{'changed' if route.state == 'active' else route.state}", data, ""


def _alias(event: AliasSet, now: Snapshot, _tenant_id: str) -> Told:
    alias = event.alias
    data = {
        "model": _model(now, alias.model_id),
        "alias": alias.name,
        "version": alias.number,
        "revision": alias.revision,
        "reason": alias.reason,
        "by": alias.set_by,
    }
    return "alias.set", data, ""


def _drift(event: DriftBreached | DriftRecovered, now: Snapshot, _tenant_id: str) -> Told:
    breach = event.breach
    data = {
        "model": _model(now, event.model_id),
        "version": event.number,
        "column": breach.feature,
        "of_output": breach.is_output,
        "statistic": breach.statistic,
        "value": breach.value,
        "threshold": breach.threshold,
        "rows": breach.rows,
        "window_s": breach.window_s,
    }
    return event.KIND, data, ""


def _schedule_ran(event: ScheduleRan, now: Snapshot, tenant_id: str) -> Told:
    run = event.run
    kind = "" if run.code == "started" else "schedule.skipped"
    due = clock.text_from_ns(run.due_ns)
    data = {**_schedule(event.schedule_id, now, tenant_id), "code": run.code}
    return kind, {**data, "due_at": due, "count": run.count}, ""


def _schedule_stopped(event: ScheduleStopped, now: Snapshot, tenant_id: str) -> Told:
    data = {**_schedule(event.schedule_id, now, tenant_id), "reason": event.reason}
    return "schedule.stopped", data, ""


def _schedule(schedule_id: str, now: Snapshot, tenant_id: str) -> dict[str, Any]:
    schedule = now.schedule(tenant_id, schedule_id)
    model = _model(now, schedule.model_id) if schedule else ""
    return {"schedule": schedule_id, "model": model}


def _key_created(event: KeyCreated, _now: Snapshot, _tenant_id: str) -> Told:
    return "key.created", _key_data(event.key), ""


def _key_revoked(event: KeyRevoked, now: Snapshot, _tenant_id: str) -> Told:
    key = now.key(event.key_id)
    if key is None:
        raise KeyError(event.key_id)
    return "key.revoked", _key_data(key), ""


def _key_data(key: ApiKey) -> dict[str, Any]:
    return {"key": key.id, "name": key.name, "role": key.role, "issued_by": key.created_by}


def _model(now: Snapshot, model_id: str) -> str:
    model = now.model_by_id(model_id)
    return model.name if model else ""


_OF_BATCH: dict[type[Event], str] = {
    BatchStarted: "start",
    BatchAdvanced: "progress",
    BatchEnded: "completed",
}
_TABLE: dict[type[Event], Callable[[Any, Snapshot, str], Told]] = {
    JobEnded: _job,
    **dict.fromkeys(_OF_BATCH, _batch),
    VersionRegistered: _registered,
    VersionRetired: _retired,
    RouteSet: _route,
    RouteRemoved: _route,
    AliasSet: _alias,
    DriftBreached: _drift,
    DriftRecovered: _drift,
    ScheduleRan: _schedule_ran,
    ScheduleStopped: _schedule_stopped,
    KeyCreated: _key_created,
    KeyRevoked: _key_revoked,
}
