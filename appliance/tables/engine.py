"""DuckDB as the reader and writer of tables, fed through pipes.

Owns: the SQL for each format, the types a column gets, and what DuckDB's errors mean.
Never: runs in the appliance's own process, opens a file, or takes SQL from anybody.
Read next: ``child`` (who runs it).

The database is in memory and empty; it can reach only what ``Fetch`` gives it, one thread at a
time, so rows keep their order.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import duckdb
from fsspec import AbstractFileSystem

from appliance.errors import InputInvalid
from appliance.tables.frames import Order, Source
from appliance.tables.headers import csv_header, require_distinct
from appliance.tables.refusals import refusal, refused_row
from appliance.tables.shapes import Shape, shape_of

_SCHEME = "tab"  # in errors it is replaced, see ``refusals``
_OUT = f"{_SCHEME}://out"
_COLUMNS_MAX = 10_000
_FETCH_ROWS = 256
_GROUP_ROWS = 65_536
_JSON_BYTES_MAX = 16 * 1024 * 1024
_CSV_BYTES_MAX = 4 * 1024 * 1024
_KEPT_BYTES_MAX = 64 * 1024 * 1024  # its first look is at 32 MiB (DuckDB 2.0.0)
_ENDLESS_BYTES = 1 << 50
_INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT")
_PLAIN = {*_INTEGERS, *(f"U{name}" for name in _INTEGERS), "BOOLEAN", "FLOAT", "DOUBLE", "VARCHAR"}
_LISTED = ("BIGINT", "DOUBLE", "BOOLEAN", "VARCHAR")
_GIVEN = re.compile(
    r"BOOLEAN|U?(TINYINT|SMALLINT|INTEGER|BIGINT|HUGEINT)|FLOAT|DOUBLE|VARCHAR|JSON|DATE|TIME|UUID"
    r"|TIMESTAMP(_S|_MS|_NS)?( WITH TIME ZONE)?|DECIMAL\([1-9][0-9]?, ?[0-9]{1,2}\)"
)
_NUMBERED = re.compile(r"_[0-9]+$")

Fetch = Callable[[int, int, int], bytes]  # source, offset (-1: go on), size -> bytes
Emit = Callable[[bytes], None]
Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A source as a relation: ``sql`` after FROM, its columns, and its rows where known."""

    format: str
    sql: str
    columns: tuple[tuple[str, str], ...]
    rows: int | None
    has_row_numbers: bool = False
    is_named: bool = True


class _Reading:
    """A source, or a part of it from ``start`` on, as the file object that DuckDB reads."""

    def __init__(self, fetch: Fetch, index: int, start: int, size_bytes: int) -> None:
        self._fetch = fetch
        self._index = index
        self._start = start
        self._size = size_bytes
        self._at = 0

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._at)
        wanted = left if size < 0 else min(size, left)
        data = self._fetch(self._index, self._start + self._at, wanted)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        """Nothing is held."""


class _Flowing:
    """A source that comes once, as a file object.

    DuckDB looks at the beginning of a file and then goes back to its start, so the beginning is
    kept; going back when it no longer is would lose rows, and is an error.
    """

    def __init__(self, fetch: Fetch, index: int) -> None:
        self._fetch = fetch
        self._index = index
        self._at = 0
        self._kept: bytearray | None = bytearray()

    def read(self, size: int) -> bytes:
        kept = self._kept
        if kept is not None and self._at < len(kept):
            data = bytes(kept[self._at : self._at + size])
        else:
            data = self._fetch(self._index, -1, size)
            if kept is not None:
                kept += data
                if len(kept) > _KEPT_BYTES_MAX:
                    self._kept = None
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence or self._kept is None or not 0 <= offset <= len(self._kept):
            raise OSError("a source that comes once cannot be read again")
        self._at = offset
        return offset

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        """Nothing is held."""


class _Writing:
    """The file object that DuckDB writes its output to."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._at = 0

    def write(self, data: bytes) -> int:
        self._emit(data)
        self._at += len(data)
        return len(data)

    def tell(self) -> int:
        return self._at

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """The end is told by a frame."""


class _Files(AbstractFileSystem):  # type: ignore[misc]
    """What DuckDB sees as its file system: the numbered sources and one output."""

    protocol = _SCHEME
    cachable = False

    def __init__(self, sources: Sequence[Source], fetch: Fetch, emit: Emit) -> None:
        super().__init__()
        self._sources = sources
        self._fetch = fetch
        self._emit = emit
        self._flowing: dict[int, _Flowing] = {}
        self.parts: dict[int, tuple[int, int]] = {}  # where only a part of a source is the table

    def open(self, path: str, mode: str = "rb", **_more: Any) -> Any:
        if "w" in mode:
            return _Writing(self._emit)
        index = int(path.rpartition("/")[2])
        if self._sources[index].size_bytes < 0:
            return self._flowing.setdefault(index, _Flowing(self._fetch, index))
        start, size = self.parts.get(index, (0, self._sources[index].size_bytes))
        return _Reading(self._fetch, index, start, size)

    def info(self, path: str, **_more: Any) -> dict[str, Any]:
        name = path.rpartition("/")[2]
        if not name.isdigit():
            raise FileNotFoundError(path)
        _, size = self.parts.get(int(name), (0, self._sources[int(name)].size_bytes))
        return {"name": path, "size": _ENDLESS_BYTES if size < 0 else size, "type": "file"}

    def exists(self, path: str, **_more: Any) -> bool:
        return path.rpartition("/")[2].isdigit()

    def modified(self, path: str) -> datetime.datetime:
        return datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)

    def glob(self, path: str, **_more: Any) -> list[str]:
        return [path]


class Engine:
    """An empty database that knows the sources of one order."""

    def __init__(self, order: Order, fetch: Fetch, emit: Emit) -> None:
        """Set it up; after this it opens nothing and loads no more code."""
        self._order = order
        self._fetch = fetch
        self._db = duckdb.connect(
            ":memory:",
            config={
                "threads": 1,
                "async_threads": 0,  # one thread alone talks to the pipes
                "memory_limit": f"{order.memory_bytes * 3 // 4 // 1_000_000}MB",
                "temp_directory": "",
                "preserve_insertion_order": True,
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
                "python_enable_replacements": False,
            },
        )
        self._files = _Files(order.sources, fetch, emit)
        self._db.register_filesystem(self._files)
        self._db.execute("SET disabled_filesystems = 'LocalFileSystem'")
        self._db.execute("SET enable_progress_bar = false")
        self._db.execute("SET lock_configuration = true")
        self._db.execute("SELECT 1, 'a', 1.5::DOUBLE, true, to_json([NULL])::VARCHAR").fetchmany(1)

    def table(self, index: int) -> Table:
        """One of the sources, looked at as far as its format needs.

        Raises:
            InputInvalid: it is no table of its format.
        """
        source = self._order.sources[index]
        for name, kind in source.types.items():
            if not _GIVEN.fullmatch(kind):
                raise InputInvalid(f"'{kind[:40]}' is no type for the column '{name[:80]}'.")
        make = {
            "parquet": self._parquet,
            "csv": self._csv,
            "ndjson": self._json,
            "json": self._json,
        }[source.format]
        try:
            table = make(index, source)
        except duckdb.Error as error:
            raise refusal(error, source.format) from error
        if len(table.columns) > _COLUMNS_MAX:
            raise InputInvalid(f"The table has more than {_COLUMNS_MAX} columns.")
        unknown = [name for name in source.types if name not in dict(table.columns)]
        if unknown:
            raise InputInvalid(f"There is no column '{unknown[0][:80]}' to give a type.")
        return table

    def _parquet(self, index: int, source: Source) -> Table:
        place = f"'{_SCHEME}://{index}'"
        found = self._db.execute(f"DESCRIBE FROM read_parquet({place})").fetchall()
        columns = tuple((str(row[0]), source.types.get(row[0], str(row[1]))) for row in found)
        counted = self._one(f"SELECT num_rows FROM parquet_file_metadata({place})")  # noqa: S608
        has_numbers = "file_row_number" not in {name.lower() for name, _ in columns}
        more = ", file_row_number = true" if has_numbers else ""
        return Table(
            format="parquet",
            sql=f"read_parquet({place}{more})",
            columns=columns,
            rows=int(counted[0]),
            has_row_numbers=has_numbers,
        )

    def _csv(self, index: int, source: Source) -> Table:
        head = self._fetch(index, 0, min(source.size_bytes, _CSV_BYTES_MAX))
        names, delimiter = csv_header(head)
        shape = (
            f"auto_detect = false, header = true, strict_mode = true, nullstr = '', quote = '\"', "
            f"escape = '\"', delim = {_text(delimiter)}, max_line_size = {_CSV_BYTES_MAX}"
        )
        place = f"'{_SCHEME}://{index}'"
        as_text = (
            f"read_csv({place}, {shape}, columns = {_struct(dict.fromkeys(names, 'VARCHAR'))})"
        )
        kinds, rows = self._csv_types(as_text, names)
        types = {
            name: source.types.get(name, kind) for name, kind in zip(names, kinds, strict=True)
        }
        return Table(
            format="csv",
            sql=f"read_csv({place}, {shape}, columns = {_struct(types)})",
            columns=tuple(types.items()),
            rows=rows,
        )

    def _csv_types(self, relation: str, names: list[str]) -> tuple[list[str], int]:
        """The narrowest type that every value of a column has; reads all of it once."""
        asked = []
        for name in names:
            column = _name(name)
            asked += [
                f"bool_and(coalesce({test}, false)) FILTER ({column} IS NOT NULL)"
                for test in (
                    f"TRY_CAST({column} AS BIGINT)::VARCHAR = {column}",
                    f"TRY_CAST({column} AS DOUBLE) IS NOT NULL "
                    f"AND NOT regexp_matches({column}, '^[+-]?0[0-9]')",
                    f"lower({column}) IN ('true', 'false')",
                )
            ]
        told = self._one(f"SELECT {', '.join(asked)}, count(*) FROM {relation}")  # noqa: S608
        kinds = []
        for at in range(len(names)):
            fits = zip(told[at * 3 : at * 3 + 3], ("BIGINT", "DOUBLE", "BOOLEAN"), strict=True)
            kinds.append(next((kind for is_all, kind in fits if is_all), "VARCHAR"))
        return kinds, int(told[-1])

    def _json(self, index: int, source: Source) -> Table:
        place = f"'{_SCHEME}://{index}'"
        shape = "newline_delimited" if source.format == "ndjson" else "array"
        common = f"format = '{shape}', maximum_object_size = {_JSON_BYTES_MAX}"
        rows: int | None = None
        types = dict(source.types)
        if source.size_bytes >= 0:
            layout = shape_of(
                partial(self._fetch, index), source.size_bytes, is_lines=source.format == "ndjson"
            )
            self._files.parts[index] = (layout.start, layout.size)
            if layout.is_lists:
                return self._lists(source, f"read_json_objects({place}, {common})", layout)
            derived = "records = true, sample_size = -1, maximum_depth = 2"
            found = self._db.execute(
                f"DESCRIBE FROM read_json({place}, {common}, {derived}, "
                "map_inference_threshold = -1)"
            ).fetchall()
            types = {str(row[0]): _json_type(str(row[1])) for row in found} | types
            texts = f"read_json_objects({place}, {common})"
            rows = int(self._one(f"SELECT count(*) FROM {texts}")[0])  # noqa: S608
            self._require_own_names(tuple(types), texts)
        return Table(
            format=source.format,
            sql=f"read_json({place}, {common}, auto_detect = false, columns = {_struct(types)})",
            columns=tuple(types.items()),
            rows=rows,
        )

    def _lists(self, source: Source, texts: str, layout: Shape) -> Table:
        """A table whose rows are lists; columns without names have their numbers for names."""
        items = (
            "SELECT from_json(json, '[\"JSON\"]') AS items, row_number() OVER () AS number "  # noqa: S608
            f"FROM {texts}"
        )
        first = self._db.execute(f"SELECT len(items) FROM ({items}) LIMIT 1").fetchone()  # noqa: S608
        width = len(layout.names) or int((first or (0,))[0] or 0)
        if not 0 < width <= _COLUMNS_MAX:
            raise InputInvalid(f"The table has {width} columns; it may have 1 to {_COLUMNS_MAX}.")
        names = layout.names or tuple(str(number) for number in range(1, width + 1))
        kinds, rows = self._list_types(source.format, items, width)
        types = {
            name: source.types.get(name, kind) for name, kind in zip(names, kinds, strict=True)
        }
        chosen = ", ".join(
            f"{_item(at, kind)} AS {_name(name)}"
            for at, (name, kind) in enumerate(types.items(), start=1)
        )
        return Table(
            format=source.format,
            sql=f"(SELECT {chosen} FROM ({items}))",  # noqa: S608
            columns=tuple(types.items()),
            rows=rows,
            is_named=bool(layout.names),
        )

    def _list_types(self, kind: str, items: str, width: int) -> tuple[list[str], int]:
        """What every value of a place in the lists is; reads all of them once.

        Raises:
            InputInvalid: a row is no list, or not as long as the others.
        """
        asked = []
        for at in range(1, width + 1):
            told = f"json_type(items[{at}])"
            asked += [
                f"bool_and({test}) FILTER (items[{at}] IS NOT NULL)"
                for test in (
                    f"{told} IN ('BIGINT', 'UBIGINT') AND TRY_CAST(items[{at}] AS BIGINT) NOTNULL",
                    f"{told} IN ('BIGINT', 'UBIGINT', 'HUGEINT', 'DOUBLE')",
                    f"{told} = 'BOOLEAN'",
                    f"{told} = 'VARCHAR'",
                )
            ]
        uneven = f"min(number) FILTER (len(items) IS DISTINCT FROM {width})"
        *told_of, number, rows = self._one(
            f"SELECT {', '.join(asked)}, {uneven}, count(*) FROM ({items})"  # noqa: S608
        )
        if number is not None:
            query = f"SELECT len(items) FROM ({items}) WHERE number = {number}"  # noqa: S608
            (count,) = self._one(query)
            said = "it is no list" if count is None else f"it has {count} values"
            raise refused_row(kind, number, f"{said} where the first has {width}")
        kinds = []
        for at in range(0, width * 4, 4):
            fits = zip(told_of[at : at + 4], _LISTED, strict=True)
            kinds.append(next((name for is_all, name in fits if is_all), "JSON"))
        return kinds, int(rows)

    def _require_own_names(self, names: tuple[str, ...], texts: str) -> None:
        """Refuse names that differ in case only: DuckDB calls the second one ``name_1``."""
        lower = {name.lower() for name in names}
        if not any(_NUMBERED.sub("", name) in lower for name in lower if _NUMBERED.search(name)):
            return
        keys = f"SELECT unnest(json_keys(json)) AS key FROM {texts}"  # noqa: S608
        found = self._db.execute(f"SELECT DISTINCT key FROM ({keys})").fetchall()  # noqa: S608
        require_distinct(sorted(str(row[0]) for row in found))

    def rows(self, table: Table, start: int, wanted: tuple[str, ...]) -> Iterator[list[Row]]:
        """Rows in their order as values that JSON has, some at a time.

        Raises:
            InputInvalid: a row cannot be read, or there is no such column.
        """
        types = dict(table.columns)
        names = wanted or tuple(types)
        for name in names:
            if name not in types:
                raise InputInvalid(f"The table has no column '{name[:80]}'.")
        is_json = [at for at, name in enumerate(names) if _is_nested(types[name])]
        chosen = ", ".join(_plain(name, types[name]) for name in names)
        if start and table.has_row_numbers:
            tail = f"WHERE file_row_number >= {start}"
        else:
            tail = f"OFFSET {start}"
        try:
            found = self._db.execute(f"SELECT {chosen} FROM {table.sql} {tail}")  # noqa: S608
            while some := found.fetchmany(_FETCH_ROWS):
                yield [_opened(row, is_json) for row in some] if is_json else some
        except duckdb.Error as error:
            raise refusal(error, table.format) from error

    def write(self, tables: Sequence[Table]) -> None:
        """Write the wanted columns of the tables side by side, as the order says.

        Raises:
            InputInvalid: one of them cannot be read, or has no such column.
        """
        parts, chosen = [], []
        for index, (table, source) in enumerate(zip(tables, self._order.sources, strict=True)):
            types = dict(table.columns)
            names = source.columns or tuple(types)
            for name, new in zip(names, source.renamed or names, strict=True):
                if name not in types:
                    raise InputInvalid(f"The table has no column '{name[:80]}'.")
                chosen.append(f"t{index}.{_name(name)} AS {_name(new)}")
            parts.append(f"{table.sql} AS t{index}")
        into = {
            "parquet": f"FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {_GROUP_ROWS}",
            "csv": "FORMAT csv, HEADER true",
            "ndjson": "FORMAT json",
            "json": "FORMAT json, ARRAY true",
        }[self._order.into]
        query = f"SELECT {', '.join(chosen)} FROM {' POSITIONAL JOIN '.join(parts)}"  # noqa: S608
        try:
            self._db.execute(f"COPY ({query}) TO '{_OUT}' ({into}, USE_TMP_FILE false)")
        except duckdb.Error as error:
            raise refusal(error, tables[0].format) from error

    def _one(self, query: str) -> Row:
        row: Row | None = self._db.execute(query).fetchone()
        if row is None:
            raise InputInvalid("The table is empty.")
        return row


def _json_type(derived: str) -> str:
    """What a column of JSON has: nothing that its text does not say itself."""
    if derived in ("BOOLEAN", "DOUBLE", "BIGINT", "HUGEINT", "VARCHAR"):
        return derived
    if derived == "UBIGINT":
        return "HUGEINT"
    if derived in ("DATE", "TIME", "UUID", '"NULL"') or derived.startswith("TIMESTAMP"):
        return "VARCHAR"
    return "JSON"


def _item(number: int, kind: str) -> str:
    """A value of a list, counted from 1, as one of a type."""
    if kind == "JSON":
        return f"items[{number}]"
    text = f"items[{number}] ->> '$'"
    return text if kind == "VARCHAR" else f"CAST({text} AS {kind})"


def _is_nested(kind: str) -> bool:
    if kind == "JSON":
        return True
    return kind.endswith(("]", ")")) and not kind.startswith(("DECIMAL", "ENUM"))


def _plain(name: str, kind: str) -> str:
    """A column as an expression whose values JSON has."""
    column = _name(name)
    if kind in _PLAIN:
        return column
    if kind.startswith("DECIMAL"):
        return f"CAST({column} AS DOUBLE)"
    if kind.startswith("TIMESTAMP"):
        return f"replace(CAST({column} AS VARCHAR), ' ', 'T')"
    if kind == "BLOB":
        return f"base64({column})"
    if _is_nested(kind):
        return f"CAST(to_json({column}) AS VARCHAR)"
    return f"CAST({column} AS VARCHAR)"


def _opened(row: Row, nested: list[int]) -> Row:
    values = list(row)
    for at in nested:
        if values[at] is not None:
            try:
                values[at] = json.loads(values[at])
            except ValueError as error:
                raise InputInvalid(f"A value that is called JSON is none: {error}.") from error
    return tuple(values)


def _name(text: str) -> str:
    if "\0" in text:
        raise InputInvalid("A column's name has a NUL character.")
    return '"' + text.replace('"', '""') + '"'


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _struct(columns: dict[str, str]) -> str:
    if not columns:
        raise InputInvalid("The table has no columns.")
    return "{" + ", ".join(f"{_text(k)}: {_text(v)}" for k, v in columns.items()) + "}"
