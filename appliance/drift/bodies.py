"""The tables in what models are sent and what they answer, as columns of values.

Owns: the forms of bodies and replies that are understood, and how much of one is looked at.
Never: fails: what is no table is ``None``. Decides nothing about a value.
Read next: ``sketch`` (counts them); ``sandbox/guest/python_tables.py``, which understands the same
bodies where the model is.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from appliance.drift.sketch import COLUMNS_MAX

ROWS_MAX = 1000
"""Records of one call that are looked at; of more, as many are, evenly spread."""

_LISTS = ("records", "dataframe_records", "instances", "inputs", "columns")
_ANSWERS = ("predictions", "prediction", "outputs", "output", "probabilities", "answer", "result")
OUTPUT = "prediction"
"""The name of an output that has none."""
_WIDTH_MAX = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Columns by name, all ``rows`` long; ``skipped`` records are not in it."""

    columns: Mapping[str, Sequence[Any]]
    rows: int
    skipped: int = 0


def inputs_of(content_type: str, body: bytes, names: Sequence[str]) -> Table | None:
    """The records of a call's body, in the columns of a plan; ``None`` where there are none.

    Args:
        content_type: of the body.
        body: as it came.
        names: of the plan's columns, in its order: what rows without names are taken to be.
    """
    kind = content_type.split(";")[0].strip().lower()
    if kind == "text/csv":
        return _from_csv(body, names)
    value = _decoded(body)
    if isinstance(value, list):
        return _from_list(value, names)
    if not isinstance(value, dict):
        return None
    if "rows" in value:
        return _from_rows(value["rows"], value.get("columns", names), names)
    split = value.get("dataframe_split")
    if isinstance(split, dict):
        return _from_rows(split.get("data"), split.get("columns", names), names)
    for key in _LISTS:
        inner = value.get(key)
        if isinstance(inner, list):
            return _from_list(inner, names)
        if isinstance(inner, dict):
            return _from_columns(inner, names)
    return _from_columns(value, names)


def outputs_of(reply: bytes) -> Table | None:
    """The answers in a reply; ``None`` where it is no JSON with any.

    A list of single values is the column ``prediction``, lists of several are ``prediction[0]``
    and so on (or the names in ``classes``), records and objects of lists have their own names.
    """
    value = _decoded(reply)
    names: Sequence[Any] = ()
    if isinstance(value, dict):
        classes = value.get("classes")
        names = classes if isinstance(classes, list) else ()
        found = next((value[key] for key in _ANSWERS if key in value), value)
        value = found
    return _answers(value, names)


def _answers(value: Any, names: Sequence[Any]) -> Table | None:
    if isinstance(value, (int, float, str)):
        value = [value]
    if isinstance(value, list):
        return _of_answers(value, OUTPUT, names)
    if not isinstance(value, dict) or not value:
        return None
    if not any(isinstance(one, list) for one in value.values()):
        return _of_answers([value], OUTPUT, names)
    tables = [
        table
        for name, one in list(value.items())[:_WIDTH_MAX]
        if isinstance(one, list) and (table := _of_answers(one, str(name), ())) is not None
    ]
    rows = max((table.rows for table in tables), default=0)
    columns = {
        name: values
        for table in tables
        if table.rows == rows
        for name, values in table.columns.items()
    }
    return Table(columns=columns, rows=rows) if columns else None


def _of_answers(value: list[Any], name: str, names: Sequence[Any]) -> Table | None:
    items, skipped = _spread(value)
    first = items[0] if items else None
    if isinstance(first, dict):
        keys = list(first)[:_WIDTH_MAX]
        columns = {str(k): [o.get(k) if isinstance(o, dict) else None for o in items] for k in keys}
    elif isinstance(first, list):
        width = len(first)
        if not 0 < width <= _WIDTH_MAX:
            return None
        labels = names if len(names) == width else range(width)
        columns = {
            name if width == 1 else f"{name}[{label}]": [
                one[at] if isinstance(one, list) and len(one) == width else None for one in items
            ]
            for at, label in enumerate(labels)
        }
    else:
        columns = {name: items}
    return Table(columns=columns, rows=len(items), skipped=skipped) if items else None


def _decoded(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return None


def _spread(items: list[Any]) -> tuple[list[Any], int]:
    """At most ``ROWS_MAX`` items, evenly spread, and how many are left out."""
    count = len(items)
    if count <= ROWS_MAX:
        return items, 0
    return [items[at * count // ROWS_MAX] for at in range(ROWS_MAX)], count - ROWS_MAX


def _from_list(value: list[Any], names: Sequence[str]) -> Table | None:
    first = value[0] if value else None
    if not isinstance(first, dict):
        return _from_rows(value, names, names)
    items, skipped = _spread(value)
    if not all(isinstance(one, dict) for one in items):
        return None
    if not any(name in one for one in items for name in names):
        return None
    columns = {name: [one.get(name) for one in items] for name in names}
    return Table(columns=columns, rows=len(items), skipped=skipped)


def _from_rows(value: Any, given: Any, names: Sequence[str]) -> Table | None:
    """Rows, each a list or a single value, whose columns are ``given``."""
    if not isinstance(value, list) or not value or not isinstance(given, (list, tuple)):
        return None
    items, skipped = _spread(value)
    width = len(given)
    if width == 1 and not isinstance(items[0], list):
        items = [[one] for one in items]
    if not all(isinstance(one, list) and len(one) == width for one in items):
        return None
    wanted = set(names)
    columns = {
        name: values
        for name, values in zip(given, zip(*items, strict=True), strict=True)
        if isinstance(name, str) and name in wanted
    }
    return Table(columns=columns, rows=len(items), skipped=skipped) if columns else None


def _from_columns(value: dict[str, Any], names: Sequence[str]) -> Table | None:
    """Lists by column, equally long, or one record."""
    known = {name: value[name] for name in names if name in value}
    lists = [one for one in known.values() if isinstance(one, list)]
    if not known:
        return None
    if not lists:
        columns = {name: [one] for name, one in known.items()}
        return Table(columns=columns, rows=1)
    count = len(lists[0])
    if len(lists) != len(known) or not count or any(len(one) != count for one in lists):
        return None
    picked = {name: _spread(one)[0] for name, one in known.items()}
    rows = min(count, ROWS_MAX)
    return Table(columns=picked, rows=rows, skipped=count - rows)


def _from_csv(body: bytes, names: Sequence[str]) -> Table | None:
    try:
        lines = [line for line in csv.reader(body.decode("utf-8-sig").splitlines()) if line]
    except (UnicodeDecodeError, csv.Error):
        return None
    return _from_rows(lines[1:], lines[0], names) if lines else None


DATA_ROWS_MAX = 200_000
"""Most records of the data of a baseline that are looked at, evenly spread."""


def data_of(body: bytes) -> Table:
    """The table in a JSON document for a baseline.

    It is a list of records, or an object with ``records``, ``rows`` and ``columns``, lists by
    column, or ``dataframe_split``.

    Raises:
        ValueError: it is none of these; the message says what is wrong with it.
    """
    try:
        value = msgspec.json.decode(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the data is no JSON: {error}") from None
    return _data_from_json(value)


def _data_from_json(value: Any) -> Table:
    if isinstance(value, dict) and isinstance(value.get("dataframe_split"), dict):
        split = value["dataframe_split"]
        value = {"rows": split.get("data"), "columns": split.get("columns")}
    if isinstance(value, dict) and "rows" in value:
        rows, names = value["rows"], value.get("columns")
        if not isinstance(rows, list) or not isinstance(names, list):
            raise ValueError(
                'rows need the names of their columns: {"rows": [...], "columns": ["a"]}'
            )
        return _data_from_rows([str(name) for name in names], rows)
    if isinstance(value, dict):
        for key in ("records", "dataframe_records", "columns"):
            if isinstance(value.get(key), (list, dict)):
                value = value[key]
                break
    if isinstance(value, list):
        return _data_from_records(value)
    if not isinstance(value, dict) or not all(isinstance(one, list) for one in value.values()):
        raise ValueError("the data is no list of records and no object of lists by column")
    counts = {len(one) for one in value.values()}
    if len(counts) != 1 or not counts.pop():
        raise ValueError("the columns of the data are empty or not equally long")
    return _data_from_rows(list(value), list(zip(*value.values(), strict=True)))


def _data_from_records(records: list[Any]) -> Table:
    if not records:
        raise ValueError("the data has no records")
    items = _thinned(records)
    names: dict[str, None] = {}
    for at, one in enumerate(items):
        if not isinstance(one, dict):
            raise ValueError(f"record {at + 1} of the data is no object")
        names.update(dict.fromkeys(one))
    _require_width(len(names))
    columns = {name: [one.get(name) for one in items] for name in names}
    return Table(columns=columns, rows=len(items), skipped=len(records) - len(items))


def _data_from_rows(names: list[str], rows: Sequence[Any]) -> Table:
    _require_width(len(names))
    if len(set(names)) != len(names):
        raise ValueError("two columns of the data have the same name")
    if not rows:
        raise ValueError("the data has no records")
    items = _thinned(rows)
    for at, one in enumerate(items):
        if not isinstance(one, (list, tuple)) or len(one) != len(names):
            raise ValueError(f"row {at + 1} of the data has not {len(names)} values")
    columns = dict(zip(names, zip(*items, strict=True), strict=True))
    return Table(columns=columns, rows=len(items), skipped=len(rows) - len(items))


def _thinned(items: Sequence[Any]) -> Sequence[Any]:
    count = len(items)
    if count <= DATA_ROWS_MAX:
        return items
    return [items[at * count // DATA_ROWS_MAX] for at in range(DATA_ROWS_MAX)]


def _require_width(width: int) -> None:
    if not 0 < width <= COLUMNS_MAX:
        raise ValueError(f"the data has {width} columns; a baseline has 1 to {COLUMNS_MAX}")


def names_in(content_type: str, body: bytes) -> list[str]:
    """The names of the columns of a call's body, where no plan says them; empty for no table.

    Rows without names have ``column 1``, ``column 2`` and so on.
    """
    kind = content_type.split(";")[0].strip().lower()
    if kind == "text/csv":
        try:
            lines = csv.reader(body.decode("utf-8-sig").splitlines())
            return _named(next(lines, []))
        except (UnicodeDecodeError, csv.Error):
            return []
    return _names_of(_decoded(body))


def _names_of(value: Any) -> list[str]:
    if isinstance(value, list):
        return _names_of_list(value)
    if not isinstance(value, dict):
        return []
    split = value.get("dataframe_split")
    if "rows" in value or isinstance(split, dict):
        rows, names = value.get("rows"), value.get("columns")
        if isinstance(split, dict):
            rows, names = split.get("data"), split.get("columns")
        return _named(names) if isinstance(names, list) else _names_of_list(rows)
    for key in _LISTS:
        inner = value.get(key)
        if isinstance(inner, list):
            return _names_of_list(inner)
        if isinstance(inner, dict):
            return _named(list(inner))
    lists = [name for name, one in value.items() if isinstance(one, list)]
    return _named(lists or [name for name, one in value.items() if not isinstance(one, dict)])


def _names_of_list(rows: Any) -> list[str]:
    if not isinstance(rows, list) or not rows:
        return []
    if isinstance(rows[0], dict):
        records = [one for one in rows[:ROWS_MAX] if isinstance(one, dict)]
        return _named(list(dict.fromkeys(name for one in records for name in one)))
    width = len(rows[0]) if isinstance(rows[0], list) else 1
    return [f"column {at + 1}" for at in range(width)] if width <= COLUMNS_MAX else []


def _named(names: list[Any]) -> list[str]:
    is_named = all(isinstance(name, str) for name in names)
    return list(names) if is_named and len(names) <= COLUMNS_MAX else []
