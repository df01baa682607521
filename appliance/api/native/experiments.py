"""What a route's versions did: figures, effects with intervals, shadows, and reported outcomes.

Owns: the statistics of a route, and taking what callers say of the answers they got.
Never: judges a canary (``appliance.canary``).
Read next: ``appliance.effects`` (the statistics), ``store.queries`` (the counts).
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from appliance import effects, wire
from appliance.api.dispatch import Context
from appliance.api.native.models import model_of
from appliance.api.operation import Operation, Query
from appliance.api.shapes import Body, Document
from appliance.effects import Effect, Mean
from appliance.errors import InputInvalid, Malformed
from appliance.events import MetricReported
from appliance.records import Route
from appliance.store import ArmStats, ShadowStats
from appliance.traffic import Figures, baseline_of
from appliance.wire import Reply, json_reply

_WAIT_S = 2.0
_RELATIVE = 0.05
_RATE = 0.01
_BIG = 10**9


class OutcomeNew(Body):
    """How good the answer to a call turned out to be; a later word on the same call replaces it."""

    request_id: Annotated[
        str, Meta(min_length=1, max_length=64, description="The header Request-Id of the answer.")
    ]
    value: Annotated[
        float,
        Meta(ge=-1e15, le=1e15, description="Any number; which way is better is yours to say."),
    ]


class OutcomeDoc(Document):
    """What was taken down, and which version it counts for."""

    request_id: str
    version: int
    revision: int
    value: float


class EffectDoc(Document):
    """A version minus the baseline, with the 95 % interval."""

    difference: float
    low: float
    high: float
    clear: Annotated[bool, Meta(description="Whether the interval leaves zero out.")]
    samples: int
    samples_against: int
    needed: Annotated[
        int, Meta(description="Per version, to see the smallest difference that matters at 80 %.")
    ]
    enough: bool


class ArmFigures(Document):
    """What one version did with the calls it was sent; times from having a sandbox on."""

    version: int
    percent: float
    calls: int
    errors: int
    error_rate: float
    error_low: float
    error_high: float
    mean_ms: float
    p50_ms: float
    p95_ms: float
    metrics: int
    metric_mean: float | None


class Comparison(Document):
    """One version against the baseline; a figure is null until both were seen often enough."""

    version: int
    against: int
    error_rate: EffectDoc | None
    latency_ms: EffectDoc | None
    metric: EffectDoc | None


class ShadowFigures(Document):
    """How a shadow's replies compare with those callers got."""

    version: int
    calls: int
    equal: int
    close: int
    different: int
    failed: int
    dropped: Annotated[
        int, Meta(description="Not called: too many waited, or no sandbox was free.")
    ]
    p95_ms: float


class CanaryArm(Document):
    """One version in the canary's window."""

    version: int
    calls: int
    errors: int
    error_rate: float
    p95_ms: float


class CanaryNow(Document):
    """What the canary's window shows now, and what is wrong, if anything."""

    window_s: int
    calls_min: int
    arms: list[CanaryArm]
    complaint: str


class RouteStats(Document):
    """Figures of a route since a revision: the first with the same versions, unless asked for."""

    tenant: str
    model: str
    revision: int
    since_revision: int
    arms: list[ArmFigures]
    comparisons: list[Comparison]
    shadows: list[ShadowFigures]
    canary: CanaryNow | None


async def report_outcome(context: Context) -> Reply:
    """Say how good the answer to a routed call was; the statistics compare versions by it.

    Callers say it with the right to call the model, by the header Request-Id of the answer.
    """
    model = model_of(context)
    body = await context.request.json(OutcomeNew)
    store = context.services.store
    await store.queries.wait(store.ledger.head.size, _WAIT_S)
    found = await store.queries.routed_call(model_id=model.id, call_id=body.request_id)
    if found is None:
        raise wire.not_found()
    number, revision = found
    event = MetricReported(
        call_id=body.request_id,
        model_id=model.id,
        number=number,
        route_revision=revision,
        value=body.value,
    )
    await store.ledger.append(
        event, tenant_id=model.tenant_id, actor=context.principal.id, object=model.id
    )
    return json_reply(
        OutcomeDoc(request_id=body.request_id, version=number, revision=revision, value=body.value)
    )


async def route_stats(context: Context) -> Reply:
    """Calls, errors, latency and reported outcomes by version, and how they differ.

    Differences are against the canary's baseline, else the first version of the route: of error
    rates by Newcombe's interval, of means by Welch's. ``needed`` is for a difference of one point
    of the error rate, and of five percent of the baseline's mean.
    """
    model = model_of(context)
    route = context.snapshot.route(model.id)
    if route is None:
        raise wire.not_found()
    since = context.request.int_query("since", default=0, low=0, high=_BIG)
    since = since or since_of(context.snapshot.route_history(model.id))
    store = context.services.store
    await store.queries.wait(store.ledger.head.size, _WAIT_S)
    arms = {
        one.number: one
        for one in await store.queries.arm_stats(model_id=model.id, since_revision=since)
    }
    shadows = {
        one.number: one
        for one in await store.queries.shadow_stats(model_id=model.id, since_revision=since)
    }
    dropped = context.services.shadows.dropped
    base = baseline_of(route)
    known = arms.get(base, ArmStats(number=base))
    numbers = [arm.number for arm in route.arms]
    return json_reply(
        RouteStats(
            tenant=context.tenant.name,
            model=model.name,
            revision=route.revision,
            since_revision=since,
            arms=[
                _figures(arms.get(arm.number, ArmStats(number=arm.number)), arm.weight / 100)
                for arm in route.arms
            ],
            comparisons=[
                compared(arms.get(number, ArmStats(number=number)), known)
                for number in numbers
                if number != base
            ],
            shadows=[
                _shadow(shadows.get(number), number, dropped(model.id, number))
                for number in sorted({*shadows, *route.shadows})
            ],
            canary=_canary(context, route),
        )
    )


def compared(one: ArmStats, base: ArmStats) -> Comparison:
    """One version against the baseline."""
    metric = None
    if one.metrics and base.metrics:
        smallest = abs(base.metric_mean) * _RELATIVE
        metric = effects.mean_effect(_metric(one), _metric(base), smallest=smallest)
    return Comparison(
        version=one.number,
        against=base.number,
        error_rate=_effect(
            effects.rate_effect(one.errors, one.calls, base.errors, base.calls, smallest=_RATE)
        ),
        latency_ms=_effect(
            effects.mean_effect(_took(one), _took(base), smallest=base.took_mean / 1e3 * _RELATIVE)
        ),
        metric=_effect(metric),
    )


def since_of(history: tuple[Route, ...]) -> int:
    """The oldest revision from which on the route had the same versions, without a break."""
    now = {arm.number for arm in history[-1].arms}
    since = history[-1].revision
    for route in reversed(history):
        if {arm.number for arm in route.arms} != now or route.state in ("promoted", "removed"):
            break
        since = route.revision
    return since


def _figures(one: ArmStats, percent: float) -> ArmFigures:
    low, high = effects.wilson(one.errors, one.calls)
    return ArmFigures(
        version=one.number,
        percent=percent,
        calls=one.calls,
        errors=one.errors,
        error_rate=one.errors / one.calls if one.calls else 0.0,
        error_low=low,
        error_high=high,
        mean_ms=one.took_mean / 1000,
        p50_ms=one.took_p50 / 1000,
        p95_ms=one.took_p95 / 1000,
        metrics=one.metrics,
        metric_mean=one.metric_mean if one.metrics else None,
    )


def _shadow(one: ShadowStats | None, number: int, dropped: int) -> ShadowFigures:
    if one is None:
        one = ShadowStats(number=number)
    return ShadowFigures(
        version=number,
        calls=one.calls - one.missed,
        equal=one.equal,
        close=one.close,
        different=one.different,
        failed=one.failed,
        dropped=one.missed + dropped,
        p95_ms=one.took_p95 / 1000,
    )


def _took(one: ArmStats) -> Mean:
    answered = one.calls - one.errors
    return Mean(count=answered, mean=one.took_mean / 1e3, variance=one.took_variance / 1e6)


def _metric(one: ArmStats) -> Mean:
    return Mean(count=one.metrics, mean=one.metric_mean, variance=one.metric_variance)


def _effect(one: Effect | None) -> EffectDoc | None:
    if one is None:
        return None
    return EffectDoc(
        difference=one.difference,
        low=one.low,
        high=one.high,
        clear=one.is_clear,
        samples=one.samples,
        samples_against=one.samples_against,
        needed=one.needed,
        enough=one.is_enough,
    )


def _canary(context: Context, route: Route) -> CanaryNow | None:
    if route.canary is None:
        return None
    shown, complaint = context.services.canaries.figures(route.model_id)
    return CanaryNow(
        window_s=route.canary.window_s,
        calls_min=route.canary.calls_min,
        arms=[
            _canary_arm(number, shown.get(number, Figures()))
            for number in (route.canary.against, route.canary.number)
        ],
        complaint=complaint,
    )


def _canary_arm(number: int, found: Figures) -> CanaryArm:
    return CanaryArm(
        version=number,
        calls=found.calls,
        errors=found.errors,
        error_rate=found.error_rate,
        p95_ms=found.p95_us / 1000,
    )


_ROUTE = "/api/v1/models/{tenant}/{model}/route"

OPERATIONS = (
    Operation(
        method="GET",
        path=_ROUTE + "/stats",
        permission="model:read",
        handler=route_stats,
        summary="Compare the versions of a model's route",
        reply=RouteStats,
        query=(
            Query(
                name="since",
                doc="Count from this revision of the route on.",
                schema={"type": "integer", "minimum": 0},
            ),
        ),
        problems=(Malformed, InputInvalid),
    ),
    Operation(
        method="POST",
        path=_ROUTE + "/outcomes",
        permission="model:invoke",
        handler=report_outcome,
        summary="Report how good an answer was",
        body=OutcomeNew,
        reply=OutcomeDoc,
        problems=(Malformed, InputInvalid),
    ),
)
