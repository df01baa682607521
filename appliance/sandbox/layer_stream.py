"""The unpacked bytes of one layer of an image archive, counted and digested as they pass.

Owns: gzip, zstd and plain layers, both digests, and the ratio a bomb does not pass.
Never: knows what is in a layer.
Read next: ``tarstream`` (who reads it), ``oci`` (who compares the digests).
"""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Iterator
from typing import BinaryIO, cast

import zstandard

from appliance.errors import ArchiveRejected
from appliance.sandbox.image_archive import Layer

_PIECE = 256 * 1024
_RATIO_MAX = 200
_RATIO_FREE_BYTES = 64 * 1024 * 1024
_WINDOW_BYTES_MAX = 128 * 1024 * 1024
_GZIP = b"\x1f\x8b"
_ZSTD = (b"\x28\xb5\x2f\xfd", *(bytes((n, 0x2A, 0x4D, 0x18)) for n in range(0x50, 0x60)))


class LayerStream(io.RawIOBase):
    """A file to read from once; ``taken`` counts packed bytes, ``given`` unpacked ones."""

    def __init__(self, file: BinaryIO, layer: Layer, *, bytes_max: int) -> None:
        """Open it.

        Args:
            file: the archive.
            layer: where in it the layer is, and how it is said to be packed.
            bytes_max: how long it may be unpacked.

        Raises:
            ArchiveRejected: it is not packed as it is said to be.
        """
        super().__init__()
        self.taken = 0
        self.given = 0
        self._bytes_max = bytes_max
        self._packed = hashlib.sha256()
        self._unpacked = hashlib.sha256()
        self._file = file
        self._end = layer.offset + layer.size
        self._at = layer.offset
        file.seek(layer.offset)
        packing = _packing(file.read(min(4, layer.size)))
        if layer.packing not in ("", packing):
            raise ArchiveRejected(f"It is said to be {layer.packing}, but is {packing}.")
        self._pieces = {"gzip": self._gunzip, "zstd": self._unzstd, "plain": self._raw}[packing]()
        self._buffer = bytearray()

    def read(self, size: int = -1) -> bytes:
        """``size`` bytes; fewer at the end only.

        Raises:
            ArchiveRejected: it is damaged, or unpacks to too much.
        """
        while len(self._buffer) < size:
            piece = self._piece()
            if not piece:
                break
            self._buffer += piece
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def finish(self) -> tuple[str, str]:
        """Read the rest; the digests of the layer as it is packed, and unpacked."""
        self._buffer.clear()
        while self._piece():
            pass
        for _ in self._raw():  # what follows the packed data belongs to its digest
            pass
        return f"sha256:{self._packed.hexdigest()}", f"sha256:{self._unpacked.hexdigest()}"

    def _piece(self) -> bytes:
        try:
            piece = next(self._pieces, b"")
        except (zlib.error, zstandard.ZstdError) as error:
            raise ArchiveRejected(f"Its compressed data is damaged: {error}.") from error
        self._unpacked.update(piece)
        self.given += len(piece)
        if self.given > self._bytes_max:
            raise ArchiveRejected(f"It unpacks to more than {self._bytes_max >> 20} MiB.")
        if self.given > _RATIO_FREE_BYTES and self.given > _RATIO_MAX * self.taken:
            raise ArchiveRejected(f"It unpacks to more than {_RATIO_MAX} times its size.")
        return piece

    def _raw(self) -> Iterator[bytes]:
        while data := self._take(_PIECE):
            yield data

    def _take(self, size: int) -> bytes:
        self._file.seek(self._at)
        data = self._file.read(min(size, self._end - self._at))
        self._at += len(data)
        self.taken += len(data)
        self._packed.update(data)
        return data

    def _gunzip(self) -> Iterator[bytes]:
        """All members of a gzip stream, one after the other (RFC 1952); zeros may follow."""
        inflate = zlib.decompressobj(31)
        data = self._take(_PIECE)
        while data:
            piece = inflate.decompress(data, _PIECE * 4)
            if piece:
                yield piece
            data = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
            data = data or self._take(_PIECE)
            if inflate.eof:
                if not data.strip(b"\0"):
                    return
                inflate = zlib.decompressobj(31)
        if not inflate.eof:
            raise ArchiveRejected("Its compressed data is cut off.")

    def _unzstd(self) -> Iterator[bytes]:
        unpack = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES_MAX)
        packed = cast("BinaryIO", _Packed(self))
        reader = unpack.stream_reader(
            packed, read_size=_PIECE, read_across_frames=True, closefd=False
        )
        while piece := reader.read(_PIECE * 4):
            yield piece


class _Packed(io.RawIOBase):
    """A layer's packed bytes as a file."""

    def __init__(self, stream: LayerStream) -> None:
        super().__init__()
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        return self._stream._take(size if size > 0 else _PIECE)


def _packing(start: bytes) -> str:
    if start[:2] == _GZIP:
        return "gzip"
    return "zstd" if start in _ZSTD else "plain"
