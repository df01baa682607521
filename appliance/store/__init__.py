"""The store: a sealed ledger as the truth, a DuckDB projection for questions, sealed blobs.

Owns: the data folder; this module is the facade the rest of the appliance uses.
Never: sees a sandbox, speaks HTTP, or writes plaintext names or contents to disk.
Read next: ``FORMAT.md`` (every byte), ``ledger`` (durability), ``registry`` (state).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import fcntl
import logging
import os
from collections.abc import Callable
from pathlib import Path

from appliance import config
from appliance.errors import (
    ApplianceError,
    DataDirBusy,
    NotFound,
    StoreCorrupt,
    Uninitialised,
)
from appliance.events import BlobRemoved, Recovered, TenantRemoved
from appliance.store import backup as backups
from appliance.store import seal, secrets, state, verify
from appliance.store.backup import BackupReport
from appliance.store.blobs import Blobs, BlobWriter
from appliance.store.keyring import Keyring
from appliance.store.ledger import Head, Ledger
from appliance.store.projection import Projection
from appliance.store.proofs import Signer, proof_text
from appliance.store.queries import ArmStats, CallStats, Queries, ShadowStats
from appliance.store.registry import Registry
from appliance.store.seal import RootKey, Slot
from appliance.store.shelf import Shelf
from appliance.store.sketches import Place, Sketches
from appliance.store.snapshot import Snapshot
from appliance.store.usage import UsageRow
from appliance.store.verify import State, VerifyReport
from appliance.store.writer import Writer

__all__ = [
    "ArmStats",
    "BackupReport",
    "BlobWriter",
    "Blobs",
    "CallStats",
    "Head",
    "Keyring",
    "Ledger",
    "Place",
    "Queries",
    "Registry",
    "RootKey",
    "ShadowStats",
    "Shelf",
    "Sketches",
    "Slot",
    "Snapshot",
    "Store",
    "UsageRow",
    "VerifyReport",
]

_LOG = logging.getLogger(__name__)
_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_NOT_REGISTRY = (b'"kind":"call.', b'"kind":"metric.')
_SNAP_CHANGES = 256  # registry changes after which registry.snap is written again
_SNAP_ENTRIES = 10_000  # entries after which it is, so that a start replays few
_SNAP_PERIOD_S = 5.0
_PROOF_WAIT_S = 60.0
_SHELVES = ("comparisons", "samples")


class Store:
    """An open data folder. Make one with ``open``; use it from that event loop."""

    ledger: Ledger
    registry: Registry
    blobs: Blobs
    queries: Queries
    keyring: Keyring
    sketches: Sketches
    comparisons: Shelf
    samples: Shelf

    def __init__(self, data_dir: Path, root: RootKey, settings: config.Store) -> None:
        """Lock, verify and recover the folder. Blocking; ``open`` calls it in a thread."""
        self._data_dir = data_dir
        self._root = root
        self._lock_fd = _lock(data_dir)
        try:
            self._recover(settings)
        except BaseException:
            os.close(self._lock_fd)
            raise

    @classmethod
    async def open(cls, data_dir: Path, root: RootKey, settings: config.Store) -> Store:
        """Open a data folder: lock, verify, cut a torn tail, replay, start.

        Args:
            data_dir: an initialised folder.
            root: its root key; stays the caller's to close, after ``close``.
            settings: limits.

        Raises:
            Uninitialised: the folder was never initialised.
            DataDirBusy: another process has it open.
            StoreCorrupt: something is damaged, missing or older than it was; it is named.
        """
        store = await asyncio.to_thread(cls, data_dir, root, settings)
        store._start()
        if store._torn is not None:
            segment, cut_bytes = store._torn
            event = Recovered(segment=segment, cut_bytes=cut_bytes)
            try:
                await store.ledger.append(event, actor="appliance")
            except ApplianceError:
                await store.close()
                raise
        return store

    def _recover(self, settings: config.Store) -> None:
        data_dir, root = self._data_dir, self._root
        for part in ("ledger", "blobs", "staging", "db", "sketches", *_SHELVES):
            (data_dir / part).mkdir(mode=0o700, exist_ok=True)
            if (data_dir / part).is_symlink():
                raise StoreCorrupt(f"{data_dir / part} is a link; it must be a folder of its own.")
        self._signer = Signer(root.derive("ledger-signing"))
        self.keyring = Keyring(data_dir, root)
        self.sketches = Sketches(data_dir, self.keyring)
        self.ledger = Ledger(
            data_dir,
            key=root.derive("ledger"),
            signer=self._signer,
            keyring=self.keyring,
            segment_bytes=settings.segment_bytes,
            queue_max=settings.queue_max,
            free_bytes_min=settings.free_bytes_min,
        )
        self._replay()
        key = root.derive("projection")
        self._projection = Projection(
            data_dir,
            self.ledger,
            self.keyring,
            key,
            memory_bytes=settings.query_memory_bytes,
        )
        self.queries = Queries(self._projection, self.ledger, key)
        self.blobs = Blobs(
            data_dir,
            self.keyring,
            free_bytes_min=settings.free_bytes_min,
            announce=self._announce_removal,
        )
        self.comparisons, self.samples = (
            Shelf(data_dir / part, self.keyring, free_bytes_min=settings.free_bytes_min)
            for part in _SHELVES
        )

    def _replay(self) -> None:
        """Bring the registry to where the ledger ends, from registry.snap or the beginning."""
        snap_path = self._data_dir / "registry.snap"
        found = state.load(snap_path, self._root, self.keyring)
        tables, start = found or (state.Tables(), None)
        is_new = not (
            snap_path.exists()
            or self.keyring.tenants()
            or any((self._data_dir / "ledger").iterdir())
        )
        missing: set[str] = set()
        removed: set[str] = set()

        def visit(records: list[bytes]) -> None:
            for record in records:
                if any(kind in record for kind in _NOT_REGISTRY):  # most of them
                    continue
                entry = self.ledger.entry(record)
                tables.replay(entry, missing)
                if entry.kind == TenantRemoved.KIND:
                    removed.add(entry.tenant_id)

        self._torn = self.ledger.recover(start, visit, is_new=is_new)
        for tenant_id in removed & set(self.keyring.tenants()):
            self.keyring.shred(tenant_id)
        snapshot = tables.freeze()
        missing |= {t.id for t in snapshot.tenants()} - set(self.keyring.tenants())
        if missing:
            raise StoreCorrupt(
                f"keys/{min(missing)}.json is missing.", hint="restore it from a backup"
            )
        secrets.sweep(self.keyring, snapshot)
        self.registry = Registry(Writer(self.ledger, snapshot), self.keyring)
        self._snapped = (start.size if start else 0, self.registry.changes)

    async def sweep(self) -> int:
        """Remove blobs that nothing refers to: what a crash left between a blob and its record.

        Only before anybody else uses the store: a blob of equal bytes may be wanted anew at any
        time. Returns how many were removed. Audit: blob.removed.
        """
        return await self.blobs.sweep(self.registry.snapshot.blob_ids(), age_s=0)

    def _start(self) -> None:
        self.ledger.start()
        self._projection.start()
        self._keeper = asyncio.create_task(self._keep_snapshot())

    async def close(self) -> None:
        """Write the last head and snapshot, stop the threads and give the folder back."""
        if self._lock_fd < 0:
            return
        lock_fd, self._lock_fd = self._lock_fd, -1
        self._keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._keeper
        await self.registry.close()
        await self.ledger.close()
        try:
            await self._save_snapshot()
        except (OSError, ApplianceError) as error:
            _LOG.warning("registry.snap could not be written: %s", error)
        await asyncio.to_thread(self._projection.close)
        os.close(lock_fd)

    @property
    def public_key(self) -> str:
        """The text of the key that signs heads and proofs, for ``verify.py``."""
        return self._signer.public_text

    @property
    def ledger_key(self) -> str:
        """The key that decrypts the ledger (base64), for an auditor's ``verify.py``. Secret."""
        return base64.b64encode(self._root.derive("ledger")).decode()

    def secret(self, label: str) -> bytes:
        """32 secret bytes for one purpose, the same as long as the data folder lives."""
        return self._root.derive(f"secret/{label}")

    def free_bytes(self) -> int:
        """Bytes free for the appliance on the data folder's disk."""
        info = os.statvfs(self._data_dir)
        return info.f_bavail * info.f_frsize

    async def verify(self, progress: Callable[[int, int], None] | None = None) -> VerifyReport:
        """Read the whole ledger from disk and check every entry, link and signature.

        Args:
            progress: called with (entries done, entries in all) from the verifying thread.
        """
        return await asyncio.to_thread(self._verify, progress)

    def _verify(self, progress: Callable[[int, int], None] | None) -> VerifyReport:
        try:
            anchor = self.ledger.anchor.read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            anchor = ""  # not a note: reported as damage
        at = self.ledger.position  # not before the anchor, which never runs ahead of it

        def tell(size: int) -> None:
            if progress is not None:
                progress(size, at.size)

        report = verify.verify_ledger(
            self.ledger.folder,
            self._root.derive("ledger"),
            self._signer.public,
            anchor,
            end=(at.segment, at.offset),
            progress=tell,
        )
        if report.ok and report.head != at.root.hex():
            return VerifyReport(
                ok=False,
                entries=report.entries,
                first_bad_seq=report.entries + 1,
                detail="the ledger on disk is not the one that was written",
                head=report.head,
            )
        return report

    async def prove(self, seq: int) -> str:
        """A self-contained proof text that entry ``seq`` is in the ledger (``verify.py proof``).

        Raises:
            NotFound: there is no such entry.
            StoreCorrupt: the entry's place in the ledger is damaged.
        """
        at = self.ledger.position
        if not 1 <= seq <= at.size:
            raise NotFound("There is no such entry.")
        note = self._signer.note(at)
        for _attempt in range(2):
            await self.queries.wait(at.size, _PROOF_WAIT_S)
            with contextlib.suppress(OSError, verify.Bad):
                return await asyncio.to_thread(self._proof, seq, at.size, note)
            self._projection.distrust_tiles()
            await asyncio.to_thread(self._projection.wait_tiles, at.size, _PROOF_WAIT_S)
        raise StoreCorrupt(f"No proof of entry {seq} can be made.", hint="appliance audit verify")

    def _proof(self, seq: int, size: int, note: str) -> str:
        cursor = self.ledger.cursor_at(seq - 1)
        frame = self.ledger.frame_at(cursor.segment, cursor.offset)
        record = frame.records[seq - frame.first_seq]
        path = self._projection.tiles.inclusion(seq - 1, size)
        text = proof_text(record, seq - 1, path, note)
        verify.verify_proof(text, self._signer.public)
        return text

    async def backup(self, path: Path) -> BackupReport:
        """Write a consistent backup of everything sealed into one new file.

        Raises:
            InputInvalid: the file exists or its folder does not.
            DiskFull: there is no room for it.
        """
        await self._save_snapshot()
        async with self.blobs.lock:
            async with self.registry.lock:
                plan = await asyncio.to_thread(self._plan_backup)
            return await asyncio.to_thread(backups.make, path, plan, self._signer)

    def _plan_backup(self) -> backups.Plan:
        at = self.ledger.position
        note = self._signer.note(at)
        memory = {"anchor": note.encode()}
        memory["registry.snap"] = (self._data_dir / "registry.snap").read_bytes()
        for key_file in sorted((self._data_dir / "keys").glob("*.json")):
            memory[f"keys/{key_file.name}"] = key_file.read_bytes()
        paths = []
        for number in range(1, at.segment + 1):
            segment = self.ledger.folder / f"seg-{number:08d}"
            size = at.offset if number == at.segment else segment.stat().st_size
            paths.append((f"ledger/{segment.name}", segment, size))
        paths += backups.plan_blobs(self._data_dir)
        return backups.Plan(note=note, memory=memory, paths=tuple(paths))

    async def _announce_removal(self, blob_ids: list[str]) -> None:
        events = [BlobRemoved(blob_id=blob_id) for blob_id in blob_ids]
        await self.ledger.append(*events, actor="appliance")

    async def _keep_snapshot(self) -> None:
        while True:
            await asyncio.sleep(_SNAP_PERIOD_S)
            seq, changes = self._snapped
            if (
                self.ledger.position.size - seq < _SNAP_ENTRIES
                and self.registry.changes - changes < _SNAP_CHANGES
            ):
                continue
            try:
                await self._save_snapshot()
            except (OSError, ApplianceError) as error:
                _LOG.warning("registry.snap could not be written: %s", error)

    async def _save_snapshot(self) -> None:
        async with self.registry.lock:  # so that every registry entry up to here is applied
            at, snapshot = self.ledger.position, self.registry.snapshot
            changes = self.registry.changes
            await asyncio.to_thread(self._write_snapshot, at, snapshot)
            self._snapped = (at.size, changes)

    def _write_snapshot(self, at: State, snapshot: Snapshot) -> None:
        self.ledger.write_anchor()
        path = self._data_dir / "registry.snap"
        state.save(path, self._root, self.keyring, snapshot, at)


def _lock(data_dir: Path) -> int:
    """The descriptor holding the folder's lock. Raises Uninitialised, DataDirBusy."""
    if not seal.is_initialised(data_dir):
        raise Uninitialised(f"{data_dir} is not initialised.", hint="appliance init")
    try:
        fd = os.open(data_dir / "LOCK", _LOCK_FLAGS, 0o600)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise StoreCorrupt(f"{data_dir / 'LOCK'} is a link; it must be a file.") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(fd, 20, 0).decode("ascii", "replace").strip()
        os.close(fd)
        who = f" (process {pid})" if pid.isdigit() else ""
        raise DataDirBusy(f"Another process{who} already serves {data_dir}.") from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd
