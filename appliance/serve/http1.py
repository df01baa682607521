"""Strict HTTP/1.1 on Hypercorn's engine: one connection from its first byte to its last.

Owns: what is refused before the application sees it, the timers of a connection, its back
pressure in both directions, and how it ends.
Never: listens, terminates TLS, speaks HTTP/2 or upgrades a connection.
Read next: ``serve`` (listeners and drain); the pins of hypercorn and h11 in ``pyproject.toml``.

This subclasses Hypercorn's and h11's own classes at exactly pinned versions. What it changes:

  refused               what ``strict`` lists
  ignored               every Upgrade (h2c, WebSocket) and HTTP/2 prior knowledge
  ended                 a head that takes over 10 s, an idle connection after 75 s, a reader that
                        takes nothing for 60 s
  kept                  an early answer to a body still arriving is not lost to a reset: the rest is
                        read and dropped for a moment before closing
  joined                head and first piece of an answer leave in one write
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections import deque
from collections.abc import Awaitable, Callable
from itertools import chain
from typing import Any

import h11
from h11._receivebuffer import ReceiveBuffer, blank_line_regex
from hypercorn.asyncio.task_group import TaskGroup, _handle
from hypercorn.asyncio.tcp_server import MAX_RECV, TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Request as StreamRequest
from hypercorn.protocol.events import Response as StreamResponse
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.typing import ConnectionState

from appliance import clock
from appliance.serve import strict
from appliance.serve.strict import Timers

_JOIN_BYTES_MAX = 64 * 1024
_INBOX_MAX = 10


class _Buffer(ReceiveBuffer):
    """h11's receive buffer, looking at heads and chunk headers before h11 forgives anything."""

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """The lines of a complete head, or trailer, that passes every check."""
        if self._data.startswith((b"\r\n", b"\n")):
            return super().maybe_extract_lines()
        match = blank_line_regex.search(self._data, self._multiple_lines_search)
        if match is not None:
            _require_strict_head(bytes(self._data[: match.end()]))
        return super().maybe_extract_lines()

    def maybe_extract_next_line(self) -> bytearray | None:
        """The next chunk header; short, whatever extensions it carries."""
        line = super().maybe_extract_next_line()
        if len(line if line is not None else self._data) > strict.CHUNK_HEAD_BYTES_MAX:
            raise h11.RemoteProtocolError("chunk header too long")
        if line is not None and strict.FORBIDDEN_BYTES.search(line):
            raise h11.RemoteProtocolError("control byte in chunk header")
        return line


def _require_strict_head(head: bytes) -> None:
    """The shared rules, refused the way h11 expects."""
    try:
        strict.require_strict_head(head)
    except strict.Refused as refused:
        raise h11.RemoteProtocolError(str(refused), error_status_hint=refused.status) from refused


class _Parser(h11.Connection):
    """h11's server connection with the strict buffer and a strict request line."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size=strict.HEAD_BYTES_MAX)
        self._receive_buffer = _Buffer()

    def next_event(self) -> Any:
        """The next event; a request is one we are willing to answer."""
        event = super().next_event()
        if type(event) is h11.Request:
            try:
                self._require_strict_request(event)
            except h11.RemoteProtocolError:
                self._process_error(self.their_role)
                raise
        return event

    @property
    def has_trailing_data(self) -> bool:
        """Whether bytes of a further request have arrived."""
        return bool(self._receive_buffer)

    def _require_strict_request(self, event: h11.Request) -> None:
        names = [name for name, _ in event.headers]
        try:
            strict.require_strict_request(event.method, event.target, event.http_version, names)
        except strict.Refused as refused:
            raise h11.RemoteProtocolError(str(refused)) from refused


class Protocol(H11Protocol):
    """Hypercorn's HTTP/1.1 protocol without upgrades, with problem documents and a drain."""

    connection: _Parser

    def __init__(self, *args: Any, is_draining: Callable[[], bool]) -> None:
        super().__init__(*args)
        self.connection = _Parser()
        self._is_draining = is_draining
        self._held = b""

    @property
    def is_body_unread(self) -> bool:
        """Whether the caller is still sending the body of a request that has its answer."""
        return self.connection.their_state is h11.SEND_BODY

    async def stream_send(self, event: Any) -> None:
        """Send a part of an answer; the last answer of a connection says that it is."""
        if isinstance(event, StreamResponse) and event.status_code >= 200:
            is_last = self._is_draining() and not self.connection.has_trailing_data
            if is_last or self.connection.their_state is h11.SEND_BODY:
                headers = [*event.headers, (b"connection", b"close")]
                event = dataclasses.replace(event, headers=headers)
        await super().stream_send(event)

    async def _check_protocol(self, event: h11.Request) -> None:
        """No upgrade, ever."""

    async def _create_stream(self, request: h11.Request) -> None:
        self.stream = HTTPStream(
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            STREAM_ID,
        )
        await self.stream.handle(
            StreamRequest(
                stream_id=STREAM_ID,
                headers=list(request.headers),
                http_version=request.http_version.decode(),
                method=request.method.decode("ascii"),
                raw_path=request.target,
                state=self.connection_state,
            )
        )
        self.keep_alive_requests += 1

    async def _send_h11_event(self, event: Any) -> None:
        try:
            data = self.connection.send(event) or b""
        except h11.LocalProtocolError:
            if self.connection.their_state != h11.ERROR:
                raise
            return
        if type(event) is h11.Response:
            self._held = data
            return
        held, self._held = self._held, b""
        if held and len(data) > _JOIN_BYTES_MAX:
            await self.send(RawData(data=held))
            held = b""
        if held or data:
            await self.send(RawData(data=held + data))

    async def _send_error_response(self, status_code: int) -> None:
        status, headers, body = strict.refusal(status_code, clock.new_id("req"))
        await self._send_h11_event(
            h11.Response(
                status_code=status,
                headers=list(chain(headers, self.config.response_headers("h11"))),
            )
        )
        await self._send_h11_event(h11.Data(data=body))
        await self._send_h11_event(h11.EndOfMessage())

    async def _maybe_recycle(self) -> None:
        """After an answer: go on with the connection, or end it.

        While draining, a further request that has arrived already is still answered.
        """
        await self._close_stream()
        is_clean = self.connection.our_state is h11.DONE and self.connection.their_state is h11.DONE
        if is_clean and (not self._is_draining() or self.connection.has_trailing_data):
            self.connection.start_next_cycle()
            await self.can_read.set()
            await self.send(Updated(idle=True))
        else:
            await self.can_read.set()
            await self.send(Closed())


class _Inbox:
    """What the application receives. Full: the connection is not read. Closed: the rest is dropped.

    Hypercorn's own queue blocks for ever when an application answers without reading the body.
    """

    def __init__(self) -> None:
        self._messages: deque[Any] = deque()
        self._is_closed = False
        self._changed = asyncio.Event()

    async def put(self, message: Any) -> None:
        """Add a message; wait while full."""
        if message["type"] == "http.disconnect":
            self.close()
            return
        while len(self._messages) >= _INBOX_MAX and not self._is_closed:
            self._changed.clear()
            await self._changed.wait()
        if not self._is_closed:
            self._messages.append(message)
            self._changed.set()

    async def get(self) -> Any:
        """The next message; after the end, disconnect for ever."""
        while not self._messages:
            if self._is_closed:
                return {"type": "http.disconnect"}
            self._changed.clear()
            await self._changed.wait()
        message = self._messages.popleft()
        self._changed.set()
        return message

    def close(self) -> None:
        """No more messages will come, or are wanted."""
        self._is_closed = True
        self._changed.set()


class _Tasks(TaskGroup):
    """The tasks of one connection."""

    async def spawn_app(
        self, app: Any, config: Config, scope: Any, send: Any
    ) -> Callable[[Any], Awaitable[None]]:
        """Run the application on one request; returns the way in for the request's messages."""
        inbox = _Inbox()

        async def run() -> None:
            try:
                await _handle(app, config, scope, inbox.get, send, _no_thread, _no_thread)
            finally:
                inbox.close()

        self.spawn(run)
        return inbox.put


def _no_thread(*_: Any) -> None:
    raise RuntimeError("ASGI applications only")


class Connection(TCPServer):
    """One connection: reads, feeds the protocol, writes, and watches the clock."""

    def __init__(
        self,
        app: Any,
        config: Config,
        state: dict[str, Any],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        is_draining: Callable[[], bool],
        timers: Timers,
    ) -> None:
        """Make a connection; ``state`` becomes ``scope["state"]`` of its requests."""
        loop = asyncio.get_running_loop()
        super().__init__(app, loop, config, WorkerContext(None), state, reader, writer)
        self._is_draining = is_draining
        self._timers = timers
        self._timer: asyncio.TimerHandle | None = None
        self._is_idle = True
        self._is_head_timed = False
        self._is_fresh = True
        self._quiet_since = loop.time()
        self._discarded: int | None = None

    async def run(self) -> None:
        """Serve the connection until it ends."""
        is_tls = self.writer.get_extra_info("ssl_object") is not None
        client = self.writer.get_extra_info("peername")
        server = self.writer.get_extra_info("sockname")
        try:
            async with _Tasks(self.loop) as group:
                self._task_group = group
                self.protocol: Any = Protocol(
                    self.app,
                    self.config,
                    self.context,
                    group,
                    ConnectionState(self.state),
                    is_tls,
                    client[:2] if isinstance(client, tuple) else None,
                    server[:2] if isinstance(server, tuple) else None,
                    self.protocol_send,
                    is_draining=self._is_draining,
                )
                self._arm(self._timers.head_s)
                await self._read_data()
                self._disarm()
        except* (ConnectionError, OSError):
            pass
        finally:
            self._disarm()
            await self._close()

    def close_if_quiet(self, since: float) -> None:
        """End the connection if no byte of a request is here, nor likely to be on its way.

        Args:
            since: loop time from which callers may have known better.

        A caller that just connected did so to ask something and may be slow to, so it is waited
        for longer than one whose connection has been in use.
        """
        if not self._is_idle or self.protocol.connection.has_trailing_data:
            return
        patience_s = self._timers.fresh_s if self._is_fresh else self._timers.grace_s
        if self.loop.time() - max(since, self._quiet_since) >= patience_s:
            self.writer.close()

    def abort(self) -> None:
        """End the connection now, whatever it is doing."""
        self.writer.transport.abort()

    async def protocol_send(self, event: Event) -> None:
        """Carry out what the protocol wants done with the connection."""
        if isinstance(event, RawData):
            await self._write(event.data)
        elif isinstance(event, Updated):
            self._is_idle, self._is_head_timed = event.idle, False
            self._is_fresh, self._quiet_since = False, self.loop.time()
            if event.idle:
                self._arm(self._timers.keep_alive_s)
            else:
                self._disarm()
        elif isinstance(event, Closed):
            if self.protocol.is_body_unread and not self.writer.is_closing():
                self._discarded = 0
                self._arm(self._timers.linger_s)
            else:
                self._disarm()
                self.writer.close()

    async def _write(self, data: bytes) -> None:
        async with self.send_lock:
            try:
                self.writer.write(data)
                if self.writer.transport.get_write_buffer_size():
                    async with asyncio.timeout(self._timers.send_s):
                        await self.writer.drain()
            except (OSError, RuntimeError):  # TimeoutError is an OSError
                self.abort()
                await self.protocol.handle(Closed())

    async def _read_data(self) -> None:
        while not self.reader.at_eof():
            try:
                data = await self.reader.read(MAX_RECV)
            except OSError:
                break
            if self._discarded is not None:
                self._discarded += len(data)
                if self._discarded > strict.LINGER_BYTES_MAX:
                    break
                continue
            await self.protocol.handle(RawData(data))
            if self._is_idle and not self._is_head_timed and data:
                self._is_head_timed = True
                self._arm(self._timers.head_s)
        await self.protocol.handle(Closed())

    async def _close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError, RuntimeError):  # the peer was faster
            await self.writer.wait_closed()

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, self.writer.close)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
