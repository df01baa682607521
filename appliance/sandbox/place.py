"""The placer: a small program that writes a version's files into a container's tmpfs, once.

Owns: one short process in Podman's namespaces that becomes the container's own root user before it
writes; started by ``placing`` for a container that has not begun to run. Standard library only.
Never: is imported by the appliance; runs anything of a container, or follows a link in it.
Read next: ``placing``.

    place.py PID FOLDER UID GID < TAR

Files are for the container's user to read, not to change.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tarfile

_PIECE = 1024 * 1024
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def folder_below(top: int, parts: list[str]) -> int:
    """A descriptor of a folder below another, made where it is missing."""
    at = os.dup(top)
    for part in parts:
        with contextlib.suppress(FileExistsError):
            os.mkdir(part, 0o755, dir_fd=at)
        below = os.open(part, _FOLDER, dir_fd=at)
        os.close(at)
        at = below
    return at


def place(top: int, archive: tarfile.TarFile) -> None:
    """Write every regular file of the archive below a folder."""
    for member in archive:
        parts = [part for part in member.name.split("/") if part not in ("", ".")]
        if ".." in parts or member.name.startswith("/"):
            raise ValueError("a path leads out of the folder")
        if member.isdir():
            os.close(folder_below(top, parts))
            continue
        content = archive.extractfile(member) if member.isreg() else None
        if content is None:
            raise ValueError("it holds something that is no file")
        at = folder_below(top, parts[:-1])
        with open(os.open(parts[-1], _NEW_FILE, 0o644, dir_fd=at), "wb") as out:
            while piece := content.read(_PIECE):
                out.write(piece)
            if member.mode & 0o111:
                os.fchmod(out.fileno(), 0o755)
        os.close(at)


def main() -> None:
    """Become the container's root user, then write what comes in."""
    pid, folder, uid, gid = sys.argv[1:]
    top = os.open(f"/proc/{int(pid)}/root{folder}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.setgroups([])
    os.setresgid(int(gid), int(gid), int(gid))
    os.setresuid(int(uid), int(uid), int(uid))
    os.umask(0o022)
    try:
        with tarfile.open(fileobj=sys.stdin.buffer, mode="r|", bufsize=_PIECE) as archive:
            place(top, archive)
    except (OSError, ValueError, tarfile.TarError) as error:
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        sys.stdout.write(text.replace("\n", " "))
        sys.exit(1)


if __name__ == "__main__":
    main()
