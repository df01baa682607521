"""What a comparison shows: measures, agreement, latency, cost, and the rows that differ most.

Owns: ``ComparisonReport`` and how it comes from answers; which task it is, where nobody said.
Never: calls a model, or decides who may see the rows in it.
Read next: ``metrics`` (the arithmetic), ``answers`` (what an answer is).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal

import msgspec
from msgspec import Struct

from appliance.comparison import metrics
from appliance.comparison.answers import Answer, is_number
from appliance.comparison.dataset import Dataset
from appliance.shadow import likeness

Task = Literal["classification", "regression", "ranking", "other"]
TASKS: tuple[Task, ...] = ("classification", "regression", "ranking", "other")
_FEW_LABELS = 20
_INPUT_BYTES_MAX = 4096
_ANSWER_BYTES_MAX = 1024


class CallLatency(Struct, kw_only=True):
    """How long the calls of a target took, sandbox starts left out."""

    calls: int
    failed_calls: int
    p50_ms: float | None
    p95_ms: float | None
    row_ms: float | None


class CallCost(Struct, kw_only=True):
    """What a target used: time in the model, time sandboxes were held, and their starts."""

    compute_s: float
    sandbox_s: float
    cold_starts: int


class TargetReport(Struct, kw_only=True):
    """One version's part of a report; ``rows`` were answered, ``failed_rows`` were not."""

    model: str
    version: int
    rows: int
    failed_rows: int
    metrics: dict[str, float | None]
    latency: CallLatency
    cost: CallCost
    problems: dict[str, int]


class Agreement(Struct, kw_only=True):
    """How two targets agree on the rows both answered.

    ``share`` is of ``rows``; ``mean_difference`` the mean absolute difference, of numbers only.
    """

    a: int
    b: int
    rows: int
    agree: int
    share: float | None
    mean_difference: float | None


class Disagreement(Struct, kw_only=True):
    """A row that was answered differently, or by one target wrongly; ``row`` counts from 1.

    ``answers`` are in the order of the targets, ``input`` is what they were shown; what is long is
    left out.
    """

    row: int
    spread: float
    label: Any
    answers: list[Any]
    input: Any


class ComparisonReport(Struct, kw_only=True):
    """What a comparison shows."""

    task: Task
    is_task_inferred: bool
    rows: int
    columns: list[str]
    label: str
    targets: list[TargetReport]
    agreement: list[Agreement]
    worst: list[Disagreement]


@dataclass(slots=True, kw_only=True)
class Heard:
    """What one target said: an answer a row (``None``: it failed), and what the calls took."""

    model: str
    number: int
    answers: list[Answer | None] = field(default_factory=list)
    took_us: list[int] = field(default_factory=list)
    compute_us: int = 0
    sandbox_us: int = 0
    cold: int = 0
    failed_calls: int = 0
    problems: dict[str, int] = field(default_factory=dict)


def latency_of(took_us: Sequence[int], failed_calls: int, rows: int) -> CallLatency:
    """The latency of calls that took so many microseconds and answered so many rows."""
    p50, p95 = (metrics.percentile(took_us, share) for share in (0.5, 0.95))
    return CallLatency(
        calls=len(took_us) + failed_calls,
        failed_calls=failed_calls,
        p50_ms=p50 / 1000 if p50 is not None else None,
        p95_ms=p95 / 1000 if p95 is not None else None,
        row_ms=sum(took_us) / rows / 1000 if rows and took_us else None,
    )


def report_of(
    data: Dataset,
    heard: Sequence[Heard],
    *,
    task: Task | None,
    label: str,
    tolerance: float,
    worst_max: int,
) -> ComparisonReport:
    """The report of a data set that went through every target, but for ``input`` (``show_inputs``).

    Args:
        data: how many rows there are, with their labels and groups.
        heard: what each target said, an answer for every row.
        task: what is measured; ``None`` has it told from labels and answers.
        label: name of the label's column, for the report.
        tolerance: numbers agree when they differ by no more than this share of the larger one (or
            of 1, if both are smaller).
        worst_max: most rows to show.
    """
    chosen = task or inferred_task(data, heard)
    views = [_View(chosen, data, one) for one in heard]
    targets = [_target(chosen, data, one, view) for one, view in zip(heard, views, strict=True)]
    pairs = combinations(range(len(views)), 2)
    return ComparisonReport(
        task=chosen,
        is_task_inferred=task is None,
        rows=data.count,
        columns=list(data.columns),
        label=label,
        targets=targets,
        agreement=[_agreement(a, b, views, tolerance) for a, b in pairs],
        worst=_worst(data, views, tolerance, worst_max),
    )


def inferred_task(data: Dataset, heard: Sequence[Heard]) -> Task:
    """The task that labels, groups and answers look like.

    Groups of numbers are ranked. Texts, truth values and probabilities are classes, and so are
    whole numbers of at most 20 kinds where the answers are whole too, or lie from 0 to 1. Other
    numbers are regression. What is neither is compared by value only.
    """
    if data.groups and data.labels:
        return "ranking"
    answers = [answer for one in heard for answer in one.answers if answer is not None]
    said = [answer.value for answer in answers if not answer.probabilities]
    if len(said) < len(answers):
        return "classification"
    if not all(value is None or isinstance(value, (str, int, float)) for value in said):
        return "other"
    if data.labels:
        if not all(is_number(value) for value in data.labels):
            return "classification"
        is_fit = all(_is_whole(v) or (is_number(v) and 0 <= v <= 1) for v in said)
        return "classification" if _is_few(data.labels) and is_fit else "regression"
    if said and all(is_number(value) for value in said):
        return "classification" if _is_few(said) else "regression"
    return "classification" if said else "other"


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) or (is_number(value) and float(value).is_integer())


def _is_few(values: Sequence[Any]) -> bool:
    return all(_is_whole(value) for value in values) and len(set(values)) <= _FEW_LABELS


class _View:
    """One target's answers as the task sees them: a value a row, and probabilities where known."""

    def __init__(self, task: Task, data: Dataset, heard: Heard) -> None:
        self.task = task
        self.labels = data.labels
        self.is_answered = [answer is not None for answer in heard.answers]
        self.chances: list[tuple[float, ...]] = [
            answer.probabilities if answer else () for answer in heard.answers
        ]
        self.classes = self._classes(heard)
        self.values = [self._value(answer) for answer in heard.answers]
        if task == "classification":
            self._read_single_chances()

    def _classes(self, heard: Heard) -> list[Any]:
        """What probabilities are of: as answered, else the labels in order, else their number."""
        named = next((a.classes for a in heard.answers if a is not None and a.classes), ())
        width = next((len(row) for row in self.chances if row), 0)
        self.by_index = False
        if named:
            known = set(self.labels)
            places = set(range(len(named)))
            self.by_index = bool(known) and not known & set(named) and known <= places
            return list(range(len(named))) if self.by_index else list(named)
        distinct = sorted(set(self.labels), key=lambda value: (isinstance(value, str), value))
        return distinct if len(distinct) == width else list(range(width))

    def _value(self, answer: Answer | None) -> Any:
        if answer is None:
            return None
        if answer.value is None and answer.probabilities:
            at = max(range(len(answer.probabilities)), key=answer.probabilities.__getitem__)
            return self.classes[at] if at < len(self.classes) else at
        if self.by_index and answer.value in answer.classes:
            return answer.classes.index(answer.value)
        return answer.value

    def _read_single_chances(self) -> None:
        """Numbers between 0 and 1 where 0 and 1 are true: each is the probability of 1."""
        said = [value for value in self.values if value is not None]
        is_chance = (
            said
            and not any(self.chances)
            and bool(self.labels)
            and set(self.labels) <= {0, 1}
            and all(is_number(value) and 0 <= value <= 1 for value in said)
            and not all(_is_whole(value) for value in said)
        )
        if is_chance:
            self.classes = [0, 1]
            self.chances = [() if p is None else (1 - p, p) for p in self.values]
            self.values = [None if p is None else int(p >= 0.5) for p in self.values]

    def measures(self, groups: Sequence[Any]) -> metrics.Measures:
        """The task's measures over the rows that were answered; empty without labels."""
        rows = [at for at, is_answered in enumerate(self.is_answered) if is_answered]
        if not self.labels or self.task == "other":
            return {}
        true, said = [self.labels[at] for at in rows], [self.values[at] for at in rows]
        if self.task == "classification":
            plain = [_hashable(value) for value in said]
            return metrics.classification(true, plain) | self._sureness(rows, true)
        if not all(is_number(value) for value in (*true, *said)):
            names = ("mae", "rmse", "r2", "mape")
            return dict.fromkeys(names if self.task == "regression" else ("ndcg", "map", "mrr"))
        if self.task == "ranking":
            if not groups or any(value < 0 for value in true):
                return dict.fromkeys(("ndcg", "map", "mrr"))
            return metrics.ranking([groups[at] for at in rows], true, said)
        return metrics.regression(true, said)

    def _sureness(self, rows: Sequence[int], true: Sequence[Any]) -> metrics.Measures:
        """Log loss and ROC AUC where every answer brought probabilities of the same classes."""
        chances = [self.chances[at] for at in rows]
        place = {value: at for at, value in enumerate(self.classes)}
        width = len(self.classes)
        is_whole = width > 1 and all(len(row) == width for row in chances)
        if not is_whole or any(value not in place for value in true):
            return {"log_loss": None, "roc_auc": None}
        wanted = [place[value] for value in true]
        return {
            "log_loss": metrics.log_loss(wanted, chances),
            "roc_auc": metrics.roc_auc(wanted, chances),
        }


def _target(task: Task, data: Dataset, heard: Heard, view: _View) -> TargetReport:
    rows = sum(view.is_answered)
    return TargetReport(
        model=heard.model,
        version=heard.number,
        rows=rows,
        failed_rows=data.count - rows,
        metrics=view.measures(data.groups),
        latency=latency_of(heard.took_us, heard.failed_calls, rows),
        cost=CallCost(
            compute_s=heard.compute_us / 1e6,
            sandbox_s=heard.sandbox_us / 1e6,
            cold_starts=heard.cold,
        ),
        problems=dict(sorted(heard.problems.items())),
    )


def _agreement(a: int, b: int, views: Sequence[_View], tolerance: float) -> Agreement:
    one, other = views[a], views[b]
    both = [
        (one.values[at], other.values[at])
        for at, is_answered in enumerate(one.is_answered)
        if is_answered and other.is_answered[at]
    ]
    agree = sum(_is_same(one.task, x, y, tolerance) for x, y in both)
    is_numeric = one.task in ("regression", "ranking") and bool(both)
    differences = [abs(x - y) for x, y in both if is_numeric and is_number(x) and is_number(y)]
    return Agreement(
        a=a,
        b=b,
        rows=len(both),
        agree=agree,
        share=agree / len(both) if both else None,
        mean_difference=math.fsum(differences) / len(differences) if differences else None,
    )


def _is_same(task: Task, one: Any, other: Any, tolerance: float) -> bool:
    if task != "classification" and is_number(one) and is_number(other):
        return bool(abs(one - other) <= tolerance * max(abs(one), abs(other), 1))
    if isinstance(one, (dict, list)) and isinstance(other, (dict, list)):
        encode = msgspec.json.encode
        return likeness(encode(one), encode(other)) != "different"
    is_plain = not isinstance(one, (dict, list)) and not isinstance(other, (dict, list))
    return is_plain and bool(one == other)


def _worst(
    data: Dataset, views: Sequence[_View], tolerance: float, worst_max: int
) -> list[Disagreement]:
    """The rows targets differ on most; of a single target, the rows it is most wrong on."""
    spreads: list[tuple[float, int]] = []
    for at in range(data.count):
        said = [view for view in views if view.is_answered[at]]
        spread = _spread(said, at, tolerance) if len(views) > 1 else _error(said, at, data)
        if spread > 0:
            spreads.append((-spread, at))
    spreads.sort()
    return [_shown(data, views, at, -spread) for spread, at in spreads[:worst_max]]


def _spread(views: Sequence[_View], at: int, tolerance: float) -> float:
    """How far apart the answers to a row are: 0 where they agree.

    Of numbers the largest difference; of classes 1, and up to 1 more as the probabilities differ.
    """
    far = 0.0
    for one, other in combinations(views, 2):
        x, y = one.values[at], other.values[at]
        if _is_same(one.task, x, y, tolerance):
            continue
        if one.task != "classification" and is_number(x) and is_number(y):
            far = max(far, abs(x - y))
            continue
        p, q = one.chances[at], other.chances[at]
        more = (
            math.fsum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2 if len(p) == len(q) else 0
        )
        far = max(far, 1 + more)
    return far


def _error(views: Sequence[_View], at: int, data: Dataset) -> float:
    if not views or not data.labels:
        return 0.0
    (view,), true = views, data.labels[at]
    said = view.values[at]
    if view.task != "classification" and is_number(said) and is_number(true):
        return float(abs(said - true))
    if view.task != "classification" or said == true:
        return 0.0
    return 1 + max(view.chances[at], default=0.0)


def _shown(data: Dataset, views: Sequence[_View], at: int, spread: float) -> Disagreement:
    return Disagreement(
        row=at + 1,
        spread=spread,
        label=data.labels[at] if data.labels else None,
        answers=[_said(view, at) for view in views],
        input=None,
    )


def show_inputs(report: ComparisonReport, rows: Mapping[int, Sequence[Any]]) -> None:
    """Add to the rows that differ most what models were shown; ``rows`` counts them from 0."""
    for one in report.worst:
        row = rows.get(one.row - 1)
        if row is None or len(msgspec.json.encode(row)) > _INPUT_BYTES_MAX:
            continue
        named = zip(report.columns, row, strict=True)
        one.input = dict(named) if report.columns else list(row)


def _said(view: _View, at: int) -> Any:
    value = view.values[at]
    if view.chances[at]:
        return {"value": value, "probabilities": list(view.chances[at])}
    is_short = len(msgspec.json.encode(value)) <= _ANSWER_BYTES_MAX
    return value if is_short else None


def _hashable(value: Any) -> Any:
    return value if isinstance(value, (str, int, float)) else msgspec.json.encode(value)
