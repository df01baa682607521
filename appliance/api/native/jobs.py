"""Jobs: calls that were answered with 202, followed by polling or as server-sent events.

Owns: the operations on jobs, their JSON documents, and ``Prefer: respond-async``.
Never: runs a job; an output goes to the caller as it left the model.
Read next: ``appliance.jobs`` (what happens to a job), ``calls`` (where jobs come from).

An owner sees its tenant's jobs, a caller those it submitted itself. A job one may not see answers
like one that does not exist.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from appliance import clock, wire
from appliance.api.dispatch import Context
from appliance.api.operation import Operation, Query
from appliance.api.shapes import Document, Time
from appliance.egress.outbound import place_from_url
from appliance.errors import (
    ApplianceError,
    DiskFull,
    EgressDenied,
    Forbidden,
    GuestError,
    IdempotencyKeyReused,
    InputInvalid,
    JobUnfinished,
    Malformed,
    QuotaExceeded,
    problem_classes,
)
from appliance.records import JOB_ENDS, Job, JobStatus, Version
from appliance.store.jobs import head_of
from appliance.wire import JSON, Reply, Request, Write, json_reply

_EVENTS = "text/event-stream"
_STATUSES = ("starting", "processing", *JOB_ENDS)
_INLINE_BYTES_MAX = 64 * 1024
_WAIT_S_MAX = 60
_BEAT_S = 15.0
_LIMIT_MAX = 1000
WEBHOOK_DEFAULT = ("start", "completed")
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


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
    key = context.request.header("idempotency-key").strip()
    if key and not _KEY.fullmatch(key):
        raise Malformed("An Idempotency-Key is 1 to 255 visible ASCII characters.")
    params = context.request.params
    webhook, wanted = await _own_webhook(context)
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
    more = () if is_new else (("idempotent-replayed", "true"),)
    return await taken_on(context, job, ("preference-applied", "respond-async"), *more)


async def taken_on(context: Context, job: Job, *headers: tuple[str, str]) -> Reply:
    """The answer to who submitted a job: its document, and where it is."""
    where = ("location", _url(context, job))
    return json_reply(await _document(context, job), status=202, headers=(where, *headers))


async def _own_webhook(context: Context) -> tuple[str, tuple[str, ...]]:
    """Where the caller wants to be told of this job, and of what; checked."""
    url = context.request.header("webhook").strip()
    asked = context.request.header("webhook-events-filter").lower()
    if not url:
        if asked.strip():
            raise Malformed("A Webhook-Events-Filter comes with a Webhook header.")
        return "", ()
    wanted = tuple(dict.fromkeys(part.strip() for part in asked.split(",") if part.strip()))
    if "logs" in wanted and not is_owner(context):
        raise Forbidden("What a model printed is told to an owner of its tenant only.")
    wanted = wanted or WEBHOOK_DEFAULT
    await context.services.webhooks.require_for_job(context.tenant.id, url, wanted)
    return url, wanted


async def list_jobs(context: Context) -> Reply:
    """A tenant's jobs, newest first; a caller sees its own.

    Ended jobs are kept for `jobs.kept_s` seconds, then they and their payloads are deleted.
    """
    query = context.request.query
    status, model = query.get("status"), query.get("model")
    if status is not None and status not in _STATUSES:
        raise InputInvalid(f"'status' is one of {', '.join(_STATUSES)}.")
    limit = context.request.int_query("limit", default=100, low=1, high=_LIMIT_MAX)
    found = [
        job
        for job in reversed(context.snapshot.jobs(context.tenant.id))
        if is_visible(context, job.created_by)
        and status in (None, job.status)
        and model in (None, _model_name(context, job))
    ]
    before = query.get("before")
    if before is not None:
        at = next((at for at, job in enumerate(found) if job.id == before), len(found))
        found = found[at + 1 :]
    return json_reply(JobList(items=[_brief(context, job) for job in found[:limit]]))


async def show_job(context: Context) -> Reply:
    """A job as it is now, or its progress as server-sent events.

    With `wait_s` the answer comes when the job has ended, or after so many seconds. With
    `Accept: text/event-stream` the answer is the events `start`, `log` (what the model printed, to
    its owner, if it failed) and `completed`, from the beginning, whenever one asks.
    """
    job = _job(context)
    wait_s = context.request.int_query("wait_s", default=0, low=0, high=_WAIT_S_MAX)
    if context.request.is_accepted(_EVENTS):
        return Reply(content_type=_EVENTS, stream=lambda write: _follow(context, job, write))
    deadline_ns = clock.monotonic_ns() + wait_s * 1_000_000_000
    while job.status not in JOB_ENDS and not context.services.jobs.is_draining:
        left_s = (deadline_ns - clock.monotonic_ns()) / 1e9
        if left_s <= 0:
            break
        job = await context.services.jobs.changed(job, left_s) or _job(context)
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
        headers=(("model-version", str(job.number)), ("audit-seq", str(job.end.audit_seq))),
        stream=lambda write: _pass_on(first, pieces, write),
    )


async def cancel_job(context: Context) -> Reply:
    """Cancel a job. One that waits never starts; the sandbox of one that runs is ended.

    A job that has ended stays as it is; the answer says how it stands.
    """
    job = await context.services.jobs.cancel(_job(context), actor=context.principal.id)
    return json_reply(await _document(context, job))


async def _follow(context: Context, job: Job, write: Write) -> None:
    jobs, told = context.services.jobs, 0
    await write(b": following\n\n")  # the head of the answer leaves with its first piece
    while True:
        if job.attempts > told and job.status != "starting":
            told = job.attempts
            await write(_event("start", f"start-{told}", _brief(context, job)))
        if job.status in JOB_ENDS:
            lines = (job.end.problem or {}).get("stderr", ()) if job.end else ()
            for at, line in enumerate(lines if is_owner(context) else ()):
                await write(_event("log", f"log-{at}", {"text": line}))
            await write(_event("completed", "completed", await _document(context, job)))
            return
        now = await jobs.changed(job, _BEAT_S)
        if now is None or jobs.is_draining:
            return
        if now == job:
            await write(b": waiting\n\n")
        job = now


def _event(name: str, event_id: str, data: Any) -> bytes:
    text = msgspec.json.encode(data)
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (event_id.encode(), name.encode(), text)


async def _pass_on(first: bytes, rest: AsyncIterator[bytes], write: Write) -> None:
    if first:
        await write(first)
    async for piece in rest:
        await write(piece)


def _job(context: Context) -> Job:
    job = context.services.jobs.find(context.tenant.id, context.request.params["job"])
    if job is None or not is_visible(context, job.created_by):
        raise wire.not_found()
    return job


def is_owner(context: Context) -> bool:
    """Whether the caller may see what belongs to others of its tenant."""
    return context.principal.kind == "peer" or context.principal.role == "owner"


def is_visible(context: Context, created_by: str) -> bool:
    """Whether the caller may see what somebody of its tenant made: an owner all, others theirs."""
    return is_owner(context) or created_by == context.principal.id


def _model_name(context: Context, job: Job) -> str:
    model = context.snapshot.model_by_id(job.model_id)
    return model.name if model else ""


def _url(context: Context, job: Job) -> str:
    return f"/api/v1/jobs/{context.tenant.name}/{job.id}"


async def _document(context: Context, job: Job) -> JobDoc:
    """The whole document, with an output that is small enough for it."""
    document = _brief(context, job)
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


def _brief(context: Context, job: Job) -> JobDoc:
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
        model=_model_name(context, job),
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
        error=shown_problem(context, end.problem if end else None, job.id),
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


def shown_problem(
    context: Context, kept: dict[str, Any] | None, instance: str
) -> dict[str, Any] | None:
    """What went wrong, in the words this caller may see; ``instance`` is the id of what did."""
    if kept is None:
        return None
    classes = {cls.slug: cls for cls in problem_classes()}
    cls = classes.get(kept["code"], ApplianceError)
    more: dict[str, Any] = {"hint": kept["hint"], **kept["extensions"]}
    if issubclass(cls, GuestError):
        more["stderr"] = tuple(kept["stderr"])
    error = cls(kept["detail"], **more)
    return wire.problem_document(error, instance, is_owner=is_owner(context))


_JOBS = "/api/v1/jobs/{tenant}"
PROBLEMS = (IdempotencyKeyReused, QuotaExceeded, DiskFull, InputInvalid, EgressDenied)
_TEXT = {"type": "string"}

OPERATIONS = (
    Operation(
        method="GET",
        path=_JOBS,
        permission="job:read",
        handler=list_jobs,
        summary="List jobs",
        reply=JobList,
        query=(
            Query(
                name="status", doc="Only these.", schema={"type": "string", "enum": [*_STATUSES]}
            ),
            Query(name="model", doc="Only jobs of this model.", schema=_TEXT),
            Query(name="before", doc="Only jobs submitted before this one.", schema=_TEXT),
            Query(
                name="limit",
                doc="Most jobs to return.",
                schema={"type": "integer", "minimum": 1, "maximum": _LIMIT_MAX, "default": 100},
            ),
        ),
        problems=(InputInvalid,),
    ),
    Operation(
        method="GET",
        path=_JOBS + "/{job}",
        permission="job:read",
        handler=show_job,
        summary="Show a job, wait for it, or follow it",
        reply=JobDoc,
        query=(
            Query(
                name="wait_s",
                doc="Seconds to wait for its end.",
                schema={"type": "integer", "minimum": 0, "maximum": _WAIT_S_MAX, "default": 0},
            ),
        ),
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
