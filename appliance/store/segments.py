"""The newest segment of the ledger: frames put at its end, each sealed, signed and synced.

Owns: the open segment file, its keys, and taking a half-written frame back.
Never: retries on a file that failed, appends to a segment of an earlier life, or reads.
Read next: ``FORMAT.md`` section 3; ``ledger`` (who writes), ``verify`` (who checks).
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from appliance import clock
from appliance.store import verify
from appliance.store.proofs import Signer
from appliance.store.seal import DISK_FULL, fsync_dir, hkdf
from appliance.store.verify import State, root_of

_HEAD = struct.Struct(">QQ32s")  # a frame's head without its signature


class SyncError(OSError):
    """A sync or a truncation failed: what is on the disk is not known any more."""


class Segments:
    """Writes frames; for one thread."""

    def __init__(self, folder: Path, key: bytes, signer: Signer, segment_bytes: int) -> None:
        """Args: the ledger's own; a segment of ``segment_bytes`` is followed by another."""
        self._folder = folder
        self._key = key
        self._signer = signer
        self._segment_bytes = segment_bytes
        self._fd: int | None = None
        self._digest = b""
        self._cipher: AESGCM | None = None

    def write(self, at: State, lines: list[bytes], size: int, frontier: list[bytes]) -> State:
        """Put one frame after ``at``; the position behind it once it is durable. Blocking.

        Args:
            at: the end of the ledger.
            lines: the records.
            size: entries in the ledger with them.
            frontier: of the tree with them.

        Raises:
            SyncError: nobody knows what is on the disk.
            OSError: it is not written; where the disk is full, nothing is left of it.
        """
        text = b"\n".join([*lines, b""])
        header = b""
        if self._fd is None:
            header = self._new_segment(at)
            segment, offset = at.segment + 1, len(header)
        else:
            segment, offset = at.segment, at.offset
        frame = self._frame(at, offset, text, len(lines))
        data, position = self._sign(frame, at, segment, offset, size, frontier)
        self._put(header + data, at, segment)
        if position.offset >= self._segment_bytes:
            self.close()
        return position

    def close(self) -> None:
        """Write no more to this segment."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def _frame(self, at: State, offset: int, text: bytes, count: int) -> bytes:
        """Header and ciphertext of the frame that follows ``at``."""
        assert self._cipher is not None  # noqa: S101
        header = verify.FRAME.pack(verify.FRAME_MAGIC, len(text) + 16, at.size + 1, count, at.chain)
        header += zlib.crc32(header).to_bytes(4, "big")
        nonce, aad = offset.to_bytes(12, "big"), self._digest + header
        return header + self._cipher.encrypt(nonce, text, aad)

    def _sign(
        self,
        frame: bytes,
        at: State,
        segment: int,
        offset: int,
        size: int,
        frontier: list[bytes],
    ) -> tuple[bytes, State]:
        """The frame completed with its signed head, and the position after it."""
        time_ns, root = clock.now_ns(), root_of(frontier)
        frame += _HEAD.pack(size, time_ns, root)
        chain = verify.sha(at.chain, self._digest, frame)
        signature = self._signer.sign_head(size, root, time_ns, chain)
        end = offset + len(frame) + len(signature)
        position = State(segment, end, size, chain, tuple(frontier), root, time_ns, signature)
        return frame + signature, position

    def _new_segment(self, at: State) -> bytes:
        """The header of the next segment; its keys are set, its file not yet made."""
        number, salt = at.segment + 1, os.urandom(32)
        fixed = verify.SEGMENT.pack(
            verify.SEGMENT_MAGIC, number, at.size + 1, clock.now_ns(), salt, at.chain
        )
        self._digest = verify.sha(fixed)
        info = b"ledger-segment" + number.to_bytes(4, "big")
        self._cipher = AESGCM(hkdf(self._key, salt, info))
        return fixed + self._digest

    def _put(self, data: bytes, at: State, segment: int) -> None:
        """Write and sync; on a full disk, take back what was written, and raise."""
        path = self._folder / f"seg-{segment:08d}"
        is_new = self._fd is None
        if self._fd is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            self._fd = os.open(path, flags, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            if error.errno in DISK_FULL:
                self._take_back(path, at, is_new=is_new)
            raise
        try:
            os.fdatasync(self._fd)
            if is_new:
                fsync_dir(self._folder)
        except OSError as error:
            raise SyncError(error.errno or 0, "sync") from error

    def _take_back(self, path: Path, at: State, *, is_new: bool) -> None:
        """Remove a half-written frame; the next one starts a new segment with a new key."""
        fd, self._fd = self._fd, None
        assert fd is not None  # noqa: S101
        try:
            if is_new:
                path.unlink()
                fsync_dir(self._folder)
            else:
                os.ftruncate(fd, at.offset)
                os.fsync(fd)
        except OSError as error:
            raise SyncError(error.errno or 0, "truncate") from error
        finally:
            os.close(fd)
