"""The parent's end: starts a reading process, feeds it, and takes rows or bytes from it.

Owns: the life of the process, what it may ask for, how long it may be silent.
Never: parses a table, or believes what the process says beyond its shape.
Read next: ``appliance.tables`` (how this is used), ``child`` (the other end).
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import msgspec

from appliance import config
from appliance.errors import FieldError, HostError, InputInvalid
from appliance.tables import frames
from appliance.tables.formats import Format
from appliance.tables.frames import Head, Next, Order, Problem, Source, Start

_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); from appliance.tables.child import main; main()"
)
MEMORY_BYTES = 1024 * 1024 * 1024
SILENCE_S = 120.0
_PIECE_BYTES = 1024 * 1024
_ASKED_BYTES_MAX = 1024 * 1024 * 1024
_SAID_BYTES_MAX = 16 * 1024 * 1024
_pack = msgspec.msgpack.Encoder().encode

ReadAt = Callable[[int, int], Awaitable[bytes]]
"""Bytes of a table at an offset: exactly as many as asked for, fewer at its end only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A table to read.

    Attributes:
        read_at: gives its bytes.
        size_bytes: how many there are; -1 for NDJSON that is read once, in order, until empty.
        format: how it is encoded.
        types: types of columns by name, in SQL's words, instead of the derived ones.
        columns: the ones wanted, in this order; empty for all.
        renamed: names for them in the output, in the same order; empty for their own.
    """

    read_at: ReadAt
    size_bytes: int
    format: Format
    types: Mapping[str, str] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    renamed: tuple[str, ...] = ()


class Child:
    """One reading process; used by one task at a time."""

    def __init__(self, process: asyncio.subprocess.Process, inputs: Sequence[Input]) -> None:
        if process.stdin is None or process.stdout is None:
            raise ValueError("asked for pipes")
        self._process = process
        self._stdin = process.stdin
        self._stdout = process.stdout
        self._inputs = inputs

    @classmethod
    async def started(cls, order: Order, inputs: Sequence[Input]) -> Self:
        """Start a process and tell it what to do."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-c",
            _START,
            str(Path(__file__).parents[2]),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=config.child_environment(LC_ALL="C.UTF-8"),
            cwd="/",
            start_new_session=True,
        )
        child = cls(process, inputs)
        try:
            await child.put(frames.ORDER, _pack(order))
        except BaseException:
            await child.close()
            raise
        return child

    async def put(self, kind: bytes, data: bytes) -> None:
        """Send a frame."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # ``take`` says why
            self._stdin.write(frames.HEADER.pack(kind, len(data)))
            self._stdin.write(data)
            await self._stdin.drain()

    async def take(self, silence_s: float, bytes_max: int = _SAID_BYTES_MAX) -> tuple[bytes, bytes]:
        """The next frame that is not a request for bytes; those are answered.

        Raises:
            InputInvalid: the table cannot be read, for the reason given.
            HostError: the process did not keep to what was agreed.
        """
        while True:
            try:
                async with asyncio.timeout(silence_s):
                    header = await self._stdout.readexactly(frames.HEADER.size)
                    kind, size = frames.HEADER.unpack(header)
                    if size > max(bytes_max, _SAID_BYTES_MAX):
                        raise HostError("The process that reads tables said too much at once.")
                    data = await self._stdout.readexactly(size)
            except TimeoutError as error:
                raise InputInvalid(
                    f"Reading the table made no progress for {silence_s:g} seconds; given up."
                ) from error
            except asyncio.IncompleteReadError as error:
                raise await self._ended() from error
            if kind == frames.READ:
                await self._answer(data)
            elif kind == frames.PROBLEM:
                problem = msgspec.msgpack.decode(data, type=Problem)
                place = FieldError(pointer=problem.place, detail=problem.detail)
                raise InputInvalid(
                    problem.detail, hint=problem.hint, fields=(place,) if problem.place else ()
                )
            else:
                return kind, data

    async def _answer(self, data: bytes) -> None:
        """Send the bytes asked for, a piece in memory at a time."""
        index, offset, size = msgspec.msgpack.decode(data, type=tuple[int, int, int])
        one = self._inputs[index] if 0 <= index < len(self._inputs) else None
        if one is None or not 0 <= size <= _ASKED_BYTES_MAX or offset < -1:
            raise HostError("The process that reads tables asked for what there is not.")
        if one.size_bytes < 0:
            await self.put(frames.DATA, await one.read_at(-1, min(size, _PIECE_BYTES)))
            return
        left = max(0, min(size, one.size_bytes - offset))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._stdin.write(frames.HEADER.pack(frames.DATA, left))
            while left:
                piece = await one.read_at(offset, min(left, _PIECE_BYTES))
                if not piece:
                    raise HostError("A table has fewer bytes than were counted.")
                self._stdin.write(piece)
                await self._stdin.drain()
                offset += len(piece)
                left -= len(piece)

    async def _ended(self) -> Exception:
        code = await self._process.wait()
        if code < 0:
            name = signal.Signals(-code).name
            return InputInvalid(
                f"The table cannot be read: the process that parsed it was ended by {name}; it is "
                "damaged, or needs more memory than there is for it."
            )
        return HostError("The process that reads tables ended without an answer.")

    async def close(self) -> None:
        """End the process, whatever it does."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._stdin.close()
        await self._process.wait()


class Table:
    """A table that is open for reading.

    Attributes:
        columns: name and type of each, in the table's order; types are SQL's words.
        rows: how many there are, ``None`` if the format does not tell.
        is_named: whether the names are the table's own; else they are the columns' numbers.
    """

    def __init__(self, child: Child, head: Head, silence_s: float) -> None:
        self._child = child
        self._silence_s = silence_s
        self._is_busy = False
        self.columns = head.columns
        self.rows = head.rows
        self.is_named = head.is_named

    async def batches(
        self,
        *,
        start_row: int = 0,
        columns: Sequence[str] = (),
        rows_max: int = 1000,
        bytes_max: int = 1024 * 1024,
    ) -> AsyncGenerator[list[dict[str, Any]]]:
        """Rows in their order, at least one in each batch.

        Args:
            start_row: the first row to give, counted from 0.
            columns: which columns, in this order; all if there is none.
            rows_max: how many rows a batch has at most.
            bytes_max: how large a batch is at most, encoded as MessagePack.

        Raises:
            InputInvalid: a row cannot be read (its line and column are named where known), is
                alone larger than ``bytes_max``, or there is no such column.
        """
        if self._is_busy:
            raise RuntimeError("this table is being read already")
        self._is_busy = True
        await self._child.put(frames.START, _pack(Start(row=start_row, columns=tuple(columns))))
        names = tuple(columns) or tuple(name for name, _ in self.columns)
        wanted = _pack(Next(rows_max=rows_max, bytes_max=bytes_max))
        is_waiting = False
        try:
            while True:
                is_waiting = True
                await self._child.put(frames.NEXT, wanted)
                kind, data = await self._child.take(self._silence_s, bytes_max + 5)
                is_waiting = False
                if kind == frames.END:
                    return
                rows = msgspec.msgpack.decode(data, type=list[tuple[Any, ...]])
                yield [dict(zip(names, row, strict=True)) for row in rows]
        finally:
            self._is_busy = is_waiting  # one that was cut off in the middle answers nobody else


@contextlib.asynccontextmanager
async def started(
    inputs: Sequence[Input], verb: Any, into: Format, memory_bytes: int, silence_s: float
) -> AsyncIterator[tuple[Child, Head]]:
    """A process that has looked at these inputs; it ends with the block."""
    order = Order(
        verb=verb,
        into=into,
        memory_bytes=memory_bytes,
        sources=tuple(
            Source(
                format=one.format,
                size_bytes=one.size_bytes,
                types=dict(one.types),
                columns=one.columns,
                renamed=one.renamed,
            )
            for one in inputs
        ),
    )
    child = await Child.started(order, inputs)
    try:
        kind, data = await child.take(silence_s)
        if kind != frames.HEAD:
            raise HostError("The process that reads tables did not begin as agreed.")
        yield child, msgspec.msgpack.decode(data, type=Head)
    finally:
        await child.close()
