"""MLflow's and SageMaker's way to call a model: ``/invocations`` and ``/ping``, per model.

Owns: the forms of a body and of an answer there.
Never: runs a call (``native.calls``), or knows what a model makes of a table.
Read next: ``native.calls``; ``sandbox/guest/python_tables.py`` (who reads the forms).

A body is CSV, or JSON with exactly one of dataframe_split, dataframe_records, instances and inputs,
beside params. It reaches the model as it came; its answer is put under ``predictions`` unless the
model did that itself.
"""

from __future__ import annotations

from typing import Any

import msgspec

from appliance import wire
from appliance.api.dispatch import Context
from appliance.api.mlflow.forms import operation
from appliance.api.native import calls as native
from appliance.api.native.models import alias_of, model_of, version_of
from appliance.api.operation import Operation
from appliance.errors import Gone, InputInvalid, Malformed
from appliance.invoke import DIRECT, Via
from appliance.records import Version
from appliance.wire import JSON, Reply, json_reply

FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
_CSV = "text/csv"
_MODEL = "/t/{tenant}/models/{model}"


async def invocations(context: Context) -> Reply:
    """Call the version that the model's route chooses, or its live one."""
    version, via = native.chosen(context, model_of(context))
    return await _call(context, version, via)


async def invocations_of_version(context: Context) -> Reply:
    """Call one version."""
    return await _call(context, version_of(context, model_of(context)))


async def invocations_of_alias(context: Context) -> Reply:
    """Call the version an alias points at."""
    return await _call(context, _aliased(context))


async def ping(context: Context) -> Reply:
    """200 while the version that would be called is in service."""
    return _ping(context, native.chosen(context, model_of(context))[0])


async def ping_version(context: Context) -> Reply:
    """200 while a version is in service."""
    return _ping(context, version_of(context, model_of(context)))


async def ping_alias(context: Context) -> Reply:
    """200 while the version an alias points at is in service."""
    return _ping(context, _aliased(context))


def _aliased(context: Context) -> Version:
    model = model_of(context)
    alias = alias_of(context, model, context.request.params["alias"])
    version = context.snapshot.version(model.id, alias.number)
    if version is None:
        raise wire.not_found()
    return version


def _ping(context: Context, version: Version) -> Reply:
    native.require_callable(context, version)
    return json_reply({}, headers=(("model-version", str(version.number)),))


async def _call(context: Context, version: Version, via: Via = DIRECT) -> Reply:
    native.require_callable(context, version)
    media = wire.require_media(context.request.content_type or JSON, (JSON, _CSV))
    body = await context.request.body(native.body_limit(context, version))
    if media == JSON:
        _require_one_form(body)
    outcome = await native.call(context, version, content_type=media, body=body, via=via)
    return Reply(
        body=_predictions(outcome.reply, outcome.content_type),
        content_type=JSON,
        headers=native.headers_of(context, outcome),
        after=native.afterwards(context, via, content_type=media, body=body, outcome=outcome),
    )


def _require_one_form(body: bytes) -> None:
    """Refuse JSON that is not an object with exactly one of the forms, without building it."""
    try:
        found = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        raise _no_form("the body is no object") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
        raise Malformed("The body is not a valid JSON document (RFC 8259).") from None
    forms = [name for name in FORMS if name in found]
    if len(forms) != 1:
        raise _no_form(f"it has {' and '.join(forms) or 'none of them'}")
    if unknown := sorted(set(found) - {*FORMS, "params"}):
        shown = unknown[0][:40].encode("unicode_escape").decode("ascii")
        raise _no_form(f"'{shown}' is none of them")


def _no_form(why: str) -> InputInvalid:
    return InputInvalid(
        f"The body is JSON with exactly one of {', '.join(FORMS)}, beside params: {why}.",
        hint='for example {"dataframe_split": {"columns": ["a"], "data": [[1.0]]}}',
    )


def _predictions(answer: bytes, content_type: str) -> bytes:
    """The answer under ``predictions``, as it stands if the model put it there."""
    try:
        found: Any = msgspec.json.decode(answer, type=msgspec.Raw | dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, RecursionError, TypeError):
        found = None
    if isinstance(found, dict) and "predictions" in found:
        return answer
    if content_type.split(";")[0].strip().lower() == JSON:
        return b'{"predictions":' + answer + b"}"
    return msgspec.json.encode({"predictions": answer.decode("utf-8", "replace")})


def _row(path: str, handler: Any, summary: str) -> Operation:
    return operation(
        "POST",
        f"{path}/invocations",
        "model:invoke",
        handler,
        summary,
        root=_MODEL,
        body=(JSON, _CSV),
        problems=(*native.PROBLEMS, InputInvalid),
    )


def _ping_row(path: str, handler: Any, summary: str) -> Operation:
    return operation(
        "GET", f"{path}/ping", "model:invoke", handler, summary, root=_MODEL, problems=(Gone,)
    )


OPERATIONS = (
    _row("", invocations, "Call a model, MLflow's way"),
    _row("/versions/{version}", invocations_of_version, "Call a version, MLflow's way"),
    _row("/aliases/{alias}", invocations_of_alias, "Call an alias, MLflow's way"),
    _ping_row("", ping, "Whether a model can be called"),
    _ping_row("/versions/{version}", ping_version, "Whether a version can be called"),
    _ping_row("/aliases/{alias}", ping_alias, "Whether an alias can be called"),
)
