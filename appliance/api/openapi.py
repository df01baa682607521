"""The OpenAPI 3.1 description, generated from the table: what is not declared is not described.

Owns: ``document``.
Never: is written by hand; a test compares it with the table.
Read next: ``operation`` (what a row declares), ``shapes`` (the schemas).
"""

from __future__ import annotations

import inspect
from typing import Any

import msgspec

from appliance import __version__
from appliance.api.operation import PUBLIC, Operation, Table
from appliance.errors import (
    ApplianceError,
    Draining,
    Forbidden,
    HostError,
    Malformed,
    NotFound,
    Sealed,
    Unauthenticated,
    Uninitialised,
    UnsupportedMedia,
)
from appliance.records import NAME_PATTERN
from appliance.wire import JSON

_REF = "#/components/schemas/{name}"
_PARAMETERS: dict[str, dict[str, Any]] = {
    "tenant": {"type": "string", "pattern": NAME_PATTERN},
    "model": {"type": "string", "pattern": NAME_PATTERN},
    "alias": {"type": "string", "pattern": NAME_PATTERN},
    "version": {"type": "integer", "minimum": 1},
    "seq": {"type": "integer", "minimum": 0},
}
_PROBLEM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "RFC 9457 problem document.",
    "required": ["type", "title", "status", "detail", "instance", "code"],
    "properties": {
        "type": {"type": "string", "description": "Where the problem is explained."},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What to change."},
        "instance": {"type": "string", "description": "The request id."},
        "code": {"type": "string"},
        "hint": {"type": "string", "description": "A command or header that helps."},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["pointer", "detail"],
                "properties": {"pointer": {"type": "string"}, "detail": {"type": "string"}},
            },
        },
    },
}


def document(table: Table, *, is_admin: bool, url: str) -> dict[str, Any]:
    """The description of one listener.

    Args:
        table: every operation.
        is_admin: whether the admin contract is part of it.
        url: base address, ``""`` if unknown.
    """
    shown = [op for op in table if is_admin or not op.admin_only]
    _, schemas = msgspec.json.schema_components(
        [
            shape
            for op in shown
            for said in (op.body, op.reply, op.deferred)
            for shape in (said if isinstance(said, tuple) else (said,))
            if _is_shape(shape)
        ],
        ref_template=_REF,
    )
    paths: dict[str, Any] = {}
    for operation in shown:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    tags = dict.fromkeys(tag_of(operation) for operation in shown)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Model Appliance",
            "version": __version__,
            "description": "Run other people's models, safely, on a company's own machine.",
        },
        "servers": [{"url": url or "/"}],
        "tags": [{"name": tag} for tag in tags],
        "paths": paths,
        "components": {
            "schemas": {**schemas, "Problem": _PROBLEM_SCHEMA},
            "securitySchemes": {
                "apiKey": {"type": "http", "scheme": "bearer", "bearerFormat": "mak_..."}
            },
        },
    }


def tag_of(operation: Operation) -> str:
    """The group an operation is listed under."""
    module = operation.handler.__module__.rsplit(".", 1)[-1]
    return {"uploads": "models"}.get(module, module)


def problems_of(operation: Operation) -> tuple[type[ApplianceError], ...]:
    """Every problem an operation documents: its own and those its declaration implies."""
    found: list[type[ApplianceError]] = list(operation.problems)
    if operation.permission != PUBLIC:
        found += [Malformed, Unauthenticated, Forbidden]
    if operation.needs_store:
        found += [Sealed, Uninitialised, Draining]
    if operation.params:
        found.append(NotFound)
    if operation.body is not None:
        found.append(UnsupportedMedia)
    found += [Malformed, HostError]
    return tuple(dict.fromkeys(found))


def _is_shape(shape: Any) -> bool:
    return shape is not None and not isinstance(shape, str)


def _operation(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.id,
        "tags": [tag_of(operation)],
        "summary": operation.summary,
        "description": inspect.getdoc(operation.handler) or "",
        "responses": _responses(operation),
    }
    parameters = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": _PARAMETERS.get(name, {"type": "string"}),
        }
        for name in operation.params
    ]
    parameters += [
        {"name": q.name, "in": "query", "description": q.doc, "schema": q.schema}
        for q in operation.query
    ]
    if parameters:
        described["parameters"] = parameters
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": _content(operation.body)}
    if operation.permission == PUBLIC:
        described["security"] = []
    else:
        described["security"] = [{"apiKey": []}]
        described["x-permission"] = operation.permission
    return described


def _responses(operation: Operation) -> dict[str, Any]:
    responses: dict[str, Any] = {
        str(operation.status): {"description": operation.summary, **_reply(operation)}
    }
    if operation.deferred is not None:
        responses["202"] = {
            "description": "With `Prefer: respond-async`: taken on as a job",
            "content": _content(operation.deferred),
        }
    by_status: dict[int, list[type[ApplianceError]]] = {}
    for problem in problems_of(operation):
        by_status.setdefault(problem.status, []).append(problem)
    for status, problems in sorted(by_status.items()):
        slugs = ", ".join(f"`{problem.slug}`" for problem in problems)
        titles = "; ".join(problem.title for problem in problems)
        responses[str(status)] = {
            "description": f"{titles} ({slugs})",
            "content": {operation.form.media_type: {"schema": operation.form.schema}},
        }
    return responses


def _reply(operation: Operation) -> dict[str, Any]:
    return {} if operation.reply is None else {"content": _content(operation.reply)}


def _content(shape: Any) -> dict[str, Any]:
    if isinstance(shape, tuple):
        if not _is_shape(shape[0]):
            return {media_type: {} for media_type in shape}
        schemas, _ = msgspec.json.schema_components(shape, ref_template=_REF)
        return {JSON: {"schema": {"oneOf": list(schemas)}}}
    (schema,), _ = msgspec.json.schema_components([shape], ref_template=_REF)
    return {JSON: {"schema": schema}}
