"""The tar format read strictly, one member after the other: headers in, members out.

Owns: ustar, pax and GNU headers (tar(5)): checksums, numbers, names, bounds; ``members``, which
reads a file so.
Never: writes a file, decides which kinds of member are welcome, or trusts a header's word.
Read next: ``archive`` (uploads), ``sandbox.dependencies`` and ``sandbox.images`` (who writes what).

Python's ``tarfile`` is not used on anything a stranger made: it follows what headers say (sparse
maps, links, huge names) before a caller can object.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

from appliance.errors import ArchiveRejected, FieldError

BLOCK = 512
_EXTENDED_HEADER_BYTES_MAX = 64 * 1024
_EXTENSIONS_PER_MEMBER_MAX = 4
_PAX_RECORDS_MAX = 256
_PIECE_BYTES = 1024 * 1024
_PATH_CHARACTERS_MAX = 1024
_PATH_DEPTH_MAX = 64

Kind = Literal["file", "folder", "link", "hard link", "other"]
_KINDS: dict[bytes, Kind] = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"5": "folder",
    b"2": "link",
    b"1": "hard link",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a tar may hold: bytes of contents and number of members."""

    bytes_max: int
    files_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One member's header. ``path`` is relative and has no ``.``, ``..`` or empty part.

    ``target`` is what a link points to, as it stands there; of a hard link it is cleaned like
    ``path``. ``mtime_s`` is in seconds since 1970.
    """

    path: str
    kind: Kind
    size: int
    mode: int
    mtime_s: int
    target: str


def members(source: BinaryIO, limits: Limits) -> Iterator[tuple[Member, Iterator[bytes]]]:
    """Each member of a tar with the pieces of its content, which are to be taken before the next.

    The root folder itself (``./``) is left out.

    Args:
        source: the tar, read from where it stands to its end mark.
        limits: what it may hold.

    Raises:
        ArchiveRejected: it is malformed or truncated, a path leaves its folder or holds what no
            file name may, or it is larger than the limits.
    """
    bytes_left, files_left = limits.bytes_max, limits.files_max
    for header in _headers(source):
        member = _member_from_header(header)
        has_content = member.kind == "file"
        if header.size and not has_content:
            raise rejected(header.path, "has content, but is no file")
        bytes_left -= member.size
        files_left -= 1
        if bytes_left < 0 or files_left < 0:
            raise ArchiveRejected("The archive holds more than it may.")
        content = _Content(source, header.size if has_content else 0)
        if member.path:
            yield member, iter(content)
        content.skip()
        _exactly(source, -member.size % BLOCK)


class _Content:
    """The pieces of one member, as long as there are any."""

    def __init__(self, source: BinaryIO, size: int) -> None:
        self._source = source
        self._left = size

    def __iter__(self) -> Iterator[bytes]:
        while self._left:
            piece = self._source.read(min(self._left, _PIECE_BYTES))
            if not piece:
                raise ArchiveRejected("The archive is truncated.")
            self._left -= len(piece)
            yield piece

    def skip(self) -> None:
        """Pass over what was not taken; a file cut off there is noticed at the next header."""
        if self._source.seekable():
            self._source.seek(self._left, os.SEEK_CUR)
            self._left = 0
        for _ in self:
            pass


@dataclass(slots=True, kw_only=True)
class _Header:
    block: bytes
    path: str
    target: str
    size: int


def _headers(source: BinaryIO) -> Iterator[_Header]:
    """The headers up to the end mark, with what extension headers say put in."""
    path: str | None = None
    target: str | None = None
    size: int | None = None
    extensions = 0
    while True:
        block = _exactly(source, BLOCK)
        if not any(block):
            return
        require_checksum(block)
        kind = block[156:157]
        own_size = number(block[124:136])
        if kind not in (b"x", b"g", b"L", b"K"):
            own = own_size if size is None else size
            name = ustar_path(block) if path is None else path
            link = decoded(block[157:257].split(b"\0", 1)[0]) if target is None else target
            yield _Header(block=block, path=name, target=link, size=own)
            path = target = size = None
            extensions = 0
            continue
        extensions += 1
        if own_size > _EXTENDED_HEADER_BYTES_MAX or extensions > _EXTENSIONS_PER_MEMBER_MAX:
            raise ArchiveRejected("The archive's extension headers are too large or too many.")
        data = _exactly(source, own_size)
        _exactly(source, -own_size % BLOCK)
        if kind == b"L":
            path = decoded(data.rstrip(b"\0"))
        elif kind == b"K":
            target = decoded(data.rstrip(b"\0"))
        elif kind == b"x":
            records = dict(pax_records(data))
            path = decoded(records["path"]) if "path" in records else path
            target = decoded(records["linkpath"]) if "linkpath" in records else target
            size = pax_size(records["size"]) if "size" in records else size


def _member_from_header(header: _Header) -> Member:
    kind = _KINDS.get(header.block[156:157], "other")
    target = header.target
    if kind == "hard link":
        target = clean_path(target)
    return Member(
        path=clean_path(header.path),
        kind=kind,
        size=header.size if kind == "file" else 0,
        mode=number(header.block[100:108]),
        mtime_s=number(header.block[136:148]),
        target=target,
    )


def _exactly(source: BinaryIO, size: int) -> bytes:
    data = source.read(size)
    if len(data) != size:
        raise ArchiveRejected("The archive is truncated.")
    return data


def clean_path(path: str) -> str:
    """A relative path without ``./`` and a final slash; empty for the root itself.

    Raises:
        ArchiveRejected: it leaves the folder, or is no path a file system should be given.
    """
    if len(path) > _PATH_CHARACTERS_MAX or path.startswith("/"):
        raise rejected(path, "has an absolute path, or one that is too long")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or len(parts) > _PATH_DEPTH_MAX:
        raise rejected(path, "has '..' in its path, or is nested too deep")
    if any(len(part.encode()) > 255 for part in parts):
        raise rejected(path, "has a name that is too long")
    return "/".join(parts)


def rejected(path: str, reason: str) -> ArchiveRejected:
    """The problem of one member; its path is a stranger's text: shown escaped, and not whole."""
    shown = path[:120].encode("unicode_escape").decode("ascii")
    return ArchiveRejected(
        f"Member '{shown}' {reason}.", fields=(FieldError(pointer=shown, detail=reason),)
    )


def decoded(raw: bytes) -> str:
    """A name as text.

    Raises:
        ArchiveRejected: it holds a NUL or is not UTF-8.
    """
    if b"\0" in raw:
        raise rejected(raw.decode("utf-8", "replace"), "has a NUL in its path")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise rejected(raw.decode("utf-8", "replace"), "has a path that is not UTF-8") from error


def ustar_path(block: bytes) -> str:
    """The path a header itself gives."""
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:262] == b"ustar" else b""
    # GNU tar keeps times in the prefix field of its own magic; only POSIX means a path there.
    if block[257:265] == b"ustar  \0":
        prefix = b""
    return decoded(prefix + b"/" + name if prefix else name)


def number(raw: bytes) -> int:
    """A tar number: octal text, or base 256 when the first bit is set (GNU)."""
    if raw[0] & 0x80:
        value = int.from_bytes(bytes((raw[0] & 0x7F,)) + raw[1:], "big")
        if raw[0] & 0x40:
            raise ArchiveRejected("A header of the archive has a negative number.")
        return value
    text = raw.strip(b" \0")
    if not text:
        return 0
    if not re.fullmatch(rb"[0-7]+", text):
        raise ArchiveRejected("A header of the archive is damaged; is this a tar file?")
    return int(text, 8)


def require_checksum(block: bytes) -> None:
    """Return if the header's checksum is right.

    Raises:
        ArchiveRejected: it is not.
    """
    stored = number(block[148:156])
    blanked = block[:148] + b" " * 8 + block[156:]
    if stored != sum(blanked):
        raise ArchiveRejected("A header of the archive is damaged; is this a tar file?")


def pax_size(value: bytes) -> int:
    """The number of a pax ``size`` record."""
    if not value.isdigit() or len(value) > 20:
        raise ArchiveRejected("A pax header gives a size that is not a number.")
    return int(value)


def pax_records(data: bytes) -> Iterator[tuple[str, bytes]]:
    """The records ``length key=value`` of a pax extended header (POSIX.1-2017, pax).

    Raises:
        ArchiveRejected: they are malformed, too many, or describe a sparse file.
    """
    at = count = 0
    while at < len(data):
        count += 1
        if count > _PAX_RECORDS_MAX:
            raise ArchiveRejected("A pax header of the archive has too many records.")
        digits, space, _rest = data[at : at + 21].partition(b" ")
        if not space or not digits.isdigit():
            raise ArchiveRejected("A pax header of the archive is damaged.")
        end = at + int(digits)
        record = data[at + len(digits) + 1 : end]
        if end > len(data) or end < at + len(digits) + 4 or not record.endswith(b"\n"):
            raise ArchiveRejected("A pax header of the archive is damaged.")
        key, equals, value = record[:-1].partition(b"=")
        if not equals:
            raise ArchiveRejected("A pax header of the archive is damaged.")
        if key.startswith(b"GNU.sparse"):
            raise ArchiveRejected("Sparse members are not allowed; pack the files plainly.")
        yield key.decode("utf-8", "replace"), value
        at = end
