"""A data set through every target, batch by batch.

Owns: how rows become calls and replies answers, and what happens to a batch that fails.
Never: judges an answer (``report``), or waits for a sandbox (``calls``).
Read next: ``answers``, ``calls``.

A batch that fails is tried again in halves, down to the row that fails, so that one bad row costs
no other its answer. A target that fails too often in a row is given up: nobody waits for ten
thousand deadlines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from appliance.comparison import answers
from appliance.comparison.answers import Answer
from appliance.comparison.calls import Calls
from appliance.comparison.dataset import JSON, Dataset
from appliance.comparison.record import Comparison, Target
from appliance.comparison.report import Heard
from appliance.errors import ApplianceError, GuestError, TooLarge
from appliance.invoke import Outcome

FAILURES_MAX = 20
_GIVEN_UP = "given-up"
_UNREADABLE = "no-answer-per-row"


async def through_all(data: Dataset, comparison: Comparison, calls: Calls) -> list[Heard]:
    """What every target says to every row; targets go side by side."""
    passes = [_Pass(data, target, calls, comparison.batch) for target in comparison.targets]
    async with asyncio.TaskGroup() as group:
        for one in passes:
            group.create_task(one.run())
    return [one.heard for one in passes]


class _Pass:
    """The rows through one target."""

    def __init__(self, data: Dataset, target: Target, calls: Calls, batch: int) -> None:
        self.heard = Heard(model=target.model, number=target.number)
        self._data = data
        self._target = target
        self._calls = calls
        self._batch = 1 if target.form == "single" else batch
        self._failures = 0

    async def run(self) -> None:
        count = len(self._data.rows)
        for start in range(0, count, self._batch):
            end = min(start + self._batch, count)
            if self._failures >= FAILURES_MAX:
                self._fail(_GIVEN_UP, count - start)
                return
            await self._ask(start, end)

    async def _ask(self, start: int, end: int) -> None:
        """Have rows answered, in halves if they fail together."""
        if self._failures >= FAILURES_MAX:
            self._fail(_GIVEN_UP, end - start)
            return
        try:
            found, problem = await self._call(start, end)
        except (GuestError, TooLarge) as error:
            found, problem = None, error.slug
            self.heard.failed_calls += 1
        if found is not None:
            self._failures = 0
            self.heard.answers += found
            self._calls.tell(end - start)
        elif end - start > 1 and problem != _UNREADABLE:
            middle = (start + end) // 2
            await self._ask(start, middle)
            await self._ask(middle, end)
        else:
            self._failures += 1
            self._fail(problem, end - start)

    async def _call(self, start: int, end: int) -> tuple[list[Answer] | None, str]:
        form, rows = self._target.form, self._data.slice(start, end)
        body = answers.body_of(form, self._data.columns, rows)
        outcome = await self._calls.call(self._target, content_type=JSON, body=body)
        self._took(outcome)
        found = answers.answers_of(outcome.reply, end - start, is_single=form == "single")
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
