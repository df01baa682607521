"""The real Python runner as a child process of the tests: its protocol, without a container."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path

from boxes import pieces, tar_of

from appliance import clock
from appliance.records import Batching
from appliance.sandbox.frames import GuestFault
from appliance.sandbox.link import Link
from appliance.sandbox.spec import Batch, Reply, Request

CAP = 1 << 20


class PlainRunner:
    """A loaded model in a process of its own, asked one by one or by the batch."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.splits: list[str] = []

    @staticmethod
    def request(body: bytes, content_type: str = "application/json", cap: int = CAP) -> Request:
        return Request(
            id=clock.new_id("call"),
            content_type=content_type,
            body=body,
            timeout_ms=30_000,
            reply_bytes_max=cap,
        )

    async def one(self, request: Request) -> Reply | GuestFault:
        """The answer of a call of its own."""
        try:
            return await self.link.request(request)
        except GuestFault as fault:
            return fault

    async def batch(
        self, requests: list[Request], batching: Batching | None = None
    ) -> list[Reply | GuestFault]:
        """The answers of calls in one frame, each where its request was."""
        found: dict[int, Reply | GuestFault] = {}

        def settle(place: int, result: object) -> None:
            assert place not in found, "answered twice"
            assert isinstance(result, Reply | GuestFault)
            found[place] = result

        batch = Batch(
            id=clock.new_id("batch"),
            requests=requests,
            batching=batching or Batching(),
            answered=settle,
            split=self.splits.append,
        )
        await self.link.batch(batch, settle)
        return [found[place] for place in range(len(requests))]


@asynccontextmanager
async def plain_runner(model: bytes, entry: str = "model:Model") -> AsyncIterator[PlainRunner]:
    """The runner with ``model.py`` loaded."""
    link = Link()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        folder.mkdir()
        await link.listen(Path(name) / "a.sock", uid=os.geteuid())
        script = resources.files("appliance.sandbox").joinpath("guest", "python_runner.py")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-B", str(script), f"{name}/a.sock", env={"PATH": ""}, cwd="/"
        )
        try:
            await asyncio.wait_for(link.hello(), 30)
            header = {"entry": entry, "path": str(folder), "deps": ""}
            await asyncio.wait_for(link.load(header, pieces(tar_of({"model.py": model}))), 30)
            yield PlainRunner(link)
        finally:
            await link.close()
            await asyncio.wait_for(process.wait(), 30)
