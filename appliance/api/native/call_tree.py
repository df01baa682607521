"""The calls that belong together: a caller's own, and those below it.

Owns: the operation that shows them, and their JSON document.
Never: shows a call whose audit entry the caller may not see.
Read next: ``nested`` (how they come about), ``audit`` (their entries one by one).
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from appliance import clock, wire
from appliance.api.dispatch import Context
from appliance.api.operation import Operation
from appliance.api.shapes import Document, Time
from appliance.records import Entry
from appliance.wire import Reply, json_reply

_CALLS_MAX = 1000
_WAIT_S = 2.0


class CallNode(Document):
    """A call that ended, at its place below others."""

    call: Annotated[str, Meta(description="Its id; of a caller's own call the request id.")]
    parent: Annotated[str, Meta(description="The call that made it; empty for the caller's own.")]
    depth: Annotated[int, Meta(description="0 for the caller's own call.")]
    tenant: str
    model: str
    version: int
    code: Annotated[str, Meta(description="`ok`, or the problem it ended with.")]
    status: int
    total_ms: float
    compute_ms: float
    cold: bool
    time: Annotated[Time, Meta(description="When it ended.")]
    actor: str
    audit_seq: Annotated[int, Meta(description="Its entry in the audit log.")]


class CallTree(Document):
    """Calls that belong together, each after the one that made it."""

    root: Annotated[str, Meta(description="The caller's own call.")]
    calls: list[CallNode]


async def show_tree(context: Context) -> Reply:
    """The calls that a call made, and those it belongs with, each after the one that made it.

    Any of their ids finds them all; those that still run are not among them. A call that neither
    makes calls nor was made by one is not found here: its entries in the audit log are all of it.
    """
    store, principal = context.services.store, context.principal
    await store.queries.wait(store.ledger.head.size, _WAIT_S)
    found = await store.queries.calls_with(context.request.params["call"], limit=_CALLS_MAX)
    own = [
        entry
        for entry in found
        if entry.event is not None
        and principal.tenant_id in ("", entry.tenant_id)
        and (principal.role != "operator" or entry.actor == principal.id)
    ]
    if not own:
        raise wire.not_found()
    root = str((own[0].event or {})["root"])
    return json_reply(CallTree(root=root, calls=[_node(context, *one) for one in ordered(own)]))


def ordered(entries: list[Entry]) -> list[tuple[Entry, int]]:
    """Outcomes with their depth, each after the one that made it, in the order they began.

    What was made by a call that is not among them stands at the top.
    """
    known = {str((entry.event or {})["call_id"]) for entry in entries}
    below: dict[str, list[Entry]] = {}
    for entry in sorted(entries, key=lambda one: int((one.event or {})["intent_seq"])):
        parent = str((entry.event or {}).get("parent", ""))
        below.setdefault(parent if parent in known else "", []).append(entry)
    found: list[tuple[Entry, int]] = []
    left = [(entry, 0) for entry in reversed(below.get("", []))]
    while left:
        entry, depth = left.pop()
        found.append((entry, depth))
        call_id = str((entry.event or {})["call_id"])
        left += [(one, depth + 1) for one in reversed(below.get(call_id, []))]
    return found


def _node(context: Context, entry: Entry, depth: int) -> CallNode:
    event = entry.event or {}
    tenant = context.snapshot.tenant_by_id(entry.tenant_id)
    model = context.snapshot.model_by_id(event["model_id"])
    return CallNode(
        call=event["call_id"],
        parent=event.get("parent", ""),
        depth=depth,
        tenant=tenant.name if tenant else entry.tenant_id,
        model=model.name if model else event["model_id"],
        version=event["number"],
        code=event["code"],
        status=event["status"],
        total_ms=event["total_us"] / 1000,
        compute_ms=event["compute_us"] / 1000,
        cold=event["cold"],
        time=clock.text_from_ns(entry.time_ns),
        actor=entry.actor,
        audit_seq=entry.seq,
    )


OPERATIONS = (
    Operation(
        method="GET",
        path="/api/v1/audit/calls/{call}",
        permission="audit:read",
        place="own",
        handler=show_tree,
        summary="Show the calls that belong to a call",
        reply=CallTree,
    ),
)
