"""kill -9 at any moment: everything acknowledged is there afterwards, and nothing is bad.

``APPLIANCE_TEST_STORE_KILLS`` sets the number of kills (40; 200 for a release).
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import time

import pytest
import store_child
from store_child import ACK, BLOB, ENTRY, READY, TENANT, blob_bytes
from storing import Folder, read_blob

from appliance.errors import StoreCorrupt
from appliance.store.state import registry_view

KILLS = int(os.environ.get("APPLIANCE_TEST_STORE_KILLS", "40"))


@pytest.fixture(scope="module")
def start():
    """A function that starts a child on a folder; (process, read end of its ack pipe)."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["store_child"])

    def start_child(folder, life, mode):
        reader, writer = context.Pipe(duplex=False)
        arguments = (str(folder.key_file.parent), life, writer, mode)
        process = context.Process(target=store_child.run, args=arguments)
        process.start()
        writer.close()
        return process, reader

    return start_child


def acks_until_killed(process, reader, delay_s):
    """Let the child work for a while after it is ready, kill it, and return all its acks."""
    first = os.read(reader.fileno(), ACK.size)
    assert ACK.unpack(first)[0] == READY
    data = b""
    end = time.monotonic() + delay_s
    os.set_blocking(reader.fileno(), False)
    while time.monotonic() < end:
        try:
            data += os.read(reader.fileno(), 65536)
        except BlockingIOError:
            time.sleep(0.001)
    process.kill()
    process.join()
    os.set_blocking(reader.fileno(), True)
    while piece := os.read(reader.fileno(), 65536):
        data += piece
    reader.close()
    return list(ACK.iter_unpack(data[: len(data) // ACK.size * ACK.size]))


async def test_nothing_acknowledged_is_lost_by_kill_9(tmp_path, start):
    rng = random.Random(11)
    folder = Folder(tmp_path).make()
    calls, tenants, blobs, recovered = {}, set(), set(), 0
    for life in range(KILLS):
        process, reader = start(folder, life, "ledger")
        if life % 4 == 3:  # also while it opens and recovers
            time.sleep(rng.uniform(0, 0.2))
            process.kill()
            process.join()
            reader.close()
            continue
        for what, a, b in acks_until_killed(process, reader, rng.uniform(0, 0.15)):
            {ENTRY: calls.__setitem__, TENANT: add(tenants), BLOB: add(blobs)}[what](a, b)
        if life % 2 and life < KILLS - 2:
            continue
        async with folder.open() as store:
            found = {e.seq: e for e in store.ledger.read(0, 10**9)}
            lost = [s for s, n in calls.items() if found[s].event["call_id"] != f"call_{n}"]
            assert lost == []
            assert sorted(found) == list(range(1, len(found) + 1))
            names = {t.name for t in store.registry.snapshot.tenants()}
            assert {f"t-{life}-{n}" for life, n in tenants} <= names
            recovered = sum(e.kind == "ledger.recovered" for e in found.values())
            assert (await store.verify()).ok
    async with folder.open() as store:
        for life, n in rng.sample(sorted(blobs), min(len(blobs), 20)):
            tenant = store.registry.snapshot.tenant(f"blobs-{life}")
            data = blob_bytes(life, n)
            import hashlib

            blob_id = store.keyring.blob_id(tenant.id, hashlib.sha256(data).digest(), len(data))
            assert await read_blob(store, tenant.id, blob_id) == data
        assert (await store.blobs.scrub()).damaged == ()
    assert folder.verify()[0] == 0
    assert len(calls) > KILLS
    print(f"{KILLS} kills: {len(calls)} entries, {len(tenants)} tenants, {len(blobs)} blobs,")
    print(f"0 lost, {recovered} torn tails cut")


def add(found):
    return lambda a, b: found.add((a, b))


async def test_killing_duckdb_in_its_checkpoints_costs_nothing_but_a_rebuild(tmp_path, start):
    rng = random.Random(12)
    folder = Folder(tmp_path).make()
    rebuilds = 0
    for life in range(max(KILLS // 4, 5)):
        process, reader = start(folder, life, "checkpoint")
        acks = acks_until_killed(process, reader, rng.uniform(0.01, 0.15))
        database = folder.path / "db/appliance.duckdb"
        if life % 3 == 2 and database.exists() and database.stat().st_size > 16384:
            with database.open("r+b") as file:  # what a torn in-place metadata write leaves
                file.seek(12288)
                file.write(os.urandom(2048))
        async with folder.open() as store:
            size = store.ledger.head.size
            assert size >= max((seq for what, seq, _n in acks if what == ENTRY), default=0)
            assert await store.queries.wait(size, 30)
            listed = await store.queries.audit(limit=10_000, before_seq=min(size, 10_000) + 1)
            assert listed == store.ledger.read(0, 10_000)[::-1]
            rows = store._projection._rows.snapshot(store._projection.query)
            assert registry_view(rows) == registry_view(store.registry.snapshot)
            rebuilds += store._projection.rebuilds
    assert rebuilds >= 1


async def test_a_lost_checkpoint_block_found_late_is_repaired_while_running(tmp_path):
    folder = Folder(tmp_path).make()
    async with folder.open() as store:
        from storing import fill

        await fill(store, 50)
        await store.queries.wait(50, 10)
        expected = await store.queries.audit()
    database = folder.path / "db/appliance.duckdb"
    data = bytearray(database.read_bytes())
    for at in range(len(data) // 2, len(data), 4096):
        data[at] ^= 0xFF
    database.write_bytes(data)
    async with folder.open() as store:
        for _attempt in range(100):
            try:
                await store.queries.wait(store.ledger.head.size, 10)
                found = await store.queries.audit()
                break
            except StoreCorrupt:
                await asyncio.sleep(0.1)
        assert found == expected
