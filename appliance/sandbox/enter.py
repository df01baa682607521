"""The enterer: a small program that makes sockets in containers' network namespaces.

Owns: one process in Podman's user and mount namespace, whose capabilities reach every container;
started by ``netns``, one message in, one message and descriptors out. Standard library only.
Never: is imported by the appliance; connects, listens, or runs anything of a container.
Read next: ``netns``.

A socket belongs for ever to the network namespace it was made in, whoever binds or connects it.
So this process only enters, makes it, and hands it over; what may block is done elsewhere.
Between two messages it stays in an empty namespace of its own, so that it keeps none alive.
"""

from __future__ import annotations

import array
import ctypes
import json
import os
import socket
import sys

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000
OPEN_TREE, MOVE_MOUNT, MOUNT_SETATTR = 428, 429, 442  # the same on every architecture
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 4
AT_FDCWD, AT_EMPTY_PATH = -100, 0x1000
ATTR_RDONLY_NOSUID_NODEV_NOEXEC = 0x1 | 0x2 | 0x4 | 0x8
MESSAGE_BYTES_MAX = 64 * 1024
FDS_MAX = 128

_libc = ctypes.CDLL(None, use_errno=True)


def checked(what: str, result: int) -> int:
    """The result of a system call, or its errno as ``OSError``."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def sockets_in(namespace: int, count: int, family: int) -> list[socket.socket]:
    """Stream sockets made in a network namespace."""
    checked("setns(net)", _libc.setns(namespace, CLONE_NEWNET))
    return [socket.socket(family, socket.SOCK_STREAM) for _ in range(count)]


def put_file(namespace: int, own: int, source: str, target: str) -> None:
    """Mount one file read-only over one in a container's mount namespace."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC
    tree = checked("open_tree", _libc.syscall(OPEN_TREE, AT_FDCWD, source.encode(), flags))
    try:
        attributes = (ctypes.c_uint64 * 4)(ATTR_RDONLY_NOSUID_NODEV_NOEXEC, 0, 0, 0)
        size = ctypes.sizeof(attributes)
        checked(
            "mount_setattr",
            _libc.syscall(MOUNT_SETATTR, tree, b"", AT_EMPTY_PATH, attributes, size),
        )
        checked("setns(mnt)", _libc.setns(namespace, CLONE_NEWNS))
        try:
            moved = _libc.syscall(
                MOVE_MOUNT, tree, b"", AT_FDCWD, target.encode(), MOVE_MOUNT_F_EMPTY_PATH
            )
            checked("move_mount", moved)
        finally:
            checked("setns(own mnt)", _libc.setns(own, CLONE_NEWNS))
    finally:
        os.close(tree)


def _answer(link: socket.socket, parked: int, own: int) -> bool:
    """Serve one message; False at the end of them."""
    data, ancillary, _flags, _peer = link.recvmsg(MESSAGE_BYTES_MAX, socket.CMSG_SPACE(4))
    if not data:
        return False
    given = array.array("i")
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            given.frombytes(payload[: len(payload) - len(payload) % given.itemsize])
    made: list[socket.socket] = []
    wrong = ""
    try:
        asked = json.loads(data)
        if asked["do"] == "sockets":
            made = sockets_in(given[0], min(int(asked["count"]), FDS_MAX), int(asked["family"]))
        elif asked["do"] == "file":
            put_file(given[0], own, asked["source"], asked["target"])
        else:
            wrong = "unknown message"
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        wrong = str(error) or type(error).__name__
    finally:
        for descriptor in given:
            os.close(descriptor)
    checked("setns(parked)", _libc.setns(parked, CLONE_NEWNET))
    descriptors = array.array("i", [one.fileno() for one in made])
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)] if made else []
    link.sendmsg([wrong.encode("utf-8", "replace")[:4096] or b"ok"], rights)
    for one in made:
        one.close()
    return True


def main() -> None:
    """Serve until the other end closes."""
    checked("unshare(net)", _libc.unshare(CLONE_NEWNET))
    parked = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    own = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    with socket.socket(fileno=sys.stdin.fileno()) as link:
        while _answer(link, parked, own):
            pass


if __name__ == "__main__":
    main()
