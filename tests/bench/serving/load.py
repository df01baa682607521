"""A closed loop of callers: each sends its next request when the last one was answered.

One process, one event loop, no HTTP library: the caller must cost less than what it measures.
"""

from __future__ import annotations

import asyncio
import ssl
import statistics
import time
from dataclasses import dataclass

import uvloop

HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a call goes and what it is."""

    port: int
    path: str
    body: bytes = b""
    method: str = "POST"
    headers: tuple[tuple[str, str], ...] = ()
    ca_file: str = ""

    @property
    def request(self) -> bytes:
        lines = [
            f"{self.method} {self.path} HTTP/1.1",
            f"Host: localhost:{self.port}",
            "Content-Type: application/json",
            f"Content-Length: {len(self.body)}",
            *(f"{name}: {value}" for name, value in self.headers),
        ]
        return "\r\n".join(lines).encode() + HEAD_END + self.body


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One run: latencies in milliseconds, calls per second."""

    clients: int
    calls: int
    per_s: float
    p50_ms: float
    p99_ms: float


class Failed(Exception):
    """A call was not answered with 200."""


class Caller(asyncio.Protocol):
    """One connection."""

    def __init__(self, request: bytes, taken: list[float], ends: float) -> None:
        self._request = request
        self._taken = taken
        self._ends = ends
        self._buffer = b""
        self._started = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._started = time.perf_counter()
        self._transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(HEAD_END)
        if end < 0 or not self._is_whole(end):
            return
        self._taken.append(time.perf_counter() - self._started)
        if not self._buffer.startswith(b"HTTP/1.1 200"):
            self._finish(Failed(self._buffer[:300].decode("latin-1")))
        elif time.perf_counter() < self._ends:
            self._buffer = b""
            self._send()
        else:
            self._finish(None)

    def _is_whole(self, end: int) -> bool:
        head = self._buffer[:end].lower()
        at = head.find(b"content-length:")
        if at < 0:  # chunked
            return self._buffer.endswith(b"0\r\n\r\n")
        size = int(head[at + 15 :].split(b"\r\n", 1)[0])
        return len(self._buffer) >= end + 4 + size

    def _finish(self, error: Exception | None) -> None:
        if not self.done.done():
            if error:
                self.done.set_exception(error)
            else:
                self.done.set_result(None)
        self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or Failed("the server closed the connection"))


async def _run(target: Target, clients: int, seconds: float) -> Figures:
    context = ssl.create_default_context(cafile=target.ca_file) if target.ca_file else None
    loop, taken = asyncio.get_running_loop(), list[float]()
    started = time.perf_counter()
    ends = started + seconds
    made = await asyncio.gather(
        *(
            loop.create_connection(
                lambda: Caller(target.request, taken, ends),
                "127.0.0.1",
                target.port,
                ssl=context,
                server_hostname="localhost" if context else None,
            )
            for _ in range(clients)
        )
    )
    await asyncio.wait_for(asyncio.gather(*(caller.done for _, caller in made)), seconds + 120)
    wall_s = time.perf_counter() - started
    ordered = sorted(taken)
    return Figures(
        clients=clients,
        calls=len(ordered),
        per_s=len(ordered) / wall_s,
        p50_ms=1000 * statistics.median(ordered),
        p99_ms=1000 * ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))],
    )


def run(target: Target, *, clients: int, seconds: float) -> Figures:
    """Figures of one run.

    Raises:
        Failed: a call was not answered with 200.
        OSError: nobody listens.
    """
    return uvloop.run(_run(target, clients, seconds))


def until_answered(target: Target, *, timeout_s: float = 120.0) -> float:
    """Seconds until the first answer with 200."""
    started = time.perf_counter()
    while True:
        try:
            run(target, clients=1, seconds=0)
        except (OSError, Failed, TimeoutError) as error:
            if time.perf_counter() - started > timeout_s:
                raise SystemExit(f"{target.path} was not answered: {error}") from error
            time.sleep(0.02)
        else:
            return time.perf_counter() - started
