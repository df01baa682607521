"""Sketches: bins of a baseline, sums of minutes, and the statistics of binned data."""

from __future__ import annotations

import math
import random
import statistics as plain
from bisect import bisect_left

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipys import ks_exact

from appliance.drift import scores, sketch, statistics
from appliance.drift.bodies import Table
from appliance.drift.exact import compared
from appliance.drift.sketch import Sketch, bytes_of, column_of, plan_of, sketch_from_bytes
from appliance.records import Thresholds

NUMBERS = st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=300)
CELLS = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.floats(), st.text(max_size=3),
    st.sampled_from(["1", "2.5", "1e3", "NaN", "", "red"]), st.just([1]), st.just({"a": 1}),
    st.just(10**400),
)  # fmt: skip


def counted(plan, columns, rows):
    found = Sketch.of(plan)
    found.count_inputs(plan, columns, rows)
    return found


@settings(deadline=None)
@given(NUMBERS)
def test_bins_are_of_the_baselines_own_values_and_hold_all_of_them(values):
    column = column_of("a", values)
    assert list(column.edges) == sorted(set(column.edges))
    assert column.edges[0] < min(values)
    assert column.edges[-1] == max(values)
    assert set(column.edges[1:]) <= set(values)
    assert len(column.edges) <= sketch.FINE + 1
    plan, found = plan_of({"a": values}, {}, len(values))
    (tally,) = found.inputs
    assert tally.seen == len(values)
    assert tally.counts[0] == tally.counts[-1] == 0
    assert min(tally.counts[1:-1]) > 0
    coarse = plan.inputs[0].coarse(tally.counts)
    assert (sum(coarse), len(coarse) <= sketch.COARSE) == (len(values), True)
    assert min(coarse) > 0


def test_ten_thousand_values_fall_into_equal_shares():
    rng = random.Random(1)
    plan, found = plan_of({"a": [rng.gauss(0, 1) for _ in range(10_000)]}, {}, 10_000)
    assert found.inputs[0].counts == [0, *[200] * 50, 0]
    assert plan.inputs[0].coarse(found.inputs[0].counts) == [1000] * 10


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(CELLS, max_size=30), min_size=1, max_size=6), st.lists(CELLS, max_size=60))
def test_a_sum_of_minutes_is_the_whole_and_can_be_undone(minutes, baseline):
    plan, _base = plan_of({"a": baseline, "b": baseline[::-1]}, {"o": baseline}, len(baseline))
    whole = Sketch.of(plan)
    parts = []
    for values in minutes:
        part = Sketch.of(plan)
        for one in (part, whole):
            one.calls += 1
            one.count_inputs(plan, {"a": values}, len(values))
            one.count_outputs(plan, {"o": values}, len(values))
        parts.append(part)
    total = Sketch.of(plan)
    for part in parts:
        total.add(sketch_from_bytes(bytes_of(part)))
    assert same(total, whole)
    for part in parts[1:]:
        total.subtract(part)
    assert counts_of(total) == counts_of(parts[0])
    summed = sketch_from_bytes(sketch.sum_of_bytes([bytes_of(part) for part in parts]))
    assert same(summed, whole)


def counts_of(one: Sketch):
    figures = (one.rows, one.calls, one.answers)
    return figures, [(tally.counts, tally.missing) for tally in (*one.inputs, *one.outputs)]


def same(one: Sketch, other: Sketch) -> bool:
    def figures(it):
        return (it.rows, it.calls, it.answers, it.unread, it.skipped)

    def near(a, b):
        return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-6 * max(1.0, abs(a), abs(b)))

    return figures(one) == figures(other) and all(
        (a.counts, a.missing, a.count) == (b.counts, b.missing, b.count) and near(a.mean, b.mean)
        for a, b in zip((*one.inputs, *one.outputs), (*other.inputs, *other.outputs), strict=True)
    )


def test_moments_are_those_of_the_values():
    rng = random.Random(3)
    values = [rng.gauss(1e6, 3) for _ in range(1000)]
    plan, found = plan_of({"a": values}, {}, 1000)
    total = Sketch.of(plan)
    for at in range(0, 1000, 10):
        total.add(counted(plan, {"a": values[at : at + 10]}, 10))
    for tally in (found.inputs[0], total.inputs[0]):
        assert tally.mean == pytest.approx(plain.fmean(values), rel=1e-12)
        assert tally.variance == pytest.approx(plain.variance(values), rel=1e-9)


@settings(deadline=None, max_examples=100)
@given(NUMBERS, NUMBERS)
def test_statistics_of_sketches_are_the_exact_ones_of_binned_data(before, now):
    plan, base = plan_of({"a": before}, {}, len(before))
    window = counted(plan, {"a": now}, len(now))
    (column,) = plan.inputs
    found = {s.statistic: s.value for s in scores.scores(plan, base, window, Thresholds())}
    edges = column.edges

    def binned(values):
        return [bisect_left(edges, value) for value in values]

    wanted, _p_value = ks_exact(binned(before), binned(now))
    assert found["ks"] == pytest.approx(wanted, abs=1e-9)
    groups = [np.bincount([column.groups[b] for b in binned(values)],
                          minlength=column.groups[-1] + 1).tolist()
              for values in (before, now)]  # fmt: skip
    assert found["psi"] == statistics.psi(*groups)
    assert found["js"] == statistics.jensen_shannon(*groups)
    outside = sum(not min(before) <= value <= max(before) for value in now)
    assert found["outside"] == pytest.approx(outside / len(now))


def test_fifty_bins_are_enough_to_come_near_the_exact_ks_statistic():
    rng = random.Random(4)
    before = [rng.lognormvariate(0, 1) for _ in range(20_000)]
    for shift in (0.0, 0.05, 0.3):
        now = [rng.lognormvariate(shift, 1) for _ in range(5_000)]
        plan, base = plan_of({"a": before}, {}, len(before))
        window = counted(plan, {"a": now}, len(now))
        found = statistics.ks_distance(base.inputs[0].counts, window.inputs[0].counts)
        exact = statistics.ks(before, now).statistic
        assert exact - 1 / sketch.FINE <= found <= exact + 1e-12


@pytest.mark.parametrize(
    ("values", "kind", "bins"),
    [
        (["1", "2", " 3 "], "numeric", 5),
        ([1, 2.5, None, float("nan"), ""], "numeric", 4),
        ([True, False], "categorical", 3),
        (["a", "b", "a", None], "categorical", 3),
        (["1", "x"], "categorical", 3),
        ([5.0] * 9, "numeric", 3),
        ([f"id-{n}" for n in range(500)], "categorical", sketch.CATEGORIES_MAX + 1),
        ([10**400, 1], "numeric", 4),
    ],
)
def test_a_columns_kind_is_what_all_of_its_values_are(values, kind, bins):
    column = column_of("a", values)
    assert (column.kind, column.bins) == (kind, bins)


def test_a_column_without_a_value_is_no_column():
    assert column_of("a", [None, "", float("nan"), "NA"]) is None
    assert plan_of({"a": [None], "b": [1]}, {}, 1)[0].inputs[0].name == "b"


def test_categories_read_the_same_from_csv_and_json():
    plan, base = plan_of({"a": ["1", "2", "x", "true"]}, {}, 4)
    window = counted(plan, {"a": [1, 2.0, "x", True]}, 4)
    assert window.inputs[0].counts == base.inputs[0].counts


def test_a_constant_that_changes_is_outside_though_its_only_bin_says_nothing():
    plan, base = plan_of({"a": [7] * 300}, {}, 300)
    window = counted(plan, {"a": [8] * 300}, 300)
    found = {s.statistic: s for s in scores.scores(plan, base, window, Thresholds())}
    assert (found["psi"].value, found["outside"].value) == (0.0, 1.0)
    assert (found["psi"].verdict, found["outside"].verdict) == ("ok", "breach")


def test_verdicts():
    rng = random.Random(1)
    before = [rng.gauss(0, 1) for _ in range(2000)]
    plan, base = plan_of({"a": before}, {}, 2000)

    def verdicts(count, shift, **limits):
        window = counted(plan, {"a": [rng.gauss(shift, 1) for _ in range(count)]}, count)
        found = scores.scores(plan, base, window, Thresholds(**limits))
        return {s.statistic: s.verdict for s in found}

    same_as = {"psi": "ok", "js": "unjudged", "ks": "unjudged", "missing": "ok", "outside": "ok"}
    assert verdicts(1000, 0) == same_as
    assert verdicts(1000, 1)["psi"] == "breach"
    assert verdicts(100, 1)["psi"] == "few"
    assert verdicts(1000, 1, features={"a": {"psi": 0.0, "ks": 0.3}}) == same_as | {
        "psi": "unjudged", "ks": "breach",
    }  # fmt: skip
    assert verdicts(1000, 1, limits={"psi": 9.0}, rows_min=20)["psi"] == "ok"
    # With twenty records a PSI over the threshold is nothing that chance does not make.
    assert verdicts(40, 0, limits={"psi": 0.02}, rows_min=20)["psi"] == "ok"


def test_bytes_that_are_no_sketch_are_said_to_be_none():
    for data in (b"", b"x" * 40, bytes_of(Sketch.of(plan_of({"a": [1]}, {}, 1)[0]))[:-3]):
        with pytest.raises(ValueError, match="not a sketch"):
            sketch_from_bytes(data)


def test_two_tables_are_compared_value_by_value():
    rng = random.Random(6)
    one = {"x": [rng.gauss(0, 1) for _ in range(400)], "c": [rng.choice("ab") for _ in range(400)]}
    other = {"x": [rng.gauss(1, 1) for _ in range(300)], "c": ["a"] * 300, "new": [1] * 300}
    found = compared(Table(columns=one, rows=400), Table(columns=other, rows=300))
    wanted = stats.ks_2samp(one["x"], other["x"], method="exact")
    assert [row["feature"] for row in found] == ["x", "c"]
    assert found[0]["ks"] == pytest.approx(wanted.statistic, abs=1e-9)
    assert found[0]["p_value"] == pytest.approx(wanted.pvalue, rel=1e-9)
    assert (found[1]["ks"], found[1]["psi"] > 1) == (None, True)
