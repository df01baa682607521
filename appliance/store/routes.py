"""Commands on a model's route: every change is a revision, in the ledger before it is in force.

Owns: the next revision, the check of the one the caller saw, and what ends with a route.
Never: decides what a good route is (``traffic``) or who may set one.
Read next: ``writer`` (how a command runs), ``appliance.routing`` (who gives them).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from appliance import clock
from appliance.errors import RevisionStale, VersionRouted
from appliance.events import AliasSet, Event, RouteRemoved, RouteSet
from appliance.records import LIVE, Alias, Model, Route
from appliance.store.snapshot import ROUTE_ENDS, Snapshot
from appliance.store.writer import Writer

Make = Callable[[Snapshot, Route | None], Route]
"""The next route from the registry and the one in force; raises what keeps it from being."""


class RouteCommands:
    """The registry's commands on routes."""

    def __init__(
        self, writer: Writer, next_alias: Callable[[Model, str, int, str, str], Alias]
    ) -> None:
        """Give commands to ``writer``; ``next_alias`` makes an alias's next revision."""
        self._writer = writer
        self._next_alias = next_alias

    async def change(
        self,
        *,
        model_id: str,
        make: Make,
        revision: int | None = None,
        reason: str = "",
        actor: str,
    ) -> Route:
        """Make the next revision of a model's route.

        A route whose state is ``promoted`` makes its only arm ``live``, in one unit with its end.

        Args:
            model_id: the model.
            make: called while nothing else changes; ids, revision, reason and time are filled in.
            revision: the revision the caller saw (0: no route); ``None`` does not check.
            reason: kept with the revision.
            actor: who asks.

        Raises:
            NotFound: there is no such model.
            RevisionStale: somebody changed the route since; who and when is told.
        """

        async def command() -> Route:
            snapshot = self._writer.snapshot
            model = self._writer.model(model_id)
            current = snapshot.route(model_id)
            history = snapshot.route_history(model_id)
            _require_fresh(current, history, revision)
            route = replace(
                make(snapshot, current),
                model_id=model_id,
                tenant_id=model.tenant_id,
                revision=history[-1].revision + 1 if history else 1,
                reason=reason,
                set_ns=clock.now_ns(),
                set_by=actor,
            )
            events: list[Event] = []
            if route.state == "promoted":
                why = reason or f"promoted from route revision {route.revision}"
                alias = self._next_alias(model, LIVE, route.arms[0].number, why, actor)
                events.append(AliasSet(alias=alias))
            is_end = route.state in ROUTE_ENDS
            events.append(RouteRemoved(route=route) if is_end else RouteSet(route=route))
            await self._writer.commit(events, model.tenant_id, actor, model_id)
            return route

        return await self._writer.run(command())


def require_unrouted(snapshot: Snapshot, model_id: str, number: int) -> None:
    """Return if no route names a version.

    Raises:
        VersionRouted: one does; what to change first is told.
    """
    route = snapshot.route(model_id)
    if route is None:
        return
    roles = []
    arm = next((one for one in route.arms if one.number == number), None)
    if arm is not None:
        roles.append(f"an arm with {arm.weight / 100:g} percent of the calls")
    if number in route.shadows:
        roles.append("a shadow")
    if roles:
        raise VersionRouted(
            f"Version {number} is {' and '.join(roles)} in revision {route.revision} of the "
            "model's route; take it out of the route first.",
            hint="appliance route set TENANT/MODEL with the versions that stay, or 'route rm'",
            number=number,
            route_revision=route.revision,
        )


def _require_fresh(current: Route | None, history: tuple[Route, ...], revision: int | None) -> None:
    known = current.revision if current else 0
    if revision is None or revision == known:
        return
    if not history:
        raise RevisionStale(f"The model has no route; yours was revision {revision}.", revision=0)
    last = history[-1]
    at = clock.text_from_ns(last.set_ns)
    why = f" ({last.reason})" if last.reason else ""
    what = f"is at revision {last.revision}" if current else f"ended ({last.state})"
    raise RevisionStale(
        f"The route {what}, by {last.set_by} at {at}{why}; yours was revision {revision}.",
        hint="appliance route show TENANT/MODEL",
        revision=known,
        set_by=last.set_by,
        set_at=at,
    )
