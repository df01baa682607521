"""One row of the route table: an operation declares everything before it can be served.

Owns: ``Operation``, ``RefusalForm`` and ``Table``, which refuses an operation without a permission,
a summary or a documented reply.
Never: runs a handler (``dispatch``) or renders documentation (``openapi``).
Read next: ``api.native`` and ``api.admin`` (the rows), ``dispatch`` (what happens to a request).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from appliance.errors import ApplianceError
from appliance.policy import PERMISSIONS
from appliance.wire import PROBLEM_JSON, Reply, problem_reply

PUBLIC = "public"
"""The permission of an operation anybody may use; it sees no tenant's data."""

Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
Place = Literal["tenant", "own", "appliance"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One query parameter; one that ``is_many`` may be repeated, its values joined by newlines."""

    name: str
    doc: str
    schema: dict[str, Any]
    is_many: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalForm:
    """How a contract writes a problem: its media type, its JSON Schema, and what renders it.

    ``render`` takes what ``wire.problem_reply`` takes.
    """

    media_type: str
    schema: dict[str, Any]
    render: Callable[..., Reply]


PROBLEM = RefusalForm(
    media_type=PROBLEM_JSON,
    schema={"$ref": "#/components/schemas/Problem"},
    render=problem_reply,
)
"""The appliance's own form (RFC 9457)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method on one path; a last parameter ``{path}`` is the rest of it, slashes included.

    Attributes:
        permission: a member of ``policy.PERMISSIONS``, or ``PUBLIC`` said out loud.
        place: where the resource lives: in the tenant named in the path, in the caller's own
            tenant (collections that show each caller its own part), or in the appliance itself.
        handler: gets a ``dispatch.Call`` and returns the reply; its docstring is the long text.
        body: shape of the JSON request body, or the media types of a raw one.
        reply: shape of the JSON answer (or those it may have), or the media types of a raw one;
            ``None`` for no content.
        deferred: shape of the JSON answer with status 202 to ``Prefer: respond-async``.
        needs_store: False for the few that answer while the appliance is sealed.
        admin_only: served on the admin socket only.
        form: how its problems are written.
    """

    method: Method
    path: str
    permission: str
    place: Place = "tenant"
    handler: Callable[[Any], Awaitable[Reply]]
    summary: str
    body: Any = None
    reply: Any = None
    status: int = 200
    deferred: Any = None
    query: tuple[Query, ...] = ()
    problems: tuple[type[ApplianceError], ...] = ()
    needs_store: bool = True
    admin_only: bool = False
    form: RefusalForm = PROBLEM

    @property
    def id(self) -> str:
        """Stable name: the handler's module and function, e.g. ``models.invoke``."""
        return f"{self.handler.__module__.rsplit('.', 1)[-1]}.{self.handler.__name__}"

    @property
    def params(self) -> tuple[str, ...]:
        """Names of the path's parameters, in order."""
        return tuple(re.findall(r"{(\w+)}", self.path))

    @property
    def query_names(self) -> tuple[str, ...]:
        """Names of the query parameters."""
        return tuple(query.name for query in self.query)

    @property
    def query_many(self) -> tuple[str, ...]:
        """Names of those query parameters that may be repeated."""
        return tuple(query.name for query in self.query if query.is_many)


class Table:
    """Every operation there is, each checked when it is added."""

    def __init__(self, operations: tuple[Operation, ...] = ()) -> None:
        self._rows: dict[tuple[str, str], Operation] = {}
        for operation in operations:
            self.add(operation)

    def add(self, operation: Operation) -> None:
        """Add a row.

        Raises:
            ValueError: it does not say who may use it, or what it is for, or is there already.
        """
        where = f"{operation.method} {operation.path}"
        if operation.permission != PUBLIC and operation.permission not in PERMISSIONS:
            raise ValueError(f"{where}: '{operation.permission}' is not a permission")
        if not operation.summary or not inspect.getdoc(operation.handler):
            raise ValueError(f"{where}: has no summary or its handler no docstring")
        if ("tenant" in operation.params) != (operation.place == "tenant"):
            raise ValueError(f"{where}: place '{operation.place}' does not fit the path")
        if operation.admin_only != operation.path.startswith("/admin/"):
            raise ValueError(f"{where}: admin_only does not fit the path")
        if (operation.method, operation.path) in self._rows:
            raise ValueError(f"{where}: declared twice")
        self._rows[(operation.method, operation.path)] = operation

    def __iter__(self) -> Iterator[Operation]:
        return iter(self._rows.values())

    def __len__(self) -> int:
        return len(self._rows)

    def by_path(self, *, admin: bool) -> dict[str, dict[str, Operation]]:
        """Path to method to operation; without the admin contract unless asked for."""
        found: dict[str, dict[str, Operation]] = {}
        for operation in self:
            if admin or not operation.admin_only:
                found.setdefault(operation.path, {})[operation.method] = operation
        return found
