"""The ledger: durable, ordered, atomic, bounded, anchored."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from storing import ACTOR, SETTINGS, Folder, fill, intent

from appliance import config
from appliance.errors import (
    AuditUnavailable,
    CapacityExhausted,
    DataDirBusy,
    StoreCorrupt,
    Uninitialised,
)
from appliance.events import AliasSet, CallIntent, ModelCreated, Recovered, TenantCreated
from appliance.store import Store, seal, verify
from appliance.store.reader import Cursor

SMALL = config.Store(free_bytes_min=0, segment_bytes=65536)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path).make()


async def test_an_entry_is_returned_as_it_will_be_read(folder):
    async with folder.open() as store:
        (entry,) = await store.ledger.append(
            intent(7), tenant_id="ten_x", actor=ACTOR, object="mod_x"
        )
        assert (entry.seq, entry.kind, entry.actor) == (1, "call.intent", ACTOR)
        assert entry.event is not None
        assert entry.event["call_id"] == "call_7"
        assert store.ledger.read(0, 10) == [entry]
        assert await store.queries.entry(1) == entry
        assert entry.boot == store.ledger.boot
    async with folder.open() as store:
        assert store.ledger.read(0, 10) == [entry]


async def test_sequence_numbers_have_no_gaps_under_concurrency(folder):
    async with folder.open(SMALL) as store:
        batches = await asyncio.gather(
            *(
                store.ledger.append(*(intent(n) for _ in range(n % 4 + 1)), actor=ACTOR)
                for n in range(400)
            )
        )
        seqs = [entry.seq for entries in batches for entry in entries]
        assert sorted(seqs) == list(range(1, len(seqs) + 1))
        for entries in batches:  # one append stays together
            assert [e.seq for e in entries] == list(
                range(entries[0].seq, entries[0].seq + len(entries))
            )
        assert [e.seq for e in store.ledger.read(0, 10_000)] == sorted(seqs)
        by_seq = {e.seq: e for entries in batches for e in entries}
        for after in (0, 1, 57, 500, len(seqs) - 1, len(seqs)):
            assert store.ledger.read(after, 3) == [
                by_seq[s] for s in range(after + 1, min(after + 4, len(seqs) + 1))
            ]
        assert (await store.verify()).ok


async def test_segments_roll_and_a_new_life_starts_a_new_one(folder):
    async with folder.open(SMALL) as store:
        for _ in range(5):
            await asyncio.gather(*(store.ledger.append(intent(), actor=ACTOR) for _ in range(120)))
    count = len(folder.segments())
    assert count >= 3
    for _life in range(2):
        async with folder.open(SMALL) as store:
            await fill(store, 1)
            report = await store.verify()
            assert (report.ok, report.entries) == (True, store.ledger.head.size)
            assert report.head == store.ledger.head.root_hex
    assert len(folder.segments()) == count + 2
    assert folder.verify()[0] == 0


async def test_opening_without_writing_makes_no_segment(folder):
    for _ in range(3):
        async with folder.open() as store:
            assert store.ledger.head.size == 0
            assert (await store.verify()).ok
    assert folder.segments() == []


async def test_a_full_queue_refuses_before_anything_is_recorded(folder):
    async with folder.open(config.Store(free_bytes_min=0, queue_max=16)) as store:
        many = [
            asyncio.ensure_future(store.ledger.append(intent(n), actor=ACTOR)) for n in range(60)
        ]
        done = await asyncio.gather(*many, return_exceptions=True)
        kept = [d for d in done if isinstance(d, tuple)]
        refused = [d for d in done if isinstance(d, CapacityExhausted)]
        assert len(kept) + len(refused) == 60
        assert refused
        assert store.ledger.head.size == len(kept)
        store.ledger.append_later(intent(), actor=ACTOR)
        await fill(store, 1)
        assert store.ledger.head.size == len(kept) + 2


async def test_best_effort_entries_are_dropped_and_counted_under_pressure(folder):
    async with folder.open(config.Store(free_bytes_min=0, queue_max=16)) as store:
        for number in range(30):
            store.ledger.append_later(intent(number), actor=ACTOR)
        assert store.ledger.dropped > 0
        await fill(store, 1)
        assert store.ledger.head.size + store.ledger.dropped == 31


async def test_a_cancelled_append_leaves_the_ledger_whole(folder):
    async with folder.open() as store:
        task = asyncio.ensure_future(store.ledger.append(intent(), actor=ACTOR))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await fill(store, 3)
        assert (await store.verify()).ok
        assert store.ledger.head.size in (3, 4)


async def test_after_a_write_error_nothing_is_accepted_and_nothing_retried(folder):
    import os

    async with folder.open() as store:
        await fill(store, 3)
        read_only = os.open("/dev/null", os.O_RDONLY)
        os.dup2(read_only, store.ledger._segments._fd)  # the next write fails with EBADF
        os.close(read_only)
        with pytest.raises(AuditUnavailable):
            await fill(store, 1)
        assert store.ledger.state == "failed"
        with pytest.raises(AuditUnavailable):
            await store.ledger.append(intent(), actor=ACTOR)
        store.ledger.append_later(intent(), actor=ACTOR)
        assert store.ledger.dropped == 1
        assert len(await store.queries.audit()) >= 0  # questions go on
    async with folder.open() as store:
        assert store.ledger.head.size == 3
        await fill(store, 1)


async def test_the_folder_has_one_owner(folder):
    async with folder.open():
        with pytest.raises(DataDirBusy, match="process"):
            await Store.open(folder.path, folder.root(), SETTINGS)
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)",
                str(folder.path / "LOCK"),
            ],
            capture_output=True,
        )
        assert b"BlockingIOError" in done.stderr
    async with folder.open() as store:
        await store.close()
        await store.close()  # closing twice is closing once


async def test_a_folder_that_was_never_initialised_does_not_open(tmp_path):
    (tmp_path / "d").mkdir()
    with pytest.raises(Uninitialised):
        await Store.open(tmp_path / "d", seal.RootKey(b"x" * 32, "s"), SETTINGS)


async def test_the_wrong_root_key_opens_nothing(folder):
    async with folder.open() as store:
        await fill(store, 3)
    with pytest.raises(StoreCorrupt):
        await Store.open(folder.path, seal.RootKey(b"x" * 32, "s"), SETTINGS)


async def test_rolling_the_ledger_back_is_refused_and_named(folder, tmp_path):
    async with folder.open() as store:
        await fill(store, 5)
    old = folder.copy(tmp_path / "old")
    async with folder.open() as store:
        await fill(store, 5)
    for what in ("ledger", "ledger+snap"):
        attacked = folder.copy(tmp_path / what)
        for path in attacked.segments()[1:]:
            path.unlink()
        if what == "ledger+snap":
            snap = old.path / "registry.snap"
            (attacked.path / "registry.snap").write_bytes(snap.read_bytes())
        with pytest.raises(StoreCorrupt, match=r"anchor|missing"):
            await Store.open(attacked.path, attacked.root(), SETTINGS)
        status, text = attacked.verify()
        assert (status, "entry 6" in text) == (1, True)


async def test_an_old_or_absent_anchor_is_refused(folder, tmp_path):
    async with folder.open() as store:
        await fill(store, 5)
    old = (folder.path / "anchor").read_bytes()
    async with folder.open() as store:
        await fill(store, 5)
    without = folder.copy(tmp_path / "without")
    (without.path / "anchor").unlink()
    with pytest.raises(StoreCorrupt, match="anchor is missing"):
        await Store.open(without.path, without.root(), SETTINGS)
    (folder.path / "anchor").write_bytes(old)  # the ledger then holds more than it: a crash
    with pytest.raises(StoreCorrupt, match="anchor"):
        await Store.open(folder.path, folder.root(), SETTINGS)
    (folder.path / "registry.snap").unlink()  # ...but the snapshot was written after the anchor
    async with folder.open() as store:
        assert store.ledger.head.size == 10


async def test_an_anchor_of_another_history_is_refused(folder, tmp_path):
    fork = folder.copy(tmp_path / "fork")
    async with folder.open() as store:
        await fill(store, 5)
    async with fork.open() as store:
        await fill(store, 5)
    (folder.path / "anchor").write_bytes((fork.path / "anchor").read_bytes())
    with pytest.raises(StoreCorrupt, match="history"):
        await Store.open(folder.path, folder.root(), SETTINGS)


async def test_a_tenants_sealed_events_are_unreadable_after_its_removal(folder):
    async with folder.open() as store:
        tenant = await store.registry.create_tenant(name="acme", actor=ACTOR)
        model = await store.registry.create_model(
            tenant_id=tenant.id, name="secret-model", description="private words", actor=ACTOR
        )
        proof = await store.prove(2)
        before = store.ledger.read(0, 10)
        assert before[1].event is not None
        assert before[1].event["model"]["name"] == "secret-model"
        await store.registry.remove_tenant(tenant_id=tenant.id, actor=ACTOR)
        for _life in range(2):
            after = store.ledger.read(0, 10)
            assert [e.kind for e in after][:3] == [
                TenantCreated.KIND,
                ModelCreated.KIND,
                "tenant.removed",
            ]
            assert after[1].event is None
            assert after[1].leaf == before[1].leaf
            assert after[0].event is None  # it held the tenant's name
            assert after[0].leaf == before[0].leaf
            assert verify.verify_proof(proof, verify.PublicKey(store.public_key))[0] == 2
            assert verify.verify_proof(
                await store.prove(2), verify.PublicKey(store.public_key)
            ) == verify.verify_proof(proof, verify.PublicKey(store.public_key))
            assert (await store.verify()).ok
        assert (await store.queries.audit(model_id=model.id))[0].event is None
    async with folder.open() as store:
        assert store.ledger.read(0, 10)[1].event is None
        assert store.registry.snapshot.tenants() == ()
    (folder.path / "registry.snap").unlink()
    async with folder.open() as store:
        assert store.registry.snapshot.tenants() == ()
        assert (await store.verify()).ok


async def test_a_lost_key_file_is_named_not_ignored(folder):
    async with folder.open() as store:
        tenant = await store.registry.create_tenant(name="acme", actor=ACTOR)
        await store.registry.create_model(tenant_id=tenant.id, name="m", actor=ACTOR)
    (folder.path / f"keys/{tenant.id}.json").unlink()
    with pytest.raises(StoreCorrupt, match=f"keys/{tenant.id}"):
        await Store.open(folder.path, folder.root(), SETTINGS)


async def test_every_event_kind_survives_the_ledger(folder):
    from appliance.events import event_classes

    assert {CallIntent.KIND, AliasSet.KIND, Recovered.KIND} <= set(event_classes())
    async with folder.open() as store:
        (entry,) = await store.ledger.append(Recovered(segment="s", cut_bytes=1), actor=ACTOR)
        assert entry.event == {"segment": "s", "cut_bytes": 1}


async def test_proofs_of_many_entries_verify_and_a_missing_entry_has_none(folder):
    from appliance.errors import NotFound

    async with folder.open() as store:
        await asyncio.gather(*(store.ledger.append(intent(n), actor=ACTOR) for n in range(700)))
        public = verify.PublicKey(store.public_key)
        for seq in (1, 2, 255, 256, 257, 512, 699, 700):
            found, record = verify.verify_proof(await store.prove(seq), public)
            assert found == seq
            assert store.ledger.entry(record).seq == seq
        for seq in (0, 701, -1):
            with pytest.raises(NotFound):
                await store.prove(seq)
        for path in (folder.path / "db/tiles").iterdir():
            path.write_bytes(bytes(path.stat().st_size))
        assert verify.verify_proof(await store.prove(5), public)[0] == 5  # made again


async def test_records_of_many_calls_under_way_share_a_frame(folder):
    async with folder.open(SMALL) as store:
        store.ledger.under_way = 64
        waits = []
        for number in range(6):
            waits.append(asyncio.create_task(store.ledger.record(intent(number), actor=ACTOR)))
            await asyncio.sleep(0)
        assert store.ledger.head.size == 0
        assert await asyncio.gather(*waits) == [1, 2, 3, 4, 5, 6]
        store.ledger.under_way = 1
        assert await store.ledger.record(intent(7), actor=ACTOR) == 7
        found = [frame for _, frame in store.ledger.frames(Cursor(0, 0, 0))]
        assert [len(frame.records) for frame in found] == [6, 1]


async def test_what_waited_for_company_is_written_when_the_ledger_closes(folder):
    async with folder.open(SMALL) as store:
        store.ledger.under_way = 64
        wait = asyncio.create_task(store.ledger.record(intent(1), actor=ACTOR))
        await asyncio.sleep(0)
    assert await wait == 1
    async with folder.open(SMALL) as store:
        assert [entry.event["call_id"] for entry in store.ledger.read(0, 10)] == ["call_1"]
