"""The pool: which sandbox serves a call, when one is made and when one ends.

Owns: reuse (same version only), the bounded queue, caps, idle time, eviction, draining.
Never: talks to Podman or the runner; sees a tenant's name.
Read next: ``executor`` (what it drives).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from appliance import config
from appliance.sandbox.executor import Executor
from appliance.sandbox.spec import Reply, Request, SandboxInfo, SandboxSpec

Load = Callable[[], AsyncIterator[bytes]]


class Lease:
    """A sandbox lent for one call. ``queue_us`` waited, ``load_us`` made and loaded (0 if warm)."""

    sandbox_id: str
    cold: bool
    queue_us: int
    load_us: int

    async def request(self, request: Request) -> Reply:
        """The call; see ``Sandbox.request`` for what it raises."""
        raise NotImplementedError


class Pool:
    """All sandboxes of this appliance; used from one event loop."""

    def __init__(self, executor: Executor, settings: config.Sandbox) -> None:
        self._executor = executor
        self._settings = settings

    @asynccontextmanager
    async def lease(self, spec: SandboxSpec, load: Load) -> AsyncIterator[Lease]:
        """A loaded sandbox of this version for the length of the block.

        Args:
            spec: the version's sandbox.
            load: makes the tar stream of the model's files; called once per cold start.

        Raises:
            CapacityExhausted: the queue is full or the wait was too long.
            Draining: the pool is closing.
            Anything ``Executor.create`` and ``Sandbox.load`` raise.
        """
        raise NotImplementedError
        yield Lease()

    def list(self) -> tuple[SandboxInfo, ...]:
        """Every sandbox there is."""
        raise NotImplementedError

    async def stop(self, sandbox_id: str) -> bool:
        """Destroy one sandbox now; False if there is none of this id."""
        raise NotImplementedError

    async def evict(self, version_key: str) -> None:
        """Destroy the idle sandboxes of a version and, after their call, the busy ones."""
        raise NotImplementedError

    async def close(self, timeout_s: float = 60.0) -> None:
        """Take no new leases, wait for those out, then destroy everything."""
        raise NotImplementedError
