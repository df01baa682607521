"""The lineage of versions: the parents a manifest names, whom versions call, and their graph.

Owns: the notation of a parent, the check that it is there, the walk to ancestors and descendants.
What a version calls, as a model or as a pipeline by its steps, is an ancestor of it like a parent.
Never: decides who may see a model (it is told), or changes a version.
Read next: ``store.lineage`` (the edges themselves), ``api.native.lineage`` (how they are shown).

A parent is registered before its child, but what a called name stands for changes, so there may be
a cycle: the walk remembers where it was, goes level by level without recursion, and stops at a
depth and a number of versions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from appliance.errors import FieldError, ManifestInvalid
from appliance.records import Model, Parent, Tenant, Version
from appliance.store import Snapshot
from appliance.store.lineage import called_by, callers_of, children_of

Direction = Literal["ancestors", "descendants", "both"]
DIRECTIONS: tuple[Direction, ...] = ("both", "ancestors", "descendants")
MaySee = Callable[[str], bool]
"""Whether who asks may see the tenant's model of this name."""
Follow = Callable[[Parent], Iterable[tuple[Parent, str]]]
"""The versions one edge further on, and where that is a call, how it is named."""

_NAME = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_VERSION = re.compile(rf"(?:({_NAME})/)?({_NAME})[@:]([0-9]{{1,9}})")
_ALIAS = re.compile(rf"(?:({_NAME})/)?({_NAME})@({_NAME})")
_OUTSIDE = 'Something outside is written with a space or an address: "resnet50 of torchvision".'


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A version in a walk; ``distance`` is negative for ancestors, 0 where the walk began.

    ``version`` is ``None`` where the model was removed, with all that was known of its versions.
    """

    key: Parent
    model: Model
    version: Version | None
    distance: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """``child`` was made from ``parent``, or calls it: then ``call`` is how it names it."""

    child: Parent
    parent: Parent
    call: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """The part of the graph that was walked, nearest first.

    ``hidden`` counts versions whose model may not be seen, ``left_off`` those that are next but
    beyond the depth or the number asked for.
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    hidden: int
    left_off: int


def parents_of(
    snapshot: Snapshot, tenant: Tenant, texts: Iterable[str], *, may_see: MaySee, place: str = ""
) -> tuple[Parent, ...]:
    """The versions that a manifest's ``lineage.parents`` name; what is no such name is free text.

    ``MODEL@N`` and ``MODEL:N``, with ``TENANT/`` before it or not, name a version of the tenant.

    Args:
        snapshot: the registry.
        tenant: whose version is being registered.
        texts: the parents as written.
        may_see: a model it says no to reads like one that is not there.
        place: ``file:line`` of the texts, for the problem.

    Returns:
        The parents in the order written, each once.

    Raises:
        ManifestInvalid: a name of a version that is not there, of another tenant's, or an alias.
    """
    found: dict[Parent, None] = {}
    for text in texts:
        match = _VERSION.fullmatch(text.strip())
        if match is None:
            _require_no_alias(snapshot, tenant, text.strip(), may_see, place)
            continue
        owner, name, number = match[1], match[2], int(match[3])
        if owner not in (None, tenant.name):
            reason = f"'{text}' is not of the tenant '{tenant.name}'; parents are its own versions"
            raise _refused(place, reason, _OUTSIDE)
        model = snapshot.model(tenant.id, name) if may_see(name) else None
        if model is None:
            reason = f"'{text}': there is no model '{name}', or this key may not see it"
            raise _refused(place, reason, f"appliance model list {tenant.name}\n{_OUTSIDE}")
        if snapshot.version(model.id, number) is None:
            newest = snapshot.newest(model.id)
            there = f"its versions are 1 to {newest.number}" if newest else "it has no version yet"
            reason = f"'{text}': there is no such version of '{name}'; {there}"
            raise _refused(place, reason, f"appliance model show {tenant.name}/{name}")
        found[Parent(model_id=model.id, number=number)] = None
    return tuple(found)


def outside_of(snapshot: Snapshot, version: Version) -> tuple[str, ...]:
    """What a version's manifest names as parents besides versions: models of elsewhere, as text."""
    known = {
        (model.name, parent.number)
        for parent in version.parents
        if (model := snapshot.model_by_id(parent.model_id))
    }
    found = []
    for text in version.manifest.lineage.parents:
        match = _VERSION.fullmatch(text.strip())
        if match is None or (match[2], int(match[3])) not in known:
            found.append(text)
    return tuple(found)


def walk(
    snapshot: Snapshot,
    tenant: Tenant,
    start: Parent,
    *,
    direction: Direction,
    depth: int,
    limit: int,
    may_see: MaySee,
) -> Walk:
    """The ancestors and descendants of a version that are at most ``depth`` edges away.

    Args:
        snapshot: the registry.
        tenant: whose the version is.
        start: a version that is there.
        direction: which way to go.
        depth: how many edges to follow at most, >= 0.
        limit: how many versions to return at most besides the first, shared evenly by both ways.
        may_see: models it says no to are counted, neither named nor walked through.

    Cost: O(versions of the tenant) for descendants, else O(versions returned).
    """
    nodes = {start: _node(snapshot, start, 0)}
    found = Walk(nodes=tuple(nodes.values()), edges=(), hidden=0, left_off=0)
    ways = ("ancestors", "descendants") if direction == "both" else (direction,)
    for way in ways:
        is_back = way == "ancestors"
        follow = _parents(snapshot) if is_back else _children(snapshot, tenant.id)
        sign = -1 if is_back else 1
        one = _one_way(snapshot, start, follow, sign, depth, limit // len(ways), may_see)
        found = Walk(
            nodes=(*found.nodes, *one.nodes),
            edges=tuple(dict.fromkeys((*found.edges, *one.edges))),
            hidden=found.hidden + one.hidden,
            left_off=found.left_off + one.left_off,
        )
    return found


def _one_way(
    snapshot: Snapshot,
    start: Parent,
    follow: Follow,
    sign: int,
    depth: int,
    limit: int,
    may_see: MaySee,
) -> Walk:
    """The walk in one direction, without the version it begins at."""
    found: dict[Parent, Node] = {}
    edges: list[Edge] = []
    hidden: set[Parent] = set()
    left_off: set[Parent] = set()
    level, distance = [start], 0
    while level:
        distance += 1
        following: list[Parent] = []
        for key in level:
            for other, call in follow(key):
                if other not in found and other != start:
                    node = _node(snapshot, other, sign * distance)
                    if not may_see(node.model.name):
                        hidden.add(other)
                        continue
                    if distance > depth or len(found) >= limit:
                        left_off.add(other)
                        continue
                    found[other] = node
                    following.append(other)
                child, parent = (key, other) if sign < 0 else (other, key)
                edges.append(Edge(child=child, parent=parent, call=call))
        level = following
    return Walk(
        nodes=tuple(found.values()), edges=tuple(edges), hidden=len(hidden), left_off=len(left_off)
    )


def _parents(snapshot: Snapshot) -> Follow:
    def follow(key: Parent) -> Iterator[tuple[Parent, str]]:
        version = snapshot.version(key.model_id, key.number)
        if version is not None:
            yield from ((parent, "") for parent in version.parents)
            yield from ((other, str(call)) for other, call in called_by(snapshot, version))

    return follow


def _children(snapshot: Snapshot, tenant_id: str) -> Follow:
    children = children_of(snapshot, tenant_id)
    callers = callers_of(snapshot, tenant_id)

    def follow(key: Parent) -> Iterator[tuple[Parent, str]]:
        yield from ((child, "") for child in children.get(key, ()))
        yield from ((other, str(call)) for other, call in callers.get(key, ()))

    return follow


def _node(snapshot: Snapshot, key: Parent, distance: int) -> Node:
    model = snapshot.model_by_id(key.model_id)
    if model is None:  # models are kept as long as their tenant, removed ones too
        raise KeyError(key.model_id)
    version = None if model.removed_ns else snapshot.version(key.model_id, key.number)
    return Node(key=key, model=model, version=version, distance=distance)


def _require_no_alias(
    snapshot: Snapshot, tenant: Tenant, text: str, may_see: MaySee, place: str
) -> None:
    """Refuse an alias of the tenant's: it moves, an edge does not."""
    match = _ALIAS.fullmatch(text)
    if match is None or match[1] not in (None, tenant.name) or not may_see(match[2]):
        return
    model = snapshot.model(tenant.id, match[2])
    if model is None:
        return
    alias = snapshot.alias(model.id, match[3])
    now = f"{model.name}@{alias.number}" if alias else f"{model.name}@1"
    reason = f"'{text}' is no version: an alias moves, an ancestor does not; write its number"
    raise _refused(place, reason, f'Write, for example: parents = ["{now}"]')


def _refused(place: str, reason: str, hint: str) -> ManifestInvalid:
    place = place or "appliance.toml"
    return ManifestInvalid(
        f"{place}: lineage.parents: {reason}.",
        hint=hint,
        fields=(FieldError(pointer=place, detail=f"lineage.parents: {reason}"),),
    )
