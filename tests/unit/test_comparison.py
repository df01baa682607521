"""What replies and data sets are read as, and what a report says of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from appliance.comparison.answers import FORMS, Answer, answers_of, body_of, form_of
from appliance.comparison.dataset import Dataset
from appliance.comparison.report import ComparisonReport, Heard, report_of, show_inputs

HALF = {"a": 0.5, "b": 0.5}
NY = ["n", "y"]


def said(reply: Any, count: int, **more: Any) -> Any:
    found = answers_of(json.dumps(reply).encode(), count, **more)
    return None if found is None else [(a.value, a.probabilities, a.classes) for a in found]


@pytest.mark.parametrize(
    ("reply", "value", "probabilities", "classes"),
    [
        (["x", "x"], "x", (), ()),
        ([[1.5], [1.5]], 1.5, (), ()),
        ({"predictions": [3, 3]}, 3, (), ()),
        ({"anything": [3, 3], "model": "m"}, 3, (), ()),
        ([[0.25, 0.75], [0.25, 0.75]], None, (0.25, 0.75), ()),
        ({"predictions": [[0.25, 0.75]] * 2, "classes": NY}, "y", (0.25, 0.75), ("n", "y")),
        ({"classes": NY, "probabilities": [[0.25, 0.75]] * 2}, "y", (0.25, 0.75), ("n", "y")),
        ({"labels": ["n", "n"], "probabilities": [[0.5, 0.5]] * 2}, "n", (0.5, 0.5), ()),
        ([{"label": "b", "probabilities": HALF}] * 2, "b", (0.5, 0.5), ("a", "b")),
        ([{"probabilities": HALF}] * 2, "a", (0.5, 0.5), ("a", "b")),
        ([{"boxes": [1]}] * 2, {"boxes": [1]}, (), ()),
        ([[1, 2], [1, 2]], [1, 2], (), ()),
        ([None, None], None, (), ()),
    ],
)  # fmt: skip
def test_a_reply_is_read_row_by_row(
    reply: Any, value: Any, probabilities: Any, classes: Any
) -> None:
    assert said(reply, 2) == [(value, probabilities, classes)] * 2


@pytest.mark.parametrize(
    "reply",
    [{"a": [1]}, [1], 7, "ab", {"a": [1, 2, 3]}, {}, None],
)
def test_a_reply_that_does_not_say_one_a_row_is_none(reply: Any) -> None:
    assert said(reply, 2) is None
    assert answers_of(b"\xff", 2) is None
    assert answers_of(b"[" * 100_000, 2) is None


def test_a_row_sent_by_itself_may_be_answered_by_itself() -> None:
    assert said({"label": "y", "probability": 0.5}, 1, is_single=True)[0][0] == "y"
    assert said("y", 1, is_single=True)[0][0] == "y"
    assert said([0.25, 0.75], 1, is_single=True) is not None


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_sent_in_every_form(form: str) -> None:
    rows = [[1, "u"], [2, "v"]]
    sent = json.loads(body_of(form, ["a", "b"], rows))
    objects = [{"a": 1, "b": "u"}, {"a": 2, "b": "v"}]
    assert (
        sent
        == {
            "rows": {"rows": rows},
            "instances": {"instances": rows},
            "inputs": {"inputs": rows},
            "records": {"records": objects},
            "dataframe_records": {"dataframe_records": objects},
            "columns": {"columns": {"a": [1, 2], "b": ["u", "v"]}},
            "dataframe_split": {"dataframe_split": {"columns": ["a", "b"], "data": rows}},
            "list": rows,
            "objects": objects,
            "single": objects[0],
        }[form]
    )


@pytest.mark.parametrize(
    ("sample", "schema", "convention", "named", "form"),
    [
        ("", None, "", True, "rows"),
        ("", None, "sklearn", True, "records"),
        ("", None, "sklearn", False, "rows"),
        ('{"rows": [[0]]}', None, "", True, "rows"),
        ('{"rows": [[0]]}', None, "sklearn", True, "records"),
        ('{"instances": [[0]]}', None, "", True, "instances"),
        ('{"records": [{}]}', None, "", False, "rows"),
        ("[[0]]", None, "", True, "list"),
        ('[{"a": 0}]', None, "", True, "objects"),
        ("", {"properties": {"columns": {}}}, "", True, "columns"),
        ("", {"type": "object", "properties": {"age": {}}}, "", True, "single"),
        ("", {"type": "array", "items": {"type": "object"}}, "", True, "objects"),
        ("[" * 100_000, None, "", True, "rows"),
    ],
)
def test_the_form_a_version_takes_is_told_from_what_is_known_of_it(
    sample: str, schema: Any, convention: str, named: bool, form: str
) -> None:
    assert form_of(sample, schema, convention, named=named) == form


def report(labels: list[Any], *answers: list[Any], **more: Any) -> ComparisonReport:
    count = max(len(labels), len(answers[0]))
    heard = []
    for number, one in enumerate(answers, start=1):
        found = [a if isinstance(a, Answer) else None if a == "failed" else Answer(value=a)
                 for a in one]  # fmt: skip
        heard.append(Heard(model="m", number=number, answers=found))
    dataset = Dataset(columns=("x",), count=count, labels=labels, groups=more.pop("groups", []))
    told: dict[str, Any] = {"task": None, "label": "y", "tolerance": 1e-6, "worst_max": 5, **more}
    return report_of(dataset, heard, **told)


@pytest.mark.parametrize(
    ("labels", "answers", "task"),
    [
        (["a", "b"], ["a", "b"], "classification"),
        ([0, 1], [0, 1], "classification"),
        ([0, 1], [0.2, 0.9], "classification"),
        ([0, 1], [0.2, 7.5], "regression"),
        ([1.5, 2.0], [1.0, 2.0], "regression"),
        (list(range(50)), list(range(50)), "regression"),
        ([], ["a", "b"], "classification"),
        ([], [1.5, 2.5], "regression"),
        ([], [{"a": 1}, {"a": 1}], "other"),
        ([], [Answer(value=None, probabilities=(0.5, 0.5))] * 2, "classification"),
    ],
)
def test_the_task_is_told_from_labels_and_answers(labels: Any, answers: Any, task: str) -> None:
    found = report(labels, answers)
    assert (found.task, found.is_task_inferred) == (task, True)
    assert not report(labels, answers, task="other").is_task_inferred


def test_probabilities_are_of_the_labels_in_their_order_where_they_say_nothing() -> None:
    rows = [Answer(value=None, probabilities=p) for p in ((0.9, 0.1), (0.2, 0.8))]
    (found,) = report(["no", "yes"], rows).targets
    assert (found.metrics["accuracy"], found.metrics["roc_auc"]) == (1.0, 1.0)


def test_names_of_classes_meet_labels_that_are_their_numbers() -> None:
    rows = [Answer(value=v, probabilities=p, classes=("bad", "good"))
            for v, p in (("bad", (0.9, 0.1)), ("good", (0.2, 0.8)))]  # fmt: skip
    found = report([0, 1], rows, [0, 0])
    assert [one.metrics["accuracy"] for one in found.targets] == [1.0, 0.5]
    assert (found.agreement[0].agree, found.agreement[0].rows) == (1, 2)


def test_single_numbers_between_0_and_1_are_probabilities_of_1() -> None:
    (found,) = report([0, 1, 1], [0.1, 0.9, 0.4]).targets
    assert found.metrics["accuracy"] == pytest.approx(2 / 3)
    assert found.metrics["roc_auc"] == 1.0


def test_numbers_agree_within_the_tolerance_and_failed_rows_are_left_out() -> None:
    answers = [10.0, 20.0, 30.0], [10.05, 20.0, "failed"]
    found = report([10, 20, 30.5], *answers, tolerance=0.01).agreement[0]
    assert (found.rows, found.agree) == (2, 2)
    assert found.mean_difference == pytest.approx(0.025)
    strict = report([10, 20, 30.5], *answers)
    assert strict.agreement[0].agree == 1
    assert [(one.row, one.spread) for one in strict.worst] == [(1, pytest.approx(0.05))]
    assert (strict.targets[1].rows, strict.targets[1].failed_rows) == (2, 1)
    assert strict.targets[1].metrics["mae"] == pytest.approx(0.025)


def test_the_rows_that_differ_most_come_with_what_was_shown_unless_it_is_long() -> None:
    found = report([], [1.5, 2.5, 3.5], [1.5, 9.5, 4.0])
    assert [(one.row, one.input) for one in found.worst] == [(2, None), (3, None)]
    show_inputs(found, {1: [7], 2: ["long" * 2000]})
    assert [one.input for one in found.worst] == [{"x": 7}, None]
    found.columns = []
    show_inputs(found, {1: [7]})
    assert found.worst[0].input == [7]


def test_a_single_version_shows_the_rows_it_is_most_wrong_on() -> None:
    found = report([1.5, 2.0, 3.0], [1.5, 9.0, 4.0], worst_max=1)
    assert [(one.row, one.label, one.answers) for one in found.worst] == [(2, 2.0, [9.0])]
    assert found.agreement == []


def test_groups_are_ranked() -> None:
    found = report([1, 0, 0, 1], [0.9, 0.1, 0.8, 0.2], groups=["q", "q", "r", "r"])
    assert found.task == "ranking"
    assert found.targets[0].metrics["mrr"] == 0.75
    assert found.targets[0].metrics["groups"] == 2


def test_anything_else_is_compared_by_value() -> None:
    found = report([], [{"a": 1, "b": [2.0]}, {"a": 1}], [{"b": [2.0000000001], "a": 1}, {"a": 2}])
    assert (found.task, found.agreement[0].agree) == ("other", 1)
    assert found.targets[0].metrics == {}
