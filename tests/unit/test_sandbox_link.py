"""The host side of the runner link: cleaning, log tails, and a property test of its reader."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.sandbox.frames import LinkLost, clean, frame
from appliance.sandbox.link import LOG_BYTES_MAX, Link, LogTail


def test_texts_of_a_guest_are_cleaned() -> None:
    assert clean("a\x1b[2Jb\x00\u202e\ud800\tü") == "a\ufffd[2Jb\ufffd\ufffd?\tü"
    assert clean("x" * 5000, 10) == "x" * 10


def test_the_tail_keeps_the_last_lines_and_says_what_is_missing() -> None:
    tail = LogTail()
    for number in range(1000):
        tail.add("stdout", f"line {number}\n".encode(), 0)
    lines = tail.lines()
    assert len(lines) == 201
    assert lines[-1] == "line 999"
    assert "bytes of output left out" in lines[0]


def test_the_tail_is_bounded_whatever_arrives() -> None:
    tail = LogTail()
    for _ in range(100):
        tail.add("stderr", b"z" * 100_000, 1 << 200)
        tail.add("x" * 1000, b"\xff" * 5000 + b"\n" * 5000, -5)
    assert sum(len(line) for line in tail.lines()) <= LOG_BYTES_MAX + 10_000


def test_a_flood_of_output_costs_little_and_is_clean_when_it_is_read() -> None:
    tail, piece = LogTail(), (b"\x1b\xff" * 170 + b"\n") * 190
    started = time.process_time()
    for _ in range(64):  # four seconds of what the link takes from one sandbox
        tail.add("stdout", piece, 0)
    assert time.process_time() - started < 0.4
    assert set("".join(tail.lines()[1:])) == {"\ufffd"}


def test_lines_that_arrive_in_pieces_are_joined_per_stream() -> None:
    tail = LogTail()
    tail.add("stdout", b"out 1", 0)
    tail.add("stderr", b"err 1\nerr", 0)
    tail.add("stdout", b" more\n", 0)
    assert tail.lines() == ("err 1", "out 1 more", "err")


async def guest(data: bytes) -> Link:
    """What a link makes of these bytes from a runner."""
    link = Link()
    with tempfile.TemporaryDirectory() as name:
        await link.listen(Path(name) / "a.sock", uid=os.geteuid())
        reader, writer = await asyncio.open_unix_connection(f"{name}/a.sock")
        writer.write(data)
        writer.write_eof()
        await asyncio.wait_for(link.lost.wait(), 30)
        writer.close()
        await link.close()
        assert await reader.read() == b""
    return link


HELLO = frame({"type": "HELLO", "proto": 1, "role": "runner"})


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_no_bytes_break_the_reader(data: bytes, after_hello: bool) -> None:
    asyncio.run(guest((HELLO if after_hello else b"") + data))


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["type", "id", "role", "proto", "dropped", "trace", "code", "x"]),
        st.one_of(st.none(), st.text(), st.integers(), st.floats(), st.lists(st.text())),
    ),
    st.integers(0, (1 << 64) - 1),
)
def test_no_header_breaks_the_reader(header: dict[str, object], size: int) -> None:
    try:
        data = frame(header, size)  # type: ignore[arg-type]
    except UnicodeEncodeError:
        return
    asyncio.run(guest(HELLO + data))


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (frame({"type": "READY"}), "not a HELLO"),
        (frame({"type": "HELLO", "proto": 2, "role": "runner"}), "not a HELLO"),
        (frame({"type": "HELLO", "proto": 1, "role": "boss"}), "role"),
        (b"\xff" * 12, "length"),
    ],
)
async def test_a_first_frame_that_is_no_hello_is_refused(first: bytes, reason: str) -> None:
    link = await guest(first)
    assert reason in link.protocol_error
    with pytest.raises(LinkLost):
        await link.hello()


async def test_another_user_is_sent_nothing_and_ends_nothing() -> None:
    link = Link()
    with tempfile.TemporaryDirectory() as name:
        await link.listen(Path(name) / "a.sock", uid=os.geteuid() + 1)
        for _ in range(3):  # a third connection of the container's own user would be the end
            reader, writer = await asyncio.open_unix_connection(f"{name}/a.sock")
            writer.write(HELLO)
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), 30) == b""
            writer.close()
        assert not link.lost.is_set()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(link.hello(), 0.1)
        await link.close()


async def test_a_socket_path_may_be_longer_than_an_address() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / ("d" * 120)
        folder.mkdir()
        link = Link()
        await link.listen(folder / "a.sock", uid=os.geteuid())
        assert (folder / "a.sock").exists()
        await link.close()
