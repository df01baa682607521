"""Bodies of tabular models: every form gives the same table, and a bad one says which there are."""

from __future__ import annotations

import importlib.util
from importlib import resources
from types import ModuleType
from typing import Any

import pytest


def loaded() -> ModuleType:
    path = resources.files("appliance.sandbox").joinpath("guest", "python_tables.py")
    spec = importlib.util.spec_from_file_location("appliance_tables", str(path))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TABLES = loaded()
ROWS = [[1, "x"], [2.5, "y"]]
NAMED = {
    "rows": {"rows": ROWS, "columns": ["a", "b"]},
    "records": {"records": [{"a": 1, "b": "x"}, {"a": 2.5, "b": "y"}]},
    "a list of records": [{"a": 1, "b": "x"}, {"b": "y", "a": 2.5}],
    "columns": {"columns": {"a": [1, 2.5], "b": ["x", "y"]}},
    "inputs by column": {"inputs": {"a": [1, 2.5], "b": ["x", "y"]}},
    "dataframe_split": {"dataframe_split": {"columns": ["a", "b"], "index": [0, 1], "data": ROWS}},
    "dataframe_records": {"dataframe_records": [{"a": 1, "b": "x"}, {"a": 2.5, "b": "y"}]},
    "instances": {"instances": [{"a": 1, "b": "x"}, {"a": 2.5, "b": "y"}]},
    "csv": "a,b\n1,x\n2.5,y\n",
}


@pytest.mark.parametrize("body", NAMED.values(), ids=NAMED)
def test_every_form_is_the_same_table(body: Any) -> None:
    table = TABLES.table_from_inputs(body)
    assert table.ordered(["a", "b"]) == ROWS
    assert table.ordered(["b", "a"]) == [["x", 1], ["y", 2.5]]


@pytest.mark.parametrize(
    "body", [ROWS, {"rows": ROWS}, {"instances": ROWS}, {"inputs": ROWS}], ids=str
)
def test_rows_without_names_stay_in_their_order(body: Any) -> None:
    table = TABLES.table_from_inputs(body)
    assert (table.rows, table.names) == (ROWS, None)
    assert table.ordered(["b", "a"]) == ROWS


def test_a_record_may_lack_a_value() -> None:
    assert TABLES.table_from_inputs([{"a": 1}, {"b": 2}]).rows == [[1, None], [None, 2]]


def test_named_tensors_are_told_from_tables() -> None:
    assert TABLES.tensors_from_inputs({"inputs": {"X": [[1]]}}) == {"X": [[1]]}
    assert TABLES.tensors_from_inputs({"inputs": [[1]]}) is None
    assert TABLES.tensors_from_inputs([[1]]) is None


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (None, "send JSON with one of rows, records"),
        (7, "send JSON"),
        (b"x", "send JSON"),
        ({}, "needs one of rows, records"),
        ({"row": []}, "'row'"),
        ({"records": [], "instances": []}, "'records', 'instances'"),
        ({"rows": {}}, "rows is no list"),
        ({"rows": [], "columns": {"a": 1}}, "list of their names"),
        ({"dataframe_split": []}, "dataframe_split is"),
        ({"columns": {"a": [1], "b": [1, 2]}}, "not equally long"),
        ([{"a": 1}, 2], "another is none"),
        ("", "empty"),
    ],
)
def test_a_body_in_no_form_is_answered_with_the_forms(body: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TABLES.table_from_inputs(body)


def test_a_missing_column_is_named() -> None:
    table = TABLES.table_from_inputs([{"a": 1}])
    with pytest.raises(ValueError, match=r"\['b'\] are missing; there are \['a'\]"):
        table.ordered(["a", "b"])
