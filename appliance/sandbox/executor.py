"""The execution engine's interface, and the list of engines.

Owns: the ``Executor`` and ``Sandbox`` protocols and ``open_executor``.
Never: pools, queues or reuses; knows what Podman is.
Read next: ``podman`` (the engine), ``pool`` (who decides when a sandbox is made and ended).

Every implementation passes ``tests/conformance/executors.py``.
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Protocol

from appliance import config
from appliance.records import (
    Isolation,
)
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
    ZygoteKey,
)

ENGINES = {"podman": "appliance.sandbox.podman:PodmanExecutor"}


class Sandbox(Protocol):
    """One container for one version; used by one lease at a time; never handed on.

    One that was made ahead (``Executor.create_ahead``) has no version until ``bind``.
    """

    @property
    def id(self) -> str:
        """Opaque id, unique in this appliance."""
        ...

    @property
    def alive(self) -> bool:
        """False from the moment it was destroyed or ended by itself."""
        ...

    @property
    def modules(self) -> tuple[str, ...]:
        """What ``load`` imported besides the model's own files, as the guest claims."""
        ...

    async def bind(self, spec: SandboxSpec) -> None:
        """Make a sandbox that was made ahead the sandbox of this version, once and for ever.

        Every limit is the version's own when this returns.

        Raises:
            ValueError: it was not made ahead, is bound already, or does not fit.
            PodmanUnavailable, RunnerCrashed: it cannot be used; it is destroyed.
        """
        ...

    async def load(self, tar: AsyncIterator[bytes]) -> float:
        """Stream the model's files in and import its entry; milliseconds taken.

        Raises:
            LoadFailed, LoadTimeout, OutOfMemory, RunnerCrashed, RunnerProtocol: it is destroyed.
        """
        ...

    async def request(self, request: Request) -> Reply:
        """One call.

        Raises:
            ModelRaised: the sandbox stays usable.
            InvokeTimeout, OutOfMemory, RunnerCrashed, RunnerProtocol, ReplyTooLarge: it is gone.
        """
        ...

    @property
    def can_batch(self) -> bool:
        """Whether ``batch`` may be used; known once it was made."""
        ...

    async def batch(self, batch: Batch) -> None:
        """Several calls in one frame; returns when each was answered or failed on its own.

        Two batches may be open at once, and no request beside them. The calls that were not
        answered when this raises had no answer and will have none.

        Raises:
            InvokeTimeout, OutOfMemory, RunnerCrashed, RunnerProtocol: it is gone.
        """
        ...

    async def freeze(self) -> None:
        """Stop everything inside until it is used again, which thaws it; never raises.

        What cannot be stopped is destroyed.
        """
        ...

    async def has_moved(self) -> bool:
        """Whether something inside worked although it is frozen."""
        ...

    async def destroy(self) -> None:
        """End every process of it and remove every trace; idempotent; never raises."""
        ...

    def stderr_tail(self) -> tuple[str, ...]:
        """The last lines the model printed, oldest first; bounded."""
        ...

    def info(self) -> SandboxInfo:
        """What it is doing and using now."""
        ...


class Executor(Protocol):
    """Makes sandboxes on this machine (or, later, on others)."""

    @property
    def data_dir(self) -> Path:
        """Folder with ``runtimes/``, ``deps/`` and ``wheels/``."""
        ...

    guard: Guard | None
    """Who decides about connections out of sandboxes; without one there are none."""

    @property
    def limits(self) -> LimitsReport:
        """What was found about limits at start."""
        ...

    @property
    def places(self) -> Places:
        """The GPUs there are and who holds them; the pool takes from it before ``create``."""
        ...

    def require_isolation(self, isolation: Isolation) -> None:
        """Return if sandboxes of this isolation can be made here.

        Raises:
            IsolationUnavailable: they cannot; the hint says what to install.
        """
        ...

    async def gpu_fills(self) -> dict[str, Fill]:
        """How full each unit is now, by its id; without those of which nothing tells."""
        ...

    async def start(self) -> None:
        """Start the engine, remove what a dead predecessor left, probe the limits.

        Raises:
            PodmanUnavailable: the engine cannot be used; the detail names what is missing.
        """
        ...

    async def close(self) -> None:
        """Destroy every sandbox and stop the engine; idempotent."""
        ...

    async def create(self, spec: SandboxSpec) -> Sandbox:
        """A started sandbox whose runner has said HELLO and whose isolation was verified.

        Raises:
            LimitsUnenforced: this host holds no limits, or weaker ones were not accepted.
            RuntimeMissing, PodmanUnavailable, CapacityExhausted, RunnerCrashed.
        """
        ...

    async def create_ahead(self, key: ZygoteKey) -> Sandbox:
        """A sandbox without a version, its runner up and the key's modules imported inside.

        Raises:
            What ``create`` raises; OutOfMemory: the imports took more than the key's memory.
        """
        ...

    def has_installed(self, key: ZygoteKey) -> bool:
        """Whether the key's runtime and dependencies are installed; blocking."""
        ...

    def hold_back(self, held: bool) -> None:
        """Stop (or let run again) whatever ``create_ahead`` has running inside sandboxes."""
        ...

    async def build(
        self, spec: SandboxSpec, wheels: str, sink: Sink, log: Callable[[str], None]
    ) -> None:
        """Install packages in a sandbox made for it and hand the resulting tar to ``sink``.

        Args:
            spec: runtime and size; its load timeout is the build's deadline.
            wheels: folder name below ``data_dir/wheels`` with the packages, all of them.
            sink: takes the tar piece by piece.
            log: told each line that the installer prints.

        Raises:
            BuildFailed: the installer failed, ran out of room or of time.
        """
        ...

    def info(self) -> dict[str, Any]:
        """The engine for status pages: version, OCI runtime, socket, isolation."""
        ...


def open_executor(
    settings: config.Sandbox, *, run_dir: Path, data_dir: Path, engine: str = "podman"
) -> Executor:
    """The engine of this name, not yet started. Imports it only now.

    Args:
        settings: the ``[sandbox]`` section.
        run_dir: folder on a tmpfs for sockets and container state.
        data_dir: folder with ``runtimes/`` and ``deps/``.
        engine: a key of ``ENGINES``.
    """
    module, name = ENGINES[engine].split(":")
    cls = getattr(importlib.import_module(module), name)
    executor: Executor = cls(settings, run_dir=run_dir, data_dir=data_dir)
    return executor
