"""MLflow's forms: where its addresses begin, how it writes an error, and how bodies are read.

Owns: the paths, the error codes, paging, and the helpers that make an operation.
Never: knows a model or a run.
Read next: ``registered`` (models and versions), ``runs``, ``artifacts``, ``scoring``.

Members of a body that are not known are passed over, as MLflow's own server does: newer clients
send more of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from appliance import wire
from appliance.api.dispatch import Context
from appliance.api.operation import Method, Operation, Query, RefusalForm
from appliance.errors import ApplianceError, InputInvalid
from appliance.wire import JSON, Reply

T = TypeVar("T")

ROOT = "/t/{tenant}/api/2.0/mlflow"
ARTIFACTS = "/t/{tenant}/api/2.0/mlflow-artifacts/artifacts"
SCHEME = "mlflow-artifacts:/"
BODY_BYTES_MAX = 1024 * 1024
PAGE_MAX = 1000
_CODES = {
    "malformed": "INVALID_PARAMETER_VALUE",
    "input-invalid": "INVALID_PARAMETER_VALUE",
    "archive-rejected": "INVALID_PARAMETER_VALUE",
    "unsupported-media": "INVALID_PARAMETER_VALUE",
    "unauthenticated": "UNAUTHENTICATED",
    "forbidden": "PERMISSION_DENIED",
    "not-found": "RESOURCE_DOES_NOT_EXIST",
    "gone": "RESOURCE_DOES_NOT_EXIST",
    "method-not-allowed": "ENDPOINT_NOT_FOUND",
    "name-taken": "RESOURCE_ALREADY_EXISTS",
    "revision-stale": "RESOURCE_CONFLICT",
    "version-routed": "INVALID_STATE",
    "version-immutable": "INVALID_STATE",
    "too-large": "REQUEST_LIMIT_EXCEEDED",
    "quota-exceeded": "RESOURCE_LIMIT_EXCEEDED",
}


def _refusal(error: ApplianceError, request_id: str, *, is_owner: bool = False) -> Reply:
    """A problem in MLflow's own form; the rest of what is known goes into headers."""
    reply = wire.problem_reply(error, request_id, is_owner=is_owner)
    document = msgspec.json.decode(reply.body)
    code = _CODES.get(error.slug) or (
        "TEMPORARILY_UNAVAILABLE" if error.status == 503 else
        "INTERNAL_ERROR" if error.status >= 500 else "BAD_REQUEST"
    )  # fmt: skip
    text = " ".join(part for part in (document["detail"], document.get("hint", "")) if part)
    return Reply(
        status=reply.status,
        body=msgspec.json.encode({"error_code": code, "message": text}),
        headers=(*reply.headers, ("problem", error.slug)),
    )


FORM = RefusalForm(
    media_type=JSON,
    schema={
        "type": "object",
        "required": ["error_code", "message"],
        "properties": {
            "error_code": {"type": "string"},
            "message": {"type": "string", "description": "What to change."},
        },
    },
    render=_refusal,
)


class Pair(msgspec.Struct):
    """A tag or parameter."""

    key: str
    value: str = ""


class Page(msgspec.Struct):
    """What every search takes; the members below ``page_token`` only some."""

    filter: str = ""
    max_results: int = 100
    order_by: list[Any] = []
    page_token: str = ""
    experiment_ids: list[str] = []
    datasets: list[Any] = []
    run_view_type: str = "ACTIVE_ONLY"
    view_type: str = "ACTIVE_ONLY"


async def read(context: Context, shape: type[T]) -> T:
    """The JSON body as this shape. Raises UnsupportedMedia, Malformed, InputInvalid, TooLarge."""
    return await context.request.json(shape, limit_bytes=BODY_BYTES_MAX)


def asked(context: Context, name: str) -> str:
    """A query parameter that has to be there. Raises InputInvalid."""
    value = context.request.query.get(name, "")
    if not value:
        raise InputInvalid(f"The parameter '{name}' is missing.")
    return value


def needed(value: str, name: str) -> str:
    """A member of the body that has to be there. Raises InputInvalid."""
    if not value:
        raise InputInvalid(f"The member '{name}' is missing.")
    return value


def pairs(items: Sequence[Pair]) -> dict[str, str]:
    """Tags or parameters as a map; the last of a key counts."""
    return {item.key: item.value for item in items}


def listed(items: dict[str, str]) -> list[dict[str, str]]:
    """A map as MLflow lists it."""
    return [{"key": key, "value": value} for key, value in items.items()]


def page_from_query(context: Context) -> Page:
    """The page a GET asks for."""
    query = context.request.query
    return Page(
        filter=query.get("filter", ""),
        max_results=context.request.int_query("max_results", default=100, low=1, high=10**9),
        order_by=query["order_by"].split("\n") if query.get("order_by") else [],
        page_token=query.get("page_token", ""),
    )


def paged(found: Sequence[T], page: Page) -> tuple[Sequence[T], str]:
    """One page of what was found, and the token of the next, ``""`` after the last.

    Raises:
        InputInvalid: the token is none of ours, or a page would be empty.
    """
    token = page.page_token
    if page.max_results < 1 or (token and not (token.isascii() and token.isdigit())):
        raise InputInvalid("max_results is 1 or more, page_token one that a search returned.")
    start = int(token[:9] or 0)
    end = start + min(page.max_results, PAGE_MAX)
    return found[start:end], str(end) if end < len(found) else ""


def milliseconds(ns: int) -> int:
    """A time as MLflow writes it."""
    return ns // 1_000_000


def query(*names: str, many: tuple[str, ...] = ()) -> tuple[Query, ...]:
    """Query parameters of these names; ``many`` may come more than once."""
    found = [Query(name=name, doc="As in MLflow.", schema={"type": "string"}) for name in names]
    schema = {"type": "array", "items": {"type": "string"}}
    found += [Query(name=n, doc="As in MLflow.", schema=schema, is_many=True) for n in many]
    return tuple(found)


def operation(
    method: Method, path: str, permission: str, handler: Any, summary: str, **more: Any
) -> Operation:
    """A row of the table in MLflow's form; bodies are JSON."""
    has_body = method != "GET"
    return Operation(
        method=method,
        path=more.pop("root", ROOT) + path,
        permission=permission,
        handler=handler,
        summary=summary,
        body=more.pop("body", (JSON,) if has_body else None),
        reply=more.pop("reply", (JSON,)),
        form=FORM,
        **more,
    )
