"""A caller that hangs up while its call waits: the call is given up, and that is on record."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from inside import EchoExecutor, Inside

from appliance import api, config, serve
from appliance.node import Node
from appliance.wire import Front


@dataclass
class Stage:
    it: Inside
    secret: str

    async def call(self, body: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        context = ssl.create_default_context(cadata=self.it.front.ca_pem)
        port = int(self.it.front.url.rsplit(":", 1)[1])
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=context, server_hostname="localhost"
        )
        head = "POST /api/v1/models/acme/echo/invoke HTTP/1.1\r\nHost: localhost\r\n"
        head += f"Authorization: Bearer {self.secret}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        return reader, writer

    async def until(self, waiting: int) -> None:
        async with asyncio.timeout(30):
            while self.it.node.services.pool().waiting != waiting:
                await asyncio.sleep(0.01)

    async def codes(self) -> list[str]:
        ledger = self.it.store.ledger
        found = await asyncio.to_thread(ledger.read, 0, 10_000)
        return [e.event["code"] for e in found if e.kind == "call.outcome"]


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    settings = config.replace(
        config.Settings(), "paths", data_dir=str(tmp_path / "data"), run_dir=str(tmp_path / "run")
    )
    settings = config.replace(settings, "http", port=0)
    settings = config.replace(
        settings, "sandbox", instances_max=1, instances_per_version_max=1,
        zygote_memory_bytes_max=0,
    )  # fmt: skip
    node = Node(settings, executor_factory=lambda: EchoExecutor(tmp_path / "data"))
    front, stop = Front(), asyncio.Event()
    await node.initialise(key_file=tmp_path / "unseal.key")
    it = Inside(node=node, front=front, apps=api.build(node, front))
    await it.tenant("acme")
    await it.version("acme", "echo")
    task = asyncio.create_task(
        serve.serve(
            it.apps.public, it.apps.admin, settings, front=front, tls_secret=node.tls_secret,
            stop=stop,
        )
    )  # fmt: skip
    while not front.url:
        await asyncio.sleep(0.01)
    try:
        yield Stage(it=it, secret=await it.key("acme"))
    finally:
        stop.set()
        await task
        await node.close()


async def test_a_waiting_call_is_given_up_and_a_running_one_is_finished(stage: Stage) -> None:
    _, running = await stage.call(b"sleep 1")
    await asyncio.sleep(0.2)
    _, waiting = await stage.call(b"never")
    reader, patient = await stage.call(b"patient")
    await stage.until(2)
    waiting.transport.abort()
    await stage.until(1)
    assert await stage.codes() == ["cancelled"]
    running.transport.abort()
    assert b"patient" in await asyncio.wait_for(reader.readuntil(b"patient"), 30)
    patient.close()
    assert await stage.codes() == ["cancelled", "ok", "ok"]
