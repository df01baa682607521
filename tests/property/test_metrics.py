"""The measures of comparisons equal scikit-learn's, whatever the data."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as theirs
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from appliance.comparison import metrics

CLOSE: dict[str, Any] = {"rel": 1e-9, "abs": 1e-9}
FEW = settings(max_examples=60, deadline=None)
FLOATS = st.floats(-1e6, 1e6, allow_nan=False)
Chances = tuple[list[int], list[list[float]]]
LABELS = st.sampled_from(["a", "b", "c", "d"])


@FEW
@given(st.lists(st.tuples(LABELS, LABELS), min_size=1, max_size=60))
def test_classification_equals_scikit_learns(rows: list[tuple[str, str]]) -> None:
    true, said = zip(*rows, strict=True)
    mine = metrics.classification(true, said)
    macro: dict[str, Any] = {"average": "macro", "zero_division": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about classes that are answered but never true
        found = {
            "accuracy": theirs.accuracy_score(true, said),
            "balanced_accuracy": theirs.balanced_accuracy_score(true, said),
            "precision_macro": theirs.precision_score(true, said, **macro),
            "recall_macro": theirs.recall_score(true, said, **macro),
            "f1_macro": theirs.f1_score(true, said, **macro),
        }
    assert mine == pytest.approx(found, **CLOSE)


@st.composite
def chances(draw: Any) -> Chances:
    classes = draw(st.integers(2, 4))
    weight = st.one_of(st.just(0.0), st.floats(1e-12, 1.0), st.sampled_from([0.25, 0.5]))
    rows = draw(
        st.lists(
            st.tuples(st.integers(0, classes - 1), st.tuples(*[weight] * classes)),
            min_size=1, max_size=40,
        )
    )  # fmt: skip
    kept = [(at, row) for at, row in rows if sum(row) > 0]
    assume(kept)
    return [at for at, _ in kept], [[w / math.fsum(row) for w in row] for _, row in kept]


@FEW
@given(chances())
def test_log_loss_and_roc_auc_equal_scikit_learns(
    found: Chances,
) -> None:
    true, rows = found
    classes = list(range(len(rows[0])))
    loss = theirs.log_loss(true, np.array(rows), labels=classes)
    assert metrics.log_loss(true, rows) == pytest.approx(loss, **CLOSE)
    if set(true) != set(classes):
        assert metrics.roc_auc(true, rows) is None
        return
    said = np.array(rows)[:, 1] if len(classes) == 2 else np.array(rows)
    area = theirs.roc_auc_score(true, said, multi_class="ovr", labels=classes)
    assert metrics.roc_auc(true, rows) == pytest.approx(area, **CLOSE)


@FEW
@given(st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=60))
def test_regression_equals_scikit_learns(rows: list[tuple[float, float]]) -> None:
    true, said = (list(each) for each in zip(*rows, strict=True))
    mine = metrics.regression(true, said)
    mean = math.fsum(true) / len(true)
    spread = math.fsum((v - mean) ** 2 for v in true)
    found = {
        "mae": theirs.mean_absolute_error(true, said),
        "rmse": theirs.root_mean_squared_error(true, said),
        "mape": theirs.mean_absolute_percentage_error(true, said),
    }
    assert {name: mine[name] for name in found} == pytest.approx(found, **CLOSE)
    if len(true) == 1:
        assert mine["r2"] is None
    elif spread == 0 or spread > 1e-6:  # between them rounding decides, theirs and ours
        assert mine["r2"] == pytest.approx(theirs.r2_score(true, said), **CLOSE)


@st.composite
def ranked(draw: Any) -> list[list[tuple[float, float]]]:
    gain = st.integers(0, 4).map(float)
    score = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), FLOATS)
    group = st.lists(st.tuples(gain, score), min_size=2, max_size=12)
    return draw(st.lists(group, min_size=1, max_size=6))


@FEW
@given(ranked())
def test_ranking_equals_scikit_learns_averaged_over_groups_with_something_to_find(
    groups: list[list[tuple[float, float]]],
) -> None:
    flat = [(at, gain, score) for at, group in enumerate(groups) for gain, score in group]
    mine = metrics.ranking(*zip(*flat, strict=True))
    kept = [group for group in groups if any(gain for gain, _ in group)]
    assert mine["groups"] == len(kept)
    if not kept:
        assert (mine["ndcg"], mine["map"], mine["mrr"]) == (None, None, None)
        return
    gains = [np.array([g for g, _ in group]) for group in kept]
    scores = [np.array([s for _, s in group]) for group in kept]
    pairs = list(zip(gains, scores, strict=True))
    ndcg = np.mean([theirs.ndcg_score([g], [s]) for g, s in pairs])
    precision = np.mean([theirs.average_precision_score(g > 0, s) for g, s in pairs])
    assert mine["ndcg"] == pytest.approx(ndcg, **CLOSE)
    assert mine["map"] == pytest.approx(precision, **CLOSE)


@FEW
@given(st.lists(st.tuples(st.integers(0, 5), st.lists(FLOATS, min_size=6, max_size=6)), min_size=1))
def test_reciprocal_rank_equals_scikit_learns_where_one_row_is_relevant(
    groups: list[tuple[int, list[float]]],
) -> None:
    flat = [(at, float(place == best), score) for at, (best, scores) in enumerate(groups)
            for place, score in enumerate(scores)]  # fmt: skip
    mine = metrics.ranking(*zip(*flat, strict=True))
    truth = np.eye(6)[[best for best, _ in groups]]
    found = theirs.label_ranking_average_precision_score(truth, [s for _, s in groups])
    assert mine["mrr"] == pytest.approx(found, **CLOSE)


def test_a_percentile_is_one_of_the_values() -> None:
    assert metrics.percentile([], 0.5) is None
    assert metrics.percentile([7], 0.95) == 7
    values = list(range(1, 101))
    assert (metrics.percentile(values, 0.5), metrics.percentile(values, 0.95)) == (50, 95)


def test_nothing_to_measure_is_told_and_not_invented() -> None:
    assert set(metrics.classification([], []).values()) == {None}
    assert set(metrics.regression([], []).values()) == {None}
    assert metrics.log_loss([], []) is None
    assert metrics.roc_auc([], []) is None
