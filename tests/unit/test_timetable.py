"""When cron fields are due: names, steps, days, and clocks that are put forward and back."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from appliance.errors import InputInvalid
from appliance.timetable import Timetable

NS = 1_000_000_000


def ns(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp()) * NS


def times(cron: str, zone: str, since: str, count: int = 3) -> list[str]:
    found = Timetable(cron, zone).after(ns(since), count)
    return [datetime.fromtimestamp(at // NS, UTC).strftime("%Y-%m-%dT%H:%MZ") for at in found]


def test_fields_have_names_lists_ranges_and_steps() -> None:
    since = "2026-01-31T11:59:59+00:00"
    assert times("*/15 9-17 * * mon-fri", "UTC", since) == [
        "2026-02-02T09:00Z", "2026-02-02T09:15Z", "2026-02-02T09:30Z",
    ]  # fmt: skip
    assert times("30 6 1,15 feb,MAR *", "UTC", since) == [
        "2026-02-01T06:30Z", "2026-02-15T06:30Z", "2026-03-01T06:30Z",
    ]  # fmt: skip
    # Both days given: either matches, as cron has it.
    assert times("0 0 13 * fri", "UTC", since) == [
        "2026-02-06T00:00Z", "2026-02-13T00:00Z", "2026-02-20T00:00Z",
    ]  # fmt: skip
    assert times("0 0 29 2 *", "UTC", since, 2) == ["2028-02-29T00:00Z", "2032-02-29T00:00Z"]


def test_a_time_is_due_after_the_moment_asked_about_and_never_at_it() -> None:
    table = Timetable("0 12 * * *", "UTC")
    at = ns("2026-01-31T12:00:00+00:00")
    assert table.after(at - 1, 1) == (at,)
    assert table.after(at, 1) == (at + 86_400 * NS,)
    assert table.after(at + NS // 2, 1) == (at + 86_400 * NS,)


def test_a_clock_put_forward_makes_the_skipped_time_due_when_the_gap_ends() -> None:
    # Europe/Berlin goes from 02:00 to 03:00 on 2026-03-29, at 01:00 UTC.
    assert times("30 2 * * *", "Europe/Berlin", "2026-03-28T00:00:00+00:00") == [
        "2026-03-28T01:30Z", "2026-03-29T01:00Z", "2026-03-30T00:30Z",
    ]  # fmt: skip
    assert times("0 * * * *", "Europe/Berlin", "2026-03-28T23:30:00+00:00") == [
        "2026-03-29T00:00Z", "2026-03-29T01:00Z", "2026-03-29T02:00Z",
    ]  # fmt: skip


def test_a_clock_put_back_makes_a_time_due_once_and_hours_go_on() -> None:
    # Europe/Berlin goes from 03:00 back to 02:00 on 2026-10-25, at 01:00 UTC.
    assert times("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00+00:00", 2) == [
        "2026-10-25T00:30Z", "2026-10-26T01:30Z",
    ]  # fmt: skip
    # Asked within the hour that comes twice: what was due in it is over.
    assert times("30 2 * * *", "Europe/Berlin", "2026-10-25T01:10:00+00:00", 1) == [
        "2026-10-26T01:30Z"
    ]
    assert times("0 * * * *", "Europe/Berlin", "2026-10-24T23:30:00+00:00") == [
        "2026-10-25T00:00Z", "2026-10-25T01:00Z", "2026-10-25T02:00Z",
    ]  # fmt: skip


def test_what_was_missed_is_counted_to_a_bound_and_its_last_time_is_right() -> None:
    since = ns("2026-01-01T00:00:00+00:00")
    daily = Timetable("0 2 * * *", "Europe/Berlin")
    assert daily.between(since, ns("2026-01-01T00:59:00+00:00")) == (0, 0)
    assert daily.between(since, ns("2026-01-04T00:00:00+00:00")) == (
        3,
        ns("2026-01-03T01:00:00+00:00"),
    )
    often = Timetable("* * * * *", "Europe/Berlin")
    until = ns("2026-12-31T12:34:56+00:00")
    assert often.between(since, until) == (1_000, ns("2026-12-31T12:34:00+00:00"))


@pytest.mark.parametrize(
    ("cron", "zone", "pointer"),
    [
        ("", "UTC", "?cron"), ("* * * *", "UTC", "?cron"), ("* * * * * *", "UTC", "?cron"),
        ("60 * * * *", "UTC", "?cron"), ("* 24 * * *", "UTC", "?cron"), ("@daily", "UTC", "?cron"),
        ("* * 30 2 *", "UTC", "?cron"), ("*/0 * * * *", "UTC", "?cron"), 
        ("a b c d e", "UTC", "?cron"),
        ("5-1 * * * *", "UTC", "?cron"), ("* * * * mon#9", "UTC", "?cron"), 
        ("1/x * * * *", "UTC", "?cron"),
        ("," * 400 + " * * * *", "UTC", "?cron"), ("* * * * L/2", "UTC", "?cron"),
        ("* * * * *", "", "?timezone"), ("* * * * *", "Mars/Base", "?timezone"),
        ("* * * * *", "../../etc/passwd", "?timezone"), 
        ("* * * * *", "/etc/localtime", "?timezone"),
        ("* * * * *", "Europe", "?timezone"), ("* * * * *", "a" * 100, "?timezone"),
        ("* * * * *", "Europe/Ber\x00lin", "?timezone"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_its_field(cron: str, zone: str, pointer: str) -> None:
    with pytest.raises(InputInvalid) as caught:
        Timetable(cron, zone)
    assert caught.value.fields[0].pointer == pointer
