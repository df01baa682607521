"""Helpers for tests of egress: a guard over a real store, and servers to be reached by models.

Servers are on loopback addresses of their own, which only rules that name them literally open;
their names are in a hosts file that the guard's resolver reads at each look-up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from storing import ACTOR, Folder

from appliance import clock, config
from appliance.egress import rules
from appliance.egress.guard import EgressGuard
from appliance.metrics import Metrics
from appliance.records import EgressRule, Entry, Tenant
from appliance.sandbox.podman import PodmanExecutor
from appliance.sandbox.spec import SandboxSpec
from appliance.store import Store

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back what comes."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A small HTTP server: answers with the request's head and body."""
    head = await reader.readuntil(b"\r\n\r\n")
    size = 0
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            size = int(value)
    body = head + (await reader.readexactly(size) if size else b"")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()
    writer.close()


@asynccontextmanager
async def serving(
    handler: Handler, address: str = "127.0.0.7", port: int = 0
) -> AsyncIterator[int]:
    """A server of this process; its port."""
    server = await asyncio.start_server(handler, address, port)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()


@dataclass(slots=True, kw_only=True)
class Outside:
    """A guard, the store it decides by, and one tenant."""

    store: Store
    guard: EgressGuard
    metrics: Metrics
    tenant: Tenant
    hosts: Path

    def name(self, *lines: str) -> None:
        """Replace what names lead to: lines as in ``/etc/hosts``."""
        self.hosts.write_text("".join(f"{line}\n" for line in lines))

    async def rule(self, action: str, host: str, *ports: int | str, **more: Any) -> EgressRule:
        """Add a rule at the end, or ``before`` another."""
        before = more.pop("before", "")
        rule = EgressRule(
            id=clock.new_id("eg"),
            tenant_id=self.tenant.id,
            action=action,  # type: ignore[arg-type]
            host=rules.pattern_from_text(host),
            ports=rules.ports_from_texts([str(port) for port in ports]),
            reason="test",
            created_ns=clock.now_ns(),
            created_by=ACTOR,
            **more,
        )
        return await self.guard.add_rule(rule, before=before, actor=ACTOR)

    async def remove(self, rule: EgressRule) -> None:
        """Remove a rule."""
        await self.guard.remove_rule(
            tenant_id=self.tenant.id, rule_id=rule.id, reason="test", actor=ACTOR
        )

    def spec(self, spec: SandboxSpec, model: str = "fraud") -> SandboxSpec:
        """The same sandbox for a model of the tenant, with the ways out it has now."""
        known = self.store.registry.snapshot.egress_rules(self.tenant.id)
        outlets = rules.outlets_for(known, model)
        return replace(spec, tenant_id=self.tenant.id, outlets=outlets)

    async def entries(self, kind: str = "egress.*") -> list[Entry]:
        """Entries of a kind, oldest first."""
        await self.store.queries.wait(self.store.ledger.head.size, 10)
        found = await self.store.queries.audit(kind=kind, limit=1000)
        return sorted(found, key=lambda entry: entry.seq)

    async def events(self, kind: str) -> list[dict[str, Any]]:
        """The events of a kind, oldest first."""
        return [entry.event or {} for entry in await self.entries(kind)]


@asynccontextmanager
async def outside(
    folder: Path, executor: PodmanExecutor | None = None, **settings: Any
) -> AsyncIterator[Outside]:
    """A guard over a new store in ``folder``, which the executor asks as long as this lasts."""
    hosts = folder / "hosts"
    hosts.write_text("")
    chosen = config.Egress(hosts_file=str(hosts), **settings)
    async with Folder(folder).make().open() as store:
        tenant = await store.registry.create_tenant(name="acme", actor=ACTOR)
        metrics = Metrics()
        guard = EgressGuard(store, chosen, metrics)
        if executor is not None:
            executor.guard = guard
        try:
            yield Outside(store=store, guard=guard, metrics=metrics, tenant=tenant, hosts=hosts)
        finally:
            if executor is not None:
                executor.guard = None
            await guard.close()
