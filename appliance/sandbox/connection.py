"""One connection of a sandbox: bytes in, whole frames out, without a task or a queue between.

Owns: where a frame begins and ends, how long reading rests, and how much is written ahead.
Never: knows what a frame means, or which may come when (``link`` does); believes a length.
Read next: ``frames`` (the codec), ``link`` (the owner).
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Any, Protocol

from appliance.sandbox.frames import (
    HEADER_BYTES_MAX,
    PREFIX,
    Header,
    LinkLost,
    header_from_bytes,
)

_PEER = struct.Struct("3i")
_JOIN_BYTES_MAX = 64 * 1024

Take = Callable[[bytes], object]
"""What is done with the body of a frame once all of it is here; ``None``: it is read past."""


class Owner(Protocol):
    """Who is told what a connection brings."""

    def connected(self, connection: GuestConnection) -> None:
        """It is there."""

    def admit(self, connection: GuestConnection, header: Header, body_bytes: int) -> Take | None:
        """What to do with a frame whose body is still unread.

        Raises:
            LinkLost: it may not come now; the connection ends.
        """

    def broken(self, connection: GuestConnection, lost: LinkLost) -> None:
        """It broke the protocol, and is closed."""

    def disconnected(self, connection: GuestConnection) -> None:
        """It is closed, whoever closed it."""


class GuestConnection(asyncio.Protocol):
    """One connection. ``role`` is what its HELLO said."""

    def __init__(self, owner: Owner) -> None:
        self.role = ""
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None  # uvloop's are none of asyncio's own
        self._held = b""
        self._take: Take | None = None
        self._left = -1  # bytes of a body that are missing, -1 between frames
        self._parts: list[bytes] = []
        self._rests = 0
        self._timer: asyncio.TimerHandle | None = None
        self._is_over = False
        self._flushed: asyncio.Future[None] | None = None

    @property
    def peer_uid(self) -> int:
        """The user id of the process that connected, by SO_PEERCRED (unix(7))."""
        raw = self._transport.get_extra_info("socket").getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size
        )
        return int(_PEER.unpack(raw)[1])

    # -- asyncio -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody connected."""
        self._transport = transport
        self._owner.connected(self)

    def data_received(self, data: bytes) -> None:
        """Bytes came: hand on every frame that is complete."""
        if self._held:
            data, self._held = self._held + data, b""
        at = 0
        try:
            while not self._rests and not self._is_over:
                end = self._read_body(data, at) if self._left >= 0 else self._read_head(data, at)
                if end < 0:
                    break
                at = end
        except LinkLost as lost:
            self.abort()
            self._owner.broken(self, lost)
        if not self._is_over:
            self._held = data[at:] if at else data

    def connection_lost(self, error: Exception | None) -> None:
        """It is closed."""
        self._is_over = True
        self._held, self._parts = b"", []
        if self._timer is not None:
            self._timer.cancel()
        self.resume_writing()
        self._owner.disconnected(self)

    def pause_writing(self) -> None:
        """The guest does not read as fast as we write."""
        self._flushed = self._loop.create_future()

    def resume_writing(self) -> None:
        """It caught up, or is gone."""
        if self._flushed is not None and not self._flushed.done():
            self._flushed.set_result(None)
        self._flushed = None

    # -- reading -------------------------------------------------------------------------------

    def _read_head(self, data: bytes, at: int) -> int:
        """Where the header that begins at ``at`` ends; -1 while it is incomplete."""
        start = at + PREFIX.size
        if len(data) < start:
            return -1
        header_bytes, body_bytes = PREFIX.unpack_from(data, at)
        if not 2 <= header_bytes <= HEADER_BYTES_MAX:
            raise LinkLost("a frame header's length is out of bounds")
        end: int = start + header_bytes
        if len(data) < end:
            return -1
        header = header_from_bytes(data[start:end])
        self._take = self._owner.admit(self, header, body_bytes)
        if body_bytes:
            self._left = body_bytes
        elif self._take is not None:
            self._take(b"")
        return end

    def _read_body(self, data: bytes, at: int) -> int:
        """Where the body that goes on at ``at`` ends; -1 while it is incomplete."""
        piece = data[at : at + self._left]
        if not piece:
            return -1
        self._left -= len(piece)
        if self._take is not None:
            self._parts.append(piece)
        if self._left:
            return at + len(piece)
        self._left = -1
        parts, self._parts = self._parts, []
        if self._take is not None:
            self._take(parts[0] if len(parts) == 1 else b"".join(parts))
        return at + len(piece)

    def rest(self) -> None:
        """Read no further until ``go_on`` was called as often as this."""
        self._rests += 1
        if self._rests == 1 and self._transport is not None and not self._is_over:
            self._transport.pause_reading()

    def go_on(self) -> None:
        """Read on."""
        self._rests -= 1
        if not self._rests and self._transport is not None and not self._is_over:
            self._transport.resume_reading()
            self.data_received(b"")

    def rest_for(self, seconds: float) -> None:
        """Read no further for a while."""
        if seconds > 0:
            self.rest()
            self._timer = self._loop.call_later(seconds, self.go_on)

    # -- writing -------------------------------------------------------------------------------

    def write(self, *parts: bytes | memoryview) -> None:
        """Send a frame; a guest that wakes for its header only would have to be woken again."""
        if self._transport is None or self._is_over:
            return
        if len(parts) > 1 and sum(map(len, parts)) <= _JOIN_BYTES_MAX:
            parts = (b"".join(parts),)
        for part in parts:
            if part:
                self._transport.write(part)

    @property
    def flushed(self) -> asyncio.Future[None] | None:
        """Done when the guest took what was written, or is gone; ``None`` while it keeps up."""
        return self._flushed

    def abort(self) -> None:
        """Close it now."""
        self._is_over = True
        if self._transport is not None:
            self._transport.abort()
