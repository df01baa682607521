"""Secrets of a model: set, list and remove them; their values are never shown.

Owns: the operations on secrets, and that sandboxes with an old value are replaced.
Never: answers with a value, or puts one into a log, an event or a problem.
Read next: ``store.secrets`` (how values are kept), ``provision`` (how they reach a sandbox).
"""

from __future__ import annotations

import base64
import binascii

from appliance import wire
from appliance.api import shapes
from appliance.api.dispatch import Context
from appliance.api.native.models import model_of
from appliance.api.operation import Operation
from appliance.errors import FieldError, InputInvalid, Malformed, QuotaExceeded
from appliance.records import Model, require_name
from appliance.store.secrets import VALUE_BYTES_MAX
from appliance.wire import Reply, json_reply


async def list_secrets(context: Context) -> Reply:
    """The names of a model's secrets, when and by whom each was set; never their values."""
    model = model_of(context)
    snapshot = context.snapshot
    versions = snapshot.versions(model.id)
    found = snapshot.secrets(model.id)
    needed = {n for v in versions if not v.retired_ns for n in v.manifest.secrets}
    return json_reply(
        shapes.SecretList(
            items=[
                shapes.secret_doc_from_secret(s, context.tenant.name, model.name, versions)
                for s in found
            ],
            missing=sorted(needed - {s.name for s in found}),
        )
    )


async def set_secret(context: Context) -> Reply:
    """Set or replace a secret. Versions whose manifest names it get it with their next start.

    A model of this name is made if there is none: its first version may need the secret to load.
    """
    name = require_name(context.request.params["secret"], "secret")
    value = _bytes_of(await context.request.json(shapes.SecretValue))
    secret = await context.services.store.registry.secrets.put(
        tenant_id=context.tenant.id,
        model_name=require_name(context.request.params["model"], "model"),
        name=name,
        value=value,
        actor=context.principal.id,
    )
    model = model_of(context)
    await _replace_sandboxes(context, model, name)
    versions = context.snapshot.versions(model.id)
    return json_reply(
        shapes.secret_doc_from_secret(secret, context.tenant.name, model.name, versions)
    )


async def remove_secret(context: Context) -> Reply:
    """Remove a secret; its value cannot be read any more, not even from the ledger.

    Versions that need it answer 409 until it is set again.
    """
    model = model_of(context)
    name = context.request.params["secret"]
    if context.snapshot.secret(model.id, name) is None:
        raise wire.not_found()
    await context.services.store.registry.secrets.remove(
        model_id=model.id, name=name, actor=context.principal.id
    )
    await _replace_sandboxes(context, model, name)
    return Reply(status=204)


async def _replace_sandboxes(context: Context, model: Model, name: str) -> None:
    """End what runs with the old value: idle sandboxes now, busy ones after their call."""
    if context.node.sandbox_problem() is not None:
        return
    pool = context.services.pool()
    for version in context.snapshot.versions(model.id):
        if name in version.manifest.secrets:
            await pool.evict(f"{model.id}/{version.number}")


def _bytes_of(body: shapes.SecretValue) -> bytes:
    if bool(body.value) == bool(body.value_base64):
        raise InputInvalid(
            "Give the secret as 'value' or as 'value_base64', one of them and not empty.",
            fields=(FieldError(pointer="/value", detail="absent, empty or given twice"),),
        )
    try:
        value = body.value.encode() or base64.b64decode(body.value_base64, validate=True)
    except (binascii.Error, ValueError):
        raise InputInvalid(
            "The value is not what it should be.",
            fields=(FieldError(pointer="/value_base64", detail="not base64"),),
        ) from None
    if len(value) > VALUE_BYTES_MAX:
        raise InputInvalid(f"A secret has at most {VALUE_BYTES_MAX} bytes.")
    return value


_SECRETS = "/api/v1/models/{tenant}/{model}/secrets"

OPERATIONS = (
    Operation(
        method="GET",
        path=_SECRETS,
        permission="secret:read",
        handler=list_secrets,
        summary="List a model's secrets",
        reply=shapes.SecretList,
    ),
    Operation(
        method="PUT",
        path=_SECRETS + "/{secret}",
        permission="secret:set",
        handler=set_secret,
        summary="Set a model's secret",
        body=shapes.SecretValue,
        reply=shapes.SecretDoc,
        problems=(Malformed, InputInvalid, QuotaExceeded),
    ),
    Operation(
        method="DELETE",
        path=_SECRETS + "/{secret}",
        permission="secret:remove",
        handler=remove_secret,
        summary="Remove a model's secret",
        status=204,
    ),
)
