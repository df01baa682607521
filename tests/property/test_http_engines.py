"""Two readers of HTTP/1.1, one reading: what one engine takes for a request, the other does too."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import h11
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.serve.direct import Direct
from appliance.serve.http1 import _Parser
from appliance.serve.strict import Timers

Seen = tuple[str, bytes, tuple[tuple[bytes, bytes], ...], bytes]


class Wire:
    """A transport in memory."""

    def __init__(self) -> None:
        self.sent = b""
        self.is_over = False

    def get_extra_info(self, _name: str) -> None:
        return None

    def write(self, data: bytes) -> None:
        self.sent += data

    def close(self) -> None:
        self.is_over = True

    def is_closing(self) -> bool:
        return self.is_over

    abort = close

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


async def seen_by_direct(pieces: list[bytes]) -> tuple[list[Seen], bytes]:
    """What the application gets, and what is sent back."""
    found: list[Seen] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            if not message["more_body"]:
                break
        found.append((scope["method"], scope["raw_path"], tuple(scope["headers"]), body))
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    wire = Wire()
    line = Direct(app, lambda _: {}, lambda: False, Timers(), lambda _: None)
    line.connection_made(wire)
    for piece in pieces:
        if not wire.is_over:
            line.data_received(piece)
        for _ in range(8):
            await asyncio.sleep(0)
    line.connection_lost(None)
    await asyncio.sleep(0)
    return found, wire.sent


def seen_by_h11(data: bytes) -> list[Seen]:
    """The complete requests before the first refusal."""
    parser, found = _Parser(), []
    parser.receive_data(data)
    head: Any = None
    body = b""
    try:
        while True:
            event = parser.next_event()
            if isinstance(event, h11.Request):
                head, body = event, b""
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                path = head.target.partition(b"?")[0]
                found.append((head.method.decode(), path, tuple(head.headers), body))
                parser.send(h11.Response(status_code=204, headers=[]))
                parser.send(h11.EndOfMessage())
                if parser.our_state is not h11.DONE:
                    return found
                parser.start_next_cycle()
            else:
                return found
    except h11.RemoteProtocolError:
        return found


TOKENS = st.sampled_from(
    [
        b"GET",
        b"POST",
        b"get",
        b"CONNECT",
        b" ",
        b"  ",
        b"/",
        b"/a?b",
        b"*",
        b"http://x/",
        b"HTTP/1.1",
        b"HTTP/1.0",
        b"HTTP/1.2",
        b"\r\n",
        b"\n",
        b"\r",
        b"\r\n\r\n",
        b"Host: a",
        b"Host:",
        b"X: y",
        b"Content-Length: 3",
        b"Content-Length: 0",
        b"content-length:5",
        b"Content-Length: 03",
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: identity",
        b"transfer-encoding:\tChunked",
        b"Connection: close",
        b"Connection: keep-alive",
        b"Expect: 100-continue",
        b" x",
        b"\tx",
        b":",
        b"3\r\nabc\r\n",
        b"0\r\n\r\n",
        b"0\r\nA: b\r\n\r\n",
        b"a;b=c\r\n0123456789\r\n",
        b"3 \r\nabc\r\n",
        b"\x00",
        b"\x80",
        b"abc",
        b"X : y",
        b"(: y",
        b"Upgrade: h2c",
        b"Connection: Upgrade",
    ]
)
HEADS = [
    b"GET /a HTTP/1.1\r\nHost: a\r\n",
    b"POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n",
    b"POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n",
    b"POST /d HTTP/1.0\r\nContent-Length: 3\r\n",
]
MESSAGES = st.lists(
    st.one_of(st.sampled_from(HEADS), TOKENS, st.sampled_from([b"\r\n", b"abc", b"0\r\n\r\n"])),
    min_size=1,
    max_size=12,
).map(b"".join)


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=MESSAGES)
def test_both_engines_see_the_same_requests(data: bytes) -> None:
    expected = seen_by_h11(data)
    found, sent = asyncio.run(seen_by_direct([data]))
    # Direct may be the stricter of the two; it never sees a request that h11 does not.
    assert found == expected[: len(found)]
    if len(found) < len(expected):
        assert b"HTTP/1.1 400" in sent


@settings(max_examples=200, deadline=None)
@given(data=MESSAGES, cuts=st.lists(st.integers(0, 400), max_size=6))
def test_it_does_not_matter_how_the_bytes_are_cut(data: bytes, cuts: list[int]) -> None:
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    pieces = [data[a:b] for a, b in itertools.pairwise(places) if a != b]
    whole = asyncio.run(seen_by_direct([data]))
    cut = asyncio.run(seen_by_direct(pieces))
    assert cut[0] == whole[0]
