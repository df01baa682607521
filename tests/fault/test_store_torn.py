"""Torn tails: cut at any byte or with lost sectors, the last frame vanishes and nothing else."""

from __future__ import annotations

import asyncio
import os

import pytest
from storing import ACTOR, SETTINGS, Folder, fill, intent

from appliance.errors import StoreCorrupt
from appliance.store import Store, verify
from appliance.store.keyring import Keyring
from appliance.store.ledger import Ledger
from appliance.store.proofs import Signer


@pytest.fixture(scope="module")
def crashed(tmp_path_factory):
    """A folder whose anchor is one frame older than its ledger, as a crash leaves it."""
    folder = Folder(tmp_path_factory.mktemp("torn")).make()

    async def live(count, more):
        async with folder.open() as store:
            await fill(store, count)
            note = store.ledger.note()
            await store.ledger.append(*(intent(n) for n in range(more)), actor=ACTOR)
        (folder.path / "registry.snap").unlink()
        return note

    asyncio.run(live(3, 1))
    newest = asyncio.run(live(4, 2))  # the last frame spans several sectors
    (folder.path / "anchor").write_text(newest)
    folder.root_key = folder.root()
    return folder


def recover(folder):
    """(entries, cut) as a start finds them."""
    root = folder.root_key
    ledger = Ledger(
        folder.path,
        key=root.derive("ledger"),
        signer=Signer(root.derive("ledger-signing")),
        keyring=Keyring(folder.path, root),
        segment_bytes=1 << 26,
        queue_max=100,
        free_bytes_min=0,
    )
    records = []
    cut = ledger.recover(None, records.extend, is_new=False)
    return len(records), cut


def last_frame(path):
    data = path.read_bytes()
    return data, data.rindex(verify.FRAME_MAGIC)


def test_the_ledger_cut_at_every_byte_of_its_last_frame_opens_without_that_frame(crashed):
    path = crashed.segments()[-1]
    data, start = last_frame(path)
    assert recover(crashed) == (10, None)
    for size in range(start + 1, len(data)):
        path.write_bytes(data[:size])
        assert recover(crashed) == (8, (path.name, size - start))
        assert path.stat().st_size == start
    path.write_bytes(data)
    assert recover(crashed) == (10, None)


def test_sectors_that_never_reached_the_disk_are_a_torn_tail(crashed):
    path = crashed.segments()[-1]
    data, start = last_frame(path)
    first = (start // 512 + 1) * 512
    lost = [(at, min(at + 512, len(data))) for at in range(first, len(data), 512)]
    lost += [(start, len(data)), (start, first), (first, len(data))]
    for begin, end in lost:
        path.write_bytes(data[:begin] + bytes(end - begin) + data[end:])
        assert recover(crashed)[0] == 8
    path.write_bytes(data[:start] + bytes(5000))  # the file grew, nothing was written
    assert recover(crashed) == (8, (path.name, 5000))
    path.write_bytes(data)


def test_the_same_in_the_first_frame_of_a_segment_removes_the_segment(crashed, tmp_path):
    folder = crashed.copy(tmp_path)
    folder.root_key = crashed.root_key
    one, two = folder.segments()
    data = two.read_bytes()
    first_end = data.index(verify.FRAME_MAGIC, verify.SEGMENT_SIZE + 8)
    public = verify.PublicKey(crashed.public_key)
    key = folder.root_key.derive("ledger")
    heads = [h for h, _ in verify.walk(folder.path / "ledger", key, public, verify.State())]
    signer = Signer(folder.root_key.derive("ledger-signing"))
    (folder.path / "anchor").write_text(signer.note(heads[2]))
    for size in [*range(1, first_end, 7), first_end - 1]:
        two.write_bytes(data[:size])
        assert recover(folder) == (4, (two.name, size))
        assert folder.segments() == [one]
    two.write_bytes(bytes(4096))
    assert recover(folder) == (4, (two.name, 4096))


def test_bytes_after_the_last_frame_are_damage_unless_they_are_zeros(crashed):
    path = crashed.segments()[-1]
    data, _start = last_frame(path)
    path.write_bytes(data + os.urandom(600))
    with pytest.raises(StoreCorrupt, match="damaged at entry 11"):
        recover(crashed)
    path.write_bytes(data + bytes(600))
    assert recover(crashed) == (10, (path.name, 600))
    path.write_bytes(data)


def test_a_bad_frame_with_a_good_one_after_it_is_never_cut(crashed):
    path = crashed.segments()[-1]
    data, start = last_frame(path)
    previous = data.rindex(verify.FRAME_MAGIC, 0, start)
    path.write_bytes(data[: previous + 100] + bytes(100) + data[previous + 200 :])
    with pytest.raises(StoreCorrupt, match="damaged at entry 8"):
        recover(crashed)
    path.write_bytes(data)


def test_an_unfinished_frame_in_an_earlier_segment_is_damage(crashed):
    path = crashed.segments()[0]
    data, start = last_frame(path)
    path.write_bytes(data[: start + 30])
    with pytest.raises(StoreCorrupt, match="damaged at entry 4"):
        recover(crashed)
    path.write_bytes(data)


def test_cutting_what_the_anchor_covers_is_refused(crashed, tmp_path):
    folder = crashed.copy(tmp_path)
    folder.root_key = crashed.root_key
    path = folder.segments()[-1]
    data, start = last_frame(path)
    previous = data.rindex(verify.FRAME_MAGIC, 0, start)
    for size in (start - 1, previous, previous - 1, verify.SEGMENT_SIZE, 10):
        path.write_bytes(data[:size])
        with pytest.raises(StoreCorrupt, match=r"anchor|damaged"):
            recover(folder)


async def test_a_cut_is_recorded_and_the_next_life_goes_on_in_a_new_segment(crashed, tmp_path):
    folder = crashed.copy(tmp_path)
    path = folder.segments()[-1]
    data, start = last_frame(path)
    path.write_bytes(data[: start + 77])
    async with folder.open() as store:
        (entry,) = store.ledger.read(8, 10)
        assert (entry.kind, entry.event) == (
            "ledger.recovered",
            {"segment": path.name, "cut_bytes": 77},
        )
        await fill(store, 2)
        assert (await store.verify()).ok
        assert len(folder.segments()) == 3
    assert folder.verify()[0] == 0


async def test_a_folder_without_its_last_segment_does_not_open(crashed, tmp_path):
    folder = crashed.copy(tmp_path)
    folder.segments()[-1].unlink()
    with pytest.raises(StoreCorrupt, match="anchor was signed at entry 8"):
        await Store.open(folder.path, folder.root(), SETTINGS)
