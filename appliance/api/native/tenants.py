"""Who there is: the caller itself, tenants and API keys.

Owns: the operations on tenants and keys.
Never: stores a secret; it is in one reply and nowhere else.
Read next: ``auth.api_key`` (what a key is), ``store.registry`` (where it is recorded).
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from appliance import wire
from appliance.api import shapes
from appliance.api.dispatch import Context
from appliance.api.operation import Operation, Query
from appliance.auth import api_key
from appliance.errors import Forbidden, InputInvalid, IsolationUnavailable, Malformed, NameTaken
from appliance.policy import Decision, is_within, require_scopes, right_of_scope
from appliance.records import ApiKey, Role, require_name
from appliance.wire import Reply, json_reply


async def whoami(context: Context) -> Reply:
    """The principal this key or socket stands for, with its role, tenant and scopes."""
    tenant = context.snapshot.tenant_by_id(context.principal.tenant_id)
    return json_reply(
        shapes.whoami_from_principal(context.principal, tenant.name if tenant else "")
    )


async def list_tenants(context: Context) -> Reply:
    """Every tenant for appliance-wide principals, their own tenant for everybody else."""
    own = context.principal.tenant_id
    tenants = [t for t in context.snapshot.tenants() if own in ("", t.id)]
    items = [shapes.tenant_doc_from_tenant(t) for t in sorted(tenants, key=lambda t: t.name)]
    return json_reply(shapes.TenantList(items=items))


async def create_tenant(context: Context) -> Reply:
    """A tenant is the unit of isolation: its keys, models and data are its own."""
    body = await context.request.json(shapes.TenantNew)
    tenant = await context.services.store.registry.create_tenant(
        name=require_name(body.name, "tenant"), actor=context.principal.id
    )
    where = (("location", f"/api/v1/tenants/{tenant.name}"),)
    return json_reply(shapes.tenant_doc_from_tenant(tenant), status=201, headers=where)


async def show_tenant(context: Context) -> Reply:
    """One tenant."""
    return json_reply(shapes.tenant_doc_from_tenant(context.tenant))


async def remove_tenant(context: Context) -> Reply:
    """Remove a tenant, destroy its encryption key and end its sandboxes, calls in them included.

    Everything it owned becomes unreadable.
    """
    await context.services.store.registry.remove_tenant(
        tenant_id=context.tenant.id, actor=context.principal.id
    )
    if context.node.sandbox_problem() is None:
        pool = context.services.pool()
        mine = [box.id for box in pool.list() if box.tenant_id == context.tenant.id]
        await asyncio.gather(*(pool.stop(box_id) for box_id in mine))
    return Reply(status=204)


async def set_isolation(context: Context) -> Reply:
    """Say how strongly a tenant's sandboxes are kept apart; sandboxes that run weaker are ended.

    A version may ask for more in its manifest, never for less.
    """
    body = await context.request.json(shapes.IsolationSet)
    if body.isolation != "standard" and context.node.sandbox_problem() is None:
        context.services.executor().require_isolation(body.isolation)
    tenant = await context.services.store.registry.set_isolation(
        tenant_id=context.tenant.id, isolation=body.isolation, actor=context.principal.id
    )
    if context.node.sandbox_problem() is None:
        pool = context.services.pool()
        mine = {box.version_key for box in pool.list() if box.tenant_id == tenant.id}
        await asyncio.gather(*(pool.evict(key) for key in mine))
    return json_reply(shapes.tenant_doc_from_tenant(tenant))


async def list_keys(context: Context) -> Reply:
    """A tenant's API keys, revoked and expired ones included; never their secrets."""
    keys = context.snapshot.keys(context.tenant.id)
    items = [shapes.key_doc_from_key(key, context.tenant.name) for key in _newest_first(keys)]
    return json_reply(shapes.KeyList(items=items))


async def create_key(context: Context) -> Reply:
    """Issue an API key for a tenant. The secret is in this answer and nowhere else."""
    body = await context.request.json(shapes.KeyNew)
    return await _issue(context, body, tenant_id=context.tenant.id, tenant=context.tenant.name)


async def revoke_key(context: Context) -> Reply:
    """Revoke a tenant's API key; it is refused from the next request on."""
    return await _revoke(context, context.tenant.id, context.tenant.name)


async def list_appliance_keys(context: Context) -> Reply:
    """Appliance-wide API keys (admin, operator, auditor); never their secrets."""
    keys = [key for key in context.snapshot.keys(None) if not key.tenant_id]
    items = [shapes.key_doc_from_key(key, "") for key in _newest_first(keys)]
    return json_reply(shapes.KeyList(items=items))


async def create_appliance_key(context: Context) -> Reply:
    """Issue an appliance-wide API key. The secret is in this answer and nowhere else."""
    body = await context.request.json(shapes.ApplianceKeyNew)
    return await _issue(context, body, tenant_id="", tenant="")


async def revoke_appliance_key(context: Context) -> Reply:
    """Revoke an appliance-wide API key; it is refused from the next request on."""
    return await _revoke(context, "", "")


async def _issue(
    context: Context,
    body: shapes.KeyNew | shapes.ApplianceKeyNew,
    *,
    tenant_id: str,
    tenant: str,
) -> Reply:
    scopes = require_scopes(tuple(body.scopes))
    role: Role = body.role
    store = context.services.store
    _require_may_issue(context, scopes, tenant_id)
    key, secret = api_key.issue(
        store.secret("api-key-pepper"),
        tenant_id=tenant_id,
        name=require_name(body.name, "key"),
        role=role,
        created_by=context.principal.id,
        expires_in_days=body.expires_in_days,
        scopes=scopes,
    )
    key = replace(key, expires_ns=min(key.expires_ns, _end_of_narrowed(context)))
    await store.registry.create_key(key=key, actor=context.principal.id)
    base = f"/api/v1/tenants/{tenant}/keys" if tenant else "/api/v1/keys"
    return json_reply(
        shapes.issued_from_key(key, tenant, secret),
        status=201,
        headers=(("location", f"{base}/{key.id}"),),
    )


def _require_may_issue(context: Context, scopes: tuple[str, ...], tenant_id: str) -> None:
    """Return if the caller may issue a key with these scopes.

    An appliance-wide key gives a tenant its first key and no other: with a second one it could read
    what only the tenant may. A narrowed key hands on nothing it may not do itself.

    Raises:
        Forbidden: it may not.
    """
    principal = context.principal
    if principal.kind != "api-key":
        return
    if tenant_id and not principal.tenant_id and context.snapshot.keys(tenant_id):
        raise Forbidden(
            "An appliance-wide key issues a tenant's first key only.",
            hint="Use the tenant's owner key, or 'appliance key create' on the appliance itself.",
        )
    if not principal.scopes:
        return
    if not is_within(principal.scopes, scopes) or not all(
        context.policy.decide(principal, right, tenant_id=tenant_id, model=model) is Decision.ALLOW
        for right, model in map(right_of_scope, scopes)
    ):
        raise Forbidden("A narrowed key cannot issue a key with more rights than its own.")


def _end_of_narrowed(context: Context) -> int:
    """When the caller's key ends, if it is a narrowed one: what it issues ends with it."""
    own = context.snapshot.key(context.principal.id) if context.principal.scopes else None
    return own.expires_ns if own else 1 << 63


async def _revoke(context: Context, tenant_id: str, tenant: str) -> Reply:
    key = context.snapshot.key(context.request.params["key_id"])
    if key is None or key.tenant_id != tenant_id:
        raise wire.not_found()
    keep = context.request.query.get("issued", "revoke")
    if keep not in ("revoke", "keep"):
        raise Malformed("'issued' is 'revoke' or 'keep'.")
    revoked = await context.services.store.registry.revoke_key(
        key_id=key.id, actor=context.principal.id, with_issued=keep == "revoke"
    )
    return json_reply(shapes.revoked_from_keys(revoked, tenant))


def _newest_first(keys: Any) -> list[ApiKey]:
    return sorted(keys, key=lambda key: (-key.created_ns, key.id))


_ISSUED = Query(
    name="issued",
    doc="What becomes of the keys that were issued with this one.",
    schema={"type": "string", "enum": ["revoke", "keep"], "default": "revoke"},
)
_KEYS = "/api/v1/tenants/{tenant}/keys"

OPERATIONS = (
    Operation(
        method="GET",
        path="/api/v1/whoami",
        permission="self:read",
        place="own",
        handler=whoami,
        summary="Who am I",
        reply=shapes.WhoAmI,
    ),
    Operation(
        method="GET",
        path="/api/v1/tenants",
        permission="tenant:read",
        place="own",
        handler=list_tenants,
        summary="List tenants",
        reply=shapes.TenantList,
    ),
    Operation(
        method="POST",
        path="/api/v1/tenants",
        permission="tenant:create",
        place="appliance",
        handler=create_tenant,
        summary="Create a tenant",
        body=shapes.TenantNew,
        reply=shapes.TenantDoc,
        status=201,
        problems=(Malformed, InputInvalid, NameTaken),
    ),
    Operation(
        method="GET",
        path="/api/v1/tenants/{tenant}",
        permission="tenant:read",
        handler=show_tenant,
        summary="Show a tenant",
        reply=shapes.TenantDoc,
    ),
    Operation(
        method="DELETE",
        path="/api/v1/tenants/{tenant}",
        permission="tenant:remove",
        handler=remove_tenant,
        summary="Remove a tenant",
        status=204,
    ),
    Operation(
        method="PUT",
        path="/api/v1/tenants/{tenant}/isolation",
        permission="tenant:isolate",
        handler=set_isolation,
        summary="Set a tenant's isolation",
        body=shapes.IsolationSet,
        reply=shapes.TenantDoc,
        problems=(Malformed, InputInvalid, IsolationUnavailable),
    ),
    Operation(
        method="GET",
        path=_KEYS,
        permission="key:read",
        handler=list_keys,
        summary="List a tenant's API keys",
        reply=shapes.KeyList,
    ),
    Operation(
        method="POST",
        path=_KEYS,
        permission="key:create",
        handler=create_key,
        summary="Issue an API key for a tenant",
        body=shapes.KeyNew,
        reply=shapes.KeyIssued,
        status=201,
        problems=(Malformed, InputInvalid, NameTaken),
    ),
    Operation(
        method="DELETE",
        path=_KEYS + "/{key_id}",
        permission="key:revoke",
        handler=revoke_key,
        summary="Revoke a tenant's API key",
        reply=shapes.KeyRevoked,
        query=(_ISSUED,),
        problems=(Malformed,),
    ),
    Operation(
        method="GET",
        path="/api/v1/keys",
        permission="key:read",
        place="appliance",
        handler=list_appliance_keys,
        summary="List appliance-wide API keys",
        reply=shapes.KeyList,
    ),
    Operation(
        method="POST",
        path="/api/v1/keys",
        permission="key:create",
        place="appliance",
        handler=create_appliance_key,
        summary="Issue an appliance-wide API key",
        body=shapes.ApplianceKeyNew,
        reply=shapes.KeyIssued,
        status=201,
        problems=(Malformed, InputInvalid, NameTaken),
    ),
    Operation(
        method="DELETE",
        path="/api/v1/keys/{key_id}",
        permission="key:revoke",
        place="appliance",
        handler=revoke_appliance_key,
        summary="Revoke an appliance-wide API key",
        reply=shapes.KeyRevoked,
        query=(_ISSUED,),
        problems=(Malformed,),
    ),
)
