"""Comparisons: a data set through several versions, answered with 202 and followed by polling.

Owns: the operations on comparisons and their JSON documents.
Never: runs one; shows its rows to anybody but an owner.
Read next: ``appliance.comparison.runner`` (what happens to a comparison).

An owner sees its tenant's comparisons, a caller those it asked for itself. One that may not be seen
answers like one that does not exist.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from msgspec import Meta

from appliance import clock, wire
from appliance.api.dispatch import Context
from appliance.api.native import following
from appliance.api.operation import Operation, Query
from appliance.api.shapes import Document, Time
from appliance.comparison import answers
from appliance.comparison.dataset import MEDIA
from appliance.comparison.record import Comparison, Source, Target
from appliance.comparison.replay import ReplayReport
from appliance.comparison.report import TASKS, ComparisonReport
from appliance.errors import (
    BodyTimeout,
    DiskFull,
    FieldError,
    Gone,
    InputInvalid,
    Malformed,
    QuotaExceeded,
    TooLarge,
    UnsupportedMedia,
)
from appliance.records import LIVE, JobStatus, Model, Version
from appliance.wire import UPLOAD_RATE_MIN, Reply, json_reply

TARGETS_MAX = 8
_BATCH_MAX = 10_000
_WORST_MAX = 100
_MODEL = re.compile(r"([a-z0-9-]{1,63})(?:[:@]([1-9][0-9]{0,8})|@([a-z0-9-]{1,63}))?")
_NUMBER = re.compile(r"(?:0|[1-9][0-9]{0,8})(?:\.[0-9]{1,12})?(?:e-?[0-9]{1,2})?")


class TargetDoc(Document):
    """A version a comparison goes through; ``form`` is how it is sent rows."""

    model: str
    version: int
    form: str


class ComparisonDoc(Document):
    """A comparison."""

    id: str
    status: JobStatus
    source: Annotated[Source, Meta(description="A data set, or recorded calls.")]
    tenant: str
    targets: list[TargetDoc]
    rows: int
    done: Annotated[int, Meta(description="Of `total`, how much is done.")]
    total: Annotated[int, Meta(description="Rows times targets.")]
    created_at: Time
    created_by: str
    started_at: Time | None
    completed_at: Time | None
    report: Annotated[
        ComparisonReport | None,
        Meta(description="Once it succeeded; not in lists. `worst` is shown to owners."),
    ]
    replay: Annotated[ReplayReport | None, Meta(description="The same, of a replay.")]
    error: Annotated[dict[str, Any] | None, Meta(description="A problem document (RFC 9457).")]
    urls: dict[str, str]


class ComparisonList(Document):
    """Comparisons, newest first."""

    items: list[ComparisonDoc]


async def create_comparison(context: Context) -> Reply:
    """Send a data set through 1 to 8 versions; the answer is 202 and a comparison to follow.

    `models` names them: `churn:3,churn:4`, `churn@live`, `churn` (its live version), of any models
    of this tenant that the caller may call. The body is the data set: CSV with a line of names,
    JSON, NDJSON or Parquet. What each version answers is compared with that of the others and,
    where `label` names the column that says what is true, measured. Every call is on record,
    in the caller's name, with an id that begins with the comparison's.
    """
    request = context.request
    limits = context.services.comparisons.settings
    media_type = wire.require_media(request.content_type, MEDIA)
    versions = _versions(context)
    query = request.query
    task = _choice(query.get("task"), TASKS, "task")
    form = _choice(query.get("form"), answers.FORMS, "form")
    tolerance = query.get("tolerance", "1e-6")
    if not _NUMBER.fullmatch(tolerance):
        raise _bad("tolerance", "'tolerance' is a number such as 0.01.")
    batch = request.int_query("batch", default=100, low=1, high=_BATCH_MAX)
    worst = request.int_query("worst", default=10, low=0, high=_WORST_MAX)
    asked = Comparison(
        id=clock.new_id("cmp"),
        tenant_id=context.tenant.id,
        source="data",
        targets=(),
        media_type=media_type,
        label=query.get("label", ""),
        group=query.get("group", ""),
        task=task,
        batch=batch,
        tolerance=float(tolerance),
        worst=worst,
        created_ns=clock.now_ns(),
        created_by=context.principal.id,
    )
    comparisons = context.services.comparisons
    chunks = request.chunks(limits.data_bytes_max, rate_min=UPLOAD_RATE_MIN)
    async with comparisons.received(asked, chunks) as (asked, rows):
        row, columns = await rows.first(), rows.facts.columns
        targets = tuple(_target(model, version, form, columns, row) for model, version in versions)
        return accepted(context, await comparisons.submit(replace(asked, targets=targets)))


def accepted(context: Context, comparison: Comparison) -> Reply:
    """The answer to a comparison that was taken on."""
    document = brief(context, comparison)
    return json_reply(document, status=202, headers=(("location", document.urls["get"]),))


async def list_comparisons(context: Context) -> Reply:
    """A tenant's comparisons, newest first; a caller sees its own.

    A report is kept for `comparisons.kept_s` seconds after its comparison ended.
    """
    await context.services.comparisons.taken_up()
    every = context.services.comparisons.all(context.tenant.id)
    seen = [one for one in reversed(every) if following.is_visible(context, one.created_by)]
    return json_reply(
        ComparisonList(items=[brief(context, one) for one in seen[: following.limit(context)]])
    )


async def show_comparison(context: Context) -> Reply:
    """A comparison as it is now, with its report once it succeeded.

    With `wait_s` the answer comes when it has ended, or after so many seconds.
    """
    keeper, comparison = context.services.comparisons, await _comparison(context)
    comparison = await following.ended(context, keeper, comparison)
    return json_reply(await _document(context, comparison))


async def cancel_comparison(context: Context) -> Reply:
    """Cancel a comparison; one that has ended stays as it is. Its data set is deleted."""
    comparison = await context.services.comparisons.cancel(await _comparison(context))
    return json_reply(await _document(context, comparison))


def _versions(context: Context) -> list[tuple[Model, Version]]:
    """The versions the query names, each callable by this caller, none twice."""
    text = context.request.query.get("models", "")
    names = text.split(",") if text else []
    if not 1 <= len(names) <= TARGETS_MAX:
        raise _bad(
            "models", f"'models' names 1 to {TARGETS_MAX} versions, such as churn:3,churn:4."
        )
    found = [_version(context, name.strip()) for name in names]
    if len({(model.id, version.number) for model, version in found}) < len(found):
        raise _bad("models", "'models' names the same version twice.")
    return found


def _version(context: Context, text: str) -> tuple[Model, Version]:
    match = _MODEL.fullmatch(text)
    if match is None:
        raise _bad("models", f"'{text[:80]}' is not MODEL, MODEL:VERSION or MODEL@ALIAS.")
    name, number, alias = match[1], match[2], match[3] or LIVE
    context.policy.require(
        context.principal, "model:invoke", tenant_id=context.tenant.id, model=name
    )
    model = context.snapshot.model(context.tenant.id, name)
    if model is None:
        raise _bad("models", f"There is no model '{name}'.")
    if number is None:
        named = context.snapshot.alias(model.id, alias)
        number = str(named.number) if named else None
    version = context.snapshot.version(model.id, int(number)) if number else None
    if version is None:
        raise _bad("models", f"'{name}' has no {f'version {number}' if number else alias}.")
    if version.retired_ns:
        raise Gone(f"Version {version.number} of '{name}' is retired.", number=version.number)
    return model, version


def _target(
    model: Model, version: Version, form: str | None, columns: Sequence[str], row: list[Any]
) -> Target:
    manifest = version.manifest
    chosen = form or answers.form_of(
        manifest.sample, manifest.input_schema, manifest.convention, named=bool(columns)
    )
    answers.body_of(chosen, columns, [row])  # says now what could not be sent
    return Target(model_id=model.id, model=model.name, number=version.number, form=chosen)


def _choice(text: str | None, known: tuple[Any, ...], name: str) -> Any:
    if text is not None and text not in known:
        raise _bad(name, f"'{name}' is one of {', '.join(known)}.")
    return text


def _bad(name: str, detail: str) -> InputInvalid:
    return InputInvalid(detail, fields=(FieldError(pointer=f"?{name}", detail=detail),))


async def _comparison(context: Context) -> Comparison:
    await context.services.comparisons.taken_up()
    return following.required(context, context.services.comparisons, "comparison")


async def _document(context: Context, comparison: Comparison) -> ComparisonDoc:
    document = brief(context, comparison)
    report = await context.services.comparisons.report(comparison)
    if report is not None and not following.is_owner(context):
        report.worst = []
    if isinstance(report, ReplayReport):
        document.replay = report
    else:
        document.report = report
    return document


def brief(context: Context, comparison: Comparison) -> ComparisonDoc:
    """A comparison of the request's tenant as callers see it, without its report."""
    url = f"/api/v1/comparisons/{context.tenant.name}/{comparison.id}"
    return ComparisonDoc(
        id=comparison.id,
        status=comparison.status,
        source=comparison.source,
        tenant=context.tenant.name,
        targets=[
            TargetDoc(model=one.model, version=one.number, form=one.form)
            for one in comparison.targets
        ],
        rows=comparison.rows,
        done=context.services.comparisons.done(comparison),
        total=comparison.total,
        created_at=clock.text_from_ns(comparison.created_ns),
        created_by=comparison.created_by,
        started_at=_time(comparison.started_ns),
        completed_at=_time(comparison.ended_ns),
        report=None,
        replay=None,
        error=following.shown_problem(context, comparison.problem, comparison.id),
        urls={"get": url, "cancel": f"{url}/cancel"},
    )


def _time(ns: int) -> str | None:
    return clock.text_from_ns(ns) if ns else None


_COMPARISONS = "/api/v1/comparisons/{tenant}"
_TEXT = {"type": "string"}


def _whole(low: int, high: int, default: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": low, "maximum": high, "default": default}


OPERATIONS = (
    Operation(
        method="POST",
        path=_COMPARISONS,
        permission="comparison:create",
        handler=create_comparison,
        summary="Compare versions on a data set",
        body=MEDIA,
        reply=ComparisonDoc,
        status=202,
        query=(
            Query(name="models", doc="What to compare: `a:1,a:2,b@live`.", schema=_TEXT),
            Query(name="label", doc="The column that says what is true.", schema=_TEXT),
            Query(name="group", doc="The column whose values are ranked together.", schema=_TEXT),
            Query(
                name="task", doc="What is measured; told from the data without it.",
                schema={"type": "string", "enum": [*TASKS]},
            ),
            Query(
                name="form", doc="How rows are sent; told from each version without it.",
                schema={"type": "string", "enum": [*answers.FORMS]},
            ),
            Query(name="batch", doc="Rows a call.", schema=_whole(1, _BATCH_MAX, 100)),
            Query(
                name="tolerance", doc="Share by which numbers that agree may differ.",
                schema={"type": "number", "default": 1e-6},
            ),
            Query(name="worst", doc="Most rows to show.", schema=_whole(0, _WORST_MAX, 10)),
        ),
        problems=(
            Malformed, InputInvalid, Gone, TooLarge, UnsupportedMedia, BodyTimeout, QuotaExceeded,
            DiskFull,
        ),
    ),
    Operation(
        method="GET",
        path=_COMPARISONS,
        permission="comparison:read",
        handler=list_comparisons,
        summary="List comparisons",
        reply=ComparisonList,
        query=(following.LIMIT,),
        problems=(InputInvalid,),
    ),
    Operation(
        method="GET",
        path=_COMPARISONS + "/{comparison}",
        permission="comparison:read",
        handler=show_comparison,
        summary="Show a comparison, or wait for it",
        reply=ComparisonDoc,
        query=(following.WAIT,),
        problems=(InputInvalid,),
    ),
    Operation(
        method="POST",
        path=_COMPARISONS + "/{comparison}/cancel",
        permission="comparison:cancel",
        handler=cancel_comparison,
        summary="Cancel a comparison",
        reply=ComparisonDoc,
        problems=(DiskFull,),
    ),
)  # fmt: skip
