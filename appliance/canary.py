"""Canaries: a candidate is watched against the version it is to follow, and stopped if it is worse.

Owns: what the last seconds of routed calls showed, and the automatic steps, holds and aborts.
Never: sets a threshold; owners do. Decides nothing from the projection, which lags.
Read next: ``traffic`` (the judgement), ``routing`` (the changes it asks for).

What it does is a revision like anybody's, by the actor ``appliance``, with the figures as reason.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

from appliance import clock, traffic
from appliance.errors import ApplianceError, NotFound, RevisionStale
from appliance.events import CallOutcome
from appliance.records import Canary, Route
from appliance.routing import Routing
from appliance.store import Store
from appliance.traffic import Figures, Window

ACTOR = "appliance"
_log = logging.getLogger(__name__)
_PERIOD_S = 0.5
_NS = 1_000_000_000


@dataclass(slots=True)
class _Watched:
    """One canary: its rule, both windows, and since when its revision has stood."""

    rule: Canary
    revision: int
    since_s: float
    windows: dict[int, Window] = field(default_factory=dict)
    complaint: str = ""


class Canaries:
    """Watches every canary there is; one per unsealed node."""

    def __init__(self, store: Store, routing: Routing) -> None:
        """Read routes from the store, change them through ``routing``."""
        self._store = store
        self._routing = routing
        self._watched: dict[str, _Watched] = {}

    def observe(self, outcome: CallOutcome, is_telling: bool) -> None:
        """Count a call that a route sent to one of a canary's two versions.

        Its latency is what it took once it had a sandbox: a candidate is called seldom, and is not
        to be blamed for starting cold.
        """
        if not outcome.route_revision or outcome.shadow_of or not is_telling:
            return
        watched = self._watched.get(outcome.model_id)
        if watched is None or outcome.number not in watched.windows:
            return
        took_us = outcome.total_us - outcome.queue_us - outcome.load_us
        watched.windows[outcome.number].add(
            _now_s(), is_error=outcome.code != "ok", took_us=took_us
        )

    def figures(self, model_id: str) -> tuple[dict[int, Figures], str]:
        """What a canary's windows show by version, and what is wrong now, if anything."""
        watched = self._watched.get(model_id)
        if watched is None:
            return {}, ""
        now_s = _now_s()
        shown = {number: window.figures(now_s) for number, window in watched.windows.items()}
        return shown, watched.complaint

    async def follow(self) -> None:
        """Watch for ever."""
        while True:
            try:
                await self.look()
            except Exception:  # noqa: BLE001 - it must go on; calls do not depend on it
                _log.exception("canaries could not be judged")
            await asyncio.sleep(_PERIOD_S)

    async def look(self) -> None:
        """Judge every canary once, and do what its owner asked for."""
        routes = {r.model_id: r for r in self._store.registry.snapshot.routes() if r.canary}
        for gone in self._watched.keys() - routes.keys():
            del self._watched[gone]
        for route in routes.values():
            watched = self._known(route)
            try:
                await self._judge(route, watched)
            except (RevisionStale, NotFound):
                continue  # somebody changed the route meanwhile: looked at again with the next
            except ApplianceError as error:
                _log.warning("the canary of %s: %s", route.model_id, error.detail)

    def _known(self, route: Route) -> _Watched:
        rule = route.canary
        assert rule is not None  # noqa: S101 - only canaries are looked at
        known = self._watched.get(route.model_id)
        if known is not None and known.revision == route.revision:
            return known
        fresh = _Watched(rule=rule, revision=route.revision, since_s=_now_s())
        if known is not None and known.rule == rule and route.set_by == ACTOR:
            fresh.windows = known.windows  # its own step: what was seen still counts
        else:
            numbers = (rule.against, rule.number)
            fresh.windows = {number: Window(rule.window_s) for number in numbers}
        self._watched[route.model_id] = fresh
        return fresh

    async def _judge(self, route: Route, watched: _Watched) -> None:
        rule, now_s = watched.rule, _now_s()
        base, candidate = (
            watched.windows[number].figures(now_s) for number in (rule.against, rule.number)
        )
        if route.state == "aborted":
            return
        watched.complaint = traffic.complaint(rule, base, candidate)
        model_id, revision, why = route.model_id, route.revision, watched.complaint
        if watched.complaint and rule.action == "abort":
            await self._routing.abort(model_id, revision=revision, reason=why, actor=ACTOR)
        elif route.state != "active":
            return
        elif watched.complaint and rule.action == "hold":
            await self._routing.hold(model_id, revision=revision, reason=why, actor=ACTOR)
        elif not watched.complaint and now_s - watched.since_s >= rule.step_s:
            step = traffic.next_step(route)
            if step is not None and min(base.calls, candidate.calls) >= rule.calls_min:
                reason = (
                    f"{rule.step_s} s without a complaint; error rates {base.error_rate:.2%} and "
                    f"{candidate.error_rate:.2%}, 95th percentiles {base.p95_us / 1000:.1f} and "
                    f"{candidate.p95_us / 1000:.1f} ms"
                )
                await self._routing.step(
                    model_id, step, revision=revision, reason=reason, actor=ACTOR
                )


def _now_s() -> float:
    return clock.monotonic_ns() / _NS
