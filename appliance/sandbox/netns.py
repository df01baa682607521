"""Sockets inside containers' network namespaces, made from outside.

Owns: the enterer process (``enter.py``) in Podman's namespaces; binding and connecting what it
hands over.
Never: decides who may talk to whom; runs anything in a container.
Read next: ``enter``, ``egress`` (whose listeners these are).

A sandbox has no network but its own loopback. A listener made here is reached from inside at a
loopback address and served by the appliance; a connection made here reaches a server inside.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

from appliance import config
from appliance.errors import PodmanUnavailable
from appliance.sandbox.mounts import namespace_command

LISTENERS_MAX = 128
_BACKLOG = 64
_ANSWER_BYTES = 4096
_TIMEOUT_S = 10.0

Address = tuple[str, int]


class Netns:
    """One helper process; started at the first use, and anew if it ended. Blocking, any thread."""

    def __init__(self, namespace_pid: int) -> None:
        """Describe it.

        Args:
            namespace_pid: a process in the user and mount namespace of Podman.
        """
        self._namespace_pid = namespace_pid
        self._process: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._lock = threading.Lock()

    def listen(self, pid: int, addresses: Sequence[Address]) -> list[socket.socket]:
        """Listening sockets in a container, in the order of their addresses.

        Args:
            pid: a process of the container.
            addresses: IPv4 address and port each; ports below 1024 included.

        Raises:
            PodmanUnavailable: the kernel refused, or the helper does not run.
        """
        if len(addresses) > LISTENERS_MAX:
            raise PodmanUnavailable(f"More than {LISTENERS_MAX} listeners in one sandbox.")
        made = self._sockets(pid, len(addresses))
        try:
            for one, address in zip(made, addresses, strict=True):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                one.bind(address)
                one.listen(_BACKLOG)
        except OSError as error:
            for one in made:
                one.close()
            raise PodmanUnavailable(f"A sandbox's listener cannot be made: {error}") from error
        return made

    def connect(self, pid: int, address: Address, timeout_s: float = 2.0) -> socket.socket:
        """A stream connected to a server inside a container; blocking mode, with ``timeout_s``.

        Raises:
            ConnectionError, TimeoutError, OSError: nothing answers there.
            PodmanUnavailable: the helper does not run.
        """
        one = self.open(pid)
        try:
            one.settimeout(timeout_s)
            one.connect(address)
        except BaseException:
            one.close()
            raise
        return one

    def open(self, pid: int) -> socket.socket:
        """A stream socket of a container, neither bound nor connected: for ``loop.sock_connect``.

        Raises:
            PodmanUnavailable: the helper does not run, or the container is gone.
        """
        return self._sockets(pid, 1)[0]

    def put_file(self, pid: int, source: str, target: str) -> None:
        """Mount a file read-only over one that a container has, visible from then on.

        Args:
            pid: a process of the container.
            source: the file, as Podman's mount namespace sees it; later changes show inside.
            target: the path inside.

        Raises:
            PodmanUnavailable: the kernel refused, or the helper does not run.
        """
        self._ask(pid, "mnt", {"do": "file", "source": source, "target": target})

    def stop(self) -> None:
        """End the helper; idempotent."""
        with self._lock:
            self._end()

    def _sockets(self, pid: int, count: int) -> list[socket.socket]:
        if not count:
            return []
        family = int(socket.AF_INET)
        made = self._ask(pid, "net", {"do": "sockets", "count": count, "family": family})
        if len(made) != count:
            for one in made:
                one.close()
            raise PodmanUnavailable("A sandbox's sockets did not come.")
        return made

    def _ask(self, pid: int, kind: str, message: dict[str, object]) -> list[socket.socket]:
        try:
            namespace = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise PodmanUnavailable("The sandbox is gone.") from error
        try:
            with self._lock:
                wrong, made = self._exchange(json.dumps(message).encode(), namespace)
        finally:
            os.close(namespace)
        if wrong != "ok":
            for one in made:
                one.close()
            raise PodmanUnavailable(f"A sandbox's namespace cannot be entered: {wrong}")
        return made

    def _exchange(self, message: bytes, namespace: int) -> tuple[str, list[socket.socket]]:
        for attempt in (1, 2):
            try:
                link = self._running()
                socket.send_fds(link, [message], [namespace])
                data, descriptors, flags, _peer = socket.recv_fds(
                    link, _ANSWER_BYTES, LISTENERS_MAX
                )
                made = [socket.socket(fileno=descriptor) for descriptor in descriptors]
                if not data or flags & socket.MSG_CTRUNC:
                    for one in made:
                        one.close()
                    raise OSError("it ended")
                return data.decode("utf-8", "replace"), made
            except OSError as error:
                self._end()
                if attempt == 2:
                    return f"the helper does not run: {error}", []
        raise AssertionError

    def _running(self) -> socket.socket:
        if self._process is not None and self._link is not None and self._process.poll() is None:
            return self._link
        self._end()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = namespace_command(self._namespace_pid, Path(__file__).with_name("enter.py"))
            self._process = subprocess.Popen(  # noqa: S603 - fixed program, own arguments
                command,
                env=config.child_environment(),
                cwd="/",
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                text=False,
                start_new_session=True,
            )
        ours.settimeout(_TIMEOUT_S)
        self._link = ours
        return ours

    def _end(self) -> None:
        link, self._link = self._link, None
        process, self._process = self._process, None
        if link is not None:
            with contextlib.suppress(OSError):
                link.close()
        if process is not None:
            process.kill()
            process.wait()
