"""A folder as a deterministic tar, one piece at a time, for ``model push``.

Owns: which files of a folder travel, in which order, and the bytes of the archive.
Never: follows a link, connects or prints.
Read next: ``archive``, which reads it on the other side.

Same files, same bytes: members are sorted, owned by nobody, dated at the epoch, mode 0644. Only
regular files travel; ``__pycache__``, ``.git`` and other caches of tools stay behind.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import ArchiveRejected, FieldError
from appliance.records import Manifest

SKIPPED = frozenset(
    {
        "__pycache__",
        ".git",
        ".venv",
        ".mypy_cache",
        ".ruff_cache",
        ".pytest_cache",
        ".ipynb_checkpoints",
    }
)
REQUIREMENTS = "requirements.txt"
_PIECE_BYTES = 256 * 1024
_END = b"\0" * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One file that travels: its path in the archive, where it is, and its size in bytes."""

    name: str
    path: Path
    size_bytes: int


def scan(folder: Path) -> tuple[Member, ...]:
    """The files of a model folder in archive order; of a single file, itself and its versions.

    Beside a single file, ``requirements.txt`` travels too: it says what the file was made with.

    Raises:
        ArchiveRejected: there is no such file or folder, or a member is a link, a device or
            anything else that is neither a file nor a folder.
    """
    if folder.is_symlink() and folder.is_file():
        raise _rejected(folder.name, "is a symbolic link; name the file itself")
    if folder.is_file():
        beside = folder.parent / REQUIREMENTS
        files = {folder, beside} if beside.is_file() and not beside.is_symlink() else {folder}
        return tuple(
            Member(name=path.name, path=path, size_bytes=path.stat().st_size)
            for path in sorted(files, key=lambda path: path.name)
        )
    if not folder.is_dir():
        raise ArchiveRejected(f"{folder} is neither a file nor a folder.")
    return tuple(sorted(_walk(folder, folder), key=lambda m: m.name))


def _walk(top: Path, folder: Path) -> Iterator[Member]:
    with os.scandir(folder) as entries:
        for entry in entries:
            name = Path(entry.path).relative_to(top).as_posix()
            if entry.name in SKIPPED:
                continue
            if entry.is_symlink():
                raise _rejected(name, "is a symbolic link; put the file itself in the folder")
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(top, Path(entry.path))
                continue
            status = entry.stat(follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode):
                raise _rejected(name, "is neither a file nor a folder")
            if not entry.name.endswith(".pyc"):
                yield Member(name=name, path=Path(entry.path), size_bytes=status.st_size)


def _rejected(name: str, reason: str) -> ArchiveRejected:
    return ArchiveRejected(f"{name} {reason}.", fields=(FieldError(pointer=name, detail=reason),))


def packed_bytes(members: tuple[Member, ...]) -> int:
    """The length of the archive without making it."""
    return sum(len(_header(m)) + -(-m.size_bytes // 512) * 512 for m in members) + len(_END)


def pack(
    members: tuple[Member, ...], sent: Callable[[int], None] = lambda _count: None
) -> Iterator[bytes]:
    """The archive in pieces of at most 256 KiB; ``sent`` is told the length of each.

    Raises:
        ArchiveRejected: a file changed its size while it was read.
    """
    for member in members:
        for piece in _pieces(member):
            yield piece
            sent(len(piece))
    yield _END


def _pieces(member: Member) -> Iterator[bytes]:
    yield _header(member)
    left = member.size_bytes
    handle = os.open(member.path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(handle, "rb") as file:
        while left:
            piece = file.read(min(_PIECE_BYTES, left))
            if not piece:
                raise _rejected(member.name, "became shorter while it was read")
            left -= len(piece)
            yield piece
        if file.read(1):
            raise _rejected(member.name, "became longer while it was read")
    padding = -member.size_bytes % 512
    if padding:
        yield b"\0" * padding


def _header(member: Member) -> bytes:
    info = tarfile.TarInfo(member.name)
    info.size = member.size_bytes
    info.mode = 0o644
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def manifest_of(members: tuple[Member, ...]) -> Manifest:
    """What the appliance will make of these files: their manifest, or the one it derives.

    Raises:
        ManifestInvalid: nothing is recognised, or what is written is wrong.
    """
    from appliance import archive, conventions, probe

    captured: dict[str, bytes] = {}
    probes = probe.Probes()
    for member in members:
        if archive.is_captured(member.name, member.size_bytes, len(captured)):
            captured[member.name] = member.path.read_bytes()
        watcher = probes.watch(member.name)
        if watcher is not None:
            with member.path.open("rb") as file:
                while piece := file.read(_PIECE_BYTES):
                    watcher(piece)
    return conventions.manifest_of([m.name for m in members], captured, probes.claims)


def digests(members: tuple[Member, ...]) -> dict[str, str]:
    """``sha256:`` digest of every file by its name, as a version lists them."""
    found = {}
    for member in members:
        with member.path.open("rb") as file:
            found[member.name] = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    return found
