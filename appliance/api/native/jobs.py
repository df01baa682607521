"""Jobs: calls that were answered with 202, followed by polling or as server-sent events.

Owns: the operations on jobs, their JSON documents, and ``Prefer: respond-async``.
Never: runs a job; an output goes to the caller as it left the model.
Read next: ``appliance.jobs`` (what happens to a job), ``calls`` (where jobs come from).

An owner sees its tenant's jobs, a caller those it submitted itself. A job one may not see answers
like one that does not exist.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from appliance import clock, wire
from appliance.api.dispatch import Context
from appliance.api.native import following
from appliance.api.operation import Operation
from appliance.api.shapes import Document, Time
from appliance.egress.outbound import place_from_url
from appliance.errors import (
    DiskFull,
    EgressDenied,
    IdempotencyKeyReused,
    InputInvalid,
    JobUnfinished,
    QuotaExceeded,
)
from appliance.records import JOB_ENDS, Job, JobStatus, Version
from appliance.store.announce import JOB_TYPES
from appliance.store.jobs import head_of
from appliance.wire import JSON, Reply, Request, Write, json_reply

_INLINE_BYTES_MAX = 64 * 1024
WEBHOOK_DEFAULT = ("start", "completed")


class JobMetrics(Document):
    """What a job took, in milliseconds; ``None`` while it is not known."""

    queue_ms: int | None
    run_ms: int | None
    attempts: Annotated[int, Meta(description="How often it was handed to a sandbox.")]
    cold: bool | None


class JobDoc(Document):
    """A job."""

    id: str
    status: JobStatus
    tenant: str
    model: str
    version: int
    created_at: Time
    created_by: str
    started_at: Time | None
    completed_at: Time | None
    input_type: str
    input_bytes: int
    output: Annotated[
        Any, Meta(description="The output where it is JSON of at most 64 KiB; not in lists.")
    ]
    output_type: str | None
    output_bytes: int | None
    error: Annotated[dict[str, Any] | None, Meta(description="A problem document (RFC 9457).")]
    metrics: JobMetrics
    audit_seq: Annotated[int | None, Meta(description="The entry of the call's outcome.")]
    idempotency_key: str | None
    webhook: Annotated[str | None, Meta(description="Scheme, host and port of its own webhook.")]
    scheduled_by: Annotated[str | None, Meta(description="The schedule that submitted it.")]
    urls: dict[str, str]


class JobList(Document):
    """Jobs, newest first."""

    items: list[JobDoc]


def wants_job(request: Request) -> bool:
    """Whether the caller prefers a job to waiting (RFC 7240)."""
    wanted = request.header("prefer").lower()
    return bool(wanted) and "respond-async" in (
        part.split(";")[0].strip() for part in wanted.split(",")
    )


async def accept(
    context: Context, version: Version, *, content_type: str, body: bytes, revision: int
) -> Reply:
    """Take a call on as a job; the answer is 202, for a known idempotency key too.

    ``revision`` is of the route that chose the version, 0 for none.
    """
    key = following.idempotency_key(context)
    params = context.request.params
    webhook, wanted = await following.own_webhook(context, JOB_TYPES, WEBHOOK_DEFAULT)
    job, is_new = await context.services.jobs.submit(
        principal_id=context.principal.id,
        version=version,
        target=f"{params.get('version', '')}@{params.get('alias', '')}",
        content_type=content_type,
        body=body,
        idempotency_key=key,
        route_revision=revision,
        webhook=webhook,
        webhook_events=wanted,
    )
    applied = ("preference-applied", "respond-async")
    return await taken_on(context, job, applied, *following.replayed(is_new))


async def taken_on(context: Context, job: Job, *headers: tuple[str, str]) -> Reply:
    """The answer to who submitted a job: its document, and where it is."""
    told = (("location", _url(context, job)), *headers, *following.sampled(context, job.model_id))
    return json_reply(await _document(context, job), status=202, headers=told)


async def list_jobs(context: Context) -> Reply:
    """A tenant's jobs, newest first; a caller sees its own.

    Ended jobs are kept for `jobs.kept_s` seconds, then they and their payloads are deleted.
    """
    found = following.listed(context, context.snapshot.jobs(context.tenant.id))
    return json_reply(JobList(items=[brief(context, job) for job in found]))


async def show_job(context: Context) -> Reply:
    """A job as it is now, or its progress as server-sent events.

    With `wait_s` the answer comes when the job has ended, or after so many seconds. With
    `Accept: text/event-stream` the answer is the events `start`, `log` (what the model printed, to
    its owner, if it failed) and `completed`, from the beginning, whenever one asks.
    """
    job = _job(context)
    if following.wants_events(context):
        return following.events(lambda write: _follow(context, job, write))
    job = await following.ended(context, context.services.jobs, job)
    return json_reply(await _document(context, job))


async def show_output(context: Context) -> Reply:
    """The output of a job that succeeded, as it left the model."""
    job = _job(context)
    if job.end is None or job.end.output is None:
        raise JobUnfinished(f"The job is {job.status} and has no output.", job_status=job.status)
    pieces = context.services.jobs.output(job)
    first = await anext(pieces, b"")
    return Reply(
        content_type=wire.safe_media_type(job.end.content_type),
        headers=(
            ("model-version", str(job.number)),
            ("audit-seq", str(job.end.audit_seq)),
            *following.sampled(context, job.model_id),
        ),
        stream=following.passed_on(first, pieces),
    )


async def cancel_job(context: Context) -> Reply:
    """Cancel a job. One that waits never starts; the sandbox of one that runs is ended.

    A job that has ended stays as it is; the answer says how it stands.
    """
    job = await context.services.jobs.cancel(_job(context), actor=context.principal.id)
    return json_reply(await _document(context, job))


async def _follow(context: Context, job: Job, write: Write) -> None:
    told, now = 0, job
    while True:
        if now.attempts > told and now.status != "starting":
            told = now.attempts
            await write(following.event("start", f"start-{told}", brief(context, now)))
        if now.status in JOB_ENDS:
            lines = (now.end.problem or {}).get("stderr", ()) if now.end else ()
            for at, line in enumerate(lines if following.is_owner(context) else ()):
                await write(following.event("log", f"log-{at}", {"text": line}))
            await write(following.event("completed", "completed", await _document(context, now)))
            return
        after = await following.moved(context.services.jobs, now, write)
        if after is None:
            return
        now = after


def _job(context: Context) -> Job:
    return following.required(context, context.services.jobs, "job")


def _url(context: Context, job: Job) -> str:
    return f"/api/v1/jobs/{context.tenant.name}/{job.id}"


async def _document(context: Context, job: Job) -> JobDoc:
    """The whole document, with an output that is small enough for it."""
    document = brief(context, job)
    end = job.end
    if end is None or end.output is None or end.output.size_bytes > _INLINE_BYTES_MAX:
        return document
    if end.content_type.split(";")[0].strip().lower() == JSON:
        text = b"".join([piece async for piece in context.services.jobs.output(job)])
        try:
            document.output = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            document.output = None  # it is at its own address, as it is
    return document


def brief(context: Context, job: Job) -> JobDoc:
    """A job of the request's tenant as callers see it, without its output."""
    end, url = job.end, _url(context, job)
    output = end.output if end else None
    urls = {"get": url, "cancel": f"{url}/cancel", "stream": url}
    if output:
        urls["output"] = f"{url}/output"
    first_ns = job.started_ns or job.ended_ns
    return JobDoc(
        id=job.id,
        status=job.status,
        tenant=context.tenant.name,
        model=following.model_name(context, job.model_id),
        version=job.number,
        created_at=clock.text_from_ns(job.created_ns),
        created_by=job.created_by,
        started_at=clock.text_from_ns(job.started_ns) if job.started_ns else None,
        completed_at=clock.text_from_ns(job.ended_ns) if job.ended_ns else None,
        input_type=job.content_type,
        input_bytes=job.input.size_bytes - len(head_of(job.id)),
        output=None,
        output_type=wire.safe_media_type(end.content_type) if end and output else None,
        output_bytes=output.size_bytes - len(head_of(job.id)) if output else None,
        error=following.shown_problem(context, end.problem if end else None, job.id),
        metrics=JobMetrics(
            queue_ms=(first_ns - job.created_ns) // 1_000_000 if first_ns else None,
            run_ms=end.run_us // 1000 if end and end.run_us else None,
            attempts=job.attempts,
            cold=end.cold if end and output else None,
        ),
        audit_seq=end.audit_seq or None if end else None,
        idempotency_key=job.idempotency_key or None,
        webhook=place_from_url(job.webhook).origin if job.webhook else None,
        scheduled_by=job.scheduled_by or None,
        urls=urls,
    )


_JOBS = "/api/v1/jobs/{tenant}"
PROBLEMS = (IdempotencyKeyReused, QuotaExceeded, DiskFull, InputInvalid, EgressDenied)

OPERATIONS = (
    Operation(
        method="GET",
        path=_JOBS,
        permission="job:read",
        handler=list_jobs,
        summary="List jobs",
        reply=JobList,
        query=following.LISTED,
        problems=(InputInvalid,),
    ),
    Operation(
        method="GET",
        path=_JOBS + "/{job}",
        permission="job:read",
        handler=show_job,
        summary="Show a job, wait for it, or follow it",
        reply=JobDoc,
        query=(following.WAIT,),
        problems=(InputInvalid,),
    ),
    Operation(
        method="GET",
        path=_JOBS + "/{job}/output",
        permission="job:read",
        handler=show_output,
        summary="The output of a job",
        reply=("application/json", "text/plain", "application/octet-stream"),
        problems=(JobUnfinished,),
    ),
    Operation(
        method="POST",
        path=_JOBS + "/{job}/cancel",
        permission="job:cancel",
        handler=cancel_job,
        summary="Cancel a job",
        reply=JobDoc,
        problems=(DiskFull,),
    ),
)
