"""The output of a batch: the table and its results as one table, streamed or written to a folder.

Owns: which parts make it, what its columns are called, and that a written one is whole.
Never: scores a row, or decides when a batch ends.
Read next: ``tables`` (who converts), ``folders`` (where it may be written).
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from appliance import batch_rows, tables
from appliance.batch_records import Batch
from appliance.batch_scoring import Joined, Scoring
from appliance.folders import Folders
from appliance.store import Store
from appliance.store.batches import head_of_table


class BatchOutput:
    """Makes outputs of batches all of whose rows have results; one per unsealed node."""

    def __init__(self, store: Store, scoring: Scoring, folders: Folders) -> None:
        self._store = store
        self._scoring = scoring
        self._folders = folders

    def table(self, batch: Batch) -> AsyncGenerator[bytes]:
        """It, in the format that was asked for, in pieces."""
        parts = sorted(batch.parts, key=lambda part: part.row)
        names = batch_rows.merged(part.names for part in parts)
        taken = [name for name, _ in batch.columns] if batch.plan.carry else []
        joined = Joined(self._store, batch, parts)
        sources = [
            tables.Input(
                read_at=joined.read_at,
                size_bytes=joined.size_bytes,
                format="ndjson",
                columns=names,
                renamed=batch_rows.renamed(names, taken),
            )
        ]
        if batch.plan.carry:
            sources.insert(
                0,
                tables.Input(
                    read_at=self._scoring.reader(batch),
                    size_bytes=batch.input.size_bytes - len(head_of_table(batch.id)),
                    format=tables.require_format(batch.plan.source),
                ),
            )
        return tables.converted(sources, into=tables.require_format(batch.plan.into))

    async def put_down(self, batch: Batch) -> None:
        """Write it where its caller wished, if that was wished.

        Raises:
            InputInvalid, FolderUnavailable, DiskFull: see ``Folders.write``.
        """
        snapshot = self._store.registry.snapshot
        now = snapshot.batch(batch.tenant_id, batch.id)
        tenant = snapshot.tenant_by_id(batch.tenant_id)
        if now is None or tenant is None or not now.put_into:
            return
        async with contextlib.aclosing(self.table(now)) as pieces:
            await self._folders.write(tenant.name, now.put_into, pieces, mark=now.id)
