"""The process that reads a stranger's table: confined, without keys, told what to do by frames.

Owns: this process from its first line to its last.
Never: opens anything; all bytes come and go through the pipes it was started with.
Read next: ``confine`` (what it gives up), ``engine`` (what it does), ``reader`` (who started it).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import BinaryIO

import msgspec

from appliance.errors import FieldError, InputInvalid
from appliance.tables import frames
from appliance.tables.confine import confine
from appliance.tables.engine import Engine, Row
from appliance.tables.frames import Head, Next, Order, Problem, Start

_OUT_BYTES = 1024 * 1024
_pack = msgspec.msgpack.Encoder().encode


class _Link:
    """The two pipes."""

    def __init__(self, come: BinaryIO, go: BinaryIO) -> None:
        self._come = come
        self._go = go

    def get(self) -> tuple[bytes, bytes]:
        header = self._come.read(frames.HEADER.size)
        if len(header) < frames.HEADER.size:
            raise EOFError
        kind, size = frames.HEADER.unpack(header)
        data = self._come.read(size)
        if len(data) < size:
            raise EOFError
        return kind, data

    def put(self, kind: bytes, *data: bytes) -> None:
        size = sum(len(piece) for piece in data)
        for piece in (frames.HEADER.pack(kind, size), *data):
            self._go.write(piece)
        self._go.flush()

    def fetch(self, source: int, offset: int, size: int) -> bytes:
        self.put(frames.READ, _pack((source, offset, size)))
        kind, data = self.get()
        if kind != frames.DATA:
            raise EOFError
        return data

    def emit(self, data: bytes) -> None:
        for at in range(0, len(data), _OUT_BYTES):
            self.put(frames.OUT, data[at : at + _OUT_BYTES])


def main() -> None:
    """An order on standard input, what comes of it on standard output."""
    link = _Link(os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)  # so that nothing else gets between the frames
    try:
        order = msgspec.msgpack.decode(link.get()[1], type=Order)
        engine = Engine(order, link.fetch, link.emit)
        confine(memory_bytes=order.memory_bytes)
        _carry_out(order, engine, link)
    except EOFError:
        pass  # nobody wants it any more
    except InputInvalid as error:
        place = error.fields[0].pointer if error.fields else ""
        link.put(frames.PROBLEM, _pack(Problem(detail=error.detail, hint=error.hint, place=place)))
    except (MemoryError, RecursionError):
        detail = "Reading this table takes more memory, or is nested deeper, than is possible here."
        link.put(frames.PROBLEM, _pack(Problem(detail=detail)))
    sys.stdout.flush()
    os._exit(0)  # no destructor runs; there is nothing to tidy up


def _carry_out(order: Order, engine: Engine, link: _Link) -> None:
    tables = [engine.table(index) for index in range(len(order.sources))]
    first = tables[0]
    head = Head(columns=first.columns, rows=first.rows, is_named=first.is_named)
    link.put(frames.HEAD, _pack(head))
    if order.verb == "write":
        engine.write(tables)
        link.put(frames.END)
        return
    giving = _Giving(iter(()), 0)
    while True:
        kind, data = link.get()
        if kind == frames.START:
            start = msgspec.msgpack.decode(data, type=Start)
            giving = _Giving(engine.rows(first, start.row, start.columns), start.row)
        else:
            link.put(*giving.batch(msgspec.msgpack.decode(data, type=Next)))


class _Giving:
    """Rows on their way out, from some row on."""

    def __init__(self, pieces: Iterator[list[Row]], row: int) -> None:
        self._pieces = pieces
        self._row = row
        self._left: list[bytes] = []

    def batch(self, wanted: Next) -> tuple[bytes, ...]:
        """The next frame: a batch, or the end."""
        left = self._left
        size = sum(len(row) for row in left)
        while len(left) < wanted.rows_max and size < wanted.bytes_max:
            some = next(self._pieces, None)
            if some is None:
                break
            packed = [_pack(row) for row in some]
            size += sum(len(row) for row in packed)
            left += packed
        if not left:
            return (frames.END,)
        count = size = 0
        for row in left[: wanted.rows_max]:
            size += len(row)
            if size > wanted.bytes_max:
                break
            count += 1
        if not count:
            detail = (
                f"Row {self._row} is {size} bytes, more than the {wanted.bytes_max} of a batch."
            )
            field = FieldError(pointer=f"row:{self._row}", detail=detail)
            raise InputInvalid(detail, fields=(field,))
        self._row += count
        self._left = left[count:]
        head = b"\xdd" + count.to_bytes(4, "big")  # a MessagePack array of so many
        return (frames.ROWS, head, *left[:count])
