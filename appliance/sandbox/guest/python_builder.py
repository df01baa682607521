"""The Python builder: installs wheels inside a sandbox and streams the result out as a tar.

Owns: the guest half of BUILD in PROTOCOL.md; standard library only; run with ``python3 -I``.
Never: is imported by the appliance, has a network, or installs anything but the wheels it is given.
Read next: ``dependencies`` (the host half), ``PROTOCOL.md``.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import tarfile
from typing import Any, cast

PREFIX = struct.Struct(">IQ")
PIECE_BYTES = 512 * 1024
OUT = "/tmp/out"
PIP = (
    "import runpy, sys; sys.path.insert(0, sys.argv.pop(1));"
    "runpy.run_module('pip', run_name='__main__')"
)


class Sender:
    """A file that sends what is written to it as CHUNK frames."""

    def __init__(self, link: socket.socket) -> None:
        """Send over a connection that has said HELLO."""
        self.link = link
        self.pending = bytearray()

    def frame(self, header: dict[str, object], body: bytes = b"") -> None:
        """Send one frame."""
        text = json.dumps(header).encode()
        self.link.sendall(PREFIX.pack(len(text), len(body)) + text)
        if body:
            self.link.sendall(body)

    def write(self, data: bytes) -> int:
        """Buffer and send; the file interface tarfile needs."""
        self.pending += data
        while len(self.pending) >= PIECE_BYTES:
            self.frame({"type": "CHUNK", "last": False}, bytes(self.pending[:PIECE_BYTES]))
            del self.pending[:PIECE_BYTES]
        return len(data)

    def finish(self) -> None:
        """Send the rest, marked last."""
        self.frame({"type": "CHUNK", "last": True}, bytes(self.pending))


def receive(link: socket.socket) -> dict[str, Any]:
    """The next frame's header; BUILD has no body."""
    data = b""
    while len(data) < PREFIX.size or len(data) < PREFIX.size + PREFIX.unpack_from(data)[0]:
        piece = link.recv(65536)
        if not piece:
            os._exit(0)
        data += piece
    header: dict[str, Any] = json.loads(data[PREFIX.size :])
    return header


def install(sender: Sender, wheels: str) -> list[str]:
    """Install every wheel and compile; the last lines of the output if it fails, else none."""
    files = sorted(f"{wheels}/{name}" for name in os.listdir(wheels) if name.endswith(".whl"))
    pip = [sys.executable, "-I", "-c", PIP, f"{wheels}/tool", "install", "--no-index", "--no-deps"]
    pip += ["--only-binary=:all:", "--no-cache-dir", "--no-compile", "--progress-bar=off"]
    pip += ["--disable-pip-version-check", "--no-warn-script-location", "--no-input"]
    pip += ["--root-user-action=ignore", "--target", OUT, *files]
    compile_all = [sys.executable, "-I", "-m", "compileall", "-q", "-j", "2"]
    compile_all += ["--invalidation-mode", "unchecked-hash", OUT]
    for command, must in ((pip, True), (compile_all, False)):
        code, lines = run(sender, command)
        if must and code:
            return lines or ["the installer failed"]
    return []


def run(sender: Sender, command: list[str]) -> tuple[int, list[str]]:
    """Run a command; its exit status and last lines. What it says is sent as LOG meanwhile."""
    lines: list[str] = []
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    with process:
        for line in process.stdout or ():
            lines = [*lines[-40:], line.rstrip()]
            log = {"type": "LOG", "stream": "stdout", "dropped": 0}
            sender.frame(log, line.encode()[:8192])
    return process.returncode, lines


def main() -> None:
    """HELLO, one BUILD, the tar or ERR."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link.connect("/run/app/a.sock")
    sender = Sender(link)
    version = ".".join(str(part) for part in sys.version_info[:3])
    hello = {"type": "HELLO", "proto": 1, "role": "runner", "runtime": "python-build"}
    sender.frame({**hello, "version": version, "concurrency": 1})
    header = receive(link)
    lines = install(sender, str(header["wheels"]))
    if lines:
        lines = [line[:300] for line in lines][-30:]
        detail = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])
        sender.frame({"type": "ERR", "id": "", "kind": "build", "detail": detail, "trace": lines})
        link.recv(1)
        return
    with tarfile.open(fileobj=cast("Any", sender), mode="w|", format=tarfile.PAX_FORMAT) as tar:
        tar.add(OUT, arcname=".", filter=lambda m: m if m.isreg() or m.isdir() else None)
    sender.finish()
    link.recv(1)  # wait to be ended


if __name__ == "__main__":
    main()
