"""One file of a version's artifact, without reading the rest of it.

Owns: where each file begins in the canonical tar, and its bytes.
Never: decides who may read them, extracts anything, or writes plaintext anywhere.
Read next: ``archive`` (who wrote the tar), ``provision`` (the way of all files into a sandbox).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping

from appliance import archive, tarstream
from appliance.errors import NotFound, StoreCorrupt
from appliance.records import Version
from appliance.store import Store

_KNOWN_MAX = 64
_REGULAR = (b"0", b"\0")


class Artifacts:
    """Reads files of versions; one per unsealed node."""

    def __init__(self, store: Store) -> None:
        """Read from ``store``."""
        self._store = store
        self._known: OrderedDict[str, Mapping[str, int]] = OrderedDict()

    async def content(self, version: Version, path: str) -> AsyncIterator[bytes]:
        """The bytes of one file in pieces, each verified before it is given out.

        Raises:
            NotFound: the version has no such file.
            StoreCorrupt: it is damaged.
        """
        file = next((one for one in version.artifact.files if one.path == path), None)
        if file is None:
            raise NotFound("The version has no such file.")
        start = (await self._places(version))[path]
        async for piece in self._store.blobs.read(
            version.tenant_id, version.artifact.blob.id, offset=start, length=file.size_bytes
        ):
            yield piece

    async def _places(self, version: Version) -> Mapping[str, int]:
        blob_id = version.artifact.blob.id
        known = self._known.get(blob_id)
        if known is None:
            known = self._known[blob_id] = await self._read_places(version)
            if len(self._known) > _KNOWN_MAX:
                self._known.popitem(last=False)
        return known

    async def _read_places(self, version: Version) -> Mapping[str, int]:
        """Where each file begins: the tar's regular members are the listing's files, in order."""
        found: dict[str, int] = {}
        place = 0
        for file in version.artifact.files:
            while True:
                block = await self._block(version, place)
                size = tarstream.number(block[124:136])
                place += archive.BLOCK
                if block[156:157] in _REGULAR:
                    break
                place += size + -size % archive.BLOCK
            if size != file.size_bytes:
                raise StoreCorrupt("An artifact is not laid out as its listing says.")
            found[file.path] = place
            place += size + -size % archive.BLOCK
        return found

    async def _block(self, version: Version, place: int) -> bytes:
        pieces = [
            piece
            async for piece in self._store.blobs.read(
                version.tenant_id,
                version.artifact.blob.id,
                offset=place,
                length=archive.BLOCK,
            )
        ]
        block = b"".join(pieces)
        if len(block) != archive.BLOCK or not any(block):
            raise StoreCorrupt("An artifact ends before its listing does.")
        return block
