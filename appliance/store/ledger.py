"""The ledger: what was appended is durable when ``append`` returns, and can never be changed.

Owns: ``ledger/`` and ``anchor``: group commit, the failed state, recovery of a torn tail.
Never: retries on a file that failed, or reads DuckDB.
Read next: ``segments`` (what a frame is on disk); ``verify`` (the same checks, alone); ``registry``
replays it.

One thread writes: it takes everything that waits, writes one frame, syncs once, then wakes all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from appliance import clock
from appliance.errors import (
    ApplianceError,
    AuditUnavailable,
    CapacityExhausted,
    DiskFull,
    NotFound,
    StoreCorrupt,
)
from appliance.events import CallIntent, Event
from appliance.records import Entry
from appliance.store import verify
from appliance.store.appended import Appended
from appliance.store.keyring import Keyring
from appliance.store.proofs import Signer, leaf_hash
from appliance.store.reader import Reader, is_torn
from appliance.store.seal import DISK_FULL, fsync_dir, replace_file
from appliance.store.segments import Segments, SyncError
from appliance.store.verify import State, push, root_of

_LOG = logging.getLogger(__name__)
_FRAME_RECORDS = 2048
_FRAME_BYTES = 4 * 1024 * 1024
_ANCHOR_PERIOD_S = 1.0
_TURNS_MAX = 8
_CALLS_PER_TURN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A signed head: the tree's size, its root in hex and the time it was signed (ns)."""

    size: int
    root_hex: str
    time_ns: int


class Ledger(Reader):
    """An open ledger. ``recover`` first (blocking), then ``start`` on the event loop."""

    def __init__(
        self,
        data_dir: Path,
        *,
        key: bytes,
        signer: Signer,
        keyring: Keyring,
        segment_bytes: int,
        queue_max: int,
        free_bytes_min: int,
    ) -> None:
        """Args are the folder, the ledger key (32 bytes), and the limits of ``config.Store``."""
        self.boot = clock.new_id("boot")
        self.state: Literal["ok", "failed"] = "ok"
        self.dropped = 0
        self.under_way = 0
        """Calls that will append again; set by who runs them."""
        super().__init__(data_dir / "ledger", key, keyring)
        self.anchor = data_dir / "anchor"
        self.signer = signer
        self._queue_max = queue_max
        self._free_bytes_min = free_bytes_min
        self._is_low = False
        self._pending = 0
        self._queue: queue.SimpleQueue[Appended | None] = queue.SimpleQueue()
        self._gathered: list[Appended] = []
        self._segments = Segments(self.folder, key, signer, segment_bytes)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event()
        self._anchored = -1
        self._anchor_lock = threading.Lock()
        self._watchers: list[Callable[[], None]] = []

    # --- opening -----------------------------------------------------------------------------

    def recover(
        self, start: State | None, visit: Callable[[list[bytes]], None], *, is_new: bool
    ) -> tuple[str, int] | None:
        """Verify everything after ``start``, cut a torn tail, check the anchor. Blocking.

        Args:
            start: a trusted earlier place (from ``registry.snap``), or ``None`` for the beginning.
            visit: called with the records of each verified frame, in order.
            is_new: an empty ledger is expected; otherwise a missing anchor is refused.

        Returns:
            (segment name, bytes cut) if there was a torn tail.

        Raises:
            StoreCorrupt: the ledger is damaged, shortened or not the anchor's.
        """
        state, cut = start or State(), None
        anchor_size, anchor_root = self._read_anchor(is_new=is_new)
        found = state.root if state.size == anchor_size else None
        try:
            public = self.signer.public
            for head, records in verify.walk(self.folder, self._key, public, state):
                state = head
                visit(records)
                found = state.root if state.size == anchor_size else found
        except verify.Bad as bad:
            if not self._is_torn(*bad.place):
                raise StoreCorrupt(
                    f"The ledger is damaged at entry {bad.seq}: {bad}.",
                    hint="appliance audit verify",
                    first_bad_seq=bad.seq,
                ) from bad
            cut = self._cut(*bad.place)
        if found != anchor_root:
            self._refuse(state, anchor_size)
        self._starts = [self._header(n)[0] for n in range(1, state.segment + 1)]
        self._anchored = anchor_size if self.anchor.exists() else -1
        self.position = state
        if not state.size:
            signature = self.signer.sign_head(0, state.root, 0, state.chain)
            self.position = state._replace(signature=signature)
            self.write_anchor()
        return cut

    @staticmethod
    def _refuse(state: State, anchor_size: int) -> None:
        if anchor_size <= state.size:
            raise StoreCorrupt(
                f"The anchor, signed at entry {anchor_size}, belongs to another history or is "
                "older than the registry's snapshot: the data folder was mixed or rolled back.",
                hint="restore the newest backup",
            )
        raise StoreCorrupt(
            f"The ledger ends at entry {state.size}, but its anchor was signed at entry "
            f"{anchor_size}: entries were lost or the data folder was rolled back.",
            hint="restore the newest backup",
            first_bad_seq=state.size + 1,
        )

    def _read_anchor(self, *, is_new: bool) -> tuple[int, bytes]:
        try:
            return self.signer.public.open_note(self.anchor.read_text("utf-8"))
        except FileNotFoundError:
            if is_new:
                return 0, root_of([])
            raise StoreCorrupt(
                "The ledger's anchor is missing: nothing proves that the ledger is whole.",
                hint="restore the newest backup",
            ) from None
        except (verify.Bad, UnicodeDecodeError) as error:
            raise StoreCorrupt(
                "The ledger's anchor is damaged.", hint="restore it from the newest backup"
            ) from error

    def _is_torn(self, number: int, offset: int) -> bool:
        """Whether damage there is what a write that never finished leaves."""
        path = self._path(number)
        is_last = path.exists() and not self._path(number + 1).exists()
        return is_last and is_torn(path.read_bytes(), offset)

    def _cut(self, number: int, offset: int) -> tuple[str, int]:
        path = self._path(number)
        cut_bytes = path.stat().st_size
        if offset <= verify.SEGMENT_SIZE:
            path.unlink()
        else:
            cut_bytes -= offset
            with path.open("r+b") as file:
                file.truncate(offset)
                os.fsync(file.fileno())
        fsync_dir(self.folder)
        _LOG.warning("cut %d unfinished bytes off %s", cut_bytes, path.name)
        return path.name, cut_bytes

    def start(self) -> None:
        """Start the writer and the anchor threads; call on the event loop that will append."""
        self._loop = asyncio.get_running_loop()
        for target, name in ((self._write_loop, "ledger"), (self._anchor_loop, "anchor")):
            thread = threading.Thread(target=target, name=f"store-{name}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def watch(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called, on the writer's thread, after each commit; it must be quick."""
        self._watchers.append(callback)

    async def close(self) -> None:
        """Write what waits and the last anchor, then stop."""
        self._stop.set()
        self._hand_over(0)
        self._queue.put(None)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        self._threads.clear()
        self._segments.close()

    # --- appending ---------------------------------------------------------------------------

    @property
    def head(self) -> Head:
        """The newest durable head."""
        at = self.position
        return Head(size=at.size, root_hex=at.root.hex(), time_ns=at.time_ns)

    def note(self) -> str:
        """The newest head as a signed checkpoint."""
        return self.signer.note(self.position)

    async def append(
        self,
        *events: Event,
        tenant_id: str = "",
        actor: str,
        object: str = "",  # noqa: A002 - the record's own word
    ) -> tuple[Entry, ...]:
        """Append events as one unit; they are durable, all of them, when this returns.

        Cancelling the wait does not undo it: the entries may still become durable.

        Raises:
            CapacityExhausted: too many entries wait already; nothing was appended.
            DiskFull: no room (or too little for new calls); nothing was appended.
            AuditUnavailable: the ledger failed; whether these events are in it is not known.
            NotFound: the events are sealed for a tenant that was removed.
        """
        item = await self._appended(events, tenant_id, actor, object)
        return tuple(
            Entry(
                seq=item.first_seq + index,
                time_ns=item.time_ns,
                monotonic_ns=item.mono_ns,
                boot=self.boot,
                kind=event.KIND,
                tenant_id=tenant_id,
                actor=actor,
                object=object,
                event=msgspec.json.decode(item.events[index]),
                leaf=item.leaves[index].hex(),
            )
            for index, event in enumerate(events)
        )

    async def record(
        self,
        event: Event,
        *,
        tenant_id: str = "",
        actor: str,
        object: str = "",  # noqa: A002
        after: Appended | None = None,
    ) -> int:
        """Append one event like ``append``, for the path of a call: only its number is told.

        Args:
            event: what happened.
            tenant_id: whose it is.
            actor: who did it.
            object: to what.
            after: what ``begin`` returned: this one is not recorded without that one, and its
                ``intent_seq``, being ``LATER``, becomes the number of that one.
        """
        return (await self._appended((event,), tenant_id, actor, object, after)).first_seq

    def begin(
        self,
        event: Event,
        *,
        tenant_id: str = "",
        actor: str,
        object: str = "",  # noqa: A002
    ) -> Appended:
        """Append one event like ``record`` without waiting for it: that is for ``record(after=)``.

        Raises:
            What ``append`` raises before it waits.
        """
        item = self._queued((event,), tenant_id, actor, object)
        if item.future is not None:
            item.future.add_done_callback(_retrieved)
        return item

    async def _appended(
        self,
        events: tuple[Event, ...],
        tenant_id: str,
        actor: str,
        obj: str,
        after: Appended | None = None,
    ) -> Appended:
        item = self._queued(events, tenant_id, actor, obj, after)
        if item.future is not None:
            await item.future
        return item

    def _queued(
        self,
        events: tuple[Event, ...],
        tenant_id: str,
        actor: str,
        obj: str,
        after: Appended | None = None,
    ) -> Appended:
        self._admit(events)
        assert self._loop is not None  # noqa: S101 - start() precedes append()
        item = Appended(self._loop.create_future())
        item.after = after
        item.fill(events, self._keyring, self.boot, tenant_id, actor, obj)
        self._pending += len(item.tails)
        self._gather(item)
        return item

    def append_later(
        self,
        event: Event,
        *,
        tenant_id: str = "",
        actor: str,
        object: str = "",  # noqa: A002
    ) -> None:
        """Append when convenient; dropped (and counted in ``dropped``) under pressure."""
        if self.state != "ok" or self._pending > self._queue_max // 2 or self._stop.is_set():
            self.dropped += 1
            return
        item = Appended(None)
        try:
            item.fill((event,), self._keyring, self.boot, tenant_id, actor, object)
        except NotFound:
            self.dropped += 1
            return
        self._pending += 1
        self._gather(item)

    def _gather(self, item: Appended) -> None:
        """Leave an item to the writer, in the company of others where they are to be expected.

        A frame costs a signature and a sync whatever it holds. Where many calls are under way, each
        turn of the event loop brings further items; where the loop has nothing to do, those turns
        take no time.
        """
        self._gathered.append(item)
        if len(self._gathered) == 1:
            self._hand_over(min(_TURNS_MAX, self.under_way // _CALLS_PER_TURN))

    def _hand_over(self, turns: int) -> None:
        """Give the writer what was gathered, after so many turns of the event loop."""
        if turns and self._loop is not None and not self._stop.is_set():
            self._loop.call_soon(self._hand_over, turns - 1)
        else:
            for item in self._gathered:
                self._queue.put(item)
            self._gathered.clear()

    def _admit(self, events: tuple[Event, ...]) -> None:
        if self.state != "ok" or self._stop.is_set():
            raise AuditUnavailable(
                "The audit ledger cannot be written; no work is accepted.",
                hint="check the disk, then restart the appliance",
            )
        if self._pending + len(events) > self._queue_max:
            raise CapacityExhausted("Too many entries wait for the audit ledger.")
        if self._is_low and any(isinstance(event, CallIntent) for event in events):
            raise DiskFull(
                "The data folder's disk is nearly full; new calls are refused.",
                hint="free space, or lower store.free_bytes_min",
            )

    # --- the writer thread -------------------------------------------------------------------

    def _write_loop(self) -> None:
        is_last = False
        while not is_last:
            item = self._queue.get()
            batch: list[Appended] = []
            count = size = 0
            while True:
                if item is None:
                    is_last = True
                    break
                batch.append(item)
                count, size = count + len(item.tails), size + item.size
                if count >= _FRAME_RECORDS or size >= _FRAME_BYTES:
                    break
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
            if batch:
                self._commit(batch)

    def _commit(self, batch: list[Appended]) -> None:
        orphans = [item for item in batch if item.after is not None and item.after.problem]
        if orphans:  # what they come after was not recorded
            batch = [item for item in batch if item not in orphans]
            for item in orphans:
                assert item.after is not None  # noqa: S101
                self._settle([item], item.after.problem)
        if batch:
            self._write(batch)

    def _write(self, batch: list[Appended]) -> None:
        problem: ApplianceError | None = None
        if self.state != "ok":
            problem = AuditUnavailable("The audit ledger has failed.")
        else:
            try:
                self._write_frame(batch)
            except Exception as error:  # noqa: BLE001 - whatever it is, nobody may wait for ever
                problem = self._problem(error)
        self._settle(batch, problem)
        if problem is None:
            for callback in self._watchers:
                callback()

    def _settle(self, batch: list[Appended], problem: ApplianceError | None) -> None:
        for item in batch:
            item.problem, item.after = problem, None
        assert self._loop is not None  # noqa: S101
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._resolve, batch, problem)

    def _resolve(self, batch: list[Appended], problem: ApplianceError | None) -> None:
        for item in batch:
            self._pending -= len(item.tails)
            if item.future is None:
                self.dropped += problem is not None
            elif not item.future.done():
                if problem is None:
                    item.future.set_result(None)
                else:
                    item.future.set_exception(problem)

    def _write_frame(self, batch: list[Appended]) -> None:
        at = self.position
        seq, frontier = at.size, list(at.frontier)
        lines: list[bytes] = []
        for item in batch:
            item.first_seq = seq + 1
            item.leaves = leaves = []
            for tail in item.tails:
                record = b'{"seq":%d,%b' % (seq + 1, item.numbered(tail))
                leaf = leaf_hash(record)
                push(frontier, seq, leaf)
                seq += 1
                leaves.append(leaf)
                lines.append(record)
        self.position = self._segments.write(at, lines, seq, frontier)
        if self.position.segment != at.segment:
            self._starts.append(at.size + 1)

    def _problem(self, error: Exception) -> ApplianceError:
        is_full = isinstance(error, OSError) and error.errno in DISK_FULL
        if is_full and not isinstance(error, SyncError):
            _LOG.error("the ledger's disk is full")
            return DiskFull("The data folder's disk is full; nothing was recorded.")
        self.state = "failed"
        _LOG.critical("the ledger failed and accepts nothing more: %s", error)
        return AuditUnavailable(
            "The audit ledger cannot be written; no work is accepted.",
            hint="check the disk, then restart the appliance",
        )

    # --- the anchor --------------------------------------------------------------------------

    def write_anchor(self) -> None:
        """Replace the anchor with the newest head if that is newer. Blocking."""
        with self._anchor_lock:
            at = self.position
            if at.size != self._anchored:
                replace_file(self.anchor, self.signer.note(at).encode())
                self._anchored = at.size

    def _anchor_loop(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._stop.wait(_ANCHOR_PERIOD_S)
            if is_last:
                self._threads[0].join()
            try:
                info = os.statvfs(self.folder)
                self._is_low = info.f_bavail * info.f_frsize < self._free_bytes_min
                self.write_anchor()
            except (OSError, DiskFull) as error:
                _LOG.warning("the anchor could not be written: %s", error)


def _retrieved(future: asyncio.Future[None]) -> None:
    """Nobody has to wait for what ``begin`` appended; who comes after it is told."""
    if not future.cancelled():
        future.exception()
