"""How a model's calls are divided among its versions: its route, and every revision of it.

Owns: the operations on routes and their JSON documents.
Never: chooses a version for a call (``appliance.routing``).
Read next: ``appliance.routing``, ``appliance.traffic``.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, field

from appliance import clock, wire
from appliance.api.dispatch import Context
from appliance.api.native.models import model_of
from appliance.api.operation import Operation
from appliance.api.shapes import Body, Document, Time
from appliance.errors import FieldError, InputInvalid, Malformed, RevisionStale, RouteInvalid
from appliance.records import Arm, Canary, Route
from appliance.traffic import ARMS_MAX, SHADOWS_MAX, STEPS_MAX
from appliance.wire import Reply, json_reply

_REASON_MAX = 1000
Number = Annotated[int, Meta(ge=1, le=999_999_999)]
Percent = Annotated[float, Meta(ge=0, le=100, description="Of all calls, in steps of 0.01.")]
Reason = Annotated[str, Meta(max_length=_REASON_MAX)]


class ArmNew(Body):
    """A version and the share of the calls it gets."""

    version: Number
    percent: Percent


class CanaryNew(Body):
    """When a candidate is worse than what it is compared with, and what happens then."""

    version: Annotated[int, Meta(ge=1, description="The candidate; one of the arms.")]
    against: Annotated[
        int, Meta(ge=0, description="What it is compared with; 0: the first arm that is not it.")
    ] = 0
    error_rate_max: Annotated[
        float, Meta(ge=0, le=1, description="Largest difference of error rates; 0: not looked at.")
    ] = 0.0
    latency_ratio_max: Annotated[
        float,
        Meta(ge=0, le=100, description="Largest ratio of 95th percentiles; 0: not looked at."),
    ] = 0.0
    calls_min: Annotated[int, Meta(ge=1, le=1_000_000)] = 100
    window_s: Annotated[int, Meta(ge=10, le=3600)] = 300
    action: Literal["hold", "abort", "none"] = "abort"
    steps_percent: Annotated[list[Percent], Meta(max_length=STEPS_MAX)] = field(
        default_factory=list
    )
    step_s: Annotated[int, Meta(ge=1, le=2_592_000)] = 600


class RouteNew(Body):
    """How a model's calls shall be divided; the shares sum to exactly 100."""

    arms: Annotated[list[ArmNew], Meta(min_length=1, max_length=ARMS_MAX)]
    sticky: Annotated[
        str, Meta(max_length=80, description="Empty, 'key' (the API key) or 'header:NAME'.")
    ] = ""
    shadows: Annotated[list[Number], Meta(max_length=SHADOWS_MAX)] = field(default_factory=list)
    canary: CanaryNew | None = None
    reason: Reason = ""


class RouteVerb(Body):
    """Why; kept with the revision."""

    reason: Reason = ""


class Promotion(Body):
    """Which arm becomes live (0: the candidate), and why."""

    version: Annotated[int, Meta(ge=0, le=999_999_999)] = 0
    reason: Reason = ""


class ArmDoc(Document):
    """A version and its share."""

    version: int
    percent: float


class CanaryDoc(Document):
    """The owner's thresholds."""

    version: int
    against: int
    error_rate_max: float
    latency_ratio_max: float
    calls_min: int
    window_s: int
    action: str
    steps_percent: list[float]
    step_s: int


class RouteDoc(Document):
    """One revision of a route; ``revision`` goes into If-Match."""

    tenant: str
    model: str
    arms: list[ArmDoc]
    sticky: str
    shadows: list[int]
    canary: CanaryDoc | None
    state: Annotated[str, Meta(description="active, held, aborted; promoted or removed: over.")]
    revision: int
    reason: str
    set_at: Time
    set_by: str


class RouteHistory(Document):
    """The last revisions of a route, newest first; the audit ledger has all of them."""

    items: list[RouteDoc]


def route_doc(route: Route, tenant: str, model: str) -> RouteDoc:
    """A revision as callers see it."""
    return RouteDoc(
        tenant=tenant,
        model=model,
        arms=[ArmDoc(version=arm.number, percent=arm.weight / 100) for arm in route.arms],
        sticky=route.sticky,
        shadows=list(route.shadows),
        canary=_canary_doc(route.canary) if route.canary else None,
        state=route.state,
        revision=route.revision,
        reason=route.reason,
        set_at=clock.text_from_ns(route.set_ns),
        set_by=route.set_by,
    )


async def show_route(context: Context) -> Reply:
    """How a model's calls are divided; 404 where 'live' decides. The ETag goes into If-Match."""
    route = context.snapshot.route(model_of(context).id)
    if route is None:
        raise wire.not_found()
    return _reply(context, route)


async def set_route(context: Context) -> Reply:
    """Divide a model's calls among its versions, from the next call on.

    With If-Match only if nobody changed the route meanwhile ("0" means there was none). Where the
    route is sticky, keys move only from versions whose share shrank to versions whose share grew.
    """
    model = model_of(context)
    body = await context.request.json(RouteNew)
    draft = _draft(body, model.id, model.tenant_id)
    route = await context.services.routing.set(
        draft, revision=_revision(context), reason=body.reason, actor=context.principal.id
    )
    return _reply(context, route)


async def remove_route(context: Context) -> Reply:
    """End a route: the alias 'live' decides again."""
    await context.services.routing.remove(
        model_of(context).id, revision=_revision(context), actor=context.principal.id
    )
    return Reply(status=204)


async def promote_route(context: Context) -> Reply:
    """Make the candidate, or the arm that is named, live and end the route, in one step."""
    body = await context.request.json(Promotion)
    route = await context.services.routing.promote(
        model_of(context).id,
        body.version or None,
        revision=_revision(context),
        reason=body.reason,
        actor=context.principal.id,
    )
    return _reply(context, route)


async def hold_route(context: Context) -> Reply:
    """Freeze the shares: the canary's schedule stops until the route is set again."""
    return await _verb(context, "hold")


async def abort_route(context: Context) -> Reply:
    """Give every call to the version the candidate is compared with, or else to the first arm."""
    return await _verb(context, "abort")


async def back_route(context: Context) -> Reply:
    """Return to the revision before the last one; once more undoes that."""
    return await _verb(context, "back")


async def route_history(context: Context) -> Reply:
    """Every revision that is at hand: who set what when and why, newest first."""
    model = model_of(context)
    items = [
        route_doc(route, context.tenant.name, model.name)
        for route in reversed(context.snapshot.route_history(model.id))
    ]
    return json_reply(RouteHistory(items=items))


async def _verb(context: Context, name: Literal["hold", "abort", "back"]) -> Reply:
    body = await context.request.json(RouteVerb)
    route = await getattr(context.services.routing, name)(
        model_of(context).id,
        revision=_revision(context),
        reason=body.reason,
        actor=context.principal.id,
    )
    return _reply(context, route)


def _revision(context: Context) -> int | None:
    return wire.revision_from_if_match(context.request.header("if-match"))


def _reply(context: Context, route: Route) -> Reply:
    document = route_doc(route, context.tenant.name, context.request.params["model"])
    return json_reply(document, headers=(("etag", f'"{route.revision}"'),))


def _draft(body: RouteNew, model_id: str, tenant_id: str) -> Route:
    arms = tuple(
        Arm(number=arm.version, weight=_weight(arm.percent, f"/arms/{at}/percent"))
        for at, arm in enumerate(body.arms)
    )
    return Route(
        model_id=model_id,
        tenant_id=tenant_id,
        arms=arms,
        sticky=body.sticky,
        shadows=tuple(body.shadows),
        canary=_canary(body.canary, arms) if body.canary else None,
        set_ns=0,
        set_by="",
    )


def _weight(percent: float, pointer: str) -> int:
    """A share in hundredths of a percent.

    Raises:
        RouteInvalid: it is not a whole number of them.
    """
    weight = round(percent * 100)
    if abs(percent * 100 - weight) > 1e-6:
        detail = f"{percent:g} is not a multiple of 0.01"
        fields = (FieldError(pointer=pointer, detail=detail),)
        raise RouteInvalid(f"{pointer[1:]}: {detail}.", fields=fields)
    return weight


def _canary(rule: CanaryNew, arms: tuple[Arm, ...]) -> Canary:
    others = [arm.number for arm in arms if arm.number != rule.version]
    return Canary(
        number=rule.version,
        against=rule.against or (others[0] if others else 0),
        error_rate_max=rule.error_rate_max,
        latency_ratio_max=rule.latency_ratio_max,
        calls_min=rule.calls_min,
        window_s=rule.window_s,
        action=rule.action,
        steps=tuple(_weight(step, "/canary/steps_percent") for step in rule.steps_percent),
        step_s=rule.step_s,
    )


def _canary_doc(rule: Canary) -> CanaryDoc:
    same = msgspec.structs.fields(CanaryDoc)
    named = {f.name: getattr(rule, f.name) for f in same if hasattr(rule, f.name)}
    return CanaryDoc(
        **named, version=rule.number, steps_percent=[step / 100 for step in rule.steps]
    )


_ROUTE = "/api/v1/models/{tenant}/{model}/route"
_STALE = (Malformed, InputInvalid, RouteInvalid, RevisionStale)

OPERATIONS = (
    Operation(
        method="GET",
        path=_ROUTE,
        permission="model:read",
        handler=show_route,
        summary="Show a model's route",
        reply=RouteDoc,
    ),
    Operation(
        method="PUT",
        path=_ROUTE,
        permission="route:set",
        handler=set_route,
        summary="Divide a model's calls among versions",
        body=RouteNew,
        reply=RouteDoc,
        problems=_STALE,
    ),
    Operation(
        method="DELETE",
        path=_ROUTE,
        permission="route:set",
        handler=remove_route,
        summary="Remove a model's route",
        status=204,
        problems=(Malformed, RevisionStale),
    ),
    Operation(
        method="POST",
        path=_ROUTE + "/promote",
        permission="route:set",
        handler=promote_route,
        summary="Make a route's candidate live",
        body=Promotion,
        reply=RouteDoc,
        problems=_STALE,
    ),
    *(
        Operation(
            method="POST",
            path=f"{_ROUTE}/{name}",
            permission="route:set",
            handler=handler,
            summary=summary,
            body=RouteVerb,
            reply=RouteDoc,
            problems=_STALE,
        )
        for name, handler, summary in (
            ("hold", hold_route, "Freeze a route's shares"),
            ("abort", abort_route, "Give a route's calls back to its baseline"),
            ("back", back_route, "Return to a route's earlier revision"),
        )
    ),
    Operation(
        method="GET",
        path=_ROUTE + "/history",
        permission="model:read",
        handler=route_history,
        summary="List the revisions of a model's route",
        reply=RouteHistory,
    ),
)
