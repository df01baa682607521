"""The store's figures as ratios to what this disk and processor can do, measured side by side.

    python tests/bench/store/ratios.py [FOLDER]

FOLDER (default: a temporary one) decides which disk is measured. Absolute figures of a shared
machine are noise; the ratios are taken minute by minute against the same disk.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/support")]

from storing import ACTOR, SETTINGS, Folder, intent, outcome, write_blob  # noqa: E402

from appliance.store import Store  # noqa: E402

RECORD = 400  # bytes of one framed record, for the raw comparison
TENANT = "ten_0123456789abc"


def show(what: str, figure: str, target: str = "") -> None:
    print(f"{what:<58} {figure:>22}   {target}", flush=True)


@contextmanager
def folder_in(base: Path) -> Iterator[Folder]:
    work = Path(tempfile.mkdtemp(prefix="store-bench-", dir=base))
    try:
        yield Folder(work).make()
    finally:
        shutil.rmtree(work)


def raw_syncs(base: Path, count: int) -> list[float]:
    """Seconds of each append of one record and fdatasync."""
    path = base / "raw"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    taken = []
    for _ in range(count):
        started = time.perf_counter()
        os.write(fd, b"x" * RECORD)
        os.fdatasync(fd)
        taken.append(time.perf_counter() - started)
    os.close(fd)
    path.unlink()
    return taken


async def one_client(store: Store, count: int) -> list[float]:
    taken = []
    for number in range(count):
        started = time.perf_counter()
        await store.ledger.append(intent(number), tenant_id=TENANT, actor=ACTOR)
        taken.append(time.perf_counter() - started)
    return taken


async def calls(store: Store, count: int) -> None:
    """One client's audited calls: an intent, then its outcome."""
    for number in range(count):
        (begun,) = await store.ledger.append(intent(number), tenant_id=TENANT, actor=ACTOR)
        await store.ledger.append(outcome(begun), tenant_id=TENANT, actor=ACTOR)


async def ledger(base: Path) -> None:
    with folder_in(base) as folder:
        async with folder.open() as store:
            ratios, raws, ours = [], [], []
            for _ in range(8):
                raw = statistics.median(raw_syncs(base, 150))
                own = statistics.median(await one_client(store, 150))
                raws.append(raw)
                ours.append(own)
                ratios.append(own / raw)
            show("raw append + fdatasync, p50", f"{statistics.median(raws) * 1e6:.0f} us")
            show("ledger append, 1 client, p50", f"{statistics.median(ours) * 1e6:.0f} us")
            show("  ratio to raw", f"{statistics.median(ratios):.2f} x", "target <= 1.3")
            for clients, count in ((1, 300), (16, 100), (64, 60), (256, 25)):
                ratios, rates = [], []
                for _ in range(4):
                    syncs = 1 / statistics.mean(raw_syncs(base, 150))
                    started = time.perf_counter()
                    await asyncio.gather(*(calls(store, count) for _ in range(clients)))
                    records = 2 * clients * count / (time.perf_counter() - started)
                    rates.append(records)
                    ratios.append(records / syncs)
                rate = statistics.median(rates)
                show(f"audited calls, {clients} clients", f"{rate / 2:.0f} calls/s")
                show("  records per raw fdatasync", f"{statistics.median(ratios):.1f} x")
            size = store.ledger.head.size
            started = time.perf_counter()
            await store.queries.wait(size, 60)
            show("projection behind by", f"{time.perf_counter() - started:.2f} s", "target < 1")
            started = time.perf_counter()
            assert (await store.verify()).ok
            show("verify", f"{size / (time.perf_counter() - started):.0f} entries/s")
        shutil.rmtree(folder.path / "db")
        started = time.perf_counter()
        async with folder.open() as store:
            show("start behind a snapshot", f"{time.perf_counter() - started:.2f} s", "target < 2")
            started = time.perf_counter()
            await store.queries.wait(size, 300)
            rate = size / (time.perf_counter() - started)
            show("rebuild of the projection", f"{rate:.0f} entries/s", "target >= 100,000")


async def blobs(base: Path, where: str, size: int, target: str) -> None:
    piece = os.urandom(4 << 20)
    with folder_in(base) as folder:
        async with folder.open() as store:
            tenant = (await store.registry.create_tenant(name="bench", actor=ACTOR)).id
            ratios = []
            for turn in range(3):
                plain = base / "plain"
                started = time.perf_counter()
                with plain.open("wb", buffering=0) as file:
                    for _ in range(size // len(piece)):
                        file.write(piece)
                    os.fsync(file.fileno())
                copying = time.perf_counter() - started
                plain.unlink()
                started = time.perf_counter()
                async with store.blobs.writer(tenant) as writer:
                    await writer.write(bytes([turn]))
                    for _ in range(size // len(piece)):
                        await writer.write(piece)
                    blob = await writer.commit()
                ratios.append(copying / (time.perf_counter() - started))
            show(
                f"seal and store {size >> 20} MiB on {where}, to a plain copy",
                f"{statistics.median(ratios):.2f} x",
                target,
            )
            started = time.perf_counter()
            total = 0
            async for chunk in store.blobs.read(tenant, blob.id):
                total += len(chunk)
            rate = total / (time.perf_counter() - started)
            show(f"read and verify from {where}", f"{rate / 1e9:.2f} GB/s")
            taken = []
            for number in range(200):
                started = time.perf_counter()
                offset = number * 300_000
                async for _ in store.blobs.read(tenant, blob.id, offset=offset, length=65536):
                    pass
                taken.append(time.perf_counter() - started)
            show("  64 KiB range, p50", f"{statistics.median(taken) * 1e6:.0f} us")


async def lookups(base: Path) -> None:
    with folder_in(base) as folder:
        async with folder.open() as store:
            tenant = await store.registry.create_tenant(name="bench", actor=ACTOR)
            await store.registry.create_model(tenant_id=tenant.id, name="m", actor=ACTOR)
            started = time.perf_counter()
            for _ in range(100_000):
                store.registry.snapshot.model(tenant.id, "m")
            taken = (time.perf_counter() - started) / 100_000
            show("registry look-up", f"{taken * 1e6:.2f} us", "target < 5")
            small = await write_blob(store, tenant.id, b"x")
            assert small.size_bytes == 1


async def main() -> None:
    base = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.gettempdir())
    assert SETTINGS.free_bytes_min == 0
    await ledger(base)
    await blobs(base, "disk", 256 << 20, "target >= 0.95")
    memory = Path("/dev/shm")
    if memory.is_dir():
        await blobs(memory, "tmpfs", 256 << 20, "target >= 0.65")
    await lookups(base)


if __name__ == "__main__":
    asyncio.run(main())
