"""Two tables compared value by value: what sketches approximate, where the values are at hand.

Owns: ``compared``.
Never: does I/O.
Read next: ``statistics`` (the arithmetic), ``sketch`` (bins of the first table).
"""

from __future__ import annotations

from typing import Any

from appliance.drift import statistics
from appliance.drift.bodies import Table
from appliance.drift.scores import STATISTICS
from appliance.drift.sketch import Tally, column_of, number_of


def compared(one: Table, other: Table) -> list[dict[str, Any]]:
    """Every statistic of each column both have; bins are made from the first.

    ``ks`` and its ``p_value`` are of the values themselves, and ``None`` of categories.
    """
    found = []
    for name, values in one.columns.items():
        column = column_of(name, values)
        if column is None or name not in other.columns:
            continue
        base, seen = Tally(counts=[0] * column.bins), Tally(counts=[0] * column.bins)
        base.count_values(column, values)
        seen.count_values(column, other.columns[name])
        row: dict[str, Any] = {"feature": name, "kind": column.kind}
        for statistic in STATISTICS.values():
            if not statistic.is_numeric_only:
                row[statistic.name] = statistic.measure(column, base, seen)[0]
        row |= {"ks": None, "p_value": None, "exact": None}
        if column.kind == "numeric":
            sides = (values, other.columns[name])
            tested = statistics.ks(
                *([x for v in side if (x := number_of(v)) is not None] for side in sides)
            )
            row |= {"ks": tested.statistic, "p_value": tested.p_value, "exact": tested.is_exact}
        found.append(row)
    return found
