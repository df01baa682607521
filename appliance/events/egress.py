"""Events of ways out: rules, and what was reached or refused under them.

Owns: the record of every connection and of the rules it was judged by.
Never: payloads.
Read next: ``events`` (the list of all), ``store/FORMAT.md`` (their bytes).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from appliance.events.base import Event
from appliance.records import EgressRule


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressRuleAdded(Event):
    """An egress rule was added, before the rule ``before``, or last."""

    KIND: ClassVar[str] = "egress.rule-added"
    SEALED: ClassVar[bool] = True
    rule: EgressRule
    before: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressRuleRemoved(Event):
    """An egress rule was removed."""

    KIND: ClassVar[str] = "egress.rule-removed"
    SEALED: ClassVar[bool] = True
    tenant_id: str
    rule_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressOpened(Event):
    """A model was let out to a destination; durable before the first connection is made."""

    KIND: ClassVar[str] = "egress.opened"
    SEALED: ClassVar[bool] = True
    sandbox_id: str
    model_id: str
    number: int
    rule_id: str
    host: str
    port: int
    protocol: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressPassed(Event):
    """What passed to a destination since it was opened, or since the last such entry.

    ``code`` is ``closed``, ``open`` (more will follow) or ``revoked`` (a rule was changed).
    """

    KIND: ClassVar[str] = "egress.passed"
    SEALED: ClassVar[bool] = True
    sandbox_id: str
    model_id: str
    number: int
    rule_id: str
    host: str
    port: int
    protocol: str
    connections: int
    failed: int
    sent_bytes: int
    received_bytes: int
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressDenied(Event):
    """A model was refused a destination, ``count`` times; without ``rule_id`` no rule allowed it.

    ``reason`` is ``rule``, ``default`` or what is wrong with the host or the address.
    """

    KIND: ClassVar[str] = "egress.denied"
    SEALED: ClassVar[bool] = True
    sandbox_id: str
    model_id: str
    number: int
    rule_id: str
    host: str
    port: int
    protocol: str
    reason: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressSuppressed(Event):
    """Refusals of a sandbox that were only counted: it asked for too many destinations."""

    KIND: ClassVar[str] = "egress.suppressed"
    sandbox_id: str
    model_id: str
    number: int
    count: int
