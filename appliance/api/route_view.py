"""The console's view of routes: one row per version a route names, with its figures.

Owns: the rows of view ``routes``.
Never: changes a route; the console uses the native contract for that.
Read next: ``snapshot`` (serves it), ``native.experiments`` (the figures).
"""

from __future__ import annotations

from typing import Any

import msgspec

from appliance.api.dispatch import Context
from appliance.api.native.experiments import since_of
from appliance.api.native.routes import route_doc
from appliance.records import Route
from appliance.store import ArmStats, ShadowStats
from appliance.traffic import baseline_of

Rows = list[dict[str, Any]]
_ROUTES_MAX = 50


async def route_view(context: Context) -> tuple[Rows, dict[str, Any]]:
    """A row per arm and shadow of every route, the fifty that were set last."""
    snapshot = context.snapshot
    routes = sorted(snapshot.routes(), key=lambda route: -route.set_ns)[:_ROUTES_MAX]
    rows: Rows = []
    for route in routes:
        rows += await _rows(context, route)
    return sorted(rows, key=lambda row: (row["tenant"], row["model"])), {}


async def _rows(context: Context, route: Route) -> Rows:
    snapshot, queries = context.snapshot, context.services.store.queries
    tenant, model = snapshot.tenant_by_id(route.tenant_id), snapshot.model_by_id(route.model_id)
    if tenant is None or model is None:
        return []
    since = since_of(snapshot.route_history(route.model_id))
    arms = {
        one.number: one
        for one in await queries.arm_stats(model_id=route.model_id, since_revision=since)
    }
    shadows = {
        one.number: one
        for one in await queries.shadow_stats(model_id=route.model_id, since_revision=since)
    }
    document = msgspec.to_builtins(route_doc(route, tenant.name, model.name))
    _, complaint = context.services.canaries.figures(route.model_id)
    base = baseline_of(route)
    common = {**document, "against": base, "complaint": complaint}
    rows: Rows = []
    for arm in route.arms:
        role = "baseline" if arm.number == base else "arm"
        if route.canary and arm.number == route.canary.number:
            role = "canary"
        found = arms.get(arm.number, ArmStats(number=arm.number))
        rows.append(
            {
                **common,
                "version": arm.number,
                "role": role,
                "percent": arm.weight / 100,
                "calls": found.calls,
                "error_percent": 100 * found.errors / found.calls if found.calls else 0.0,
                "p95_ms": found.took_p95 / 1000 if found.calls else None,
                "detail": "",
            }
        )
    for number in route.shadows:
        rows.append(_shadow(common, number, shadows.get(number, ShadowStats(number=number))))
    return rows


def _shadow(common: dict[str, Any], number: int, found: ShadowStats) -> dict[str, Any]:
    calls = found.calls - found.missed
    return {
        **common,
        "version": number,
        "role": "shadow",
        "percent": None,
        "calls": calls,
        "error_percent": 100 * found.failed / calls if calls else 0.0,
        "p95_ms": found.took_p95 / 1000 if calls else None,
        "detail": f"{found.equal} equal, {found.close} close, {found.different} different",
    }
