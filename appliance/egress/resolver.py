"""Names to addresses: the configured hosts file first, then the system's own resolver.

Owns: looking names up, in threads of its own, so that slow names hold up nothing else.
Never: decides whether an address may be connected to, or remembers one.
Read next: ``guard``.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from appliance.egress.addresses import literal

_LOG = logging.getLogger(__name__)
_THREADS = 8
_ADDRESSES_MAX = 16
_FILE_BYTES_MAX = 4 * 1024 * 1024


class Resolver:
    """Looks names up; used from one event loop."""

    def __init__(self, hosts_file: str = "") -> None:
        """Args: ``hosts_file`` in the form of ``/etc/hosts``, read at each look-up; may be empty.

        A name that is in the file is not looked up elsewhere.
        """
        self._hosts_file = hosts_file
        self._threads = ThreadPoolExecutor(_THREADS, "resolve")

    def close(self) -> None:
        """End the threads, without waiting for look-ups in them."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def resolve(self, name: str, timeout_s: float) -> tuple[str, ...]:
        """Every address of a name now, in the resolver's order; at most 16.

        Raises:
            OSError: there are none.
            TimeoutError: nothing answered in time.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(timeout_s):
            found = await loop.run_in_executor(self._threads, self._look_up, name)
        if not found:
            raise OSError(f"no address of {name}")
        return found

    def _look_up(self, name: str) -> tuple[str, ...]:
        if own := self._from_file(name):
            return own
        answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        found = dict.fromkeys(str(answer[4][0]) for answer in answers)
        return tuple(found)[:_ADDRESSES_MAX]

    def _from_file(self, name: str) -> tuple[str, ...]:
        if not self._hosts_file:
            return ()
        try:
            with Path(self._hosts_file).open(encoding="utf-8", errors="replace") as file:
                text = file.read(_FILE_BYTES_MAX)
        except OSError as error:
            _LOG.warning("%s cannot be read: %s", self._hosts_file, error.strerror)
            return ()
        found = []
        for line in text.splitlines():
            words = line.partition("#")[0].lower().split()
            if name in words[1:] and literal(words[0]) is not None:
                found.append(words[0])
        return tuple(found[:_ADDRESSES_MAX])


def is_own(address: str) -> bool:
    """Whether the address is one of this machine's: the kernel would send from it to itself."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))  # sends nothing
            return bool(probe.getsockname()[0] == address)
    except OSError:
        return False
