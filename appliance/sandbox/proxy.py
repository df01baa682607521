"""One connection out of a sandbox: HTTP through the proxy, or bytes to a name of its own.

Owns: reading what a hostile client sends to a proxy, and moving bytes both ways without holding
more than a fixed number of them.
Never: resolves a name, follows a redirect, or decides; every destination goes through ``admit``.
Read next: ``egress`` (who makes these), ``appliance.egress.guard`` (who decides).

Three forms: ``CONNECT host:port`` (RFC 9110 section 9.3.6), a request in absolute form
(RFC 9112 section 3.2.2), of which one is served per connection, and plain TCP to a known target.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import h11

from appliance.errors import ApplianceError, EgressDenied

if TYPE_CHECKING:
    from appliance.sandbox.egress import Passage

HEAD_BYTES_MAX = 32 * 1024
_CHUNK_BYTES = 256 * 1024
_HELD_BYTES_MAX = 256 * 1024
_HEAD_TIMEOUT_S = 10.0
_LINGER_S = 1.0
_LINGER_BYTES = 64 * 1024
_ADDRESSES_TRIED = 4
_AUTHORITY = re.compile(rb"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,254})(?::([0-9]{1,5}))?")
# RFC 9110 section 7.6.1, and what is only for a proxy.
_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"proxy-authorization",
     b"proxy-authenticate", b"te", b"trailer", b"upgrade", b"expect", b"host"}
)  # fmt: skip
_REASONS = {400: "Bad Request", 403: "Forbidden", 502: "Bad Gateway", 503: "Service Unavailable",
            504: "Gateway Timeout"}  # fmt: skip

Admit = Callable[[str, int, str], Awaitable["Passage"]]
Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Deadlines and caps of the connections of one sandbox."""

    connections_max: int = 64
    connect_timeout_s: float = 10.0
    idle_timeout_s: float = 300.0


class _Malformed(Exception):
    """What the client sent is no request a proxy could serve; the text says why."""


class Connection:
    """One accepted connection."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        limits: Limits,
        admit: Admit,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._limits = limits
        self._admit = admit
        self.passes_on = ""  # "answer" or "tunnel", once bytes of the destination were sent
        writer.transport.set_write_buffer_limits(high=_HELD_BYTES_MAX)

    async def serve(self, target: tuple[str, int] | None) -> None:
        """Serve it to its end.

        Args:
            target: where a connection to a name goes; ``None`` at the proxy.

        Raises:
            OSError, TimeoutError, ApplianceError: how a connection to a name ended.
        """
        if target is not None:
            passage = await self._admit(*target, "tcp")
            await self._with_upstream(passage, self._tunnel)
            return
        try:
            await self._serve_proxy()
        except (_Malformed, h11.ProtocolError) as error:
            await self._refuse(400, "malformed", str(error))
        except EgressDenied as error:
            more = {key: error.extensions[key] for key in ("reason", "rule_id")}
            await self._refuse(403, error.slug, error.detail, **more)
        except ApplianceError as error:
            await self._refuse(503, error.slug, "No connection can be recorded now.")
        except TimeoutError:
            await self._refuse(504, "egress-timeout", "The destination does not answer in time.")
        except OSError:
            await self._refuse(502, "egress-unreachable", "The destination cannot be reached.")

    async def _serve_proxy(self) -> None:
        client = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
        async with asyncio.timeout(_HEAD_TIMEOUT_S):
            request = await _next(client, self._reader)
        if not isinstance(request, h11.Request):
            return
        if request.method == b"CONNECT":
            await self._connect(client, request)
        else:
            await self._forward(client, request)

    async def _connect(self, client: h11.Connection, request: h11.Request) -> None:
        if any(name in (b"content-length", b"transfer-encoding") for name, _ in request.headers):
            raise _Malformed("CONNECT has no body")
        host, port = _split(request.target, None)
        await _next(client, self._reader)  # the end of the request
        early = client.trailing_data[0]
        passage = await self._admit(host, port, "connect")

        async def tunnel(
            passage: Passage, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            self.passes_on = "tunnel"
            self._writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            if early:
                writer.write(early)
                passage.sent_bytes += len(early)
            await self._tunnel(passage, reader, writer)

        await self._with_upstream(passage, tunnel)

    async def _forward(self, client: h11.Connection, request: h11.Request) -> None:
        target = bytes(request.target)
        if target[:7].lower() != b"http://":
            raise _Malformed("this is a proxy: it takes CONNECT and http:// addresses")
        at = re.search(rb"[/?#]", target[7:])
        authority, path = (
            (target[7:][: at.start()], target[7:][at.start() :]) if at else (target[7:], b"/")
        )
        host, port = _split(authority, 80)
        if b"#" in path:
            raise _Malformed("a fragment in the address")
        sent = h11.Request(
            method=request.method,
            target=path if path.startswith(b"/") else b"/" + path,
            headers=[
                (b"host", authority),
                *_end_to_end(request.headers),
                (b"via", b"1.1 sandbox"),
                (b"connection", b"close"),
            ],
        )
        passage = await self._admit(host, port, "http")

        async def exchange(
            passage: Passage, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            await _Exchange(self, client, passage, reader, writer).run(sent)

        await self._with_upstream(passage, exchange)

    async def _with_upstream(
        self,
        passage: Passage,
        use: Callable[[Passage, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    ) -> None:
        """Connect to where the passage leads and use that until either side, or a rule, ends it."""
        failed = True
        try:
            reader, writer = await self._open(passage)
            failed = False
            writer.transport.set_write_buffer_limits(high=_HELD_BYTES_MAX)

            def cut() -> None:
                writer.transport.abort()
                self._writer.transport.abort()

            passage.when_revoked(cut)
            work = asyncio.ensure_future(use(passage, reader, writer))
            watch = asyncio.ensure_future(self._watch(passage))
            try:
                await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
                if work.done():
                    work.result()
            finally:
                for task in (work, watch):
                    task.cancel()
                await asyncio.gather(work, watch, return_exceptions=True)
                writer.transport.abort() if passage.revoked else await _close(writer)
        finally:
            passage.end(failed=failed)

    async def _open(self, passage: Passage) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        last: OSError = OSError("no address")
        for address in passage.addresses[:_ADDRESSES_TRIED]:
            try:
                async with asyncio.timeout(self._limits.connect_timeout_s):
                    return await asyncio.open_connection(address, passage.port, limit=_CHUNK_BYTES)
            except TimeoutError as error:
                last = error
            except OSError as error:
                last = error
        raise last

    async def _watch(self, passage: Passage) -> None:
        """Return when nothing moved for the idle time, or the rules changed."""
        before = -1
        while (now := passage.sent_bytes + passage.received_bytes) != before:
            before = now
            await asyncio.sleep(self._limits.idle_timeout_s)

    async def _tunnel(
        self, passage: Passage, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        async def up() -> None:
            while data := await self._reader.read(_CHUNK_BYTES):
                writer.write(data)
                passage.sent_bytes += len(data)
                await writer.drain()
            writer.write_eof()

        async def down() -> None:
            while data := await reader.read(_CHUNK_BYTES):
                self._writer.write(data)
                passage.received_bytes += len(data)
                await self._writer.drain()
            self._writer.write_eof()

        await _both(up(), down())

    async def _refuse(self, status: int, slug: str, detail: str, **more: object) -> None:
        """Answer with a problem document and close; never raises for what the client does.

        In the middle of an answer there is only an end: a document would be taken for its content.
        """
        if self.passes_on == "tunnel":
            await _close(self._writer)
        if self.passes_on:
            self._writer.transport.abort()
            return
        document = {"type": f"/problems/{slug}", "title": _REASONS[status], "status": status,
                    "detail": detail[:500], **more}  # fmt: skip
        body = json.dumps(document).encode()
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        with contextlib.suppress(OSError, TimeoutError, RuntimeError):
            self._writer.write(head.encode("ascii") + body)
            async with asyncio.timeout(_LINGER_S):
                await self._writer.drain()
                self._writer.write_eof()
                left = _LINGER_BYTES  # closed with bytes unread, the answer might be lost
                while left > 0 and (data := await self._reader.read(left)):
                    left -= len(data)


class _Exchange:
    """One request in absolute form: its head was sent nowhere yet."""

    def __init__(
        self,
        connection: Connection,
        client: h11.Connection,
        passage: Passage,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._connection = connection
        self._reader, self._writer = connection._reader, connection._writer
        self._client = client
        self._server = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES_MAX)
        self._passage = passage
        self._far_reader, self._far_writer = reader, writer

    async def run(self, request: h11.Request) -> None:
        """Send the request, then its body and the answer at the same time."""
        await self._send_far(request)
        body = asyncio.ensure_future(self._send_body())
        try:
            await self._pass_answer()
        except h11.RemoteProtocolError as error:
            raise OSError("the destination speaks no HTTP") from error
        finally:
            body.cancel()
            await asyncio.gather(body, return_exceptions=True)

    async def _send_far(self, event: h11.Event) -> None:
        data = self._server.send(event) or b""
        self._far_writer.write(data)
        self._passage.sent_bytes += len(data)
        await self._far_writer.drain()

    async def _send_near(self, event: h11.Event) -> None:
        self._writer.write(self._client.send(event) or b"")
        await self._writer.drain()

    async def _send_body(self) -> None:
        if self._client.they_are_waiting_for_100_continue:
            await self._send_near(h11.InformationalResponse(status_code=100, headers=[]))
        while True:
            event = await _next(self._client, self._reader)
            if isinstance(event, h11.Data):
                await self._send_far(h11.Data(data=event.data))
            elif isinstance(event, h11.EndOfMessage):
                await self._send_far(h11.EndOfMessage())
                return
            else:
                self._far_writer.transport.abort()
                return

    async def _pass_answer(self) -> None:
        while True:
            event = await _next(self._server, self._far_reader, self._count)
            if isinstance(event, h11.Response):
                self._connection.passes_on = "answer"
                kept = [h for h in _end_to_end(event.headers) if h[0] != b"transfer-encoding"]
                await self._send_near(
                    h11.Response(
                        status_code=event.status_code,
                        reason=event.reason,
                        headers=[*kept, (b"connection", b"close")],
                    )
                )
            elif isinstance(event, h11.Data):
                await self._send_near(h11.Data(data=event.data))
            elif isinstance(event, h11.EndOfMessage):
                await self._send_near(h11.EndOfMessage())
                self._writer.write_eof()
                return
            elif not isinstance(event, h11.InformationalResponse):
                raise OSError("the destination closed the connection")

    def _count(self, size: int) -> None:
        self._passage.received_bytes += size


def _split(authority: bytes, default_port: int | None) -> tuple[str, int]:
    """Host and port of ``host:port``.

    Raises:
        _Malformed: it is none.
    """
    match = _AUTHORITY.fullmatch(authority)
    if match is None or (match[2] is None and default_port is None):
        raise _Malformed("the destination is no host and port")
    port = int(match[2]) if match[2] is not None else default_port or 0
    if not 1 <= port <= 65535:
        raise _Malformed("the destination's port is none")
    return match[1].decode("ascii"), port


def _end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """The headers that are for the other end."""
    named = {
        word.strip().lower()
        for name, value in headers
        if name == b"connection"
        for word in value.split(b",")
    } - {b"content-length", b"transfer-encoding"}
    return [(n, v) for n, v in headers if n not in _HOP_BY_HOP and n not in named]


async def _next(
    connection: h11.Connection,
    reader: asyncio.StreamReader,
    count: Callable[[int], None] = lambda _size: None,
) -> object:
    """The next event of a connection, read as it is needed."""
    while (event := connection.next_event()) is h11.NEED_DATA:
        data = await reader.read(_CHUNK_BYTES)
        count(len(data))
        connection.receive_data(data)
    return event


async def _both(*work: Awaitable[None]) -> None:
    """Until all are done; the first that fails ends the others."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _close(writer: asyncio.StreamWriter) -> None:
    """Close a stream, what was written included; not for longer than a moment."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            writer.close()
            await writer.wait_closed()
