"""The repository and statistics extensions of the Open Inference Protocol.

Owns: the index of versions, load and unload, and counts of what was called.
Never: changes which versions there are; every version that is not retired is ready at all times.
Read next: ``calls``.
"""

from __future__ import annotations

from typing import Any

from appliance import wire
from appliance.api.dispatch import Context
from appliance.api.inference.calls import FORM, ROOT
from appliance.api.native.models import evict, model_of, version_of
from appliance.api.operation import Operation
from appliance.records import Version
from appliance.store.queries import VersionStats
from appliance.wire import JSON, Reply, json_reply

_ANY_LENGTH = 64 * 1024


async def index(context: Context) -> Reply:
    """Every version of every model of the tenant, and whether it can be called.

    With ``{"ready": true}`` only those that can.
    """
    body = await context.request.body(_ANY_LENGTH)
    asked = wire.json_from_bytes(body, dict[str, Any]) if body else {}
    found = []
    for model in sorted(context.snapshot.models(context.tenant.id), key=lambda one: one.name):
        for version in sorted(context.snapshot.versions(model.id), key=lambda one: one.number):
            is_ready = not version.retired_ns
            if is_ready or not asked.get("ready"):
                found.append(
                    {
                        "name": model.name,
                        "version": str(version.number),
                        "state": "READY" if is_ready else "UNAVAILABLE",
                        "reason": "" if is_ready else "retired",
                    }
                )
    return json_reply(found)


async def load(context: Context) -> Reply:
    """Answer 200 if there is such a model: a version is loaded when a call needs it."""
    model_of(context)
    return json_reply({})


async def unload(context: Context) -> Reply:
    """End a model's idle sandboxes; the next call starts one again."""
    model = model_of(context)
    for version in context.snapshot.versions(model.id):
        await evict(context, model, version.number)
    return json_reply({})


async def stats(context: Context) -> Reply:
    """Counts and times of every version of the tenant that was called."""
    return await _stats(context, "")


async def model_stats(context: Context) -> Reply:
    """Counts and times of every version of a model."""
    return await _stats(context, model_of(context).id)


async def version_stats(context: Context) -> Reply:
    """Counts and times of one version."""
    model = model_of(context)
    return await _stats(context, model.id, version_of(context, model))


async def _stats(context: Context, model_id: str, version: Version | None = None) -> Reply:
    names = {model.id: model.name for model in context.snapshot.models(context.tenant.id)}
    rows = await context.services.store.queries.version_stats(tenant_id=context.tenant.id)
    found = [
        _stats_doc(names[row.model_id], row)
        for row in rows
        if row.model_id in names
        and model_id in ("", row.model_id)
        and (version is None or row.number == version.number)
    ]
    return json_reply({"model_stats": found})


def _stats_doc(name: str, row: VersionStats) -> dict[str, Any]:
    def timed(count: int, total_us: int) -> dict[str, int]:
        return {"count": count, "ns": total_us * 1000}

    ok = row.calls - row.errors
    return {
        "name": name,
        "version": str(row.number),
        "last_inference": row.last_ns // 1_000_000,
        "inference_count": ok,
        "execution_count": row.executions,
        "inference_stats": {
            "success": timed(ok, row.ok_us),
            "fail": timed(row.errors, row.total_us - row.ok_us),
            "queue": timed(row.calls, row.queue_us),
            "compute_infer": timed(row.calls, row.compute_us),
        },
        "batch_stats": [],
    }


def _operation(method: Any, path: str, handler: Any, summary: str, permission: str) -> Operation:
    return Operation(
        method=method,
        path=ROOT + path,
        permission=permission,
        handler=handler,
        summary=summary,
        body=(JSON,) if method == "POST" else None,
        reply=(JSON,),
        form=FORM,
    )


_MODEL, _REPOSITORY = "/models/{model}", "/repository/models/{model}"
OPERATIONS = (
    _operation("POST", "/repository/index", index, "List every version", "model:read"),
    _operation("POST", _REPOSITORY + "/load", load, "Load a model", "model:read"),
    _operation("POST", _REPOSITORY + "/unload", unload, "Unload a model", "model:register"),
    _operation("GET", "/models/stats", stats, "Statistics of every version", "model:read"),
    _operation("GET", _MODEL + "/stats", model_stats, "Statistics of a model", "model:read"),
    _operation(
        "GET",
        _MODEL + "/versions/{version}/stats",
        version_stats,
        "Statistics of a version",
        "model:read",
    ),
)
