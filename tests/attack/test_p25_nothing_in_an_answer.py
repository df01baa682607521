"""P25: what is no part of an answer is never put into one, by either server or proxy."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from appliance.sandbox.egress import Passage
from appliance.sandbox.proxy import Connection, Limits
from appliance.serve.direct import Direct
from appliance.serve.strict import Timers

_PATH = Path(__file__).parents[1] / "property" / "test_http_engines.py"
_SPEC = importlib.util.spec_from_file_location("engines_for_interim", _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
_MODULE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MODULE)
Wire = _MODULE.Wire

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def talker(_scope: Any, receive: Any, send: Any) -> None:
    """Reads what came, begins to answer, and listens whether the caller is still there."""
    message = await receive()
    while message.get("more_body"):
        message = await receive()
    listening = asyncio.ensure_future(receive())
    await asyncio.sleep(0)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"one", "more_body": True})
    await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": b"two"})
    listening.cancel()


async def early(_scope: Any, receive: Any, send: Any) -> None:
    """Answers before it has read anything, then reads."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"one", "more_body": True})
    reading = asyncio.ensure_future(receive())
    await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": b"two"})
    reading.cancel()


@pytest.mark.parametrize(
    ("app", "head"),
    [
        (talker, "GET / HTTP/1.1\r\nAccept: a/b"),
        (talker, "POST / HTTP/1.1\r\nContent-Length: 0"),
        (talker, "POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi"),
        (talker, "GET / HTTP/1.0\r\nAccept: a/b"),
        (early, "POST / HTTP/1.1\r\nContent-Length: 2"),
        (early, "POST / HTTP/1.0\r\nContent-Length: 2"),
    ],
)
async def test_no_interim_answer_comes_after_an_answer_began(app: Any, head: str) -> None:
    wire = Wire()
    line = Direct(app, lambda _: {}, lambda: False, Timers(), lambda _: None)
    line.connection_made(wire)
    first, _, rest = head.partition("\r\n")
    lines = f"{first}\r\nHost: a\r\nExpect: 100-continue\r\n{rest}"
    line.data_received((lines if "\r\n\r\n" in rest else f"{lines}\r\n\r\n").encode())
    for _ in range(20):
        await asyncio.sleep(0)
    line.connection_lost(None)
    await asyncio.sleep(0)
    assert wire.sent.startswith(b"HTTP/1.1 200")
    assert wire.sent.count(b"HTTP/1.1") == 1


@asynccontextmanager
async def through_proxy(far: Handler) -> AsyncIterator[tuple[int, int]]:
    """The port of a proxy that lets everything pass, and of a server behind it."""

    async def admit(_host: str, port: int, _protocol: str) -> Passage:
        return Passage(("127.0.0.1",), port, lambda _passage, _failed: None)

    async def near(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await Connection(reader, writer, Limits(), admit).serve(None)

    working: list[asyncio.Event] = []

    def watched(handler: Handler) -> Handler:
        async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            working.append(done := asyncio.Event())
            try:
                await handler(reader, writer)
            finally:
                writer.transport.abort()
                await asyncio.sleep(0.01)
                done.set()

        return work

    behind = await asyncio.start_server(watched(far), "127.0.0.1", 0)
    proxy = await asyncio.start_server(watched(near), "127.0.0.1", 0)
    try:
        yield proxy.sockets[0].getsockname()[1], behind.sockets[0].getsockname()[1]
    finally:
        await asyncio.gather(*(done.wait() for done in working))
        behind.close()
        proxy.close()


def resetting(begin: bytes) -> Handler:
    """A server that says this, and is gone without a word."""

    async def far(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1024)
        writer.write(begin)
        await writer.drain()
        await asyncio.sleep(0.1)  # whoever called this ends the connection

    return far


async def said(port: int, sent: list[bytes]) -> bytes:
    """All that comes back for these bytes, sent one after the other."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    found = b""
    try:
        async with asyncio.timeout(30):
            for piece in sent:
                writer.write(piece)
                await asyncio.sleep(0.02)
            while data := await reader.read(65536):
                found += data
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)
    return found


@pytest.mark.parametrize(
    "begin",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 400\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\nno chunk\r\n",
    ],
)
async def test_an_answer_that_is_cut_off_gets_no_other_at_its_end(begin: bytes) -> None:
    async with through_proxy(resetting(begin)) as (proxy, port):
        request = f"GET http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: a\r\n\r\n".encode()
        found = await said(proxy, [request])
    assert found.count(b"HTTP/1.1") <= 1
    assert b"problem" not in found


async def test_a_tunnel_that_breaks_carries_the_destinations_bytes_only() -> None:
    async with through_proxy(resetting(b"greeting")) as (proxy, port):
        target = f"127.0.0.1:{port}"
        request = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode()
        found = await said(proxy, [request, b"hello"])
    assert found == b"HTTP/1.1 200 Connection established\r\n\r\ngreeting"


async def test_a_destination_that_says_nothing_is_still_a_problem_document() -> None:
    async with through_proxy(resetting(b"")) as (proxy, port):
        request = f"GET http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: a\r\n\r\n".encode()
        found = await said(proxy, [request])
    assert found.startswith(b"HTTP/1.1 502 Bad Gateway")
