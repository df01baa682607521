"""One batch at work: its rows in chunks to the model, their results sealed as they come.

Owns: the calls of a batch, what a failing row does, and how its table and its results are read.
Never: decides which batch is next or how many calls there may be (``batches``).
Read next: ``batch_rows`` (bodies and answers), ``tables`` (who reads the table).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from appliance import batch_rows, clock, tables
from appliance.batch_records import Batch, BatchPart
from appliance.batch_rows import Result
from appliance.errors import (
    ApplianceError,
    AuditUnavailable,
    CapacityExhausted,
    DiskFull,
    Draining,
    FolderUnavailable,
    Forbidden,
    Gone,
    GuestError,
    InputInvalid,
    InvokeTimeout,
    OutOfMemory,
    PodmanUnavailable,
    ReplyTooLarge,
    ResultsDiffer,
    RunnerCrashed,
    TooLarge,
)
from appliance.events import BatchAdvanced, Event
from appliance.invoke import Exchange, Invoker, Outcome
from appliance.records import (
    Blob,
    Version,
)
from appliance.store import Store
from appliance.store.batches import head_of_part, head_of_table

_log = logging.getLogger(__name__)
_JSON = "application/json"
_RETRY_S_MAX = 30.0
_READ_BYTES_MAX = 8 * 1024 * 1024
_READ_BYTES_MIN = 64 * 1024
_HOLDING = (
    CapacityExhausted,
    Draining,
    DiskFull,
    PodmanUnavailable,
    AuditUnavailable,
    FolderUnavailable,
)
_TOO_MUCH = (TooLarge, ReplyTooLarge, InvokeTimeout, OutOfMemory)
_R = TypeVar("_R")


@dataclass(slots=True, kw_only=True)
class Run:
    """One batch at work in this process."""

    batch: Batch
    version: Version
    call_rows: int
    task: asyncio.Task[None] | None = None
    is_canceled: bool = False
    calls: int = 0
    rows_before: int = 0
    began_ns: int = 0


class Room(Protocol):
    """Who says when one more call may be made."""

    async def take(self, run: Run) -> None:
        """Wait for room for one more call of this batch."""
        ...

    def give_back(self, run: Run) -> None:
        """One call less."""
        ...

    def advanced(self, batch_id: str, part: BatchPart) -> None:
        """A batch has these results more."""
        ...


Answered = Callable[[Version, Exchange], Awaitable[None]]


async def _nobody(_version: Version, _exchange: Exchange) -> None:
    """Nobody is told."""


class Scoring:
    """Scores batches; one per unsealed node."""

    def __init__(self, store: Store, invoker: Invoker, room: Room, *, wait_s_max: int) -> None:
        """Args: ``wait_s_max`` is how long a call waits for a sandbox, or for space on the disk."""
        self._store = store
        self._invoker = invoker
        self._room = room
        self._wait_s_max = wait_s_max
        self.answered: Answered = _nobody

    async def score(self, run: Run) -> None:
        """Give every row that has no result one; returns when all are durable."""
        batch = run.batch
        done = sorted((part.row, part.row + part.rows) for part in batch.parts)
        row = _first_missing(done)
        run.rows_before = batch.rows_done
        run.began_ns = clock.monotonic_ns()
        limit = run.version.manifest.limits.body_bytes_max // 2
        bytes_max = max(_READ_BYTES_MIN, min(limit, _READ_BYTES_MAX))
        try:
            async with self.table(batch) as table, asyncio.TaskGroup() as chunks:
                if row < batch.rows:
                    async for rows in table.batches(
                        start_row=row, rows_max=batch.plan.chunk_rows, bytes_max=bytes_max
                    ):
                        for start, stop in _missing(done, row, row + len(rows)):
                            await self._room.take(run)
                            some = rows[start - row : stop - row]
                            chunks.create_task(self._chunk(run, start, some))
                        row += len(rows)
        except BaseExceptionGroup as group:
            raise _first(group) from group
        if row != batch.rows:
            raise InputInvalid(f"The table said it has {batch.rows} rows and has {row}.")

    async def _chunk(self, run: Run, row: int, rows: Sequence[dict[str, Any]]) -> None:
        """Score rows that follow each other and make their results durable."""
        try:
            results = await self._results(run, row, rows)
            names = batch_rows.names_of(results)
            failed = sum(bool(one.get(batch_rows.ERROR)) for one in results)
            is_null = run.batch.plan.on_error == "null"
            lines = batch_rows.lines_of(results)
            blob = await self.patiently(partial(self._write, run.batch, row, lines))
            part = BatchPart(
                row=row, rows=len(rows), failed=failed if is_null else 0, names=names, blob=blob
            )
            event = BatchAdvanced(batch_id=run.batch.id, part=part)
            await self.patiently(partial(self._advance, run.batch, event))
            self._room.advanced(run.batch.id, part)
        finally:
            self._room.give_back(run)

    async def _results(self, run: Run, row: int, rows: Sequence[dict[str, Any]]) -> list[Result]:
        """One result for each row, in as many calls as the limits ask for."""
        found: list[Result] = []
        waiting = deque([(row, rows)])
        is_null = run.batch.plan.on_error == "null"
        while waiting:
            row, rows = waiting.popleft()
            if len(rows) > run.call_rows:
                rest = (row + run.call_rows, rows[run.call_rows :])
                waiting.appendleft(rest)
                rows = rows[: run.call_rows]
            try:
                results = await self._call(run, row, rows)
                found += batch_rows.marked(results) if is_null else results
                continue
            except ResultsDiffer as error:
                raise _placed(error, row, rows) from error
            except (GuestError, InputInvalid, TooLarge) as error:
                is_too_much = isinstance(error, _TOO_MUCH)
                if len(rows) > 1 and (is_too_much or is_null):
                    half = len(rows) // 2
                    if is_too_much:
                        run.call_rows = max(1, min(run.call_rows, half))
                    waiting.extendleft([(row + half, rows[half:]), (row, rows[:half])])
                    continue
                if not is_null:
                    raise _placed(error, row, rows) from error
                found.append({batch_rows.ERROR: self._said(run.batch, error)})
        return found

    async def _call(self, run: Run, row: int, rows: Sequence[dict[str, Any]]) -> list[Result]:
        batch = run.batch
        body = batch_rows.body_of(rows, batch.plan.form)
        self._require_callable(batch)

        async def call() -> Outcome:
            return await self._invoker.run(
                principal_id=batch.created_by,
                request_id=f"{batch.id}.{row}",
                version=run.version,
                content_type=_JSON,
                body=body,
            )

        try:
            outcome = await self.patiently(call)
        except RunnerCrashed:  # its sandbox may have been ended for others' reasons: once more
            outcome = await self.patiently(call)
        results = batch_rows.results_of(outcome.reply, len(rows))
        exchange = Exchange(
            call_id=f"{batch.id}.{row}", content_type=_JSON, body=body, outcome=outcome
        )
        await self.answered(run.version, exchange)
        return results

    async def patiently(self, act: Callable[[], Awaitable[_R]]) -> _R:
        """What an act gives, once there is room for it; as patient as jobs are."""
        until_ns = clock.monotonic_ns() + self._wait_s_max * 1_000_000_000
        wait_s = 0.5
        while True:
            try:
                return await act()
            except _HOLDING as error:
                if clock.monotonic_ns() > until_ns:
                    raise
                _log.info("a batch waits: %s", error.detail)
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, _RETRY_S_MAX)

    def _require_callable(self, batch: Batch) -> None:
        """Return if the version may still be called in the name of who submitted the batch."""
        snapshot = self._store.registry.snapshot
        version = snapshot.version(batch.model_id, batch.number)
        if version is None or version.retired_ns:
            raise Gone(f"Version {batch.number} is no longer in service.", number=batch.number)
        key = snapshot.key(batch.created_by)
        if key is not None and (key.revoked_ns or key.expires_ns <= clock.now_ns()):
            raise Forbidden("The key this batch was submitted with was revoked or has expired.")

    def _said(self, batch: Batch, error: ApplianceError) -> str:
        """Why a row has no result: a model's own words are for owners only."""
        key = self._store.registry.snapshot.key(batch.created_by)
        if key is not None and key.role != "owner" and isinstance(error, GuestError):
            return f"{error.slug}: {error.title}"
        return f"{error.slug}: {error.detail}"[:500]

    # --- helpers -----------------------------------------------------------------------------

    def reader(self, batch: Batch) -> tables.ReadAt:
        """What gives the bytes of a batch's table."""
        before = len(head_of_table(batch.id))

        async def read_at(offset: int, size: int) -> bytes:
            pieces = self._store.blobs.read(
                batch.tenant_id, batch.input.id, offset=before + offset, length=size
            )
            return b"".join([piece async for piece in pieces])

        return read_at

    def table(self, batch: Batch) -> contextlib.AbstractAsyncContextManager[tables.Table]:
        """A batch's table, opened in a process of its own."""
        return tables.opened(
            self.reader(batch),
            size_bytes=batch.input.size_bytes - len(head_of_table(batch.id)),
            format=tables.require_format(batch.plan.source),
        )

    async def _write(self, batch: Batch, row: int, lines: bytes) -> Blob:
        async with self._store.blobs.writer(batch.tenant_id) as writer:
            await writer.write(head_of_part(batch.id, row))
            await writer.write(lines)
            return await writer.commit()

    async def _advance(self, batch: Batch, event: Event) -> None:
        await self._store.registry.change(
            lambda: [event], tenant_id=batch.tenant_id, actor="appliance", obj=batch.model_id
        )


class Joined:
    """The results of a batch's parts, one after the other, as one file."""

    def __init__(self, store: Store, batch: Batch, parts: Sequence[BatchPart]) -> None:
        self._store = store
        self._batch = batch
        self._places: list[tuple[int, int, BatchPart]] = []
        self.size_bytes = 0
        for part in parts:
            size = part.blob.size_bytes - len(head_of_part(batch.id, part.row))
            self._places.append((self.size_bytes, size, part))
            self.size_bytes += size

    async def read_at(self, offset: int, size: int) -> bytes:
        """Bytes of the whole."""
        pieces = []
        for start, length, part in self._places:
            low, high = max(offset - start, 0), min(offset + size - start, length)
            if low < high:
                head = len(head_of_part(self._batch.id, part.row))
                found = self._store.blobs.read(
                    self._batch.tenant_id, part.blob.id, offset=head + low, length=high - low
                )
                pieces += [piece async for piece in found]
        return b"".join(pieces)


def _first_missing(done: Sequence[tuple[int, int]]) -> int:
    """The first row that is in none of these ranges, which are in order."""
    row = 0
    for start, stop in done:
        if start > row:
            break
        row = max(row, stop)
    return row


def _missing(done: Sequence[tuple[int, int]], start: int, stop: int) -> list[tuple[int, int]]:
    """What of the rows from ``start`` to ``stop`` is in none of these ranges."""
    found = []
    for low, high in done:
        if low >= stop or high <= start:
            continue
        if low > start:
            found.append((start, low))
        start = max(start, high)
    if start < stop:
        found.append((start, stop))
    return found


def _placed(error: ApplianceError, row: int, rows: Sequence[Any]) -> ApplianceError:
    """The same problem with the rows it is about, counted from 0."""
    error.detail = f"Rows {row} to {row + len(rows) - 1}: {error.detail}"
    error.extensions |= {"first_row": row, "rows": len(rows)}
    return error


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    for error in group.exceptions:
        return _first(error) if isinstance(error, BaseExceptionGroup) else error
    return group
