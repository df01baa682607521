"""The ways out of one sandbox: listeners inside it, each connection shown to the guard first.

Owns: ``Guard`` (who decides), ``Passage`` (one decision in use), the listeners and ``/etc/hosts``.
Never: decides by itself, resolves a name, or lets a byte pass without a passage.
Read next: ``proxy`` (what happens to a connection), ``netns`` (where the listeners come from).

A sandbox has no network. Its proxy listens on its own loopback, and so does every name that a
rule gives it; both are sockets of the appliance, made inside. A sandbox without ``outlets`` has
none of this.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from appliance.errors import ApplianceError
from appliance.sandbox import proxy
from appliance.sandbox.netns import Address, Netns
from appliance.sandbox.spec import PROXY_ADDRESS, Outlets, SandboxSpec

if TYPE_CHECKING:
    from appliance.sandbox.podman import PodmanExecutor

_LOG = logging.getLogger(__name__)
_HOSTS_HEAD = "127.0.0.1 localhost\n::1 localhost\n"
READ_LIMIT = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Who:
    """The sandbox that asks, as the guard needs to know it."""

    sandbox_id: str
    tenant_id: str
    version_key: str
    model: str


class Passage:
    """One connection that was allowed: where it may go, what went through, and how it ends."""

    __slots__ = ("_on_end", "_on_revoked", "addresses", "port", "received_bytes", "revoked",
                 "sent_bytes")  # fmt: skip

    def __init__(
        self, addresses: tuple[str, ...], port: int, on_end: Callable[[Passage, bool], None]
    ) -> None:
        """Args: ``addresses`` are checked ones, to be tried in order; no name is resolved again."""
        self.addresses = addresses
        self.port = port
        self.sent_bytes = 0
        self.received_bytes = 0
        self.revoked = False
        self._on_end: Callable[[Passage, bool], None] | None = on_end
        self._on_revoked: Callable[[], None] | None = None

    def when_revoked(self, call: Callable[[], None]) -> None:
        """Call this if a rule changes its mind; at once if it did already."""
        self._on_revoked = call
        if self.revoked:
            call()

    def revoke(self) -> None:
        """The rules do not allow it any more: what is open is closed now."""
        self.revoked = True
        if self._on_revoked is not None:
            self._on_revoked()

    def end(self, *, failed: bool = False) -> None:
        """The connection is over; ``failed`` if it was never made. Idempotent."""
        call, self._on_end = self._on_end, None
        if call is not None:
            call(self, failed)


class Guard(Protocol):
    """Who decides about connections out of sandboxes, and keeps the record of it."""

    @property
    def limits(self) -> proxy.Limits:
        """Deadlines and caps of connections."""
        ...

    async def admit(self, who: Who, host: str, port: int, protocol: str) -> Passage:
        """Let a connection pass, on record.

        Args:
            who: the sandbox.
            host: as it was asked for, unchecked.
            port: as it was asked for.
            protocol: ``connect``, ``http`` or ``tcp``.

        Raises:
            EgressDenied: the rules, or the address, do not allow it.
            OSError, TimeoutError: the name does not resolve.
            ApplianceError: no record can be written now.
        """
        ...

    async def left(self, who: Who) -> None:
        """The sandbox is gone: write down what is still owed about it. Never raises."""
        ...


class WaysOut:
    """The listeners of one sandbox, and the connections through them."""

    def __init__(self, guard: Guard, who: Who, outlets: Outlets) -> None:
        """Describe them; nothing is open before ``open`` and ``serve``."""
        self._guard = guard
        self._who = who
        self._outlets = outlets
        self._listeners: list[tuple[socket.socket, tuple[str, int] | None]] = []
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    def open(self, netns: Netns, pid: int, hosts: Path, inside: str) -> None:
        """Make the listeners and the names. Blocking; the container need not run yet.

        Args:
            netns: makes sockets and mounts in the container.
            pid: its first process.
            hosts: file to write the names to.
            inside: the same file, as Podman's mount namespace sees it.

        Raises:
            PodmanUnavailable: the kernel refused.
        """
        wanted: list[tuple[Address, tuple[str, int] | None]] = []
        if self._outlets.proxy:
            wanted.append((PROXY_ADDRESS, None))
        for name in self._outlets.names:
            wanted += [((name.address, port), (name.host, port)) for port in name.ports]
        if self._outlets.names:
            lines = [f"{name.address} {name.host}\n" for name in self._outlets.names]
            hosts.write_text(_HOSTS_HEAD + "".join(lines), encoding="ascii")
            hosts.chmod(0o644)
            netns.put_file(pid, inside, "/etc/hosts")
        made = netns.listen(pid, [address for address, _target in wanted])
        targets = [target for _address, target in wanted]
        self._listeners = list(zip(made, targets, strict=True))

    async def serve(self) -> None:
        """Accept connections from now on."""
        for listener, target in self._listeners:
            server = await asyncio.start_server(
                _Handler(self, target), sock=listener, limit=READ_LIMIT
            )
            self._servers.append(server)
        self._listeners.clear()

    async def close(self) -> None:
        """Close listeners and connections, and have the guard write down the rest; idempotent."""
        self._is_closed = True
        for listener, _target in self._listeners:
            listener.close()
        self._listeners.clear()
        for server in self._servers:
            server.close()
        self._servers.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._guard.left(self._who)

    async def take(
        self,
        target: tuple[str, int] | None,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """One connection, from its first byte to its last."""
        task = asyncio.current_task()
        limits = self._guard.limits
        if task is None or self._is_closed or len(self._tasks) >= limits.connections_max:
            writer.transport.abort()
            return
        self._tasks.add(task)
        connection = proxy.Connection(reader, writer, limits, self._admit)
        try:
            await connection.serve(target)
        except (OSError, TimeoutError, ApplianceError, EOFError) as error:
            _LOG.debug("a connection of %s ended: %s", self._who.sandbox_id, type(error).__name__)
        finally:
            self._tasks.discard(task)
            with contextlib.suppress(OSError):
                writer.transport.abort()

    async def _admit(self, host: str, port: int, protocol: str) -> Passage:
        return await self._guard.admit(self._who, host, port, protocol)


def ways_out(
    executor: PodmanExecutor, spec: SandboxSpec, sandbox_id: str, pid: int, box: Path
) -> WaysOut | None:
    """Blocking: the ways out that the version's outlets ask for, open but not served; if any.

    Args:
        executor: has the guard, and enters the container.
        spec: the version's sandbox.
        sandbox_id: its id, also the name of its folder.
        pid: its first process.
        box: its folder.

    Raises:
        PodmanUnavailable: the kernel refused.
    """
    if spec.outlets is None or executor.guard is None or executor.service is None:
        return None
    who = Who(
        sandbox_id=sandbox_id,
        tenant_id=spec.tenant_id,
        version_key=spec.version_key,
        model=spec.outlets.model,
    )
    ways = WaysOut(executor.guard, who, spec.outlets)
    inside = executor.service.inside("box", sandbox_id, "hosts")
    ways.open(executor.netns, pid, box / "hosts", inside)
    return ways


class _Handler:
    """What a listener does with a connection."""

    def __init__(self, ways: WaysOut, target: tuple[str, int] | None) -> None:
        self._ways = ways
        self._target = target

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._ways.take(self._target, reader, writer)
