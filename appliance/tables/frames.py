"""What a reading process and its parent say to each other: frames over two pipes.

Owns: the kinds of frames and the shape of an order.
Never: knows tables.
Read next: ``child`` (one end), ``reader`` (the other).

A frame is a kind (1 byte), a length (4 bytes, big endian) and that many bytes. The child asks for
bytes of a source (``READ``) and gets them (``DATA``); it says what it has (``HEAD``), gives rows
when asked for them (``START``, ``NEXT``; ``ROWS``, ``END``) or bytes of a file it writes (``OUT``,
``END``), and may end with ``PROBLEM`` at any time.
"""

from __future__ import annotations

import struct
from typing import Literal

import msgspec

from appliance.tables.formats import Format

HEADER = struct.Struct(">cI")
FRAME_BYTES_MAX = 256 * 1024 * 1024

# to the child
ORDER, DATA, START, NEXT = b"O", b"D", b"S", b"N"
# from the child
READ, HEAD, ROWS, OUT, END, PROBLEM = b"R", b"H", b"B", b"W", b"E", b"X"


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A table to read.

    Attributes:
        format: how it is encoded.
        size_bytes: its size; -1 for NDJSON whose end is not known, which is read once and in order.
        types: types of columns by name, instead of those that are derived.
        columns: of these, the ones wanted, in this order; empty for all.
        renamed: other names for wanted columns, in the same order; empty for their own.
    """

    format: Format
    size_bytes: int
    types: dict[str, str] = msgspec.field(default_factory=dict)
    columns: tuple[str, ...] = ()
    renamed: tuple[str, ...] = ()


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What the child is to do: give rows of its one source, or write its sources side by side."""

    verb: Literal["read", "write"]
    sources: tuple[Source, ...]
    memory_bytes: int
    into: Format = "parquet"


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """From which row on, and which columns; none for all."""

    row: int
    columns: tuple[str, ...] = ()


class Next(msgspec.Struct, frozen=True, kw_only=True):
    """How much the next batch may be."""

    rows_max: int
    bytes_max: int


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """Names and types of the columns, and the number of rows where the format knows it.

    ``is_named`` says that the names are the table's own, and not the columns' numbers.
    """

    columns: tuple[tuple[str, str], ...]
    rows: int | None = None
    is_named: bool = True


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Why it cannot be read; ``place`` is ``line:N`` or ``item:N``, with a column, or ``row:N``."""

    detail: str
    hint: str = ""
    place: str = ""
