"""Batches: tables that a version scores row by row.

Owns: the operations on batches and their JSON documents.
Never: parses a table or scores a row.
Read next: ``appliance.batches`` (what happens to a batch), ``jobs`` (the same for single calls).

Rights are those of jobs: who may call a model may have it score a table; an owner sees its
tenant's batches, a caller those it submitted itself.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal, cast

from msgspec import Meta

from appliance import batch_rows, clock, tables, wire
from appliance.api.dispatch import Context
from appliance.api.native import calls, following
from appliance.api.native.models import alias_of, model_of, version_of
from appliance.api.operation import Operation, Query
from appliance.api.shapes import Document, Time
from appliance.batch_records import Batch, BatchForm, BatchPlan, BatchWish
from appliance.egress.outbound import place_from_url
from appliance.errors import (
    BodyTimeout,
    DiskFull,
    EgressDenied,
    FolderUnavailable,
    Gone,
    IdempotencyKeyReused,
    InputInvalid,
    JobUnfinished,
    Malformed,
    QuotaExceeded,
    TooLarge,
    UnsupportedMedia,
)
from appliance.records import (
    JOB_ENDS,
    LIVE,
    JobStatus,
    Manifest,
    Version,
)
from appliance.store.announce import BATCH_TYPES
from appliance.store.batches import head_of_table
from appliance.wire import UPLOAD_RATE_MIN, Reply, Write, json_reply

_TELL_S = 0.5
_WEBHOOK_DEFAULT = ("start", "completed")
_CHUNK_ROWS = 1000
_CHUNK_ROWS_MAX = 100_000
_INTO: tuple[tables.Format, ...] = ("parquet", "csv", "ndjson")


class ColumnDoc(Document):
    """A column of the table: its name, and its type in SQL's words."""

    name: str
    type: str


class BatchDoc(Document):
    """A batch and how far it is."""

    id: str
    status: JobStatus
    tenant: str
    model: str
    version: int
    source: Annotated[str, Meta(description="The format of the table.")]
    into: Annotated[str, Meta(description="The format of the output.")]
    form: Annotated[str, Meta(description="How rows are put into a body.")]
    chunk_rows: int
    carry: bool
    on_error: str
    columns: list[ColumnDoc]
    rows: int
    rows_done: int
    rows_failed: Annotated[int, Meta(description="Rows that have an error instead of a result.")]
    rows_per_s: float
    eta_s: float | None
    created_at: Time
    created_by: str
    started_at: Time | None
    completed_at: Time | None
    input_bytes: int
    error: Annotated[dict[str, Any] | None, Meta(description="A problem document (RFC 9457).")]
    taken_from: Annotated[str | None, Meta(description="The file its table was read from.")]
    put_into: Annotated[str | None, Meta(description="The file its output is written to.")]
    scheduled_by: Annotated[str | None, Meta(description="The schedule that submitted it.")]
    idempotency_key: str | None
    webhook: Annotated[str | None, Meta(description="Scheme, host and port of its own webhook.")]
    urls: dict[str, str]


class BatchProgress(Document):
    """How far a batch is, as an event says it."""

    rows: int
    rows_done: int
    rows_failed: int
    rows_per_s: float
    eta_s: float | None


class FolderDoc(Document):
    """A folder of the machine that tables may be taken from."""

    name: str
    writable: Annotated[bool, Meta(description="Whether outputs may be put there.")]


class FolderList(Document):
    """The folders a tenant may use."""

    items: list[FolderDoc]


class BatchList(Document):
    """Batches, newest first."""

    items: list[BatchDoc]


async def submit(context: Context) -> Reply:
    """Have the model's live version score every row of a table; a route does not choose here.

    The body is the table: Parquet, CSV, NDJSON or a JSON array of objects, by its content type or
    its first bytes. It is looked at before the answer, which is 202 and the batch; what is no table
    is refused and nothing is kept. Each row gets exactly one result, in the order of the table.

    With an `Idempotency-Key` the same request gives the same batch for as long as it is kept.
    `Webhook` and `Webhook-Events-Filter` are those of jobs, for `start`, `progress`, `completed`.

    With `from` there is no body: the table is a file in a folder that IT lets the tenant use. With
    `to` the output is written to one, too, in place of a file of that name, before the batch ends.
    """
    model = model_of(context)
    number = alias_of(context, model, LIVE).number
    return await _submit(context, context.snapshot.version(model.id, number))


async def submit_version(context: Context) -> Reply:
    """Have one version score every row of a table."""
    return await _submit(context, version_of(context, model_of(context)))


async def submit_alias(context: Context) -> Reply:
    """Have the version an alias points at score every row of a table."""
    model = model_of(context)
    number = alias_of(context, model, context.request.params["alias"]).number
    return await _submit(context, context.snapshot.version(model.id, number))


async def _submit(context: Context, version: Version | None) -> Reply:
    if version is None:
        raise wire.not_found()
    calls.require_callable(context, version)
    params, query = context.request.params, context.request.query
    taken_from, put_into = query.get("from", ""), query.get("to", "")
    if taken_from or put_into:
        require_folders(context)
    if taken_from and context.request.header("content-length") not in ("", "0"):
        raise Malformed("The table is the body of the request, or 'from' names it: not both.")
    webhook, wanted = await following.own_webhook(context, BATCH_TYPES, _WEBHOOK_DEFAULT)
    wish = BatchWish(
        principal_id=context.principal.id,
        version=version,
        plan=plan_of(context, version.manifest),
        target=f"{params.get('version', '')}@{params.get('alias', '')}",
        media_type="" if taken_from else context.request.content_type or "",
        idempotency_key=following.idempotency_key(context),
        webhook=webhook,
        webhook_events=wanted,
        taken_from=taken_from,
        put_into=put_into,
    )
    limit = context.node.settings.http.upload_bytes_max
    pieces = context.request.chunks(limit, rate_min=UPLOAD_RATE_MIN)
    batch, is_new = await context.services.batches.submit(wish, None if taken_from else pieces)
    return taken_on(context, batch, *following.replayed(is_new))


def taken_on(context: Context, batch: Batch, *headers: tuple[str, str]) -> Reply:
    """The answer to who submitted a batch: its document, and where it is."""
    where = ("location", _url(context, batch))
    told = (where, *headers, *following.sampled(context, batch.model_id))
    return json_reply(batch_doc(context, batch), status=202, headers=told)


def require_folders(context: Context) -> None:
    """Return if the caller may name files in folders of the machine. Raises Forbidden."""
    context.policy.require(context.principal, "folder:use", tenant_id=context.tenant.id)


async def list_folders(context: Context) -> Reply:
    """The folders of this machine that IT lets the tenant use for tables of batches."""
    found = context.services.batches.folders.of_tenant(context.tenant.name)
    items = [FolderDoc(name=name, writable=writable) for name, writable in found.items()]
    return json_reply(FolderList(items=items))


def plan_of(context: Context, manifest: Manifest) -> BatchPlan:
    """How the query of a request wants a table to be scored by a version of this manifest."""
    request = context.request
    source = request.query.get("format", "")
    if source:
        tables.require_format(source)
    form = _one_of(context, "form", ("auto", *batch_rows.FORMS))
    return BatchPlan(
        source=source,
        into=_one_of(context, "into", _INTO),
        form=batch_rows.form_of(manifest) if form == "auto" else cast("BatchForm", form),
        chunk_rows=request.int_query(
            "chunk_rows", default=_CHUNK_ROWS, low=1, high=_CHUNK_ROWS_MAX
        ),
        carry=_one_of(context, "carry", ("true", "false")) == "true",
        on_error=cast("Literal['fail', 'null']", _one_of(context, "on_error", ("fail", "null"))),
    )


def _one_of(context: Context, name: str, known: tuple[str, ...]) -> str:
    """A query parameter; the first of those known where it is not there."""
    value = context.request.query.get(name, known[0])
    if value not in known:
        raise InputInvalid(f"'{name}' is one of {', '.join(known)}.")
    return value


async def list_batches(context: Context) -> Reply:
    """A tenant's batches, newest first; a caller sees its own.

    Ended batches are kept for `jobs.kept_s` seconds, then they and their tables are deleted.
    """
    found = following.listed(context, context.snapshot.batches(context.tenant.id))
    return json_reply(BatchList(items=[batch_doc(context, batch) for batch in found]))


async def show_batch(context: Context) -> Reply:
    """A batch as it is now, or its progress as server-sent events.

    With `wait_s` the answer comes when the batch has ended, or after so many seconds. With
    `Accept: text/event-stream` the answer is the events `start`, `progress` (at most two a second)
    and `completed`, whenever one asks.
    """
    batch = _batch(context)
    if following.wants_events(context):
        return following.events(lambda write: _follow(context, batch, write))
    batch = await following.ended(context, context.services.batches, batch)
    return json_reply(batch_doc(context, batch))


async def show_output(context: Context) -> Reply:
    """The output of a batch that succeeded: a table with one row for each row of the input."""
    batch = _batch(context)
    pieces = context.services.batches.output(batch)
    first = await anext(pieces, b"")
    return Reply(
        content_type=tables.MEDIA_TYPES[tables.require_format(batch.plan.into)],
        headers=(
            ("model-version", str(batch.number)),
            *following.sampled(context, batch.model_id),
        ),
        stream=following.passed_on(first, pieces),
    )


async def cancel_batch(context: Context) -> Reply:
    """Cancel a batch; the calls it makes now are given up. One that ended stays as it is."""
    batch = await context.services.batches.cancel(_batch(context), actor=context.principal.id)
    return json_reply(batch_doc(context, batch))


async def _follow(context: Context, batch: Batch, write: Write) -> None:
    batches, told_ns, told_rows = context.services.batches, 0, -1
    while True:
        if batch.started_ns and not told_ns:
            await write(following.event("start", "start", batch_doc(context, batch)))
        if batch.status in JOB_ENDS:
            await write(following.event("completed", "completed", batch_doc(context, batch)))
            return
        if batch.started_ns and batch.rows_done != told_rows:
            told_ns, told_rows = batch.started_ns, batch.rows_done
            progress = BatchProgress(rows=batch.rows, **_progress(context, batch))
            await write(following.event("progress", f"progress-{told_rows}", progress))
            await asyncio.sleep(_TELL_S)
        after = await following.moved(batches, batch, write)
        if after is None:
            return
        batch = after


def _batch(context: Context) -> Batch:
    return following.required(context, context.services.batches, "batch")


def _url(context: Context, batch: Batch) -> str:
    return f"/api/v1/batches/{context.tenant.name}/{batch.id}"


def batch_doc(context: Context, batch: Batch) -> BatchDoc:
    """A batch of the request's tenant as callers see it."""
    url, plan = _url(context, batch), batch.plan
    urls = {"get": url, "cancel": f"{url}/cancel", "stream": url}
    if batch.has_output:
        urls["output"] = f"{url}/output"
    return BatchDoc(
        id=batch.id,
        status=batch.status,
        tenant=context.tenant.name,
        model=following.model_name(context, batch.model_id),
        version=batch.number,
        source=plan.source,
        into=plan.into,
        form=plan.form,
        chunk_rows=plan.chunk_rows,
        carry=plan.carry,
        on_error=plan.on_error,
        columns=[ColumnDoc(name=name, type=kind) for name, kind in batch.columns],
        rows=batch.rows,
        **_progress(context, batch),
        created_at=clock.text_from_ns(batch.created_ns),
        created_by=batch.created_by,
        started_at=clock.text_from_ns(batch.started_ns) if batch.started_ns else None,
        completed_at=clock.text_from_ns(batch.ended_ns) if batch.ended_ns else None,
        input_bytes=batch.input.size_bytes - len(head_of_table(batch.id)),
        error=following.shown_problem(context, batch.problem, batch.id),
        taken_from=batch.taken_from or None,
        put_into=batch.put_into or None,
        scheduled_by=batch.scheduled_by or None,
        idempotency_key=batch.idempotency_key or None,
        webhook=place_from_url(batch.webhook).origin if batch.webhook else None,
        urls=urls,
    )


def _progress(context: Context, batch: Batch) -> dict[str, Any]:
    found = context.services.batches.progress(batch)
    return {
        "rows_done": found.rows_done,
        "rows_failed": found.rows_failed,
        "rows_per_s": round(found.rows_per_s, 1),
        "eta_s": None if found.eta_s is None else round(found.eta_s, 1),
    }


_MODEL = "/api/v1/models/{tenant}/{model}"
_BATCHES = "/api/v1/batches/{tenant}"
_TEXT: dict[str, Any] = {"type": "string"}


def _choice(name: str, doc: str, *known: str) -> Query:
    return Query(name=name, doc=doc, schema={**_TEXT, "enum": [*known], "default": known[0]})


PLAN = (
    Query(
        name="format",
        doc="The format of the table, where neither content type nor first bytes say it.",
        schema={**_TEXT, "enum": [*tables.FORMATS]},
    ),
    Query(name="from", doc="Read the table here: FOLDER/path/in/it.", schema=_TEXT),
    Query(name="to", doc="Write the output here: FOLDER/path/in/it.", schema=_TEXT),
    _choice("into", "The format of the output.", *_INTO),
    _choice("form", "How rows are put into a body.", "auto", *batch_rows.FORMS),
    _choice("carry", "Whether the table's columns are in the output.", "true", "false"),
    _choice("on_error", "A failing row fails the batch, or is null.", "fail", "null"),
    Query(
        name="chunk_rows",
        doc="Most rows of one call.",
        schema={
            "type": "integer",
            "minimum": 1,
            "maximum": _CHUNK_ROWS_MAX,
            "default": _CHUNK_ROWS,
        },
    ),
)
"""The queries of ``plan_of``, and the two that name files."""

_SUBMIT: dict[str, Any] = {
    "method": "POST",
    "permission": "model:invoke",
    "body": (*tables.MEDIA_TYPES.values(), "application/octet-stream"),
    "reply": BatchDoc,
    "status": 202,
    "query": PLAN,
    "problems": (
        Gone,
        Malformed,
        IdempotencyKeyReused,
        EgressDenied,
        FolderUnavailable,
        InputInvalid,
        UnsupportedMedia,
        TooLarge,
        BodyTimeout,
        QuotaExceeded,
        DiskFull,
    ),
}

OPERATIONS = (
    Operation(path=_MODEL + "/batch", handler=submit, summary="Score a table", **_SUBMIT),
    Operation(
        path=_MODEL + "/versions/{version}/batch",
        handler=submit_version,
        summary="Score a table with one version",
        **_SUBMIT,
    ),
    Operation(
        path=_MODEL + "/aliases/{alias}/batch",
        handler=submit_alias,
        summary="Score a table with the version an alias points at",
        **_SUBMIT,
    ),
    Operation(
        method="GET",
        path="/api/v1/tenants/{tenant}/folders",
        permission="folder:use",
        handler=list_folders,
        summary="List the folders a tenant may use",
        reply=FolderList,
    ),
    Operation(
        method="GET",
        path=_BATCHES,
        permission="job:read",
        handler=list_batches,
        summary="List batches",
        reply=BatchList,
        query=following.LISTED,
        problems=(InputInvalid,),
    ),
    Operation(
        method="GET",
        path=_BATCHES + "/{batch}",
        permission="job:read",
        handler=show_batch,
        summary="Show a batch, wait for it, or follow it",
        reply=BatchDoc,
        query=(following.WAIT,),
        problems=(InputInvalid,),
    ),
    Operation(
        method="GET",
        path=_BATCHES + "/{batch}/output",
        permission="job:read",
        handler=show_output,
        summary="The output of a batch",
        reply=tuple(tables.MEDIA_TYPES[name] for name in _INTO),
        problems=(JobUnfinished,),
    ),
    Operation(
        method="POST",
        path=_BATCHES + "/{batch}/cancel",
        permission="job:cancel",
        handler=cancel_batch,
        summary="Cancel a batch",
        reply=BatchDoc,
        problems=(DiskFull,),
    ),
)
