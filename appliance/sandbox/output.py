"""What a container of an imported image prints, by its monitor's attach socket.

Owns: the connection to conmon, and how fast it is read.
Never: asks anything of the image; keeps more than ``LogTail`` does.
Read next: ``link.LogTail``.

conmon sends packets of at most 8 KiB, of which the first byte names the stream. Whoever prints
faster than this is read is slowed down, not cut off.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

from appliance.sandbox.link import LogTail

_PACKET_BYTES = 64 * 1024
_PACKETS_AT_ONCE = 16
_BYTES_PER_S = 4 * 1024 * 1024
_STREAMS = {2: "stdout", 3: "stderr"}


class Output:
    """Both streams of one container, from the moment of ``attach``."""

    def __init__(self, logs: LogTail, ended: Callable[[], None]) -> None:
        """Args: ``ended`` is called once when there is nothing more to come."""
        self._logs = logs
        self._ended = ended
        self._socket: socket.socket | None = None
        self._resuming: asyncio.TimerHandle | None = None

    def attach(self, path: Path) -> None:
        """Connect to a container that was made and not started.

        Raises:
            OSError: there is no such socket.
        """
        made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                made.connect(f"/proc/self/fd/{folder}/{path.name}")  # the path may be too long
            finally:
                os.close(folder)
            made.setblocking(False)
        except OSError:
            made.close()
            raise
        self._socket = made
        asyncio.get_running_loop().add_reader(made.fileno(), self._readable)

    def close(self) -> None:
        """Stop reading; idempotent."""
        if self._resuming is not None:
            self._resuming.cancel()
            self._resuming = None
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
            self._ended()

    def _readable(self) -> None:
        taken = 0
        for _ in range(_PACKETS_AT_ONCE):
            if self._socket is None:
                return
            try:
                packet = self._socket.recv(_PACKET_BYTES)
            except BlockingIOError:
                break
            except OSError:
                packet = b""
            if not packet:
                self.close()
                return
            self._logs.add(_STREAMS.get(packet[0], "stdout"), packet[1:], 0)
            taken += len(packet)
        else:
            self._pause(taken / _BYTES_PER_S)

    def _pause(self, seconds: float) -> None:
        if self._socket is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._socket.fileno())
            self._resuming = loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._resuming = None
        if self._socket is not None:
            with contextlib.suppress(OSError):
                asyncio.get_running_loop().add_reader(self._socket.fileno(), self._readable)
