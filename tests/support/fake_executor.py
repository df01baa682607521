"""``FakeExecutor``: sandboxes without processes, for tests of what is above the executor.

It understands the commands of ``tests/conformance`` (``{"do": ...}``) and passes the same suite as
the Podman engine, so a test that uses it sees an executor's real contract.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from appliance import clock
from appliance.errors import (
    InvokeTimeout,
    IsolationUnavailable,
    LoadFailed,
    LoadTimeout,
    ModelRaised,
    OutOfMemory,
    ReplyTooLarge,
    RunnerCrashed,
    RunnerProtocol,
)
from appliance.records import Isolation, Merged
from appliance.sandbox.egress import Guard
from appliance.sandbox.gpu_place import Fill, Places
from appliance.sandbox.link import Sink
from appliance.sandbox.spec import (
    Batch,
    LimitsReport,
    Reply,
    Request,
    SandboxInfo,
    SandboxSpec,
    State,
    ZygoteKey,
)


class FakeSandbox:
    def __init__(self, executor: FakeExecutor, spec: SandboxSpec) -> None:
        self.id = clock.new_id("fake")
        self.spec = spec
        self.requests: list[str] = []
        self.entry_error = ""
        self._executor = executor
        self._state: State = "idle"
        self._stopped = asyncio.Event()
        self._made_ns = clock.now_ns()
        self._printed: list[str] = []
        self.modules: tuple[str, ...] = ()
        self.key: ZygoteKey | None = None
        self.freezes = 0
        self.is_frozen = False
        self.moves = False
        self.is_stuck = False
        self._one_frame = asyncio.Lock()

    @property
    def alive(self) -> bool:
        return self._state != "killed"

    async def bind(self, spec: SandboxSpec) -> None:
        if self.key is None or self._state != "zygote" or not self.key.is_fit_for(spec):
            raise ValueError("not free")
        await asyncio.sleep(0)
        if self._executor.bind_fails:
            await self.destroy()
            raise RunnerCrashed("cannot be bound")
        self.spec = spec
        self.is_frozen = False
        self._state = "loading"

    def await_its_version(self, key: ZygoteKey) -> None:
        self.key = key
        self._state = "zygote"

    async def load(self, tar: AsyncIterator[bytes]) -> float:
        data = b"".join([piece async for piece in tar])
        seconds = self._executor.load_s
        if b"import nothing_of_this_name" in data:
            await self.destroy()
            raise LoadFailed("needs package 'nothing_of_this_name'", missing="nothing_of_this_name")
        try:
            async with asyncio.timeout(self.spec.limits.load_timeout_ms / 1000):
                await asyncio.sleep(3600 if b"# loads for ever" in data else seconds)
        except TimeoutError:
            await self.destroy()
            limit_ms = self.spec.limits.load_timeout_ms
            raise LoadTimeout("not ready in time", limit_ms=limit_ms) from None
        self._state = "ready"
        ahead = self.key.modules if self.key else ()
        own = self._executor.modules.get(self.spec.version_key, ())
        self.modules = tuple(dict.fromkeys((*ahead, *own)))
        return seconds * 1000

    async def request(self, request: Request) -> Reply:
        self._state = "busy"
        self.is_frozen = False
        self.requests.append(request.id)
        self._executor.bodies.append(request.body)
        try:
            async with asyncio.timeout(request.timeout_ms / 1000):
                work = asyncio.ensure_future(self._answer(request))
                stop = asyncio.ensure_future(self._stopped.wait())
                try:
                    await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    stop.cancel()
                    if not work.done():
                        work.cancel()
                if not work.done() or work.cancelled():
                    raise RunnerCrashed("stopped", exit_code=137)
                reply = work.result()
        except ModelRaised:
            self._state = "ready"
            raise
        except TimeoutError:
            await self.destroy()
            raise InvokeTimeout("too slow", limit_ms=request.timeout_ms) from None
        except BaseException:
            await self.destroy()
            raise
        self._state = "ready"
        return reply

    async def _answer(self, request: Request) -> Reply:
        inputs: Any = None
        if request.content_type == "application/json":
            inputs = json.loads(request.body)
        if not isinstance(inputs, dict) or "do" not in inputs:
            return Reply(content_type=request.content_type, body=request.body, compute_us=1)
        return await self._do(inputs, request)

    async def _do(self, inputs: dict[str, Any], request: Request) -> Reply:
        match inputs["do"]:
            case "raise":
                raise ModelRaised("ValueError: as asked", stderr=("ValueError: as asked",))
            case "print":
                self._printed.append(inputs["text"])
            case "sleep":
                await asyncio.sleep(inputs["s"])
            case "spin":
                await asyncio.sleep(3600)
            case "exit":
                raise RunnerCrashed("ended", exit_code=inputs["code"])
            case "eat":
                raise OutOfMemory("too much")
            case "garbage":
                raise RunnerProtocol("garbage")
            case "large" if inputs["bytes"] > request.reply_bytes_max:
                raise ReplyTooLarge("too large", limit_bytes=request.reply_bytes_max)
            case "large":
                body = b"x" * inputs["bytes"]
                return Reply(content_type="application/octet-stream", body=body, compute_us=1)
        return Reply(content_type="application/json", body=b"null", compute_us=1)

    @property
    def can_batch(self) -> bool:
        return self._executor.can_batch

    async def batch(self, batch: Batch) -> None:
        async with self._one_frame:
            self._executor.batches.append(len(batch.requests))
            for place, request in enumerate(batch.requests):
                try:
                    reply = await self.request(request)
                except ModelRaised as error:
                    batch.answered(place, error)
                else:
                    calls = len(batch.requests)
                    told = Merged(id=f"{batch.id}.0", calls=calls, rows=calls, own_rows=1)
                    batch.answered(place, replace(reply, merged=told))

    async def freeze(self) -> None:
        if self._state in ("ready", "zygote"):
            self.freezes += 1
            self.is_frozen = True
            if self._state == "ready":
                self._state = "frozen"

    async def has_moved(self) -> bool:
        return self.is_frozen and self.moves

    async def destroy(self) -> None:
        if self.is_stuck:
            raise OSError(24, "too many open files")
        self._stopped.set()
        if self._state != "killed":
            self._state = "killed"
            self._executor.ended.append(self.spec.version_key)
            await asyncio.sleep(self._executor.destroy_s)
            self._executor.sandboxes.pop(self.id, None)

    def stderr_tail(self) -> tuple[str, ...]:
        return tuple(self._printed)

    def info(self) -> SandboxInfo:
        return SandboxInfo(
            id=self.id,
            version_key=self.spec.version_key,
            tenant_id=self.spec.tenant_id,
            state=self._state,
            pid=1,
            created_ns=self._made_ns,
            calls=len(self.requests),
            rss_bytes=1,
            memory_bytes=self._executor.memory_bytes,
            cpu_ms=0,
            last_used_ns=self._made_ns,
            gpus=self.spec.gpu_units,
        )


class FakeExecutor:
    """Everything takes as long as its ``*_s`` members say; ``made`` counts creations."""

    def __init__(self, data_dir: Path = Path("/nonexistent")) -> None:
        self.data_dir = data_dir
        self.limits = LimitsReport(
            level="enforced", mechanism="fake", memory="-", pids="-", cpu="-", detail="-"
        )
        self.places = Places()
        self.guard: Guard | None = None
        self.sandboxes: dict[str, FakeSandbox] = {}
        self.made = 0
        self.ended: list[str] = []
        self.most_at_once = 0
        self.most_creating = 0
        self.create_s = 0.0
        self.load_s = 0.0
        self.destroy_s = 0.0
        self._creating = 0
        self.modules: dict[str, tuple[str, ...]] = {}
        self.memory_bytes = 1
        self.bind_fails = False
        self.can_batch = False
        self.batches: list[int] = []
        self.bodies: list[bytes] = []
        self.ahead_fails = False
        self.tried_ahead = 0
        self.made_ahead = 0
        self.held: list[bool] = []
        self.gone: set[str] = set()

    async def gpu_fills(self) -> dict[str, Fill]:
        return {}

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        for sandbox in list(self.sandboxes.values()):
            await sandbox.destroy()

    async def create(self, spec: SandboxSpec) -> FakeSandbox:
        self._creating += 1
        self.most_creating = max(self.most_creating, self._creating)
        try:
            await asyncio.sleep(self.create_s)
        finally:
            self._creating -= 1
        sandbox = FakeSandbox(self, spec)
        self.sandboxes[sandbox.id] = sandbox
        self.made += 1
        self.most_at_once = max(self.most_at_once, len(self.sandboxes))
        return sandbox

    async def create_ahead(self, key: ZygoteKey) -> FakeSandbox:
        self.tried_ahead += 1
        if self.ahead_fails:
            raise RunnerCrashed("not ahead")
        await asyncio.sleep(self.create_s)
        sandbox = FakeSandbox(self, key.spec)
        sandbox.await_its_version(key)
        self.sandboxes[sandbox.id] = sandbox
        self.made_ahead += 1
        return sandbox

    def require_isolation(self, isolation: Isolation) -> None:
        if isolation == "gvisor":
            raise IsolationUnavailable("A fake executor has no gVisor.")

    def has_installed(self, key: ZygoteKey) -> bool:
        return key.deps_key not in self.gone

    def hold_back(self, held: bool) -> None:
        self.held.append(held)

    async def build(
        self, spec: SandboxSpec, wheels: str, sink: Sink, log: Callable[[str], None]
    ) -> None:
        raise NotImplementedError

    def info(self) -> dict[str, Any]:
        return {"engine": "fake"}
