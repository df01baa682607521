"""What outlives its request, as commands follow it: waited for and fetched.

Owns: the loop that waits for an end, and how an output gets into a file or to standard output.
Never: prints a document, or decides that an end is a problem (``client.require_succeeded``).
Read next: ``job``, ``batch`` and ``comparison`` (the commands).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from appliance.cli.client import Client

ENDS = ("succeeded", "failed", "canceled")
TIMEOUT_S = 3600
_WAIT_S = 30


def ended(
    client: Client,
    document: dict[str, Any],
    *,
    each: Callable[[dict[str, Any]], None] = lambda _: None,
    step_s: int = _WAIT_S,
    timeout_s: int | None = None,
) -> dict[str, Any]:
    """The document of a job, batch or comparison once it has ended, or after a time.

    Args:
        client: asks the appliance.
        document: as it is known.
        each: told of it whenever it was asked for.
        step_s: longest time between two of these, seconds.
        timeout_s: longest wait; ``None``: as long as it takes.
    """
    left = timeout_s
    while True:
        each(document)
        if document["status"] in ENDS or left == 0:
            return document
        wait_s = step_s if left is None else min(step_s, left)
        document = client.get(document["urls"]["get"], wait_s=wait_s)
        if left is not None:
            left -= wait_s


def fetch(client: Client, path: str, out: Path | None) -> None:
    """Write what is at a path into a file, or to standard output without one."""
    with client.stream("GET", path, (), {"Accept": "*/*"}) as reply:
        if out is None:
            for piece in reply.iter_bytes():
                sys.stdout.buffer.write(piece)
            sys.stdout.flush()
            return
        with out.open("wb") as file:
            for piece in reply.iter_bytes():
                file.write(piece)
