"""A data set as rows: CSV with a line of names, JSON, NDJSON or Parquet, within bounds.

Owns: reading it, and telling the label and group of each row from what models are shown.
Never: keeps parsed rows: each stays encoded until its turn; reads a file; parses Parquet in this
process (``tables`` does, in one without keys).
Read next: ``answers`` (how rows reach a model), ``tables``.

    a,b,y                 [{"a": 1, "b": 2, "y": 0}]           {"records": [{...}]}
    1,2,0                 [[1, 2, 0]]                          {"rows": [[1, 2, 0]]}
                          {"columns": ["a", "b", "y"], "data": [[1, 2, 0]]}
"""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from appliance import tables
from appliance.errors import FieldError, InputInvalid, Malformed, TooLarge, UnsupportedMedia

CSV, JSON, NDJSON = "text/csv", "application/json", "application/x-ndjson"
PARQUET = tables.MEDIA_TYPES["parquet"]
MEDIA = (JSON, CSV, NDJSON, PARQUET)
_BATCH_ROWS, _BATCH_BYTES = 2000, 4 * 1024 * 1024
COLUMNS_MAX = 10_000
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.decode


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Rows for models, and what is true of each where the data says so.

    ``rows`` are JSON lists, encoded, of the values models are shown; ``columns`` their names, none
    where the data has none. ``labels`` and ``groups`` have one value a row, or are empty.
    """

    columns: tuple[str, ...]
    rows: list[bytes]
    labels: list[Any] = field(default_factory=list)
    groups: list[Any] = field(default_factory=list)

    def slice(self, start: int, end: int) -> list[list[Any]]:
        """Rows as lists of values."""
        return [_decode(row) for row in self.rows[start:end]]


async def dataset_from_body(
    data: bytes, media_type: str, *, label: str = "", group: str = "", rows_max: int
) -> Dataset:
    """The data set of a body, Parquet included; the rest is as for ``dataset_from_bytes``."""
    if media_type != PARQUET:
        return await asyncio.to_thread(
            dataset_from_bytes, data, media_type, label=label, group=group, rows_max=rows_max
        )

    async def read_at(offset: int, size: int) -> bytes:
        return data[offset : offset + size]

    rows: list[Sequence[Any]] = []
    async with tables.opened(read_at, size_bytes=len(data), format="parquet") as table:
        names = [name for name, _type in table.columns]
        async for batch in table.batches(rows_max=_BATCH_ROWS, bytes_max=_BATCH_BYTES):
            rows += (tuple(row.values()) for row in batch)
            if len(rows) > rows_max:
                break  # which is refused below
    return await asyncio.to_thread(
        dataset_from_rows, names, rows, label=label, group=group, rows_max=rows_max
    )


def dataset_from_bytes(
    data: bytes, media_type: str, *, label: str = "", group: str = "", rows_max: int
) -> Dataset:
    """The data set of a body. Blocking.

    Args:
        data: the body.
        media_type: one of ``MEDIA`` but Parquet.
        label: the column that says what is true; models are not shown it. Of rows without names
            the number of the column, from 1.
        group: the column whose equal values are ranked together; models are not shown it.
        rows_max: most rows.

    Raises:
        Malformed, InputInvalid: it is not what it says, or a row is unlike the first; the row is
            named.
        TooLarge: it has more rows or columns than it may have.
    """
    if media_type == CSV:
        columns, rows = _from_csv(data)
    elif media_type == NDJSON:
        columns, rows = _from_items(_lines(data))
    elif media_type == JSON:
        columns, rows = _from_json(data)
    else:
        raise UnsupportedMedia(f"A data set is {', '.join(MEDIA)}.", hint=f"Content-Type: {CSV}")
    return dataset_from_rows(columns, rows, label=label, group=group, rows_max=rows_max)


def dataset_from_rows(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    label: str = "",
    group: str = "",
    rows_max: int,
) -> Dataset:
    """A data set from rows of plain values, all as long as ``columns`` where those have names."""
    if len(columns) > COLUMNS_MAX or len(set(columns)) != len(columns):
        raise InputInvalid(f"Columns have different names, and there are at most {COLUMNS_MAX}.")
    kept, labels, groups = [], [], []
    drops: list[int] | None = None
    width = len(columns)
    for number, row in enumerate(rows, start=1):
        if number > rows_max:
            raise TooLarge(f"The data set has more than {rows_max} rows.", rows_max=rows_max)
        if drops is None:
            width = width or len(row)
            places = [_place(name, columns, width) if name else -1 for name in (label, group)]
            drops = sorted({at for at in places if at >= 0}, reverse=True)
        if len(row) != width:
            raise InputInvalid(f"Row {number} has {len(row)} values, the first has {width}.")
        if label:
            labels.append(_scalar(row[places[0]], number, label))
        if group:
            groups.append(_scalar(row[places[1]], number, group))
        shown = list(row)
        for at in drops:
            del shown[at]
        kept.append(_encode(shown))
    if not kept:
        raise InputInvalid("The data set has no rows.")
    left = [name for name in columns if name not in (label, group)]
    return Dataset(columns=tuple(left), rows=kept, labels=labels, groups=groups)


def _place(name: str, columns: Sequence[str], width: int) -> int:
    if name in columns:
        return list(columns).index(name)
    if not columns and name.isascii() and name.isdigit() and 1 <= int(name) <= width:
        return int(name) - 1
    known = ", ".join(columns[:20]) if columns else f"1 to {width}"
    raise InputInvalid(
        f"The data set has no column '{name[:80]}'; there are {known[:400]}.",
        fields=(FieldError(pointer="?label", detail="no such column"),),
    )


def _scalar(value: Any, number: int, name: str) -> Any:
    if value is None or isinstance(value, (str, int, float)):
        if value in (None, ""):
            raise InputInvalid(f"Row {number} has no '{name[:80]}'.")
        return value
    raise InputInvalid(f"'{name[:80]}' of row {number} is no text, number or truth value.")


def _from_json(data: bytes) -> tuple[Sequence[str], Iterable[Sequence[Any]]]:
    try:
        found = _decode(data, type=list[msgspec.Raw] | dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Malformed("The data set is no JSON list or object.") from None
    if isinstance(found, list):
        return _from_items(bytes(one) for one in found)
    if "data" in found:
        names = _typed(found.get("columns", msgspec.Raw(b"[]")), list[str], "columns")
        rows = _typed(found["data"], list[msgspec.Raw], "data")
        return names, (_row(bytes(row), at) for at, row in enumerate(rows, start=1))
    for key in ("records", "rows", "instances", "dataframe_records"):
        if key in found:
            items = _typed(found[key], list[msgspec.Raw], key)
            return _from_items(bytes(one) for one in items)
    raise InputInvalid(
        "A JSON data set is a list of objects or of lists, or has one of these as 'records', "
        "'rows' or 'data' with 'columns'."
    )


def _typed(raw: msgspec.Raw, kind: Any, name: str) -> Any:
    try:
        return _decode(raw, type=kind)
    except msgspec.DecodeError:
        raise InputInvalid(f"'{name}' is not the list it must be.") from None


def _lines(data: bytes) -> Iterator[bytes]:
    for line in io.BytesIO(data):
        if line.strip():
            yield line


def _from_items(items: Iterable[bytes]) -> tuple[Sequence[str], Iterable[Sequence[Any]]]:
    """Names and rows of encoded items: all objects of the same members, or all lists."""
    rest = iter(items)
    first = next(rest, None)
    if first is None:
        return (), ()
    head = _item(first, 1)
    if isinstance(head, dict):
        return tuple(head), _objects(head, rest)
    return (), _lists(head, rest)


def _objects(head: dict[str, Any], rest: Iterator[bytes]) -> Iterator[Sequence[Any]]:
    yield list(head.values())
    for number, one in enumerate(rest, start=2):
        row = _item(one, number)
        if not isinstance(row, dict):
            raise InputInvalid(f"Row {number} is no object, the first is.")
        strange = row.keys() - head.keys()
        if strange:
            raise InputInvalid(f"Row {number} has a member the first has not: {min(strange)[:80]}.")
        yield [row.get(name) for name in head]


def _lists(head: Any, rest: Iterator[bytes]) -> Iterator[Sequence[Any]]:
    yield head if isinstance(head, list) else [head]
    for number, one in enumerate(rest, start=2):
        yield _row(one, number)


def _row(raw: bytes, number: int) -> list[Any]:
    row = _item(raw, number)
    if isinstance(row, dict):
        raise InputInvalid(f"Row {number} is an object, the first is none.")
    return row if isinstance(row, list) else [row]


def _item(raw: bytes, number: int) -> Any:
    try:
        return _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Malformed(f"Row {number} is not valid JSON.") from None


def _from_csv(data: bytes) -> tuple[Sequence[str], Iterable[Sequence[Any]]]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Malformed(f"The CSV is no UTF-8 at byte {error.start}.") from None
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        names = next(lines, [])
    except csv.Error as error:
        raise Malformed(f"The CSV's first line: {error}.") from None
    return tuple(names), _csv_rows(lines)


def _csv_rows(lines: Any) -> Iterator[Sequence[Any]]:
    while True:
        try:
            line = next(lines, None)
        except csv.Error as error:
            raise Malformed(f"Line {lines.line_num} of the CSV: {error}.") from None
        if line is None:
            return
        if line:
            yield [_value(cell) for cell in line]


def _value(cell: str) -> Any:
    """A number where it is one, null where it is empty, else the text."""
    if not cell:
        return None
    try:
        number = float(cell)
    except ValueError:
        return cell
    if number in (float("inf"), float("-inf")) or number != number or "_" in cell:
        return cell
    bare = cell.lstrip("+-")
    is_whole = bare.isascii() and bare.isdigit()
    if is_whole and len(bare) > 1 and bare[0] == "0":
        return cell  # 007 is a name
    return int(cell) if is_whole and len(bare) <= 18 else number
