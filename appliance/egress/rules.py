"""PURE: the grammar of egress rules and what they say about a destination.

Owns: legal hosts and ports of rules and requests, the decision, and the ways out it gives a model.
Never: resolves names, records anything, or knows sandboxes beyond their ``Outlets``.
Read next: ``guard`` (who asks), ``addresses`` (what no rule opens by accident).

A rule's host is a name (``db.example.com``), a name's subdomains (``*.example.com``), an address
(``10.1.2.3``), a network (``10.0.0.0/8``) or ``*``. Rules are tried in order, the first that
matches decides, and without one the answer is no. An address or network that denies also matches
what a name resolved to; one that allows matches only who asked for that address.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from appliance.egress.addresses import literal
from appliance.errors import FieldError, InputInvalid
from appliance.records import EgressRule
from appliance.sandbox.spec import Outlet, Outlets

RULES_MAX = 256
PORTS_SHOWN_MAX = 16
"""A rule with more ports gives no name of its own in the sandbox: each port is a listener."""
OUTLETS_MAX = 64

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})*")
# What old resolvers take for an IPv4 address in a strange notation ends in such a label.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A destination as asked for: a legal name or a literal address, a port, and how."""

    host: str
    port: int
    protocol: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether, and by which rule; ``rule`` is ``None`` where none matched."""

    allowed: bool
    rule: EgressRule | None = None

    @property
    def rule_id(self) -> str:
        """The rule's id; empty for the default."""
        return self.rule.id if self.rule else ""

    @property
    def reason(self) -> str:
        """``rule`` or ``default``."""
        return "rule" if self.rule else "default"


def host_from_text(text: str) -> str:
    """The host in the one notation that is compared, or an empty text if it is not legal."""
    host = text.lower()
    address = literal(host)
    if address is not None:
        return "" if "%" in host else str(address)
    host = host.removesuffix(".")
    if not _NAME.fullmatch(host) or _NUMBER.fullmatch(host.rpartition(".")[2]):
        return ""
    return host


def pattern_from_text(text: str) -> str:
    """A rule's host in the one notation that is compared.

    Raises:
        InputInvalid: it is none of the forms above.
    """
    pattern = text.strip().lower()
    if pattern == "*":
        return pattern
    if "/" in pattern:
        try:
            network = ipaddress.ip_network(pattern)
        except ValueError as error:
            raise _wrong("/host", f"not a network: {error}") from error
        return str(network)
    host = host_from_text(pattern.removeprefix("*."))
    if not host or (pattern.startswith("*.") and literal(host) is not None):
        raise _wrong("/host", "not a name, '*.name', an address, a network or '*'")
    return f"*.{host}" if pattern.startswith("*.") else host


def ports_from_texts(texts: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Ranges from texts like ``443`` and ``8000-8100``; none for every port.

    Raises:
        InputInvalid: one is not a port or a range of ports.
    """
    found = set()
    for index, text in enumerate(texts):
        first, dash, last = text.strip().partition("-")
        if not (first.isascii() and first.isdigit() and len(first) <= 5):
            raise _wrong(f"/ports/{index}", "not a port or a range such as 8000-8100")
        if dash and not (last.isascii() and last.isdigit() and len(last) <= 5):
            raise _wrong(f"/ports/{index}", "not a port or a range such as 8000-8100")
        span = (int(first), int(last if dash else first))
        if not 1 <= span[0] <= span[1] <= 65535:
            raise _wrong(f"/ports/{index}", "ports are from 1 to 65535, the smaller first")
        found.add(span)
    return tuple(sorted(found))


def texts_from_ports(ports: Sequence[tuple[int, int]]) -> list[str]:
    """What ``ports_from_texts`` reads."""
    return [str(first) if first == last else f"{first}-{last}" for first, last in ports]


def require_sense(rule: EgressRule) -> EgressRule:
    """The rule itself, if it can ever do what it says.

    Raises:
        InputInvalid: a ``tcp`` rule that allows needs one name and few ports.
    """
    if rule.protocol == "tcp" and rule.action == "allow" and not _names(rule):
        raise _wrong(
            "/protocol",
            "a tcp rule gives one name (no '*', no address) and at most "
            f"{PORTS_SHOWN_MAX} ports inside the sandbox",
        )
    return rule


def decide(
    rules: Sequence[EgressRule], model: str, target: Target, *, address: str = ""
) -> Verdict:
    """What the rules say.

    Args:
        rules: a tenant's, in order.
        model: the model's name.
        target: what was asked for.
        address: what its host resolved to; empty before that is known.
    """
    for rule in rules:
        if rule.model not in ("*", model) or rule.protocol not in ("any", target.protocol):
            continue
        if rule.ports and not any(low <= target.port <= high for low, high in rule.ports):
            continue
        if _is_match(rule, target.host, address):
            return Verdict(allowed=rule.action == "allow", rule=rule)
    return Verdict(allowed=False)


def has_literal(rules: Sequence[EgressRule], model: str, target: Target, address: str) -> bool:
    """Whether a rule that names this very address opens it, for addresses of a special class."""
    asked = Target(host=address, port=target.port, protocol=target.protocol)
    named = [rule for rule in rules if rule.action == "deny" or rule.host == address]
    return decide(named, model, asked).allowed


def outlets_for(rules: Sequence[EgressRule], model: str) -> Outlets | None:
    """The ways out of a model's sandboxes; ``None`` if nothing could ever be allowed."""
    mine = [rule for rule in rules if rule.action == "allow" and rule.model in ("*", model)]
    if not mine:
        return None
    wanted: dict[str, set[int]] = {}
    count = 0
    for rule in mine:
        for port in _names(rule):
            target = Target(host=rule.host, port=port, protocol="tcp")
            ports = wanted.setdefault(rule.host, set())
            if port not in ports and count < OUTLETS_MAX and decide(rules, model, target).allowed:
                ports.add(port)
                count += 1
    hosts = sorted(host for host, ports in wanted.items() if ports)
    names = tuple(
        Outlet(
            host=host,
            address=f"127.66.{index // 250}.{index % 250 + 1}",
            ports=tuple(sorted(wanted[host])),
        )
        for index, host in enumerate(hosts)
    )
    return Outlets(model=model, proxy=any(rule.protocol != "tcp" for rule in mine), names=names)


def is_host_of(pattern: str, host: str) -> bool:
    """Whether a pattern of ``pattern_from_text`` is of a host of ``host_from_text``."""
    if pattern in ("*", host):
        return True
    if pattern.startswith("*."):
        return host.endswith(pattern[1:])
    address = literal(host)
    if address is None or ("/" not in pattern and literal(pattern) is None):
        return False
    network = ipaddress.ip_network(pattern)
    return address.version == network.version and address in network


def _names(rule: EgressRule) -> tuple[int, ...]:
    """The ports of a rule that gives a name inside the sandbox; none otherwise."""
    if rule.protocol not in ("any", "tcp") or not rule.ports or rule.host == "*":
        return ()
    if rule.host.startswith("*.") or "/" in rule.host or literal(rule.host) is not None:
        return ()
    if sum(high - low + 1 for low, high in rule.ports) > PORTS_SHOWN_MAX:
        return ()
    return tuple(port for low, high in rule.ports for port in range(low, high + 1))


def _is_match(rule: EgressRule, host: str, address: str) -> bool:
    if is_host_of(rule.host, host):
        return True
    is_named = literal(host) is None
    return is_named and rule.action == "deny" and bool(address) and is_host_of(rule.host, address)


def _wrong(pointer: str, detail: str) -> InputInvalid:
    return InputInvalid(
        f"This egress rule cannot be used: {detail}.",
        hint="appliance egress allow --help",
        fields=(FieldError(pointer=pointer, detail=detail),),
    )
