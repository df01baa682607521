"""Sketches: how many values of each column fell into each bin, and nothing of the values.

Owns: bins derived from a baseline, counting into them, merging, and the bytes of both.
Never: keeps a value or the order of values. Category names and the edges of bins are kept: they
are the baseline's, so a plan is as confidential as the data it was made from.
Read next: ``bodies`` (where values come from), ``scores`` (what is done with counts).

A numeric column has up to ``FINE`` bins, each holding the values above its lower edge and up to its
upper one, plus one bin below and one above all the baseline's values. Edges are values of the
baseline, at equal shares of it; a column of few values has a bin for each of them. For PSI and
Jensen-Shannon those bins are taken together to about ``COARSE``, as is usual, the two outermost
with their neighbours: a few new extremes are no shift. A categorical column has a bin for each of
its most frequent categories and one for all others.

Sketches of the same plan can be added and subtracted, so that any period is a sum of minutes.
"""

from __future__ import annotations

import math
import re
import zlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

FINE = 50
COARSE = 10
CATEGORIES_MAX = 100
COLUMNS_MAX = 500
OUTPUTS_MAX = 64
TEXT_MAX = 200
_NUMBER = re.compile(r"[+-]?(?:\d{1,400}\.?\d{0,400}|\.\d{1,400})(?:[eE][+-]?\d{1,4})?")
_MISSING_TEXTS = frozenset({"", "NA", "NaN", "nan", "null", "None", "N/A", "NULL"})

Kind = Literal["numeric", "categorical"]
Values = Sequence[Any]
Columns = Mapping[str, Values]


class Column(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a column is binned.

    ``edges`` are ascending, the first just below the baseline's least value, the last its largest.
    ``groups`` says for each numeric bin which of the coarse bins it belongs to. ``categories`` are
    the texts that have a bin of their own; all others share the last.
    """

    name: str
    kind: Kind
    edges: tuple[float, ...] = ()
    groups: tuple[int, ...] = ()
    categories: tuple[str, ...] = ()

    @property
    def bins(self) -> int:
        """How many bins it has."""
        return len(self.edges if self.kind == "numeric" else self.categories) + 1

    def coarse(self, counts: Sequence[int]) -> list[int]:
        """Counts of the coarse bins; of a categorical column every bin is one."""
        if self.kind == "categorical":
            return list(counts)
        found = [0] * (self.groups[-1] + 1)
        for group, count in zip(self.groups, counts, strict=True):
            found[group] += count
        return found


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is counted of a version: the columns of its inputs, and of its outputs."""

    inputs: tuple[Column, ...]
    outputs: tuple[Column, ...] = ()


class Tally(msgspec.Struct, kw_only=True):
    """What was counted of one column.

    ``missing`` values are in no bin. ``count``, ``mean`` and ``spread`` (the sum of squared
    distances from the mean) are of the numbers; a categorical column has none.
    """

    counts: list[int]
    missing: int = 0
    count: int = 0
    mean: float = 0.0
    spread: float = 0.0

    @property
    def seen(self) -> int:
        """Values that were there."""
        return sum(self.counts)

    @property
    def variance(self) -> float | None:
        """The sample variance of the numbers; ``None`` of fewer than two."""
        return max(0.0, self.spread) / (self.count - 1) if self.count > 1 else None

    def add(self, other: Tally) -> None:
        """Count what another counted, too."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.missing += other.missing
        self._add_moments(other.count, other.mean, other.spread)

    def subtract(self, other: Tally) -> None:
        """Undo ``add`` of the counts; moments cannot be taken back exactly, and are gone."""
        self.counts = [a - b for a, b in zip(self.counts, other.counts, strict=True)]
        self.missing -= other.missing
        self.count, self.mean, self.spread = 0, 0.0, 0.0

    def _add_moments(self, count: int, mean: float, spread: float) -> None:
        if not count:
            return
        total = self.count + count
        apart = mean - self.mean
        self.spread += spread + apart * apart * self.count * count / total
        self.mean += apart * count / total
        self.count = total

    def count_values(self, column: Column, values: Values) -> None:
        """Count values of a column."""
        counts = self.counts
        if column.kind == "categorical":
            places = {name: at for at, name in enumerate(column.categories)}
            other = len(column.categories)
            for value in values:
                text = text_of(value)
                if text is None:
                    self.missing += 1
                else:
                    counts[places.get(text, other)] += 1
            return
        numbers: list[float] = []
        edges = column.edges
        for value in values:
            number = value if type(value) is float and value == value else number_of(value)
            if number is None:
                self.missing += 1
            else:
                counts[bisect_left(edges, number)] += 1
                numbers.append(number)
        if not all(map(math.isfinite, numbers)):
            numbers = [number for number in numbers if math.isfinite(number)]
        if numbers:
            mean, spread = moments(numbers)
            if math.isfinite(mean + spread):
                self._add_moments(len(numbers), mean, spread)


@dataclass(slots=True)
class Sketch:
    """What was counted in one period.

    ``rows`` are records that were looked at, ``calls`` the calls they came in. ``unread`` are calls
    whose body was of no form that is understood, ``skipped`` records beyond what is looked at.
    """

    inputs: list[Tally]
    outputs: list[Tally]
    rows: int = 0
    calls: int = 0
    unread: int = 0
    skipped: int = 0
    answers: int = 0

    @classmethod
    def of(cls, plan: Plan) -> Sketch:
        """An empty one."""
        return cls(
            inputs=[Tally(counts=[0] * column.bins) for column in plan.inputs],
            outputs=[Tally(counts=[0] * column.bins) for column in plan.outputs],
        )

    def add(self, other: Sketch) -> None:
        """Count what another sketch of the same plan counted, too."""
        self._combine(other, 1)

    def subtract(self, other: Sketch) -> None:
        """Undo ``add``; what is left has counts and no moments."""
        self._combine(other, -1)

    def _combine(self, other: Sketch, sign: int) -> None:
        for mine, theirs in zip(
            (*self.inputs, *self.outputs), (*other.inputs, *other.outputs), strict=True
        ):
            if sign > 0:
                mine.add(theirs)
            else:
                mine.subtract(theirs)
        self.rows += sign * other.rows
        self.calls += sign * other.calls
        self.unread += sign * other.unread
        self.skipped += sign * other.skipped
        self.answers += sign * other.answers

    def count_inputs(self, plan: Plan, columns: Columns, rows: int) -> None:
        """Count ``rows`` records; a column that is not there is missing in all of them."""
        self.rows += rows
        _count(plan.inputs, self.inputs, columns, rows)

    def count_outputs(self, plan: Plan, columns: Columns, rows: int) -> None:
        """Count ``rows`` answers; a column that is not there is missing in all of them."""
        self.answers += rows
        _count(plan.outputs, self.outputs, columns, rows)


def _count(plan: Sequence[Column], tallies: list[Tally], columns: Columns, rows: int) -> None:
    for column, tally in zip(plan, tallies, strict=True):
        values = columns.get(column.name)
        if values is None:
            tally.missing += rows
        else:
            tally.count_values(column, values)


def column_of(name: str, values: Values) -> Column | None:
    """How to bin a column, from the baseline's values; ``None`` where all are missing.

    It is numeric if every value that is there is a number, or a text that reads as one.
    """
    numbers: list[float] = []
    texts: Counter[str] = Counter()
    for value in values:
        if type(value) is float and value == value:
            numbers.append(value)
            continue
        number = None if isinstance(value, bool) else number_of(value)
        if number is not None:
            numbers.append(number)
        elif (text := text_of(value)) is not None:
            texts[text] += 1
    if not texts:
        return _numeric(name, numbers) if numbers else None
    for number in numbers:
        texts[str(text_of(number))] += 1
    most = sorted(texts.items(), key=lambda item: (-item[1], item[0]))[:CATEGORIES_MAX]
    return Column(name=name, kind="categorical", categories=tuple(name for name, _ in most))


def _numeric(name: str, numbers: list[float]) -> Column:
    ordered = sorted(numbers)
    distinct = sorted(set(ordered))
    uppers = distinct if len(distinct) <= FINE else _quantiles(ordered, FINE)
    tops = distinct if len(distinct) <= COARSE else _quantiles(ordered, COARSE)
    edges = (math.nextafter(ordered[0], -math.inf), *uppers)
    inner = [bisect_left(tops, upper) for upper in uppers]
    seen = {group: at for at, group in enumerate(dict.fromkeys(inner))}
    groups = [seen[group] for group in inner]
    return Column(name=name, kind="numeric", edges=edges, groups=(groups[0], *groups, groups[-1]))


def _quantiles(ordered: list[float], parts: int) -> list[float]:
    """The values at equal shares of a sorted list, each once; the last is the largest."""
    n = len(ordered)
    return sorted({ordered[-(-k * n // parts) - 1] for k in range(1, parts + 1)})


def number_of(value: Any) -> float | None:
    """A value as a number; ``None`` where it is missing or none, ``nan`` included."""
    if isinstance(value, float):
        return value if value == value else None
    if isinstance(value, (int, bool)):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    if (
        isinstance(value, str)
        and len(value) <= TEXT_MAX
        and _NUMBER.fullmatch(text := value.strip())
    ):
        return float(text)
    return None


def text_of(value: Any) -> str | None:
    """A value as a category; ``None`` where it is missing. Whole numbers read the same as texts."""
    if isinstance(value, str):
        return None if value in _MISSING_TEXTS else value[:TEXT_MAX]
    if value is None or value != value:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value)) if abs(value) < 1e15 else repr(value)
    return str(value)[:TEXT_MAX] if isinstance(value, (int, float)) else "(structured)"


def moments(numbers: Sequence[float]) -> tuple[float, float]:
    """The mean of finite numbers, and the sum of their squared distances from it."""
    if len(numbers) == 1:
        return numbers[0], 0.0
    try:
        mean = math.fsum(numbers) / len(numbers)
        return mean, math.fsum([(number - mean) ** 2 for number in numbers])
    except OverflowError:
        return math.inf, math.inf


class _Bytes(msgspec.Struct, array_like=True):
    """A sketch as it is written: counts of each column, then the figures of the whole."""

    inputs: list[tuple[list[int], int, int, float, float]]
    outputs: list[tuple[list[int], int, int, float, float]]
    figures: tuple[int, int, int, int, int]


def bytes_of(sketch: Sketch) -> bytes:
    """A sketch as bytes; most bins of a minute are empty, so that they pack well."""

    def packed(tallies: list[Tally]) -> list[tuple[list[int], int, int, float, float]]:
        return [(t.counts, t.missing, t.count, t.mean, t.spread) for t in tallies]

    figures = (sketch.rows, sketch.calls, sketch.unread, sketch.skipped, sketch.answers)
    form = _Bytes(packed(sketch.inputs), packed(sketch.outputs), figures)
    return zlib.compress(msgspec.msgpack.encode(form), 1)


def sketch_from_bytes(data: bytes) -> Sketch:
    """What ``bytes_of`` wrote.

    Raises:
        ValueError: it did not write this.
    """

    def unpacked(rows: list[tuple[list[int], int, int, float, float]]) -> list[Tally]:
        return [
            Tally(counts=counts, missing=missing, count=count, mean=mean, spread=spread)
            for counts, missing, count, mean, spread in rows
        ]

    try:
        form = msgspec.msgpack.decode(zlib.decompress(data), type=_Bytes)
    except (zlib.error, msgspec.MsgspecError) as error:
        raise ValueError("not a sketch") from error
    rows, calls, unread, skipped, answers = form.figures
    return Sketch(
        inputs=unpacked(form.inputs),
        outputs=unpacked(form.outputs),
        rows=rows,
        calls=calls,
        unread=unread,
        skipped=skipped,
        answers=answers,
    )


def sum_of_bytes(parts: Sequence[bytes]) -> bytes:
    """The bytes of the sum of sketches, at least one, all of the same plan."""
    total = sketch_from_bytes(parts[0])
    for part in parts[1:]:
        total.add(sketch_from_bytes(part))
    return bytes_of(total)


def plan_of(inputs: Columns, outputs: Columns, rows: int) -> tuple[Plan, Sketch]:
    """The plan of a baseline's columns, and what was counted of them in its bins.

    Columns whose values are all missing are left out.
    """
    plan = Plan(inputs=_binned(inputs, COLUMNS_MAX), outputs=_binned(outputs, OUTPUTS_MAX))
    sketch = Sketch.of(plan)
    sketch.count_inputs(plan, inputs, rows)
    if plan.outputs:
        sketch.count_outputs(plan, outputs, rows)
    return plan, sketch


def _binned(columns: Columns, most: int) -> tuple[Column, ...]:
    found = (column_of(name, values) for name, values in list(columns.items())[:most])
    return tuple(column for column in found if column is not None)
