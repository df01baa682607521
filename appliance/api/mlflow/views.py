"""Models, versions and promises as MLflow writes them.

Owns: what of a model MLflow's words stand for: stages are aliases, tags are notes.
Never: changes anything.
Read next: ``registered`` (who shows them), ``places`` (the addresses in them).
"""

from __future__ import annotations

from typing import Any

from appliance.api.dispatch import Context
from appliance.api.mlflow import places
from appliance.api.mlflow.forms import listed, milliseconds
from appliance.errors import NotFound
from appliance.records import Alias, Model, Version, require_name
from appliance.tracked import Promise

STAGES = {"staging": "Staging", "production": "Production"}
"""Aliases that MLflow's stages of these names stand for."""

Numbered = Version | Promise


def model_named(context: Context, name: str) -> Model:
    """The model of this name. Raises NotFound."""
    found = context.snapshot.model(context.tenant.id, name)
    if found is None:
        raise NotFound("There is no registered model of this name.")
    return found


def numbered(context: Context, model: Model, text: str) -> Numbered:
    """A version in service, or one that is on its way or failed. Raises NotFound."""
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    version = context.snapshot.version(model.id, number)
    if version is not None and not version.retired_ns:
        return version
    promise = context.snapshot.tracking(model.tenant_id).promise(model.id, number)
    if version is None and promise is not None:
        return promise
    raise NotFound("There is no version of this number.")


def every(context: Context, model: Model) -> list[Numbered]:
    """Versions in service, on their way and failed, by number."""
    found: dict[int, Numbered] = {
        one.number: one for one in context.snapshot.versions(model.id) if not one.retired_ns
    }
    for promise in context.snapshot.tracking(model.tenant_id).promises_of(model.id):
        if promise.state != "kept":
            found[promise.number] = promise
    return [found[number] for number in sorted(found)]


def aliases_of(context: Context, model: Model) -> list[Alias]:
    """The aliases of versions in service: MLflow forgets those of a deleted version."""
    found = []
    for alias in context.snapshot.aliases(model.id):
        version = context.snapshot.version(model.id, alias.number)
        if version is not None and not version.retired_ns:
            found.append(alias)
    return found


def stage_of(context: Context, model: Model, number: int) -> str:
    """The stage a version is in: that of the alias which points at it."""
    names = {alias.name for alias in aliases_of(context, model) if alias.number == number}
    return next((STAGES[name] for name in ("production", "staging") if name in names), "None")


def changed_ns(context: Context, model: Model, one: Numbered | None = None) -> int:
    """When a version, or the model, last changed in anything that may change."""
    snapshot = context.snapshot
    notes = snapshot.tracking(model.tenant_id).note(model.id, one.number if one else 0)
    times = [notes.changed_ns if notes else 0]
    if one is not None:
        times.append(one.changed_ns if isinstance(one, Promise) else one.created_ns)
    else:
        times += [model.created_ns, *(v.created_ns for v in snapshot.versions(model.id))]
    times += [
        alias.set_ns
        for alias in aliases_of(context, model)
        if one is None or alias.number == one.number
    ]
    return max(times)


def tags_of(context: Context, model: Model, number: int = 0) -> dict[str, str]:
    """The tags of a version or model: those of its manifest, then what was written since."""
    notes = context.snapshot.tracking(model.tenant_id).note(model.id, number)
    version = context.snapshot.version(model.id, number)
    return {**(version.manifest.tags if version else {}), **(notes.tags if notes else {})}


def description_of(context: Context, model: Model, number: int = 0) -> str:
    """What is written on a version or model."""
    notes = context.snapshot.tracking(model.tenant_id).note(model.id, number)
    if notes is not None and notes.description is not None:
        return notes.description
    version = context.snapshot.version(model.id, number)
    return (version.manifest.description if version else "") if number else model.description


def model_document(context: Context, model: Model) -> dict[str, Any]:
    """A registered model."""
    return {
        "name": model.name,
        "creation_timestamp": milliseconds(model.created_ns),
        "last_updated_timestamp": milliseconds(changed_ns(context, model)),
        "user_id": model.created_by,
        "description": description_of(context, model),
        "latest_versions": [
            version_document(context, model, one) for one in latest(context, model, ())
        ],
        "tags": listed(tags_of(context, model)),
        "aliases": [
            {"alias": alias.name, "version": str(alias.number)}
            for alias in aliases_of(context, model)
        ],
    }


def version_document(context: Context, model: Model, one: Numbered) -> dict[str, Any]:
    """A model version; one that is registered is READY, for it can be called."""
    promise = context.snapshot.tracking(model.tenant_id).promise(model.id, one.number)
    run_id, draft_id = lineage_of(one, promise)
    if isinstance(one, Promise):
        is_failed = one.state == "failed"
        status = "FAILED_REGISTRATION" if is_failed else "PENDING_REGISTRATION"
        message = one.reason
    else:
        status, message = "READY", ""
    return {
        "name": model.name,
        "version": str(one.number),
        "creation_timestamp": milliseconds(one.created_ns),
        "last_updated_timestamp": milliseconds(changed_ns(context, model, one)),
        "user_id": one.created_by,
        "current_stage": stage_of(context, model, one.number),
        "description": description_of(context, model, one.number),
        "source": promise.source if promise else places.version_uri(model.name, one.number),
        "run_id": run_id,
        "status": status,
        "status_message": message,
        "tags": listed(tags_of(context, model, one.number)),
        "aliases": [a.name for a in aliases_of(context, model) if a.number == one.number],
        **({"model_id": draft_id} if draft_id else {}),
    }


def lineage_of(one: Numbered, promise: Promise | None) -> tuple[str, str]:
    """The run and the draft a version came from, ``""`` for none."""
    run_id = promise.run_id if promise else ""
    draft_id = promise.draft_id if promise and promise.draft_id.startswith("m-") else ""
    if isinstance(one, Version):
        kept = one.manifest.lineage.run
        draft_id = draft_id or (kept if kept.startswith("m-") else "")
        run_id = run_id or (kept if kept and not kept.startswith("m-") else "")
    return run_id, draft_id


def latest(context: Context, model: Model, stages: tuple[str, ...]) -> list[Numbered]:
    """The newest version of each stage, or of these."""
    newest: dict[str, Numbered] = {}
    for one in every(context, model):
        stage = stage_of(context, model, one.number)
        if not stages or stage in stages:
            newest[stage] = one
    return list(newest.values())


def suggested(name: str) -> str:
    """The name itself, if it is a legal model name.

    Raises:
        InputInvalid: it is not; the nearest legal one is told.
    """
    near = "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower()[:63]).strip("-")
    try:
        return require_name(name, "model")
    except Exception as error:
        if near and hasattr(error, "hint"):
            error.hint = f"for example '{near}'"
        raise
