"""Calls, health and metadata of the Open Inference Protocol.

Owns: how an inference request becomes a call of a version, and the protocol's form of a refusal.
Never: parses tensors (``tensors``); runs a call (``invoke``).
Read next: ``tensors``, ``repository`` (the extensions), ``native.calls`` (the plain way to call).
"""

from __future__ import annotations

import asyncio
import gzip
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from appliance import __version__, wire
from appliance.api.dispatch import Context
from appliance.api.inference import tensors
from appliance.api.native import calls as native
from appliance.api.native.models import alias_of, model_of, version_of
from appliance.api.operation import PUBLIC, Operation, RefusalForm
from appliance.errors import ApplianceError, Gone
from appliance.invoke import DIRECT, Via
from appliance.records import LIVE, Model, Version
from appliance.wire import JSON, Reply, json_reply

ROOT = "/t/{tenant}/v2"
EXTENSIONS = ("binary_tensor_data", "model_repository", "statistics")
_LARGE_BYTES = 64 * 1024
_COMPRESSED_MIN = 1024
_OCTETS = "application/octet-stream"
# Sixteen megabytes of lists in lists take forty times that while they are converted.
_CONVERTERS = ThreadPoolExecutor(2, "tensors")


def _refusal(error: ApplianceError, request_id: str, *, is_owner: bool = False) -> Reply:
    """A problem in the protocol's own form; the rest of what is known goes into headers."""
    reply = wire.problem_reply(error, request_id, is_owner=is_owner)
    detail = msgspec.json.decode(reply.body)["detail"]
    return Reply(
        status=reply.status,
        body=msgspec.json.encode({"error": detail}),
        headers=(*reply.headers, ("problem", error.slug)),
    )


FORM = RefusalForm(
    media_type=JSON,
    schema={
        "type": "object",
        "required": ["error"],
        "properties": {"error": {"type": "string", "description": "What to change."}},
    },
    render=_refusal,
)


async def live(_context: Context) -> Reply:
    """Whether the appliance answers at all."""
    return json_reply({"live": True})


async def ready(_context: Context) -> Reply:
    """Whether the appliance is unsealed and takes calls."""
    return json_reply({"ready": True})


async def server(_context: Context) -> Reply:
    """Name, version and extensions of this server."""
    document = {"name": "appliance", "version": __version__, "extensions": list(EXTENSIONS)}
    return json_reply(document)


async def metadata(context: Context) -> Reply:
    """What a model's live version takes and returns, as far as its manifest says."""
    model = model_of(context)
    return _metadata(context, model, _live(context, model))


async def version_metadata(context: Context) -> Reply:
    """What one version takes and returns, as far as its manifest says."""
    model = model_of(context)
    return _metadata(context, model, version_of(context, model))


async def model_ready(context: Context) -> Reply:
    """Whether a model's live version can be called."""
    model = model_of(context)
    return _ready(model, _live(context, model))


async def version_ready(context: Context) -> Reply:
    """Whether one version can be called."""
    model = model_of(context)
    return _ready(model, version_of(context, model))


async def infer(context: Context) -> Reply:
    """Call a model with tensors: the version its route chooses, or its live one.

    One input tensor reaches the model as a nested list, several as an object of nested lists. The
    header Inference-Header-Content-Length marks binary tensors after the JSON. With the parameter
    `timeout`, microseconds, a call that was not handed to its model by then is given up with 504.
    """
    version, via = native.chosen(context, model_of(context))
    return await _infer(context, version, via)


async def infer_version(context: Context) -> Reply:
    """Call one version with tensors."""
    return await _infer(context, version_of(context, model_of(context)))


def _live(context: Context, model: Model) -> Version:
    version = context.snapshot.version(model.id, alias_of(context, model, LIVE).number)
    if version is None:
        raise wire.not_found()
    return version


def _ready(model: Model, version: Version) -> Reply:
    if version.retired_ns:
        raise Gone(f"Version {version.number} is retired.", number=version.number)
    return json_reply({"name": model.name, "ready": True})


def _metadata(context: Context, model: Model, version: Version) -> Reply:
    manifest = version.manifest
    numbers = [one.number for one in context.snapshot.versions(model.id) if not one.retired_ns]
    return json_reply(
        {
            "name": model.name,
            "versions": [str(number) for number in sorted(numbers)],
            "platform": manifest.runtime,
            "inputs": _declared(manifest.input_schema, "input-0"),
            "outputs": _declared(manifest.output_schema, tensors.OUTPUT),
        }
    )


def _declared(schema: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """The tensors a JSON Schema speaks of; none where it says nothing a tensor could."""
    if not schema:
        return []
    members = schema.get("properties")
    if schema.get("type") == "object" and isinstance(members, dict):
        found = [_declared_one(one, key) for key, one in members.items()]
    else:
        found = [_declared_one(schema, name)]
    return [one for one in found if one is not None]


def _declared_one(schema: Any, name: str) -> dict[str, Any] | None:
    shape: list[int] = []
    while isinstance(schema, dict) and schema.get("type") == "array" and len(shape) < 8:
        low, high = schema.get("minItems"), schema.get("maxItems")
        shape.append(low if isinstance(low, int) and low == high else -1)
        schema = schema.get("items")
    kinds = {"number": "FP64", "integer": "INT64", "boolean": "BOOL", "string": "BYTES"}
    kind = schema.get("type") if isinstance(schema, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        return None
    return {"name": name, "datatype": kinds[kind], "shape": shape or [1]}


async def _infer(context: Context, version: Version, via: Via = DIRECT) -> Reply:
    request = context.request
    limit = native.body_limit(context, version)
    body = await request.body(limit, codings=("gzip", "deflate"))
    length = request.header(tensors.JSON_LENGTH)
    is_object = (version.manifest.input_schema or {}).get("type") == "object"
    asked, native_body = await _off_loop(body, _read, body, length, is_object, limit)
    native.require_fitting(native_body, limit)
    outcome = await native.call(
        context,
        version,
        content_type=JSON,
        body=native_body,
        via=via,
        wait_s=asked.timeout_us / 1e6 if asked.timeout_us else None,
    )
    content, json_length = await _off_loop(
        outcome.reply, _write, outcome.reply, outcome.content_type, asked, version, context
    )
    headers = [*native.headers_of(context, outcome)]
    if json_length:
        headers.append((tensors.JSON_LENGTH, str(json_length)))
    accepted = request.header("accept-encoding").lower().split(",")
    if "gzip" in [one.strip() for one in accepted] and len(content) >= _COMPRESSED_MIN:
        content = await asyncio.to_thread(gzip.compress, content, 1, mtime=0)
        headers += [("content-encoding", "gzip"), ("vary", "accept-encoding")]
    return Reply(
        body=content,
        content_type=_OCTETS if json_length else JSON,
        headers=tuple(headers),
        after=native.afterwards(context, via, content_type=JSON, body=native_body, outcome=outcome),
    )


def _read(
    body: bytes, length: str, is_object: bool, limit: int
) -> tuple[tensors.InferRequest, bytes]:
    asked = tensors.request_from_bytes(body, length, native_bytes_max=limit)
    return asked, tensors.model_input(asked.inputs, is_object=is_object)


def _write(
    answer: bytes,
    content_type: str,
    asked: tensors.InferRequest,
    version: Version,
    context: Context,
) -> tuple[bytes, int]:
    head = {"model_name": context.request.params["model"], "model_version": str(version.number)}
    if asked.id:
        head["id"] = asked.id
    found = tensors.tensors_from_answer(answer, content_type)
    return tensors.reply_bytes(head, tensors.chosen(found, asked))


async def _off_loop(sized: bytes, work: Any, *arguments: Any) -> Any:
    """Small conversions here, where they cost less than a thread; large ones beside the loop.

    No more than two of those at a time: their memory is not the caller's.
    """
    if len(sized) < _LARGE_BYTES:
        return work(*arguments)
    return await asyncio.get_running_loop().run_in_executor(_CONVERTERS, work, *arguments)


def _get(path: str, handler: Any, summary: str, **more: Any) -> Operation:
    return Operation(
        method="GET",
        path=ROOT + path,
        permission=more.pop("permission", "model:read"),
        handler=handler,
        summary=summary,
        reply=dict[str, Any],
        form=FORM,
        **more,
    )


def _post(path: str, handler: Any, summary: str) -> Operation:
    return Operation(
        method="POST",
        path=ROOT + path,
        permission="model:invoke",
        handler=handler,
        summary=summary,
        body=(_OCTETS, JSON),
        reply=(JSON, _OCTETS),
        problems=native.PROBLEMS,
        form=FORM,
    )


_MODEL, _VERSION = "/models/{model}", "/models/{model}/versions/{version}"
_OPEN: dict[str, Any] = {"permission": PUBLIC, "needs_store": False}
OPERATIONS = (
    _get("/health/live", live, "Whether the server is live", **_OPEN),
    _get("/health/ready", ready, "Whether the server is ready", permission=PUBLIC),
    _get("", server, "Server metadata", **_OPEN),
    _get(_MODEL, metadata, "Metadata of a model's live version"),
    _get(_VERSION, version_metadata, "Metadata of a version"),
    _get(_MODEL + "/ready", model_ready, "Whether a model is ready"),
    _get(_VERSION + "/ready", version_ready, "Whether a version is ready"),
    _post(_MODEL + "/infer", infer, "Call a model's live version with tensors"),
    _post(_VERSION + "/infer", infer_version, "Call a version with tensors"),
)
