"""MLflow's model registry: registered models are models, model versions are versions.

Owns: the operations on registered models, their versions, aliases, tags and stages.
Never: registers a version by itself (``intake``) or changes one: tags are notes beside it.
Read next: ``views`` (what they look like), ``places`` (sources), ``appliance.intake``.

A version that is deleted here is retired: its number and record stay, calls answer 410. A stage
is the alias of its name, so one version is in it at a time.
"""

from __future__ import annotations

from typing import Any

import msgspec

from appliance.api.dispatch import Context
from appliance.api.mlflow import places, views
from appliance.api.mlflow.filters import PROMPT, conditions, is_met, ordered
from appliance.api.mlflow.forms import (
    Page,
    Pair,
    asked,
    milliseconds,
    needed,
    operation,
    page_from_query,
    paged,
    pairs,
    query,
    read,
)
from appliance.api.mlflow.views import Numbered
from appliance.api.native.models import evict
from appliance.errors import InputInvalid, NotFound
from appliance.records import Model, Version
from appliance.tracked import Promise
from appliance.wire import Reply, json_reply

SETTLE_S = 2.0
"""How long a registration may take for its answer to say READY."""
_REASON = "set by an MLflow client"
_MODEL_FIELDS: dict[str, tuple[str, ...]] = {
    "attribute": ("name", "creation_timestamp", "last_updated_timestamp", "timestamp"),
    "tag": (),
}
_VERSION_FIELDS: dict[str, tuple[str, ...]] = {
    "attribute": (
        "name", "run_id", "source_path", "version_number", "creation_timestamp",
        "last_updated_timestamp", "timestamp", "current_stage", "status",
    ),
    "tag": (),
}  # fmt: skip


class _Model(msgspec.Struct):
    name: str = ""
    description: str = ""
    new_name: str = ""
    tags: list[Pair] = []


class _Version(msgspec.Struct):
    name: str = ""
    version: str = ""
    description: str = ""
    source: str = ""
    run_id: str = ""
    model_id: str = ""
    tags: list[Pair] = []


class _Tag(msgspec.Struct):
    name: str = ""
    version: str = ""
    key: str = ""
    value: str = ""


class _Alias(msgspec.Struct):
    name: str = ""
    alias: str = ""
    version: str = ""


class _Stage(msgspec.Struct):
    name: str = ""
    version: str = ""
    stage: str = ""
    stages: list[str] = []
    archive_existing_versions: bool = False


def _model_reply(context: Context, model: Model) -> Reply:
    return json_reply({"registered_model": views.model_document(context, model)})


def _version_reply(context: Context, model: Model, one: Numbered) -> Reply:
    return json_reply({"model_version": views.version_document(context, model, one)})


async def create_model(context: Context) -> Reply:
    """Take a model's name; it has no version yet."""
    body = await read(context, _Model)
    if pairs(body.tags).get(PROMPT) == "true":
        raise InputInvalid("Prompts of MLflow are not kept here: models and their versions are.")
    services, actor = context.services, context.principal.id
    model = await services.store.registry.create_model(
        tenant_id=context.tenant.id,
        name=views.suggested(needed(body.name, "name")),
        description=body.description[:5000],
        actor=actor,
    )
    if body.tags:
        await services.tracking.annotate(model, 0, tags=pairs(body.tags), actor=actor)
    return _model_reply(context, model)


async def get_model(context: Context) -> Reply:
    """One model with its newest versions, tags and aliases."""
    return _model_reply(context, views.model_named(context, asked(context, "name")))


async def update_model(context: Context) -> Reply:
    """Change a model's description."""
    body = await read(context, _Model)
    model = views.model_named(context, needed(body.name, "name"))
    await context.services.tracking.annotate(
        model, 0, description=body.description, actor=context.principal.id
    )
    return _model_reply(context, model)


async def rename_model(context: Context) -> Reply:
    """Refuse to rename a model: its name is in more places than the registry."""
    body = await read(context, _Model)
    views.model_named(context, needed(body.name, "name"))
    raise InputInvalid(
        "A model keeps its name: it is in the addresses callers use, in keys and in egress rules.",
        hint="create a model of the new name and copy versions to it: models:/NAME/VERSION",
    )


async def delete_model(context: Context) -> Reply:
    """Remove a model with its versions and aliases."""
    body = await read(context, _Model)
    model = views.model_named(context, needed(body.name, "name"))
    numbers = [version.number for version in context.snapshot.versions(model.id)]
    await context.services.store.registry.remove_model(
        model_id=model.id, actor=context.principal.id
    )
    for number in numbers:
        await evict(context, model, number)
    return json_reply({})


async def search_models(context: Context) -> Reply:
    """Models that match a filter, by name unless another order is asked for."""
    return _models(context, page_from_query(context))


async def search_models_posted(context: Context) -> Reply:
    """The same search with its filter in the body."""
    return _models(context, await read(context, Page))


def _models(context: Context, page: Page) -> Reply:
    wanted = conditions(page.filter, _MODEL_FIELDS)

    def get(model: Model) -> Any:
        tags = views.tags_of(context, model)

        def value(kind: str, key: str) -> Any:
            if kind == "tag":
                return tags.get(key)
            if key == "creation_timestamp":
                return milliseconds(model.created_ns)
            is_name = key == "name"
            return model.name if is_name else milliseconds(views.changed_ns(context, model))

        return value

    found = [one for one in context.snapshot.models(context.tenant.id) if is_met(wanted, get(one))]
    found.sort(key=lambda model: model.name)
    shown, token = paged(ordered(found, page.order_by, _MODEL_FIELDS, get), page)
    return json_reply(
        {
            "registered_models": [views.model_document(context, model) for model in shown],
            **({"next_page_token": token} if token else {}),
        }
    )


async def latest_versions(context: Context) -> Reply:
    """The newest version of each stage."""
    body = await read(context, _Stage)
    model = views.model_named(context, needed(body.name, "name"))
    stages = tuple(_stage(one) for one in body.stages)
    found = [
        views.version_document(context, model, one) for one in views.latest(context, model, stages)
    ]
    return json_reply({"model_versions": found})


async def tag_model(context: Context) -> Reply:
    """Set a tag of a model."""
    body = await read(context, _Tag)
    model = views.model_named(context, needed(body.name, "name"))
    tags = {needed(body.key, "key"): body.value}
    await context.services.tracking.annotate(model, 0, tags=tags, actor=context.principal.id)
    return json_reply({})


async def untag_model(context: Context) -> Reply:
    """Remove a tag of a model."""
    body = await read(context, _Tag)
    model = views.model_named(context, needed(body.name, "name"))
    await context.services.tracking.annotate(
        model, 0, untagged=(body.key,), actor=context.principal.id
    )
    return json_reply({})


async def set_alias(context: Context) -> Reply:
    """Point an alias at a version; every call of that alias goes there from now on."""
    body = await read(context, _Alias)
    model = views.model_named(context, needed(body.name, "name"))
    one = views.numbered(context, model, body.version)
    await _point(context, model, needed(body.alias, "alias"), one)
    return json_reply({})


async def _point(context: Context, model: Model, alias: str, one: Numbered) -> None:
    if isinstance(one, Promise):
        raise InputInvalid(
            f"Version {one.number} is not registered: {one.reason or 'wait until it is READY'}"
        )
    await context.services.store.registry.set_alias(
        model_id=model.id,
        name=alias,
        number=one.number,
        reason=_REASON,
        actor=context.principal.id,
    )


async def remove_alias(context: Context) -> Reply:
    """Remove an alias; removing one that is not there changes nothing, as in MLflow."""
    body = await read(context, _Alias)
    model = views.model_named(context, needed(body.name, "name"))
    if context.snapshot.alias(model.id, body.alias) is not None:
        await context.services.store.registry.remove_alias(
            model_id=model.id, name=body.alias, actor=context.principal.id
        )
    return json_reply({})


async def get_alias(context: Context) -> Reply:
    """The version an alias points at."""
    model = views.model_named(context, asked(context, "name"))
    alias = context.snapshot.alias(model.id, asked(context, "alias"))
    if alias is None:
        raise NotFound("There is no alias of this name.")
    return _version_reply(context, model, views.numbered(context, model, str(alias.number)))


async def create_version(context: Context) -> Reply:
    """Register a version from what was logged; it is checked and tried like any upload.

    The answer is PENDING_REGISTRATION, or READY where that took less than two seconds. A version
    that could not be registered is FAILED_REGISTRATION and says why.
    """
    body = await read(context, _Version)
    model = views.model_named(context, needed(body.name, "name"))
    source = needed(body.source, "source")
    wanted = places.promise_from_source(context, source, body.run_id, body.model_id)
    services, actor = context.services, context.principal.id
    promise = await services.intake.promise(model, wanted, actor=actor)
    if body.tags or body.description:
        await services.tracking.annotate(
            model,
            promise.number,
            tags=pairs(body.tags),
            description=body.description or None,
            actor=actor,
        )
    await services.intake.settled(context.tenant.id, promise, SETTLE_S)
    return _version_reply(context, model, views.numbered(context, model, str(promise.number)))


async def get_version(context: Context) -> Reply:
    """One version, on its way or failed included."""
    model = views.model_named(context, asked(context, "name"))
    one = views.numbered(context, model, asked(context, "version"))
    return _version_reply(context, model, one)


async def update_version(context: Context) -> Reply:
    """Change what is written on a version; the version itself stays as it is."""
    body = await read(context, _Version)
    model = views.model_named(context, needed(body.name, "name"))
    one = views.numbered(context, model, body.version)
    await context.services.tracking.annotate(
        model, one.number, description=body.description, actor=context.principal.id
    )
    return _version_reply(context, model, one)


async def delete_version(context: Context) -> Reply:
    """Retire a version, or no longer list one that could not be registered."""
    body = await read(context, _Version)
    model = views.model_named(context, needed(body.name, "name"))
    one = views.numbered(context, model, body.version)
    services, actor = context.services, context.principal.id
    if isinstance(one, Version):
        await services.store.registry.retire_version(
            model_id=model.id, number=one.number, actor=actor
        )
        await evict(context, model, one.number)
    else:
        await services.intake.dismiss(model, one.number, actor=actor)
    return json_reply({})


async def search_versions(context: Context) -> Reply:
    """Versions that match a filter, the last changed first unless another order is asked for."""
    return _versions(context, page_from_query(context))


async def search_versions_posted(context: Context) -> Reply:
    """The same search with its filter in the body."""
    return _versions(context, await read(context, Page))


def _versions(context: Context, page: Page) -> Reply:
    wanted = conditions(page.filter, _VERSION_FIELDS)
    documents = [
        views.version_document(context, model, one)
        for model in context.snapshot.models(context.tenant.id)
        for one in views.every(context, model)
    ]

    def get(document: dict[str, Any]) -> Any:
        tags = {tag["key"]: tag["value"] for tag in document["tags"]}
        names = {"source_path": "source", "timestamp": "last_updated_timestamp"}

        def value(kind: str, key: str) -> Any:
            if kind == "tag":
                return tags.get(key)
            if key == "version_number":
                return float(document["version"])
            return document[names.get(key, key)]

        return value

    found = [document for document in documents if is_met(wanted, get(document))]
    found.sort(key=lambda one: (-one["last_updated_timestamp"], one["name"], -int(one["version"])))
    shown, token = paged(ordered(found, page.order_by, _VERSION_FIELDS, get), page)
    more = {"next_page_token": token} if token else {}
    return json_reply({"model_versions": list(shown), **more})


async def download_uri(context: Context) -> Reply:
    """Where the files of a version are: exactly those that are called."""
    model = views.model_named(context, asked(context, "name"))
    one = views.numbered(context, model, asked(context, "version"))
    if isinstance(one, Promise):
        raise InputInvalid(f"Version {one.number} is not registered.")
    return json_reply({"artifact_uri": places.version_uri(model.name, one.number)})


async def tag_version(context: Context) -> Reply:
    """Set a tag of a version."""
    body = await read(context, _Tag)
    model = views.model_named(context, needed(body.name, "name"))
    one = views.numbered(context, model, body.version)
    tags = {needed(body.key, "key"): body.value}
    await context.services.tracking.annotate(
        model, one.number, tags=tags, actor=context.principal.id
    )
    return json_reply({})


async def untag_version(context: Context) -> Reply:
    """Remove a tag of a version; those of its manifest stay."""
    body = await read(context, _Tag)
    model = views.model_named(context, needed(body.name, "name"))
    one = views.numbered(context, model, body.version)
    await context.services.tracking.annotate(
        model, one.number, untagged=(body.key,), actor=context.principal.id
    )
    return json_reply({})


async def transition_stage(context: Context) -> Reply:
    """Put a version into Staging or Production, or take it out: stages are aliases here.

    The alias of a stage names one version. Where another has it already,
    `archive_existing_versions` has to say that it may lose it.
    """
    body = await read(context, _Stage)
    model = views.model_named(context, needed(body.name, "name"))
    one = views.numbered(context, model, body.version)
    stage = _stage(needed(body.stage, "stage"))
    if stage == "Archived":
        raise InputInvalid(
            "A version is either in service or retired; there is no stage 'Archived'.",
            hint="delete the version to retire it, or move its aliases",
        )
    alias = stage.lower()
    holder = context.snapshot.alias(model.id, alias)
    in_service = {found.name for found in views.aliases_of(context, model)}
    is_held = holder is not None and holder.number != one.number and alias in in_service
    if is_held and holder and not body.archive_existing_versions:
        raise InputInvalid(
            f"Version {holder.number} is in {stage}, and the alias '{alias}' names one version.",
            hint="archive_existing_versions=True moves it",
        )
    registry, actor = context.services.store.registry, context.principal.id
    if stage != "None":
        await _point(context, model, alias, one)
    for other in views.STAGES:
        pointing = context.snapshot.alias(model.id, other)
        if other != alias and pointing is not None and pointing.number == one.number:
            await registry.remove_alias(model_id=model.id, name=other, actor=actor)
    return _version_reply(context, model, one)


def _stage(text: str) -> str:
    known = {one.lower(): one for one in ("None", "Staging", "Production", "Archived")}
    if text.lower() not in known:
        raise InputInvalid("A stage is None, Staging, Production or Archived.")
    return known[text.lower()]


_M, _V = "/registered-models", "/model-versions"
_SEARCH = query("filter", "max_results", "page_token", many=("order_by",))
_ONE = query("name", "version")

OPERATIONS = (
    operation("POST", f"{_M}/create", "model:register", create_model, "Create a model"),
    operation("GET", f"{_M}/get", "model:read", get_model, "Get a model", query=query("name")),
    operation("PATCH", f"{_M}/update", "model:register", update_model, "Describe a model"),
    operation("POST", f"{_M}/rename", "model:register", rename_model, "Refuse to rename a model"),
    operation("DELETE", f"{_M}/delete", "model:remove", delete_model, "Delete a model"),
    operation(
        "GET", f"{_M}/search", "model:read", search_models, "Search models", query=_SEARCH
    ),
    operation("POST", f"{_M}/search", "model:read", search_models_posted, "Search models"),
    operation(
        "POST", f"{_M}/get-latest-versions", "model:read", latest_versions, "Newest versions"
    ),
    operation("POST", f"{_M}/set-tag", "model:register", tag_model, "Tag a model"),
    operation("DELETE", f"{_M}/delete-tag", "model:register", untag_model, "Untag a model"),
    operation("POST", f"{_M}/alias", "alias:set", set_alias, "Set an alias"),
    operation("DELETE", f"{_M}/alias", "alias:set", remove_alias, "Remove an alias"),
    operation(
        "GET", f"{_M}/alias", "model:read", get_alias, "Version of an alias",
        query=query("name", "alias"),
    ),
    operation("POST", f"{_V}/create", "model:register", create_version, "Register a version"),
    operation("GET", f"{_V}/get", "model:read", get_version, "Get a version", query=_ONE),
    operation("PATCH", f"{_V}/update", "model:register", update_version, "Describe a version"),
    operation("DELETE", f"{_V}/delete", "version:retire", delete_version, "Retire a version"),
    operation(
        "GET", f"{_V}/search", "model:read", search_versions, "Search versions", query=_SEARCH
    ),
    operation("POST", f"{_V}/search", "model:read", search_versions_posted, "Search versions"),
    operation(
        "GET", f"{_V}/get-download-uri", "model:read", download_uri, "Where a version's files are",
        query=_ONE,
    ),
    operation("POST", f"{_V}/set-tag", "model:register", tag_version, "Tag a version"),
    operation("DELETE", f"{_V}/delete-tag", "model:register", untag_version, "Untag a version"),
    operation(
        "POST", f"{_V}/transition-stage", "alias:set", transition_stage, "Move between stages"
    ),
)  # fmt: skip
