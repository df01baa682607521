"""A data set through every target, batch by batch.

Owns: how rows become calls and replies answers, and what happens to a batch that fails.
Never: judges an answer (``report``), or waits for a sandbox (``calls``).
Read next: ``answers``, ``calls``.

Rows come from one reading: all targets answer a batch before the next is read, so that no more
than a batch is here, however large the data set is.

A batch that fails is tried again in halves, down to the row that fails, so that one bad row costs
no other its answer. A target that fails too often in a row is given up: nobody waits for ten
thousand deadlines.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from appliance.comparison import answers
from appliance.comparison.answers import Answer
from appliance.comparison.calls import Calls
from appliance.comparison.dataset import JSON, Rows
from appliance.comparison.record import Comparison, Target
from appliance.comparison.report import Heard
from appliance.errors import ApplianceError, GuestError, TooLarge
from appliance.invoke import Outcome

FAILURES_MAX = 20
_GIVEN_UP = "given-up"
_UNREADABLE = "no-answer-per-row"

Batch = list[list[Any]]


async def through_all(rows: Rows, comparison: Comparison, calls: Calls) -> list[Heard]:
    """What every target says to every row; targets go side by side, through the same rows."""
    facts = rows.facts
    passes = [_Pass(facts.columns, one, calls, comparison.batch) for one in comparison.targets]
    left = facts.count
    async with contextlib.aclosing(rows.batches(comparison.batch)) as batches:
        async for batch in batches:
            async with asyncio.TaskGroup() as group:
                for one in passes:
                    group.create_task(one.take(batch))
            left -= len(batch)
            if all(one.is_given_up for one in passes):
                break
    for one in passes:
        one.give_up(left)
    return [one.heard for one in passes]


class _Pass:
    """The rows through one target."""

    def __init__(self, columns: Sequence[str], target: Target, calls: Calls, rows_max: int) -> None:
        self.heard = Heard(model=target.model, number=target.number)
        self._columns = columns
        self._target = target
        self._calls = calls
        self._rows_max = 1 if target.form == "single" else rows_max
        self._failures = 0

    @property
    def is_given_up(self) -> bool:
        """Whether it failed so often that it is asked no more."""
        return self._failures >= FAILURES_MAX

    async def take(self, rows: Batch) -> None:
        """Have rows answered, in as many calls as its form asks for."""
        for start in range(0, len(rows), self._rows_max):
            await self._ask(rows[start : start + self._rows_max])

    def give_up(self, count: int) -> None:
        """Count so many rows that it was not asked for."""
        if count:
            self._fail(_GIVEN_UP, count)

    async def _ask(self, rows: Batch) -> None:
        """Have rows answered, in halves if they fail together."""
        if self.is_given_up:
            self._fail(_GIVEN_UP, len(rows))
            return
        try:
            found, problem = await self._call(rows)
        except (GuestError, TooLarge) as error:
            found, problem = None, error.slug
            self.heard.failed_calls += 1
        if found is not None:
            self._failures = 0
            self.heard.answers += found
            self._calls.tell(len(rows))
        elif len(rows) > 1 and problem != _UNREADABLE:
            middle = len(rows) // 2
            await self._ask(rows[:middle])
            await self._ask(rows[middle:])
        else:
            self._failures += 1
            self._fail(problem, len(rows))

    async def _call(self, rows: Batch) -> tuple[list[Answer] | None, str]:
        form = self._target.form
        body = answers.body_of(form, self._columns, rows)
        outcome = await self._calls.call(self._target, content_type=JSON, body=body)
        self._took(outcome)
        found = answers.answers_of(outcome.reply, len(rows), is_single=form == "single")
        return found, _UNREADABLE

    def _took(self, outcome: Outcome) -> None:
        heard = self.heard
        heard.took_us.append(outcome.total_us - outcome.queue_us - outcome.load_us)
        heard.compute_us += outcome.compute_us
        heard.sandbox_us += outcome.total_us - outcome.queue_us
        heard.cold += outcome.cold

    def _fail(self, problem: str, rows: int) -> None:
        nothing: Sequence[Answer | None] = [None] * rows
        self.heard.answers += nothing
        self.heard.problems[problem] = self.heard.problems.get(problem, 0) + rows
        self._calls.tell(rows)


def only_problem(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The problem of a group of tasks that all end with the first one's."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            return only_problem(error)
        if isinstance(error, ApplianceError):
            return error
    return group.exceptions[0]
