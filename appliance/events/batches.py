"""Events of batches: tables that a version scores row by row.

Owns: the record of what became of a batch and of each of its parts.
Never: the calls, one per chunk: they are ``calls``, as all others.
Read next: ``store.batches`` (what they do), ``appliance.batches`` (who appends them).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from appliance.batch_records import Batch, BatchPart
from appliance.events.base import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchQueued(Event):
    """A table was taken on; it is a sealed blob."""

    KIND: ClassVar[str] = "batch.queued"
    SEALED: ClassVar[bool] = True
    HIDDEN: ClassVar[tuple[tuple[str, ...], ...]] = (("batch", "webhook"),)
    batch: Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStarted(Event):
    """The first rows of a batch are about to be scored."""

    KIND: ClassVar[str] = "batch.started"
    batch_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchAdvanced(Event):
    """Some rows have their results, sealed and durable: they are not scored again."""

    KIND: ClassVar[str] = "batch.advanced"
    SEALED: ClassVar[bool] = True
    batch_id: str
    part: BatchPart


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchEnded(Event):
    """Every row of a batch has its result, or it failed or was cancelled."""

    KIND: ClassVar[str] = "batch.ended"
    SEALED: ClassVar[bool] = True
    batch_id: str
    status: Literal["succeeded", "failed", "canceled"]
    problem: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchesRemoved(Event):
    """Ended batches were forgotten after their time; their payloads are about to be deleted."""

    KIND: ClassVar[str] = "batch.removed"
    batch_ids: tuple[str, ...]
