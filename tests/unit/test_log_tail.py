"""What a sandbox printed, taken in parts: each line once, a half one when it is whole."""

from __future__ import annotations

from appliance.sandbox.link import LOG_LINES_MAX, LogTail


def test_each_line_is_taken_once_and_a_half_one_when_it_is_whole() -> None:
    tail = LogTail()
    assert tail.take() == ()
    tail.add("stdout", b"one\ntw", 0)
    assert tail.take() == ("one",)
    assert tail.take() == ()
    tail.add("stderr", b"beside\n", 0)
    tail.add("stdout", b"o\nthree", 0)
    assert tail.take() == ("beside", "two")
    assert tail.take(is_over=True) == ("three",)
    assert tail.take(is_over=True) == ()


def test_what_was_left_out_is_said_in_the_part_where_it_is_missing() -> None:
    tail = LogTail()
    for n in range(LOG_LINES_MAX + 5):
        tail.add("stdout", f"{n}\n".encode(), 0)
    first, *lines = tail.take()
    assert first == "[... 10 bytes of output left out ...]"
    assert lines == [str(n) for n in range(5, LOG_LINES_MAX + 5)]
    tail.add("stdout", b"next\n", 0)
    assert tail.take() == ("next",)


def test_a_tap_is_told_what_is_added_while_it_is_there() -> None:
    tail, tap = LogTail(), LogTail()
    tail.add("stdout", b"before\n", 0)
    tail.tap = tap
    tail.add("stdout", b"meanwhile\n", 3)
    tail.tap = None
    tail.add("stdout", b"after\n", 0)
    assert tail.lines()[1:] == ("before", "meanwhile", "after")
    assert tap.lines() == ("[... 3 bytes of output left out ...]", "meanwhile")
