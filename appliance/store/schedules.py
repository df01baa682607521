"""What events do to a tenant's schedules.

Owns: ``apply_schedule``, the one place where an event changes a schedule; the head of a body.
Never: decides what is due (``appliance.schedules``), appends to the ledger, or reads a blob.
Read next: ``state`` (keeps the schedules), ``appliance.schedules`` (runs them).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from appliance.events import (
    Event,
    ScheduleCreated,
    SchedulePaused,
    ScheduleRan,
    ScheduleRemoved,
    ScheduleResumed,
    ScheduleStopped,
)
from appliance.standing import Schedule

SCHEDULE_EVENTS: dict[str, type[Event]] = {
    cls.KIND: cls
    for cls in (
        ScheduleCreated,
        ScheduleRan,
        SchedulePaused,
        ScheduleResumed,
        ScheduleStopped,
        ScheduleRemoved,
    )
}
RUNS_KEPT = 20


def head_of_body(schedule_id: str) -> bytes:
    """What the body of this schedule begins with, so that no two blobs are equal."""
    return schedule_id.encode() + b"s"


def apply_schedule(schedules: Mapping[str, Schedule], event: Event) -> dict[str, Schedule]:
    """A tenant's schedules after a durable event.

    Raises:
        KeyError: the event is about a schedule there is none of.
    """
    found = dict(schedules)
    match event:
        case ScheduleCreated(schedule=schedule):
            found[schedule.id] = schedule
        case ScheduleRan(schedule_id=schedule_id, run=run):
            one = found[schedule_id]
            since_ns = one.since_ns if run.is_manual else max(one.since_ns, run.due_ns)
            runs = (*one.runs, run)[-RUNS_KEPT:]
            found[schedule_id] = replace(one, since_ns=since_ns, runs=runs)
        case SchedulePaused(schedule_id=schedule_id):
            found[schedule_id] = replace(found[schedule_id], state="paused", reason="")
        case ScheduleResumed(schedule_id=schedule_id, run_as=run_as, since_ns=since_ns):
            found[schedule_id] = replace(
                found[schedule_id], state="active", reason="", run_as=run_as, since_ns=since_ns
            )
        case ScheduleStopped(schedule_id=schedule_id, reason=reason):
            found[schedule_id] = replace(found[schedule_id], state="stopped", reason=reason)
        case ScheduleRemoved(schedule_id=schedule_id):
            del found[schedule_id]
        case _:
            raise KeyError(event.KIND)
    return found
