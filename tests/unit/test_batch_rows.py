"""Rows as bodies, and answers as one result per row."""

from __future__ import annotations

import json

import pytest

from appliance import batch_rows
from appliance.errors import ResultsDiffer
from appliance.records import Manifest

ROWS = [{"a": 1, "b": "x"}, {"a": float("nan"), "b": None}]


@pytest.mark.parametrize(
    ("form", "body"),
    [
        ("records", {"records": [{"a": 1, "b": "x"}, {"a": None, "b": None}]}),
        ("rows", {"rows": [[1, "x"], [None, None]]}),
        ("columns", {"columns": {"a": [1, None], "b": ["x", None]}}),
        ("list", [[1, "x"], [None, None]]),
    ],
)
def test_rows_become_a_body_of_each_form(form, body):
    assert json.loads(batch_rows.body_of(ROWS, form)) == body


@pytest.mark.parametrize(
    ("answer", "results"),
    [
        ([1, 2], [{"prediction": 1}, {"prediction": 2}]),
        ([{"p": 1}, {"q": 2}], [{"p": 1}, {"q": 2}]),
        ({"predictions": [[0.1, 0.9], None]}, [{"prediction": [0.1, 0.9]}, {"prediction": None}]),
        ({"predictions": ["a", "b"], "model": "m"}, [{"prediction": "a"}, {"prediction": "b"}]),
        ({"score": [1, 2]}, [{"score": 1}, {"score": 2}]),
        ({"p": [1, 2], "q": [3, 4]}, [{"p": 1, "q": 3}, {"p": 2, "q": 4}]),
        ({"outputs": {"p": [1, 2]}}, [{"p": 1}, {"p": 2}]),
    ],
)
def test_an_answer_of_any_usual_shape_is_one_result_per_row(answer, results):
    assert batch_rows.results_of(json.dumps(answer).encode(), 2) == results


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (b"[1]", "1 results to 2 rows"),
        (b"[1,2,3]", "3 results to 2 rows"),
        (b'{"p":[1,2],"q":[1]}', "1 results to 2 rows"),
        (b'{"p":[1,2],"q":7}', "'q' in the model's answer is no list"),
        (b"{}", "empty"),
        (b"5", "a single value"),
        (b"\xff", "no JSON"),
        (b"[" * 100_000, "no JSON"),
    ],
)
def test_an_answer_that_is_not_one_result_per_row_is_refused(reply, words):
    with pytest.raises(ResultsDiffer, match=words):
        batch_rows.results_of(reply, 2)


def test_nan_in_an_answer_is_read_and_written_as_null():
    results = batch_rows.results_of(b"[NaN, 1]", 2)
    assert batch_rows.lines_of(results) == b'{"prediction":null}\n{"prediction":1}\n'


@pytest.mark.parametrize(
    "result", [{"": 1}, {"a\0": 1}, {"a" * 201: 1}, {"a": 1, "A": 2}, dict.fromkeys("ab" * 9)]
)
def test_results_that_cannot_be_columns_are_refused(result):
    if len(result) == 2 and "b" in result:
        assert batch_rows.names_of([result]) == ("a", "b")
        return
    with pytest.raises(ResultsDiffer):
        batch_rows.names_of([result])


def test_result_columns_never_take_a_name_of_the_table():
    assert batch_rows.renamed(("p", "A"), ("a", "a_result")) == ("p", "A_result_result")
    assert batch_rows.merged([("p", "error"), ("q", "error")]) == ("p", "q", "error")
    assert batch_rows.marked([{"error": 1}]) == [{"model_error": 1, "error": None}]


def test_the_form_is_what_the_version_tells():
    def of(**declared):
        entry = declared.pop("entry", "model:Model")
        return batch_rows.form_of(Manifest(runtime="python3.11", entry=entry, **declared))

    assert of() == "rows"
    assert of(entry="@sklearn:m.skops") == "records"
    assert of(input_schema={"properties": {"columns": {}}}) == "columns"
    assert of(input_schema={"type": "array"}) == "list"
    assert of(sample='{"records": []}') == "records"
