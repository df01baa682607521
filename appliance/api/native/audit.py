"""Reading and checking the audit ledger.

Owns: the operations on entries, proofs and the verification.
Never: changes an entry; nothing can.
Read next: ``store.queries`` (finds entries), ``store.verify`` (checks proofs, stands alone).

An owner sees its tenant's entries, an operator the ones it caused itself, appliance-wide admins
and auditors all of them. An entry one may not see answers like one that does not exist.
"""

from __future__ import annotations

import re
from difflib import get_close_matches

from appliance import clock, wire
from appliance.api import shapes
from appliance.api.dispatch import Context
from appliance.api.operation import Operation, Query
from appliance.errors import InputInvalid, Malformed, StoreCorrupt
from appliance.events import event_classes
from appliance.records import Entry
from appliance.store import Head
from appliance.wire import Reply, json_reply

_LIMIT_MAX = 1000
_WAIT_S = 2.0


async def list_entries(context: Context) -> Reply:
    """Audit entries, newest first; with ``after`` oldest first from there, to follow the ledger."""
    request = context.request
    big = 10**18
    after = request.int_query("after", default=-1, low=0, high=big)
    before = request.int_query("before", default=-1, low=0, high=big)
    tenant_id = _tenant_filter(context)
    queries = context.services.store.queries
    head = context.services.store.ledger.head
    await queries.wait(head.size, _WAIT_S)
    own = context.principal.id if context.principal.role == "operator" else None
    entries = await queries.audit(
        tenant_id=tenant_id,
        kind=_known_kind(request.query.get("kind")),
        actor=own or request.query.get("actor"),
        after_seq=after if after >= 0 else None,
        before_seq=before if before >= 0 else None,
        limit=request.int_query("limit", default=100, low=1, high=_LIMIT_MAX),
    )
    return json_reply(
        shapes.AuditPage(entries=[_entry_doc(context, e) for e in entries], head=_head_doc(head))
    )


def _known_kind(kind: str | None) -> str | None:
    """The kind, or family of kinds, that is asked for.

    Raises:
        InputInvalid: there is none; the nearest are named.
    """
    kinds = event_classes()
    if kind is None or kind in kinds or kind.partition(".")[2] == "*":
        return kind
    near = get_close_matches(kind[:100], kinds, n=3, cutoff=0.5)
    raise InputInvalid(
        f"There is no kind of audit entry '{kind[:100]}'.",
        hint=f"Did you mean {' or '.join(near)}?" if near else "for example version.registered",
    )


async def show_entry(context: Context) -> Reply:
    """One audit entry."""
    return json_reply(_entry_doc(context, await _entry(context)))


async def prove_entry(context: Context) -> Reply:
    """A self-contained proof that an entry is in the ledger, checkable with the public key only."""
    entry = await _entry(context)
    text = await context.services.store.prove(entry.seq)
    return Reply(body=text.encode(), content_type="text/plain; charset=utf-8")


async def verify(context: Context) -> Reply:
    """Check every byte of the ledger from disk; the check itself is recorded."""
    started_ns = clock.monotonic_ns()
    report = await context.node.verify_audit(context.principal.id)
    return json_reply(
        shapes.VerifyDoc(
            ok=report.ok,
            entries=report.entries,
            first_bad_seq=report.first_bad_seq,
            detail=report.detail,
            head=_head_doc(context.services.store.ledger.head),
            elapsed_ms=(clock.monotonic_ns() - started_ns) // 1_000_000,
        )
    )


async def public_key(context: Context) -> Reply:
    """The public key that signs the ledger's heads; keep it somewhere else to check proofs."""
    return json_reply(shapes.KeyPublic(public_key=context.services.store.public_key))


def _tenant_filter(context: Context) -> str | None:
    """The tenant id to filter by; a tenant's key is always held to its own."""
    name = context.request.query.get("tenant")
    own = context.principal.tenant_id
    if name is None:
        return own or None
    tenant = context.snapshot.tenant(name)
    if tenant is None or own not in ("", tenant.id):
        raise wire.not_found()
    return tenant.id


async def _entry(context: Context) -> Entry:
    text = context.request.params["seq"]
    if not re.fullmatch(r"0|[1-9][0-9]{0,17}", text):
        raise wire.not_found()
    store = context.services.store
    seq = int(text)
    await store.queries.wait(min(seq, store.ledger.head.size), _WAIT_S)
    entry = await store.queries.entry(seq)
    principal = context.principal
    if entry is None or (principal.tenant_id and entry.tenant_id != principal.tenant_id):
        raise wire.not_found()
    if principal.role == "operator" and entry.actor != principal.id:
        raise wire.not_found()
    return entry


def _entry_doc(context: Context, entry: Entry) -> shapes.EntryDoc:
    tenant = context.snapshot.tenant_by_id(entry.tenant_id) if entry.tenant_id else None
    return shapes.entry_doc_from_entry(entry, tenant.name if tenant else entry.tenant_id)


def _head_doc(head: Head) -> shapes.HeadDoc:
    return shapes.HeadDoc(size=head.size, root=head.root_hex, time=clock.text_from_ns(head.time_ns))


_SEQ = {"type": "integer", "minimum": 0}
_TEXT = {"type": "string"}

OPERATIONS = (
    Operation(
        method="GET",
        path="/api/v1/audit",
        permission="audit:read",
        place="own",
        handler=list_entries,
        summary="Read the audit ledger",
        reply=shapes.AuditPage,
        query=(
            Query(name="after", doc="Only entries after this sequence number.", schema=_SEQ),
            Query(name="before", doc="Only entries before this sequence number.", schema=_SEQ),
            Query(
                name="limit",
                doc="Most entries to return.",
                schema={"type": "integer", "minimum": 1, "maximum": _LIMIT_MAX, "default": 100},
            ),
            Query(name="kind", doc="Only this kind of event.", schema=_TEXT),
            Query(name="actor", doc="Only what this principal did.", schema=_TEXT),
            Query(name="tenant", doc="Only this tenant's entries.", schema=_TEXT),
        ),
        problems=(Malformed, InputInvalid),
    ),
    Operation(
        method="GET",
        path="/api/v1/audit/key",
        permission="audit:read",
        place="own",
        handler=public_key,
        summary="The ledger's public key",
        reply=shapes.KeyPublic,
    ),
    Operation(
        method="POST",
        path="/api/v1/audit/verify",
        permission="audit:verify",
        place="appliance",
        handler=verify,
        summary="Verify the whole ledger",
        reply=shapes.VerifyDoc,
        problems=(StoreCorrupt,),
    ),
    Operation(
        method="GET",
        path="/api/v1/audit/{seq}",
        permission="audit:read",
        place="own",
        handler=show_entry,
        summary="Show an audit entry",
        reply=shapes.EntryDoc,
    ),
    Operation(
        method="GET",
        path="/api/v1/audit/{seq}/proof",
        permission="audit:read",
        place="own",
        handler=prove_entry,
        summary="Prove that an entry is in the ledger",
        reply=("text/plain",),
    ),
)
