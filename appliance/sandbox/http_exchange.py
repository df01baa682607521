"""HTTP/1.1 with a server inside a sandbox, which is as hostile as everything in there.

Owns: one connection, one exchange at a time, and the bounds of an answer.
Never: follows a redirect, sends again what may have been received, parses HTTP itself (h11 does).
Read next: ``http_link`` (what is asked), ``protocols``.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass

import h11

from appliance.sandbox.frames import LinkLost, ReplyOverCap

_HEAD_BYTES_MAX = 64 * 1024
_READ_BYTES = 32 * 1024
_SEND_BYTES = 256 * 1024
_INFORMATIONAL_MAX = 16
_FRAMING_BYTES_MAX = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a server answered; ``is_whole`` is false if more of the body came than was asked."""

    status: int
    headers: dict[str, str]
    body: bytes
    is_whole: bool


class Connection:
    """One connection to a server; usable for the next exchange while ``is_open``."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_BYTES_MAX)
        self._is_open = True
        self._received = 0

    @classmethod
    async def over(cls, connected: socket.socket) -> Connection:
        """A connection over a socket that is connected."""
        connected.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=connected, limit=_READ_BYTES)
        return cls(reader, writer)

    @property
    def is_open(self) -> bool:
        """Whether another exchange may be begun."""
        return self._is_open and not self._reader.at_eof() and not self._writer.is_closing()

    def close(self) -> None:
        """Close it; idempotent."""
        self._is_open = False
        self._writer.transport.abort()

    async def exchange(
        self,
        method: str,
        target: str,
        headers: list[tuple[str, str]],
        body: bytes,
        *,
        body_bytes_max: int,
    ) -> Answer:
        """Send one request and read its answer. The caller keeps the deadline.

        Args:
            method: GET or POST.
            target: path and query.
            headers: all but the length.
            body: the request's body.
            body_bytes_max: of an answer below 300; of others the first bytes are kept.

        Raises:
            LinkLost: the connection ended, or what came is no HTTP.
            ReplyOverCap: the answer's body is, or says that it is, larger.
        """
        sized = [*headers, ("Content-Length", str(len(body)))] if method == "POST" else headers
        head = self._http.send(h11.Request(method=method, target=target, headers=sized))
        self._writer.write(head or b"")
        sender = asyncio.ensure_future(self._send(body))
        try:
            answer = await self._answer(body_bytes_max)
        except BaseException:
            self.close()
            raise
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
        self._go_on()
        return answer

    async def _send(self, body: bytes) -> None:
        """The body while the answer is awaited already: a server may refuse it half-way."""
        with contextlib.suppress(OSError):
            for start in range(0, len(body), _SEND_BYTES):
                piece = memoryview(body)[start : start + _SEND_BYTES]
                self._writer.write(self._http.send(h11.Data(data=bytes(piece))) or b"")
                await self._writer.drain()
            self._writer.write(self._http.send(h11.EndOfMessage()) or b"")
            await self._writer.drain()

    async def _answer(self, body_bytes_max: int) -> Answer:
        try:
            head = await self._head()
            headers = {
                name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers
            }
            is_good = head.status_code < 300
            most = body_bytes_max if is_good else min(body_bytes_max, _HEAD_BYTES_MAX)
            told = headers.get("content-length", "")
            if is_good and told.isdigit() and int(told) > most:
                raise ReplyOverCap
            body, is_whole = await self._body(most)
        except h11.RemoteProtocolError as error:
            if self._reader.at_eof():
                raise LinkLost from error
            raise LinkLost(f"its answer is no HTTP: {error}") from error
        except OSError as error:
            raise LinkLost from error
        if is_good and not is_whole:
            raise ReplyOverCap
        return Answer(status=head.status_code, headers=headers, body=body, is_whole=is_whole)

    async def _head(self) -> h11.Response:
        for _ in range(_INFORMATIONAL_MAX):
            event = await self._event()
            if isinstance(event, h11.Response):
                return event
            if not isinstance(event, h11.InformationalResponse):
                raise LinkLost
        raise LinkLost("it sent interim answers without end")

    async def _body(self, most: int) -> tuple[bytes, bool]:
        pieces: list[bytes] = []
        size, begun = 0, self._received
        while not isinstance(event := await self._event(), h11.EndOfMessage):
            if not isinstance(event, h11.Data):
                raise LinkLost
            size += len(event.data)
            pieces.append(bytes(event.data))
            if size > most:
                return b"".join(pieces)[:most], False
            if self._received - begun > 2 * size + _FRAMING_BYTES_MAX:
                raise LinkLost("its answer is more framing than content")
        return b"".join(pieces), True

    async def _event(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            data = await self._reader.read(_READ_BYTES)
            self._received += len(data)
            self._http.receive_data(data)
        return event

    def _go_on(self) -> None:
        """Ready for the next exchange, if both sides are done with this one and go on."""
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        else:
            self.close()
