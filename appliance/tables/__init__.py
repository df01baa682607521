"""Tables of strangers: Parquet, CSV, NDJSON and JSON, read and written as streams.

Owns: what a table is to the rest of the appliance, whatever file it came in.
Never: parses here: a process without keys does, that can open no file and no socket, gets the
bytes it asks for through a pipe, and is killed when it is silent for too long. Nothing of a table
touches a disk.
Read next: ``reader`` (that process's life), ``engine`` (what it does), ``formats``.

    async with tables.opened(read_at, size_bytes=n, format="parquet") as table:
        async for rows in table.batches(start_row=0, rows_max=1000, bytes_max=1 << 20):
            ...  # list[dict[str, Any]]

What is guaranteed:

- **Order.** Rows come in the order of the file, each once; ``start_row`` counts in that order. In
  Parquet it costs nothing to start late (row groups before it are not read); elsewhere what is
  before it is parsed again. Columns come in the file's order. The same file gives the same rows
  and types each time.
- **Values.** Those JSON has: ``None``, ``bool``, ``int`` of up to 64 bits, ``float`` (NaN and
  infinities too), ``str``, and ``list`` and ``dict`` of these for nested columns. A DECIMAL is the
  nearest ``float``, for models and statistics want numbers; integers of 128 bits are text;
  dates and times are ISO 8601 text (``2026-01-31``,
  ``2026-01-31T12:00:00``, in UTC with ``+00`` where they have a zone); bytes are Base64 text; UUID
  and enumerations are text.
- **Types** are SQL's words, as DuckDB says them (``BIGINT``, ``DOUBLE``, ``VARCHAR``, ``BOOLEAN``,
  ``DATE``, ``DECIMAL(12,3)``, ``DOUBLE[]``). Parquet brings them. Those of a CSV or JSON table are
  derived from *all* of its rows, which are therefore read once when it is opened: ``BIGINT``,
  ``DOUBLE``, ``BOOLEAN``, else ``VARCHAR``; nested JSON is ``JSON``. Nothing is guessed to be a
  date, and digits with a leading zero stay text. ``types`` decides otherwise.
- **CSV** is UTF-8 with the names in its first line; delimiter and quotes are found out; an empty
  field is null. **NDJSON** is an object per line, **JSON** an array of objects; a name that a row
  does not have is null in it. Rows may be lists instead, all equally long, whose columns are called
  ``1``, ``2`` and so on; a JSON document may wrap its array in one of the ways of ``shapes``.
- **Memory.** The process may take ``memory_bytes``; here there is a batch, and a piece of 1 MiB of
  the source, at a time.

What cannot be read is an ``InputInvalid`` that names the line and the column where they are known.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from appliance.errors import HostError
from appliance.tables import frames
from appliance.tables.formats import (
    FORMATS,
    HEAD_BYTES,
    MEDIA_TYPES,
    Format,
    format_of,
    require_format,
)
from appliance.tables.reader import MEMORY_BYTES, SILENCE_S, Input, ReadAt, Table, started

__all__ = [
    "FORMATS",
    "HEAD_BYTES",
    "MEDIA_TYPES",
    "Format",
    "Input",
    "ReadAt",
    "Table",
    "converted",
    "format_of",
    "opened",
    "require_format",
    "written",
]
_encode = msgspec.json.Encoder().encode


@contextlib.asynccontextmanager
async def opened(
    read_at: ReadAt,
    *,
    size_bytes: int,
    format: Format,  # noqa: A002 - the word callers use
    types: Mapping[str, str] | None = None,
    memory_bytes: int = MEMORY_BYTES,
    silence_s: float = SILENCE_S,
) -> AsyncIterator[Table]:
    """A table, open for reading; its process ends with the block.

    Args:
        read_at: gives bytes at an offset, exactly as many as asked for except at the end.
        size_bytes: how many there are.
        format: see ``format_of``.
        types: types of columns by name, instead of the derived ones.
        memory_bytes: how much the process may take.
        silence_s: after how long without progress it is given up.

    Raises:
        InputInvalid: it is no table of this format, or has no column that ``types`` names.
        HostError: the process could not do its work.
    """
    source = Input(read_at=read_at, size_bytes=size_bytes, format=format, types=types or {})
    async with started((source,), "read", format, memory_bytes, silence_s) as (child, head):
        yield Table(child, head, silence_s)


async def converted(
    sources: Sequence[Input],
    *,
    into: Format,
    memory_bytes: int = MEMORY_BYTES,
    silence_s: float = SILENCE_S,
) -> AsyncGenerator[bytes]:
    """One table in another format, or several side by side, as the bytes of a file.

    Row N of the result is row N of each source; columns keep the types they have, which Parquet
    says and the other formats spell. A source that ends before the longest is null from there on.

    Args:
        sources: the tables; which of their columns, under which names.
        into: the format to write.
        memory_bytes: how much the process may take.
        silence_s: after how long without progress it is given up.

    Raises:
        InputInvalid: one of them cannot be read, or two columns have the same name.
        HostError: the process could not do its work.
    """
    async with started(sources, "write", into, memory_bytes, silence_s) as (child, _head):
        while True:
            kind, data = await child.take(silence_s)
            if kind == frames.END:
                return
            if kind != frames.OUT:
                raise HostError("The process that writes tables did not keep to what was agreed.")
            yield data


async def written(
    batches: AsyncIterator[Iterable[Mapping[str, Any]]],
    *,
    columns: Mapping[str, str],
    into: Format,
    memory_bytes: int = MEMORY_BYTES,
    silence_s: float = SILENCE_S,
) -> AsyncGenerator[bytes]:
    """Rows as the bytes of a file.

    Args:
        batches: the rows, some at a time, as values that JSON has; NaN becomes null.
        columns: name and type of each (``BIGINT``, ``DOUBLE``, ``VARCHAR``, ``BOOLEAN``, ``JSON``,
            ``DATE``, ``TIMESTAMP``, ``DECIMAL(12,3)``, ...); other names in rows are left out.
        into: the format to write.
        memory_bytes: how much the process may take.
        silence_s: after how long without progress it is given up.

    Raises:
        InputInvalid: a value does not fit the type of its column.
        HostError: the process could not do its work.
    """
    left = bytearray()
    is_over = False

    async def read_at(_offset: int, size: int) -> bytes:
        nonlocal is_over
        while not left and not is_over:
            batch = await anext(batches, None)
            if batch is None:
                is_over = True
                break
            for row in batch:
                left.extend(_encode(row))
                left.extend(b"\n")
        piece = bytes(left[:size])
        del left[:size]
        return piece

    source = Input(read_at=read_at, size_bytes=-1, format="ndjson", types=columns)
    async with contextlib.aclosing(
        converted((source,), into=into, memory_bytes=memory_bytes, silence_s=silence_s)
    ) as pieces:
        async for piece in pieces:
            yield piece
