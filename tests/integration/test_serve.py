"""The listeners with real sockets, real TLS and a small application behind them."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from appliance import config, serve
from appliance.errors import AddressInUse
from appliance.serve import certificates
from appliance.serve.strict import Timers
from appliance.wire import Front

SECRET = b"s" * 32
ROOT = Path(__file__).parents[2]
ENGINES = ("direct", "hypercorn")
chosen = {"engine": "direct"}


@pytest.fixture(params=ENGINES, autouse=True)
def engine(request: pytest.FixtureRequest) -> str:
    """Every test here runs under both engines: their promises are the same."""
    chosen["engine"] = request.param
    return str(request.param)


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with method, path, peer and body; ``/slow`` waits, ``/early`` reads no body."""
    if scope["type"] != "http":
        return
    body = b""
    if scope["path"] != "/early":
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            if not message["more_body"]:
                break
    if scope["path"].startswith("/slow"):
        await asyncio.sleep(float(scope["path"].removeprefix("/slow/") or 0.5))
    peer = scope["state"]["peer"]
    text = f"{scope['method']} {scope['path']} {len(body)} {peer.uid if peer else '-'}"
    status = 413 if scope["path"] == "/early" else 200
    if scope["path"] == "/big":
        text = "x" * 8_000_000
    headers = [(b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


@dataclass
class Served:
    settings: config.Settings
    front: Front
    stop: asyncio.Event
    task: asyncio.Task[None]
    ready: list[serve.Ready]

    @property
    def port(self) -> int:
        return int(self.front.url.rsplit(":", 1)[1])

    @property
    def socket(self) -> str:
        return str(Path(self.settings.paths.run_dir) / "admin.sock")

    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=self.front.ca_pem)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=self.tls(), server_hostname="localhost"
        )

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.front.url, verify=self.tls(), trust_env=False)


def settings_in(folder: Path, **http: Any) -> config.Settings:
    (folder / "data").mkdir(exist_ok=True, mode=0o700)
    settings = config.replace(
        config.Settings(), "paths", data_dir=str(folder / "data"), run_dir=str(folder / "run")
    )
    return config.replace(settings, "http", **({"port": 0, "drain_timeout_s": 5} | chosen | http))


@asynccontextmanager
async def served(
    settings: config.Settings, app: Any = echo, timers: Timers | None = None
) -> AsyncIterator[Served]:
    front, stop, ready = Front(), asyncio.Event(), []
    task = asyncio.create_task(
        serve.serve(
            app, app, settings, front=front, tls_secret=lambda: SECRET,
            on_ready=ready.append, stop=stop, timers=timers,
        )
    )  # fmt: skip
    found = Served(settings=settings, front=front, stop=stop, task=task, ready=ready)
    try:
        while not front.url and not task.done():
            await asyncio.sleep(0.01)
        if task.done():
            task.result()
        yield found
    finally:
        stop.set()
        await task


async def raw(served_: Served, data: bytes, *, seconds: float = 5.0) -> bytes:
    """Send bytes, read until the server closes or has nothing more to say."""
    reader, writer = await served_.connect()
    writer.write(data)
    got = b""
    try:
        async with asyncio.timeout(seconds):
            while piece := await reader.read(65536):
                got += piece
    except TimeoutError:
        got += b"<open>"
    except OSError:
        pass
    writer.close()
    return got


async def test_https_answers_with_a_certificate_of_the_own_authority(tmp_path: Path) -> None:
    async with served(settings_in(tmp_path)) as it, it.client() as client:
        answer = await client.post("/x", content=b"abc")
        assert answer.text == "POST /x 3 -"
        assert "server" not in answer.headers
        assert it.front.tls["fingerprint"].startswith("SHA256:")
        assert it.ready[-1].url == it.front.url


async def test_nothing_but_http_1_1_is_negotiated(tmp_path: Path) -> None:
    async with served(settings_in(tmp_path)) as it:
        context = it.tls()
        context.set_alpn_protocols(["h2", "http/1.1"])
        _, writer = await asyncio.open_connection(
            "127.0.0.1", it.port, ssl=context, server_hostname="localhost"
        )
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        writer.close()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
async def test_old_tls_is_refused(tmp_path: Path) -> None:
    async with served(settings_in(tmp_path)) as it:
        context = it.tls()
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.TLSv1_1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection(
                "127.0.0.1", it.port, ssl=context, server_hostname="localhost"
            )


async def test_the_admin_socket_is_private_and_knows_its_peer(tmp_path: Path) -> None:
    async with served(settings_in(tmp_path)) as it:
        assert Path(it.socket).stat().st_mode & 0o777 == 0o600
        transport = httpx.AsyncHTTPTransport(uds=it.socket)
        async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
            assert (await client.get("/")).text == f"GET / 0 {os.geteuid()}"
    assert not Path(it.socket).exists()


async def test_a_taken_port_is_named(tmp_path: Path) -> None:
    async with served(settings_in(tmp_path)) as it:
        other = tmp_path / "b"
        other.mkdir()
        with pytest.raises(AddressInUse, match=str(it.port)):
            async with served(settings_in(other, port=it.port)):
                pass


async def test_a_living_socket_is_not_taken_over_but_a_dead_one_is(tmp_path: Path) -> None:
    async with served(settings_in(tmp_path)) as it:
        with pytest.raises(AddressInUse, match=r"admin\.sock"):
            async with served(settings_in(tmp_path)):
                pass
        assert Path(it.socket).exists()
    import socket

    dead = socket.socket(socket.AF_UNIX)
    dead.bind(it.socket)
    dead.close()
    async with served(settings_in(tmp_path)):
        pass


async def test_a_renewed_certificate_reaches_new_connections(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    async with served(settings) as it:
        before = it.front.ca_pem
    renamed = config.replace(settings, "http", names=("localhost", "model.example"))
    async with served(renamed) as it:
        for _ in range(100):
            found = certificates.describe(tmp_path / "data")
            if "model.example" in found.names:
                break
            await asyncio.sleep(0.05)
        assert "model.example" in found.names
        assert it.front.ca_pem == before


async def test_a_drain_finishes_calls_and_closes_idle_connections(tmp_path: Path) -> None:
    async with served(settings_in(tmp_path)) as it:
        async with it.client() as client:
            await client.get("/warm")
            idle_reader, idle = await it.connect()
            idle.write(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n")
            await idle_reader.readuntil(b"GET /a 0 -")
            slow = asyncio.create_task(client.post("/slow/1.5", content=b"x" * 100_000))
            await asyncio.sleep(0.3)
            started = time.monotonic()
            it.stop.set()
            answer = await slow
            assert answer.text == "POST /slow/1.5 100000 -"
            assert answer.headers["connection"] == "close"
            assert await idle_reader.read() == b""
        await it.task
        assert time.monotonic() - started < 20
        with pytest.raises(OSError, match=r".*"):
            await it.connect()


async def test_a_drain_answers_pipelined_requests_that_have_arrived(tmp_path: Path) -> None:
    async with served(settings_in(tmp_path)) as it:
        reader, writer = await it.connect()
        one = b"GET /slow/0.4 HTTP/1.1\r\nHost: a\r\n\r\n"
        writer.write(one * 3)
        await asyncio.sleep(0.2)
        it.stop.set()
        got = await reader.read(-1)
        assert got.count(b"HTTP/1.1 200") == 3
        assert got.lower().count(b"connection: close") == 1


async def test_a_drain_answers_a_request_that_arrives_just_after_it_began(tmp_path: Path) -> None:
    async with served(settings_in(tmp_path)) as it:
        reader, writer = await it.connect()
        writer.write(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n")
        await reader.readuntil(b"GET /a 0 -")
        it.stop.set()
        await asyncio.sleep(0.3)
        writer.write(b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"GET /b 0 -" in await reader.read(-1)


async def test_a_drain_waits_for_who_just_connected_but_not_for_ever(tmp_path: Path) -> None:
    async with served(settings_in(tmp_path)) as it:
        reader, writer = await it.connect()
        silent, silent_writer = await it.connect()
        it.stop.set()
        await asyncio.sleep(1.2)
        writer.write(b"GET /late HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"GET /late 0 -" in await reader.read(-1)
        started = time.monotonic()
        assert await silent.read(-1) == b""
        assert time.monotonic() - started < 20
        silent_writer.close()


async def test_a_drain_waits_for_a_handshake_under_way(tmp_path: Path) -> None:
    async with served(settings_in(tmp_path)) as it:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = it.tls().wrap_bio(incoming, outgoing, server_hostname="localhost")
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        writer.write(outgoing.read())
        incoming.write(await reader.read(65536))
        it.stop.set()
        await asyncio.sleep(1.0)
        assert not it.task.done()
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                incoming.write(await reader.read(65536))
        tls.write(b"GET /shaken HTTP/1.1\r\nHost: a\r\n\r\n")
        writer.write(outgoing.read())
        got = b""
        while piece := await reader.read(65536):
            incoming.write(piece)
            try:
                got += tls.read(65536)
            except ssl.SSLError:
                continue
        assert b"GET /shaken 0 -" in got
        writer.close()


async def test_a_drain_cuts_off_what_outlasts_it(tmp_path: Path) -> None:
    async with served(settings_in(tmp_path, drain_timeout_s=1)) as it:
        async with it.client() as client:
            slow = asyncio.create_task(client.get("/slow/30"))
            await asyncio.sleep(0.3)
            started = time.monotonic()
            it.stop.set()
            with pytest.raises(httpx.HTTPError):
                await slow
        await it.task
        assert time.monotonic() - started < 20


async def test_an_early_answer_is_not_lost_to_the_rest_of_the_body(tmp_path: Path) -> None:
    async with served(settings_in(tmp_path)) as it, it.client() as client:
        for _ in range(5):
            answer = await client.post("/early", content=b"x" * 4_000_000)
            assert answer.status_code == 413
            assert answer.headers["connection"] == "close"


async def test_a_caller_that_hangs_up_leaves_no_task(tmp_path: Path) -> None:
    async with served(settings_in(tmp_path)) as it:
        before = len(asyncio.all_tasks())
        for path in ("/slow/0.3", "/early", "/big", "/half"):
            for _ in range(10):
                _, writer = await it.connect()
                length = 2_000_000 if path in ("/early", "/half") else 0
                head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"
                writer.write(head.encode() + b"x" * (length // 2))
                await asyncio.sleep(0.01)
                writer.transport.abort()
        for _ in range(100):
            await asyncio.sleep(0.1)
            if len(asyncio.all_tasks()) <= before:
                break
        assert len(asyncio.all_tasks()) <= before


async def test_a_large_answer_arrives_whole(tmp_path: Path) -> None:
    async with served(settings_in(tmp_path)) as it, it.client() as client:
        assert len((await client.get("/big")).content) == 8_000_000


SIGNALLED = """
    import asyncio, sys
    from pathlib import Path
    from appliance import config, serve
    from appliance.wire import Front
    async def app(scope, receive, send):
        if scope["type"] != "http":
            return
        await asyncio.sleep(2.0)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})
    async def main():
        s = config.replace(config.Settings(), "paths", data_dir=sys.argv[1], run_dir=sys.argv[1])
        s = config.replace(s, "http", port=0, drain_timeout_s=10)
        await serve.serve(app, app, s, front=Front(), tls_secret=lambda: b"s" * 32,
                          on_ready=lambda r: print(r.url, flush=True))
    serve.run(main)
"""


@pytest.mark.parametrize(("signals", "code"), [(1, 0), (2, 143)])
def test_one_signal_drains_and_two_end_at_once(tmp_path: Path, signals: int, code: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SIGNALLED), str(tmp_path)],
        stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
    )  # fmt: skip
    with process:
        _signal_and_check(process, tmp_path, signals, code)


def _signal_and_check(
    process: subprocess.Popen[str], tmp_path: Path, signals: int, code: int
) -> None:
    assert process.stdout is not None
    url = ""
    while not url:
        url = process.stdout.readline().strip()
    transport = httpx.HTTPTransport(uds=str(tmp_path / "admin.sock"))
    with httpx.Client(transport=transport, base_url="http://a") as client:
        import threading

        answers: list[int] = []

        def call() -> None:
            try:
                answers.append(client.get("/").status_code)
            except httpx.HTTPError:
                answers.append(0)

        thread = threading.Thread(target=call)
        thread.start()
        time.sleep(0.5)
        for _ in range(signals):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
        assert process.wait(15) == code
        thread.join()
        assert answers == ([204] if signals == 1 else [0])
