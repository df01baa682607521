"""What happens to a request, in order: name, path, state, caller, right, handler, answer.

Owns: ``Context`` (what a handler works with) and ``Application`` (one ASGI application).
Never: knows a contract's content; a handler never sees an unchecked tenant.
Read next: ``operation`` (what was declared), ``wire`` (how things are read and written).

Every way out of here is a reply with a request id; everything that is not a success is a problem
document, including what no route matches and what crashed.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

from starlette.routing import Route, Router

from appliance import clock, wire
from appliance.api.operation import PROBLEM, PUBLIC, Operation, Table
from appliance.auth import ANONYMOUS, Principal, Scheme, authenticate
from appliance.auth.api_key import ApiKeyScheme
from appliance.auth.peer import PeerScheme
from appliance.errors import (
    ApplianceError,
    CallerError,
    CapacityExhausted,
    HostError,
    MethodNotAllowed,
    Unauthenticated,
)
from appliance.events import RequestRefused
from appliance.metrics import Metrics
from appliance.node import Node, Services
from appliance.policy import Policy
from appliance.records import Tenant
from appliance.room import Hold
from appliance.store import Snapshot
from appliance.wire import Front, Receive, Reply, Request, Scope, Send

_log = logging.getLogger(__name__)
_UNMATCHED = "unmatched"
_KNOWN_MAX = 4096
_CALLS = ("/invoke", "/infer", "/invocations")
_NO_EXTENSIONS: dict[str, Any] = {}
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})
_NOBODY = Principal(id=ANONYMOUS, kind="api-key", role="caller")


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a handler works with: the request and the parts of the appliance it may use."""

    request: Request
    node: Node
    front: Front
    table: Table
    policy: Policy
    is_admin: bool
    held: Services | None = None

    @property
    def services(self) -> Services:
        """The parts of an unsealed node, as they were when the request was let in.

        Raises:
            Uninitialised, Sealed, Draining: there are none, for an operation that does not
                declare ``needs_store``.
        """
        return self.held or self.node.services

    @property
    def snapshot(self) -> Snapshot:
        """The registry as it is now."""
        return self.services.store.registry.snapshot

    @property
    def principal(self) -> Principal:
        """Who is calling."""
        return self.request.principal

    @property
    def tenant(self) -> Tenant:
        """The tenant named in the path, checked to be visible to the caller."""
        if self.request.tenant is None:
            raise wire.not_found()
        return self.request.tenant


@dataclass(slots=True)
class _Course:
    """What is known about a request so far, for its record should it be refused."""

    id: str
    method: str
    operation: Operation | None = None
    principal: Principal | None = None
    hold: Hold | None = None


class Application:
    """The ASGI application of one listener."""

    def __init__(
        self, table: Table, *, node: Node, policy: Policy, front: Front, is_admin: bool
    ) -> None:
        """Serve a table.

        Args:
            table: every operation there is.
            node: the life of the process.
            policy: the rules.
            front: what the listeners turned out to be.
            is_admin: True for the admin socket: its contract is added, and the kernel says who
                calls; False for HTTPS, where API keys do.
        """
        self._table = table
        self._node = node
        self._metrics: Metrics = node.metrics
        self._policy = policy
        self._front = front
        self._is_admin = is_admin
        uids = frozenset({0, os.geteuid(), *node.settings.admin.uids})
        self._peers = PeerScheme(uids)
        self._keys: tuple[Services, ApiKeyScheme] | None = None
        self._known: dict[bytes, tuple[dict[str, Operation], dict[str, str]]] = {}
        paths = table.by_path(admin=is_admin)
        # Calls first: the router tries its routes in order.
        order = sorted(paths, key=lambda path: not path.endswith(_CALLS))
        self._router = Router(
            routes=[
                Route(path.replace("{path}", "{path:path}"), endpoint=_Endpoint(self, paths[path]))
                for path in order
            ],
            default=self._unmatched,
            redirect_slashes=False,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        known = self._known.get(scope["raw_path"]) if scope["type"] == "http" else None
        if known is not None:
            methods, params = known
            scope["path_params"] = params
            await self.answer(scope, receive, send, methods)
        elif scope["type"] == "http" and not wire.is_plain_path(scope["raw_path"]):
            await self._unmatched(scope, receive, send)
        elif scope["type"] in ("http", "lifespan"):
            await self._router(scope, receive, send)  # type: ignore[arg-type]

    def remember(self, scope: Scope, methods: dict[str, Operation]) -> None:
        """Keep what the router found for an address that was answered: calls repeat."""
        if len(self._known) >= _KNOWN_MAX:
            self._known.clear()
        self._known[scope["raw_path"]] = (methods, scope["path_params"])

    async def answer(
        self, scope: Scope, receive: Receive, send: Send, methods: dict[str, Operation]
    ) -> None:
        """Answer a request whose path is known."""
        course = _Course(id=clock.new_id("req"), method=scope["method"])
        started_ns = clock.monotonic_ns()
        self._metrics.add_in_flight(1)
        status = 500
        try:
            reply = await self._reply(course, scope, receive, methods)
            reply = self._with_room(course, reply)
            status = reply.status
            if status < 400 and methods:
                self.remember(scope, methods)
            await wire.send_reply(reply, course.id, send)
            if reply.after is not None:
                reply.after()
        except ConnectionError:
            _log.info("%s: the caller hung up", course.id)
        finally:
            if course.hold is not None:
                course.hold.give_back()
            self._metrics.add_in_flight(-1)
            self._metrics.request_ended(
                operation=course.operation.id if course.operation else _UNMATCHED,
                status=status,
                total_us=(clock.monotonic_ns() - started_ns) // 1000,
            )

    def _with_room(self, course: _Course, reply: Reply) -> Reply:
        """The answer, or a problem if answers that nobody takes leave no memory for it."""
        try:
            if course.hold is not None:
                course.hold.add(len(reply.body))
        except CapacityExhausted as problem:
            form = course.operation.form if course.operation else PROBLEM
            return form.render(problem, course.id)
        return reply

    async def _unmatched(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await self.answer(scope, receive, send, {})

    async def _reply(
        self, course: _Course, scope: Scope, receive: Receive, methods: dict[str, Operation]
    ) -> Reply:
        try:
            return await self._handle(course, scope, receive, methods)
        except ApplianceError as error:
            problem = error
        except Exception:  # noqa: BLE001 - the last net: nothing but an incident id may leave
            _log.exception("incident %s", course.id)
            self._metrics.incident()
            problem = HostError(f"Something failed inside the appliance; incident {course.id}.")
        if isinstance(problem, CallerError) and "audit_seq" not in problem.extensions:
            self._record_refusal(course, problem)
        principal = course.principal
        is_owner = principal is not None and (principal.kind == "peer" or principal.role == "owner")
        form = course.operation.form if course.operation else PROBLEM
        return form.render(problem, course.id, is_owner=is_owner)

    async def _handle(
        self, course: _Course, scope: Scope, receive: Receive, methods: dict[str, Operation]
    ) -> Reply:
        if not methods:
            raise wire.no_such_address(scope["raw_path"])
        operation = methods.get("GET" if course.method == "HEAD" else course.method)
        if operation is None:
            allowed = sorted({*methods, *(("HEAD",) if "GET" in methods else ())})
            raise MethodNotAllowed("This address does not answer that method.", allow=allowed)
        course.operation = operation
        services = self._node.services if operation.needs_store else None
        snapshot = services.store.registry.snapshot if services else None
        if operation.permission == PUBLIC:
            principal, tenant = _NOBODY, None
        else:
            principal = authenticate(self._schemes(scope), wire.presented_from_scope(scope))
            course.principal = principal
            tenant = self._authorise(operation, principal, scope["path_params"], snapshot)
        course.hold = Hold(self._node.room, tenant.id if tenant else principal.id)
        request = Request(
            id=course.id,
            method=course.method,
            params=scope["path_params"],
            query=wire.query_from_bytes(
                scope["query_string"], operation.query_names, operation.query_many
            ),
            headers=tuple(scope["headers"]),
            principal=principal,
            tenant=tenant,
            receive=receive,
            body_timeout_s=float(self._node.settings.http.body_timeout_s),
            hold=course.hold,
            on_hangup=scope.get("extensions", _NO_EXTENSIONS).get(wire.HANGUP, _nothing),
        )
        return await operation.handler(
            Context(
                request=request,
                node=self._node,
                front=self._front,
                table=self._table,
                policy=self._policy,
                is_admin=self._is_admin,
                held=services,
            )
        )

    def _schemes(self, scope: Scope) -> tuple[Scheme, ...]:
        if self._is_admin:
            return (self._peers,)
        if (scope.get("state") or {}).get("peer") is not None:
            raise Unauthenticated("This listener takes API keys only.")
        services = self._node.services
        if self._keys is None or self._keys[0] is not services:
            store = services.store
            scheme = ApiKeyScheme(store.secret("api-key-pepper"), lambda: store.registry.snapshot)
            self._keys = (services, scheme)
        return (self._keys[1],)

    def _authorise(
        self,
        operation: Operation,
        principal: Principal,
        params: dict[str, str],
        snapshot: Snapshot | None,
    ) -> Tenant | None:
        """The tenant named in the path, if the caller has the right; looks alike if there is none.

        A tenant's key gets the same 404 for another tenant and for no tenant. An appliance-wide
        principal without the right gets the same 403 for both.
        """
        if operation.place != "tenant" or snapshot is None:
            own = principal.tenant_id if operation.place == "own" else ""
            self._policy.require(principal, operation.permission, tenant_id=own)
            return None
        tenant = snapshot.tenant(params["tenant"])
        if tenant is None and principal.tenant_id:
            raise wire.not_found()
        self._policy.require(
            principal,
            operation.permission,
            tenant_id=tenant.id if tenant else "none",
            model=params.get("model", ""),
        )
        if tenant is None:
            raise wire.not_found()
        return tenant

    def _record_refusal(self, course: _Course, problem: ApplianceError) -> None:
        """Put a refusal on record, best effort: it must not cost more than the request did."""
        if self._node.state != "ready":
            return
        principal = course.principal
        event = RequestRefused(
            request_id=course.id,
            method=course.method if course.method in _METHODS else "OTHER",
            target=course.operation.path if course.operation else _UNMATCHED,
            status=problem.status,
            code=problem.slug,
        )
        self._node.services.store.ledger.append_later(
            event,
            tenant_id=principal.tenant_id if principal else "",
            actor=principal.id if principal else ANONYMOUS,
        )


def _nothing(_: Any) -> None:
    """Where the listener cannot tell that a caller hung up."""


class _Endpoint:
    """One path as a raw ASGI application; Starlette only matches and never wraps it."""

    def __init__(self, application: Application, methods: dict[str, Operation]) -> None:
        self._application = application
        self._methods = methods

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._application.answer(scope, receive, send, self._methods)
