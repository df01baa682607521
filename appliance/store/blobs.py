"""Sealed blobs: written once, read in pieces, every piece verified before anyone sees it.

Owns: ``blobs/`` and ``staging/``: the MAB1 format, commits that survive a crash, sweeping.
Never: writes plaintext, releases an unverified byte, or knows what a blob is for.
Read next: ``FORMAT.md`` section 5; ``keyring`` holds the object keys.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from appliance import clock
from appliance.errors import DiskFull, NotFound, StoreCorrupt
from appliance.records import Blob
from appliance.store.keyring import Keyring
from appliance.store.seal import (
    box_open,
    box_seal,
    fsync_dir,
    hkdf,
    replace_file,
    telling_full_disk,
)

R = TypeVar("R")
_LOG = logging.getLogger(__name__)
_LOG2_CHUNK = 18
CHUNK = 1 << _LOG2_CHUNK
PART = 64 * 1024 * 1024
_TAG = 16
_HEADER = 76
_MAGIC, _MANIFEST_MAGIC = b"MAB1", b"MABM"
_BATCH = 4 * 1024 * 1024  # what one thread hop encrypts or decrypts
_GRACE_S = 24 * 3600


class _PartEntry(msgspec.Struct):
    size: int
    salt: str
    commit: str


class _Manifest(msgspec.Struct):
    v: int
    size: int
    digest: str
    parts: list[_PartEntry]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrubReport:
    """What a scrub read: blobs and plaintext bytes checked, and ids of the damaged ones."""

    blobs: int
    size_bytes: int
    damaged: tuple[str, ...]


class _Part:
    """The cipher of one part: its header, and seal/open of chunk number i."""

    def __init__(self, object_key: bytes, tenant_id: str, number: int, salt: bytes) -> None:
        info = b"mab1\0" + tenant_id.encode() + b"\0" + number.to_bytes(4, "big")
        derived = hkdf(object_key, salt, info, 64)
        self._cipher, self.commit = AESGCM(derived[:32]), derived[32:]
        fixed = _MAGIC + bytes((1, 1, _LOG2_CHUNK, 0)) + number.to_bytes(4, "big")
        self.header = fixed + salt + self.commit
        self._aad = hashlib.sha256(self.header + tenant_id.encode()).digest()

    @staticmethod
    def _nonce(index: int, *, is_last: bool) -> bytes:
        return index.to_bytes(11, "big") + (b"\1" if is_last else b"\0")

    def seal(self, index: int, chunk: memoryview | bytes, *, is_last: bool) -> bytes:
        return self._cipher.encrypt(self._nonce(index, is_last=is_last), chunk, self._aad)

    def open(self, index: int, sealed: bytes, *, is_last: bool) -> bytes:
        return self._cipher.decrypt(self._nonce(index, is_last=is_last), sealed, self._aad)


class BlobWriter:
    """One blob being written; made by ``Blobs.writer``."""

    def __init__(self, blobs: Blobs, tenant_id: str, folder: Path) -> None:
        """Write into the staging ``folder``."""
        self._blobs = blobs
        self._tenant_id = tenant_id
        self._folder = folder
        self._key = os.urandom(32)
        self._hash = hashlib.sha256()
        self._buffer = bytearray()
        self._size = 0
        self._parts: list[_PartEntry] = []
        self._part: _Part | None = None
        self._file: int | None = None
        self._written: list[int] = []  # finished parts, to be synced by the commit
        self._part_size = 0
        self._busy: asyncio.Future[list[object]] | None = None
        self._blob: Blob | None = None

    async def write(self, data: bytes) -> None:
        """Append bytes. Raises DiskFull."""
        self._buffer += data
        if len(self._buffer) >= _BATCH + CHUNK:
            usable = (len(self._buffer) - 1) // CHUNK * CHUNK  # the last chunk waits for commit
            batch = bytes(memoryview(self._buffer)[:usable])
            del self._buffer[:usable]
            await self._flush(batch, is_last=False)

    async def commit(self) -> Blob:
        """Make the blob durable; equal bytes of the same tenant are stored once.

        Raises:
            DiskFull: nothing was kept.
            NotFound: the tenant was removed meanwhile.
        """
        batch = bytes(self._buffer)
        self._buffer.clear()
        await self._flush(batch, is_last=True)
        await self._in_threads(self._commit)
        assert self._blob is not None  # noqa: S101 - set by _commit
        return self._blob

    async def _flush(self, batch: bytes, *, is_last: bool) -> None:
        self._size += len(batch)
        work = (
            lambda: self._hash.update(batch),
            lambda: self._write(memoryview(batch), is_last=is_last),
        )
        await self._in_threads(*work)

    async def _in_threads(self, *work: Callable[[], object]) -> None:
        """Run blocking work in threads; if the wait is cancelled, ``settle`` waits for it."""
        threads = [asyncio.to_thread(_tell_full_disk, each) for each in work]
        self._busy = asyncio.gather(*threads, return_exceptions=True)
        for result in await asyncio.shield(self._busy):
            if isinstance(result, BaseException):
                raise result

    async def settle(self) -> None:
        """Wait for work still running in threads, then close the open part."""
        if self._busy is not None:
            await asyncio.wait([self._busy])
        self.close()

    def _write(self, batch: memoryview, *, is_last: bool) -> None:
        at = 0
        while at < len(batch) or (is_last and self._file is None and not self._parts):
            if self._part is None or self._file is None:
                self._begin_part()
            room = PART - self._part_size
            piece = batch[at : at + room]
            at += len(piece)
            is_end = is_last and at == len(batch)
            self._write_chunks(piece, is_part_end=is_end or len(piece) == room)
            if is_end or len(piece) == room:
                self._end_part()
            if is_end:
                return

    def _write_chunks(self, piece: memoryview, *, is_part_end: bool) -> None:
        assert self._part is not None and self._file is not None  # noqa: S101, PT018
        first = self._part_size // CHUNK
        starts = range(0, max(len(piece), 1), CHUNK)
        sealed = b"".join(
            self._part.seal(
                first + i, piece[s : s + CHUNK], is_last=is_part_end and s + CHUNK >= len(piece)
            )
            for i, s in enumerate(starts)
        )
        _write_all(self._file, sealed)
        self._part_size += len(piece)

    def _begin_part(self) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        number, salt = len(self._parts), os.urandom(32)
        self._part = _Part(self._key, self._tenant_id, number, salt)
        path = self._folder / f"part-{number:03d}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._file = os.open(path, flags, 0o600)
        _write_all(self._file, self._part.header)
        entry = _PartEntry(size=0, salt=salt.hex(), commit=self._part.commit.hex())
        self._parts.append(entry)
        self._part_size = 0

    def _end_part(self) -> None:
        assert self._file is not None  # noqa: S101
        self._parts[-1].size = self._part_size
        self._written.append(self._file)
        self._file = self._part = None

    def close(self) -> None:
        """Close every part still open."""
        open_files = [*self._written, *([] if self._file is None else [self._file])]
        self._written, self._file, self._part = [], None, None
        for fd in open_files:
            os.close(fd)

    def _commit(self) -> None:
        for fd in self._written:  # by now mostly on the disk
            os.fsync(fd)
        self.close()
        digest = self._hash.digest()
        blob_id = self._blobs.keyring.blob_id(self._tenant_id, digest, self._size)
        blob = Blob(id=blob_id, size_bytes=self._size, digest=f"sha256:{digest.hex()}")
        manifest = _Manifest(v=1, size=self._size, digest=blob.digest, parts=self._parts)
        aad = f"{self._tenant_id}\0{blob_id}".encode()
        text = msgspec.json.encode(manifest)
        sealed = _MANIFEST_MAGIC + box_seal(self._key, "blob-manifest", aad, text)
        replace_file(self._folder / "manifest", sealed)
        self._blobs.adopt(self._tenant_id, blob, self._folder, self._key)
        self._blob = blob


class Blobs:
    """Every tenant's blobs."""

    def __init__(
        self,
        data_dir: Path,
        keyring: Keyring,
        *,
        free_bytes_min: int,
        announce: Callable[[list[str]], Awaitable[None]],
    ) -> None:
        """Empty ``staging/`` and take over ``blobs/``. Blocking.

        ``announce`` records the ids of blobs that are about to be removed.
        """
        self._announce = announce
        self.keyring = keyring
        self._dir = data_dir / "blobs"
        self._staging = data_dir / "staging"
        self._free_bytes_min = free_bytes_min
        self._fresh: set[str] = set()
        self.lock = asyncio.Lock()  # held while files are removed, or copied
        for folder in (self._dir, self._staging):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in self._staging.iterdir():
            shutil.rmtree(left, ignore_errors=True)

    @asynccontextmanager
    async def writer(self, tenant_id: str) -> AsyncIterator[BlobWriter]:
        """A writer; what was not committed when the block ends is gone.

        Raises:
            DiskFull: less than ``store.free_bytes_min`` is free.
            NotFound: there is no such tenant.
        """
        if tenant_id not in self.keyring:
            raise NotFound("There is no such tenant.")
        info = os.statvfs(self._staging)
        if info.f_bavail * info.f_frsize < self._free_bytes_min:
            raise DiskFull("The data folder's disk is nearly full; uploads are refused.")
        folder = self._staging / clock.new_id("up")
        writer = BlobWriter(self, tenant_id, folder)
        try:
            yield writer
        finally:
            await writer.settle()
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def read(
        self, tenant_id: str, blob_id: str, *, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]:
        """The blob's bytes in pieces of up to 256 KiB, from ``offset``; each is verified first.

        Raises:
            NotFound: there is no such blob (or tenant).
            StoreCorrupt: the blob is damaged; bytes already given out are right.
        """
        start = max(offset, 0)

        def begin() -> tuple[bytes, _Manifest, int, int, list[bytes]]:
            key, manifest = self._open(tenant_id, blob_id)
            end = manifest.size if length is None else min(start + length, manifest.size)
            stop = min(end, (start // _BATCH + 1) * _BATCH)
            if start < end or manifest.size == 0:  # an empty blob has one empty chunk to verify
                pieces = self._read_range(tenant_id, blob_id, key, manifest, start, stop)
            else:
                pieces = []
            return key, manifest, stop, end, pieces

        key, manifest, stop, end, pieces = await asyncio.to_thread(begin)
        while True:
            for piece in pieces:
                if piece:
                    yield piece
            if stop >= end:
                return
            start, stop = stop, min(end, stop + _BATCH)
            pieces = await asyncio.to_thread(
                self._read_range, tenant_id, blob_id, key, manifest, start, stop
            )

    def _folder(self, tenant_id: str, blob_id: str) -> Path:
        return self._dir / tenant_id / blob_id[:2] / blob_id

    def _open(self, tenant_id: str, blob_id: str) -> tuple[bytes, _Manifest]:
        key = self.keyring.object_key(tenant_id, blob_id)
        if key is None:
            raise NotFound("There is no such blob.")
        path = self._folder(tenant_id, blob_id) / "manifest"
        try:
            data = path.read_bytes()
            if data[:4] != _MANIFEST_MAGIC:
                raise ValueError("magic")
            aad = f"{tenant_id}\0{blob_id}".encode()
            text = box_open(key, "blob-manifest", aad, data[4:])
            return key, msgspec.json.decode(text, type=_Manifest)
        except (OSError, ValueError) as error:
            raise _damaged(blob_id, "its manifest") from error

    def _read_range(
        self,
        tenant_id: str,
        blob_id: str,
        key: bytes,
        manifest: _Manifest,
        start: int,
        stop: int,
    ) -> list[bytes]:
        """Verified plaintext of [start, stop), which lies inside one part."""
        number = min(start // PART, len(manifest.parts) - 1)
        entry = manifest.parts[number]
        path = self._folder(tenant_id, blob_id) / f"part-{number:03d}"
        first, last = start % PART // CHUNK, max(stop - 1 - number * PART, 0) // CHUNK
        last_of_part = max(entry.size - 1, 0) // CHUNK
        pieces = []
        try:
            with path.open("rb", buffering=0) as file:
                part = _check_part(file.fileno(), key, tenant_id, number, entry)
                for index in range(first, last + 1):
                    sealed = os.pread(file.fileno(), CHUNK + _TAG, _HEADER + index * (CHUNK + _TAG))
                    chunk = part.open(index, sealed, is_last=index == last_of_part)
                    base = number * PART + index * CHUNK
                    low, high = max(start - base, 0), min(stop - base, CHUNK)
                    pieces.append(chunk if high - low == len(chunk) else chunk[low:high])
        except (OSError, ValueError, InvalidTag) as error:
            raise _damaged(blob_id, path.name) from error
        return pieces

    def adopt(self, tenant_id: str, blob: Blob, staged: Path, key: bytes) -> None:
        """Move a staged blob into place, unless the tenant has these bytes already. Blocking."""
        final = self._folder(tenant_id, blob.id)
        self._fresh.add(blob.id)
        if final.exists() and self._is_whole(tenant_id, blob):
            os.utime(final)
            return
        shutil.rmtree(final, ignore_errors=True)
        fsync_dir(staged)
        self.keyring.save_object_key(tenant_id, blob.id, key)
        for folder in (final.parent.parent, final.parent):
            folder.mkdir(mode=0o700, exist_ok=True)
        staged.rename(final)
        for folder in (final.parent, final.parent.parent, self._dir):
            fsync_dir(folder)

    def _is_whole(self, tenant_id: str, blob: Blob) -> bool:
        """Whether a stored blob opens and every part has its size."""
        try:
            _key, manifest = self._open(tenant_id, blob.id)
            folder = self._folder(tenant_id, blob.id)
            return manifest.digest == blob.digest and all(
                (folder / f"part-{i:03d}").stat().st_size == _sealed_size(p.size)
                for i, p in enumerate(manifest.parts)
            )
        except (StoreCorrupt, NotFound, OSError):
            return False

    async def sweep(self, referenced: set[str], *, age_s: float = _GRACE_S) -> int:
        """Remove blobs nobody refers to, and what removed tenants left; returns how many.

        Blobs written by this process or younger than ``age_s`` are left: their reference may be
        on its way. Audit: blob.removed, before anything is removed.
        """
        async with self.lock:
            found = await asyncio.to_thread(self._unreferenced, referenced, age_s)
            if found:
                await self._announce([folder.name for folder in found])
            await asyncio.to_thread(self._remove, found)
            return len(found)

    async def discard(self, tenant_id: str, blob_ids: set[str]) -> None:
        """Remove blobs at once, whoever wrote them; nothing may refer to them any more.

        Only for blobs whose plaintext is unique, so that no other upload is stored as them.
        Audit: blob.removed, before anything is removed.
        """
        async with self.lock:
            folders = [self._folder(tenant_id, blob_id) for blob_id in sorted(blob_ids)]
            found = [folder for folder in folders if folder.exists()]
            if found:
                await self._announce([folder.name for folder in found])
            await asyncio.to_thread(self._remove, found)
            self._fresh -= blob_ids

    def _unreferenced(self, referenced: set[str], age_s: float) -> list[Path]:
        kept = referenced | self._fresh
        oldest = clock.now_ns() - int(age_s * 1e9)
        return [
            folder
            for folder in sorted(self._dir.glob("*/??/*"))
            if folder.parent.parent.name not in self.keyring
            or (folder.name not in kept and folder.stat().st_mtime_ns < oldest)
        ]

    def _remove(self, found: list[Path]) -> None:
        by_tenant: dict[str, set[str]] = {}
        for folder in found:
            shutil.rmtree(folder)
            by_tenant.setdefault(folder.parent.parent.name, set()).add(folder.name)
        for tenant_id, blob_ids in by_tenant.items():
            if tenant_id in self.keyring:
                self.keyring.drop_object_keys(tenant_id, blob_ids)
        for tenant in self._dir.iterdir():
            if tenant.name not in self.keyring:
                shutil.rmtree(tenant)

    async def scrub(self) -> ScrubReport:
        """Read and verify every blob there is."""
        count = size = 0
        damaged: list[str] = []
        for tenant_id, blob_id in await asyncio.to_thread(lambda: list(self._ids())):
            try:
                async for piece in self.read(tenant_id, blob_id):
                    size += len(piece)
            except NotFound:
                continue  # removed meanwhile, or an orphan of a crash
            except StoreCorrupt as error:
                _LOG.error("%s", error)
                damaged.append(blob_id)
            count += 1
        return ScrubReport(blobs=count, size_bytes=size, damaged=tuple(damaged))

    def _ids(self) -> Iterator[tuple[str, str]]:
        for folder in sorted(self._dir.glob("*/??/*")):
            yield folder.parent.parent.name, folder.name


def _check_part(fd: int, key: bytes, tenant_id: str, number: int, entry: _PartEntry) -> _Part:
    """The part's cipher, after its header, commitment and size were checked."""
    part = _Part(key, tenant_id, number, bytes.fromhex(entry.salt))
    header = os.pread(fd, _HEADER, 0)
    if not hmac.compare_digest(header, part.header) or part.commit.hex() != entry.commit:
        raise ValueError("header")
    if os.fstat(fd).st_size != _sealed_size(entry.size):
        raise ValueError("size")
    return part


def _sealed_size(size: int) -> int:
    chunks = max((size + CHUNK - 1) // CHUNK, 1)
    return _HEADER + size + chunks * _TAG


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _tell_full_disk(work: Callable[[], R]) -> R:
    with telling_full_disk("nothing was stored"):
        return work()


def _damaged(blob_id: str, what: str) -> StoreCorrupt:
    return StoreCorrupt(
        f"Blob {blob_id} is damaged ({what}).", hint="restore it from a backup", blob_id=blob_id
    )
