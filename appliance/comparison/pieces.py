"""A comparison's data set while it is kept: pieces on the shelf, sealed one by one.

Owns: their names and size, and what gives their bytes at an offset.
Never: holds more than one piece.
Read next: ``runner`` (whose data set it is), ``store.shelf``.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from appliance.store.shelf import Shelf

PIECE_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A data set that lies on the shelf: its size, and the SHA-256 of it."""

    size_bytes: int
    sha256: bytes


def names_of(comparison_id: str, size_bytes: int) -> list[str]:
    """The names of the pieces of a data set of this size."""
    count = -(-size_bytes // PIECE_BYTES)
    return [_name(comparison_id, number) for number in range(count)]


def _name(comparison_id: str, number: int) -> str:
    return f"{comparison_id}.data.{number}"


async def put(
    shelf: Shelf, tenant_id: str, comparison_id: str, chunks: AsyncIterator[bytes]
) -> Received:
    """Keep a data set as it arrives; what was kept when this raises is the caller's to remove.

    Raises:
        DiskFull: there is no room.
        NotFound: the tenant was removed.
    """
    left, size, number = bytearray(), 0, 0
    digest = hashlib.sha256()

    async def keep(piece: bytes) -> None:
        nonlocal number
        await shelf.put(tenant_id, _name(comparison_id, number), piece)
        number += 1

    async for chunk in chunks:
        digest.update(chunk)
        size += len(chunk)
        left += chunk
        while len(left) >= PIECE_BYTES:
            piece = bytes(memoryview(left)[:PIECE_BYTES])
            del left[:PIECE_BYTES]
            await keep(piece)
    if left:
        await keep(bytes(left))
    return Received(size_bytes=size, sha256=digest.digest())


class Pieces:
    """Gives the bytes of a data set that is kept."""

    def __init__(self, shelf: Shelf, tenant_id: str, comparison_id: str) -> None:
        """Of this comparison."""
        self._shelf = shelf
        self._tenant_id = tenant_id
        self._comparison_id = comparison_id
        self._number = -1
        self._piece = b""

    async def read_at(self, offset: int, size: int) -> bytes:
        """At most ``size`` bytes at an offset that is inside; less at the end of the data set.

        Raises:
            NotFound: it is kept no longer.
            StoreCorrupt: it is damaged.
        """
        found = bytearray()
        while len(found) < size:
            number, start = divmod(offset + len(found), PIECE_BYTES)
            if number != self._number:
                name = _name(self._comparison_id, number)
                self._piece = await self._shelf.get(self._tenant_id, name)
                self._number = number
            part = self._piece[start : start + size - len(found)]
            if not part:
                break
            found += part
            if len(self._piece) < PIECE_BYTES:
                break  # the last one
        return bytes(found)
