"""Reading the ledger: entries by number, frames in order, a frame at a place.

Owns: how a stored record becomes an ``Entry``, and where in the segments an entry lies.
Never: writes, or reads past what is durable.
Read next: ``ledger`` (which is this and the writer), ``projection`` (reads everything, in order).
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from appliance.errors import NotFound, StoreCorrupt
from appliance.records import Entry
from appliance.store import verify
from appliance.store.keyring import Keyring
from appliance.store.proofs import leaf_hash
from appliance.store.verify import Frame, State

_SECTOR = 512


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place between frames: everything up to entry ``size`` lies before it."""

    segment: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a frame lies: ``[offset, end)`` of a segment."""

    segment: int
    offset: int
    end: int


class Record(msgspec.Struct):
    """A stored record; ``data`` is the event's JSON unless it is ``sealed``."""

    seq: int
    ts: int
    mono: int
    boot: str
    kind: str
    tenant: str
    actor: str
    object: str
    data: msgspec.Raw = msgspec.Raw(b"null")
    sealed: str | None = None


decode_record = msgspec.json.Decoder(Record).decode


class Reader:
    """The durable part of a ledger; thread-safe."""

    def __init__(self, folder: Path, key: bytes, keyring: Keyring) -> None:
        """``key`` is the ledger key; ``position`` tells what is durable."""
        self.folder = folder
        self.position = State()
        self._key = key
        self._keyring = keyring
        self._keys: dict[int, tuple[bytes, Any]] = {}  # number: header digest, cipher
        self._starts: list[int] = []  # first sequence number of segment i + 1

    def read(self, after_seq: int, limit: int) -> list[Entry]:
        """Up to ``limit`` durable entries after ``after_seq``, in order. Blocking.

        Raises:
            StoreCorrupt: the ledger is damaged there.
        """
        entries: list[Entry] = []
        for _place, frame in self.frames(self.cursor_at(after_seq)):
            for index, record in enumerate(frame.records):
                if frame.first_seq + index > after_seq and len(entries) < limit:
                    entries.append(self.entry(record))
            if len(entries) >= limit:
                break
        return entries

    def entry(self, record: bytes) -> Entry:
        """The entry of a record line; a removed tenant's sealed event is ``None``."""
        found = decode_record(record)
        event = msgspec.json.decode(found.data)
        if found.sealed is not None:
            try:
                box = base64.b64decode(found.sealed)
                plain = self._keyring.open(found.tenant, "audit", found.kind.encode(), box)
                event = msgspec.json.decode(plain)
            except NotFound:
                event = None
        return Entry(
            seq=found.seq,
            time_ns=found.ts,
            monotonic_ns=found.mono,
            boot=found.boot,
            kind=found.kind,
            tenant_id=found.tenant,
            actor=found.actor,
            object=found.object,
            event=event,
            leaf=leaf_hash(record).hex(),
        )

    def cursor_at(self, after_seq: int) -> Cursor:
        """A cursor at the frame that holds entry ``after_seq + 1``, by hopping over headers."""
        end = self.position
        if after_seq >= end.size:
            return Cursor(end.segment, end.offset, end.size)
        starts = self._starts[: end.segment]
        low, high = 0, len(starts)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if starts[middle] <= after_seq + 1 else (low, middle)
        number, offset, size = low + 1, verify.SEGMENT_SIZE, starts[low] - 1
        with self._path(number).open("rb") as file:
            while True:
                header = os.pread(file.fileno(), verify.FRAME_SIZE, offset)
                if not verify.has_header(header, 0):
                    raise self._damaged(number, offset)
                _magic, length, first, count, _chain = verify.FRAME.unpack_from(header)
                if first + count - 1 > after_seq:
                    return Cursor(number, offset, first - 1)
                offset += verify.FRAME_SIZE + length + verify.TAIL_SIZE
                size = first + count - 1
                if size >= end.size:
                    return Cursor(number, offset, size)

    def frames(self, cursor: Cursor) -> Iterator[tuple[Place, Frame]]:
        """(place, frame) of every durable frame after the cursor, as of now."""
        end = self.position
        number, offset = max(cursor.segment, 1), max(cursor.offset, verify.SEGMENT_SIZE)
        seq = cursor.size
        while seq < end.size:
            with self._path(number).open("rb") as file:
                stop = end.offset if number == end.segment else os.fstat(file.fileno()).st_size
                while offset < stop and seq < end.size:
                    frame = self._frame_from(file.fileno(), number, offset)
                    if frame.first_seq != seq + 1:
                        raise self._damaged(number, offset)
                    yield Place(number, offset, frame.end), frame
                    offset, seq = frame.end, seq + len(frame.records)
            if number >= end.segment and seq < end.size:
                raise self._damaged(number, offset)
            number, offset = number + 1, verify.SEGMENT_SIZE

    def frame_at(self, segment: int, offset: int) -> Frame:
        """The frame at a place that the projection remembered. Blocking."""
        try:
            with self._path(segment).open("rb") as file:
                return self._frame_from(file.fileno(), segment, offset)
        except FileNotFoundError:
            raise StoreCorrupt(f"Ledger segment {segment} is missing.") from None

    def _frame_from(self, fd: int, number: int, offset: int) -> Frame:
        header = os.pread(fd, verify.FRAME_SIZE, offset)
        if not verify.has_header(header, 0):
            raise self._damaged(number, offset)
        rest = verify.FRAME.unpack_from(header)[1] + verify.TAIL_SIZE
        data = header + os.pread(fd, rest, offset + verify.FRAME_SIZE)
        if number not in self._keys:
            self._keys[number] = self._header(number)[1:]
        try:
            frame = verify.open_frame(data, 0, *self._keys[number], base=offset)
        except verify.Bad as bad:
            raise self._damaged(number, offset) from bad
        return frame._replace(end=offset + frame.end)

    def _path(self, number: int) -> Path:
        return self.folder / f"seg-{number:08d}"

    def _header(self, number: int) -> tuple[int, bytes, Any]:
        """(first sequence number, header digest, cipher) of a segment."""
        try:
            with self._path(number).open("rb") as file:
                data = file.read(verify.SEGMENT_SIZE)
            first_seq, _before, digest, cipher = verify.open_segment(data, number, self._key)
        except FileNotFoundError:
            raise StoreCorrupt(f"Ledger segment {number} is missing.") from None
        except verify.Bad as bad:
            raise self._damaged(number, 0) from bad
        return first_seq, digest, cipher

    @staticmethod
    def _damaged(number: int, offset: int) -> StoreCorrupt:
        return StoreCorrupt(
            f"The ledger is damaged in segment {number} at offset {offset}.",
            hint="appliance audit verify",
        )


def is_torn(data: bytes, offset: int) -> bool:
    """Whether a bad frame at ``offset`` of a last segment is one that a lost write can leave.

    Args:
        data: the whole segment.
        offset: where the frame should begin; up to 124 when the segment's own header is bad.

    Returns:
        True when the file ends inside the frame or a sector of it was never written (reads as
        zeros), and no undamaged frame follows. A changed bit looks different.
    """
    later = data.find(verify.FRAME_MAGIC, offset + 1)
    while later >= 0:
        if verify.has_header(data, later):
            return False
        later = data.find(verify.FRAME_MAGIC, later + 1)
    end = offset + verify.FRAME_SIZE
    if verify.has_header(data, offset):
        end += verify.FRAME.unpack_from(data, offset)[1] + verify.TAIL_SIZE
    begin = 0 if offset <= verify.SEGMENT_SIZE else offset
    return len(data) < end or any(
        not any(data[max(start, begin) : min(start + _SECTOR, end)])
        for start in range(begin - begin % _SECTOR, end, _SECTOR)
    )
