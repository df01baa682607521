"""Long work told as it goes: one JSON document a line, the last one the result or the problem.

Owns: the form of such an answer.
Never: does the work.
Read next: ``native.uploads``, ``supply`` (who answer so).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from appliance import wire
from appliance.errors import ApplianceError, HostError
from appliance.wire import Write

_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode
Tell = Callable[[str, str, float], None]
"""Step, detail and fraction; may be called from any thread."""


async def narrate(
    request_id: str, write: Write, work: Callable[[Tell], Awaitable[dict[str, Any]]]
) -> None:
    """Write each step as it happens; the last line is what ``work`` returned, or ``problem``."""
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[bytes | None] = asyncio.Queue()

    def tell(step: str, detail: str, fraction: float) -> None:
        line = _encode({"step": step, "detail": detail, "fraction": round(fraction, 4)}) + b"\n"
        loop.call_soon_threadsafe(lines.put_nowait, line)

    async def result() -> dict[str, Any]:
        try:
            return await work(tell)
        except ApplianceError as error:
            return {"problem": wire.problem_document(error, request_id, is_owner=True)}
        except Exception:  # noqa: BLE001 - the answer has begun: the problem must be its last line
            _log.exception("incident %s", request_id)
            failed = HostError(f"Something failed inside; incident {request_id}.")
            return {"problem": wire.problem_document(failed, request_id)}
        finally:
            loop.call_soon(lines.put_nowait, None)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(result())
        while (line := await lines.get()) is not None:
            await write(line)
    await write(_encode(task.result()) + b"\n")
