"""A data set: the rows models are shown, and what is true of each where the data says so.

Owns: telling the label and group of each row from what models are shown, and what both must be.
Never: parses a table (``tables`` does, in a process without keys), or holds its rows: they pass by.
Read next: ``answers`` (how rows reach a model), ``tables``.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from appliance import tables
from appliance.errors import FieldError, InputInvalid, TooLarge

JSON = tables.MEDIA_TYPES["json"]
MEDIA = (JSON, *(media for name, media in tables.MEDIA_TYPES.items() if name != "json"))
_BATCH_ROWS, _BATCH_BYTES = 1000, 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """What is known of a data set besides its rows.

    ``columns`` are the names of the values models are shown, none where the data has none.
    ``labels`` and ``groups`` have one value a row, or are empty.
    """

    columns: tuple[str, ...]
    count: int
    labels: list[Any] = field(default_factory=list)
    groups: list[Any] = field(default_factory=list)


class Rows:
    """The rows of a data set, read anew each time; by one task at a time."""

    def __init__(self, table: tables.Table, shown: Sequence[str], facts: Dataset) -> None:
        """Show these columns of a table."""
        self._table = table
        self._shown = tuple(shown)
        self.facts = facts

    async def batches(self, size: int) -> AsyncGenerator[list[list[Any]]]:
        """All rows in order, as lists of the values models are shown, at most ``size`` at a time.

        Raises:
            InputInvalid: one cannot be read.
        """
        async with self._reading(0, size) as batches:
            async for batch in batches:
                yield [list(row.values()) for row in batch]

    async def first(self) -> list[Any]:
        """The first row."""
        async with self._reading(0, 1) as batches:
            async for batch in batches:
                return list(batch[0].values())
        raise _empty()

    async def some(self, numbers: Collection[int]) -> dict[int, list[Any]]:
        """The rows of these numbers, counted from 0."""
        found: dict[int, list[Any]] = {}
        at = min(numbers, default=0)
        async with self._reading(at, _BATCH_ROWS) as batches:
            async for batch in batches:
                for row in batch:
                    if at in numbers:
                        found[at] = list(row.values())
                    at += 1
                if len(found) == len(numbers):
                    break
        return found

    async def require_readable(self) -> None:
        """Return if every row can be read. Raises InputInvalid."""
        count = 0
        async with self._reading(0, _BATCH_ROWS) as batches:
            async for batch in batches:
                count += len(batch)
        if count != self.facts.count:
            raise InputInvalid(f"The table says it has {self.facts.count} rows, and has {count}.")

    def _reading(
        self, start: int, rows_max: int
    ) -> contextlib.AbstractAsyncContextManager[AsyncIterator[list[dict[str, Any]]]]:
        return contextlib.aclosing(
            self._table.batches(
                start_row=start, columns=self._shown, rows_max=rows_max, bytes_max=_BATCH_BYTES
            )
        )


@contextlib.asynccontextmanager
async def opened(
    read_at: tables.ReadAt,
    *,
    size_bytes: int,
    media_type: str,
    label: str = "",
    group: str = "",
    rows_max: int,
) -> AsyncIterator[Rows]:
    """A data set, open for reading.

    Args:
        read_at: gives its bytes.
        size_bytes: how many there are.
        media_type: one of ``MEDIA``.
        label: the column that says what is true; models are not shown it. Of rows without names
            the number of the column, from 1.
        group: the column whose equal values are ranked together; models are not shown it.
        rows_max: most rows.

    Raises:
        InputInvalid: it is not what it says, or has no such label or group in every row; the line
            and column are named where they are known.
        TooLarge: it has more rows than it may have.
    """
    head = await read_at(0, min(size_bytes, tables.HEAD_BYTES))
    kind = tables.format_of(media_type=media_type, head=head)
    async with tables.opened(read_at, size_bytes=size_bytes, format=kind) as table:
        count = table.rows or 0
        if count > rows_max:
            raise TooLarge(f"The data set has more than {rows_max} rows.", rows_max=rows_max)
        if not count:
            raise _empty()
        names = [name for name, _type in table.columns]
        for pointer, name in (("?label", label), ("?group", group)):
            _require_column(name, names, pointer, is_named=table.is_named)
        shown = [name for name in names if name not in (label, group)]
        if not shown:
            raise InputInvalid("Nothing is left to show to models but the label and the group.")
        labels, groups = await _asides(table, label, group)
        facts = Dataset(
            columns=tuple(shown) if table.is_named else (),
            count=count,
            labels=labels,
            groups=groups,
        )
        yield Rows(table, shown, facts)


async def _asides(table: tables.Table, label: str, group: str) -> tuple[list[Any], list[Any]]:
    """The labels and groups of all rows."""
    wanted = list(dict.fromkeys(name for name in (label, group) if name))
    labels: list[Any] = []
    groups: list[Any] = []
    if not wanted:
        return labels, groups
    number = 0
    async for batch in table.batches(columns=wanted, rows_max=_BATCH_ROWS, bytes_max=_BATCH_BYTES):
        for row in batch:
            number += 1
            if label:
                labels.append(_scalar(row[label], number, label))
            if group:
                groups.append(_scalar(row[group], number, group))
    return labels, groups


def _require_column(name: str, names: Sequence[str], pointer: str, *, is_named: bool) -> None:
    if not name or name in names:
        return
    known = ", ".join(names[:20]) if is_named else f"1 to {len(names)}"
    raise InputInvalid(
        f"The data set has no column '{name[:80]}'; there are {known[:400]}.",
        fields=(FieldError(pointer=pointer, detail="no such column"),),
    )


def _scalar(value: Any, number: int, name: str) -> Any:
    is_missing = value is None or value == "" or value != value
    if is_missing or not isinstance(value, (str, int, float)):
        said = "no" if is_missing else "no text, number or truth value as"
        detail = f"Row {number} has {said} '{name[:80]}'."
        raise InputInvalid(
            detail, fields=(FieldError(pointer=f"row:{number}:{name[:80]}", detail=detail),)
        )
    return value


def _empty() -> InputInvalid:
    return InputInvalid("The data set has no rows.")
