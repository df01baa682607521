"""Compiling: what a compiled language's artifact becomes at its registration.

Owns: the compiler's sandbox, and the file that comes out of it.
Never: runs a compiler on the host, or keeps what it made: that becomes part of the version, sealed.
Read next: ``lifecycle`` (the only user), ``guest/native_runner.pl`` (what runs inside).
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from appliance import config
from appliance.errors import BuildFailed, GuestError, LoadFailed
from appliance.records import CallLimits, Resources
from appliance.sandbox.executor import Executor
from appliance.sandbox.images import Runtime
from appliance.sandbox.runtimes import RUNTIMES
from appliance.sandbox.spec import MIB, Request, SandboxSpec

COMPILED_BYTES_MAX = 256 * MIB
_MEMORY_BYTES = 1024 * MIB
_ROOM_BYTES = 512 * MIB
_READ_TIMEOUT_MS = 60_000


async def compiled(
    executor: Executor,
    compiler: Runtime,
    *,
    tenant_id: str,
    entry: str,
    model_bytes: int,
    tar: AsyncIterator[bytes],
    build: config.Build,
    deps_key: str = "",
) -> bytes:
    """The program made of an artifact, in a sandbox without network that is then destroyed.

    Args:
        executor: a started engine.
        compiler: the installed runtime that compiles.
        tenant_id: whose artifact it is.
        entry: the manifest's entry, which names source and class.
        model_bytes: size of the artifact.
        tar: the artifact.
        build: the ``[build]`` section; its time limit holds here too.
        deps_key: the packages it is compiled against.

    Raises:
        BuildFailed: it does not compile; the detail is the compiler's first error.
    """
    spec = SandboxSpec(
        version_key="build",
        tenant_id=tenant_id,
        runtime=compiler.name,
        runtime_digest=compiler.digest,
        deps_key=deps_key,
        resources=Resources(memory_bytes=_MEMORY_BYTES, cpus=64.0, pids=128, tmp_bytes=_ROOM_BYTES),
        limits=CallLimits(load_timeout_ms=build.timeout_s * 1000),
        model_bytes=model_bytes,
        entry=entry,
    )
    sandbox = await executor.create(spec)
    try:
        await sandbox.load(tar)
        reply = await sandbox.request(
            Request(
                id="compiled",
                content_type="application/json",
                body=b"",
                timeout_ms=_READ_TIMEOUT_MS,
                reply_bytes_max=COMPILED_BYTES_MAX,
            )
        )
    except LoadFailed as error:
        detail = error.detail.removeprefix("The model does not load: ")
        raise BuildFailed(
            f"The model does not compile: {detail}",
            hint="the compiler's lines are in 'lines'",
            lines=error.extensions.get("stderr", []),
        ) from error
    except GuestError as error:
        raise BuildFailed(
            f"The compiler did not finish: {error.detail}", lines=list(error.stderr)
        ) from error
    finally:
        await sandbox.destroy()
    return reply.body


def target_of(runtime: str) -> tuple[str, str]:
    """The runtime that compiles for this one, and the path of what it makes; empty for none."""
    language = RUNTIMES.get(runtime)
    return (language.compiler, language.compiled) if language else ("", "")
