"""The composition root: settings in, a running appliance out.

Owns: which parts there are and how they are joined; logging to stderr as JSON lines.
Never: holds logic of its own.
Read next: ``node`` (the life of the process), ``api`` (its HTTP contracts), ``serve``.
"""

from __future__ import annotations

import gc
import json
import logging
import resource
import sys
from pathlib import Path
from typing import Any

import uvloop

from appliance import api, clock, config, serve
from appliance.node import Node
from appliance.store import seal
from appliance.wire import Front

_log = logging.getLogger("appliance")
_GC_THRESHOLDS = (20_000, 20, 20)


def initialise(
    settings: config.Settings, *, passphrase: str | None = None, key_file: Path | None = None
) -> None:
    """Create the data folder and its unseal slots, without starting anything.

    Raises:
        AlreadyInitialised: the folder is an appliance's already; nothing is changed.
    """
    seal.initialise(Path(settings.paths.data_dir), passphrase=passphrase, key_file=key_file).close()


def run(settings: config.Settings, explained: tuple[config.Explained, ...] = ()) -> int:
    """Serve until SIGTERM or SIGINT; the exit code.

    Raises:
        DataDirBusy, AddressInUse, UnsealFailed, StoreCorrupt: it could not start.
    """
    _log_as_json()
    _raise_open_files()
    uvloop.run(_serve(settings, explained))
    return 0


async def _serve(settings: config.Settings, explained: tuple[config.Explained, ...]) -> None:
    node = Node(settings, explained=explained)
    front = Front()
    applications = api.build(node, front)
    await node.start()
    _spare_collector()
    try:
        await serve.serve(
            applications.public,
            applications.admin,
            settings,
            front=front,
            tls_secret=node.tls_secret,
            on_ready=lambda ready: _log.info("listening on %s and %s", ready.url, ready.socket),
            on_drain=node.drain,
        )
    finally:
        await node.close()


def _spare_collector() -> None:
    """Have the garbage collector leave alone what stays as long as the process does.

    Modules and the registry are most of all objects, and nearly nothing of a call is in a cycle: at
    the library's thresholds every hundredth call walked through everything.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


class _JsonLines(logging.Formatter):
    """One JSON object a line: a hostile name can neither forge a line nor drive a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": clock.text_from_ns(clock.now_ns()),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True)


def _log_as_json() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # Every container start is several HTTP requests to Podman; they say nothing to a reader.
    for noisy in ("urllib3", "podman", "httpx", "hypercorn", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _raise_open_files() -> None:
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536) if hard > 0 else 65_536, hard))
