"""Where a tenant's models may connect to: reading, changing and explaining egress rules.

Owns: the operations on egress rules and their JSON documents.
Never: decides about a connection (``egress.guard``).
Read next: ``egress.rules`` (what a rule means), ``egress.guard`` (what a change does).
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from appliance import clock
from appliance.api.dispatch import Context
from appliance.api.operation import Operation, Query
from appliance.api.shapes import Body, Document, Time
from appliance.egress import closed, rules
from appliance.errors import (
    FieldError,
    InputInvalid,
    Malformed,
    QuotaExceeded,
)
from appliance.records import EgressProtocol, EgressRule, require_name
from appliance.store import Snapshot
from appliance.wire import Reply, json_reply

_REASON_MAX = 1000
_PROTOCOLS = ("connect", "http", "tcp")


class EgressRuleNew(Body):
    """An egress rule to add, at the end or in front of another."""

    action: Literal["allow", "deny"]
    host: Annotated[
        str,
        Meta(max_length=300, description="A name, '*.name', an address, a network, or '*'."),
    ]
    reason: Annotated[str, Meta(min_length=1, max_length=_REASON_MAX)]
    ports: Annotated[
        list[Annotated[str, Meta(max_length=11)]],
        Meta(max_length=64, description="Ports and ranges such as '8000-8100'; none: every port."),
    ] = field(default_factory=list)
    protocol: EgressProtocol = "any"
    model: Annotated[str, Meta(max_length=63, description="A model's name, or '*'.")] = "*"
    before: Annotated[str, Meta(max_length=40, description="Id of the rule it goes before.")] = ""


class EgressRuleDoc(Document):
    """An egress rule; the first that matches decides, and without one the answer is no."""

    id: str
    tenant: str
    model: str
    action: str
    host: str
    ports: list[str]
    protocol: str
    reason: str
    note: Annotated[
        str,
        Meta(
            description="For which versions it is not in force: those of isolation 'gvisor' have "
            "no way out. Empty if it is for all."
        ),
    ]
    created_at: Time
    created_by: str


class EgressRuleList(Document):
    """A tenant's egress rules in the order they are tried."""

    items: list[EgressRuleDoc]


class EgressExplained(Document):
    """What would happen to a connection now; ``reason`` is ``ok`` where it would be let out.

    It is ``isolation`` where sandboxes have a kernel of their own, and so no way out at all.
    """

    allowed: bool
    reason: str
    rule: EgressRuleDoc | None
    host: str
    addresses: Annotated[list[str], Meta(description="What the name leads to now.")]
    text: str


async def list_rules(context: Context) -> Reply:
    """A tenant's egress rules in the order they are tried; deny is the default."""
    known = context.snapshot.egress_rules(context.tenant.id)
    items = [doc_from_rule(rule, context.tenant.name, context.snapshot) for rule in known]
    return json_reply(EgressRuleList(items=items))


async def add_rule(context: Context) -> Reply:
    """Allow or deny models a destination. Open connections follow at once.

    Sandboxes whose ways out change are replaced: idle ones now, busy ones after their call.
    """
    body = await context.request.json(EgressRuleNew)
    if body.model != "*":
        require_name(body.model, "model")
    rule = EgressRule(
        id=clock.new_id("eg"),
        tenant_id=context.tenant.id,
        model=body.model,
        action=body.action,
        host=rules.pattern_from_text(body.host),
        ports=rules.ports_from_texts(body.ports),
        protocol=body.protocol,
        reason=body.reason,
        created_ns=clock.now_ns(),
        created_by=context.principal.id,
    )
    await context.services.egress.add_rule(rule, before=body.before, actor=context.principal.id)
    name = context.tenant.name
    where = (("location", f"/api/v1/tenants/{name}/egress"),)
    document = doc_from_rule(rule, name, context.services.store.registry.snapshot)
    return json_reply(document, status=201, headers=where)


async def remove_rule(context: Context) -> Reply:
    """Remove an egress rule; connections that no rule allows any more are closed."""
    reason = context.request.query.get("reason", "")
    if not 1 <= len(reason) <= _REASON_MAX:
        raise InputInvalid(
            "Say why, in the parameter 'reason' (at most 1000 characters).",
            fields=(FieldError(pointer="?reason", detail="missing or too long"),),
        )
    await context.services.egress.remove_rule(
        tenant_id=context.tenant.id,
        rule_id=context.request.params["rule_id"],
        reason=reason,
        actor=context.principal.id,
    )
    return Reply(status=204)


async def explain(context: Context) -> Reply:
    """Whether a connection would be let out now, and by which rule; nothing is connected to."""
    query = context.request.query
    protocol = query.get("protocol", "connect")
    if protocol not in _PROTOCOLS:
        raise InputInvalid(
            f"The protocol is one of {', '.join(_PROTOCOLS)}.",
            fields=(FieldError(pointer="?protocol", detail="no such protocol"),),
        )
    port = context.request.int_query("port", default=443, low=1, high=65535)
    model, host = query.get("model", "*"), query.get("host", "")
    found = await context.services.egress.explain(context.tenant.id, model, host, port, protocol)
    known = context.snapshot.egress_rules(context.tenant.id)
    rule = next((one for one in known if one.id == found.rule_id), None)
    return json_reply(
        EgressExplained(
            allowed=found.allowed,
            reason=found.reason,
            rule=doc_from_rule(rule, context.tenant.name, context.snapshot) if rule else None,
            host=found.host,
            addresses=list(found.addresses),
            text=found.text,
        )
    )


def doc_from_rule(rule: EgressRule, tenant: str, snapshot: Snapshot) -> EgressRuleDoc:
    """A rule as callers see it; ``tenant`` is its tenant's name."""
    return EgressRuleDoc(
        id=rule.id,
        tenant=tenant,
        model=rule.model,
        action=rule.action,
        host=rule.host,
        ports=rules.texts_from_ports(rule.ports),
        protocol=rule.protocol,
        reason=rule.reason,
        note=closed.note_of(snapshot, rule),
        created_at=clock.text_from_ns(rule.created_ns),
        created_by=rule.created_by,
    )


_EGRESS = "/api/v1/tenants/{tenant}/egress"
_TEXT = {"type": "string"}

OPERATIONS = (
    Operation(
        method="GET",
        path=_EGRESS,
        permission="egress:read",
        handler=list_rules,
        summary="List a tenant's egress rules",
        reply=EgressRuleList,
    ),
    Operation(
        method="POST",
        path=_EGRESS,
        permission="egress:set",
        handler=add_rule,
        summary="Add an egress rule",
        body=EgressRuleNew,
        reply=EgressRuleDoc,
        status=201,
        problems=(Malformed, InputInvalid, QuotaExceeded),
    ),
    Operation(
        method="GET",
        path=_EGRESS + "/explain",
        permission="egress:read",
        handler=explain,
        summary="Explain whether a connection would be let out",
        reply=EgressExplained,
        query=(
            Query(name="host", doc="Name or address to connect to.", schema=_TEXT),
            Query(name="port", doc="Port; 443 if not given.", schema={"type": "integer"}),
            Query(name="model", doc="The model's name.", schema=_TEXT),
            Query(
                name="protocol",
                doc="How it connects.",
                schema={"type": "string", "enum": list(_PROTOCOLS)},
            ),
        ),
        problems=(InputInvalid,),
    ),
    Operation(
        method="DELETE",
        path=_EGRESS + "/{rule_id}",
        permission="egress:set",
        handler=remove_rule,
        summary="Remove an egress rule",
        status=204,
        query=(Query(name="reason", doc="Why; kept in the audit log.", schema=_TEXT),),
        problems=(InputInvalid,),
    ),
)
