"""Frames out of a stream: however it is cut, whoever is slow, each arrives once and whole."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.sandbox.connection import GuestConnection
from appliance.sandbox.frames import HEADER_BYTES_MAX, PREFIX, Header, LinkLost, frame


class Seen:
    """An owner that keeps what it is told."""

    def __init__(self) -> None:
        self.frames: list[tuple[str, bytes]] = []
        self.lost: list[str] = []
        self.is_gone = False
        self.on_frame: Callable[[GuestConnection], None] | None = None

    def connected(self, connection: GuestConnection) -> None:
        self.connection = connection

    def admit(
        self, connection: GuestConnection, header: Header, body_bytes: int
    ) -> Callable[[bytes], None] | None:
        if header.type == "SKIP":
            return None

        def take(body: bytes) -> None:
            assert len(body) == body_bytes
            self.frames.append((header.id, body))
            if self.on_frame is not None:
                self.on_frame(connection)

        return take

    def broken(self, connection: GuestConnection, lost: LinkLost) -> None:
        self.lost.append(lost.protocol)

    def disconnected(self, connection: GuestConnection) -> None:
        self.is_gone = True


async def joined(owner: Seen) -> tuple[GuestConnection, socket.socket]:
    """A connection over a socket pair, and its other end."""
    near, far = socket.socketpair()
    near.setblocking(False)
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_unix_connection(lambda: GuestConnection(owner), sock=near)
    return connection, far


def stream_of(bodies: list[bytes]) -> bytes:
    parts = []
    for number, body in enumerate(bodies):
        parts.append(frame({"type": "RES", "id": f"{number}"}, len(body)) + body)
        parts.append(frame({"type": "SKIP"}, len(body)) + body)
    return b"".join(parts)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=8), st.data())
def test_frames_arrive_whole_however_the_stream_is_cut(
    bodies: list[bytes], data: st.DataObject
) -> None:
    stream = stream_of(bodies)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=30).map(sorted))

    async def run() -> Seen:
        owner = Seen()
        connection = GuestConnection(owner)
        at = 0
        for cut in [*cuts, len(stream)]:
            connection.data_received(stream[at:cut])
            at = cut
        return owner

    owner = asyncio.run(run())
    assert owner.frames == [(f"{n}", body) for n, body in enumerate(bodies)]
    assert owner.lost == []


async def test_a_rest_holds_everything_back_and_loses_nothing() -> None:
    owner = Seen()
    connection, far = await joined(owner)
    owner.on_frame = GuestConnection.rest
    far.sendall(stream_of([b"one", b"two"]))
    async with asyncio.timeout(30):
        while not owner.frames:
            await asyncio.sleep(0.001)
    await asyncio.sleep(0)
    assert owner.frames == [("0", b"one")]
    connection.go_on()
    assert owner.frames == [("0", b"one"), ("1", b"two")]
    far.close()
    connection.go_on()
    async with asyncio.timeout(30):
        while not owner.is_gone:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("size", [0, 1, HEADER_BYTES_MAX + 1, (1 << 32) - 1])
async def test_a_header_of_another_length_ends_it_at_once(size: int) -> None:
    owner = Seen()
    _, far = await joined(owner)
    far.sendall(PREFIX.pack(size, 0))
    async with asyncio.timeout(30):
        while not owner.is_gone:
            await asyncio.sleep(0.001)
    assert owner.lost == ["a frame header's length is out of bounds"]
    far.close()


async def test_a_guest_that_does_not_read_is_told_of_and_its_end_too() -> None:
    owner = Seen()
    connection, far = await joined(owner)
    connection.write(frame({"type": "REQ"}, 1 << 24), memoryview(bytes(1 << 24)))
    flushed = connection.flushed
    assert flushed is not None
    assert not flushed.done()
    far.close()
    await asyncio.wait_for(flushed, 30)
    assert connection.flushed is None
    connection.write(b"nobody is there")  # and nothing happens


async def test_a_frame_leaves_in_one_piece() -> None:
    owner = Seen()
    connection, far = await joined(owner)
    far.settimeout(30)
    connection.write(frame({"type": "REQ"}, 4), b"body")
    assert await asyncio.to_thread(far.recv, 4096) == frame({"type": "REQ"}, 4) + b"body"
    connection.abort()
    far.close()
