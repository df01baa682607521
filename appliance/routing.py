"""Routes at work: which version answers, and every change of a model's route.

Owns: the choice for one call, and the commands set, promote, hold, abort, back and remove.
Never: parses HTTP, decides who may change a route, or runs a call.
Read next: ``traffic`` (the arithmetic), ``store.routes`` (how a change is recorded).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from appliance import clock, traffic
from appliance.errors import NotFound, RouteInvalid
from appliance.invoke import Via
from appliance.records import LIVE, WEIGHT_ALL, Route
from appliance.store import Snapshot, Store

_ENDS = ("promoted", "removed")


class Routing:
    """Chooses versions and changes routes; one per unsealed node."""

    def __init__(self, store: Store) -> None:
        """Read routes from the store's registry."""
        self._store = store
        self._secret = store.secret("route-keys")

    def choose(
        self, model_id: str, principal_id: str, header: Callable[[str], str]
    ) -> tuple[int, Via] | None:
        """The version that answers one call; ``None`` where the model has no route.

        Args:
            model_id: the model.
            principal_id: the caller's key, for routes sticky by key.
            header: the value of one of the request's headers, empty without it; a call that lacks
                the header its route is sticky by is drawn.

        Cost: no lock, no I/O; a draw or one keyed hash.
        """
        route = self._store.registry.snapshot.route(model_id)
        if route is None:
            return None
        key = ""
        if route.sticky == traffic.STICKY_KEY:
            key = principal_id
        elif route.sticky:
            key = header(route.sticky.removeprefix(traffic.STICKY_HEADER))
        at = traffic.point_of_key(self._secret, model_id, key) if key else clock.draw(WEIGHT_ALL)
        return traffic.number_at(route.arms, at), Via(route_revision=route.revision)

    async def set(
        self, draft: Route, *, revision: int | None = None, reason: str = "", actor: str
    ) -> Route:
        """Divide a model's calls as the draft says, from the next call on.

        Args:
            draft: arms (their spans are made here), sticky, shadows and canary.
            revision: the revision the caller saw (0: no route); ``None`` does not check.
            reason: kept with the revision.
            actor: who asks.

        Raises:
            NotFound: there is no such model.
            RouteInvalid: each thing that is wrong is named with its field.
            RevisionStale: somebody changed the route since.
        Audit: route.set.
        """

        def make(snapshot: Snapshot, current: Route | None) -> Route:
            traffic.require_route(draft, snapshot.versions(draft.model_id))
            before = current.arms if current else ()
            live = snapshot.alias(draft.model_id, LIVE)
            if not before and live is not None:
                before = traffic.all_to(live.number)
            weights = [(arm.number, arm.weight) for arm in draft.arms]
            return replace(draft, arms=traffic.arms_of(weights, before), state="active")

        return await self._change(draft.model_id, make, revision, reason, actor)

    async def promote(
        self,
        model_id: str,
        number: int | None = None,
        *,
        revision: int | None = None,
        reason: str = "",
        actor: str,
    ) -> Route:
        """Make a version live and end the route, in one step.

        Args:
            model_id: the model.
            number: an arm of the route; ``None`` is the candidate.
            revision: as for ``set``.
            reason: kept with the revision and the alias.
            actor: who asks.

        Raises:
            NotFound: the model has no route.
            RouteInvalid: the version is no arm, or none was named and there are several.
            RevisionStale: somebody changed the route since.
        Audit: alias.set, route.removed.
        """

        def make(_snapshot: Snapshot, current: Route | None) -> Route:
            route = _required(current)
            chosen = traffic.candidate_of(route) if number is None else number
            numbers = [arm.number for arm in route.arms]
            if chosen not in numbers:
                raise RouteInvalid(
                    "Say which version becomes live; the route has "
                    f"{', '.join(str(one) for one in numbers)}."
                )
            return replace(route, arms=traffic.all_to(chosen), state="promoted")

        return await self._change(model_id, make, revision, reason, actor)

    async def hold(
        self, model_id: str, *, revision: int | None = None, reason: str = "", actor: str
    ) -> Route:
        """Freeze the weights: the schedule stops. Raises as ``promote``. Audit: route.set."""

        def make(_snapshot: Snapshot, current: Route | None) -> Route:
            return replace(_required(current), state="held")

        return await self._change(model_id, make, revision, reason, actor)

    async def abort(
        self, model_id: str, *, revision: int | None = None, reason: str = "", actor: str
    ) -> Route:
        """Give every call to the baseline; the other arms stay, with weight 0.

        The baseline is what the canary is compared with, else the first arm. Raises as ``promote``.
        Audit: route.set.
        """

        def make(_snapshot: Snapshot, current: Route | None) -> Route:
            return replace(traffic.given_back(_required(current)), state="aborted")

        return await self._change(model_id, make, revision, reason, actor)

    async def step(
        self, model_id: str, weight: int, *, revision: int, reason: str, actor: str
    ) -> Route:
        """Give the candidate this weight, from its baseline. Raises as ``promote``."""

        def make(_snapshot: Snapshot, current: Route | None) -> Route:
            route = _required(current)
            candidate = traffic.candidate_of(route)
            return traffic.shifted(route, candidate, weight) if candidate else route

        return await self._change(model_id, make, revision, reason, actor)

    async def back(
        self, model_id: str, *, revision: int | None = None, reason: str = "", actor: str
    ) -> Route:
        """Return to the revision before the last, as a new one; twice is where one was.

        A key that is sticky is where it was then. After a promotion the route is there again, and
        ``live`` stays where it was moved.

        Raises:
            NotFound: the model never had a route.
            RouteInvalid: a version of that revision is retired by now.
            RevisionStale: somebody changed the route since.
        Audit: route.set, or route.removed where there was no route.
        """

        def make(snapshot: Snapshot, current: Route | None) -> Route:
            history = snapshot.route_history(model_id)
            if not history:
                raise _no_route()
            before = history[-2] if len(history) > 1 else None
            if before is None or before.state in _ENDS:
                return replace(_required(current), state="removed")
            traffic.require_route(before, snapshot.versions(model_id))
            return before

        return await self._change(model_id, make, revision, reason, actor)

    async def remove(
        self, model_id: str, *, revision: int | None = None, reason: str = "", actor: str
    ) -> Route:
        """End the route: ``live`` decides again. Raises as ``promote``. Audit: route.removed."""

        def make(_snapshot: Snapshot, current: Route | None) -> Route:
            return replace(_required(current), state="removed")

        return await self._change(model_id, make, revision, reason, actor)

    async def _change(
        self,
        model_id: str,
        make: Callable[[Snapshot, Route | None], Route],
        revision: int | None,
        reason: str,
        actor: str,
    ) -> Route:
        return await self._store.registry.routes.change(
            model_id=model_id, make=make, revision=revision, reason=reason, actor=actor
        )


def _required(route: Route | None) -> Route:
    if route is None:
        raise _no_route()
    return route


def _no_route() -> NotFound:
    return NotFound("The model has no route.", hint="appliance route set TENANT/MODEL 1=100")
