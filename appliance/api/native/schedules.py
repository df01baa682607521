"""Schedules: calls with a kept body, or tables in folders, that are submitted when they are due.

Owns: the operations on schedules and their JSON documents.
Never: decides what is due (``appliance.schedules``), or parses a body: it goes to the model as is.
Read next: ``appliance.schedules``; ``jobs`` for what a schedule submits.
"""

from __future__ import annotations

import re
from typing import Annotated, cast

from msgspec import Meta

from appliance import clock, wire
from appliance.api.dispatch import Context
from appliance.api.native import batches, jobs
from appliance.api.native.models import model_of
from appliance.api.operation import Operation, Query
from appliance.api.shapes import Document, Time
from appliance.batch_records import Batch
from appliance.errors import (
    DiskFull,
    FieldError,
    FolderUnavailable,
    Gone,
    InputInvalid,
    Malformed,
    NotFound,
    QuotaExceeded,
    TooLarge,
    UnsupportedMedia,
)
from appliance.records import NAME_PATTERN, Job, Manifest
from appliance.schedules import Wish
from appliance.standing import CatchUp, Schedule, ScheduledBatch, ScheduleRun
from appliance.store.schedules import head_of_body
from appliance.timetable import CRON_CHARACTERS_MAX
from appliance.wire import Reply, json_reply

_NEXT = 3
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_ALIAS = re.compile(NAME_PATTERN)


class ScheduleRunDoc(Document):
    """What became of a time that was due."""

    due_at: Time
    code: Annotated[
        str, Meta(description="started, overlap, missed, or the problem that kept it from it.")
    ]
    count: Annotated[int, Meta(description="How many times in a row it stands for.")]
    manual: bool
    job: str | None
    batch: str | None
    status: Annotated[
        str | None, Meta(description="Of its job or batch as it is now, while that is kept.")
    ]
    url: Annotated[str | None, Meta(description="Of its job or batch, while that is kept.")]


class ScheduledBatchDoc(Document):
    """A table that is scored each time; `{date}` and `{time}` are of when it was due."""

    taken_from: str
    put_into: str | None
    into: str
    form: str
    chunk_rows: int
    carry: bool
    on_error: str


class ScheduleDoc(Document):
    """A schedule."""

    id: str
    tenant: str
    model: str
    target: Annotated[str, Meta(description="':number', '@alias', or empty: as a call without.")]
    cron: str
    timezone: str
    state: Annotated[str, Meta(description="active, paused, or 'stopped: ' and why.")]
    next: Annotated[list[Time], Meta(description="When it is due next, three times.")]
    last: ScheduleRunDoc | None
    input_type: str
    input_bytes: int
    batch: Annotated[
        ScheduledBatchDoc | None, Meta(description="A table instead of a call with a body.")
    ]
    catch_up: CatchUp
    overlap: bool
    repeatable: bool
    run_as: Annotated[str, Meta(description="In whose name its jobs are submitted.")]
    created_at: Time
    created_by: str


class ScheduleShown(ScheduleDoc):
    """A schedule and its last runs, newest first."""

    runs: list[ScheduleRunDoc]


class ScheduleList(Document):
    """A tenant's schedules, oldest first."""

    items: list[ScheduleDoc]


async def list_schedules(context: Context) -> Reply:
    """A tenant's schedules, each with the next three times it is due."""
    found = context.snapshot.schedules(context.tenant.id)
    return json_reply(ScheduleList(items=[schedule_doc(context, one) for one in found]))


async def create_schedule(context: Context) -> Reply:
    """Have the body of this request submitted as a job whenever the cron fields say.

    The body is kept sealed and goes to the model as it came. Jobs are submitted in the name of who
    creates the schedule; once that key is revoked or expired it stops. A body that the version
    would refuse now is refused here.

    With `from` there is no body: each time the table in this file is scored as a batch, in the way
    the other parameters say; `{date}` and `{time}` in `from` and `to` are of when it was due.
    """
    model = model_of(context)
    query = context.request.query
    context.policy.require(
        context.principal, "model:invoke", tenant_id=context.tenant.id, model=model.name
    )
    wished = _wished_batch(context)
    content_type = "" if wished else context.request.content_type or "application/octet-stream"
    schedule = await context.services.schedules.create(
        Wish(
            tenant_id=context.tenant.id,
            model_id=model.id,
            target=_target(query.get("version", ""), query.get("alias", "")),
            cron=query.get("cron", ""),
            timezone=query.get("timezone", "UTC"),
            content_type="" if wished else wire.safe_media_type(content_type),
            body=await context.request.body(context.node.settings.http.body_bytes_max),
            batch=wished,
            catch_up=cast("CatchUp", _one_of(query, "catch_up", ("one", "none"))),
            overlaps=_one_of(query, "overlap", ("no", "yes")) == "yes",
            repeatable=_one_of(query, "repeatable", ("no", "yes")) == "yes",
        ),
        actor=context.principal.id,
    )
    where = (("location", f"/api/v1/schedules/{context.tenant.name}/{schedule.id}"),)
    return json_reply(schedule_doc(context, schedule), status=201, headers=where)


def _wished_batch(context: Context) -> ScheduledBatch | None:
    """The table to score each time, if it is not a call that is wished for."""
    query = context.request.query
    taken_from, put_into = query.get("from", ""), query.get("to", "")
    if not taken_from:
        if put_into:
            raise _wrong("to", "where the output of a table goes: 'from' names the table")
        return None
    batches.require_folders(context)
    if context.request.header("content-length") not in ("", "0"):
        raise Malformed("A schedule keeps a body, or 'from' names a table: not both.")
    return ScheduledBatch(
        plan=batches.plan_of(context, Manifest(runtime="", entry="")),
        taken_from=taken_from,
        put_into=put_into,
        is_form_told=query.get("form", "auto") != "auto",
    )


async def show_schedule(context: Context) -> Reply:
    """A schedule with its last twenty runs."""
    schedule = _schedule(context)
    document = schedule_doc(context, schedule)
    members = {name: getattr(document, name) for name in document.__struct_fields__}
    runs = [_run(context, one) for one in reversed(schedule.runs)]
    return json_reply(ScheduleShown(**members, runs=runs))


async def pause_schedule(context: Context) -> Reply:
    """Let nothing be due until the schedule is resumed."""
    found = await context.services.schedules.pause(_schedule(context), actor=context.principal.id)
    return json_reply(schedule_doc(context, found))


async def resume_schedule(context: Context) -> Reply:
    """Go on, in the name of who asks; what was due meanwhile is not made up for."""
    schedule = _schedule(context)
    _require_call(context, schedule)
    found = await context.services.schedules.resume(schedule, actor=context.principal.id)
    return json_reply(schedule_doc(context, found))


async def run_schedule(context: Context) -> Reply:
    """Submit the schedule's job or batch once more, now, in the name of who asks."""
    schedule = _schedule(context)
    _require_call(context, schedule)
    made = await context.services.schedules.run_now(schedule, actor=context.principal.id)
    if isinstance(made, Batch):
        return batches.taken_on(context, made)
    return await jobs.taken_on(context, made)


async def remove_schedule(context: Context) -> Reply:
    """Remove a schedule and its body; jobs that it submitted go on."""
    await context.services.schedules.remove(_schedule(context), actor=context.principal.id)
    return Reply(status=204)


def _schedule(context: Context) -> Schedule:
    found = context.snapshot.schedule(context.tenant.id, context.request.params["schedule"])
    if found is None:
        raise wire.not_found()
    return found


def _require_call(context: Context, schedule: Schedule) -> None:
    """Return if who asks may call the model: its jobs will be made in that name."""
    model = context.snapshot.model_by_id(schedule.model_id)
    name = model.name if model else ""
    context.policy.require(
        context.principal, "model:invoke", tenant_id=context.tenant.id, model=name
    )
    if schedule.batch is not None:
        batches.require_folders(context)


def _target(version: str, alias: str) -> str:
    if version and not _VERSION.fullmatch(version):
        raise _wrong("version", "the number of a version")
    if alias and (version or not _ALIAS.fullmatch(alias)):
        raise _wrong("alias", "the name of an alias, without a version")
    return f":{version}" if version else f"@{alias}" if alias else ""


def _one_of(query: object, name: str, allowed: tuple[str, str]) -> str:
    value = str(query.get(name, allowed[0])) if isinstance(query, dict) else allowed[0]
    if value not in allowed:
        raise _wrong(name, f"{allowed[0]} or {allowed[1]}")
    return value


def _wrong(name: str, detail: str) -> InputInvalid:
    return InputInvalid(
        f"'{name}' is {detail}.", fields=(FieldError(pointer=f"?{name}", detail=detail),)
    )


def schedule_doc(context: Context, schedule: Schedule) -> ScheduleDoc:
    """A schedule of the request's tenant as callers see it."""
    model = context.snapshot.model_by_id(schedule.model_id)
    upcoming = context.services.schedules.next_ns(schedule, _NEXT)
    return ScheduleDoc(
        id=schedule.id,
        tenant=context.tenant.name,
        model=model.name if model else "",
        target=schedule.target,
        cron=schedule.cron,
        timezone=schedule.timezone,
        state=f"stopped: {schedule.reason}" if schedule.reason else schedule.state,
        next=[clock.text_from_ns(at) for at in upcoming],
        last=_run(context, schedule.runs[-1]) if schedule.runs else None,
        input_type=schedule.content_type,
        input_bytes=schedule.body.size_bytes - len(head_of_body(schedule.id))
        if schedule.body
        else 0,
        batch=_batch(schedule.batch) if schedule.batch else None,
        catch_up=schedule.catch_up,
        overlap=schedule.overlaps,
        repeatable=schedule.repeatable,
        run_as=schedule.run_as,
        created_at=clock.text_from_ns(schedule.created_ns),
        created_by=schedule.created_by,
    )


def _batch(one: ScheduledBatch) -> ScheduledBatchDoc:
    return ScheduledBatchDoc(
        taken_from=one.taken_from,
        put_into=one.put_into or None,
        into=one.plan.into,
        form=one.plan.form if one.is_form_told else "auto",
        chunk_rows=one.plan.chunk_rows,
        carry=one.plan.carry,
        on_error=one.plan.on_error,
    )


def _run(context: Context, one: ScheduleRun) -> ScheduleRunDoc:
    tenant = context.tenant
    made: Job | Batch | None = None
    if one.job_id:
        made = context.snapshot.job(tenant.id, one.job_id)
    elif one.batch_id:
        made = context.snapshot.batch(tenant.id, one.batch_id)
    noun = "jobs" if one.job_id else "batches"
    return ScheduleRunDoc(
        due_at=clock.text_from_ns(one.due_ns),
        code=one.code,
        count=one.count,
        manual=one.is_manual,
        job=one.job_id or None,
        batch=one.batch_id or None,
        status=made.status if made else None,
        url=f"/api/v1/{noun}/{tenant.name}/{made.id}" if made else None,
    )


_ALL = "/api/v1/schedules/{tenant}"
_ONE = _ALL + "/{schedule}"
_TEXT = {"type": "string"}
_FLAG = {"type": "string", "enum": ["no", "yes"], "default": "no"}
_CRON = {"type": "string", "maxLength": CRON_CHARACTERS_MAX}
_CATCH_UP = {"type": "string", "enum": ["one", "none"], "default": "one"}

OPERATIONS = (
    Operation(
        method="GET",
        path=_ALL,
        permission="schedule:read",
        handler=list_schedules,
        summary="List a tenant's schedules",
        reply=ScheduleList,
    ),
    Operation(
        method="POST",
        path="/api/v1/models/{tenant}/{model}/schedules",
        permission="schedule:set",
        handler=create_schedule,
        summary="Create a schedule",
        body=("application/json", "text/plain", "application/octet-stream"),
        reply=ScheduleDoc,
        status=201,
        query=(
            Query(name="cron", doc="Minute, hour, day, month, day of week.", schema=_CRON),
            Query(name="timezone", doc="IANA name; UTC if not given.", schema=_TEXT),
            Query(name="version", doc="Always call this version.", schema=_TEXT),
            Query(name="alias", doc="Call the version this alias points at.", schema=_TEXT),
            Query(name="catch_up", doc="After downtime: one run, or none.", schema=_CATCH_UP),
            Query(name="overlap", doc="Also while the run before goes on.", schema=_FLAG),
            Query(name="repeatable", doc="What a restart cut off runs again.", schema=_FLAG),
            *batches.PLAN,
        ),
        problems=(
            Malformed,
            InputInvalid,
            QuotaExceeded,
            Gone,
            TooLarge,
            UnsupportedMedia,
            DiskFull,
        ),
    ),
    Operation(
        method="GET",
        path=_ONE,
        permission="schedule:read",
        handler=show_schedule,
        summary="Show a schedule and its last runs",
        reply=ScheduleShown,
    ),
    Operation(
        method="POST",
        path=_ONE + "/pause",
        permission="schedule:set",
        handler=pause_schedule,
        summary="Pause a schedule",
        reply=ScheduleDoc,
    ),
    Operation(
        method="POST",
        path=_ONE + "/resume",
        permission="schedule:set",
        handler=resume_schedule,
        summary="Resume a schedule",
        reply=ScheduleDoc,
        problems=(NotFound,),
    ),
    Operation(
        method="POST",
        path=_ONE + "/run",
        permission="schedule:set",
        handler=run_schedule,
        summary="Run a schedule now",
        reply=(jobs.JobDoc, batches.BatchDoc),
        status=202,
        problems=(
            Gone,
            InputInvalid,
            TooLarge,
            UnsupportedMedia,
            QuotaExceeded,
            FolderUnavailable,
            DiskFull,
        ),
    ),
    Operation(
        method="DELETE",
        path=_ONE,
        permission="schedule:set",
        handler=remove_schedule,
        summary="Remove a schedule",
        status=204,
    ),
)
