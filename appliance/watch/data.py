"""The data a baseline is made from: a table of a stranger, read by a process without keys.

Owns: taking the columns out of it, at most so many records, evenly spread.
Never: parses Parquet, CSV or NDJSON here (``tables`` does).
Read next: ``appliance.tables``, ``appliance.drift.bodies`` (JSON that is no list of records).
"""

from __future__ import annotations

import asyncio
from typing import Any

from appliance import tables
from appliance.drift import bodies
from appliance.drift.bodies import Table
from appliance.drift.sketch import COLUMNS_MAX
from appliance.errors import InputInvalid

_BATCH_ROWS = 2000
_BATCH_BYTES = 4 * 1024 * 1024


async def table_of(media_type: str, body: bytes) -> Table:
    """The columns of a Parquet, CSV, NDJSON or JSON table.

    Raises:
        InputInvalid: it is none; the line and column are named where they are known.
    """
    head = body[:64]
    kind = tables.format_of(media_type=media_type, head=head)
    if kind == "json" and not head.lstrip().startswith(b"["):
        return await _from_object(body)

    async def read_at(offset: int, size: int) -> bytes:
        return body[offset : offset + size]

    async with tables.opened(read_at, size_bytes=len(body), format=kind) as table:
        names = [name for name, _type in table.columns]
        if not 0 < len(names) <= COLUMNS_MAX:
            raise InputInvalid(
                f"The data has {len(names)} columns; a baseline has 1 to {COLUMNS_MAX}."
            )
        spread = _Spread(bodies.DATA_ROWS_MAX)
        async for batch in table.batches(rows_max=_BATCH_ROWS, bytes_max=_BATCH_BYTES):
            spread.add([tuple(row.values()) for row in batch])
    rows = spread.rows
    if not rows:
        raise InputInvalid("The data has no records.")
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    return Table(columns=columns, rows=len(rows), skipped=spread.seen - len(rows))


async def _from_object(body: bytes) -> Table:
    try:
        return await asyncio.to_thread(bodies.data_of, body)
    except ValueError as error:
        text = str(error)
        raise InputInvalid(f"{text[:1].upper()}{text[1:]}.") from None


class _Spread:
    """Every row until there are too many, then every second of all, and so on."""

    def __init__(self, most: int) -> None:
        self.rows: list[tuple[Any, ...]] = []
        self.seen = 0
        self._most = most
        self._step = 1

    def add(self, rows: list[tuple[Any, ...]]) -> None:
        first = -self.seen % self._step
        self.rows += rows[first :: self._step]
        self.seen += len(rows)
        while len(self.rows) > self._most:
            self.rows = self.rows[::2]
            self._step *= 2
