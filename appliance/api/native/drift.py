"""Drift of a version: its baseline, its thresholds, and its scores over any period.

Owns: the operations on drift and their JSON documents.
Never: counts or judges (``appliance.watch``); shows no value and no category of anybody's input.
Read next: ``appliance.watch``, ``appliance.drift.scores``.
"""

from __future__ import annotations

import math
from typing import Annotated

from msgspec import UNSET, Meta, UnsetType, field

from appliance import clock, tables, wire
from appliance.api.dispatch import Context
from appliance.api.native.models import model_of, version_of
from appliance.api.operation import Operation, Query
from appliance.api.shapes import Body, Document, Time
from appliance.drift.scores import STATISTICS, Score, limit_of, merged
from appliance.drift.sketch import Column, Tally
from appliance.errors import (
    BodyTimeout,
    DiskFull,
    FieldError,
    Gone,
    InputInvalid,
    Malformed,
    QuotaExceeded,
    RevisionStale,
    TooLarge,
    UnsupportedMedia,
)
from appliance.records import Baseline, Breach, Thresholds, Version
from appliance.watch import Report
from appliance.watch.baselines import Asked
from appliance.watch.data import table_of
from appliance.wire import Reply, json_reply

_MEDIA_TYPES = tuple(tables.MEDIA_TYPES.values())
_REASON_MAX = 1000
_NAME_MAX = 200
_WINDOW_S_MAX = 86_400
_SINCE_S_MAX = 3650 * 86_400
_NAMES = ", ".join(STATISTICS)
Limit = Annotated[float, Meta(ge=0, le=1e6)]
Reason = Annotated[str, Meta(max_length=_REASON_MAX)]


class WindowNew(Body):
    """The calls a baseline is made of: those of the last seconds."""

    window_s: Annotated[int, Meta(ge=60, le=_SINCE_S_MAX)]
    of: Annotated[
        int, Meta(ge=0, le=999_999_999, description="Whose calls; 0: this version's own.")
    ] = 0
    reason: Reason = ""


class LearnNew(Body):
    """How many of the next records a baseline is made of."""

    records: Annotated[int, Meta(ge=20, le=10_000)] = 1000
    reason: Reason = ""


class ThresholdsNew(Body):
    """What changes of a version's thresholds; what is left out stays."""

    limits: Annotated[
        dict[str, Limit | None],
        Meta(description=f"By statistic ({_NAMES}); 0: not judged, null: the default."),
    ] = field(default_factory=dict)
    features: Annotated[
        dict[str, dict[str, Limit | None]],
        Meta(description="By column and statistic; null: as for all columns.", max_length=500),
    ] = field(default_factory=dict)
    rows_min: Annotated[int, Meta(ge=20, le=1_000_000_000)] | UnsetType = UNSET
    window_s: Annotated[int, Meta(ge=60, le=_WINDOW_S_MAX)] | UnsetType = UNSET
    reason: Reason = ""


class ThresholdsDoc(Document):
    """From which score on a column has drifted; 0: not judged."""

    limits: dict[str, float]
    features: dict[str, dict[str, float]]
    rows_min: int
    window_s: int


class BaselineDoc(Document):
    """What a version is compared with; ``revision`` goes into If-Match."""

    tenant: str
    model: str
    version: int
    source: Annotated[
        str, Meta(description="data, a window of calls, the first calls; learning: not yet.")
    ]
    rows: Annotated[int, Meta(description="Records it is made of, or is to be.")]
    inputs: int
    outputs: int
    thresholds: ThresholdsDoc
    revision: int
    reason: str
    set_at: Time
    set_by: str


class ScoreDoc(Document):
    """One statistic of one column."""

    feature: str
    output: bool
    kind: str
    statistic: str
    value: float
    threshold: Annotated[float, Meta(description="0: not judged.")]
    by_chance: Annotated[
        float | None,
        Meta(description="What so few records exceed once in a thousand times without drift."),
    ]
    verdict: Annotated[str, Meta(description="ok, breach, few (records) or unjudged.")]


class SideDoc(Document):
    """One column on one side of the comparison."""

    values: int
    missing: int
    mean: float | None
    deviation: float | None


class FeatureDoc(Document):
    """One column: what is known of it in the baseline and in the window."""

    feature: str
    output: bool
    kind: str
    bins: int
    baseline: SideDoc
    window: SideDoc


class BreachDoc(Document):
    """A breach that was told and is not over."""

    feature: str
    output: bool
    statistic: str
    value: Annotated[float, Meta(description="When it was told.")]
    threshold: float
    rows: int
    since: Time


class DriftDoc(Document):
    """A version's calls of a period against its baseline."""

    baseline: BaselineDoc
    since_s: int
    rows: int
    calls: int
    answers: int
    unread: Annotated[int, Meta(description="Calls whose body is of no form that is understood.")]
    skipped: Annotated[int, Meta(description="Records of large bodies that were not looked at.")]
    dropped: Annotated[
        int, Meta(description="Calls not counted, since the start: too many waited.")
    ]
    scores: list[ScoreDoc]
    features: list[FeatureDoc]
    breaches: list[BreachDoc]


async def show_drift(context: Context) -> Reply:
    """How far a version's calls of a period are from its baseline, column by column.

    Without `since_s` over its own window, as it is judged. Statistics are of binned values; bins
    are the baseline's. The current minute is included.
    """
    version = version_of(context, model_of(context))
    query = context.request.query.get("since_s")
    since_s = context.request.int_query("since_s", default=0, low=1, high=_SINCE_S_MAX)
    report = await context.services.watch.report(
        version.model_id, version.number, since_s if query else None
    )
    tag = f'"{report.baseline.revision}"'
    return json_reply(_report_doc(context, report), headers=(("etag", tag),))


async def set_baseline(context: Context) -> Reply:
    """Compare a version's calls with data from now on, such as what it was trained on.

    Parquet, CSV with a line of names, NDJSON, or JSON (records, rows with columns, lists by
    column). Only counts are kept, sealed. With `output` that column is what the version answers.
    """
    version = version_of(context, model_of(context))
    request = context.request
    media_type = wire.require_media(request.content_type, _MEDIA_TYPES)
    reason = request.query.get("reason", "")
    if len(reason) > _REASON_MAX:
        raise InputInvalid(f"A reason has at most {_REASON_MAX} characters.")
    body = await request.body(context.node.settings.drift.data_bytes_max)
    table = await table_of(media_type, body)
    baseline = await context.services.watch.set_from_data(
        version,
        table,
        _asked(context, reason),
        output=request.query.get("output", ""),
    )
    return _reply(context, baseline)


async def set_baseline_from_window(context: Context) -> Reply:
    """Compare a version's calls with those of a past period, its own or another version's.

    That version must have had a baseline meanwhile: only then are calls counted. Its bins stay.
    """
    version = version_of(context, model_of(context))
    body = await context.request.json(WindowNew)
    baseline = await context.services.watch.set_from_window(
        version,
        _asked(context, body.reason),
        window_s=body.window_s,
        of=body.of or version.number,
    )
    return _reply(context, baseline)


async def learn_baseline(context: Context) -> Reply:
    """Make a version's baseline of its next records, where there is no data to make one from.

    Values are kept in memory until they are enough; a restart begins anew.
    """
    version = version_of(context, model_of(context))
    body = await context.request.json(LearnNew)
    asked = _asked(context, body.reason)
    return _reply(context, await context.services.watch.learn(version, body.records, asked))


async def remove_baseline(context: Context) -> Reply:
    """Count a version's calls no more, and delete what was counted."""
    version = version_of(context, model_of(context))
    await context.services.watch.remove(version, _asked(context))
    return Reply(status=204)


async def set_thresholds(context: Context) -> Reply:
    """Change from which score on a version's columns have drifted; judged again within a minute."""
    version = version_of(context, model_of(context))
    body = await context.request.json(ThresholdsNew)
    _require_statistics(body)

    def merge(known: Thresholds) -> Thresholds:
        return merged(
            known,
            limits=body.limits,
            features=body.features,
            rows_min=known.rows_min if body.rows_min is UNSET else body.rows_min,
            window_s=known.window_s if body.window_s is UNSET else body.window_s,
        )

    await _require_columns(context, version, body)
    baseline = await context.services.watch.set_thresholds(
        version, merge, _asked(context, body.reason)
    )
    return _reply(context, baseline)


def _require_statistics(body: ThresholdsNew) -> None:
    named = [(f"/limits/{name}", name) for name in body.limits] + [
        (f"/features/{feature}/{name}", name)
        for feature, limits in body.features.items()
        for name in limits
    ]
    wrong = [(pointer, name) for pointer, name in named if name not in STATISTICS]
    if wrong:
        raise InputInvalid(
            f"'{wrong[0][1][:_NAME_MAX]}' is no statistic; there are {_NAMES}.",
            fields=tuple(
                FieldError(pointer=pointer[:_NAME_MAX], detail="no such statistic")
                for pointer, _name in wrong
            ),
        )


async def _require_columns(context: Context, version: Version, body: ThresholdsNew) -> None:
    if not body.features:
        return
    report = await context.services.watch.report(version.model_id, version.number, 1)
    known = {column.name for column in (*report.plan.inputs, *report.plan.outputs)}
    wrong = [name for name in body.features if name not in known]
    if wrong:
        raise InputInvalid(
            f"The baseline has no column '{wrong[0][:_NAME_MAX]}'; it has "
            f"{', '.join(sorted(known)[:20])}."
        )


def _asked(context: Context, reason: str = "") -> Asked:
    revision = wire.revision_from_if_match(context.request.header("if-match"))
    return Asked(actor=context.principal.id, reason=reason, revision=revision)


def _reply(context: Context, baseline: Baseline) -> Reply:
    tag = f'"{baseline.revision}"'
    return json_reply(_baseline_doc(context, baseline), headers=(("etag", tag),))


def _baseline_doc(context: Context, one: Baseline) -> BaselineDoc:
    known = one.thresholds
    return BaselineDoc(
        tenant=context.tenant.name,
        model=context.request.params["model"],
        version=one.number,
        source=one.source,
        rows=one.rows,
        inputs=one.inputs,
        outputs=one.outputs,
        thresholds=ThresholdsDoc(
            limits={name: limit_of(known, "", name) for name in STATISTICS},
            features=known.features,
            rows_min=known.rows_min,
            window_s=known.window_s,
        ),
        revision=one.revision,
        reason=one.reason,
        set_at=clock.text_from_ns(one.set_ns),
        set_by=one.set_by,
    )


def _report_doc(context: Context, report: Report) -> DriftDoc:
    window, base = report.window, report.base
    return DriftDoc(
        baseline=_baseline_doc(context, report.baseline),
        since_s=report.since_s,
        rows=window.rows,
        calls=window.calls,
        answers=window.answers,
        unread=window.unread,
        skipped=window.skipped,
        dropped=report.dropped,
        scores=[_score_doc(score) for score in report.scores],
        features=[
            *map(_feature_doc, report.plan.inputs, base.inputs, window.inputs),
            *(
                _feature_doc(column, before, now, is_output=True)
                for column, before, now in zip(
                    report.plan.outputs, base.outputs, window.outputs, strict=True
                )
            ),
        ],
        breaches=[breach_doc(breach) for breach in report.breaches],
    )


def _score_doc(score: Score) -> ScoreDoc:
    return ScoreDoc(
        feature=score.feature,
        output=score.is_output,
        kind=score.kind,
        statistic=score.statistic,
        value=score.value,
        threshold=score.threshold,
        by_chance=score.by_chance if math.isfinite(score.by_chance) else None,
        verdict=score.verdict,
    )


def _feature_doc(
    column: Column, before: Tally, now: Tally, *, is_output: bool = False
) -> FeatureDoc:
    return FeatureDoc(
        feature=column.name,
        output=is_output,
        kind=column.kind,
        bins=column.bins,
        baseline=_side(before),
        window=_side(now),
    )


def _side(tally: Tally) -> SideDoc:
    variance = tally.variance
    return SideDoc(
        values=tally.seen,
        missing=tally.missing,
        mean=tally.mean if tally.count else None,
        deviation=None if variance is None else math.sqrt(variance),
    )


def breach_doc(breach: Breach) -> BreachDoc:
    """A breach as people see it."""
    return BreachDoc(
        feature=breach.feature,
        output=breach.is_output,
        statistic=breach.statistic,
        value=breach.value,
        threshold=breach.threshold,
        rows=breach.rows,
        since=clock.text_from_ns(breach.since_ns),
    )


_DRIFT = "/api/v1/models/{tenant}/{model}/versions/{version}/drift"
_STALE = (Malformed, InputInvalid, RevisionStale, Gone)

OPERATIONS = (
    Operation(
        method="GET",
        path=_DRIFT,
        permission="drift:read",
        handler=show_drift,
        summary="Show a version's drift",
        reply=DriftDoc,
        query=(
            Query(
                name="since_s",
                doc="Seconds to look back; its own window without it.",
                schema={"type": "integer", "minimum": 1, "maximum": _SINCE_S_MAX},
            ),
        ),
        problems=(InputInvalid,),
    ),
    Operation(
        method="PUT",
        path=_DRIFT + "/baseline",
        permission="drift:set",
        handler=set_baseline,
        summary="Make a version's baseline from data",
        body=_MEDIA_TYPES,
        reply=BaselineDoc,
        query=(
            Query(
                name="output",
                doc="The column that is what the version answers.",
                schema={"type": "string"},
            ),
            Query(name="reason", doc="Kept with the revision.", schema={"type": "string"}),
        ),
        problems=(*_STALE, UnsupportedMedia, TooLarge, BodyTimeout, QuotaExceeded, DiskFull),
    ),
    Operation(
        method="POST",
        path=_DRIFT + "/baseline/window",
        permission="drift:set",
        handler=set_baseline_from_window,
        summary="Make a version's baseline from past calls",
        body=WindowNew,
        reply=BaselineDoc,
        problems=(*_STALE, QuotaExceeded, DiskFull),
    ),
    Operation(
        method="POST",
        path=_DRIFT + "/baseline/learn",
        permission="drift:set",
        handler=learn_baseline,
        summary="Learn a version's baseline from its next calls",
        body=LearnNew,
        reply=BaselineDoc,
        problems=(*_STALE, QuotaExceeded),
    ),
    Operation(
        method="DELETE",
        path=_DRIFT + "/baseline",
        permission="drift:set",
        handler=remove_baseline,
        summary="Remove a version's baseline",
        status=204,
        problems=_STALE,
    ),
    Operation(
        method="PUT",
        path=_DRIFT + "/thresholds",
        permission="drift:set",
        handler=set_thresholds,
        summary="Change a version's drift thresholds",
        body=ThresholdsNew,
        reply=BaselineDoc,
        problems=_STALE,
    ),
)
