"""The Python runner: the first process inside a sandbox, and the start of the second.

Owns: the monitor's half of PROTOCOL.md; standard library only, run with ``/usr/bin/python3 -I -S``;
never imported by the appliance.
Never: is trusted.
Read next: ``python_serve`` (the second process, where the model is), ``PROTOCOL.md``.

The first process (the monitor) connects, starts the runner as its child, keeps the tail of what
the model prints, reaps orphans, and says how the runner ended. Both avoid slow imports: json,
re, socket, tarfile, traceback and typing would each add 5 to 30 ms to every cold start.
"""

# ruff: noqa: SIM105, SIM115, UP031 - contextlib is slow to import; bytes have no format()
from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the signal module without its enums
import _socket
import faulthandler
import fcntl
import marshal
import os
import select
import struct
import sys
import time

TYPE_CHECKING = False  # importing typing would take longer than all the rest
if TYPE_CHECKING:
    from typing import Any

PROTO = 1
TAIL_BYTES = 60 * 1024
FLUSH_S = 0.1
PIPE_BYTES = 1024 * 1024
F_SETPIPE_SZ = 1031
PREFIX = struct.Struct(">IQ")
DEFAULT_SOCKET = "/run/app/a.sock"
HELLO = (
    '{"type":"HELLO","proto":%d,"role":"%s","runtime":"python",'
    '"version":"%d.%d.%d","concurrency":1,"batch":true}'
)
PONG = b'{"type":"PONG","id":"logs"}'


def frame(header: bytes, body: bytes = b"") -> bytes:
    """The bytes of a small frame."""
    return PREFIX.pack(len(header), len(body)) + header + body


def connect(path: str, role: str) -> _socket.socket:
    """A connection to the appliance that has said HELLO."""
    link = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    link.connect(path)
    link.sendall(frame((HELLO % (PROTO, role, *sys.version_info[:3])).encode()))
    return link


class Tail:
    """What one stream of the model printed and was not sent yet: the last TAIL_BYTES of it."""

    def __init__(self, stream: str, fd: int) -> None:
        """Watch the read end ``fd`` of the pipe that is the model's ``stream``."""
        self.stream = stream
        self.fd = fd
        self.data = bytearray()
        self.dropped = 0
        os.set_blocking(fd, False)
        try:
            fcntl.fcntl(fd, F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:
            pass

    def drain(self, reads: int) -> bool:
        """Read what is there, at most ``reads`` times; False at the end of the pipe."""
        for _ in range(reads):
            try:
                piece = os.read(self.fd, 256 * 1024)
            except BlockingIOError:
                return True
            if not piece:
                return False
            self.data += piece
            if len(self.data) > TAIL_BYTES:
                over = len(self.data) - TAIL_BYTES
                self.dropped += over
                del self.data[:over]
        return True

    def take(self) -> bytes:
        """The pending output as one LOG frame, or nothing; empties the tail."""
        if not self.data and not self.dropped:
            return b""
        header = '{"type":"LOG","stream":"%s","dropped":%d}' % (self.stream, self.dropped)
        out = frame(header.encode(), bytes(self.data))
        self.data.clear()
        self.dropped = 0
        return out


class Monitor:
    """The container's first process."""

    def __init__(self, link: _socket.socket, child: int, tails: list[Tail]) -> None:
        """Watch ``child`` and its output; report over ``link``."""
        self.link = link
        self.child = child
        self.tails = tails
        self.out = b""
        self.heard = bytearray()
        self.flushed_at = 0.0
        self.link.setblocking(False)

    def run(self) -> int:
        """Work until the runner ends; its exit code, negative for a signal."""
        wake_r, wake_w = os.pipe()
        os.set_blocking(wake_r, False)
        os.set_blocking(wake_w, False)
        _signal.signal(_signal.SIGCHLD, lambda *_: None)
        _signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        poll = select.poll()
        for fd in (wake_r, self.link.fileno(), *(tail.fd for tail in self.tails)):
            poll.register(fd, select.POLLIN)
        while True:
            code = self.reap()
            if code is not None:
                return code
            pending = self.out or any(tail.data or tail.dropped for tail in self.tails)
            ready = {fd for fd, _ in poll.poll(FLUSH_S * 1000 if pending else None)}
            if wake_r in ready:
                os.read(wake_r, 4096)
            for tail in self.tails:
                if tail.fd in ready and not tail.drain(4):
                    poll.unregister(tail.fd)
            if self.link.fileno() in ready:
                self.answer()
            self.flush(force=False)

    def reap(self) -> int | None:
        """Collect ended processes; the runner's exit code once it is among them."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return 255
            if pid == 0:
                return None
            if pid == self.child:
                return os.waitstatus_to_exitcode(status)

    def answer(self) -> None:
        """Answer the host's PINGs, each after the output printed before it."""
        try:
            data = self.link.recv(4096)
        except BlockingIOError:
            return
        if not data:
            os._exit(0)  # the appliance is gone: so is everything here
        self.heard += data
        while len(self.heard) >= PREFIX.size:
            size = PREFIX.size + PREFIX.unpack_from(self.heard)[0]
            if len(self.heard) < size:
                return
            del self.heard[:size]
            for tail in self.tails:
                tail.drain(16)
            self.flush(force=True)
            self.out += frame(PONG)
            self.send()

    def flush(self, *, force: bool) -> None:
        """Send pending output: at once when forced, else every FLUSH_S; one batch in flight."""
        now = time.monotonic()
        if force or (not self.out and now - self.flushed_at >= FLUSH_S):
            self.flushed_at = now
            self.out += b"".join([tail.take() for tail in self.tails])
        self.send()

    def send(self) -> None:
        """Write what the socket takes now."""
        if self.out:
            try:
                self.out = self.out[self.link.send(self.out) :]
            except BlockingIOError:
                pass

    def finish(self, code: int) -> None:
        """Send the rest of the output and EXIT."""
        for tail in self.tails:
            tail.drain(64)
        rest = self.out + b"".join([tail.take() for tail in self.tails])
        self.link.settimeout(1.0)
        try:
            self.link.sendall(rest + frame(b'{"type":"EXIT","code":%d}' % code))
            self.link.shutdown(_socket.SHUT_WR)
        except OSError:
            pass


def code_of_the_other_half() -> dict[str, Any]:
    """The members of ``python_serve.py`` next to this file, which may be compiled already."""
    path = os.path.join(os.path.dirname(__file__), "python_serve.py")
    with open(path, "rb") as file:
        data = file.read()
    magic = sys.modules["_frozen_importlib_external"].MAGIC_NUMBER
    code = marshal.loads(data[16:]) if data[:4] == magic else compile(data, path, "exec")
    members: dict[str, Any] = {"__name__": "python_serve", "__file__": path}
    exec(code, members)
    return members


def run_child(path: str, pipes: list[tuple[int, int]]) -> None:
    """The runner process: output into the pipes, then serve."""
    link = connect(path, "runner")
    for fd, (_, write) in zip((1, 2), pipes, strict=True):
        os.dup2(write, fd)
    for pair in pipes:
        os.close(pair[0])
        os.close(pair[1])
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    sys.stdout = open(
        1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False
    )
    sys.stderr = open(
        2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False
    )
    faulthandler.enable()
    code_of_the_other_half()["serve"](link)


def main() -> None:
    """Connect the monitor, start the runner, watch it to its end."""
    path = sys.argv[1] if len(sys.argv) > 1 else DEFAULT_SOCKET
    link = connect(path, "monitor")
    pipes = [os.pipe(), os.pipe()]
    child = os.fork()
    if child == 0:
        link.close()
        try:
            run_child(path, pipes)
        finally:
            os._exit(70)
    for _, write in pipes:
        os.close(write)
    tails = [Tail(name, read) for name, (read, _) in zip(("stdout", "stderr"), pipes, strict=True)]
    monitor = Monitor(link, child, tails)
    code = monitor.run()
    monitor.finish(code)
    os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
