"""The tables in bodies and replies: the forms models take, and everything else is none."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.drift import bodies
from appliance.drift.bodies import data_of, inputs_of, names_in, outputs_of
from appliance.sandbox.guest import python_tables

NAMES = ["a", "b"]
WANTED = {"a": [1, 3], "b": [2, 4]}
FORMS = [
    [[1, 2], [3, 4]],
    {"rows": [[1, 2], [3, 4]]},
    {"rows": [[2, 1], [4, 3]], "columns": ["b", "a"]},
    {"rows": [[0, 2, 1], [0, 4, 3]], "columns": ["z", "b", "a"]},
    [{"a": 1, "b": 2}, {"b": 4, "a": 3}],
    {"records": [{"a": 1, "b": 2}, {"a": 3, "b": 4, "z": 9}]},
    {"columns": {"a": [1, 3], "b": [2, 4]}},
    {"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2], [3, 4]]}},
    {"dataframe_split": {"data": [[1, 2], [3, 4]]}},
    {"dataframe_records": [{"a": 1, "b": 2}, {"a": 3, "b": 4}]},
    {"instances": [[1, 2], [3, 4]]},
    {"inputs": [[1, 2], [3, 4]]},
    {"inputs": {"a": [1, 3], "b": [2, 4]}},
    {"a": [1, 3], "b": [2, 4], "z": 1},
]
NONE = [
    1, "text", None, [], {}, [1, 2], [[1], [2]], {"rows": 1}, {"rows": []}, {"rows": [[1, 2, 3]]},
    {"rows": [[1, 2]], "columns": "ab"}, {"rows": [[1, 2]], "columns": [1, 2]},
    {"columns": {"a": [1], "b": [1, 2]}}, {"z": 1}, [{"z": 1}], [{"a": 1}, 2], {"answer": {}},
    {"inputs": {"a": 1, "b": [2]}}, {"dataframe_split": {}}, {"columns": {"a": []}},
]  # fmt: skip


def as_lists(table):
    return {name: list(values) for name, values in table.columns.items()}


@pytest.mark.parametrize("body", FORMS, ids=json.dumps)
def test_every_form_models_take_is_the_same_table(body):
    table = inputs_of("application/json", json.dumps(body).encode(), NAMES)
    assert as_lists(table) == WANTED
    assert (table.rows, table.skipped) == (2, 0)


@pytest.mark.parametrize("body", list(FORMS[:-1]), ids=json.dumps)
def test_the_model_sees_the_same_table(body):
    table = python_tables.table_from_inputs(body)
    names = table.names or NAMES
    rows = [dict(zip(names, row, strict=True)) for row in table.rows]
    assert {name: [row[name] for row in rows] for name in NAMES} == WANTED


@pytest.mark.parametrize("body", NONE, ids=json.dumps)
def test_what_is_no_table_is_none(body):
    assert inputs_of("application/json", json.dumps(body).encode(), NAMES) is None


@pytest.mark.parametrize("body", FORMS, ids=json.dumps)
def test_the_names_of_a_body_are_found_where_no_plan_says_them(body):
    text = json.dumps(body).encode()
    names = names_in("application/json", text)
    found = as_lists(inputs_of("application/json", text, names))
    assert {tuple(values) for values in WANTED.values()} <= {tuple(v) for v in found.values()}
    is_named = "a" in json.dumps(body).replace("data", "").replace("instances", "")
    assert ("a" in names) == (set(names) != {"column 1", "column 2"}) or not is_named


def test_names_in_csv_and_in_nothing():
    assert names_in("text/csv", b"b,a\n1,2\n") == ["b", "a"]
    for nothing in (b"", b"1", b"{}", b"[]", b"[" * 10_000, json.dumps([[0] * 600]).encode()):
        assert names_in("application/json", nothing) == []


def test_csv_is_a_table_whose_values_are_texts():
    table = inputs_of("text/csv; charset=utf-8", b"b,a\r\n2,1\r\n\r\n4,3\r\n", NAMES)
    assert as_lists(table) == {"a": ["1", "3"], "b": ["2", "4"]}
    assert inputs_of("text/csv", b"", NAMES) is None
    assert inputs_of("text/csv", b"a,b\n1\n", NAMES) is None
    assert inputs_of("text/csv", b"\xff\xfe", NAMES) is None


def test_one_record_and_one_column_are_tables_too():
    assert as_lists(inputs_of("", b'{"a": 1, "b": null}', NAMES)) == {"a": [1], "b": [None]}
    assert as_lists(inputs_of("", b"[1, 2]", ["a"])) == {"a": [1, 2]}
    missing = inputs_of("", b'[{"a": 1}]', NAMES)
    assert as_lists(missing) == {"a": [1], "b": [None]}


def test_a_large_body_is_looked_at_evenly():
    body = json.dumps([[at, at] for at in range(10_500)]).encode()
    table = inputs_of("", body, NAMES)
    assert (table.rows, table.skipped) == (bodies.ROWS_MAX, 10_500 - bodies.ROWS_MAX)
    assert table.columns["a"][:2] == (0, 10)
    assert table.columns["a"][-1] == 10_489
    by_column = inputs_of("", json.dumps({"a": list(range(5000)), "b": [0] * 5000}).encode(), NAMES)
    assert (by_column.rows, by_column.skipped) == (bodies.ROWS_MAX, 4000)


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from([*NAMES, "rows", "records", "columns", "predictions", "inputs",
                             "dataframe_split", "data", "classes", "instances"]),
            inner, max_size=4,
        ),
        max_leaves=20,
    )
)  # fmt: skip
def test_no_json_fails(value):
    body = json.dumps(value).encode()
    own = names_in("application/json", body)
    tables = (inputs_of("", body, NAMES), inputs_of("", body, own), outputs_of(body))
    for table in tables:
        assert table is None or all(len(v) == table.rows for v in table.columns.values())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=50))
def test_no_bytes_fail(body):
    for kind in ("application/json", "text/csv", "application/octet-stream"):
        inputs_of(kind, body, NAMES)
        names_in(kind, body)
    outputs_of(body)


def test_a_hundred_thousand_brackets_are_no_table():
    body = b"[" * 100_000 + b"]" * 100_000
    assert inputs_of("application/json", body, NAMES) is None
    assert outputs_of(body) is None


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        ({"predictions": [1, 0]}, {"prediction": [1, 0]}),
        ([0.5, None], {"prediction": [0.5, None]}),
        (3, {"prediction": [3]}),
        ({"predictions": [["x"], ["y"]]}, {"prediction": ["x", "y"]}),
        ({"predictions": [[0.1, 0.9]]}, {"prediction[0]": [0.1], "prediction[1]": [0.9]}),
        (
            {"predictions": [[0.1, 0.9]], "classes": ["no", "yes"]},
            {"prediction[no]": [0.1], "prediction[yes]": [0.9]},
        ),
        (
            {"classes": ["no", "yes"], "probabilities": [[0.1, 0.9]]},
            {"prediction[no]": [0.1], "prediction[yes]": [0.9]},
        ),
        ({"predictions": [{"label": "x", "p": 1}]}, {"label": ["x"], "p": [1]}),
        ({"predictions": {"label": ["x"], "score": [[1, 2]]}},
         {"label": ["x"], "score[0]": [1], "score[1]": [2]}),
        ({"label": "x", "p": 0.3}, {"label": ["x"], "p": [0.3]}),
        ({"predictions": []}, None),
        ({}, None),
        (None, None),
    ],
)  # fmt: skip
def test_answers(reply, wanted):
    table = outputs_of(json.dumps(reply).encode())
    assert (as_lists(table) if table else None) == wanted


DATA = {"a": [1, 3], "b": ["x", "y"]}


@pytest.mark.parametrize(
    "body",
    [
        [{"a": 1, "b": "x"}, {"a": 3, "b": "y"}],
        {"records": [{"a": 1, "b": "x"}, {"a": 3, "b": "y"}]},
        {"rows": [[1, "x"], [3, "y"]], "columns": ["a", "b"]},
        {"a": [1, 3], "b": ["x", "y"]},
        {"columns": {"a": [1, 3], "b": ["x", "y"]}},
        {"dataframe_split": {"columns": ["a", "b"], "data": [[1, "x"], [3, "y"]]}},
    ],
    ids=json.dumps,
)
def test_data_comes_in_many_forms_of_json(body):
    assert as_lists(data_of(json.dumps(body).encode())) == DATA


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "no JSON"),
        (b"3", "no list of records"),
        (b"[]", "no records"),
        (b"[1]", "record 1 of the data is no object"),
        (b'{"rows": [[1]]}', "need the names"),
        (b'{"rows": [[1]], "columns": ["a", "b"]}', "row 1 of the data has not 2 values"),
        (b'{"rows": [[1, 2]], "columns": ["a", "a"]}', "same name"),
        (b'{"rows": [], "columns": ["a"]}', "no records"),
        (b'{"a": [1], "b": [1, 2]}', "not equally long"),
        (b"[" * 100_000, "no JSON"),
        (b"[{}]", "0 columns"),
        (json.dumps([{f"c{n}": 1 for n in range(600)}]).encode(), "600 columns"),
    ],
)
def test_json_that_is_no_data_says_why(body, says):
    with pytest.raises(ValueError, match=says):
        data_of(body)


def test_long_data_is_thinned(monkeypatch):
    monkeypatch.setattr(bodies, "DATA_ROWS_MAX", 100)
    table = data_of(json.dumps([{"a": n} for n in range(1000)]).encode())
    assert (table.rows, table.skipped, table.columns["a"][1]) == (100, 900, 10)


def test_rows_with_random_garbage_never_count_twice():
    rng = random.Random(0)
    rows = [[rng.random(), rng.random()] for _ in range(50)]
    table = inputs_of("", json.dumps({"rows": rows}).encode(), NAMES)
    assert list(zip(*table.columns.values(), strict=True)) == [tuple(row) for row in rows]
