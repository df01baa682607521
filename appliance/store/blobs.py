"""Skeleton."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

from appliance.records import Blob


class BlobWriter:
    """One upload."""

    async def write(self, data: bytes) -> None:
        raise NotImplementedError

    async def commit(self) -> Blob:
        raise NotImplementedError


class Blobs:
    """Sealed blobs."""

    def writer(self, tenant_id: str) -> AbstractAsyncContextManager[BlobWriter]:
        raise NotImplementedError

    def read(
        self, tenant_id: str, blob_id: str, *, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]:
        raise NotImplementedError

    async def sweep(self, referenced: set[str]) -> int:
        raise NotImplementedError
