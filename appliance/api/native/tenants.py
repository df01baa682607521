"""Who there is: the caller itself, tenants and API keys.

Owns: the operations on tenants and keys.
Never: stores a secret; it is in one reply and nowhere else.
Read next: ``auth.api_key`` (what a key is), ``store.registry`` (where it is recorded).
"""

from __future__ import annotations

import asyncio
from typing import Any

from appliance import wire
from appliance.api import shapes
from appliance.api.dispatch import Context
from appliance.api.operation import Operation
from appliance.auth import api_key
from appliance.errors import Forbidden, InputInvalid, Malformed, NameTaken
from appliance.policy import is_within, require_scopes
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
    if not is_within(context.principal.scopes, scopes):
        raise Forbidden("A narrowed key cannot issue a key with more rights than its own.")
    role: Role = body.role
    store = context.services.store
    key, secret = api_key.issue(
        store.secret("api-key-pepper"),
        tenant_id=tenant_id,
        name=require_name(body.name, "key"),
        role=role,
        created_by=context.principal.id,
        expires_in_days=body.expires_in_days,
        scopes=scopes,
    )
    await store.registry.create_key(key=key, actor=context.principal.id)
    base = f"/api/v1/tenants/{tenant}/keys" if tenant else "/api/v1/keys"
    return json_reply(
        shapes.issued_from_key(key, tenant, secret),
        status=201,
        headers=(("location", f"{base}/{key.id}"),),
    )


async def _revoke(context: Context, tenant_id: str, tenant: str) -> Reply:
    key = context.snapshot.key(context.request.params["key_id"])
    if key is None or key.tenant_id != tenant_id:
        raise wire.not_found()
    if not key.revoked_ns:
        key = await context.services.store.registry.revoke_key(
            key_id=key.id, actor=context.principal.id
        )
    return json_reply(shapes.key_doc_from_key(key, tenant))


def _newest_first(keys: Any) -> list[ApiKey]:
    return sorted(keys, key=lambda key: (-key.created_ns, key.id))


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
        reply=shapes.KeyDoc,
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
        reply=shapes.KeyDoc,
    ),
)
