"""An appliance inside the test process: real store, real crypto, sandboxes that only echo.

``EchoExecutor`` makes sandboxes without containers; everything above it is the product itself,
spoken to as ASGI without a socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import httpx
import msgspec

from appliance import api, clock, config
from appliance.auth.peer import Peer
from appliance.errors import (
    ApplianceError,
    IsolationUnavailable,
    ModelRaised,
    RunnerCrashed,
    RunnerProtocol,
)
from appliance.node import Node
from appliance.records import Artifact, ArtifactFile, Isolation, Manifest, Merged, Version
from appliance.sandbox.gpu_place import Fill, Places
from appliance.sandbox.spec import (
    Asked,
    Batch,
    LimitsReport,
    Reply,
    Request,
    SandboxInfo,
    SandboxSpec,
    ZygoteKey,
)
from appliance.wire import Front

PASSPHRASE = "a passphrase for tests only"


class EchoSandbox:
    """Answers with what it was asked; ``raise`` raises, ``sleep <s>`` waits first.

    A table with ``poison`` in it raises, one with ``short`` loses its last record.

    ``call <target> <request>`` is answered with what that model answers, or ``refused: <code>``;
    ``at <n> <request>`` is that request to version n, and an echo of all of it to others.
    """

    LOAD_S = 0.0
    HELD: ClassVar[set[bytes]] = set()
    """A body with one of these in it is not answered."""
    WORKS: ClassVar[dict[bytes, Callable[[Request], Awaitable[None]]]] = {}
    """What is done first for a request with this body."""

    def __init__(self, spec: SandboxSpec) -> None:
        self.id = clock.new_id("box")
        self._ended = asyncio.Event()
        self._spec = spec
        self._calls = 0

    @property
    def alive(self) -> bool:
        return not self._ended.is_set()

    @property
    def modules(self) -> tuple[str, ...]:
        return ()

    async def bind(self, spec: SandboxSpec) -> None:
        self._spec = spec

    async def load(self, tar: AsyncIterator[bytes]) -> float:
        async for _ in tar:
            pass
        await asyncio.sleep(self.LOAD_S)
        return 1.0

    can_batch = True

    async def batch(self, batch: Batch) -> None:
        count = len(batch.requests)
        for place, request in enumerate(batch.requests):
            try:
                reply = await self.request(request)
            except ModelRaised as error:
                batch.answered(place, error)
            else:
                told = Merged(id=f"{batch.id}.0", calls=count, rows=count, own_rows=1)
                batch.answered(place, replace(reply, merged=told))

    async def request(self, request: Request) -> Reply:
        self._calls += 1
        prefix = f"at {self._spec.version_key.rpartition('/')[2]} ".encode()
        request = replace(request, body=request.body.removeprefix(prefix))
        if request.body in self.WORKS:
            await self.WORKS[request.body](request)
        if request.body == b"raise":
            raise ModelRaised("ValueError: no", stderr=("line one", "secret line two"))
        if request.body.startswith(b"call "):
            return await self._call(request)
        if request.body.startswith(b"sleep "):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), float(request.body.split()[1]))
                raise RunnerCrashed("The model was stopped.", exit_code=137)
        if any(mark in request.body for mark in self.HELD):
            await self._ended.wait()
            raise RunnerCrashed("The model was stopped.", exit_code=137)
        if b'"poison"' in request.body:
            raise ModelRaised("ValueError: poison")
        body = request.body
        if b'"short"' in body:  # one result too few
            body = body[: body.rindex(b",{")] + b"]}"
        return Reply(content_type=request.content_type, body=body, compute_us=5)

    async def _call(self, request: Request) -> Reply:
        if request.calls is None:
            raise RunnerProtocol("CALL is not allowed here")
        _, target, *rest = request.body.split(b" ", 2)
        asked = Asked(
            target=target.decode(), content_type=request.content_type, body=b"".join(rest)
        )
        try:
            return await request.calls.call(asked)
        except ApplianceError as error:
            body = f"refused: {error.slug}: {request.calls.told(error)}".encode()
            return Reply(content_type="text/plain", body=body, compute_us=5)

    async def freeze(self) -> None:
        pass

    async def has_moved(self) -> bool:
        return False

    async def destroy(self) -> None:
        self._ended.set()

    def stderr_tail(self) -> tuple[str, ...]:
        return ()

    def info(self) -> SandboxInfo:
        return SandboxInfo(
            id=self.id, version_key=self._spec.version_key, tenant_id=self._spec.tenant_id,
            state="ready" if self._spec.version_key else "zygote", pid=1,
            created_ns=clock.now_ns(), calls=self._calls, rss_bytes=1, memory_bytes=2, cpu_ms=3,
            last_used_ns=clock.now_ns(), gpus=self._spec.gpu_units,
        )  # fmt: skip


class EchoExecutor:
    """Makes ``EchoSandbox``es."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.limits = LimitsReport(
            level="enforced", mechanism="none needed", memory="-", pids="-", cpu="-", detail="-"
        )
        self.places = Places()
        self.fills: dict[str, Fill] = {}

    async def gpu_fills(self) -> dict[str, Fill]:
        return self.fills

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def create(self, spec: SandboxSpec) -> EchoSandbox:
        return EchoSandbox(spec)

    async def create_ahead(self, key: ZygoteKey) -> EchoSandbox:
        return EchoSandbox(key.spec)

    def require_isolation(self, isolation: Isolation) -> None:
        if isolation == "gvisor":
            raise IsolationUnavailable("Sandboxes that only echo have no kernel.")

    def has_installed(self, key: ZygoteKey) -> bool:
        return True

    def hold_back(self, held: bool) -> None:
        pass

    async def build(self, spec: Any, requirements: Any, wheels: Any, sink: Any) -> None:
        raise NotImplementedError

    def info(self) -> dict[str, Any]:
        return {"version": "echo"}


@dataclass
class Inside:
    node: Node
    front: Front
    apps: api.Applications

    @property
    def store(self) -> Any:
        return self.node.services.store

    def client(self, secret: str = "", *, admin: bool = False, uid: int | None = None) -> Any:
        """A client of the HTTPS application, or of the admin one as the given user."""
        app = self.apps.admin if admin else self.apps.public
        peer = Peer(pid=1, uid=os.geteuid() if uid is None else uid, gid=0) if admin else None

        async def with_state(scope: Any, receive: Any, send: Any) -> None:
            scope = {**scope, "state": {"peer": peer}}
            scope["raw_path"] = scope["raw_path"].partition(b"?")[0]
            await app(scope, receive, send)

        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(app=with_state), base_url="https://a", headers=headers
        )

    async def tenant(self, name: str) -> Any:
        return await self.store.registry.create_tenant(name=name, actor="uid:0")

    async def key(self, tenant: str, role: str = "owner", **rest: Any) -> str:
        """A fresh key's secret; tenant ``""`` for an appliance-wide role."""
        path = f"/api/v1/tenants/{tenant}/keys" if tenant else "/api/v1/keys"
        name = clock.new_id("k").replace("_", "-")
        async with self.client(admin=True) as client:
            made = await client.post(path, json={"name": name, "role": role, **rest})
        assert made.status_code == 201, made.text
        return str(made.json()["secret"])

    async def version(
        self, tenant: str, model: str, *, isolation: Isolation = "standard", **declared: Any
    ) -> Version:
        """Register a version straight in the registry: no archive, no sandbox.

        ``declared`` goes into its manifest.
        """
        owner = self.store.registry.snapshot.tenant(tenant)
        async with self.store.blobs.writer(owner.id) as writer:
            await writer.write(b"\0" * 1024)
            blob = await writer.commit()
        listed = ArtifactFile(path="model.py", size_bytes=1, digest="sha256:" + "0" * 64)
        return await self.store.registry.register_version(
            tenant_id=owner.id, model_name=model,
            manifest=Manifest(
                runtime="python3.11", entry="model:Model", isolation=isolation, **declared
            ),
            artifact=Artifact(blob=blob, files=(listed,)), runtime_digest="sha256:" + "1" * 64,
            actor="uid:0",
        )  # fmt: skip


@asynccontextmanager
async def inside(
    folder: Path,
    *,
    initialise: bool = True,
    has_passphrase: bool = False,
    sandbox: dict[str, Any] | None = None,
    webhooks: dict[str, Any] | None = None,
    folders: dict[str, config.Folder] | None = None,
    hosts_file: str = "",
    executor: Any = EchoExecutor,
    **http: Any,
) -> AsyncIterator[Inside]:
    """An appliance in ``folder``; ready unless told not to initialise.

    A passphrase costs a second of Argon2, so it is made only where a test unseals with it.
    """
    settings = config.replace(
        config.Settings(), "paths", data_dir=str(folder / "data"), run_dir=str(folder / "run")
    )
    # Whether one is made ahead of calls is a matter of moments: tests of zygotes say so themselves.
    settings = config.replace(
        settings, "sandbox", **{"zygote_memory_bytes_max": 0, **(sandbox or {})}
    )
    settings = config.replace(settings, "egress", hosts_file=hosts_file)
    settings = config.replace(settings, "webhooks", **(webhooks or {}))
    settings = config.replace(settings, "batches", folders=folders or {})
    if http:
        settings = config.replace(settings, "http", **http)
    node = Node(settings, executor_factory=lambda: executor(folder / "data"))
    front = Front(url="https://a")
    try:
        if initialise:
            await node.initialise(
                passphrase=PASSPHRASE if has_passphrase else None, key_file=folder / "unseal.key"
            )
        yield Inside(node=node, front=front, apps=api.build(node, front))
    finally:
        with contextlib.suppress(Exception):
            await node.close()


def without_request_id(answer: httpx.Response) -> tuple[Any, ...]:
    """An answer, comparable: everything but the request id, in headers and body."""
    request_id = answer.headers["request-id"]
    headers = sorted((k, v) for k, v in answer.headers.multi_items() if k != "request-id")
    body = answer.content.replace(request_id.encode(), b"req")
    return answer.status_code, tuple(headers), body


def json_of(answer: httpx.Response) -> Any:
    return msgspec.json.decode(answer.content)
