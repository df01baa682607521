"""The remounter: a small program that sets the quotas of containers' writable mounts.

Owns: one process in Podman's user and mount namespace, where that is allowed; started by
``mounts``, one JSON line in, one line out ("" or what went wrong). Standard library only.
Never: is imported by the appliance; enters a container, or runs anything of one.
Read next: ``mounts``.

When its standard input ends, the appliance is gone, however it ended: the containers it was told of
are then killed. A frozen one could not notice by itself, and a hostile one would not.

``fspick`` and ``fsconfig`` change a mounted file system's own options from outside. A ``mount``
run inside each container took ten milliseconds of every start.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys

FSPICK, FSCONFIG = 433, 431  # the same on every architecture
AT_FDCWD = -100
FSPICK_CLOEXEC = 1
SET_STRING, RECONFIGURE = 1, 7

_syscall = ctypes.CDLL(None, use_errno=True).syscall


def checked(what: str, result: int) -> int:
    """The result of a system call, or its errno as ``OSError``."""
    if result < 0:
        raise OSError(ctypes.get_errno(), what)
    return result


def set_quota(path: str, size_bytes: int, inodes: int) -> None:
    """Give the file system mounted at ``path`` a new size and number of inodes."""
    handle = checked("fspick", _syscall(FSPICK, AT_FDCWD, path.encode(), FSPICK_CLOEXEC))
    try:
        for name, value in ((b"size", size_bytes), (b"nr_inodes", inodes)):
            text = str(value).encode()
            checked("fsconfig", _syscall(FSCONFIG, handle, SET_STRING, name, text, 0))
        checked("reconfigure", _syscall(FSCONFIG, handle, RECONFIGURE, None, None, 0))
    finally:
        os.close(handle)


def memory_file_bytes(pid: int, name: str) -> int:
    """What a process's file in memory (memfd_create) of this name holds; 0 if it has none."""
    folder = f"/proc/{pid}/fd"
    for number in os.listdir(folder):
        path = f"{folder}/{number}"
        try:
            if os.readlink(path).startswith(f"/memfd:{name} "):
                return os.stat(path).st_blocks * 512
        except OSError:
            continue
    return 0


class Living:
    """Handles of the containers' first processes."""

    def __init__(self) -> None:
        self._handles: dict[int, int] = {}

    def add(self, pid: int) -> None:
        """Remember one, and forget those that ended."""
        poll = select.poll()
        by_handle = {handle: known for known, handle in self._handles.items()}
        for handle in by_handle:
            poll.register(handle, select.POLLIN)
        for handle, _ in poll.poll(0):
            del self._handles[by_handle[handle]]
            os.close(handle)
        if pid not in self._handles:
            self._handles[pid] = os.pidfd_open(pid)

    def kill(self) -> None:
        """Kill them, and with each all that is in its container."""
        for handle in self._handles.values():
            try:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            except OSError:
                continue


def main() -> None:
    """Serve until standard input ends."""
    living = Living()
    for line in sys.stdin:
        wrong = ""
        try:
            asked = json.loads(line)
            living.add(asked["pid"])
            for mount, (size_bytes, inodes) in asked["mounts"].items():
                set_quota(f"/proc/{asked['pid']}/root{mount}", size_bytes, inodes)
            if "memory_file" in asked:
                wrong = f"={memory_file_bytes(asked['pid'], asked['memory_file'])}"
        except (OSError, ValueError, KeyError, TypeError) as error:
            wrong = str(error).replace("\n", " ")
        sys.stdout.write(wrong + "\n")
        sys.stdout.flush()
    living.kill()


if __name__ == "__main__":
    main()
