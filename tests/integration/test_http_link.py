"""The HTTP link against a real server on loopback that answers whatever bytes it is told to."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from boxes import pieces

from appliance.errors import PodmanUnavailable
from appliance.sandbox.frames import GuestFault, LinkLost, ReplyOverCap
from appliance.sandbox.http_link import HttpLink, cog_body, cog_output
from appliance.sandbox.protocols import CONTRACTS, Serving
from appliance.sandbox.spec import MIB, Reply, Request

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Here:
    """A host whose container is this machine's loopback."""

    def __init__(self) -> None:
        self.sockets = 0

    async def place(self, tar: AsyncIterator[bytes]) -> None:
        async for _ in tar:
            pass

    async def begin(self) -> None:
        pass

    async def open_socket(self) -> socket.socket:
        self.sockets += 1
        return socket.socket()


def serving_of(protocol: str, port: int) -> Serving:
    contract = CONTRACTS[protocol]
    return Serving(
        protocol=protocol,
        port=port,
        argv=("server",),
        path=contract.path.replace("{model}", "m"),
        health_path=contract.health_path.replace("{model}", "m"),
        model_path="/model",
        environment={},
        work_dir="/",
    )


@asynccontextmanager
async def linked(serve: Serve, protocol: str = "sagemaker") -> AsyncIterator[tuple[HttpLink, Here]]:
    tasks = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        tasks.add(task)
        try:
            await serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()
            tasks.discard(task)

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    here = Here()
    link = HttpLink(serving_of(protocol, server.sockets[0].getsockname()[1]), here)
    try:
        yield link, here
    finally:
        await link.close()
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def read_request(reader: asyncio.StreamReader) -> tuple[str, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.strip().split("\r\n")
    headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
    return first, headers, await reader.readexactly(int(headers.get("content-length", 0)))


def answering(data: bytes, *, then: str = "wait") -> Serve:
    """A server that reads one request and sends these bytes; then it waits or closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(data)
        await writer.drain()
        if then == "wait":
            await asyncio.sleep(30)

    return serve


def plain(body: bytes, status: str = "200 OK", kind: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def call(body: bytes = b"{}", *, most: int = MIB, kind: str = "application/json") -> Request:
    return Request(id="r", content_type=kind, body=body, timeout_ms=5000, reply_bytes_max=most)


async def asked(serve: Serve, protocol: str = "sagemaker", **request: object) -> Reply:
    async with linked(serve, protocol) as (link, _), asyncio.timeout(30):
        return await link.request(call(**request))  # type: ignore[arg-type]


async def test_a_call_passes_body_type_and_route_and_reuses_its_connection() -> None:
    seen = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            first, headers, body = await read_request(reader)
            seen.append((first, headers["content-type"], headers["accept-encoding"], body))
            writer.write(plain(b"[1]", kind="text/csv"))

    async with linked(serve) as (link, here):
        for _ in range(3):
            reply = await link.request(call(b"1,2", kind="text/csv"))
            assert (reply.body, reply.content_type) == (b"[1]", "text/csv")
        assert here.sockets == 1
    assert seen == [("POST /invocations HTTP/1.1", "text/csv", "identity", b"1,2")] * 3


@pytest.mark.parametrize("form", ["chunked", "until the end", "after interim answers", "early"])
async def test_every_honest_form_of_answer_is_read(form: str) -> None:
    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")  # the body is not even read
        writer.write(plain(b"hello"))
        await writer.drain()
        await asyncio.sleep(30)

    forms = {
        "chunked": answering(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"
        ),
        "until the end": answering(b"HTTP/1.0 200 OK\r\n\r\nhello", then="close"),
        "after interim answers": answering(
            b"HTTP/1.1 102 Processing\r\n\r\n" * 3 + plain(b"hello")
        ),
        "early": early,
    }
    body = b"x" * (8 * MIB) if form == "early" else b"{}"
    assert (await asked(forms[form], body=body)).body == b"hello"


async def test_a_connection_the_server_closed_is_not_used_again() -> None:
    async with linked(answering(plain(b"1"), then="close")) as (link, here):
        for _ in range(3):
            assert (await link.request(call())).body == b"1"
            await asyncio.sleep(0.05)
        assert here.sockets == 3


FAILURES = {
    "open inference": (b'{"error": "no such input"}', "no such input"),
    "fastapi": (b'{"detail": [{"loc": ["body"], "msg": "missing"}]}', '"msg":"missing"'),
    "mlflow": (b'{"error_code": "BAD_REQUEST", "message": "wrong columns"}', "wrong columns"),
    "nested": (b'{"error": {"code": 400, "message": "inner words"}}', "inner words"),
    "text": (b"<h1>Internal\nServer   Error</h1>", "<h1>Internal Server Error</h1>"),
    "escape sequences": (b'{"error": "\\u001b[2Jred"}', "\N{REPLACEMENT CHARACTER}[2Jred"),
    "nothing": (b"", "nothing more"),
    "no text": (b"\xff\xfe\x00", "\N{REPLACEMENT CHARACTER}"),
}


@pytest.mark.parametrize(("body", "said"), FAILURES.values(), ids=FAILURES)
async def test_a_status_of_400_and_more_is_the_models_own_failure(body: bytes, said: str) -> None:
    with pytest.raises(GuestFault) as caught:
        await asked(answering(plain(body, "422 Unprocessable", "text/plain")))
    assert caught.value.kind == "raised"
    assert "422" in caught.value.detail
    assert said in caught.value.detail


async def test_the_link_lives_on_after_a_failure() -> None:
    answers = [plain(b'{"error": "once"}', "500 Oh"), plain(b"fine")]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(answers.pop(0))

    async with linked(serve) as (link, _):
        with pytest.raises(GuestFault):
            await link.request(call())
        assert (await link.request(call())).body == b"fine"


ENDLESS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
BROKEN = {
    "no HTTP": b"SSH-2.0-OpenSSH\r\n\r\n",
    "endless headers": b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 20_000,
    "one endless header": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000,
    "101": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    "interim without end": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000,
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "a length that is none": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nabc",
    "a chunk size that is none": ENDLESS + b"xyz\r\nabc\r\n",
    "an endless chunk size": ENDLESS + b"1" * 100_000,
    "an endless trailer": ENDLESS + b"0\r\n" + b"X-A: b\r\n" * 20_000,
    "framing": ENDLESS + b"1\r\nx\r\n" * 200_000,
    "a content type with a line break": b"HTTP/1.1 200 OK\r\nContent-Type: \x7f\r\n\r\n",
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
async def test_what_is_no_answer_ends_the_sandbox_at_once(data: bytes) -> None:
    started = time.monotonic()
    with pytest.raises(LinkLost) as caught:
        await asked(answering(data, then="close" if b"\x7f" in data else "wait"), most=4 * MIB)
    assert caught.value.protocol
    assert time.monotonic() - started < 5


TOO_LARGE = {
    "said so": b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999999\r\n\r\n",
    "chunked": ENDLESS + (b"8000\r\n" + b"x" * 0x8000 + b"\r\n") * 40,
    "until the end": b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * (2 * MIB),
}


@pytest.mark.parametrize("data", TOO_LARGE.values(), ids=TOO_LARGE)
async def test_an_answer_over_the_cap_is_not_read_to_its_end(data: bytes) -> None:
    with pytest.raises(ReplyOverCap):
        await asked(answering(data))


CUT_OFF = {
    "before anything": b"",
    "in the headers": b"HTTP/1.1 200 OK\r\nContent-",
    "in the body": b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf",
    "in a chunk": ENDLESS + b"50\r\nhalf",
}


@pytest.mark.parametrize("data", CUT_OFF.values(), ids=CUT_OFF)
async def test_an_answer_cut_off_is_an_end_not_a_lie(data: bytes) -> None:
    with pytest.raises(LinkLost) as caught:
        await asked(answering(data, then="close"))
    assert not caught.value.protocol


async def test_a_call_is_never_sent_twice() -> None:
    seen = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        if len(seen) == 1:
            writer.write(plain(b"1"))
            seen.append(await read_request(reader))  # the second call, on the same connection

    async with linked(serve) as (link, _):
        await link.request(call())
        with pytest.raises(LinkLost):
            await link.request(call())
    assert len(seen) == 2


async def test_a_redirect_is_told_and_not_followed() -> None:
    moved = b"HTTP/1.1 307 Moved\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n"
    with pytest.raises(GuestFault, match=r"307, a redirect to 'http://169\.254"):
        await asked(answering(moved))


async def test_a_compressed_answer_is_refused_not_inflated() -> None:
    packed = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b"
    with pytest.raises(GuestFault) as caught:
        await asked(answering(packed))
    assert caught.value.kind == "unsupported"


async def test_the_end_of_the_container_ends_what_is_waited_for() -> None:
    async with linked(answering(b"")) as (link, _):
        waiting = asyncio.ensure_future(link.request(call()))
        await asyncio.sleep(0.1)
        link.end()
        with pytest.raises(LinkLost):
            await asyncio.wait_for(waiting, 30)


@pytest.mark.parametrize(
    ("protocol", "health"),
    [
        ("sagemaker", plain(b"")),
        ("mlflow", plain(b"\n")),
        ("oip", plain(b'{"name":"m","ready":true}')),
        ("vertex", plain(b"ok")),
        ("cog", plain(b'{"status":"READY"}')),
        ("http", plain(b"", "404 Not Found")),
    ],
)
async def test_a_container_is_ready_when_its_protocol_says_so(protocol: str, health: bytes) -> None:
    not_yet = [plain(b'{"status":"STARTING"}'), plain(b"", "503 Busy")]
    if protocol != "cog":
        not_yet.pop(0)
    seen = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, _, _ = await read_request(reader)
        seen.append(first)
        writer.write(not_yet.pop(0) if not_yet else health)
        await writer.drain()

    async with linked(serve, protocol) as (link, _), asyncio.timeout(30):
        await link.load({}, pieces(b""))
    route = CONTRACTS[protocol].health_path.replace("{model}", "m")
    assert set(seen) == {f"GET {route} HTTP/1.1"}
    assert not not_yet


async def test_what_a_load_waits_for_can_be_told() -> None:
    async with linked(answering(plain(b"", "500 Oh")), "oip") as (link, _):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(link.load({}, pieces(b"")), 0.3)
        assert link.waiting == ": GET /v2/models/m/ready answered 500"
    link = HttpLink(serving_of("sagemaker", 9), Here())
    assert "nothing listens on its port 9" in link.waiting
    await link.close()


async def test_a_cog_that_cannot_set_up_fails_at_once() -> None:
    serve = answering(plain(b'{"status":"SETUP_FAILED"}'))
    async with linked(serve, "cog") as (link, _), asyncio.timeout(30):
        with pytest.raises(GuestFault, match="SETUP_FAILED"):
            await link.load({}, pieces(b""))


async def test_files_that_cannot_be_placed_are_the_versions_fault() -> None:
    class Full(Here):
        async def place(self, tar: AsyncIterator[bytes]) -> None:
            raise PodmanUnavailable("No space left on device")

    link = HttpLink(serving_of("sagemaker", 9), Full())
    with pytest.raises(GuestFault, match="No space left"):
        await link.load({}, pieces(b""))
    await link.close()


async def test_a_cog_call_is_wrapped_and_its_output_unwrapped() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            _, _, body = await read_request(reader)
            said = json.loads(body)["input"]
            answer = {"status": "succeeded", "output": {"got": said}, "metrics": {}}
            if said.get("fail"):
                answer = {"status": "failed", "error": "as asked"}
            writer.write(plain(json.dumps(answer).encode()))

    async with linked(serve, "cog") as (link, _):
        assert json.loads((await link.request(call(b'{"a": 1}'))).body) == {"got": {"a": 1}}
        whole = json.loads((await link.request(call(b'{"input": {"a": 1}}'))).body)
        assert whole["output"] == {"got": {"a": 1}}
        with pytest.raises(GuestFault, match="as asked"):
            await link.request(call(b'{"fail": true}'))
        with pytest.raises(GuestFault, match="JSON object"):
            await link.request(call(b"[1]"))


def test_a_cog_input_called_input_is_told_from_a_whole_call() -> None:
    assert cog_body(b'{"input": "text", "n": 1}') == (b'{"input":{"input": "text", "n": 1}}', True)
    assert cog_body(b'{"input": {"n": 1}, "webhook": "x"}')[1] is False
    assert cog_body(b"") == (b'{"input":{}}', True)
    with pytest.raises(GuestFault):
        cog_body(b"[" * 100_000)
    with pytest.raises(LinkLost):
        cog_output(b"no json", is_wrapped=True)
    assert cog_output(b'{"status":"succeeded"}', is_wrapped=True) == b"null"
