"""MLflow's logged models: drafts, whose files may become versions.

Owns: the operations on drafts.
Never: keeps a file (``artifacts``) or registers one (``registered``).
Read next: ``runs`` (what made them), ``appliance.tracking``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec

from appliance.api.dispatch import Context
from appliance.api.mlflow import places
from appliance.api.mlflow.filters import conditions, is_met, ordered
from appliance.api.mlflow.forms import (
    Page,
    Pair,
    listed,
    milliseconds,
    operation,
    paged,
    pairs,
    read,
)
from appliance.api.mlflow.runs import last_of, metric_document
from appliance.errors import InputInvalid, NotFound
from appliance.tracked import Draft
from appliance.wire import Reply, json_reply

STATUSES = ("PENDING", "READY", "UPLOAD_FAILED")
_PREFIX = "LOGGED_MODEL_"
_FIELDS: dict[str, tuple[str, ...]] = {
    "attribute": (
        "name", "model_id", "model_type", "status", "source_run_id", "creation_timestamp",
        "creation_time", "last_updated_timestamp",
    ),
    "tag": (),
    "param": (),
    "metric": (),
}  # fmt: skip


class _Logged(msgspec.Struct):
    experiment_id: str = ""
    name: str = ""
    model_type: str = ""
    source_run_id: str = ""
    status: str | int = ""
    params: list[Pair] = []
    tags: list[Pair] = []


class _Order(msgspec.Struct):
    field_name: str
    ascending: bool = True
    dataset_name: str = ""


async def create_logged_model(context: Context) -> Reply:
    """Make a place for the files of a model."""
    body = await read(context, _Logged)
    draft = await context.services.tracking.create_draft(
        context.tenant,
        group_id=body.experiment_id or "0",
        run_id=body.source_run_id,
        name=body.name,
        kind=body.model_type,
        params=pairs(body.params),
        tags=pairs(body.tags),
        actor=context.principal.id,
    )
    return _reply(context, draft)


async def get_logged_model(context: Context) -> Reply:
    """One logged model."""
    return _reply(context, _named(context))


async def finalize_logged_model(context: Context) -> Reply:
    """Say that the files of a model are complete, or that sending them failed."""
    body = await read(context, _Logged)
    numbers = {"1": "PENDING", "2": "READY", "3": "UPLOAD_FAILED"}  # of the protocol's enum
    status = numbers.get(str(body.status), str(body.status).removeprefix(_PREFIX))
    if status not in STATUSES:
        raise InputInvalid(f"A logged model is {', '.join(_PREFIX + one for one in STATUSES)}.")
    return await _changed(context, lambda draft: replace(draft, status=status))


async def tag_logged_model(context: Context) -> Reply:
    """Set tags of a logged model."""
    tags = pairs((await read(context, _Logged)).tags)
    return await _changed(context, lambda draft: replace(draft, tags={**draft.tags, **tags}))


async def untag_logged_model(context: Context) -> Reply:
    """Remove a tag of a logged model."""
    key = context.request.params["tag"]

    def without(draft: Draft) -> Draft:
        if key not in draft.tags:
            raise NotFound("The logged model has no tag of this name.")
        return replace(draft, tags={k: v for k, v in draft.tags.items() if k != key})

    return await _changed(context, without)


async def log_logged_model_params(context: Context) -> Reply:
    """Log parameters of a logged model."""
    params = pairs((await read(context, _Logged)).params)
    return await _changed(context, lambda draft: replace(draft, params={**draft.params, **params}))


async def delete_logged_model(context: Context) -> Reply:
    """Delete a logged model and its files; versions registered from it stay as they are."""
    draft = _named(context)
    await context.services.tracking.remove_draft(
        context.tenant.id, draft.id, actor=context.principal.id
    )
    return json_reply({})


async def search_logged_models(context: Context) -> Reply:
    """Logged models of some groups that match a filter, the newest first."""
    page = await read(context, Page)
    if page.datasets:
        raise InputInvalid("Data sets of metrics are not kept here; leave 'datasets' out.")
    wanted = conditions(page.filter, _FIELDS)
    order = []
    for one in page.order_by:
        rule = (
            msgspec.convert(one, _Order) if isinstance(one, dict) and "field_name" in one else None
        )
        if rule is None:
            raise InputInvalid('order_by is a list such as [{"field_name": "name"}].')
        order.append(f"{rule.field_name} {'ASC' if rule.ascending else 'DESC'}")
    found = [
        draft
        for draft in context.services.tracking.of(context.tenant.id).drafts.values()
        if draft.group_id in page.experiment_ids and is_met(wanted, _values(draft))
    ]
    found.sort(key=lambda draft: (-draft.created_ns, draft.id))
    shown, token = paged(ordered(found, order, _FIELDS, _values), page)
    more = {"next_page_token": token} if token else {}
    return json_reply({"models": [_document(context, draft) for draft in shown], **more})


def _values(draft: Draft) -> Any:
    last = last_of(draft.metrics)

    def value(kind: str, key: str) -> Any:
        if kind == "metric":
            return float(last[key].value) if key in last else None
        if kind != "attribute":
            return (draft.tags if kind == "tag" else draft.params).get(key)
        return {
            "name": draft.name,
            "model_id": draft.id,
            "model_type": draft.kind,
            "status": draft.status,
            "source_run_id": draft.run_id,
            "creation_timestamp": milliseconds(draft.created_ns),
            "creation_time": milliseconds(draft.created_ns),
            "last_updated_timestamp": milliseconds(draft.changed_ns),
        }[key]

    return value


def _named(context: Context) -> Draft:
    return context.services.tracking.draft(context.tenant.id, context.request.params["draft"])


async def _changed(context: Context, change: Any) -> Reply:
    draft = await context.services.tracking.change_draft(
        context.tenant.id, context.request.params["draft"], change, actor=context.principal.id
    )
    return _reply(context, draft)


def _reply(context: Context, draft: Draft) -> Reply:
    return json_reply({"model": _document(context, draft)})


def _document(context: Context, draft: Draft) -> dict[str, Any]:
    snapshot = context.snapshot
    registered = []
    for promise in snapshot.tracking(context.tenant.id).promises.values():
        model = snapshot.model_by_id(promise.model_id)
        if promise.draft_id == draft.id and promise.state == "kept" and model is not None:
            registered.append({"name": model.name, "version": str(promise.number)})
    return {
        "info": {
            "model_id": draft.id,
            "experiment_id": draft.group_id,
            "name": draft.name,
            "creation_timestamp_ms": milliseconds(draft.created_ns),
            "last_updated_timestamp_ms": milliseconds(draft.changed_ns),
            "artifact_uri": places.draft_uri(draft),
            "status": _PREFIX + draft.status,
            "model_type": draft.kind,
            "source_run_id": draft.run_id,
            "tags": listed(draft.tags),
            "registrations": registered,
        },
        "data": {
            "params": listed(draft.params),
            "metrics": [
                {**metric_document(one), "model_id": draft.id, "run_id": draft.run_id}
                for one in last_of(draft.metrics).values()
            ],
        },
    }


_L = "/logged-models"
_ONE = f"{_L}/{{draft}}"

OPERATIONS = (
    operation("POST", f"{_L}/search", "run:read", search_logged_models, "Search logged models"),
    operation("POST", _L, "run:write", create_logged_model, "Create a logged model"),
    operation("GET", _ONE, "run:read", get_logged_model, "Get a logged model"),
    operation("PATCH", _ONE, "run:write", finalize_logged_model, "Finish a logged model"),
    operation("DELETE", _ONE, "run:write", delete_logged_model, "Delete a logged model"),
    operation("PATCH", f"{_ONE}/tags", "run:write", tag_logged_model, "Tag a logged model"),
    operation(
        "DELETE", f"{_ONE}/tags/{{tag}}", "run:write", untag_logged_model, "Untag a logged model"
    ),
    operation(
        "POST", f"{_ONE}/params", "run:write", log_logged_model_params, "Log a model's parameters"
    ),
)
