"""What events do to a tenant's batches, and how their payloads are told from all others.

Owns: ``apply_batch``, the one place where an event changes a batch; the head of a payload.
Never: scores a row (``appliance.batches``), appends to the ledger, or reads a blob.
Read next: ``state`` (keeps the batches), ``jobs`` (the same for calls).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from appliance.batch_records import Batch
from appliance.events import (
    BatchAdvanced,
    BatchEnded,
    BatchesRemoved,
    BatchQueued,
    BatchStarted,
    Event,
)
from appliance.records import (
    Blob,
)

BATCH_EVENTS: dict[str, type[Event]] = {
    cls.KIND: cls for cls in (BatchQueued, BatchStarted, BatchAdvanced, BatchEnded, BatchesRemoved)
}


def head_of_part(batch_id: str, row: int) -> bytes:
    """What the results of a batch from this row on begin with; no other payload does."""
    return f"{batch_id}p{row:012d}".encode()


def head_of_table(batch_id: str) -> bytes:
    """What the table of a batch begins with; no other payload does."""
    return f"{batch_id}t".encode()


def apply_batch(batches: Mapping[str, Batch], event: Event, time_ns: int) -> dict[str, Batch]:
    """A tenant's batches after a durable event; ``time_ns`` is its entry's.

    Raises:
        KeyError: the event is about a batch there is none of.
    """
    found = dict(batches)
    match event:
        case BatchQueued(batch=batch):
            found[batch.id] = batch
        case BatchStarted(batch_id=batch_id):
            found[batch_id] = replace(found[batch_id], status="processing", started_ns=time_ns)
        case BatchAdvanced(batch_id=batch_id, part=part):
            batch = found[batch_id]
            found[batch_id] = replace(batch, parts=(*batch.parts, part))
        case BatchEnded(batch_id=batch_id, status=status, problem=problem):
            found[batch_id] = replace(
                found[batch_id], status=status, ended_ns=time_ns, problem=problem
            )
        case BatchesRemoved(batch_ids=batch_ids):
            for batch_id in batch_ids:
                del found[batch_id]
        case _:
            raise KeyError(event.KIND)
    return found


def blobs_of_batch(batch: Batch) -> tuple[Blob, ...]:
    """The payloads a batch has: its table and the results so far."""
    return (batch.input, *(part.blob for part in batch.parts))


def by_tenant(batches: Iterable[Batch]) -> dict[str, dict[str, Batch]]:
    """Batches by id, by the id of their tenant."""
    found: dict[str, dict[str, Batch]] = {}
    for batch in batches:
        found.setdefault(batch.tenant_id, {})[batch.id] = batch
    return found
