"""The machine's GPUs: what there is, how full it is, who has it.

Owns: ``GET /admin/v1/gpus``; the rows the console and ``/metrics`` show as well.
Never: places anything, or tells one tenant about another: it is the administrator's.
Read next: ``sandbox.gpu_place`` (the rules), ``snapshot`` and ``health`` (who else shows it).
"""

from __future__ import annotations

from typing import Any

import msgspec

from appliance.api.dispatch import Context
from appliance.api.operation import Operation
from appliance.api.shapes import Document
from appliance.sandbox.gpu_place import Places
from appliance.wire import Reply, json_reply


class GpuDoc(Document):
    """One whole GPU or partition. Sizes in bytes; ``null`` is what nothing tells.

    ``state`` is ``free``, ``held`` (one sandbox has all of it) or ``shared`` (by one tenant's).
    """

    id: str
    index: str
    name: str
    vendor: str
    kind: str
    parent: str
    compute: str
    driver: str
    state: str
    tenant: str
    sandboxes: list[str]
    memory_bytes: int | None
    allocated_bytes: int
    used_bytes: int | None
    busy_percent: int | None


class GpuList(Document):
    """Every unit, and how many calls wait for one."""

    items: list[GpuDoc]
    waiting: int


async def gpu_rows(context: Context) -> list[dict[str, Any]]:
    """Every unit with its owner's name; none where sandboxes cannot run."""
    if context.node.sandbox_problem() is not None:
        return []
    pool = context.services.pool()
    places, fills = pool.places, await pool.gpu_fills()
    boxes = pool.list()
    rows = []
    for gpu in places.gpus:
        holds, fill = places.holds_of(gpu.id), fills.get(gpu.id)
        tenant = context.snapshot.tenant_by_id(holds[0].tenant_id) if holds else None
        shares = any(hold.share_bytes for hold in holds)
        rows.append(
            {
                "id": gpu.id,
                "index": gpu.index,
                "name": gpu.name,
                "vendor": gpu.vendor,
                "kind": gpu.kind,
                "parent": gpu.parent,
                "compute": gpu.compute,
                "driver": gpu.driver,
                "state": ("shared" if shares else "held") if holds else "free",
                "tenant": tenant.name if tenant else holds[0].tenant_id if holds else "",
                "sandboxes": [box.id for box in boxes if gpu.id in box.gpus],
                "memory_bytes": gpu.memory_bytes or None,
                "allocated_bytes": places.allocated_bytes(gpu.id),
                "used_bytes": fill.used_bytes if fill else None,
                "busy_percent": fill.busy_percent if fill and fill.busy_percent >= 0 else None,
            }
        )
    return rows


def index_of_gpu(places: Places, unit: str) -> str:
    """How people name a unit: its number, of a partition ``0:1``."""
    gpu = places.gpu(unit)
    return gpu.index if gpu else unit


async def gpu_totals(context: Context) -> dict[str, int]:
    """The same in numbers, for the dashboard and ``/metrics``; sizes in bytes."""
    rows = await gpu_rows(context)
    is_up = context.node.sandbox_problem() is None
    return {
        "gpus": len(rows),
        "gpus_held": sum(row["state"] != "free" for row in rows),
        "gpu_memory_bytes": sum(row["memory_bytes"] or 0 for row in rows),
        "gpu_memory_allocated_bytes": sum(row["allocated_bytes"] for row in rows),
        "gpu_memory_used_bytes": sum(row["used_bytes"] or 0 for row in rows),
        "gpu_calls_waiting": context.services.pool().waiting_for_gpus if is_up else 0,
    }


async def list_gpus(context: Context) -> Reply:
    """Every GPU and partition models may use: memory, compute, who has it, how full it is."""
    items = [msgspec.convert(row, GpuDoc) for row in await gpu_rows(context)]
    is_up = context.node.sandbox_problem() is None
    waiting = context.services.pool().waiting_for_gpus if is_up else 0
    return json_reply(GpuList(items=items, waiting=waiting))


OPERATIONS = (
    Operation(
        method="GET",
        path="/admin/v1/gpus",
        permission="sandbox:read",
        place="appliance",
        handler=list_gpus,
        summary="List GPUs",
        reply=GpuList,
        admin_only=True,
    ),
)
