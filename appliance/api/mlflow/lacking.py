"""What MLflow's server has and the appliance has not: one clear refusal, in MLflow's form.

Owns: every address below MLflow's root that no other operation answers.
Never: answers as if something had been done.
Read next: ``docs/mlflow.md`` (what there is, and what there is not).
"""

from __future__ import annotations

from appliance.api.dispatch import Context
from appliance.api.mlflow.forms import operation
from appliance.errors import NotFound
from appliance.wire import Reply


async def lacking_get(context: Context) -> Reply:
    """Refuse to read what is not kept here."""
    raise _lacking(context)


async def lacking_post(context: Context) -> Reply:
    """Refuse to make what is not kept here."""
    raise _lacking(context)


async def lacking_patch(context: Context) -> Reply:
    """Refuse to change what is not kept here."""
    raise _lacking(context)


async def lacking_delete(context: Context) -> Reply:
    """Refuse to delete what is not kept here."""
    raise _lacking(context)


def _lacking(context: Context) -> NotFound:
    del context
    return NotFound(
        "This part of MLflow is not here: no traces, evaluations, prompts or webhooks.",
        hint="what there is: registered models and versions, experiments, runs, logged models, "
        "artifacts",
    )


_REST = "/{path}"
_SUMMARY = "What MLflow has and the appliance has not"

OPERATIONS = (
    operation("GET", _REST, "run:read", lacking_get, _SUMMARY),
    operation("POST", _REST, "run:read", lacking_post, _SUMMARY),
    operation("PATCH", _REST, "run:read", lacking_patch, _SUMMARY),
    operation("DELETE", _REST, "run:read", lacking_delete, _SUMMARY),
)
