"""The one writer of what is: validates, appends, applies, one command at a time.

Owns: the immutable snapshot every request reads, and swapping it for the next.
Never: queries DuckDB, or applies a change before its entry is durable.
Read next: ``state`` (how an event changes the snapshot), ``ledger`` (where the change is first).

A command: validate against the snapshot under one lock, append, swap the snapshot, return. A caller
who is cancelled in the middle does not stop the command.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from appliance import clock
from appliance.errors import ApplianceError, NotFound
from appliance.events import Event
from appliance.records import Model, Tenant
from appliance.store.announce import announced
from appliance.store.ledger import Ledger
from appliance.store.snapshot import Snapshot
from appliance.store.state import Tables

T = TypeVar("T")


class Writer:
    """Runs commands; use from one event loop."""

    def __init__(self, ledger: Ledger, snapshot: Snapshot) -> None:
        """Start from the snapshot that replaying the ledger gave."""
        self.snapshot = snapshot
        self.changes = 0
        self.lock = asyncio.Lock()
        self._ledger = ledger
        self._tasks: set[asyncio.Task[Any]] = set()

    async def close(self) -> None:
        """Wait for the commands in progress."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def run(self, command: Coroutine[Any, Any, T]) -> T:
        """Run a command to its end, alone, whether or not the caller stays to hear of it."""

        async def locked() -> T:
            async with self.lock:
                return await command

        task = asyncio.create_task(locked())
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    async def commit(
        self, events: Event | list[Event], tenant_id: str, actor: str, obj: str
    ) -> None:
        """Make events durable as one unit, then apply them. From within a command only.

        What the tenant's webhooks have to be told of them is part of the unit.
        """
        many = list(events) if isinstance(events, list) else [events]
        before = self.snapshot

        def after() -> Snapshot:
            tables = Tables.of(before)
            for event in many:
                tables.apply(event, before.seq, clock.now_ns(), tenant_id)
            return tables.freeze()

        many += announced(many, before, after, tenant_id)
        entries = await self._ledger.append(*many, tenant_id=tenant_id, actor=actor, object=obj)
        tables = Tables.of(self.snapshot)
        for event, entry in zip(many, entries, strict=True):
            tables.apply(event, entry.seq, entry.time_ns, tenant_id)
        self.snapshot = tables.freeze()
        self.changes += len(many)

    def tenant(self, tenant_id: str) -> Tenant:
        """A tenant by its id. Raises NotFound."""
        tenant = self.snapshot.tenant_by_id(tenant_id)
        if tenant is None:
            raise NotFound("There is no such tenant.")
        return tenant

    def model(self, model_id: str) -> Model:
        """A model by its id. Raises NotFound, also if it was removed."""
        model = self.snapshot.model_by_id(model_id)
        if model is None or model.removed_ns:
            raise NotFound("There is no such model.")
        return model

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and isinstance(task.exception(), ApplianceError):
            return  # already told to the caller, or the caller is gone


def new_model(tenant_id: str, name: str, description: str, actor: str) -> Model:
    """A model nobody has recorded yet."""
    return Model(
        id=clock.new_id("mod"),
        tenant_id=tenant_id,
        name=name,
        description=description,
        created_ns=clock.now_ns(),
        created_by=actor,
    )
