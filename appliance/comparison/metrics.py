"""The measures of answers against what was true: classification, regression, ranking.

Owns: each measure's arithmetic. ``None`` stands for a measure the data does not define.
Never: does I/O, or knows where answers come from.
Read next: ``report`` (which measures are taken when).

Every measure equals scikit-learn's on the same data to 1e-9 (``tests/property/test_metrics.py``):
macro averages are over the labels that are true or answered, with 0 where nothing was; ties in a
ranking are averaged over their orders.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from itertools import groupby

_EPSILON = 2.0**-52
Measures = dict[str, float | None]


def classification(true: Sequence[Hashable], said: Sequence[Hashable]) -> Measures:
    """Accuracy, balanced accuracy, and macro precision, recall and F1.

    Args:
        true: a label per row.
        said: the answered label per row, as many.
    """
    if not true:
        names = ("accuracy", "balanced_accuracy", "precision_macro", "recall_macro", "f1_macro")
        return dict.fromkeys(names)
    wanted, given = Counter(true), Counter(said)
    hits = Counter(label for label, other in zip(true, said, strict=True) if label == other)
    labels = wanted.keys() | given.keys()
    precision = {x: hits[x] / given[x] if given[x] else 0.0 for x in labels}
    recall = {x: hits[x] / wanted[x] if wanted[x] else 0.0 for x in labels}
    f1 = {x: 2 * hits[x] / (wanted[x] + given[x]) for x in labels}
    return {
        "accuracy": sum(hits.values()) / len(true),
        "balanced_accuracy": math.fsum(recall[x] for x in wanted) / len(wanted),
        "precision_macro": math.fsum(precision.values()) / len(labels),
        "recall_macro": math.fsum(recall.values()) / len(labels),
        "f1_macro": math.fsum(f1.values()) / len(labels),
    }


def log_loss(true: Sequence[int], probabilities: Sequence[Sequence[float]]) -> float | None:
    """Mean negative logarithm of the probability of what was true.

    Args:
        true: the index of each row's class.
        probabilities: of each class, per row; clipped to 2^-52 from 0 and 1.
    """
    if not true:
        return None
    terms = (
        math.log(min(max(row[at], _EPSILON), 1 - _EPSILON))
        for at, row in zip(true, probabilities, strict=True)
    )
    return -math.fsum(terms) / len(true)


def roc_auc(true: Sequence[int], probabilities: Sequence[Sequence[float]]) -> float | None:
    """The area under the ROC curve; of more than two classes the mean of each against the rest.

    ``None`` where a class never was true, or there is one class only. Arguments as ``log_loss``.
    """
    classes = len(probabilities[0]) if probabilities else 0
    if classes < 2 or set(true) != set(range(classes)):
        return None
    wanted = [1] if classes == 2 else range(classes)
    areas = [
        _area([at == one for at in true], [row[one] for row in probabilities]) for one in wanted
    ]
    return math.fsum(areas) / len(areas)


def _area(is_true: Sequence[bool], scores: Sequence[float]) -> float:
    """How often what is true scores above what is not, ties counting half (Mann and Whitney)."""
    order = sorted(range(len(scores)), key=scores.__getitem__)
    above, negatives, positives = 0.0, 0, 0
    for _score, tied in groupby(order, key=scores.__getitem__):
        found = [is_true[at] for at in tied]
        hits = sum(found)
        above += hits * (negatives + (len(found) - hits) / 2)
        negatives += len(found) - hits
        positives += hits
    return above / (positives * negatives)


def regression(true: Sequence[float], said: Sequence[float]) -> Measures:
    """Mean absolute error, root of the mean square, R2, mean absolute error relative to the truth.

    R2 of a truth that never changes is 1 where it was met exactly, else 0. MAPE is a share (0.1:
    ten percent), and huge where a truth is 0.
    """
    count = len(true)
    if not count:
        return dict.fromkeys(("mae", "rmse", "r2", "mape"))
    errors = [a - b for a, b in zip(true, said, strict=True)]
    squares = math.fsum(e * e for e in errors)
    middle = math.fsum(true) / count
    spread = math.fsum((value - middle) ** 2 for value in true)
    r2 = None
    if count > 1:
        r2 = 1 - squares / spread if spread else (0.0 if squares else 1.0)
    shares = (abs(e) / max(abs(value), _EPSILON) for e, value in zip(errors, true, strict=True))
    return {
        "mae": math.fsum(abs(e) for e in errors) / count,
        "rmse": math.sqrt(squares / count),
        "r2": r2,
        "mape": math.fsum(shares) / count,
    }


def ranking(
    groups: Sequence[Hashable], relevance: Sequence[float], scores: Sequence[float]
) -> Measures:
    """NDCG, mean average precision and mean reciprocal rank over groups, and how many counted.

    Args:
        groups: what each row belongs to: the query, the user.
        relevance: how good a row is, 0 for not at all, never negative.
        scores: what the model answered; the highest of a group comes first. Of rows with equal
            scores the first relevant one counts as the last of them for MRR.

    Groups without a relevant row say nothing and are left out.
    """
    found: dict[Hashable, list[tuple[float, float]]] = defaultdict(list)
    for group, gain, score in zip(groups, relevance, scores, strict=True):
        found[group].append((score, gain))
    kept = [rows for rows in found.values() if any(gain > 0 for _, gain in rows)]
    if not kept:
        return {"ndcg": None, "map": None, "mrr": None, "groups": 0}
    count = len(kept)
    return {
        "ndcg": math.fsum(_ndcg(rows) for rows in kept) / count,
        "map": math.fsum(_average_precision(rows) for rows in kept) / count,
        "mrr": math.fsum(_reciprocal_rank(rows) for rows in kept) / count,
        "groups": count,
    }


def _ties(rows: list[tuple[float, float]]) -> list[list[float]]:
    """The gains of a group from the highest score down, those of equal scores together."""
    ordered = sorted(rows, key=lambda row: -row[0])
    return [[gain for _, gain in tied] for _, tied in groupby(ordered, key=lambda row: row[0])]


def _ndcg(rows: list[tuple[float, float]]) -> float:
    best = sorted((gain for _, gain in rows), reverse=True)
    ideal = math.fsum(gain / math.log2(at + 2) for at, gain in enumerate(best))
    got, at = 0.0, 0
    for gains in _ties(rows):
        discounts = math.fsum(1 / math.log2(at + offset + 2) for offset in range(len(gains)))
        got += math.fsum(gains) / len(gains) * discounts
        at += len(gains)
    return got / ideal


def _average_precision(rows: list[tuple[float, float]]) -> float:
    relevant = sum(gain > 0 for _, gain in rows)
    total, hits, seen = 0.0, 0, 0
    for gains in _ties(rows):
        new = sum(gain > 0 for gain in gains)
        hits, seen = hits + new, seen + len(gains)
        total += new / relevant * hits / seen
    return total


def _reciprocal_rank(rows: list[tuple[float, float]]) -> float:
    seen = 0
    for gains in _ties(rows):
        seen += len(gains)
        if any(gain > 0 for gain in gains):
            break
    return 1 / seen


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least this share of the values do not exceed (nearest rank)."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
