"""When a schedule is due: five cron fields in a time zone.

Owns: which expressions and zones are accepted, and the times they stand for.
Never: reads a clock, or keeps a schedule.
Read next: ``schedules`` (asks what is due).

The fields are minute, hour, day of month, month and day of week, with names, lists, ranges and
steps, as Debian's cron reads them: if both days are given, either may match. A clock that is put
forward skips a time: it is due when the gap ends. One that is put back shows a time twice: it is
due the first time. Times of a step in minutes or hours (``*``) go on as the hours really pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from appliance.errors import FieldError, InputInvalid

CRON_CHARACTERS_MAX = 200
_NS = 1_000_000_000
_ZONE = re.compile(r"[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+){0,2}")
_FIELDS = 5
_STEPS_MAX = 1_000


class Timetable:
    """The times of one cron expression in one zone."""

    def __init__(self, cron: str, timezone: str) -> None:
        """Read them.

        Args:
            cron: five fields.
            timezone: an IANA name, such as ``Europe/Berlin``.

        Raises:
            InputInvalid: one of them is not legal, or no time ever matches.
        """
        self._cron, self._zone = cron, zone_from_name(timezone)
        if len(cron) > CRON_CHARACTERS_MAX or len(cron.split()) != _FIELDS:
            raise _wrong("cron", "five fields: minute, hour, day, month, day of week")
        try:
            if not self.after(0, 1):
                raise _wrong("cron", "no time ever matches")
        except (CronSimError, AssertionError, ValueError, RecursionError) as error:
            raise _wrong("cron", str(error) or "not a legal field") from None

    def after(self, since_ns: int, count: int) -> tuple[int, ...]:
        """The next times after a wall time in nanoseconds, in order; fewer if there are no more."""
        return tuple(islice(self._times(since_ns), count))

    def between(self, since_ns: int, until_ns: int) -> tuple[int, int]:
        """How many times lie after ``since_ns`` and not after ``until_ns``, and the last of them.

        Past a thousand it counts no further; the last is right all the same, ``(0, 0)`` if none.
        """
        count, last = 0, 0
        for at in self._times(since_ns):
            if at > until_ns:
                return count, last
            count, last = count + 1, at
            if count == _STEPS_MAX:
                break
        else:
            return count, last
        near = self._before(until_ns)
        return count, max(last, near)

    def _before(self, until_ns: int) -> int:
        """The last time not after a wall time, searched backwards."""
        start = datetime.fromtimestamp(until_ns // _NS + 1, self._zone)
        for found in CronSim(self._cron, start, reverse=True):
            at = int(found.timestamp()) * _NS
            if at <= until_ns:
                return at
        return 0

    def _times(self, since_ns: int) -> Iterator[int]:
        last = since_ns
        for found in CronSim(self._cron, datetime.fromtimestamp(since_ns // _NS, self._zone)):
            at = int(found.timestamp()) * _NS
            if at > last:  # a clock that was put back shows a time that is over once more
                last = at
                yield at


def zone_from_name(name: str) -> ZoneInfo:
    """The zone of an IANA name.

    Raises:
        InputInvalid: there is none of this name.
    """
    if len(name) <= 64 and _ZONE.fullmatch(name):
        try:
            return ZoneInfo(name)
        except (ValueError, OSError, KeyError):  # KeyError: ZoneInfoNotFoundError
            pass
    raise _wrong("timezone", "a name such as Europe/Berlin or UTC")


def _wrong(name: str, detail: str) -> InputInvalid:
    return InputInvalid(
        f"This schedule cannot be read: {name}: {detail}.",
        hint='--cron "0 2 * * *" --timezone Europe/Berlin',
        fields=(FieldError(pointer=f"?{name}", detail=detail),),
    )
