"""Where a version came from and what came of it: its part of the tenant's graph.

Owns: the operation and its JSON document.
Never: walks the graph (``appliance.lineage``).
Read next: ``appliance.lineage``, ``models``.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal, get_args

from msgspec import Meta

from appliance import clock, lineage
from appliance.api.dispatch import Context
from appliance.api.native.models import model_of, sight_of, version_of
from appliance.api.operation import Operation, Query
from appliance.api.shapes import Document, Time
from appliance.errors import InputInvalid
from appliance.lineage import DIRECTIONS, Direction, Node, Walk
from appliance.records import Parent
from appliance.store.lineage import targets_of
from appliance.wire import Reply, json_reply

_DEPTH, _DEPTH_MAX = 10, 10_000
_LIMIT, _LIMIT_MAX = 1000, 10_000


class LineageNode(Document):
    """A version in the graph; what it was made from besides versions is with it."""

    id: Annotated[str, Meta(description="MODEL@N; of a removed model its id in place of the name.")]
    model: str
    version: int
    state: Literal["ready", "retired", "removed"]
    calls: Annotated[list[str], Meta(description="Whom it calls, as written.")]
    distance: Annotated[
        int, Meta(description="Edges from the version asked for; negative for ancestors.")
    ]
    aliases: list[str]
    runtime: str
    description: str
    data: list[str]
    code: str
    run: str
    outside: Annotated[list[str], Meta(description="Parents that are no versions, as written.")]
    created_at: Time | None
    created_by: str


class LineageEdge(Document):
    """The version ``child`` was made from the version ``parent``, or calls it; ids of nodes."""

    child: str
    parent: str
    kind: Literal["made", "calls"]
    call: Annotated[
        str, Meta(description="As what it is called: `m:3`, `m@live`, `m`; empty where made.")
    ]


class LineageDoc(Document):
    """The part of the graph around a version, nearest first."""

    tenant: str
    model: str
    version: int
    direction: Literal["both", "ancestors", "descendants"]
    depth: int
    nodes: list[LineageNode]
    edges: list[LineageEdge]
    hidden: Annotated[int, Meta(description="Versions of models this key may not see.")]
    left_off: Annotated[int, Meta(description="Next versions beyond the depth or the limit.")]


async def show_lineage(context: Context) -> Reply:
    """The versions a version was made from or calls, and those made from it or calling it.

    Whom a version calls, a pipeline by its steps, is shown as the version that stands for now.

    An ancestor whose model was removed has the state `removed`, and nothing before it is known.
    """
    model = model_of(context)
    version = version_of(context, model)
    request = context.request
    direction = _direction(request.query.get("direction", "both"))
    depth = request.int_query("depth", default=_DEPTH, low=0, high=_DEPTH_MAX)
    found = await asyncio.to_thread(
        lineage.walk,
        context.snapshot,
        context.tenant,
        Parent(model_id=model.id, number=version.number),
        direction=direction,
        depth=depth,
        limit=request.int_query("limit", default=_LIMIT, low=1, high=_LIMIT_MAX),
        may_see=sight_of(context),
    )
    return json_reply(
        LineageDoc(
            tenant=context.tenant.name,
            model=model.name,
            version=version.number,
            direction=direction,
            depth=depth,
            nodes=[_node_doc(context, node) for node in found.nodes],
            edges=_edge_docs(found),
            hidden=found.hidden,
            left_off=found.left_off,
        )
    )


def _direction(text: str) -> Direction:
    for known in get_args(Direction):
        if text == known:
            return text  # type: ignore[return-value]
    raise InputInvalid(f"'direction' is one of {', '.join(DIRECTIONS)}.")


def _id(node: Node) -> str:
    name = node.model.id if node.model.removed_ns else node.model.name
    return f"{name}@{node.key.number}"


def _edge_docs(found: Walk) -> list[LineageEdge]:
    ids = {node.key: _id(node) for node in found.nodes}
    return [
        LineageEdge(
            child=ids[one.child],
            parent=ids[one.parent],
            kind="calls" if one.call else "made",
            call=one.call,
        )
        for one in found.edges
    ]


def _node_doc(context: Context, node: Node) -> LineageNode:
    version = node.version
    told = version.manifest.lineage if version else None
    state: Literal["ready", "retired", "removed"] = "removed"
    if version:
        state = "retired" if version.retired_ns else "ready"
    aliases = context.snapshot.aliases(node.model.id)
    return LineageNode(
        id=_id(node),
        model=node.model.name,
        version=node.key.number,
        state=state,
        calls=[str(one) for one in targets_of(version)] if version else [],
        distance=node.distance,
        aliases=[alias.name for alias in aliases if alias.number == node.key.number],
        runtime=version.manifest.runtime if version else "",
        description=version.manifest.description if version else "",
        data=list(told.data) if told else [],
        code=told.code if told else "",
        run=told.run if told else "",
        outside=list(lineage.outside_of(context.snapshot, version)) if version else [],
        created_at=clock.text_from_ns(version.created_ns) if version else None,
        created_by=version.created_by if version else "",
    )


OPERATIONS = (
    Operation(
        method="GET",
        path="/api/v1/models/{tenant}/{model}/versions/{version}/lineage",
        permission="model:read",
        handler=show_lineage,
        summary="Show where a version came from and what came of it",
        reply=LineageDoc,
        query=(
            Query(
                name="direction",
                doc="Which way to go.",
                schema={"type": "string", "enum": list(DIRECTIONS), "default": "both"},
            ),
            Query(
                name="depth",
                doc="How many edges to follow at most.",
                schema={"type": "integer", "minimum": 0, "maximum": _DEPTH_MAX, "default": _DEPTH},
            ),
            Query(
                name="limit",
                doc="How many versions to return at most, shared by both ways.",
                schema={"type": "integer", "minimum": 1, "maximum": _LIMIT_MAX, "default": _LIMIT},
            ),
        ),
        problems=(InputInvalid,),
    ),
)
