"""One call counted, and what of a judgement is news: the steps of ``Watch`` that need no state.

Owns: ``Seen``, what of a body and a reply goes into a sketch, and when a breach begins and ends.
Never: does I/O.
Read next: ``appliance.watch`` (calls this), ``appliance.drift`` (the arithmetic).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from appliance.drift import bodies
from appliance.drift.scores import Score
from appliance.drift.sketch import Plan, Sketch
from appliance.events import DriftBreached, DriftRecovered
from appliance.records import Breach

RECOVERED = 0.8
"""A breach ends below this part of its threshold."""

Told = type[DriftBreached] | type[DriftRecovered]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A call whose reply has left: what was asked and what was answered."""

    model_id: str
    number: int
    content_type: str
    body: bytes
    reply: bytes

    @property
    def size_bytes(self) -> int:
        """What keeping it takes."""
        return len(self.body) + len(self.reply)


def add_call(plan: Plan, sketch: Sketch, seen: Seen) -> str:
    """Count a call: ``counted``, or ``unread`` if its body is of no form that is understood."""
    sketch.calls += 1
    names = [column.name for column in plan.inputs]
    table = bodies.inputs_of(seen.content_type, seen.body, names)
    if table is None:
        sketch.unread += 1
    else:
        sketch.skipped += table.skipped
        sketch.count_inputs(plan, table.columns, table.rows)
    if plan.outputs:
        answers = bodies.outputs_of(seen.reply)
        if answers is not None:
            sketch.count_outputs(plan, answers.columns, answers.rows)
    return "unread" if table is None else "counted"


def news_of(
    found: list[Score], known: tuple[Breach, ...], *, rows: int, window_s: int, now_ns: int
) -> list[tuple[Told, Breach]]:
    """What is to be told of scores, given the breaches that are open.

    Args:
        found: every score now.
        known: the open breaches.
        rows: records in the window.
        window_s: how long the window is.
        now_ns: the time.
    """
    by_key = {breach.key: breach for breach in known}
    told: list[tuple[Told, Breach]] = []
    for score in found:
        breach = Breach(
            feature=score.feature,
            is_output=score.is_output,
            statistic=score.statistic,
            value=score.value,
            threshold=score.threshold,
            rows=rows,
            window_s=window_s,
            since_ns=now_ns,
        )
        before = by_key.get(breach.key)
        if before is None and score.verdict == "breach":
            told.append((DriftBreached, breach))
        elif before is not None and _is_over(score):
            told.append((DriftRecovered, replace(breach, since_ns=before.since_ns)))
    return told


def _is_over(score: Score) -> bool:
    if score.verdict == "unjudged":
        return True
    return score.verdict == "ok" and score.value < RECOVERED * score.threshold
