"""Folders of this machine that IT lets batches use: files in them, read and written by descriptor.

Owns: who may name which folder, and that nothing outside it is ever opened, whatever lies in it.
Never: follows a link, opens anything but a plain file, or knows what a file holds.
Read next: ``config.tree`` (``Folder``), ``batches`` (who uses them).

A place is ``NAME/path/in/it``. Each step of the path is opened from the one before and is a folder
itself, no link, and no step is ``..``: so whatever is renamed meanwhile, the walk stays below. The
file is looked at before it is opened for reading, so no device and no pipe ever is. A file that
changes while it is read is a problem; one that is written appears whole, under its name, or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from dataclasses import dataclass

from appliance import config
from appliance.errors import (
    DiskFull,
    FieldError,
    FolderUnavailable,
    InputInvalid,
    TooLarge,
)

_PIECE_BYTES = 1024 * 1024
_PLACE_CHARACTERS_MAX = 1024
_STEPS_MAX = 16
_STEP_BYTES_MAX = 255
_WALK = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FULL = (errno.ENOSPC, errno.EDQUOT)
_CALLERS = {
    errno.ENOENT: "there is no such file",
    errno.ENOTDIR: "a step of it is a link, or no folder",
    errno.ELOOP: "a step of it is a link",
    errno.ENAMETOOLONG: "a name in it is too long",
    errno.EISDIR: "it is a folder",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A file of a folder: ``steps`` are the names down to it."""

    text: str
    folder: config.Folder
    steps: tuple[str, ...]


class Folders:
    """What IT declared; the same for the whole life of the process."""

    def __init__(self, declared: Mapping[str, config.Folder]) -> None:
        self._declared = dict(declared)

    def of_tenant(self, tenant: str) -> dict[str, bool]:
        """Names of the folders that a tenant may use, and whether it may write there."""
        return {
            name: folder.writable
            for name, folder in sorted(self._declared.items())
            if tenant in folder.tenants or "*" in folder.tenants
        }

    def require_named(self, tenant: str, place: str, *, is_written: bool = False) -> None:
        """Return if a tenant may name this file, be it there or not. Raises InputInvalid."""
        self._place(tenant, place, is_written=is_written)

    async def read(self, tenant: str, place: str, *, bytes_max: int) -> AsyncGenerator[bytes]:
        """A file, in pieces.

        Args:
            tenant: name of who asks.
            place: ``NAME/path/in/it``.
            bytes_max: largest file that is read.

        Raises:
            InputInvalid: no such folder or file for this tenant, no plain file, or it changed.
            TooLarge: it is.
            FolderUnavailable: the machine does not let it be read now.
        """
        asked = self._place(tenant, place)
        with _problems(asked):
            file = await asyncio.to_thread(_opened, asked)
        try:
            with _problems(asked):
                before = os.fstat(file)
            if before.st_size > bytes_max:
                raise TooLarge(
                    f"{place} has {before.st_size} bytes; at most {bytes_max} are read.",
                    limit_bytes=bytes_max,
                )
            offset = 0
            while True:
                with _problems(asked):
                    piece = await asyncio.to_thread(os.pread, file, _PIECE_BYTES, offset)
                offset += len(piece)
                if offset > before.st_size or (not piece and offset < before.st_size):
                    raise _wrong(place, "it changed while it was read")
                if not piece:
                    break
                yield piece
            with _problems(asked):
                now = os.fstat(file)
            if _state(now) != _state(before):
                raise _wrong(place, "it changed while it was read")
        finally:
            os.close(file)

    async def require_writable(self, tenant: str, place: str) -> None:
        """Return if a file could be written there now.

        Raises:
            InputInvalid: no such folder for this tenant, or not to write.
            FolderUnavailable: the machine does not let it be written now.
        """
        asked = self._place(tenant, place, is_written=True)
        with _problems(asked):
            await asyncio.to_thread(_require_writable, asked)

    async def write(
        self, tenant: str, place: str, pieces: AsyncIterator[bytes], *, mark: str
    ) -> None:
        """Write a file; one that is there is replaced, in one step, once the new one is whole.

        Args:
            tenant: name of whose it is.
            place: ``NAME/path/in/it``.
            pieces: what it is to hold.
            mark: names the file while it is written: ``.<mark>.part``, replaced if it is there.

        Raises:
            InputInvalid, FolderUnavailable: as ``require_writable``.
            DiskFull: there is no room.
        """
        asked = self._place(tenant, place, is_written=True)
        partial = f".{mark}.part"
        with _problems(asked):
            folder = await asyncio.to_thread(_walked, asked)
        try:
            with _problems(asked):
                file = await asyncio.to_thread(_created, folder, partial)
            try:
                async for piece in pieces:
                    with _problems(asked):
                        await asyncio.to_thread(_write_all, file, piece)
                with _problems(asked):
                    await asyncio.to_thread(os.fsync, file)
                    await asyncio.to_thread(_replace, folder, partial, asked.steps[-1])
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(partial, dir_fd=folder)
                raise
            finally:
                os.close(file)
        finally:
            os.close(folder)

    def _place(self, tenant: str, place: str, *, is_written: bool = False) -> _Place:
        """What a text names. One that the tenant may not use is told like one that is not there."""
        name, _, path = place.partition("/")
        folder = self._declared.get(name)
        if folder is None or name not in self.of_tenant(tenant):
            raise _wrong(place, "this tenant has no folder of that name")
        if is_written and not folder.writable:
            raise _wrong(place, "nothing is written to that folder")
        steps = tuple(path.split("/"))
        is_path = (
            len(place) <= _PLACE_CHARACTERS_MAX
            and len(steps) <= _STEPS_MAX
            and all(_is_step(step) for step in steps)
        )
        if not is_path:
            raise _wrong(place, "it is no path below a folder, such as lake/2026/rows.parquet")
        return _Place(text=place, folder=folder, steps=steps)


def _is_step(text: str) -> bool:
    try:
        size = len(os.fsencode(text))
    except UnicodeEncodeError:
        return False
    return 0 < size <= _STEP_BYTES_MAX and text not in (".", "..") and text.isprintable()


def _walked(asked: _Place) -> int:
    """A descriptor of the folder that a place's file is in."""
    here = os.open(asked.folder.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for step in asked.steps[:-1]:
        try:
            below = os.open(step, _WALK, dir_fd=here)
        finally:
            os.close(here)
        here = below
    return here


def _opened(asked: _Place) -> int:
    """A descriptor to read a place's file with, which is a plain one."""
    folder = _walked(asked)
    try:
        found = os.open(asked.steps[-1], os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    finally:
        os.close(folder)
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise _wrong(asked.text, "it is no plain file; links are not followed")
        return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(found)


def _require_writable(asked: _Place) -> None:
    folder = _walked(asked)
    try:
        if not os.access(".", os.W_OK | os.X_OK, dir_fd=folder):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        with contextlib.suppress(FileNotFoundError):
            kind = os.stat(asked.steps[-1], dir_fd=folder, follow_symlinks=False).st_mode
            if not stat.S_ISREG(kind):
                raise _wrong(asked.text, "what is there is no plain file")
    finally:
        os.close(folder)


def _created(folder: int, name: str) -> int:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)  # of a process that was killed
    return os.open(name, _WRITE, 0o666, dir_fd=folder)


def _write_all(file: int, piece: bytes) -> None:
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(file, rest) :]


def _replace(folder: int, partial: str, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        kind = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
        if not stat.S_ISREG(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    os.replace(partial, name, src_dir_fd=folder, dst_dir_fd=folder)
    with contextlib.suppress(OSError):  # not every file system lets a folder be synced
        whole = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
        try:
            os.fsync(whole)
        finally:
            os.close(whole)


def _state(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _wrong(place: str, detail: str) -> InputInvalid:
    return InputInvalid(
        f"'{place[:200]}' cannot be used: {detail}.",
        fields=(FieldError(pointer=place[:200], detail=detail),),
    )


@contextlib.contextmanager
def _problems(asked: _Place) -> Iterator[None]:
    """Whose fault a failing system call is: who named the place, or who runs the machine."""
    try:
        yield
    except OSError as error:
        name = asked.text.partition("/")[0]
        if error.errno in _FULL:
            raise DiskFull(f"The folder '{name}' has no room left.") from error
        is_there = os.path.isdir(asked.folder.path)
        if error.errno in _CALLERS and is_there:
            raise _wrong(asked.text, _CALLERS[error.errno]) from error
        raise FolderUnavailable(
            f"The folder '{name}' cannot be used for '{asked.text[:200]}': {error.strerror}.",
            hint="have IT let the appliance's user read it, and write it where it is writable",
        ) from error
