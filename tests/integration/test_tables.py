"""Tables of strangers: what is read, what is refused, and that a confined process does it."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from appliance import tables
from appliance.errors import HostError, InputInvalid, UnsupportedMedia

ROOT = Path(__file__).parents[2]


def source(data: bytes):
    async def read_at(offset: int, size: int) -> bytes:
        return data[offset : offset + size]

    return read_at


def parquet(folder: Path, query: str, more: str = "") -> bytes:
    path = folder / "t.parquet"
    duckdb.connect().execute(f"COPY ({query}) TO '{path}' (FORMAT parquet{more})")
    return path.read_bytes()


async def read(data: bytes, kind: tables.Format, *, types=None, **how):
    async with tables.opened(source(data), size_bytes=len(data), format=kind, types=types) as table:
        batches = [batch async for batch in table.batches(**how)]
    return table, [row for batch in batches for row in batch], batches


async def refused(data: bytes, kind: tables.Format, **how) -> InputInvalid:
    with pytest.raises(InputInvalid) as caught:
        await read(data, kind, **how)
    return caught.value


async def joined(pieces) -> bytes:
    return b"".join([piece async for piece in pieces])


async def test_parquet_gives_its_types_and_values_that_json_has(tmp_path):
    data = parquet(
        tmp_path,
        """SELECT true AS b, 9007199254740993 AS i, 'nan'::DOUBLE AS nan, 1.25::DECIMAL(10,2) AS d,
        12345678901234567890.25::DECIMAL(30,2) AS wide, DATE '2020-02-29' AS day,
        TIMESTAMP '2020-01-01 12:34:56.789' AS at, TIMESTAMPTZ '2020-01-01 12:00:00+02' AS zoned,
        '\\xAA\\x00'::BLOB AS raw, [1, NULL] AS l, {'a': [DATE '2020-01-01']} AS s, 'ü漢' AS t,
        NULL::INTEGER AS nothing""",
    )
    table, rows, _ = await read(data, "parquet")
    (row,) = rows
    assert math.isnan(row.pop("nan"))
    assert row == {
        "b": True,
        "i": 9007199254740993,
        "d": 1.25,
        "wide": 12345678901234567890.25,
        "day": "2020-02-29",
        "at": "2020-01-01T12:34:56.789",
        "zoned": "2020-01-01T10:00:00+00",
        "raw": "qgA=",
        "l": [1, None],
        "s": {"a": ["2020-01-01"]},
        "t": "ü漢",
        "nothing": None,
    }
    assert table.rows == 1
    assert dict(table.columns)["wide"] == "DECIMAL(30,2)"
    assert dict(table.columns)["day"] == "DATE"


async def test_rows_keep_their_order_and_can_be_read_from_any_of_them(tmp_path):
    data = parquet(tmp_path, "SELECT i, i * 2 AS j FROM range(50000) t(i)", ", ROW_GROUP_SIZE 4096")
    asked: list[int] = []

    async def read_at(offset: int, size: int) -> bytes:
        asked.append(size)
        return data[offset : offset + size]

    async with tables.opened(read_at, size_bytes=len(data), format="parquet") as table:
        assert table.rows == 50000
        everything = [row["i"] async for some in table.batches(rows_max=999) for row in some]
        assert everything == list(range(50000))
        asked.clear()
        tail = [row async for some in table.batches(start_row=49000, columns=["j"]) for row in some]
        assert tail == [{"j": i * 2} for i in range(49000, 50000)]
        assert sum(asked) < len(data) / 3  # the row groups before it were not read


@pytest.mark.parametrize("kind", ["csv", "ndjson", "json"])
async def test_text_formats_start_at_a_row_too_and_bound_their_batches(kind):
    async def all_rows():
        yield [{"i": i, "t": "x" * 100} for i in range(500)]

    data = await joined(
        tables.written(all_rows(), columns={"i": "BIGINT", "t": "VARCHAR"}, into=kind)
    )
    table, rows, batches = await read(data, kind, start_row=100, bytes_max=2000, rows_max=50)
    assert table.rows == 500
    assert [row["i"] for row in rows] == list(range(100, 500))
    assert max(len(batch) for batch in batches) < 25


async def test_a_csv_column_has_the_narrowest_type_that_all_of_its_rows_have():
    rows = [f"{i},{i}.5,0{i},true,{i}" for i in range(30000)]
    data = "\n".join(["a,b,zip,flag,late", *rows, "1,,01,false,N/A"]).encode()
    table, read_rows, _ = await read(data, "csv", rows_max=10000, bytes_max=1 << 24)
    assert dict(table.columns) == {
        "a": "BIGINT",
        "b": "DOUBLE",
        "zip": "VARCHAR",
        "flag": "BOOLEAN",
        "late": "VARCHAR",
    }
    assert len(read_rows) == table.rows == 30001
    assert read_rows[-1] == {"a": 1, "b": None, "zip": "01", "flag": False, "late": "N/A"}


async def test_a_csv_may_have_other_delimiters_quotes_and_names():
    data = '\ufeffname;"a;b"\n"x ""y""\nz";2\n'.encode()
    table, rows, _ = await read(data, "csv")
    assert rows == [{"name": 'x "y"\nz', "a;b": 2}]
    assert table.columns == (("name", "VARCHAR"), ("a;b", "BIGINT"))


async def test_json_rows_may_differ_and_nest_and_no_text_becomes_a_date():
    lines = [
        {"a": 1, "day": "2020-01-01", "deep": {"x": [1, {"y": None}]}},
        {"a": 2.5, "late": True, "day": "10:00"},
    ]
    data = "\n".join(json.dumps(line) for line in lines).encode()
    table, rows, _ = await read(data, "ndjson")
    assert table.columns == (
        ("a", "DOUBLE"),
        ("day", "VARCHAR"),
        ("deep", "JSON"),
        ("late", "BOOLEAN"),
    )
    assert rows[0] == {**lines[0], "late": None}
    assert rows[1] == {**lines[1], "deep": None}
    assert (await read(json.dumps(lines).encode(), "json"))[1] == rows
    wide = b"\n".join(b'{"k_%d": %d}' % (i, i) for i in range(100))
    table, rows, _ = await read(wide + b'\n{"k": 1}', "ndjson")
    assert len(table.columns) == 101
    assert rows[-1]["k"] == rows[1]["k_1"] == 1


LISTS = [[1, 2.5, "x", True, None, {"k": [1]}], [-2, 3, "007", False, None, 4]]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("json", json.dumps(LISTS)),
        ("json", " " + json.dumps({"note": 'a "{[" \\', "rows": LISTS, "more": {"rows": [1]}})),
        ("json", json.dumps({"instances": LISTS}, indent=2)),
        ("json", json.dumps({"data": LISTS, "columns": list("abcdef")})),
        ("ndjson", "\n".join(json.dumps(row) for row in LISTS)),
    ],
)
async def test_rows_may_be_lists_and_a_document_may_wrap_them(kind, text):
    table, rows, _ = await read(text.encode(), kind)
    is_named = '"columns"' in text
    assert table.is_named == is_named
    assert [name for name, _ in table.columns] == list("abcdef" if is_named else "123456")
    assert [kind for _, kind in table.columns] == [
        "BIGINT", "DOUBLE", "VARCHAR", "BOOLEAN", "JSON", "JSON"
    ]  # fmt: skip
    assert [list(row.values()) for row in rows] == LISTS
    assert table.rows == 2


async def test_a_wrapped_list_is_found_across_pieces_and_read_from_any_row():
    rows = [{"i": i, "t": '"[{\\' * (i % 7)} for i in range(60_000)]
    data = json.dumps({"pad": ["]" * 1_500_000], "records": rows, "after": {}}).encode()
    assert len(data) > 3 * 1024 * 1024
    table, found, _ = await read(data, "json", start_row=59_990, bytes_max=1 << 24)
    assert (table.rows, found) == (60_000, rows[59_990:])


async def test_lists_are_written_side_by_side_with_another_table():
    one = tables.Input(read_at=source(b"[[1, 2], [3, 4]]"), size_bytes=16, format="json")
    two = tables.Input(read_at=source(b"y\n5\n6\n"), size_bytes=6, format="csv")
    text = await joined(tables.converted((one, two), into="csv"))
    assert text == b"1,2,y\n1,2,5\n3,4,6\n"


async def test_given_types_count_more_than_derived_ones():
    data = b"a,b\n1,2020-01-01\n"
    table, rows, _ = await read(data, "csv", types={"a": "VARCHAR", "b": "DATE"})
    assert rows == [{"a": "1", "b": "2020-01-01"}]
    assert dict(table.columns) == {"a": "VARCHAR", "b": "DATE"}
    error = await refused(b"a\n1\nx\n", "csv", types={"a": "BIGINT"})
    assert error.fields[0].pointer == "line:3:a"
    assert "is no type" in (await refused(data, "csv", types={"a": "x); DROP"})).detail
    assert "no column 'z'" in (await refused(data, "csv", types={"z": "DATE"})).detail


@pytest.mark.parametrize(
    ("kind", "data", "words", "pointer"),
    [
        ("csv", b"a,b\n1,2\n3\n", "1 fields where the first line has 2", "line:3"),
        ("csv", b"a,b\n1,2,3\n", "3 fields where the first line has 2", "line:2"),
        ("csv", b'a,b\n1,"2\n3,4\n', "a quote is opened and not closed", "line:2"),
        ("csv", b"a\n\xff\xfe\n", "not UTF-8", "line:2"),
        ("csv", b"a,a\n1,2\n", "names must differ in more than case", "line:1"),
        ("csv", b"a,A\n1,2\n", "names must differ in more than case", "line:1"),
        ("csv", b"", "no first line", "line:1"),
        ("ndjson", b'{"a": 1}\nnot json\n{"a": 2}\n', "it is no JSON", "line:2"),
        ("ndjson", b'{"a": 1}\n[3]\n', "must be a JSON object", ""),
        ("ndjson", b"[1, 2]\n\n[3]\n", "it has 1 values where the first has 2", "line:2"),
        ("json", b"[[1], [2], {}]", "it is no list where the first has 1", "item:3"),
        ("json", b'{"columns": ["a", "b"], "data": [[1]]}', "where the first has 2", "item:1"),
        ("json", b'{"columns": ["a", "A"], "data": [[1, 2]]}', "more than case", ""),
        ("json", b'{"columns": {"a": 1}, "data": [[1]]}', "not the list of names", ""),
        ("json", b'{"columns": ["a"], "data": [{"a": 1}]}', "each row in 'data' is a list", ""),
        ("json", b'{"records": {"a": 1}}', "'records' is not the list", ""),
        ("json", b'{"records": [{"a": 1}]', "ends in the middle", ""),
        ("json", b'{"a": 1}\n{"a": 2}\n', "more after the JSON document", ""),
        ("json", b"{}", "or has such a list as 'records'", ""),
        ("json", b"7", "is no JSON list or object", ""),
        ("json", b"[1, 2]", "neither an object nor a list", ""),
        ("json", b"[[]]", "0 columns", ""),
        ("json", b"[[" + b"[" * 100_000 + b"]" * 100_000 + b"]]", "nested deeper", ""),
        ("json", b"[[1], [2", "it is no JSON", "item:2"),
        ("ndjson", b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested deeper", ""),
        ("ndjson", b'{"a": 1}\n{"A": 2}\n', "names must differ in more than case", ""),
        ("json", b"[]", "must be a JSON object", ""),
        ("json", b'[{"a": 1}, {"a": ', "it is no JSON", "item:"),
        ("parquet", b"PAR1" + b"x" * 100, "its end is missing or damaged", ""),
    ],
)
async def test_what_is_no_table_is_refused_with_its_place(kind, data, words, pointer):
    error = await refused(data, kind)
    assert words in error.detail
    assert pointer == "" or error.fields[0].pointer.startswith(pointer)


async def test_a_damaged_parquet_file_is_refused_wherever_it_is_damaged(tmp_path):
    whole = parquet(tmp_path, "SELECT i, 'text ' || i AS t FROM range(20000) t(i)")
    for cut in (8, len(whole) // 2, len(whole) - 1):
        await refused(whole[:cut], "parquet")
    torn = bytearray(whole)
    torn[len(whole) // 3 : len(whole) // 3 + 64] = b"\xff" * 64
    await refused(bytes(torn), "parquet")


async def test_a_bomb_takes_the_memory_of_its_process_and_no_more(tmp_path):
    async def first(data: bytes) -> dict:
        async with tables.opened(
            source(data), size_bytes=len(data), format="parquet", memory_bytes=100_000_000
        ) as table:
            async for rows in table.batches():
                return {"rows": table.rows, "first": rows[0]}
        raise AssertionError

    many = parquet(tmp_path, "SELECT NULL::INTEGER AS a FROM range(5000000)", ", COMPRESSION zstd")
    assert len(many) < 20_000
    assert await first(many) == {"rows": 5_000_000, "first": {"a": None}}
    large = parquet(tmp_path, "SELECT repeat('x', 200000000) AS a", ", COMPRESSION zstd")
    assert len(large) < 200_000
    with pytest.raises(InputInvalid, match="memory"):
        await first(large)


async def test_a_row_larger_than_a_batch_is_refused_by_its_number():
    data = b"a\nx\ny\n" + b"z" * 5000 + b"\n"
    assert (await refused(data, "csv", bytes_max=1000)).fields[0].pointer == "row:2"


async def test_a_process_that_is_silent_is_given_up():
    with pytest.raises(InputInvalid, match="no progress"):
        async with tables.opened(source(b"a\n1\n"), size_bytes=4, format="csv", silence_s=1e-6):
            pass


async def test_a_source_that_fails_ends_the_reading_with_its_own_problem():
    async def read_at(_offset: int, _size: int) -> bytes:
        raise HostError("the blob is damaged")

    with pytest.raises(HostError, match="damaged"):
        async with tables.opened(read_at, size_bytes=100, format="csv"):
            pass


@pytest.mark.parametrize("count", [0, 1, 5001])
async def test_a_stream_of_any_length_is_written_whole(count):
    async def batches():
        for at in range(0, count, 1000):
            yield [{"i": i} for i in range(at, min(at + 1000, count))]

    data = await joined(tables.written(batches(), columns={"i": "BIGINT"}, into="ndjson"))
    assert [json.loads(line)["i"] for line in data.splitlines()] == list(range(count))


@pytest.mark.parametrize("into", tables.FORMATS)
async def test_what_is_written_is_read_again(into):
    rows = [{"i": i, "t": f"ü {i}", "f": i / 7, "n": None, "o": [i]} for i in range(3000)]
    columns = {"i": "BIGINT", "t": "VARCHAR", "f": "DOUBLE", "n": "BOOLEAN", "o": "JSON"}

    async def batches():
        for at in range(0, len(rows), 700):
            yield rows[at : at + 700]

    data = await joined(tables.written(batches(), columns=columns, into=into))
    _table, again, _ = await read(data, into, bytes_max=1 << 24)
    if into == "csv":
        rows = [{**row, "o": json.dumps(row["o"])} for row in rows]
    assert again == rows


async def test_a_value_that_does_not_fit_its_column_is_refused_when_written():
    async def batches():
        yield [{"i": "text"}]

    with pytest.raises(InputInvalid, match="line 1: Failed to cast"):
        await joined(tables.written(batches(), columns={"i": "BIGINT"}, into="parquet"))


async def test_tables_side_by_side_keep_their_types(tmp_path):
    left = parquet(tmp_path, "SELECT i, (i / 8)::DECIMAL(30,3) AS d FROM range(5000) t(i)")
    right = b"".join(b'{"score": %d.5, "x": 1}\n' % i for i in range(5000))
    sources = (
        tables.Input(read_at=source(left), size_bytes=len(left), format="parquet"),
        tables.Input(
            read_at=source(right),
            size_bytes=len(right),
            format="ndjson",
            columns=("score",),
            renamed=("prediction",),
        ),
    )
    data = await joined(tables.converted(sources, into="parquet"))
    table, rows, _ = await read(data, "parquet", start_row=4999)
    assert table.columns == (("i", "BIGINT"), ("d", "DECIMAL(30,3)"), ("prediction", "DOUBLE"))
    assert rows == [{"i": 4999, "d": 624.875, "prediction": 4999.5}]


async def test_a_reader_that_leaves_early_leaves_no_process():
    data = b"a\n" + b"1\n" * 100_000
    async with tables.opened(source(data), size_bytes=len(data), format="csv") as table:
        process = table._child._process
        async for _rows in table.batches(rows_max=10):
            break
    assert process.returncode is not None


def test_the_process_that_reads_can_open_and_reach_and_start_nothing():
    code = """
import os, socket, sys
sys.path.insert(0, sys.argv[1])
from appliance.tables.confine import confine
confine(memory_bytes=1 << 28)
done = []
def attempt(name, act):
    try:
        act()
        done.append(name)
    except PermissionError:
        pass
attempt("open", lambda: os.open("/etc/hostname", os.O_RDONLY))
attempt("create", lambda: os.open("/tmp/never-made", os.O_WRONLY | os.O_CREAT))
attempt("socket", lambda: socket.socket())
attempt("unix socket", lambda: socket.socket(socket.AF_UNIX))
attempt("fork", os.fork)
attempt("exec", lambda: os.execv("/bin/true", ["true"]))
attempt("signal", lambda: os.kill(os.getppid(), 0))
attempt("unlink", lambda: os.unlink("/tmp/never-made"))
try:
    bytearray(1 << 29)
    done.append("memory")
except MemoryError:
    pass
print(done)
"""
    told = subprocess.run(
        [sys.executable, "-I", "-c", code, str(ROOT)], capture_output=True, text=True, check=True
    )
    assert told.stdout == "[]\n"


async def test_readers_run_beside_each_other():
    data = b"a\n1\n2\n"
    many = await asyncio.gather(*(read(data, "csv") for _ in range(3)))
    assert all(rows == [{"a": 1}, {"a": 2}] for _table, rows, _ in many)


@pytest.mark.parametrize(
    ("name", "media", "head", "kind"),
    [
        ("rows.parquet", "", b"PAR1", "parquet"),
        ("rows.bin", "application/octet-stream", b"PAR1....", "parquet"),
        ("rows.csv", "text/csv; charset=utf-8", b"a,b", "csv"),
        ("ROWS.JSONL", "", b"", "ndjson"),
        ("", "application/x-ndjson", b"{", "ndjson"),
        ("", "", b" [", "json"),
        ("", "", b'{"a"', "ndjson"),
    ],
)
def test_a_format_is_known_by_name_media_type_or_first_bytes(name, media, head, kind):
    assert tables.format_of(name=name, media_type=media, head=head) == kind


def test_what_is_packed_or_unknown_or_called_wrongly_is_refused():
    with pytest.raises(InputInvalid, match="unpack"):
        tables.format_of(name="a.csv.gz", head=b"\x1f\x8b\x08")
    with pytest.raises(InputInvalid, match="does not begin"):
        tables.format_of(name="a.parquet", head=b"a,b\n")
    with pytest.raises(UnsupportedMedia):
        tables.format_of(name="a.xls", head=b"what")
    with pytest.raises(InputInvalid):
        tables.require_format("xml")
