"""What there is to call: models, their versions and aliases.

Owns: the operations on models, versions and aliases, except registering (``uploads``).
Never: reads an artifact; all of this is metadata.
Read next: ``uploads``, ``calls``, ``store.registry``.
"""

from __future__ import annotations

import re

from appliance import wire
from appliance.api import shapes
from appliance.api.dispatch import Context
from appliance.api.native import promised
from appliance.api.operation import Operation
from appliance.errors import Gone, InputInvalid, Malformed, RevisionStale, VersionRouted
from appliance.lineage import MaySee
from appliance.policy import Decision, right_of_scope
from appliance.records import LIVE, Alias, Model, Version, require_name
from appliance.tracked import Promise
from appliance.wire import Reply, json_reply


def model_of(context: Context) -> Model:
    """The model named in the path, of the tenant named in the path.

    Raises:
        NotFound: there is none.
    """
    model = context.snapshot.model(context.tenant.id, context.request.params["model"])
    if model is None or model.removed_ns:
        raise wire.not_found()
    return model


def version_of(context: Context, model: Model) -> Version:
    """The version named in the path.

    Raises:
        NotFound: the model has no such version.
    """
    text = context.request.params["version"]
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise wire.not_found()
    version = context.snapshot.version(model.id, int(text))
    if version is None:
        raise wire.not_found()
    return version


def alias_of(context: Context, model: Model, name: str) -> Alias:
    """The alias of this name.

    Raises:
        NotFound: the model has no such alias.
    """
    alias = context.snapshot.alias(model.id, name)
    if alias is None:
        raise wire.not_found()
    return alias


def sight_of(context: Context) -> MaySee:
    """Which models of the tenant in the path the caller may see, by name; may be asked anywhere.

    Who may register a model may see it.
    """

    def is_allowed(name: str) -> bool:
        return any(
            context.policy.decide(
                context.principal, permission, tenant_id=context.tenant.id, model=name
            )
            is Decision.ALLOW
            for permission in ("model:read", "model:register")
        )

    if is_allowed(""):
        return lambda _name: True
    named = {right_of_scope(scope)[1] for scope in context.principal.scopes}
    return frozenset(name for name in named if name and is_allowed(name)).__contains__


def version_doc(context: Context, version: Version, model_name: str) -> shapes.VersionDoc:
    """A version as this caller sees it: others it refers to by name only where they may be."""
    snapshot, may_see = context.snapshot, sight_of(context)

    def name_of(model_id: str) -> str:
        model = snapshot.model_by_id(model_id)
        return model.name if model and may_see(model.name) else ""

    return shapes.version_doc_from_version(
        version, context.tenant.name, model_name, context.front.url, name_of
    )


def _model_doc(context: Context, model: Model, tenant: str) -> shapes.ModelDoc:
    live = context.snapshot.alias(model.id, LIVE)
    return shapes.model_doc_from_model(
        model,
        tenant,
        versions=context.snapshot.versions(model.id),
        live=live.number if live else None,
        url=context.front.url,
        sampling=context.snapshot.sampling(model.id),
    )


async def list_models(context: Context) -> Reply:
    """Every model of every tenant for appliance-wide principals, of the own tenant otherwise."""
    own = context.principal.tenant_id or None
    names = {tenant.id: tenant.name for tenant in context.snapshot.tenants()}
    found = [
        _model_doc(context, model, names[model.tenant_id])
        for model in context.snapshot.models(own)
        if model.tenant_id in names
    ]
    return json_reply(shapes.ModelList(items=sorted(found, key=lambda doc: (doc.tenant, doc.name))))


async def list_tenant_models(context: Context) -> Reply:
    """The models of one tenant."""
    models = context.snapshot.models(context.tenant.id)
    found = [_model_doc(context, model, context.tenant.name) for model in models]
    return json_reply(shapes.ModelList(items=sorted(found, key=lambda doc: doc.name)))


async def show_model(context: Context) -> Reply:
    """One model: how many versions it has, which is newest and which is live."""
    return json_reply(_model_doc(context, model_of(context), context.tenant.name))


async def remove_model(context: Context) -> Reply:
    """Remove a model with all its versions and aliases from service."""
    model = model_of(context)
    numbers = [version.number for version in context.snapshot.versions(model.id)]
    await context.services.store.registry.remove_model(
        model_id=model.id, actor=context.principal.id
    )
    for number in numbers:
        await evict(context, model, number)
    return Reply(status=204)


async def list_versions(context: Context) -> Reply:
    """Every version of a model, retired ones included, oldest first."""
    model = model_of(context)
    items = [
        version_doc(context, version, model.name)
        for version in sorted(context.snapshot.versions(model.id), key=lambda v: v.number)
    ]
    tracking = context.snapshot.tracking(model.tenant_id)
    others = [
        promised.doc_from_promise(one, context.tenant.name, model.name)
        for one in tracking.unkept_of(model.id)
    ]
    return json_reply(promised.VersionList(items=items, promised=others))


async def show_version(context: Context) -> Reply:
    """One version with its manifest and the digest of each of its files."""
    model = model_of(context)
    if (promise := _unkept(context, model)) is not None:
        raise promised.why_not(promise)
    return _version_reply(context, model)


def _unkept(context: Context, model: Model) -> Promise | None:
    """What the path names, where that is no version yet or could not become one."""
    text = context.request.params["version"]
    found = context.snapshot.tracking(model.tenant_id).unkept_of(model.id)
    return next((one for one in found if str(one.number) == text), None)


async def retire_version(context: Context) -> Reply:
    """Take a version out of service: calls to it answer 410 from now on. It stays on record.

    One that could not be registered is taken off the list instead (204); its number stays given.
    """
    model = model_of(context)
    if (promise := _unkept(context, model)) is not None:
        if promise.state != "failed":
            raise promised.why_not(promise)
        services, actor = context.services, context.principal.id
        await services.intake.dismiss(model, promise.number, actor=actor)
        return Reply(status=204)
    version = version_of(context, model)
    if version.retired_ns:
        raise Gone(f"Version {version.number} is retired already.")
    await context.services.store.registry.retire_version(
        model_id=model.id, number=version.number, actor=context.principal.id
    )
    await evict(context, model, version.number)
    return _version_reply(context, model)


def _version_reply(context: Context, model: Model) -> Reply:
    return json_reply(version_doc(context, version_of(context, model), model.name))


async def evict(context: Context, model: Model, number: int) -> None:
    """End the sandboxes of a version, if sandboxes run at all."""
    if context.node.sandbox_problem() is None:
        await context.services.pool().evict(f"{model.id}/{number}")


async def list_aliases(context: Context) -> Reply:
    """The aliases of a model."""
    model = model_of(context)
    items = [
        shapes.alias_doc_from_alias(alias, context.tenant.name, model.name)
        for alias in sorted(context.snapshot.aliases(model.id), key=lambda alias: alias.name)
    ]
    return json_reply(shapes.AliasList(items=items))


async def show_alias(context: Context) -> Reply:
    """One alias; its ETag is the revision to send back in If-Match."""
    model = model_of(context)
    return _alias_reply(context, model, alias_of(context, model, context.request.params["alias"]))


async def set_alias(context: Context) -> Reply:
    """Create or move an alias. With If-Match it moves only if nobody moved it meanwhile."""
    model = model_of(context)
    body = await context.request.json(shapes.AliasSet)
    name = require_name(context.request.params["alias"], "alias")
    version = context.snapshot.version(model.id, body.version)
    if version is None:
        raise InputInvalid(f"This model has no version {body.version}.")
    if version.retired_ns:
        raise Gone(f"Version {body.version} is retired.")
    alias = await context.services.store.registry.set_alias(
        model_id=model.id,
        name=name,
        number=body.version,
        revision=wire.revision_from_if_match(context.request.header("if-match")),
        reason=body.reason,
        actor=context.principal.id,
    )
    return _alias_reply(context, model, alias)


async def remove_alias(context: Context) -> Reply:
    """Remove an alias; the version it pointed at stays."""
    model = model_of(context)
    alias = alias_of(context, model, context.request.params["alias"])
    revision = wire.revision_from_if_match(context.request.header("if-match"))
    if revision is not None and revision != alias.revision:
        raise RevisionStale(f"The alias is at revision {alias.revision}.")
    await context.services.store.registry.remove_alias(
        model_id=model.id, name=alias.name, actor=context.principal.id
    )
    return Reply(status=204)


def _alias_reply(context: Context, model: Model, alias: Alias) -> Reply:
    document = shapes.alias_doc_from_alias(alias, context.tenant.name, model.name)
    return json_reply(document, headers=(("etag", f'"{alias.revision}"'),))


_MODEL = "/api/v1/models/{tenant}/{model}"
_VERSION = _MODEL + "/versions/{version}"
_ALIAS = _MODEL + "/aliases/{alias}"

OPERATIONS = (
    Operation(
        method="GET",
        path="/api/v1/models",
        permission="model:read",
        place="own",
        handler=list_models,
        summary="List models",
        reply=shapes.ModelList,
    ),
    Operation(
        method="GET",
        path="/api/v1/models/{tenant}",
        permission="model:read",
        handler=list_tenant_models,
        summary="List a tenant's models",
        reply=shapes.ModelList,
    ),
    Operation(
        method="GET",
        path=_MODEL,
        permission="model:read",
        handler=show_model,
        summary="Show a model",
        reply=shapes.ModelDoc,
    ),
    Operation(
        method="DELETE",
        path=_MODEL,
        permission="model:remove",
        handler=remove_model,
        summary="Remove a model",
        status=204,
    ),
    Operation(
        method="GET",
        path=_MODEL + "/versions",
        permission="model:read",
        handler=list_versions,
        summary="List a model's versions",
        reply=promised.VersionList,
    ),
    Operation(
        method="GET",
        path=_VERSION,
        permission="model:read",
        handler=show_version,
        summary="Show a version",
        reply=shapes.VersionDoc,
    ),
    Operation(
        method="DELETE",
        path=_VERSION,
        permission="version:retire",
        handler=retire_version,
        summary="Retire a version",
        reply=shapes.VersionDoc,
        problems=(Gone, VersionRouted),
    ),
    Operation(
        method="GET",
        path=_MODEL + "/aliases",
        permission="model:read",
        handler=list_aliases,
        summary="List a model's aliases",
        reply=shapes.AliasList,
    ),
    Operation(
        method="GET",
        path=_ALIAS,
        permission="model:read",
        handler=show_alias,
        summary="Show an alias",
        reply=shapes.AliasDoc,
    ),
    Operation(
        method="PUT",
        path=_ALIAS,
        permission="alias:set",
        handler=set_alias,
        summary="Create or move an alias",
        body=shapes.AliasSet,
        reply=shapes.AliasDoc,
        problems=(Malformed, InputInvalid, RevisionStale, Gone),
    ),
    Operation(
        method="DELETE",
        path=_ALIAS,
        permission="alias:set",
        handler=remove_alias,
        summary="Remove an alias",
        status=204,
        problems=(RevisionStale,),
    ),
)
