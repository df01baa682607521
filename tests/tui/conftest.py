"""A canned admin API behind httpx's transport seam, and the console in front of it.

Owns: the answers Pilot tests see and the requests they assert on.
Never: patches the console; the transport is the only seam.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx
import pytest
from canned_drift import drift_rows
from canned_runtimes import beside_runtimes, runtime_rows
from rich.cells import cell_len
from textual.pilot import Pilot
from textual.screen import ModalScreen
from textual.widgets import Static

from tui.app import ConsoleApp
from tui.client import Client
from tui.nav import Place, place_from

LONG = "a-very-long-name-that-does-not-fit-anywhere-at-eighty-columns-xx"
T0 = "2026-01-31T12:00:00.123Z"
MANY = 150
SECRET = "mak_0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQ0000wxyz"


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

    # -- content -------------------------------------------------------------------------------

    def fill(self, kind: str) -> None:
        """Rows of every view: empty, one, many (more than fit), long, foreign."""
        n = {"empty": 0, "one": 1, "many": MANY}.get(kind, 3)
        name: Callable[[int], str] = {
            "long": lambda i: f"{LONG}{i}",
            "foreign": lambda i: ("データ分析", "größe-ß\u202e[bold]", "émoji👩\u200d🔬\x1b[31m")[
                i
            ],
        }.get(kind, lambda i: "risk" if i == 0 else f"name-{i:03d}")
        many = 48_213_944_000 if kind == "long" else 7
        self.views = {
            "dashboard": [
                {
                    "tenant": name(i),
                    "model": name(i) if kind in ("long", "foreign") else f"fraud{i}",
                    "live": i or None,
                    "calls": many - i,
                    "errors": 1,
                    "p95_ms": 38.7 if i else None,
                    "runtime": "python3.11",
                }
                for i in range(min(n, 50))
            ],
            "tenants": [
                {
                    "id": f"ten_{i:013d}",
                    "name": name(i),
                    "isolation": ("standard", "gvisor")[i % 2],
                    "models": i,
                    "keys": i * 3,
                    "calls_15m": many,
                    "storage_bytes": many * 1000,
                    "created_at": T0,
                    "created_by": "uid:0",
                }
                for i in range(n)
            ],
            "keys": [
                {
                    "id": f"key_{i:013d}",
                    "tenant": name(i) if i % 3 else "",
                    "name": name(i),
                    "role": ("owner", "caller", "auditor")[i % 3],
                    "scopes": ["fraud"],
                    "state": ("active", "expired", "revoked")[i % 3],
                    "created_at": T0,
                    "created_by": "uid:0",
                    "expires_at": "2026-05-01T00:00:00Z",
                    "last_used_at": None if i % 2 else T0,
                }
                for i in range(n)
            ],
            "models": [
                {
                    "tenant": name(i),
                    "model": name(i) if kind in ("long", "foreign") else f"fraud{i}",
                    "description": name(i),
                    "versions": 3,
                    "newest": 3,
                    "live": 2,
                    "runtime": "python3.11",
                    "size_bytes": many * 1000,
                    "takes": ["age", name(i)],
                    "gives": ["score"],
                    "tags": {"team": name(i)},
                    "calls_15m": many,
                    "errors_15m": 2,
                    "p95_ms": 38.7,
                    "created_at": T0,
                    "created_by": "key:abc",
                }
                for i in range(n)
            ],
            "versions": [
                {
                    "tenant": "risk",
                    "model": "fraud",
                    "version": n - i,
                    "state": "retired" if i == 2 else "ready",
                    "runtime": "python3.11",
                    "entry": "model:Model",
                    "digest": "sha256:" + "ab" * 32,
                    "size_bytes": many * 1000,
                    "aliases": ["live", name(i)] if i == 1 or n == 1 else [],
                    "calls_15m": many,
                    "errors_15m": 0,
                    "p95_ms": None,
                    "warm": 2 if i == 1 else 0,
                    "warm_ready": 1 if i == 1 else 0,
                    "created_at": T0,
                    "created_by": name(i),
                }
                for i in range(n)
            ],
            "sandboxes": [
                {
                    "id": f"sbx_{i:013d}",
                    "tenant": name(i),
                    "model": name(i),
                    "version": 7,
                    "state": "ready",
                    "pid": 4242 + i,
                    "created_at": T0,
                    "last_used_at": T0,
                    "calls": many,
                    "rss_bytes": 123_456_789,
                    "memory_bytes": 536_870_912,
                    "cpu_ms": 61_000,
                    "gpus": ["0", "1:0"] if i % 2 else [],
                    "gpu_memory_bytes": many,
                }
                for i in range(n)
            ],
            "gpus": [
                {
                    "id": f"GPU-{i:032x}",
                    "index": f"{i}:0" if i % 2 else str(i),
                    "name": name(i),
                    "vendor": "nvidia.com",
                    "state": ("free", "held", "shared")[i % 3],
                    "tenant": name(i) if i % 3 else "",
                    "driver": "580.159.04",
                    "memory_bytes": 85_899_345_920 if i % 4 else None,
                    "allocated_bytes": many,
                    "used_bytes": many if i % 2 else None,
                    "busy_percent": 100 if i % 2 else None,
                }
                for i in range(n)
            ],
            "audit": [
                {
                    "seq": n - i,
                    "time": T0,
                    "kind": "call.outcome" if i % 2 else "tenant.created",
                    "tenant": name(i),
                    "actor": f"key:{name(i)}",
                    "object": name(i),
                    "outcome": "ok" if i % 2 else "",
                    "leaf": f"{i:064x}",
                }
                for i in range(n)
            ],
            "egress": [
                {
                    "id": f"eg_{i:013d}",
                    "tenant": name(i),
                    "position": i + 1,
                    "model": "*" if i % 2 else name(i),
                    "action": ("allow", "deny")[i % 2],
                    "host": "db.example.test" if kind != "long" else LONG,
                    "ports": ["5432", "8000-8100"] if i % 3 else [],
                    "protocol": "any",
                    "reason": name(i),
                    "note": "" if kind != "long" else LONG,
                    "created_at": T0,
                    "created_by": "uid:0",
                }
                for i in range(n)
            ],
            "routes": [
                {
                    "tenant": name(i),
                    "model": name(i),
                    "version": i + 1,
                    "role": ("baseline", "canary", "shadow")[i % 3],
                    "percent": (90.0, 9.99, None)[i % 3],
                    "calls": many,
                    "error_percent": 0.25,
                    "p95_ms": 38.7 if i % 2 else None,
                    "detail": "4711 equal, 12 close, 3 different" if i % 3 == 2 else "",
                    "arms": [{"version": 1, "percent": 90.0}, {"version": 2, "percent": 10.0}],
                    "sticky": "header:x-user",
                    "shadows": [3],
                    "canary": {
                        "version": 2,
                        "against": 1,
                        "error_rate_max": 0.01,
                        "latency_ratio_max": 1.5,
                        "action": "abort",
                    },
                    "against": 1,
                    "complaint": name(i) if kind == "long" else "",
                    "state": ("active", "held", "aborted")[i % 3],
                    "revision": 41,
                    "reason": name(i),
                    "set_at": T0,
                    "set_by": "key:abc",
                }
                for i in range(n)
            ],
            "drift": drift_rows([name(i) for i in range(n)], many),
            "runtimes": runtime_rows([name(i) for i in range(n)], many),
            "health": [
                {
                    "name": f"check-{i}",
                    "title": "Rootless Podman" if kind != "long" else LONG,
                    "state": ("ok", "warn", "fail", "off")[i % 4],
                    "detail": name(i) + (" and more words" * 9 if kind == "long" else ""),
                    "remedy": "" if i % 4 in (0, 3) else f"apt install {name(i)}",
                    "checked_at": T0,
                }
                for i in range(min(n, 12))
            ],
        }
        health = [r for r in self.views["health"] if r["state"] in ("warn", "fail")]
        self.extras = {
            "dashboard": {
                "totals": {
                    **dict.fromkeys(("tenants", "models", "versions", "keys", "sandboxes"), n),
                    "sandboxes_max": 8,
                    "gpus": n,
                    "gpus_held": n // 2,
                },
                "calls": {"minutes": 15, "calls": many, "errors": 1, "p50_ms": 1.0, "p95_ms": 38.7},
                "series": [{"at": T0, "calls": i, "errors": 0, "p95_ms": i / 2} for i in range(15)],
                "problems": health,
                "recent": self.views["audit"][:5],
            },
            "sandboxes": {
                "pool": {"running": n, "max": 8, "waiting": 2, "warm": 2, "warm_ready": 1}
            },
            "gpus": {"gpus": n, "gpus_held": n // 2, "gpu_calls_waiting": n},
            "egress": {
                "open": many,
                "decisions": [
                    {
                        "seq": i,
                        "time": T0,
                        "kind": ("egress.denied", "egress.opened", "egress.passed")[i % 3],
                        "tenant": name(i),
                        "model": name(i),
                        "to": "db.example.test:5432",
                        "protocol": "tcp",
                        "rule": "",
                        "count": 1,
                        "detail": "default",
                    }
                    for i in range(min(n, 20))
                ],
            },
            "runtimes": beside_runtimes([name(i) for i in range(min(n, 20))], many),
            "audit": {"head": {"size": n, "root": "cd" * 32, "time": T0}},
            "versions": {
                "model": {
                    "tenant": "risk",
                    "model": "fraud",
                    "description": name(0) if n else "",
                    "created_at": T0,
                    "created_by": "key:abc",
                },
                "aliases": [
                    {
                        "name": alias,
                        "version": 1,
                        "revision": 4,
                        "reason": name(0),
                        "set_at": T0,
                        "set_by": "uid:0",
                    }
                    for alias in (("live", "champion") if n else ())
                ],
            },
        }

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
            (r.method, r.url.path, json.loads(r.content) if r.content else None)
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
        body = json.loads(request.content) if request.content else {}
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


Opened = AbstractAsyncContextManager[Pilot[int]]


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same terminal everywhere: colours known, no animation."""
    for name in ("NO_COLOR", "COLORTERM", "TEXTUAL_THEME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.fixture
def console(world: World) -> Callable[..., Opened]:
    """Open the console on the canned world: ``async with console(size=(80, 24)) as pilot``.

    ``goto`` is gone to at once; words that name no place are typed, so that the prompt stays open.
    """

    @asynccontextmanager
    async def open_console(
        size: tuple[int, int] = (80, 24),
        *,
        readonly: bool = False,
        interval_s: float = 0.1,
        url: str | None = None,
        is_mono: bool = False,
        goto: str = "",
    ) -> AsyncIterator[Pilot[int]]:
        client = Client(
            socket="/nowhere", url=url, api_key="k" if url else None, transport=Wire(world)
        )
        app = ConsoleApp(client, readonly=readonly, interval_s=interval_s, is_mono=is_mono)
        app.animation_level = "none"
        async with app.run_test(size=size, notifications=True) as pilot:
            await until(pilot, lambda: bool(world.requests) and app.page is not None)
            await settle(pilot)
            place = place_from(goto) if goto else ""
            if isinstance(place, Place):
                app.go(place)
                await settle(pilot)
            elif goto:
                await type_text(pilot, f":{goto}")
                await pilot.press("enter")
                await settle(pilot)
            yield pilot

    return open_console


async def until(pilot: Pilot[int], test: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Let the console run until something is true."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not test():
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"never came true; screen is:\n{screen_text(pilot)}")
        await pilot.pause(0.01)


async def settle(pilot: Pilot[int]) -> None:
    """Let one poll and its drawing pass."""
    await pilot.pause(0.15)
    await pilot.pause()


async def type_text(pilot: Pilot[int], words: str) -> None:
    names = {
        ":": "colon",
        "/": "slash",
        " ": "space",
        "?": "question_mark",
        "-": "minus",
        "_": "underscore",
    }
    await pilot.press(*(names.get(c, c) for c in words))


def screen_text(pilot: Pilot[int]) -> str:
    """What the terminal would show, as lines of text, dialogs included."""
    lines = []
    for strip in pilot.app.screen._compositor.render_strips(pilot.app.size):
        lines.append("".join(segment.text for segment in strip))
    return "\n".join(lines)


def clipped(pilot: Pilot[int]) -> list[str]:
    """Every visible text that does not fit the place it was given."""
    found = []
    screen = pilot.app.screen
    for widget in screen.walk_children(Static):
        if (
            not widget.display
            or not widget.region.width
            or any(not a.display for a in widget.ancestors if hasattr(a, "display"))
        ):
            continue
        width, height = widget.content_size
        lines = str(widget.render()).split("\n") if str(widget.render()) else []
        needed = sum(max(1, math.ceil(cell_len(line) / max(1, width))) for line in lines)
        if needed > height:
            found.append(f"{widget!r}: {needed} lines in {width}x{height}: {lines!r}"[:300])
        parent = widget.parent
        scrolls = any(
            a.allow_vertical_scroll for a in widget.ancestors if hasattr(a, "allow_vertical_scroll")
        )
        if not scrolls and hasattr(parent, "content_region"):  # noqa: SIM102
            if not parent.content_region.contains_region(widget.region):
                found.append(f"{widget!r}: {widget.region} outside {parent.content_region}")
    return found


def is_dialog(pilot: Pilot[int]) -> bool:
    return isinstance(pilot.app.screen, ModalScreen)


@pytest.fixture
def tools() -> Any:
    """The helpers above, for tests that cannot import this file."""

    class Tools:
        pass

    for function in (until, settle, type_text, screen_text, clipped, is_dialog):
        setattr(Tools, function.__name__, staticmethod(function))
    Tools.SECRET = SECRET
    Tools.MANY = MANY
    Tools.Wire = Wire
    Tools.World = World
    return Tools
