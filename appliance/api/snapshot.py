"""The console's views: one document per screen, made from memory and a few counted queries.

Owns: ``VIEWS`` and the rows of each.
Never: shows a tenant's payloads, artifacts or secrets; writes anything.
Read next: ``admin`` (serves them with an ETag).

A view of a sealed node has no rows but still has the node itself, so that a console can draw.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec

from appliance import clock, wire
from appliance.api.dispatch import Context
from appliance.api.drift_view import drift_alert, drift_view
from appliance.api.gpus import gpu_rows, gpu_totals, index_of_gpu
from appliance.api.native.egress import doc_from_rule
from appliance.api.native.promised import row_from_promise
from appliance.api.route_view import route_view
from appliance.api.supply import runtime_view
from appliance.api.work_view import (
    batch_view,
    comparison_view,
    delivery_view,
    job_view,
    sample_view,
    schedule_view,
    webhook_view,
)
from appliance.catalogue import Card
from appliance.errors import FieldError, InputInvalid
from appliance.records import LIVE, Entry, Model, Version
from appliance.store import CallStats, Snapshot

CONTRACT = 1
VOLATILE = frozenset({"uptime_s", "disk", "ledger", "sandboxes"})
"""Members of ``node`` that change by themselves; they do not make a view a new one."""

_MINUTES = 15
_COLUMNS_MAX = 64
_RECENT_SHOWN = 5
_RECENT_LOOKED_AT = 60
_DECISIONS_SHOWN = 20
_NOT_CHANGES = (
    *("call.", "request.", "job.", "batch.", "delivery."),
    *("egress.opened", "egress.passed", "egress.denied", "egress.s"),
)
_ORDER = {"fail": 0, "warn": 1, "ok": 2}
Rows = list[dict[str, Any]]
Extras = dict[str, Any]


async def status_document(context: Context) -> dict[str, Any]:
    """The node's status with what only the listeners know: address and certificate."""
    found = await context.node.status()
    return {**found, "url": context.front.url, "tls": dict(context.front.tls)}


async def view_document(context: Context) -> dict[str, Any]:
    """The view named by ``?view=``.

    Raises:
        InputInvalid: there is no such view.
    """
    name = context.request.query.get("view", "dashboard")
    view = VIEWS.get(name)
    if view is None:
        raise InputInvalid(
            f"There is no view of this name; there are {', '.join(sorted(VIEWS))}.",
            fields=(FieldError(pointer="?view", detail="no such view"),),
        )
    node = await status_document(context)
    state = str(node["state"])
    rows: Rows = []
    extras: Extras = {}
    if state == "ready" or name == "health":
        rows, extras = await view(context)
    return {
        "contract": CONTRACT,
        "view": name,
        "state": state,
        "node": node,
        "alerts": _alerts(await _check_rows(context)),
        "rows": rows,
        "total": extras.pop("total", len(rows)),
        **extras,
    }


def sandbox_rows(context: Context) -> Rows:
    """Every sandbox with its owner's names; none where sandboxes cannot run."""
    if context.node.sandbox_problem() is not None:
        return []
    snapshot = context.snapshot
    rows = []
    places = context.services.pool().places
    for box in context.services.pool().list():
        model_id, _, number = box.version_key.rpartition("/")
        tenant = snapshot.tenant_by_id(box.tenant_id)
        model = snapshot.model_by_id(model_id)
        rows.append(
            {
                "id": box.id,
                "tenant": tenant.name if tenant else box.tenant_id,
                "model": model.name if model else "",
                "version": int(number) if number.isdigit() else 0,
                "state": box.state,
                "pid": box.pid,
                "created_at": clock.text_from_ns(box.created_ns),
                "last_used_at": clock.text_from_ns(box.last_used_ns) if box.last_used_ns else None,
                "calls": box.calls,
                "rss_bytes": box.rss_bytes,
                "memory_bytes": box.memory_bytes,
                "cpu_ms": box.cpu_ms,
                "gpus": [index_of_gpu(places, unit) for unit in box.gpus],
                "gpu_memory_bytes": box.gpu_memory_bytes,
            }
        )
    return rows


def _alerts(checks: Rows) -> dict[str, int]:
    """How many checks want attention: the same count on every screen."""
    return {state: sum(1 for row in checks if row["state"] == state) for state in ("warn", "fail")}


async def _check_rows(context: Context) -> Rows:
    now = clock.text_from_ns(clock.now_ns() // 60_000_000_000 * 60_000_000_000)
    rows: Rows = [
        {
            "name": check.name,
            "title": check.name[:1].upper() + check.name[1:],
            "state": check.status,
            "detail": check.detail,
            "remedy": check.fix,
            "checked_at": now,
        }
        for check in await context.node.recent_checks()
    ]
    if context.node.state == "ready":
        rows += drift_alert(context)
    return sorted(rows, key=lambda row: _ORDER.get(row["state"], len(_ORDER)))


async def _dashboard(context: Context) -> tuple[Rows, Extras]:
    stats = await context.services.store.queries.call_stats(minutes=_MINUTES)
    snapshot = context.snapshot
    rows: Rows = []
    for each in stats.per_model:
        tenant = snapshot.tenant_by_id(each.tenant_id)
        model = snapshot.model_by_id(each.model_id)
        if tenant is None or model is None:
            continue
        live = snapshot.alias(model.id, LIVE)
        version = snapshot.version(model.id, live.number) if live else None
        rows.append(
            {
                "tenant": tenant.name,
                "model": model.name,
                "live": live.number if live else None,
                "calls": each.calls,
                "errors": each.errors,
                "p95_ms": each.p95_ms,
                "runtime": version.manifest.runtime if version else "",
            }
        )
    series = [
        {
            "minute": clock.text_from_ns(each.minute_ns),
            "calls": each.calls,
            "errors": each.errors,
            "p95_ms": each.p95_ms,
        }
        for each in stats.series
    ]
    calls = {
        "minutes": _MINUTES,
        "calls": stats.calls,
        "errors": stats.errors,
        "p50_ms": stats.p50_ms,
        "p95_ms": stats.p95_ms,
    }
    models = snapshot.models(None)
    totals = {
        "tenants": len(snapshot.tenants()),
        "models": len(models),
        "versions": sum(len(snapshot.versions(model.id)) for model in models),
        "keys": sum(1 for key in snapshot.keys(None) if not key.revoked_ns),
        **_pool_numbers(context),
        **await gpu_totals(context),
    }
    problems = [row for row in await _check_rows(context) if row["state"] in ("fail", "warn")]
    return rows, {
        "calls": calls,
        "totals": totals,
        "series": series,
        "problems": problems,
        "recent": await _recent_changes(context),
    }


def _pool_numbers(context: Context) -> dict[str, int]:
    """How many sandboxes there are and may be; nothing where sandboxes cannot run."""
    if context.node.sandbox_problem() is not None:
        return {}
    pool = context.services.pool()
    return {"sandboxes": len(pool.list()), "sandboxes_max": pool.instances_max}


async def _recent_changes(context: Context) -> Rows:
    """The newest entries that are neither calls nor refusals."""
    entries = await context.services.store.queries.audit(limit=_RECENT_LOOKED_AT)
    names = {each.id: each.name for each in context.snapshot.tenants()}
    changes = (e for e in entries if not e.kind.startswith(_NOT_CHANGES))
    return [_audit_row(entry, names) for entry in itertools.islice(changes, _RECENT_SHOWN)]


async def _tenants(context: Context) -> tuple[Rows, Extras]:
    snapshot = context.snapshot
    stats = await context.services.store.queries.call_stats(minutes=_MINUTES)
    calls: dict[str, int] = {}
    for each in stats.per_model:
        calls[each.tenant_id] = calls.get(each.tenant_id, 0) + each.calls
    rows: Rows = []
    for tenant in sorted(snapshot.tenants(), key=lambda tenant: tenant.name):
        models = snapshot.models(tenant.id)
        sizes = [
            version.artifact.blob.size_bytes
            for model in models
            for version in snapshot.versions(model.id)
        ]
        rows.append(
            {
                "id": tenant.id,
                "name": tenant.name,
                "isolation": tenant.isolation,
                "models": len(models),
                "keys": sum(1 for key in snapshot.keys(tenant.id) if not key.revoked_ns),
                "calls_15m": calls.get(tenant.id, 0),
                "storage_bytes": sum(sizes),
                "created_at": clock.text_from_ns(tenant.created_ns),
                "created_by": tenant.created_by,
            }
        )
    return rows, {}


async def _keys(context: Context) -> tuple[Rows, Extras]:
    snapshot = context.snapshot
    names = {tenant.id: tenant.name for tenant in snapshot.tenants()}
    wanted = context.request.query.get("tenant")
    now_ns = clock.now_ns()
    rows: Rows = []
    for key in sorted(snapshot.keys(None), key=lambda key: (-key.created_ns, key.id)):
        tenant = names.get(key.tenant_id, "")
        if (key.tenant_id and not tenant) or (wanted is not None and wanted != tenant):
            continue
        state = "revoked" if key.revoked_ns else "expired" if now_ns >= key.expires_ns else "active"
        rows.append(
            {
                "id": key.id,
                "tenant": tenant,
                "name": key.name,
                "role": key.role,
                "scopes": list(key.scopes),
                "state": state,
                "created_at": clock.text_from_ns(key.created_ns),
                "created_by": key.created_by,
                "expires_at": clock.text_from_ns(key.expires_ns),
                "last_used_at": None,
            }
        )
    return rows, {}


async def _models(context: Context) -> tuple[Rows, Extras]:
    snapshot = context.snapshot
    stats = await context.services.store.queries.call_stats(minutes=_MINUTES)
    cards = await asyncio.to_thread(_cards, context, snapshot)
    rows: Rows = []
    for model, tenant in _wanted_models(context):
        versions = snapshot.versions(model.id)
        live = snapshot.alias(model.id, LIVE)
        shown = snapshot.version(model.id, live.number) if live else None
        card = cards.get(model.id)
        rows.append(
            {
                "tenant": tenant,
                "model": model.name,
                "description": model.description,
                "versions": len(versions),
                "newest": max((version.number for version in versions), default=None),
                "live": live.number if live else None,
                "runtime": shown.manifest.runtime if shown else "",
                "size_bytes": sum(version.artifact.blob.size_bytes for version in versions),
                "takes": [*card.takes][:_COLUMNS_MAX] if card else [],
                "gives": [*card.gives][:_COLUMNS_MAX] if card else [],
                "tags": dict(card.manifest.tags) if card else {},
                "created_at": clock.text_from_ns(model.created_ns),
                "created_by": model.created_by,
                **_calls_of(stats, model),
            }
        )
    return rows, {}


def _cards(context: Context, snapshot: Snapshot) -> dict[str, Card]:
    """What the catalogue has of each model's live version, or else its newest, by model."""
    catalogue = context.services.lifecycle.catalogue
    shelves = (s for t in snapshot.tenants() for s in catalogue.shelves(snapshot, t.id))
    return {s.model.id: s.cards[s.live - 1] for s in shelves if s.cards}


async def _versions(context: Context) -> tuple[Rows, Extras]:
    snapshot = context.snapshot
    stats = await context.services.store.queries.call_stats(minutes=_MINUTES)
    rows: Rows = []
    aliases: Rows = []
    for model, tenant in _wanted_models(context):
        known = snapshot.aliases(model.id)
        own: Rows = []
        calls = _calls_of(stats, model)
        for version in snapshot.versions(model.id):
            names = sorted(alias.name for alias in known if alias.number == version.number)
            own.append(
                _version_row(version, model, tenant, names) | calls | _warm_of(context, version)
            )
        promised = snapshot.tracking(model.tenant_id).unkept_of(model.id)
        own += [row_from_promise(one, tenant, model.name) | calls for one in promised]
        rows += sorted(own, key=lambda row: -row["version"])
        aliases += [
            {
                "tenant": tenant,
                "model": model.name,
                "name": alias.name,
                "version": alias.number,
                "revision": alias.revision,
                "reason": alias.reason,
                "set_at": clock.text_from_ns(alias.set_ns),
                "set_by": alias.set_by,
            }
            for alias in sorted(known, key=lambda alias: alias.name)
        ]
    extras: Extras = {"aliases": aliases}
    if context.request.query.get("model"):
        wanted = list(_wanted_models(context))
        if not wanted:
            raise wire.not_found()
        model, tenant = wanted[0]
        extras["model"] = {
            "tenant": tenant,
            "model": model.name,
            "description": model.description,
            "created_at": clock.text_from_ns(model.created_ns),
            "created_by": model.created_by,
        }
    return rows, extras


def _version_row(version: Version, model: Model, tenant: str, aliases: list[str]) -> dict[str, Any]:
    return {
        "tenant": tenant,
        "model": model.name,
        "version": version.number,
        "state": "retired" if version.retired_ns else "ready",
        "reason": "",
        "runtime": version.manifest.runtime,
        "entry": version.manifest.entry,
        "digest": version.artifact.blob.digest,
        "size_bytes": version.artifact.blob.size_bytes,
        "aliases": aliases,
        "created_at": clock.text_from_ns(version.created_ns),
        "created_by": version.created_by,
    }


def _warm_of(context: Context, version: Version) -> dict[str, Any]:
    """How many sandboxes of a version are kept loaded, and how many of them are there."""
    one = context.snapshot.reservation(version.model_id, version.number)
    if one is None:
        return {"warm": 0, "warm_ready": 0}
    now = context.services.reservations.progress(one)
    return {"warm": one.warm, "warm_ready": min(now.ready, one.warm)}


async def _sandboxes(context: Context) -> tuple[Rows, Extras]:
    if context.node.sandbox_problem() is not None:
        return [], {}
    pool = context.services.pool()
    rows = sandbox_rows(context)
    kept = pool.reservations()
    numbers = {
        "running": len(rows),
        "max": pool.instances_max,
        "waiting": pool.waiting,
        "warm": sum(one.warm for one in kept),
        "warm_ready": sum(min(one.ready, one.warm) for one in kept),
    }
    return rows, {"pool": numbers, **await gpu_totals(context)}


async def _gpus(context: Context) -> tuple[Rows, Extras]:
    return await gpu_rows(context), await gpu_totals(context)


async def _egress(context: Context) -> tuple[Rows, Extras]:
    snapshot, services = context.snapshot, context.services
    wanted = context.request.query.get("tenant")
    tenants = [t for t in snapshot.tenants() if wanted in (None, "", t.name)]
    rows: Rows = [
        {"position": position, **msgspec.to_builtins(doc_from_rule(rule, tenant.name, snapshot))}
        for tenant in tenants
        for position, rule in enumerate(snapshot.egress_rules(tenant.id), start=1)
    ]
    only = tenants[0].id if wanted and tenants else None
    entries = await services.store.queries.audit(
        tenant_id=only, kind="egress.*", limit=_RECENT_LOOKED_AT
    )
    decisions = [
        _decision_row(context, entry) for entry in entries if not entry.kind.startswith("egress.r")
    ]
    return rows, {
        "open": services.egress.open_count,
        "decisions": decisions[:_DECISIONS_SHOWN],
    }


def _decision_row(context: Context, entry: Entry) -> dict[str, Any]:
    """A connection's entry; its destination is empty once the tenant's key is destroyed."""
    event = entry.event or {}
    tenant = context.snapshot.tenant_by_id(entry.tenant_id)
    model = context.snapshot.model_by_id(entry.object)
    detail = str(event.get("reason", ""))
    if entry.kind == "egress.passed":
        detail = f"{event.get('sent_bytes', 0)} out, {event.get('received_bytes', 0)} in"
    return {
        "seq": entry.seq,
        "time": clock.text_from_ns(entry.time_ns),
        "kind": entry.kind,
        "tenant": tenant.name if tenant else entry.tenant_id,
        "model": model.name if model else "",
        "to": f"{event['host']}:{event['port']}" if "host" in event else "",
        "protocol": str(event.get("protocol", "")),
        "rule": str(event.get("rule_id", "")),
        "count": int(event.get("count", 1)),
        "detail": detail,
    }


async def _audit(context: Context) -> tuple[Rows, Extras]:
    request, store = context.request, context.services.store
    big = 10**18
    after = request.int_query("after", default=-1, low=0, high=big)
    before = request.int_query("before", default=-1, low=0, high=big)
    wanted = request.query.get("tenant")
    tenant = context.snapshot.tenant(wanted) if wanted else None
    if wanted and tenant is None:
        return [], {"total": 0}
    entries = await store.queries.audit(
        tenant_id=tenant.id if tenant else None,
        kind=_family(request.query.get("kind")),
        actor=request.query.get("actor"),
        after_seq=after if after >= 0 else None,
        before_seq=before if before >= 0 else None,
        limit=request.int_query("limit", default=200, low=1, high=1000),
    )
    names = {each.id: each.name for each in context.snapshot.tenants()}
    rows: Rows = [_audit_row(entry, names) for entry in entries]
    head = store.ledger.head
    return rows, {
        "total": head.size,
        "head": {
            "size": head.size,
            "root": head.root_hex,
            "time": clock.text_from_ns(head.time_ns),
        },
    }


def _audit_row(entry: Entry, names: dict[str, str]) -> dict[str, Any]:
    """An entry without its event, which may be large; ``GET /api/v1/audit/{seq}`` has it."""
    return {
        "seq": entry.seq,
        "time": clock.text_from_ns(entry.time_ns),
        "kind": entry.kind,
        "tenant": names.get(entry.tenant_id, entry.tenant_id),
        "actor": entry.actor,
        "object": entry.object,
        "outcome": str((entry.event or {}).get("code", "")),
        "leaf": entry.leaf,
    }


def _family(kind: str | None) -> str | None:
    """A kind as the store takes it: ``call.`` typed by a person means every ``call.*``."""
    return f"{kind}*" if kind and kind.endswith(".") else kind


async def _health(context: Context) -> tuple[Rows, Extras]:
    return await _check_rows(context), {}


def _wanted_models(context: Context) -> Iterable[tuple[Model, str]]:
    """The models of ``?tenant=`` and ``?model=``, or all, with their tenant's name, in order."""
    snapshot = context.snapshot
    tenant = context.request.query.get("tenant")
    name = context.request.query.get("model")
    names = {each.id: each.name for each in snapshot.tenants()}
    found = [
        (model, names[model.tenant_id])
        for model in snapshot.models(None)
        if model.tenant_id in names
        and tenant in (None, "", names[model.tenant_id])
        and name in (None, "", model.name)
    ]
    return sorted(found, key=lambda pair: (pair[1], pair[0].name))


def _calls_of(stats: CallStats, model: Model) -> dict[str, Any]:
    for each in stats.per_model:
        if each.model_id == model.id:
            return {"calls_15m": each.calls, "errors_15m": each.errors, "p95_ms": each.p95_ms}
    return {"calls_15m": 0, "errors_15m": 0, "p95_ms": None}


VIEWS: dict[str, Callable[[Context], Awaitable[tuple[Rows, Extras]]]] = {
    "dashboard": _dashboard,
    "tenants": _tenants,
    "keys": _keys,
    "models": _models,
    "versions": _versions,
    "sandboxes": _sandboxes,
    "gpus": _gpus,
    "egress": _egress,
    "routes": route_view,
    "drift": drift_view,
    "jobs": job_view,
    "batches": batch_view,
    "schedules": schedule_view,
    "webhooks": webhook_view,
    "deliveries": delivery_view,
    "comparisons": comparison_view,
    "samples": sample_view,
    "runtimes": runtime_view,
    "audit": _audit,
    "health": _health,
}
