"""Framing that must never be open to two readings, sent byte by byte over real TLS."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from appliance import config
from appliance.serve.strict import Timers


def _sibling(name: str) -> ModuleType:
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(name, module)
    spec.loader.exec_module(module)
    return module


test_serve = _sibling("test_serve")
settings_in, raw, engine = test_serve.settings_in, test_serve.raw, test_serve.engine
BRISK = Timers(accept_s=0.0, grace_s=0.0, fresh_s=0.0)


def served(settings: config.Settings, timers: Timers = BRISK) -> AbstractAsyncContextManager[Any]:
    found: AbstractAsyncContextManager[Any] = test_serve.served(settings, timers=timers)
    return found


for _name in [name for name in dir(test_serve) if name.startswith("test_")]:
    delattr(test_serve, _name)

SECOND = b"GET /second HTTP/1.1\r\nHost: a\r\n\r\n"

REFUSED = {
    "content-length and transfer-encoding": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two equal content-lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n"
    b"Content-Length: 0\r\n\r\n",
    "two unequal content-lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n"
    b"Content-Length: 5\r\n\r\n",
    "content-length list": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0, 0\r\n\r\n",
    "signed content-length": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +0\r\n\r\n",
    "hex content-length": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x0\r\n\r\n",
    "negative content-length": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    "endless content-length": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: "
    + b"9" * 30
    + b"\r\n\r\n",
    "obfuscated chunked": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n",
    "chunked twice": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked, identity": b"POST / HTTP/1.1\r\nHost: a\r\n"
    b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "space before the colon": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n",
    "chunked on 1.0": b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "bare line feed": b"GET / HTTP/1.1\nHost: a\n\n",
    "bare line feed inside": b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
    "bare carriage return": b"GET / HTTP/1.1\r\nHost: a\r\nX: y\rz\r\n\r\n",
    "folded line": b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n",
    "nul": b"GET / HTTP/1.1\r\nHost: a\r\nX: y\x00z\r\n\r\n",
    "escape": b"GET / HTTP/1.1\r\nHost: a\r\nX: y\x1bz\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "host with a space": b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
    "host with a path": b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "two content types": b"GET / HTTP/1.1\r\nHost: a\r\nContent-Type: a/b\r\n"
    b"Content-Type: c/d\r\n\r\n",
    "absolute form": b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "fragment": b"GET /#a HTTP/1.1\r\nHost: a\r\n\r\n",
    "connect": b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
    "lower-case method": b"get / HTTP/1.1\r\nHost: a\r\n\r\n",
    "version 1.2": b"GET / HTTP/1.2\r\nHost: a\r\n\r\n",
    "version 2.0": b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
    "prior knowledge": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "blank first": b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
}

TOO_LARGE = {
    "20 KB header": b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 20_000 + b"\r\n\r\n",
    "66 KB header": b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 66_000 + b"\r\n\r\n",
    "5000 headers": b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
    "101 short headers": b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 101 + b"\r\n",
    "64 KB target": b"GET /" + b"a" * 65_536 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "never ending": b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 40_000,
}


def parts(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    return int(lines[0].split(" ")[1]), headers, body


@pytest.mark.parametrize("name", REFUSED)
async def test_a_second_reading_is_refused(tmp_path: Path, name: str) -> None:
    async with served(settings_in(tmp_path)) as it:
        answer = await raw(it, REFUSED[name] + SECOND)
    status, headers, body = parts(answer)
    assert status == 400
    assert headers["connection"] == "close"
    assert headers["content-type"] == "application/problem+json"
    assert json.loads(body)["code"] == "malformed"
    assert b"/second" not in answer
    assert len(re.findall(rb"HTTP/1.1 \d\d\d", answer)) == 1


@pytest.mark.parametrize("name", TOO_LARGE)
async def test_a_large_head_is_refused(tmp_path: Path, name: str) -> None:
    async with served(settings_in(tmp_path)) as it:
        status, _, body = parts(await raw(it, TOO_LARGE[name]))
    assert status == 431
    assert json.loads(body)["code"] == "head-too-large"


@pytest.mark.parametrize(
    "chunks",
    [
        b"5;" + b"x" * 70_000 + b"\r\nhello\r\n0\r\n\r\n",
        b"5;a\nb\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"5\r\nhelloX\r\n0\r\n\r\n",
        b"5\r\nhello\r\n0\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
        b"5\r\nhello\r\n0\r\nX: a\n\r\n\r\n",
    ],
)
async def test_bad_chunks_end_the_connection(tmp_path: Path, chunks: bytes) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with served(settings_in(tmp_path)) as it:
        answer = await raw(it, head + chunks + SECOND)
    assert b"/second" not in answer
    assert b"<open>" not in answer
    assert b" 200 " not in answer


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"TLS/1.0"])
async def test_no_upgrade_is_ever_made(tmp_path: Path, protocol: bytes) -> None:
    request = (
        b"GET /up HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: "
        + protocol
        + b"\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    async with served(settings_in(tmp_path)) as it:
        answer = await raw(it, request, seconds=1.0)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"101" not in answer.split(b"\r\n")[0]


async def test_good_chunks_and_pipelining_work(tmp_path: Path) -> None:
    head = b"POST /c HTTP/1.1\r\nHost: a:1\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with served(settings_in(tmp_path)) as it:
        answer = await raw(it, head + b"5;a=b\r\nhello\r\n0\r\n\r\n" + SECOND * 2, seconds=1.0)
    assert b"POST /c 5 -" in answer
    assert answer.count(b"GET /second 0 -") == 2


async def test_the_same_head_again_has_a_body_of_its_own_and_another_is_read_anew(
    tmp_path: Path,
) -> None:
    head = b"POST /c HTTP/1.1\r\nHost: a:1\r\nTransfer-Encoding: chunked\r\n\r\n"
    sized = b"POST /s HTTP/1.1\r\nHost: a:1\r\nContent-Length: %d\r\n\r\n"
    data = head + b"5\r\nhello\r\n0\r\n\r\n" + head + b"2\r\nhi\r\n0\r\n\r\n"
    data += sized % 3 + b"abc" + sized % 3 + b"def" + sized % 4 + b"ghij" + SECOND
    async with served(settings_in(tmp_path)) as it:
        answer = await raw(it, data + b"GET /bad HTTP/1.1\r\n\r\n", seconds=1.0)
    said = [
        b"POST /c 5 -",
        b"POST /c 2 -",
        *[b"POST /s 3 -"] * 2,
        b"POST /s 4 -",
        b"GET /second 0 -",
    ]
    at = 0
    for text in said:
        at = answer.index(text, at) + len(text)
    assert answer.find(b"HTTP/1.1 400", at) > 0


async def test_expect_continue_is_answered(tmp_path: Path) -> None:
    async with served(settings_in(tmp_path)) as it:
        reader, writer = await it.connect()
        writer.write(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
        )
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        writer.write(b"abc")
        assert b"POST / 3 -" in await reader.readuntil(b"3 -")
        writer.close()


async def test_a_slow_head_and_an_idle_connection_end(tmp_path: Path) -> None:
    async with served(settings_in(tmp_path), Timers(head_s=0.5, keep_alive_s=1.0)) as it:
        loop = asyncio.get_running_loop()
        started = loop.time()
        assert b"<open>" not in await raw(it, b"GET / HT")
        assert loop.time() - started < 1.5
        started = loop.time()
        assert b"<open>" not in await raw(it, SECOND)
        assert 0.8 < loop.time() - started < 2.5
        reader, writer = await it.connect()
        writer.write(SECOND)
        await reader.readuntil(b"GET /second 0 -")
        for byte in b"GET /slow":
            writer.write(bytes([byte]))
            await asyncio.sleep(0.1)
        assert await reader.read(-1) == b""


async def test_a_reader_that_takes_nothing_is_cut_off(tmp_path: Path) -> None:
    async with served(settings_in(tmp_path), Timers(send_s=0.5)) as it:
        before = len(asyncio.all_tasks())
        reader, writer = await it.connect()
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
        await asyncio.sleep(2.0)
        assert len(asyncio.all_tasks()) <= before + 1
        writer.transport.abort()
