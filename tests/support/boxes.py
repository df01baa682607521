"""Helpers for tests of sandboxes: a model that runs what it is told, and a sandbox around it."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from appliance.records import CallLimits, Container, Isolation, Resources
from appliance.sandbox.executor import Executor, Sandbox
from appliance.sandbox.spec import MIB, Calls, Request, SandboxSpec, ZygoteKey

RUNTIME = "python3.11"

# ``{"run": "<Python>"}`` runs the text and answers with what it left in ``answer``; anything else
# comes back as it is.
RUN_MODEL = b"""
class Model:
    def __init__(self, path):
        self.kept = {}
    def predict(self, inputs):
        if isinstance(inputs, dict) and "run" in inputs:
            names = {"kept": self.kept, "inputs": inputs}
            exec(compile(inputs["run"], "<test>", "exec"), names)
            return names.get("answer")
        return inputs
"""


def tar_of(files: dict[str, bytes]) -> bytes:
    """A tar of regular files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


async def pieces(data: bytes, size: int = 64 * 1024) -> AsyncIterator[bytes]:
    """The bytes as a stream."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


class Ways:
    """How ``box`` gets its sandbox: made for its version, made ahead and bound, or of the image
    named here, which has a server of its own; and its tier."""

    ahead = False
    image = ""
    isolation: Isolation = "standard"


def spec_of(
    key: str = "v1", *, memory_mb: int = 256, files: dict[str, bytes] | None = None, **changes: Any
) -> SandboxSpec:
    """A version's sandbox; ``changes`` go to the spec, its resources or its limits."""
    resources: dict[str, Any] = {"memory_bytes": memory_mb * MIB, "tmp_bytes": 16 * MIB}
    limits: dict[str, Any] = {"load_timeout_ms": 30_000, "invoke_timeout_ms": 20_000}
    own: dict[str, Any] = {}
    for name, value in changes.items():
        if name in Resources.__dataclass_fields__:
            resources[name] = value
        elif name in CallLimits.__dataclass_fields__:
            limits[name] = value
        else:
            own[name] = value
    spec = SandboxSpec(
        version_key=key,
        tenant_id=f"tenant-of-{key}",
        runtime=RUNTIME,
        runtime_digest="",
        resources=Resources(**resources),
        limits=CallLimits(**limits),
        model_bytes=sum(len(content) for content in (files or {"model.py": RUN_MODEL}).values()),
        entry="model:Model",
        isolation=Ways.isolation,
    )
    return replace(spec, **own)


# Finds the runner's own connection from inside the model and speaks on it in the runner's place.
SPEAK = """
import json, os, socket, struct
for fd in range(3, 64):
    try:
        link = socket.socket(fileno=os.dup(fd))
        link.getpeername()
    except OSError:
        continue
    break
def send(header, size, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    link.sendall(struct.pack(">IQ", len(text), size) + text + body)
"""


def key_of(spec: SandboxSpec, *modules: str) -> ZygoteKey:
    """The kind of zygote that fits a version."""
    return ZygoteKey(
        runtime=spec.runtime,
        runtime_digest=spec.runtime_digest,
        deps_key=spec.deps_key,
        resources=spec.resources,
        modules=modules,
    )


async def sandbox_for(executor: Executor, spec: SandboxSpec) -> Sandbox:
    """A sandbox of this version, not loaded."""
    if Ways.image:
        told = Container(protocol="sagemaker", model_path="/model")
        as_image = replace(spec, runtime=Ways.image, runtime_digest="", entry="", container=told)
        return await executor.create(as_image)
    if not Ways.ahead:
        return await executor.create(spec)
    sandbox = await executor.create_ahead(key_of(spec, "decimal", "csv"))
    await sandbox.bind(spec)
    return sandbox


class Box:
    """A loaded sandbox that is easy to ask."""

    def __init__(self, sandbox: Sandbox, spec: SandboxSpec) -> None:
        self.sandbox = sandbox
        self.spec = spec
        self._asked = 0

    async def ask(
        self,
        body: bytes,
        content_type: str = "application/json",
        *,
        timeout_ms: int = 0,
        reply_bytes_max: int = 0,
        calls: Calls | None = None,
    ) -> tuple[str, bytes]:
        """Content type and bytes of an answer."""
        self._asked += 1
        reply = await self.sandbox.request(
            Request(
                id=f"r{self._asked}",
                content_type=content_type,
                body=body,
                timeout_ms=timeout_ms or self.spec.limits.invoke_timeout_ms,
                reply_bytes_max=reply_bytes_max or self.spec.limits.reply_bytes_max,
                calls=calls,
            )
        )
        return reply.content_type, reply.body

    async def run(self, text: str, **more: Any) -> Any:
        """What Python text left in ``answer`` when it ran inside the model."""
        options = {k: more.pop(k) for k in ("timeout_ms", "reply_bytes_max") if k in more}
        kind, body = await self.ask(json.dumps({"run": text, **more}).encode(), **options)
        return json.loads(body) if kind == "application/json" else body.decode()


@asynccontextmanager
async def box(
    executor: Executor, spec: SandboxSpec | None = None, files: dict[str, bytes] | None = None
) -> AsyncIterator[Box]:
    """A sandbox with the model in ``files`` loaded, destroyed at the end."""
    files = files or {"model.py": RUN_MODEL}
    spec = spec or spec_of(files=files)
    sandbox = await sandbox_for(executor, spec)
    try:
        await sandbox.load(pieces(tar_of(files)))
        yield Box(sandbox, spec)
    finally:
        await sandbox.destroy()
