"""A receiver of webhooks on loopback: keeps what came, answers as it is told.

Deliveries to it need IT's own setting (``webhooks.allow``), as they would in an installation.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec


@dataclass
class Received:
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def message(self) -> Any:
        return msgspec.json.decode(self.body)


@dataclass
class Receiver:
    """``answer`` makes the bytes of an answer; ``None`` never answers."""

    answer: Callable[[Received], bytes | None]
    got: list[Received] = field(default_factory=list)
    port: int = 0
    open_now: int = 0
    open_most: int = 0

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def until(self, count: int, deadline_s: float = 30.0) -> list[Received]:
        async with asyncio.timeout(deadline_s):
            while len(self.got) < count:
                await asyncio.sleep(0.02)
        return self.got

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open_now += 1
        self.open_most = max(self.open_most, self.open_now)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            lines = [line.partition(":") for line in head[1:] if line]
            headers = {name.lower(): value.strip() for name, _, value in lines}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            one = Received(path=head[0].split()[1], headers=headers, body=body)
            self.got.append(one)
            answer = self.answer(one)
            if answer is None:
                await reader.read()
                return
            writer.write(answer)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open_now -= 1
            writer.close()


def status(code: int, more: str = "") -> bytes:
    return f"HTTP/1.1 {code} X\r\ncontent-length: 2\r\n{more}\r\nok".encode()


@asynccontextmanager
async def receiver(
    answer: Callable[[Received], bytes | None] = lambda _: status(200),
    *,
    tls: Any = None,
) -> AsyncIterator[Receiver]:
    made = Receiver(answer=answer)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, ssl=tls)
    made.port = int(server.sockets[0].getsockname()[1])
    try:
        yield made
    finally:
        server.close()
