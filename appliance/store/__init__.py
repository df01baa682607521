"""The store: a sealed ledger as the truth, a DuckDB projection for questions, sealed blobs.

Owns: the data folder; this module is the facade the rest of the appliance uses.
Never: sees a sandbox, speaks HTTP, or writes plaintext names or contents to disk.
Read next: ``FORMAT.md`` (every byte), ``ledger`` (durability), ``registry`` (state).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from appliance import config
from appliance.store.backup import BackupReport
from appliance.store.blobs import Blobs, BlobWriter
from appliance.store.keyring import Keyring
from appliance.store.ledger import Head, Ledger
from appliance.store.projection import Projection
from appliance.store.queries import CallStats, Queries
from appliance.store.registry import Registry, Snapshot
from appliance.store.seal import RootKey, Slot
from appliance.store.usage import UsageRow
from appliance.store.verify import VerifyReport

__all__ = [
    "BackupReport",
    "BlobWriter",
    "Blobs",
    "CallStats",
    "Head",
    "Keyring",
    "Ledger",
    "Queries",
    "Registry",
    "RootKey",
    "Slot",
    "Snapshot",
    "Store",
    "UsageRow",
    "VerifyReport",
]


class Store:
    """An open data folder."""

    ledger: Ledger
    registry: Registry
    blobs: Blobs
    queries: Queries
    keyring: Keyring
    public_key: str

    @classmethod
    async def open(cls, data_dir: Path, root: RootKey, settings: config.Store) -> Store:
        """Lock, verify, recover and serve a data folder."""
        raise NotImplementedError

    async def close(self) -> None:
        """Write the last head and give the folder back."""
        raise NotImplementedError

    async def verify(self, progress: Callable[[int, int], None] | None = None) -> VerifyReport:
        """Check every byte of the ledger."""
        raise NotImplementedError

    async def prove(self, seq: int) -> str:
        """A self-contained proof that entry ``seq`` is in the ledger."""
        raise NotImplementedError

    def secret(self, label: str) -> bytes:
        """32 secret bytes for one purpose, the same each time."""
        raise NotImplementedError

    async def backup(self, path: Path) -> BackupReport:
        """Write a consistent backup."""
        raise NotImplementedError
