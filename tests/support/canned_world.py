"""A canned admin API behind httpx's transport seam.

Owns: the answers Pilot tests see and the requests they assert on.
Never: patches the console; the transport is the only seam.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import httpx
from canned_rows import LONG, T0, views_of
from canned_work import documents

FOREIGN = "größe-ß\u202e[bold]\x1b[31m"
SECRET = "mak_0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQ0000wxyz"


def body_of(request: httpx.Request) -> Any:
    """The body of a request as JSON, or as it is where it is something else."""
    is_json = "json" in request.headers.get("content-type", "")
    return json.loads(request.content) if is_json else request.content


class World:
    """What the canned server holds: every view's rows, the state, and how it misbehaves."""

    def __init__(self) -> None:
        self.state = "ready"
        self.contract = 1
        self.mode = "up"  # up | down | hang | half | 401 | 429 | 500
        self.requests: list[httpx.Request] = []
        self.replies: dict[tuple[str, str], tuple[int, Any]] = {}
        self.views: dict[str, list[dict[str, Any]]] = {}
        self.extras: dict[str, dict[str, Any]] = {}
        self.totals: dict[str, int] = {}
        self.passphrase = "correct horse battery"
        self.fill("one")

    def fill(self, kind: str) -> None:
        """Rows of every view: empty, one, many (more than fit), long, foreign."""
        self.views, self.extras = views_of(kind)

    def fill_work(self, kind: str) -> None:
        """The same, and what the pages of one job, batch, schedule and comparison fetch."""
        self.fill(kind)
        name, many = {"long": (LONG, 48_213_944_000), "foreign": (FOREIGN, 7)}.get(
            kind, ("fraud", 7)
        )
        for path, document in documents(name, many).items():
            self.replies["GET", path] = (200, document)

    # -- wire ----------------------------------------------------------------------------------

    def node(self) -> dict[str, Any]:
        return {
            "version": "0.1.0",
            "state": self.state,
            "name": "node-a",
            "pid": 1,
            "uptime_s": 3 * 86400 + 4 * 3600,
            "data_dir": "/var/lib/appliance",
            "url": "https://localhost:8443",
            "tls": {"fingerprint": "sha256:aa", "not_after": "2027-01-01T00:00:00Z"},
            "limits": {
                "level": "supervised",
                "mechanism": "rlimit",
                "memory": "watchdog",
                "pids": "rlimit",
                "cpu": "none",
                "detail": "",
            },
            "runtimes": ["python3.11"],
            "ledger": {"seq": 10, "root": "ab", "applied_seq": 10, "state": "ok"},
            "sandboxes": 1,
            "disk": {"free_bytes": 10**10, "total_bytes": 10**11},
            "slots": [{"name": "first", "kind": "passphrase"}],
            "sealed_since": T0 if self.state == "sealed" else None,
        }

    def sent(self, *methods: str) -> list[tuple[str, str, Any]]:
        """Requests with these methods (anything but GET by default): method, path, JSON body."""
        wanted = methods or ("POST", "PUT", "DELETE", "PATCH")
        return [
            (r.method, r.url.path, body_of(r) if r.content else None)
            for r in self.requests
            if r.method in wanted
        ]

    def snapshot(self, request: httpx.Request) -> httpx.Response:
        view = request.url.params["view"]
        rows = self.views[view]
        extras = self.extras.get(view, {})
        if self.state != "ready":
            rows, extras = (rows, extras) if view == "health" else ([], {})
        health = self.views["health"]
        body = {
            "contract": self.contract,
            "view": view,
            "state": self.state,
            "node": self.node(),
            "alerts": {
                "warn": sum(r.get("state") == "warn" for r in health),
                "fail": sum(r.get("state") == "fail" for r in health),
            },
            "rows": rows,
            "total": self.totals.get(view, len(rows)),
            **extras,
        }
        data = json.dumps(body).encode()
        etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        headers = {"ETag": etag, "Request-Id": "req_snap", "Content-Type": "application/json"}
        if request.headers.get("if-none-match") == etag:
            return httpx.Response(304, headers=headers)
        if self.mode == "half":
            return httpx.Response(200, headers=headers, content=data[: len(data) // 2])
        return httpx.Response(200, headers=headers, content=data)

    def problem(self, status: int, code: str, **more: Any) -> httpx.Response:
        body = {
            "type": f"/problems/{code}",
            "title": code.replace("-", " ").capitalize(),
            "status": status,
            "detail": f"What to change about {code}.",
            "instance": "req_problem",
            "code": code,
            **more,
        }
        return httpx.Response(
            status, json=body, headers={"Content-Type": "application/problem+json"}
        )

    def answer(self, request: httpx.Request) -> httpx.Response:  # noqa: C901
        method, path = request.method, request.url.path
        body = body_of(request) if request.content else {}
        canned = self.replies.get((method, path))
        if canned is not None:
            status, data = canned
            if status >= 400:
                return self.problem(status, data)
            if isinstance(data, str):
                return httpx.Response(status, text=data, headers={"Request-Id": "req_1"})
            return httpx.Response(status, json=data, headers={"Request-Id": "req_1"})
        if path == "/admin/v1/snapshot":
            return self.snapshot(request)
        if path == "/admin/v1/checks":
            return httpx.Response(200, json={"items": self.views["health"]})
        if path == "/admin/v1/init":
            self.state = "sealed"
            return httpx.Response(201, json=self.node())
        if path == "/admin/v1/unseal":
            if body.get("passphrase") != self.passphrase and "key_file" not in body:
                return self.problem(403, "unseal-failed")
            self.state = "ready"
            return httpx.Response(200, json=self.node())
        if self.state != "ready":
            return self.problem(503, self.state)
        if method == "POST" and path.endswith("/keys"):
            return httpx.Response(
                201, json={"id": "key_new", "secret": SECRET}, headers={"Request-Id": "req_1"}
            )
        if method == "GET":
            return self.problem(404, "not-found")
        return httpx.Response(
            204 if method == "DELETE" else 200,
            json=None if method == "DELETE" else {},
            headers={"Request-Id": "req_1"},
        )


class Wire(httpx.AsyncBaseTransport):
    """The seam: hands each request to the world, or fails as told."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        world = self.world
        await request.aread()
        world.requests.append(request)
        if world.mode == "down":
            raise httpx.ConnectError("refused") from ConnectionRefusedError(
                111, "Connection refused"
            )
        if world.mode == "hang":
            await self._hang(request.extensions["timeout"]["read"])
        if world.mode.isdigit():
            code = {"401": "unauthenticated", "429": "quota-exceeded", "500": "internal"}
            return world.problem(int(world.mode), code[world.mode])
        return world.answer(request)

    async def _hang(self, timeout_s: float) -> None:
        """Answer nothing until the client gives up, or the world comes back."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while self.world.mode == "hang":
            if loop.time() > deadline:
                raise httpx.ReadTimeout("hang")
            await asyncio.sleep(0.02)
