"""SIGTERM under load: every call that was accepted gets its answer and its entry in the ledger."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
    import asyncio, sys
    from pathlib import Path
    from inside import EchoExecutor, Inside
    from appliance import api, config, serve
    from appliance.node import Node
    from appliance.wire import Front

    async def main():
        data = Path(sys.argv[1]) / "data"
        s = config.replace(config.Settings(), "paths", data_dir=str(data), run_dir=sys.argv[1])
        s = config.replace(s, "http", port=0, drain_timeout_s=20)
        node, front = Node(s, executor_factory=lambda: EchoExecutor(data)), Front()
        await node.initialise(key_file=Path(sys.argv[1]) / "key")
        it = Inside(node=node, front=front, apps=api.build(node, front))
        await it.tenant("acme")
        await it.version("acme", "echo")
        secret = await it.key("acme")
        try:
            await serve.serve(it.apps.public, it.apps.admin, s, front=front,
                tls_secret=node.tls_secret, on_drain=node.drain,
                on_ready=lambda r: print(r.url, secret, flush=True))
            store = node._services.store
            found = store.ledger.read(0, 10**9)
            outcomes = [e for e in found if e.kind == "call.outcome"]
            print("ok", sum(1 for e in outcomes if e.event["code"] == "ok"), flush=True)
        finally:
            await node.close()
    serve.run(main)
"""


class Tally:
    def __init__(self) -> None:
        self.answered = 0
        self.refused = 0
        self.lost: list[str] = []


async def caller(url: str, secret: str, context: ssl.SSLContext, tally: Tally, body: bytes) -> None:
    """Call without pause over one kept connection until the port is closed."""
    headers = {"authorization": f"Bearer {secret}"}
    async with httpx.AsyncClient(
        base_url=url, verify=context, headers=headers, trust_env=False, timeout=30
    ) as client:
        while True:
            try:
                answer = await client.post("/api/v1/models/acme/echo/invoke", content=body)
            except httpx.ConnectError:
                tally.refused += 1
                return
            except httpx.HTTPError as error:
                tally.lost.append(repr(error))
                return
            if answer.status_code != 200 or answer.content != body:
                tally.lost.append(f"{answer.status_code} {answer.text[:200]}")
                return
            tally.answered += 1


@pytest.mark.parametrize("body", [b"x" * 100, b"sleep 0.3"])
async def test_no_accepted_call_is_lost(tmp_path: Path, body: bytes) -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path)],
        stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}, text=True,
    )  # fmt: skip
    with process:
        await drained(process, tmp_path, body)


async def drained(process: subprocess.Popen[str], tmp_path: Path, body: bytes) -> None:
    assert process.stdout is not None
    stdout = process.stdout
    line: Any = await asyncio.to_thread(stdout.readline)
    url, secret = line.split()
    context = ssl.create_default_context(cafile=str(tmp_path / "data" / "tls" / "ca.pem"))
    tally = Tally()
    async with asyncio.TaskGroup() as group:
        for _ in range(12):
            group.create_task(caller(url, secret, context, tally, body))
        await asyncio.sleep(2.0)
        process.send_signal(signal.SIGTERM)
    rest = await asyncio.to_thread(stdout.read)
    assert await asyncio.to_thread(process.wait, 20) == 0
    assert tally.lost == []
    assert tally.refused == 12
    assert tally.answered >= 12
    assert rest.split() == ["ok", str(tally.answered)]
