"""Addresses of files: what an artifact URI names here, and what a source does.

Owns: the URIs handed out, and reading those that come back.
Never: reads a file.
Read next: ``artifacts`` (serves them), ``registered`` (registers from them).

    mlflow-artifacts:/GROUP/RUN/artifacts/...            files a run logged
    mlflow-artifacts:/GROUP/models/DRAFT/artifacts/...   files of a logged model
    mlflow-artifacts:/versions/MODEL/NUMBER/...          files of a version, which never change
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from appliance.api.dispatch import Context
from appliance.errors import InputInvalid, NotFound
from appliance.tracked import Draft, Promise, Run

SCHEME = "mlflow-artifacts:/"
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_HINT = (
    "a source is what was logged to this appliance: models:/MODEL_ID, runs:/RUN_ID/PATH, "
    "mlflow-artifacts:/..., or a version to copy, models:/NAME/VERSION"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A file or folder of a run or draft (``owner_id``), or of a version (``model``, ``number``).

    ``path`` is ``""`` for all of it; ``is_whole`` is False for the folders above, which hold
    nothing themselves.
    """

    owner_id: str = ""
    model: str = ""
    number: int = 0
    path: str = ""


def version_uri(model: str, number: int) -> str:
    """Where a version's files are."""
    return f"{SCHEME}versions/{model}/{number}"


def draft_uri(draft: Draft) -> str:
    """Where a draft's files are."""
    return f"{SCHEME}{draft.group_id}/models/{draft.id}/artifacts"


def run_uri(run: Run) -> str:
    """Where a run's files are."""
    return f"{SCHEME}{run.group_id}/{run.id}/artifacts"


def place_of(context: Context, path: str) -> Place:
    """What a path under the artifact root names. Raises NotFound."""
    parts = path.strip("/").split("/")
    tracking = context.snapshot.tracking(context.tenant.id)
    if parts[0] == "versions" and len(parts) >= 3 and _NUMBER.fullmatch(parts[2]):
        return Place(model=parts[1], number=int(parts[2]), path="/".join(parts[3:]))
    if len(parts) >= 4 and parts[1] == "models" and parts[3] == "artifacts":
        draft = tracking.drafts.get(parts[2])
        if draft is not None and draft.group_id == parts[0]:
            return Place(owner_id=draft.id, path="/".join(parts[4:]))
    elif len(parts) >= 3 and parts[2] == "artifacts":
        run = tracking.runs.get(parts[1])
        if run is not None and run.group_id == parts[0]:
            return Place(owner_id=run.id, path="/".join(parts[3:]))
    raise NotFound("There is no such run, logged model or version to have artifacts.")


def promise_from_source(context: Context, source: str, run_id: str, model_id: str) -> Promise:
    """What a version's source names here; number and times are for whoever promises.

    Raises:
        InputInvalid: it is elsewhere, or of no form that is known.
        NotFound: there is nothing there.
    """
    place = _place_of_source(context, source)
    of_model = ""
    if place.model:
        found = context.snapshot.model(context.tenant.id, place.model)
        if found is None:
            raise NotFound("There is no such version to copy.")
        of_model = found.id
    tracking = context.snapshot.tracking(context.tenant.id)
    draft = tracking.drafts.get(place.owner_id)
    if model_id and model_id not in tracking.drafts:
        raise NotFound("There is no logged model of this model_id.")
    if run_id and run_id not in tracking.runs:
        raise NotFound("There is no run of this run_id.")
    return Promise(
        model_id="",
        number=0,
        source=source,
        run_id=run_id or (draft.run_id if draft else ""),
        draft_id=place.owner_id,
        folder=place.path,
        of_model=of_model,
        of_number=place.number,
        created_ns=0,
        created_by="",
        changed_ns=0,
    )


def _place_of_source(context: Context, source: str) -> Place:
    scheme, _, rest = source.partition(":/")
    rest = rest.strip("/")
    if len(source) > 1000 or not rest or source.startswith(f"{scheme}://"):
        raise InputInvalid("This source is not on this appliance.", hint=_HINT)
    first, _, more = rest.partition("/")
    if scheme == "mlflow-artifacts":
        return place_of(context, rest)
    if scheme == "runs":
        return Place(owner_id=first, path=more)
    if scheme == "models" and first.startswith("m-"):
        return Place(owner_id=first, path=more)
    if scheme == "models" and "@" in first:
        name, _, alias = first.partition("@")
        model = context.snapshot.model(context.tenant.id, name)
        found = context.snapshot.alias(model.id, alias) if model else None
        if found is None:
            raise NotFound("There is no such version to copy.")
        return Place(model=name, number=found.number)
    if scheme == "models" and _NUMBER.fullmatch(more):
        return Place(model=first, number=int(more))
    raise InputInvalid("This source is not on this appliance.", hint=_HINT)
