"""A baseline learned from the next calls of a version, where there is no data to make one from.

Owns: ``Learner``: the values of so many records, in memory until they are enough.
Never: writes a value anywhere: a restart begins anew.
Read next: ``appliance.watch`` (feeds it), ``appliance.drift.sketch`` (makes bins of it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from appliance.drift import bodies
from appliance.drift.bodies import Table
from appliance.drift.sketch import COLUMNS_MAX, OUTPUTS_MAX, TEXT_MAX
from appliance.watch.counting import Seen

CELLS_MAX = 300_000
"""Values one version may take to learn; it then has learned from fewer records."""


class Learner:
    """Collects what a version is called with and answers."""

    def __init__(self, records: int) -> None:
        """Have enough after so many records."""
        self._records = records
        self._inputs = _Growing(COLUMNS_MAX)
        self._outputs = _Growing(OUTPUTS_MAX)

    @property
    def rows(self) -> int:
        """Records so far."""
        return self._inputs.rows

    @property
    def cells(self) -> int:
        """Values held."""
        return self._inputs.cells + self._outputs.cells

    @property
    def is_done(self) -> bool:
        """Whether they are enough."""
        return self.rows >= self._records or self.cells >= CELLS_MAX

    def add_call(self, seen: Seen) -> str:
        """Take what a call shows: ``counted``, or ``unread`` if it is of no form understood."""
        names = bodies.names_in(seen.content_type, seen.body)
        table = bodies.inputs_of(seen.content_type, seen.body, names) if names else None
        if table is None:
            return "unread"
        left = self._records - self.rows
        self._inputs.add(table, left)
        answers = bodies.outputs_of(seen.reply)
        if answers is not None:
            self._outputs.add(answers, left)
        return "counted"

    def columns(self) -> tuple[Mapping[str, Sequence[Any]], Mapping[str, Sequence[Any]], int]:
        """Inputs, outputs and how many records; the outputs are as many rows, or there are none."""
        outputs = self._outputs.columns if self._outputs.rows == self.rows else {}
        return self._inputs.columns, outputs, self.rows


class _Growing:
    """A table that grows; a column that was not there before is missing in what came before."""

    def __init__(self, width_max: int) -> None:
        self.rows = 0
        self.columns: dict[str, list[Any]] = {}
        self._width_max = width_max

    @property
    def cells(self) -> int:
        return self.rows * len(self.columns)

    def add(self, table: Table, most: int) -> None:
        count = min(table.rows, most)
        for name, values in table.columns.items():
            if name not in self.columns:
                if len(self.columns) >= self._width_max:
                    continue
                self.columns[name] = [None] * self.rows
            self.columns[name] += [_short(value) for value in values[:count]]
        self.rows += count
        for known in self.columns.values():
            known += [None] * (self.rows - len(known))


def _short(value: Any) -> Any:
    if isinstance(value, str):
        return value[:TEXT_MAX]
    return value if isinstance(value, (int, float)) or value is None else "(structured)"
