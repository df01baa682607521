"""What a child process does to a data folder until it is killed; each ack goes up a pipe."""

from __future__ import annotations

import asyncio
import itertools
import os
import struct
from multiprocessing.connection import Connection
from pathlib import Path

from storing import ACTOR, SETTINGS, Folder, fill, intent, outcome, write_blob

from appliance.store import Store, projection

ACK = struct.Struct(">cQQ")  # what, sequence number, number
READY, ENTRY, TENANT, BLOB = b"r", b"e", b"t", b"b"


def run(base: str, life: int, acks: Connection, mode: str) -> None:
    """Work on the folder in ``base`` for ever; ``mode`` is ``ledger`` or ``checkpoint``."""
    if mode == "checkpoint":  # make DuckDB checkpoint at nearly every commit
        defaults = projection.Projection.__init__.__kwdefaults__
        defaults["checkpoint_threshold"] = "1KB"
        projection._PERIOD_S = 0.002
    asyncio.run(_work(Folder(Path(base)), life, acks.fileno(), mode))


async def _work(folder: Folder, life: int, pipe: int, mode: str) -> None:
    store = await Store.open(folder.path, folder.root(), SETTINGS)

    def tell(what: bytes, seq: int, number: int) -> None:
        os.write(pipe, ACK.pack(what, seq, number))

    tell(READY, 0, 0)
    clients = [_calls(store, tell, life * 10 + n) for n in range(4)]
    if mode == "ledger":
        clients += [_tenants(store, tell, life), _blobs(store, tell, life)]
    await asyncio.gather(*clients)


async def _calls(store, tell, client):
    for n in itertools.count():
        number = client * 1_000_000 + n
        (begun,) = await store.ledger.append(intent(number), tenant_id="ten_x", actor=ACTOR)
        tell(ENTRY, begun.seq, number)
        (ended,) = await store.ledger.append(outcome(begun), tenant_id="ten_x", actor=ACTOR)
        tell(ENTRY, ended.seq, number)


async def _tenants(store, tell, life):
    for n in itertools.count():
        await store.registry.create_tenant(name=f"t-{life}-{n}", actor=ACTOR)
        tell(TENANT, life, n)


async def _blobs(store, tell, life):
    tenant = await store.registry.create_tenant(name=f"blobs-{life}", actor=ACTOR)
    for n in itertools.count():
        await write_blob(store, tenant.id, blob_bytes(life, n))
        tell(BLOB, life, n)


def blob_bytes(life: int, n: int) -> bytes:
    """The content of a child's n-th blob."""
    return f"{life}/{n}".encode() * 30_000


async def _fill_disk(base: str) -> None:
    """On a small file system: fill it, see clean refusals, free it, and go on."""
    from appliance.errors import DiskFull

    folder = Folder(Path(base)).make()
    ballast = Path(base) / "ballast"
    async with folder.open() as store:
        tenant = await store.registry.create_tenant(name="acme", actor=ACTOR)
        await fill(store, 20)
        with ballast.open("wb", buffering=0) as file:
            try:
                while file.write(b"x" * 4096):
                    pass
            except OSError:
                pass
        refused = 0
        for number in range(3000):
            try:
                await store.ledger.append(intent(number), actor=ACTOR)
            except DiskFull:
                refused += 1
                if refused == 20:
                    break
        assert refused == 20, refused
        assert store.ledger.state == "ok"
        for work in (
            write_blob(store, tenant.id, b"y" * 9_000_000),
            store.registry.create_tenant(name="other", actor=ACTOR),
            store.backup(Path(base) / "b.backup"),
        ):
            (result,) = await asyncio.gather(work, return_exceptions=True)
            assert isinstance(result, DiskFull), repr(result)
        assert len(store.ledger.read(0, 10)) == 10  # reading goes on
        size = store.ledger.head.size
        ballast.unlink()
        await fill(store, 20)
        await write_blob(store, tenant.id, b"y" * 100_000)
        assert store.ledger.head.size == size + 20
        assert (await store.verify()).ok
        assert await store.queries.wait(store.ledger.head.size, 30)
        assert len(await store.queries.audit(limit=10_000)) == size + 20
        assert store.registry.snapshot.tenant("other") is None
    async with folder.open() as store:
        assert store.ledger.head.size == size + 20
        assert (await store.verify()).ok
        await store.registry.create_tenant(name="other", actor=ACTOR)
    print("recovered")


if __name__ == "__main__":
    import sys

    asyncio.run(_fill_disk(sys.argv[1]))
