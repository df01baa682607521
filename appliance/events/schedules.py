"""Events of schedules: calls that are submitted as jobs again and again.

Owns: the record of every schedule, and of each time that was due.
Never: the jobs themselves (``calls``).
Read next: ``events`` (the list of all), ``store.schedules`` (what they do).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from appliance.events.base import Event
from appliance.standing import Schedule, ScheduleRun


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleCreated(Event):
    """A schedule was created; its body is a sealed blob."""

    KIND: ClassVar[str] = "schedule.created"
    SEALED: ClassVar[bool] = True
    schedule: Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleRan(Event):
    """A time was due: its job was queued in one unit with this, or why there is none."""

    KIND: ClassVar[str] = "schedule.ran"
    schedule_id: str
    run: ScheduleRun


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulePaused(Event):
    """Nothing of a schedule is due until it is resumed."""

    KIND: ClassVar[str] = "schedule.paused"
    schedule_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleResumed(Event):
    """A schedule goes on in the name of ``run_as``; times up to ``since_ns`` are not due."""

    KIND: ClassVar[str] = "schedule.resumed"
    schedule_id: str
    run_as: str
    since_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleStopped(Event):
    """A schedule cannot go on: ``key-revoked``, ``key-expired`` or ``model-removed``."""

    KIND: ClassVar[str] = "schedule.stopped"
    schedule_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleRemoved(Event):
    """A schedule was removed; its body is about to be deleted."""

    KIND: ClassVar[str] = "schedule.removed"
    schedule_id: str
