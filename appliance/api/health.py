"""Health and metrics, for machines that watch machines.

Owns: ``/livez``, ``/readyz``, ``/startupz``, ``/metrics``, ``/ca.pem``.
Never: shows a tenant's data; the first three answer anybody, in every state.
Read next: ``metrics`` (what is counted), ``node`` (what the states are).
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any, Literal

from appliance import config, wire
from appliance.api.dispatch import Context
from appliance.api.gpus import gpu_totals
from appliance.api.operation import PUBLIC, Operation
from appliance.api.shapes import Document
from appliance.metrics import CONTENT_TYPE
from appliance.wire import Reply, json_reply


class Line(Document):
    """One thing readiness depends on."""

    name: str
    status: Literal["ok", "fail"]
    detail: str


class Health(Document):
    """Whether the appliance is healthy, line by line."""

    ok: bool
    state: str
    lines: list[Line]


async def livez(context: Context) -> Reply:
    """Whether the process answers at all; 200 in every state."""
    return json_reply(Health(ok=True, state=context.node.state, lines=[]))


async def startupz(context: Context) -> Reply:
    """Whether the process has finished starting; 200 once it can be unsealed or is."""
    return json_reply(Health(ok=True, state=context.node.state, lines=[]))


async def readyz(context: Context) -> Reply:
    """Whether calls can be served: each thing they depend on is one line; 503 if one fails."""
    lines = await _lines(context)
    is_ok = all(line.status == "ok" for line in lines)
    return json_reply(
        Health(ok=is_ok, state=context.node.state, lines=lines), status=200 if is_ok else 503
    )


async def metrics(context: Context) -> Reply:
    """Counters and histograms in the Prometheus text format; no tenant, model or key is named."""
    node, counters = context.node, context.node.metrics
    store = context.services.store
    free = await asyncio.to_thread(_free_bytes, node.settings.paths.data_dir)
    counters.set_gauge("ready", float(node.state == "ready"))
    counters.set_gauge("ledger_seq", store.ledger.head.size)
    lag = max(0, store.ledger.head.size - store.queries.applied_seq)
    counters.set_gauge("ledger_lag", lag)
    counters.set_gauge("ledger_dropped", store.ledger.dropped)
    counters.set_gauge("disk_free_bytes", free)
    counters.set_gauge("egress_open", context.services.egress.open_count)
    counters.set_gauge("jobs_waiting", context.services.jobs.waiting)
    counters.set_gauge("jobs_running", context.services.jobs.running)
    counters.set_gauge("batches_waiting", context.services.batches.waiting)
    counters.set_gauge("batches_running", context.services.batches.running)
    counters.set_gauge("deliveries_waiting", context.services.webhooks.waiting)
    counters.set_gauge("webhooks_disabled", context.services.webhooks.disabled)
    baselines = context.snapshot.baselines()
    breaches = [context.snapshot.breaches(one.model_id, one.number) for one in baselines]
    counters.set_gauge("drift_baselines", len(baselines))
    counters.set_gauge("drift_breaches", sum(len(some) for some in breaches))
    if node.sandbox_problem() is None:
        pool = context.services.pool()
        boxes = pool.list()
        waiting = pool.waiting + context.services.invoker.waiting
        counters.set_gauge("calls_waiting", waiting)
        counters.set_gauge("sandboxes", len(boxes))
        for name, number in (await gpu_totals(context)).items():
            counters.set_gauge(name, number)
        counters.set_gauge("sandbox_memory_bytes", sum(box.rss_bytes for box in boxes))
    return Reply(body=counters.text(), content_type=CONTENT_TYPE)


async def ca_pem(context: Context) -> Reply:
    """The certificate of the appliance's own authority; compare its fingerprint before trusting."""
    if not context.front.ca_pem:
        raise wire.not_found()
    return Reply(body=context.front.ca_pem.encode(), content_type="application/x-pem-file")


async def _lines(context: Context) -> list[Line]:
    node = context.node
    is_ready = node.state == "ready"
    lines = [_line("unsealed", is_ready, node.state)]
    if is_ready:
        state = node.services.store.ledger.state
        lines.append(_line("ledger", state == "ok", state))
        problem = node.sandbox_problem()
        lines.append(_line("sandboxes", problem is None, problem.title if problem else "ok"))
        if problem is None:
            lines.append(_limits_line(await node.status(), node.settings.sandbox))
    free = await asyncio.to_thread(_free_bytes, node.settings.paths.data_dir)
    floor = node.settings.store.free_bytes_min
    lines.append(_line("disk", free >= floor, f"{free} bytes free, {floor} kept in reserve"))
    return lines


def _limits_line(status: dict[str, Any], settings: config.Sandbox) -> Line:
    """Whether models may run under the limits this host holds; unknown before a runtime exists."""
    if not status["runtimes"]:
        return _line("limits", True, "no runtime is installed yet, so nothing was tried")
    level = (status["limits"] or {}).get("level", "none")
    is_accepted = level == "supervised" and settings.accept_supervised_limits
    return _line("limits", level == "enforced" or is_accepted, level)


def _line(name: str, is_ok: bool, detail: str) -> Line:
    return Line(name=name, status="ok" if is_ok else "fail", detail=detail)


def _free_bytes(data_dir: str) -> int:
    path = Path(data_dir)
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


OPERATIONS = (
    Operation(
        method="GET",
        path="/livez",
        permission=PUBLIC,
        place="appliance",
        handler=livez,
        summary="Liveness",
        reply=Health,
        needs_store=False,
    ),
    Operation(
        method="GET",
        path="/readyz",
        permission=PUBLIC,
        place="appliance",
        handler=readyz,
        summary="Readiness",
        reply=Health,
        needs_store=False,
    ),
    Operation(
        method="GET",
        path="/startupz",
        permission=PUBLIC,
        place="appliance",
        handler=startupz,
        summary="Start-up",
        reply=Health,
        needs_store=False,
    ),
    Operation(
        method="GET",
        path="/ca.pem",
        permission=PUBLIC,
        place="appliance",
        handler=ca_pem,
        summary="The appliance's own certificate authority",
        reply=("application/x-pem-file",),
        needs_store=False,
    ),
    Operation(
        method="GET",
        path="/metrics",
        permission="metrics:read",
        place="appliance",
        handler=metrics,
        summary="Metrics",
        reply=("text/plain",),
    ),
)
