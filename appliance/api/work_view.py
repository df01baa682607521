"""The console's views of work without a caller who waits: jobs, batches, comparisons, and more.

Owns: the rows of jobs, batches, comparisons, schedules, webhooks and samples, of all tenants.
Never: shows what a model was given, answered or printed: of a problem a row has the code only.
Read next: ``snapshot`` (serves them), ``native.jobs`` and its neighbours (the documents).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar

import msgspec

from appliance import wire
from appliance.api.dispatch import Context
from appliance.api.native import batches, comparisons, jobs, samples, schedules, webhooks
from appliance.batch_records import Batch
from appliance.comparison.record import Comparison
from appliance.records import Job, Tenant
from appliance.standing import Schedule, Webhook

Rows = list[dict[str, Any]]
View = tuple[Rows, dict[str, Any]]
ROWS_MAX = 500
_NOT_SHOWN = ("error", "output", "urls", "report", "replay")
_Made = TypeVar("_Made", Job, Batch, Comparison, Schedule, Webhook)


async def job_view(context: Context) -> View:
    """The newest jobs."""
    return _newest(context, context.snapshot.jobs, jobs.brief)


async def batch_view(context: Context) -> View:
    """The newest batches and how far each is."""
    return _newest(context, context.snapshot.batches, batches.batch_doc)


async def comparison_view(context: Context) -> View:
    """The newest comparisons, without their reports."""
    await context.services.comparisons.taken_up()
    return _newest(context, context.services.comparisons.all, comparisons.brief)


async def schedule_view(context: Context) -> View:
    """The newest schedules, with what became of the last time each was due."""
    return _newest(context, context.snapshot.schedules, schedules.schedule_doc)


async def webhook_view(context: Context) -> View:
    """The newest webhooks and how they fare."""
    return _newest(context, context.snapshot.webhooks, webhooks.webhook_doc)


async def delivery_view(context: Context) -> View:
    """What one webhook of a tenant was or is to be told, newest first.

    Raises:
        NotFound: there is no such webhook.
    """
    snapshot, query = context.snapshot, context.request.query
    tenant = snapshot.tenant(query.get("tenant", ""))
    webhook = snapshot.webhook(tenant.id, query.get("webhook", "")) if tenant else None
    if tenant is None or webhook is None:
        raise wire.not_found()
    found = [one for one in snapshot.deliveries(tenant.id) if one.webhook_id == webhook.id]
    found.sort(key=lambda one: one.queued_ns, reverse=True)
    rows = [msgspec.to_builtins(webhooks.delivery_doc(one, webhook)) for one in found[:ROWS_MAX]]
    shown = _row(webhooks.webhook_doc(_inside(context, tenant), webhook))
    return rows, {"total": len(found), "webhook": shown}


async def sample_view(context: Context) -> View:
    """The models of which calls are kept, or are to be."""
    snapshot = context.snapshot
    rows: Rows = []
    for tenant in _tenants(context):
        inside = _inside(context, tenant)
        for model in snapshot.models(tenant.id):
            document = await samples.samples_doc(inside, model)
            if document.kept or document.percent:
                rows.append(msgspec.to_builtins(document))
    rows.sort(key=lambda row: (row["tenant"], row["model"]))
    return rows[:ROWS_MAX], {"total": len(rows)}


def _newest(
    context: Context,
    found_of: Callable[[str], Iterable[_Made]],
    document_of: Callable[[Context, _Made], msgspec.Struct],
) -> View:
    """Rows of the records that were made last, whatever their tenant."""
    found = [(one, tenant) for tenant in _tenants(context) for one in found_of(tenant.id)]
    newest = heapq.nlargest(ROWS_MAX, found, key=lambda each: each[0].created_ns)
    rows = [_row(document_of(_inside(context, tenant), one)) for one, tenant in newest]
    return rows, {"total": len(found)}


def _tenants(context: Context) -> list[Tenant]:
    wanted = context.request.query.get("tenant")
    return [one for one in context.snapshot.tenants() if wanted in (None, "", one.name)]


def _inside(context: Context, tenant: Tenant) -> Context:
    """The same request as if it had named this tenant in its path."""
    return replace(context, request=replace(context.request, tenant=tenant))


def _row(document: msgspec.Struct) -> dict[str, Any]:
    row: dict[str, Any] = msgspec.to_builtins(document)
    problem = row.get("error") or {}
    for name in _NOT_SHOWN:
        row.pop(name, None)
    return row | {"code": problem.get("code", "")}
