"""The guard: every connection out of a sandbox is shown to it, and what it says is on record.

Owns: the order of the questions (rules by name, look-up, rules and class by address, record), and
closing what a changed rule no longer allows.
Never: looks a name up before the rules allow it (a look-up itself carries text out); connects.
Read next: ``rules``, ``addresses``, ``record``; ``sandbox.proxy`` (who connects).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from appliance import config
from appliance.egress import rules
from appliance.egress.addresses import class_of, literal
from appliance.egress.closed import WHY, closed_versions
from appliance.egress.record import Flow, Record, version_of
from appliance.egress.resolver import Resolver, is_own
from appliance.egress.rules import Target, Verdict
from appliance.errors import ApplianceError, CapacityExhausted, EgressDenied, QuotaExceeded
from appliance.events import Event
from appliance.metrics import Metrics
from appliance.records import EgressRule
from appliance.sandbox.egress import Passage, Who
from appliance.sandbox.pool import Pool
from appliance.sandbox.proxy import Limits
from appliance.store import Snapshot, Store

_HINT = "ask IT for a rule: appliance egress allow --help"


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What would happen to a connection, and why; ``reason`` as in ``egress.denied``, or ``ok``."""

    allowed: bool
    reason: str
    rule_id: str
    host: str
    addresses: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Open:
    who: Who
    target: Target
    addresses: tuple[str, ...]
    flow: Flow


class _No(Exception):
    """A refusal on its way: why, and by which rule."""

    def __init__(self, reason: str, rule_id: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.rule_id = rule_id


class EgressGuard:
    """``sandbox.egress.Guard`` by a store's rules; one per unsealed node, on one event loop."""

    def __init__(
        self,
        store: Store,
        settings: config.Egress,
        metrics: Metrics,
        *,
        pool: Callable[[], Pool] | None = None,
    ) -> None:
        """Args: ``pool`` returns the sandboxes, or raises what keeps them away."""
        self._store = store
        self._pool = pool
        self._metrics = metrics
        self._settings = settings
        self._resolver = Resolver(settings.hosts_file)
        self._record = Record(self._append)
        self._open: dict[Passage, _Open] = {}
        self._limits = Limits(
            connections_max=settings.connections_max,
            connect_timeout_s=settings.connect_timeout_s,
            idle_timeout_s=settings.idle_timeout_s,
        )

    @property
    def limits(self) -> Limits:
        """See ``Guard.limits``."""
        return self._limits

    @property
    def open_count(self) -> int:
        """Connections that are open now."""
        return len(self._open)

    async def admit(self, who: Who, host: str, port: int, protocol: str) -> Passage:
        """See ``Guard.admit``. Audit: egress.opened (first use of a destination), egress.denied."""
        known = rules.host_from_text(host)
        target = Target(host=known, port=port, protocol=_protocol(protocol))
        try:
            if not known:
                raise _No("host-malformed", "")
            verdict, addresses = await self._checked(self._rules(who.tenant_id), who.model, target)
        except _No as no:
            self._metrics.egress_decided(allowed=False)
            await self._record.denied(
                who,
                rule_id=no.rule_id,
                host=known or "?",
                port=port,
                protocol=target.protocol,
                reason=no.reason,
            )
            raise _denied(target, no) from no
        flow = await self._record.opened(
            who,
            rule_id=verdict.rule_id,
            host=target.host,
            port=port,
            protocol=target.protocol,
            address=addresses[0],
        )
        if flow is None:
            raise CapacityExhausted("This model opens new destinations too quickly.")
        passage = Passage(addresses, port, self._ended)
        self._open[passage] = _Open(who=who, target=target, addresses=addresses, flow=flow)
        flow.begin(passage)
        self._metrics.egress_decided(allowed=True)
        if not self._is_allowed_still(self._open[passage]):  # changed while it was recorded
            passage.revoke()
        return passage

    async def left(self, who: Who) -> None:
        """See ``Guard.left``."""
        await self._record.left(who)

    async def explain(
        self, tenant_id: str, model: str, host: str, port: int, protocol: str
    ) -> Explanation:
        """What ``admit`` would say now, without a record; the name is looked up if it is allowed.

        Args:
            tenant_id: whose rules.
            model: the model's name.
            host: as a model would write it.
            port: as a model would.
            protocol: ``connect``, ``http`` or ``tcp``.
        """
        known = rules.host_from_text(host)
        target = Target(host=known, port=port, protocol=_protocol(protocol))
        found: tuple[str, ...] = ()
        rule_id = ""
        try:
            if not known:
                raise _No("host-malformed", "")
            verdict, found = await self._checked(self._rules(tenant_id), model, target)
            rule_id, reason = verdict.rule_id, "ok"
        except _No as no:
            rule_id, reason = no.rule_id, no.reason
        except (OSError, TimeoutError):
            rule_id = rules.decide(self._rules(tenant_id), model, target).rule_id
            reason = "unresolved"
        closed = closed_versions(self._store.registry.snapshot, tenant_id, model)
        if closed.is_all:
            rule_id, reason = "", "isolation"
        text = _text(target, reason, rule_id, host)
        return Explanation(
            allowed=reason == "ok",
            reason=reason,
            rule_id=rule_id,
            host=known or host,
            addresses=found,
            text=f"{text} It is {closed.text}." if reason == "ok" and closed.text else text,
        )

    async def add_rule(self, rule: EgressRule, *, before: str = "", actor: str) -> EgressRule:
        """Add a rule; open connections and sandboxes follow it before this returns.

        Raises:
            InputInvalid: the rule can never do what it says.
            QuotaExceeded: the tenant has as many as it may have.
            NotFound: there is no tenant, or no rule ``before``.
        Audit: egress.rule-added.
        """
        rules.require_sense(rule)
        known = self._rules(rule.tenant_id)

        def fits(snapshot: Snapshot) -> None:
            if len(snapshot.egress_rules(rule.tenant_id)) >= rules.RULES_MAX:
                raise QuotaExceeded(f"A tenant has at most {rules.RULES_MAX} egress rules.")

        added = await self._store.registry.add_egress_rule(
            rule=rule, before=before, fits=fits, actor=actor
        )
        await self._follow(rule.tenant_id, known)
        return added

    async def remove_rule(self, *, tenant_id: str, rule_id: str, reason: str, actor: str) -> None:
        """Remove a rule; open connections and sandboxes follow before this returns.

        Raises:
            NotFound: there is no such rule.
        Audit: egress.rule-removed.
        """
        known = self._rules(tenant_id)
        await self._store.registry.remove_egress_rule(
            tenant_id=tenant_id, rule_id=rule_id, reason=reason, actor=actor
        )
        await self._follow(tenant_id, known)

    async def _follow(self, tenant_id: str, before: tuple[EgressRule, ...]) -> None:
        """Close what is no longer allowed; replace sandboxes whose ways out are others now."""
        self.changed(tenant_id)
        if self._pool is None:
            return
        try:
            pool = self._pool()
        except ApplianceError:
            return  # no sandbox can run now
        snapshot, now = self._store.registry.snapshot, self._rules(tenant_id)
        keys = {box.version_key for box in pool.list() if box.tenant_id == tenant_id}
        for key in keys:
            model = snapshot.model_by_id(key.rpartition("/")[0])
            name = model.name if model else ""
            if rules.outlets_for(before, name) != rules.outlets_for(now, name):
                await pool.evict(key)

    def changed(self, tenant_id: str) -> int:
        """A tenant's rules changed: close what they no longer allow; how many that were."""
        gone = [
            passage
            for passage, one in self._open.items()
            if one.who.tenant_id == tenant_id and not self._is_allowed_still(one)
        ]
        for passage in gone:
            passage.revoke()
        return len(gone)

    async def close(self) -> None:
        """Close every connection and write down what is owed."""
        for passage in list(self._open):
            passage.revoke()
        await self._record.close()
        self._resolver.close()

    def _rules(self, tenant_id: str) -> tuple[EgressRule, ...]:
        return self._store.registry.snapshot.egress_rules(tenant_id)

    async def _checked(
        self, known: tuple[EgressRule, ...], model: str, target: Target
    ) -> tuple[Verdict, tuple[str, ...]]:
        """The deciding rule and the checked addresses.

        Raises:
            _No: it is refused.
            OSError, TimeoutError: the name does not resolve.
        """
        verdict = rules.decide(known, model, target)
        if not verdict.allowed:
            raise _No(verdict.reason, verdict.rule_id)
        if literal(target.host) is not None:
            addresses: tuple[str, ...] = (target.host,)
        else:
            timeout_s = self._settings.connect_timeout_s
            addresses = await self._resolver.resolve(target.host, timeout_s)
        for address in addresses:
            self._check_address(known, model, target, address)
        return verdict, addresses

    def _check_address(
        self, known: tuple[EgressRule, ...], model: str, target: Target, address: str
    ) -> None:
        verdict = rules.decide(known, model, target, address=address)
        if not verdict.allowed:
            raise _No(verdict.reason, verdict.rule_id)
        try:
            kind = class_of(ipaddress.ip_address(address))
        except ValueError:
            raise _No("host-malformed", verdict.rule_id) from None
        kind = kind or ("own-address" if is_own(address) else "")
        if kind and not rules.has_literal(known, model, target, address):
            raise _No(kind, verdict.rule_id)

    def _is_allowed_still(self, one: _Open) -> bool:
        known = self._rules(one.who.tenant_id)
        try:
            for address in one.addresses:
                self._check_address(known, one.who.model, one.target, address)
        except _No:
            return False
        return True

    def _ended(self, passage: Passage, failed: bool) -> None:
        one = self._open.pop(passage, None)
        if one is not None:
            one.flow.end(passage, failed=failed)
            self._metrics.egress_passed(passage.sent_bytes, passage.received_bytes)

    async def _append(self, event: Event, who: Who) -> None:
        model_id, _number = version_of(who)
        await self._store.ledger.append(
            event, tenant_id=who.tenant_id, actor=who.sandbox_id, object=model_id
        )


def _protocol(text: str) -> Literal["connect", "http", "tcp"]:
    if text == "connect":
        return "connect"
    return "http" if text == "http" else "tcp"


def _denied(target: Target, no: _No) -> EgressDenied:
    return EgressDenied(
        _text(target, no.reason, no.rule_id, "This destination"),
        hint=_HINT,
        reason=no.reason,
        rule_id=no.rule_id,
    )


def _text(target: Target, reason: str, rule_id: str, unknown: str) -> str:
    """What was decided, for people; ``unknown`` stands for a host that is not legal."""
    where = f"{target.host or unknown}:{target.port} ({target.protocol})"
    if reason == "ok":
        return f"{where} is allowed by egress rule {rule_id}."
    why = {
        "default": "no egress rule allows it",
        "rule": f"egress rule {rule_id} denies it",
        "host-malformed": "it is no name and no address in the usual notation",
        "isolation": WHY,
        "own-address": "it leads to the appliance's own machine; a rule must name that address",
        "unresolved": f"egress rule {rule_id} allows it, but the name leads nowhere now",
    }.get(reason, f"it leads to a {reason} address; a rule must name that address")
    return f"{where} is not allowed: {why}."
