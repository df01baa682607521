"""The upload parser: an untrusted tar stream in, a canonical tar stream and a listing out.

Owns: which archive members are allowed, and the canonical form an artifact is stored in.
Never: touches a file system; nothing is ever extracted on the host.
Read next: ``lifecycle.register`` (feeds it), ``store.blobs`` (keeps what it emits).

Formats read: POSIX ustar and pax, GNU long names (tar(5)), each optionally gzip-compressed. Only
regular files and directories are accepted; everything else is refused by name. The canonical form
has fixed owners, modes and times, so equal files give equal bytes and an equal digest.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from appliance import tarstream
from appliance.errors import ArchiveRejected, FieldError, TooLarge
from appliance.records import ArtifactFile

BLOCK = tarstream.BLOCK
END_BYTES = 2 * BLOCK
SECRETS_FOLDER = ".secrets"
_PATH_CHARACTERS_MAX = 512
_PATH_DEPTH_MAX = 32
_EXTENDED_HEADER_BYTES_MAX = 64 * 1024
_EXTENSIONS_PER_MEMBER_MAX = 4
_CAPTURE_BYTES_MAX = 256 * 1024
_CAPTURE_FILES_MAX = 32
_CAPTURED_SUFFIXES = (".toml", ".txt")
_CAPTURED_NAMES = frozenset(
    {"appliance.toml", "MLmodel", "conda.yaml", "environment.yml", "requirements.txt"}
    | {"serving_input_example.json"}
)
"""Text that other tools write beside a model; kept however many other files there are."""
_LOCK_BYTES_MAX = 2 * 1024 * 1024
LOCKS = ("package-lock.json", "Gemfile.lock")
"""Files at the top that are kept as text although they may be large: what other tools lock by."""
_DRIVE = re.compile(r"^[A-Za-z]:")
_REGULAR = (b"0", b"\0", b"7")
_GZIP_MAGIC = b"\x1f\x8b"
_RATIO_MAX = 100
_RATIO_FREE_BYTES = 16 * 1024 * 1024
_INFLATE_STEP = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an upload may contain: unpacked bytes and number of members."""

    bytes_max: int
    files_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What the archive held: its files, and the text of small top-level files by path."""

    files: tuple[ArtifactFile, ...]
    captured: dict[str, bytes]


@dataclass(slots=True)
class _Member:
    """The member whose content is being read."""

    path: str
    remaining: int
    padding: int
    digest: hashlib._Hash
    size: int
    capture: bytearray | None
    watcher: Callable[[bytes], None] | None


@dataclass(slots=True)
class _Extended:
    """Attributes a pax or GNU extension header gave for the next member."""

    kind: bytes
    remaining: int
    padding: int
    data: bytearray = field(default_factory=bytearray)


class Reader:
    """A push parser: ``feed`` bytes as they arrive, write what it yields, then ``finish``.

    Memory stays bounded whatever the archive says: contents pass through, headers are capped.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        is_gzip: bool,
        watch: Callable[[str], Callable[[bytes], None] | None] = lambda _path: None,
    ) -> None:
        """Args: ``watch`` is asked for each file's path who else wants its content."""
        self._limits = limits
        self._watch = watch
        self._inflate = _Inflater(limits.bytes_max) if is_gzip else None
        self._buffer = bytearray()
        self._member: _Member | None = None
        self._extended: _Extended | None = None
        self._next_path: str | None = None
        self._next_size: int | None = None
        self._zero_blocks = 0
        self._bytes = 0
        self._members = 0
        self._extensions = 0
        self._seen: dict[str, str] = {}
        self._files: list[ArtifactFile] = []
        self._captured: dict[str, bytes] = {}

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Pieces of the canonical tar for the next piece of the upload.

        Raises:
            ArchiveRejected: a member is not allowed or the archive is malformed.
            TooLarge: more unpacked bytes or members than the limits allow.
        """
        pieces = self._inflate.feed(data) if self._inflate else iter((data,))
        for piece in pieces:
            self._buffer += piece
            yield from self._consume()

    def finish(self) -> tuple[bytes, Listing]:
        """The closing bytes of the canonical tar, and what the archive held.

        Raises:
            ArchiveRejected: the upload ended in the middle of a member, or holds no file.
        """
        if self._inflate and not self._inflate.is_complete:
            raise ArchiveRejected("The gzip stream is truncated; send the whole archive.")
        if self._member or self._extended or self._buffer or not self._zero_blocks:
            raise ArchiveRejected("The archive is truncated; send the whole archive.")
        if not self._files:
            raise ArchiveRejected("The archive holds no file.")
        listing = Listing(files=tuple(self._files), captured=dict(self._captured))
        return b"\0" * END_BYTES, listing

    def _consume(self) -> Iterator[bytes]:
        while self._buffer:
            if self._member:
                if self._member.remaining or self._member.padding:
                    yield from self._content(self._member)
                    if self._member.remaining or self._member.padding:
                        return
                yield from self._close_member(self._member)
            elif self._extended:
                if not self._extension(self._extended):
                    return
            elif len(self._buffer) < BLOCK:
                return
            else:
                block = bytes(self._buffer[:BLOCK])
                del self._buffer[:BLOCK]
                yield from self._header(block)

    def _content(self, member: _Member) -> Iterator[bytes]:
        take = min(member.remaining, len(self._buffer))
        if take:
            data = bytes(self._buffer[:take])
            del self._buffer[:take]
            member.remaining -= take
            member.digest.update(data)
            if member.capture is not None:
                member.capture += data
            if member.watcher is not None:
                member.watcher(data)
            yield data
        skip = 0 if member.remaining else min(member.padding, len(self._buffer))
        del self._buffer[:skip]
        member.padding -= skip

    def _close_member(self, member: _Member) -> Iterator[bytes]:
        self._files.append(
            ArtifactFile(
                path=member.path,
                size_bytes=member.size,
                digest=f"sha256:{member.digest.hexdigest()}",
            )
        )
        if member.capture is not None:
            self._captured[member.path] = bytes(member.capture)
        self._member = None
        yield b"\0" * (-member.size % BLOCK)

    def _extension(self, header: _Extended) -> bool:
        take = min(header.remaining, len(self._buffer))
        header.data += self._buffer[:take]
        del self._buffer[:take]
        header.remaining -= take
        if header.remaining:
            return False
        skip = min(header.padding, len(self._buffer))
        del self._buffer[:skip]
        header.padding -= skip
        if header.padding:
            return False
        self._extended = None
        if header.kind == b"L":
            self._next_path = tarstream.decoded(bytes(header.data).rstrip(b"\0"))
        elif header.kind == b"x":
            self._apply_pax(bytes(header.data))
        return True

    def _apply_pax(self, data: bytes) -> None:
        for key, value in tarstream.pax_records(data):
            if key == "path":
                self._next_path = tarstream.decoded(value)
            elif key == "size":
                self._next_size = tarstream.pax_size(value)

    def _header(self, block: bytes) -> Iterator[bytes]:
        if not any(block):
            self._zero_blocks += 1
            return
        if self._zero_blocks:
            raise ArchiveRejected("The archive has data after its end mark.")
        tarstream.require_checksum(block)
        kind = block[156:157]
        size = tarstream.number(block[124:136])
        if kind in (b"x", b"g", b"L"):
            if size > _EXTENDED_HEADER_BYTES_MAX:
                raise ArchiveRejected("An extension header of the archive is too large.")
            self._extensions += 1
            if self._extensions > _EXTENSIONS_PER_MEMBER_MAX * (self._members + 2):
                raise ArchiveRejected("The archive has more extension headers than members.")
            self._extended = _Extended(kind=kind, remaining=size, padding=-size % BLOCK)
            return
        path = self._next_path if self._next_path is not None else tarstream.ustar_path(block)
        if self._next_size is not None:
            size = self._next_size
        self._next_path = self._next_size = None
        yield from self._open_member(path, kind, size, tarstream.number(block[100:108]))

    def _open_member(self, path: str, kind: bytes, size: int, mode: int) -> Iterator[bytes]:
        if kind not in (*_REGULAR, b"5"):
            raise _rejected(path, f"is {_KINDS.get(kind, 'not a regular file')}")
        if mode & 0o6000:
            raise _rejected(path, "has the setuid or setgid bit")
        is_directory = kind == b"5"
        clean = clean_path(path, is_directory=is_directory)
        if not clean:
            return
        if folded(clean).split("/")[0] == SECRETS_FOLDER:
            raise ArchiveRejected(
                f"'{SECRETS_FOLDER}' is where the appliance puts a model's secrets; pack none.",
                hint="appliance secret set TENANT/MODEL NAME",
            )
        if is_directory and size:
            raise _rejected(path, "is a directory with content")
        self._members += 1
        self._bytes += size
        if self._members > self._limits.files_max:
            raise TooLarge(f"The archive has more than {self._limits.files_max} members.")
        if self._bytes > self._limits.bytes_max:
            raise TooLarge(f"The archive unpacks to more than {self._limits.bytes_max} bytes.")
        self._claim(clean, is_directory=is_directory)
        yield canonical_header(clean, size, is_directory=is_directory)
        if not is_directory:
            self._member = _Member(
                path=clean,
                remaining=size,
                padding=-size % BLOCK,
                digest=hashlib.sha256(),
                size=size,
                capture=bytearray() if is_captured(clean, size, len(self._captured)) else None,
                watcher=self._watch(clean),
            )
            if not size:
                yield from self._close_member(self._member)

    def _claim(self, path: str, *, is_directory: bool) -> None:
        """Refuse a second member that any file system could take for the first one."""
        key = folded(path)
        known = self._seen.get(key)
        if known == "file" or (known == "directory" and not is_directory):
            raise _rejected(path, "appears twice (names are compared without case)")
        if known == "parent" and not is_directory:
            raise _rejected(path, "is both a file and a folder")
        self._seen[key] = "directory" if is_directory else "file"
        parts = key.split("/")
        for depth in range(1, len(parts)):
            parent = "/".join(parts[:depth])
            if self._seen.get(parent) == "file":
                raise _rejected(path, "lies below a member that is a file")
            self._seen.setdefault(parent, "parent")


class _Inflater:
    """gzip (RFC 1952) in bounded steps, refusing bombs by total size and by ratio."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._in = 0
        self._out = 0
        self._engine = zlib.decompressobj(wbits=31)

    @property
    def is_complete(self) -> bool:
        return self._engine.eof

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._in += len(data)
        while data:
            if self._engine.eof:
                if not data.startswith(_GZIP_MAGIC):
                    if data.strip(b"\0"):
                        raise ArchiveRejected("The gzip stream has data after its end.")
                    return
                self._engine = zlib.decompressobj(wbits=31)
            try:
                piece = self._engine.decompress(data, _INFLATE_STEP)
            except zlib.error as error:
                raise ArchiveRejected("The body is not valid gzip data.") from error
            self._out += len(piece)
            self._check()
            if piece:
                yield piece
            data = self._engine.unused_data or self._engine.unconsumed_tail
            if not piece and not self._engine.eof:
                return

    def _check(self) -> None:
        # Headers and padding add at most a block or two a member to the unpacked contents.
        if self._out > 2 * self._bytes_max + _RATIO_FREE_BYTES:
            raise TooLarge(f"The archive unpacks to more than {self._bytes_max} bytes.")
        if self._out > _RATIO_FREE_BYTES and self._out > _RATIO_MAX * self._in:
            raise ArchiveRejected(
                f"The archive expands more than {_RATIO_MAX}-fold; send it uncompressed."
            )


_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a fifo",
    b"S": "a sparse file",
    b"K": "a link with a long target",
}


def is_captured(path: str, size_bytes: int, count: int) -> bool:
    """Whether a file's text is kept: what a manifest may be, or may name as requirements.

    Args:
        path: its path in the archive.
        size_bytes: how large it is.
        count: how many are kept already.
    """
    if "/" in path:
        return False
    if path in LOCKS:
        return size_bytes <= _LOCK_BYTES_MAX
    if size_bytes > _CAPTURE_BYTES_MAX:
        return False
    if path in _CAPTURED_NAMES:
        return True
    return path.endswith(_CAPTURED_SUFFIXES) and count < _CAPTURE_FILES_MAX


def canonical_header(path: str, size: int, *, is_directory: bool, mode: int = 0) -> bytes:
    """The canonical tar header of a member: owner 0, time 0, mode 0644 or 0755."""
    info = tarfile.TarInfo(path)
    info.size = size
    info.mode = mode or (0o755 if is_directory else 0o644)
    info.type = tarfile.DIRTYPE if is_directory else tarfile.REGTYPE
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def closing_with(path: str, content: bytes) -> tuple[bytes, ArtifactFile]:
    """One more file and the end mark, to put in the place of a canonical tar's ``END_BYTES``."""
    padded = content + b"\0" * (-len(content) % BLOCK)
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    data = canonical_header(path, len(content), is_directory=False) + padded + b"\0" * END_BYTES
    return data, ArtifactFile(path=path, size_bytes=len(content), digest=digest)


def closing_with_secrets(values: Mapping[str, bytes]) -> bytes:
    """Files of ``/model/.secrets`` and the end mark, for the place of a tar's ``END_BYTES``."""
    found = bytearray()
    for name, value in sorted(values.items()):
        path = f"{SECRETS_FOLDER}/{name}"
        found += canonical_header(path, len(value), is_directory=False, mode=0o400)
        found += value + b"\0" * (-len(value) % BLOCK)
    return bytes(found) + b"\0" * END_BYTES


def _rejected(path: str, reason: str) -> ArchiveRejected:
    # The path is the caller's own text: shown escaped, and never longer than a line.
    shown = path[:120].encode("unicode_escape").decode("ascii")
    return ArchiveRejected(
        f"Member '{shown}' {reason}; only regular files and folders are accepted.",
        fields=(FieldError(pointer=shown, detail=reason),),
    )


def clean_path(path: str, *, is_directory: bool = False) -> str:
    """The member's path without ``./`` and a folder's final slash; empty for the root itself."""
    if len(path) > _PATH_CHARACTERS_MAX:
        raise _rejected(path, f"has a path longer than {_PATH_CHARACTERS_MAX} characters")
    if "\\" in path or _DRIVE.match(path):
        raise _rejected(path, "has a path of another system")
    if any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn") for c in path):
        raise _rejected(path, "has a control or invisible character in its path")
    if path.startswith("/"):
        raise _rejected(path, "has an absolute path")
    parts = path.removesuffix("/").split("/") if is_directory else path.split("/")
    while parts and parts[0] == ".":
        parts = parts[1:]
    if not parts or parts == [""]:
        if is_directory:
            return ""
        raise _rejected(path, "has no name")
    if ".." in parts or "." in parts or "" in parts:
        raise _rejected(path, "has '..', '.' or an empty part in its path")
    if len(parts) > _PATH_DEPTH_MAX or any(len(p.encode()) > 255 for p in parts):
        raise _rejected(path, "is nested too deep or has a name that is too long")
    return "/".join(parts)


def folded(path: str) -> str:
    """A path as the least careful file system would compare it: without case, normalised."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
