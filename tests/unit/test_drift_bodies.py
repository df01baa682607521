"""The tables in bodies and replies: the forms models take, and everything else is none."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.drift import bodies
from appliance.drift.bodies import data_of, inputs_of, outputs_of
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
    for table in (inputs_of("application/json", body, NAMES), outputs_of(body)):
        assert table is None or all(len(v) == table.rows for v in table.columns.values())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=50))
def test_no_bytes_fail(body):
    for kind in ("application/json", "text/csv", "application/octet-stream"):
        inputs_of(kind, body, NAMES)
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
    ("kind", "body"),
    [
        ("application/json", b'[{"a": 1, "b": "x"}, {"a": 3, "b": "y"}]'),
        ("application/json", b'{"records": [{"a": 1, "b": "x"}, {"a": 3, "b": "y"}]}'),
        ("application/json", b'{"rows": [[1, "x"], [3, "y"]], "columns": ["a", "b"]}'),
        ("application/json", b'{"a": [1, 3], "b": ["x", "y"]}'),
        ("application/json", b'{"columns": {"a": [1, 3], "b": ["x", "y"]}}'),
        (
            "application/json",
            b'{"dataframe_split": {"columns": ["a", "b"], "data": [[1, "x"], [3, "y"]]}}',
        ),
        ("application/x-ndjson", b'{"a": 1, "b": "x"}\n{"a": 3, "b": "y"}\n'),
    ],
)  # fmt: skip
def test_data_comes_in_many_forms(kind, body):
    assert as_lists(data_of(kind, body)) == DATA


def test_data_as_csv():
    table = data_of("text/csv", '\ufeffa,b\n1,"x, ""y"""\n3,\n'.encode())
    assert as_lists(table) == {"a": ["1", "3"], "b": ['x, "y"', ""]}


@pytest.mark.parametrize(
    ("kind", "body", "says"),
    [
        ("text/csv", b"", "is empty"),
        ("text/csv", b"a,b\n", "no records"),
        ("text/csv", b"a,b\n1\n", "row 1 of the data has not 2 values"),
        ("text/csv", b"a,a\n1,2\n", "same name"),
        ("text/csv", b"a\n\xff\n", "no UTF-8"),
        ("application/json", b"{", "no JSON"),
        ("application/json", b"3", "no list of records"),
        ("application/json", b"[]", "no records"),
        ("application/json", b"[1]", "record 1 of the data is no object"),
        ("application/json", b'{"rows": [[1]]}', "need the names"),
        ("application/json", b'{"a": [1], "b": [1, 2]}', "not equally long"),
        ("application/json", b"[" * 100_000, "no JSON"),
        ("application/x-ndjson", b"{}\n{", "no NDJSON"),
        ("application/x-ndjson", b"{}\n", "0 columns"),
    ],
)
def test_data_that_is_none_says_why(kind, body, says):
    with pytest.raises(ValueError, match=says):
        data_of(kind, body)


def test_wide_data_is_refused_and_long_data_is_thinned(monkeypatch):
    names = ",".join(f"c{n}" for n in range(600))
    with pytest.raises(ValueError, match="600 columns"):
        data_of("text/csv", f"{names}\n{names}".encode())
    monkeypatch.setattr(bodies, "DATA_ROWS_MAX", 100)
    table = data_of("text/csv", ("a\n" + "\n".join(map(str, range(1000)))).encode())
    assert (table.rows, table.skipped, table.columns["a"][1]) == (100, 900, "10")


def test_rows_with_random_garbage_never_count_twice():
    rng = random.Random(0)
    rows = [[rng.random(), rng.random()] for _ in range(50)]
    table = inputs_of("", json.dumps({"rows": rows}).encode(), NAMES)
    assert list(zip(*table.columns.values(), strict=True)) == [tuple(row) for row in rows]
