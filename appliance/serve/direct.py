"""HTTP/1.1 straight on the event loop: one connection as an asyncio protocol, heads by llhttp.

Owns: a connection from its first byte to its last where ``http.engine`` is ``direct``: framing,
back pressure in both directions, timers, and how it ends.
Never: listens, terminates TLS, speaks HTTP/2 or upgrades a connection.
Read next: ``framing`` (where a request ends), ``strict`` (what is refused), ``http1`` (the other
engine: same promises, same tests).

One write takes a small answer's head and body; no task, queue or timer is made per request but the
application's own task.
"""

from __future__ import annotations

import asyncio
import http
import logging
from collections.abc import Callable
from typing import Any
from wsgiref.handlers import format_date_time

from appliance import clock
from appliance.serve import strict
from appliance.serve.framing import HEAD_END, Asked, Chunks, Length, asked_from_head
from appliance.serve.strict import Refused, Timers
from appliance.wire import HANGUP

_log = logging.getLogger(__name__)

_INBOX_BYTES_MAX = 64 * 1024
_JOIN_BYTES_MAX = 64 * 1024
_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode()
    for status in http.HTTPStatus
}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_DISCONNECT = {"type": "http.disconnect"}
_NO_BODY = frozenset((204, 304))


class _Exchange:
    """One request and its answer."""

    def __init__(self, line: Direct, scope: dict[str, Any], body: Length | Chunks) -> None:
        self.scope = scope
        self.body = body
        self.is_kept = True
        self.expects_continue = False
        self.is_answered = False
        self.has_started = False
        self.is_over = False
        self.held_bytes = 0
        self._line = line
        self.hangups: list[Callable[[], object]] = []
        self._inbox: list[bytes] = []
        self._is_read = False
        self._waiter: asyncio.Future[None] | None = None
        self._head = b""
        self._left: int | None = None
        self._is_chunked = False
        self._is_bodiless = False

    def feed(self, piece: bytes) -> None:
        """Bytes of the body, or news that there are no more."""
        if piece:
            self._inbox.append(piece)
            self.held_bytes += len(piece)
        self.wake()

    def wake(self) -> None:
        """Let ``receive`` look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def receive(self) -> dict[str, Any]:
        """ASGI: the next part of the body; after the last, wait for the caller to hang up."""
        while not self.is_over:
            is_last = self.body.is_done
            if self._inbox or (is_last and not self._is_read):
                body = self._inbox[0] if len(self._inbox) == 1 else b"".join(self._inbox)
                self._inbox.clear()
                self.held_bytes = 0
                self._is_read = is_last
                self._line.body_taken()
                return {"type": "http.request", "body": body, "more_body": not is_last}
            if self.expects_continue:
                self.expects_continue = False
                if not is_last and not self.has_started:  # else it would be read as an answer
                    self._line.write(_CONTINUE)
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return _DISCONNECT

    async def send(self, message: dict[str, Any]) -> None:
        """ASGI: a part of the answer.

        Raises:
            ConnectionError: the caller is gone.
        """
        if self.is_over:
            raise ConnectionResetError("the caller hung up")
        if message["type"] == "http.response.start":
            self._start(message["status"], message.get("headers", ()))
            return
        is_last = not message.get("more_body", False)
        data = self._framed(message.get("body", b""), is_last=is_last)
        head, self._head = self._head, b""
        if head and len(data) > _JOIN_BYTES_MAX:
            self._line.write(head)
            head = b""
        if head or data:
            self._line.write(head + data)
            await self._line.drained()
        if is_last:
            self.is_answered = True
            self._line.answered(self)

    def _start(self, status: int, headers: Any) -> None:
        self.has_started = True
        if self._line.is_last_answer(self):
            self.is_kept = False
        names = {name for name, _ in headers}
        self._is_bodiless = status in _NO_BODY or self.scope["method"] == "HEAD"
        lines = [name + b": " + value + b"\r\n" for name, value in headers]
        if b"content-length" in names:
            self._left = next(int(value) for name, value in headers if name == b"content-length")
        elif not self._is_bodiless:
            self._is_chunked = self.scope["http_version"] == "1.1"
            self.is_kept = self.is_kept and self._is_chunked
            if self._is_chunked:
                lines.append(b"transfer-encoding: chunked\r\n")
        lines.append(self._line.date())
        if not self.is_kept:
            lines.append(b"connection: close\r\n")
        block = b"".join(lines)
        if block.count(b"\n") != len(lines) or block.count(b"\r") != len(lines) or b"\0" in block:
            raise ValueError("a header of the answer holds a line break")
        self._head = _STATUS_LINES[status] + block + b"\r\n"

    def _framed(self, body: bytes, *, is_last: bool) -> bytes:
        if self._is_bodiless:
            return b""
        if self._is_chunked:
            chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            return chunk + (b"0\r\n\r\n" if is_last else b"")
        if self._left is not None:
            self._left -= len(body)
            if self._left < 0 or (is_last and self._left):
                self._line.abort()
                raise ValueError("the answer's length is not what its head says")
        return body


class Direct(asyncio.Protocol):
    """One connection. ``ended`` is done when it is closed and its application has returned."""

    _now = (0, b"")

    def __init__(
        self,
        app: Any,
        state: Callable[[Any], dict[str, Any]],
        is_draining: Callable[[], bool],
        timers: Timers,
        on_made: Callable[[Direct], None],
    ) -> None:
        """Wait for the connection.

        Args:
            app: ASGI application.
            state: makes ``scope["state"]`` of its requests from the transport.
            is_draining: whether answers have to end connections.
            timers: how long things may take.
            on_made: called when the connection is up.
        """
        self._app = app
        self._make_state = state
        self._is_draining = is_draining
        self._timers = timers
        self._on_made = on_made
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._transport: Any = None
        self._buffer = bytearray()
        self._searched = 0
        self._head = b""
        self._asked: Asked | None = None
        self._exchange: _Exchange | None = None
        self._task: asyncio.Task[None] | None = None
        self._base: dict[str, Any] = {}
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_fresh = True
        self._quiet_since = self._loop.time()
        self._discarded: int | None = None
        self._is_reading = True
        self._is_lost = False
        self._flushed: asyncio.Future[None] | None = None

    # -- asyncio -------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """The connection is up, TLS included."""
        self._transport = transport
        peer, own = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        is_tls = transport.get_extra_info("ssl_object") is not None
        self._base = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "scheme": "https" if is_tls else "http",
            "client": peer[:2] if isinstance(peer, tuple) else None,
            "server": own[:2] if isinstance(own, tuple) else None,
            "root_path": "",
        }
        self._base["state"] = self._make_state(transport)
        self._expire_in(self._timers.head_s)
        self._on_made(self)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        if self._discarded is not None:
            self._discarded += len(data)
            if self._discarded > strict.LINGER_BYTES_MAX:
                self.close()
            return
        if self._exchange is None and not self._buffer:
            self._expire_in(self._timers.head_s)
        self._buffer += data
        self._advance()

    def eof_received(self) -> None:
        """The caller sends no more; what it asked is not worth finishing."""

    def connection_lost(self, error: Exception | None) -> None:
        """It is over, whoever ended it."""
        self._is_lost = True
        self._deadline = None
        if self._timer is not None:
            self._timer.cancel()
        if self._flushed is not None and not self._flushed.done():
            self._flushed.set_result(None)
        if self._exchange is not None:
            self._exchange.is_over = True
            self._exchange.wake()
            for tell in self._exchange.hangups:
                tell()
        self._end()

    def pause_writing(self) -> None:
        """The caller does not read as fast as we write."""
        self._flushed = self._loop.create_future()

    def resume_writing(self) -> None:
        """It caught up."""
        if self._flushed is not None and not self._flushed.done():
            self._flushed.set_result(None)
        self._flushed = None

    # -- for the server ------------------------------------------------------------------------

    @property
    def tls(self) -> Any:
        """The TLS object of the connection, None without TLS."""
        return self._transport.get_extra_info("ssl_object")

    def close_if_quiet(self, since: float) -> None:
        """End the connection if no byte of a request is here, nor likely to be on its way.

        Args:
            since: loop time from which callers may have known better.

        A caller that just connected did so to ask something and may be slow to, so it is waited
        for longer than one whose connection has been in use.
        """
        if self._exchange is not None or self._buffer:
            return
        patience_s = self._timers.fresh_s if self._is_fresh else self._timers.grace_s
        if self._loop.time() - max(since, self._quiet_since) >= patience_s:
            self.close()

    def close(self) -> None:
        """End the connection once what was written has left."""
        self._transport.close()

    def abort(self) -> None:
        """End the connection now, whatever it is doing."""
        self._transport.abort()

    def cancel(self) -> None:
        """Cancel the application's work on this connection."""
        if self._task is not None:
            self._task.cancel()

    # -- for an exchange -----------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Bytes to the caller."""
        self._transport.write(data)

    async def drained(self) -> None:
        """Wait while the caller is behind.

        Raises:
            ConnectionError: it took nothing for too long, or is gone.
        """
        if self._flushed is None:
            return
        done, _ = await asyncio.wait((self._flushed,), timeout=self._timers.send_s)
        if not done:
            self.abort()
        if not done or self._is_lost:
            raise ConnectionAbortedError("the caller does not take its answer")

    def body_taken(self) -> None:
        """The application took what there was: read on."""
        if not self._is_reading and not self._is_lost:
            self._is_reading = True
            self._transport.resume_reading()
            self._advance()

    def is_last_answer(self, exchange: _Exchange) -> bool:
        """Whether the connection ends with this answer."""
        is_drained = self._is_draining() and not self._buffer
        return is_drained or not exchange.body.is_done

    def answered(self, exchange: _Exchange) -> None:
        """The answer is complete: go on with the connection, or end it."""
        if self._exchange is not exchange or self._is_lost:
            return
        exchange.is_over = True
        exchange.wake()
        self._exchange = None
        self._is_fresh, self._quiet_since = False, self._loop.time()
        if not exchange.body.is_done:
            self._linger()
        elif not exchange.is_kept or (self._is_draining() and not self._buffer):
            self.close()
        else:
            self._expire_in(self._timers.head_s if self._buffer else self._timers.keep_alive_s)
            self._read_on()
            self._advance()

    @classmethod
    def date(cls) -> bytes:
        """The Date header, made once a second."""
        second = clock.now_ns() // 1_000_000_000
        if cls._now[0] != second:
            cls._now = (second, f"date: {format_date_time(second)}\r\n".encode())
        return cls._now[1]

    # -- reading -------------------------------------------------------------------------------

    def _advance(self) -> None:
        try:
            while self._buffer and self._discarded is None and not self._transport.is_closing():
                exchange = self._exchange
                if exchange is None:
                    if not self._take_head():
                        return
                elif not exchange.body.is_done:
                    held = len(self._buffer)
                    exchange.feed(exchange.body.take(self._buffer))
                    if exchange.held_bytes > _INBOX_BYTES_MAX:
                        self._hold_reading()
                    if len(self._buffer) == held:
                        return
                else:  # the next request waits for its turn
                    if len(self._buffer) > _INBOX_BYTES_MAX:
                        self._hold_reading()
                    return
        except Refused as refused:
            self._refuse(refused.status)

    def _take_head(self) -> bool:
        """Begin the next request; False while its head is incomplete.

        Raises:
            Refused: it is none.
        """
        buffer = self._buffer
        if buffer[0] < 0x21:
            raise Refused("no request line")
        match = HEAD_END.search(buffer, self._searched)
        if match is None:
            if len(buffer) > strict.HEAD_BYTES_MAX:
                raise Refused("head too large", status=431)
            self._searched = max(0, len(buffer) - 2)
            return False
        head = bytes(buffer[: match.end()])
        del buffer[: match.end()]
        self._searched = 0
        if head != self._head:  # most callers ask the same again
            self._head, self._asked = head, asked_from_head(head)
        assert self._asked is not None  # noqa: S101
        self._begin(self._asked)
        return True

    def _begin(self, asked: Asked) -> None:
        scope = self._base | asked.scope
        exchange = self._exchange = _Exchange(self, scope, asked.body())
        scope["extensions"] = {HANGUP: exchange.hangups.append}
        exchange.is_kept = asked.is_kept
        exchange.expects_continue = asked.expects_continue
        self._deadline = None
        self._task = self._loop.create_task(self._answer(exchange))

    async def _answer(self, exchange: _Exchange) -> None:
        try:
            await self._app(exchange.scope, exchange.receive, exchange.send)
        except ConnectionError:
            pass
        except Exception:  # noqa: BLE001 - one request must not end the others
            _log.exception("a request ended in an error")
        finally:
            if not exchange.is_answered and not self._is_lost and self._discarded is None:
                self.abort()
            if self._exchange is None:
                self._task = None
            self._end()

    def _refuse(self, status: int) -> None:
        """Answer what is no request, if that can still be done, and end the connection."""
        exchange, self._exchange = self._exchange, None
        has_answer = exchange is not None and exchange.has_started
        if exchange is not None:
            exchange.is_over = True
            exchange.wake()
        if not has_answer:
            found, headers, body = strict.refusal(status, clock.new_id("req"))
            lines = [name + b": " + value + b"\r\n" for name, value in headers]
            head = _STATUS_LINES[found] + b"".join(lines) + self.date() + b"\r\n"
            self.write(head + body)
        self._buffer.clear()
        self._linger()

    def _linger(self) -> None:
        """Read and drop for a moment, so that a reset does not overtake the answer."""
        self._buffer.clear()
        self._discarded = 0
        self._expire_in(self._timers.linger_s)
        self._read_on()

    def _hold_reading(self) -> None:
        if self._is_reading:
            self._is_reading = False
            self._transport.pause_reading()

    def _read_on(self) -> None:
        if not self._is_reading:
            self._is_reading = True
            self._transport.resume_reading()

    # -- ends ----------------------------------------------------------------------------------

    def _end(self) -> None:
        is_working = self._task is not None and not self._task.done()
        if is_working and self._task is not asyncio.current_task():
            return
        if self._is_lost and not self.ended.done():
            self.ended.set_result(None)

    def _expire_in(self, seconds: float) -> None:
        """Close the connection after this long, unless told otherwise before."""
        self._deadline = self._loop.time() + seconds
        # A timer that is due earlier looks again then: a busy connection sets one in a while.
        if self._timer is None or self._timer.when() > self._deadline:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(self._deadline, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._deadline is None or self._is_lost:
            return
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._look)
        else:
            self.close()
