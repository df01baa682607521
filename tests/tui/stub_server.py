"""A real HTTP server with the canned world behind it: ``python stub_server.py SOCKET [STATE]``.

Owns: the process the terminal test starts, kills and starts again.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import httpx
from hypercorn.asyncio import serve
from hypercorn.config import Config
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from canned_world import World


def main() -> None:
    socket, state = sys.argv[1], (sys.argv[2:] or ["ready"])[0]
    world = World()
    world.state = state

    async def answer(request: Request) -> Response:
        body = await request.body()
        asked = httpx.Request(
            request.method, str(request.url), headers=request.headers.raw, content=body
        )
        reply = world.answer(asked)
        headers = {k: v for k, v in reply.headers.items() if k != "content-length"}
        return Response(reply.content, status_code=reply.status_code, headers=headers)

    methods = ["GET", "POST", "PUT", "DELETE"]
    app = Starlette(routes=[Route("/{path:path}", answer, methods=methods)])
    config = Config()
    config.bind = [f"unix:{socket}"]
    config.umask = 0o177
    config.errorlog = None

    async def run() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await serve(app, config, shutdown_trigger=stop.wait)

    asyncio.run(run())


if __name__ == "__main__":
    main()
