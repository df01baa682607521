"""Sealed things of a tenant that are kept for a while, beside the registry: one file each.

Owns: the folders ``comparisons/`` and ``samples/``: what lies there, sealed and unsealed.
Never: decides how long a thing is kept, or holds what must survive a restore: backups leave it out.
Read next: ``FORMAT.md`` section 9; ``keyring`` seals.

Whoever keeps things here records what matters of it in the ledger. A file that a crash cut off does
not open and reads as absent.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from appliance.errors import DiskFull, NotFound
from appliance.store.keyring import Keyring
from appliance.store.seal import replace_file, telling_full_disk

_NAME = re.compile(r"[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,150}")


class Shelf:
    """One kind of thing, by tenant and name."""

    def __init__(self, folder: Path, keyring: Keyring, *, free_bytes_min: int) -> None:
        """Keep things in ``folder``; nothing is added when the disk has less room than that."""
        self._folder = folder
        self._keyring = keyring
        self._free_bytes_min = free_bytes_min

    async def put(self, tenant_id: str, name: str, data: bytes, *, is_durable: bool = True) -> int:
        """Keep a thing under a name, instead of what had it; returns the bytes it takes.

        Args:
            tenant_id: whose it is; its key seals it.
            name: letters, digits, ``._-``; stands on disk as it is.
            data: the thing.
            is_durable: whether it outlives a loss of power from when this returns.

        Raises:
            DiskFull: there is no room.
            NotFound: the tenant was removed.
        """
        return await asyncio.to_thread(self._put, tenant_id, name, data, is_durable)

    def _put(self, tenant_id: str, name: str, data: bytes, is_durable: bool) -> int:
        path = self._path(tenant_id, name)
        info = os.statvfs(self._folder)
        if info.f_bavail * info.f_frsize < self._free_bytes_min + len(data):
            raise DiskFull("The data folder's disk is nearly full; nothing more is kept.")
        box = self._keyring.seal(tenant_id, self._folder.name, name.encode(), data)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if is_durable:
            replace_file(path, box)
        else:
            with telling_full_disk(f"{name} was not kept"):
                _write(path, box)
        return len(box)

    async def get(self, tenant_id: str, name: str) -> bytes:
        """A thing.

        Raises:
            NotFound: there is none of this name, or its tenant was removed.
            StoreCorrupt: it is damaged.
        """
        return await asyncio.to_thread(self.read, tenant_id, name)

    def read(self, tenant_id: str, name: str) -> bytes:
        """``get``, blocking."""
        try:
            box = self._path(tenant_id, name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound("It is kept no longer.") from None
        return self._keyring.open(tenant_id, self._folder.name, name.encode(), box)

    async def remove(self, tenant_id: str, names: Collection[str]) -> None:
        """Delete things; those that are gone already are passed over."""

        def delete() -> None:
            for name in names:
                self._path(tenant_id, name).unlink(missing_ok=True)

        await asyncio.to_thread(delete)

    def listing(self) -> dict[str, dict[str, int]]:
        """Tenant to name to bytes of everything there is. Blocking."""
        found: dict[str, dict[str, int]] = {}
        for tenant in os.scandir(self._folder):
            if not tenant.is_dir(follow_symlinks=False):
                continue
            things = found.setdefault(tenant.name, {})
            for one in os.scandir(tenant.path):
                if one.name.endswith(".tmp"):
                    Path(one.path).unlink(missing_ok=True)
                elif one.is_file(follow_symlinks=False) and _NAME.fullmatch(one.name):
                    things[one.name] = one.stat(follow_symlinks=False).st_size
        return found

    async def sweep(self, is_living: Callable[[str], object]) -> None:
        """Delete what belongs to tenants that are gone; it cannot be read any more.

        Args:
            is_living: whether there is a tenant of an id; asked after its folder was seen, so that
                nothing of one that was made meanwhile is deleted.
        """
        seen = await asyncio.to_thread(os.listdir, self._folder)
        gone = [self._folder / name for name in seen if not is_living(name)]

        def delete() -> None:
            for folder in gone:
                shutil.rmtree(folder, ignore_errors=True)

        if gone:
            await asyncio.to_thread(delete)

    def _path(self, tenant_id: str, name: str) -> Path:
        if not _NAME.fullmatch(tenant_id) or not _NAME.fullmatch(name):
            raise ValueError(f"not a name: {name!r}")
        return self._folder / tenant_id / name


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, as long as the machine runs."""
    temporary = path.with_name(path.name + ".tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
