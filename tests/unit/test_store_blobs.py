"""Sealed blobs: what goes in comes out, or an error names the blob."""

from __future__ import annotations

import asyncio
import hashlib
import os

import pytest
from storing import ACTOR, Folder, read_blob, write_blob

from appliance import config
from appliance.errors import DiskFull, NotFound, StoreCorrupt
from appliance.store import blobs

CHUNK, PART = blobs.CHUNK, blobs.PART


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path).make()


@pytest.fixture
async def store(folder):
    async with folder.open() as store:
        yield store


@pytest.fixture
async def tenant(store):
    return (await store.registry.create_tenant(name="acme", actor=ACTOR)).id


def folder_of(store, tenant, blob):
    return store._data_dir / "blobs" / tenant / blob.id[:2] / blob.id


@pytest.mark.parametrize(
    "size",
    [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 4 * 1024 * 1024 + CHUNK, 5_000_001],
)
async def test_any_size_comes_back(store, tenant, size):
    data = os.urandom(size)
    blob = await write_blob(store, tenant, data, piece=300_000)
    assert blob.size_bytes == size
    assert blob.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert await read_blob(store, tenant, blob.id) == data


@pytest.mark.parametrize("extra", [0, 1])
async def test_a_part_boundary_is_invisible(store, tenant, extra):
    data = os.urandom(1 << 20) * 64 + b"x" * max(extra, 0)
    data = data[: PART + extra]
    blob = await write_blob(store, tenant, data, piece=7_000_000)
    names = sorted(p.name for p in folder_of(store, tenant, blob).iterdir())
    assert names == ["manifest", "part-000"] + (["part-001"] if extra > 0 else [])
    assert await read_blob(store, tenant, blob.id) == data
    assert await read_blob(store, tenant, blob.id, offset=PART - 10, length=30) == data[PART - 10 :]


async def test_ranges_and_pieces(store, tenant):
    data = os.urandom(3 * CHUNK + 5)
    blob = await write_blob(store, tenant, data)
    pieces = [p async for p in store.blobs.read(tenant, blob.id)]
    assert max(map(len, pieces)) <= CHUNK
    for offset, length in ((0, 10), (CHUNK - 3, 6), (CHUNK, CHUNK), (5, 0), (3 * CHUNK, 99)):
        got = await read_blob(store, tenant, blob.id, offset=offset, length=length)
        assert got == data[offset : offset + length]
    assert await read_blob(store, tenant, blob.id, offset=10**9) == b""


async def test_equal_bytes_are_stored_once_per_tenant_and_tenants_share_nothing(store, tenant):
    other = (await store.registry.create_tenant(name="other", actor=ACTOR)).id
    a = await write_blob(store, tenant, b"x" * 1000)
    b = await write_blob(store, tenant, b"x" * 1000)
    c = await write_blob(store, other, b"x" * 1000)
    assert a == b
    assert a.id != c.id
    assert a.digest == c.digest
    with pytest.raises(NotFound):
        await read_blob(store, other, a.id)
    with pytest.raises(NotFound):
        await read_blob(store, tenant, "0" * 64)


async def test_what_was_not_committed_leaves_nothing(store, tenant, folder):
    async def give_up():
        async with store.blobs.writer(tenant) as writer:
            await writer.write(b"x" * 9_000_000)
            raise RuntimeError("caller")

    with pytest.raises(RuntimeError, match="caller"):
        await give_up()
    assert list((folder.path / "staging").iterdir()) == []
    assert list((folder.path / "blobs").rglob("part-*")) == []


async def test_a_cancelled_upload_leaves_nothing_and_no_open_file(store, tenant, folder):
    async def upload():
        async with store.blobs.writer(tenant) as writer:
            while True:
                await writer.write(os.urandom(1 << 20))

    before = len(os.listdir("/proc/self/fd"))
    for pause_s in (0.0, 0.01, 0.05):
        task = asyncio.ensure_future(upload())
        await asyncio.sleep(pause_s)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert list((folder.path / "staging").iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before


async def test_staging_of_a_crash_is_emptied_at_start(folder):
    async with folder.open():
        pass
    (folder.path / "staging/up_x").mkdir()
    (folder.path / "staging/up_x/part-000").write_bytes(b"x")
    async with folder.open():
        assert list((folder.path / "staging").iterdir()) == []


async def test_too_little_free_space_refuses_uploads(folder):
    async with folder.open(config.Store(free_bytes_min=1 << 60)) as store:
        tenant = await store.registry.create_tenant(name="acme", actor=ACTOR)
        with pytest.raises(DiskFull):
            await write_blob(store, tenant.id, b"x")


async def test_uploading_for_an_unknown_tenant_is_refused(store):
    with pytest.raises(NotFound):
        await write_blob(store, "ten_none", b"x")


def mangle_swap(part, manifest):
    data = bytearray(part.read_bytes())
    a, b = 76, 76 + CHUNK + 16
    first, second = data[a:b], data[b : b + CHUNK + 16]
    data[a:b], data[b : b + CHUNK + 16] = second, first
    part.write_bytes(data)


def mangle_drop_last_chunk(part, manifest):
    os.truncate(part, 76 + 2 * (CHUNK + 16))


def mangle_drop_byte(part, manifest):
    os.truncate(part, part.stat().st_size - 1)


def mangle_append(part, manifest):
    part.write_bytes(part.read_bytes() + b"\0" * 16)


def mangle_header(part, manifest):
    data = bytearray(part.read_bytes())
    data[20] ^= 1
    part.write_bytes(data)


def mangle_commitment(part, manifest):
    data = bytearray(part.read_bytes())
    data[50] ^= 1
    part.write_bytes(data)


def mangle_manifest(part, manifest):
    data = bytearray(manifest.read_bytes())
    data[-1] ^= 1
    manifest.write_bytes(data)


def mangle_remove_part(part, manifest):
    part.unlink()


def mangle_remove_manifest(part, manifest):
    manifest.unlink()


@pytest.mark.parametrize(
    "mangle", [f for n, f in list(globals().items()) if n.startswith("mangle_")]
)
async def test_a_mangled_blob_is_named_and_nothing_wrong_comes_out(store, tenant, mangle):
    data = os.urandom(3 * CHUNK)
    blob = await write_blob(store, tenant, data)
    where = folder_of(store, tenant, blob)
    mangle(where / "part-000", where / "manifest")
    got = bytearray()

    async def read():
        async for piece in store.blobs.read(tenant, blob.id):
            got.extend(piece)

    with pytest.raises(StoreCorrupt, match=blob.id):
        await read()
    assert data.startswith(got)
    report = await store.blobs.scrub()
    assert report.damaged == (blob.id,)
    again = await write_blob(store, tenant, data)  # a new upload heals what its size betrays
    if mangle in (mangle_drop_byte, mangle_append, mangle_remove_part, mangle_remove_manifest):
        assert await read_blob(store, tenant, again.id) == data


async def test_a_blob_moved_to_another_id_or_tenant_does_not_open(store, tenant):
    other = (await store.registry.create_tenant(name="other", actor=ACTOR)).id
    a, b = await write_blob(store, tenant, b"a" * 500), await write_blob(store, tenant, b"b" * 500)
    c = await write_blob(store, other, b"c" * 500)
    where_a, where_b = folder_of(store, tenant, a), folder_of(store, tenant, b)
    for name in ("manifest", "part-000"):
        (where_a / name).write_bytes((where_b / name).read_bytes())
    with pytest.raises(StoreCorrupt):
        await read_blob(store, tenant, a.id)
    where_c = folder_of(store, other, c)
    for name in ("manifest", "part-000"):
        (where_c / name).write_bytes((where_b / name).read_bytes())
    with pytest.raises(StoreCorrupt):
        await read_blob(store, other, c.id)


async def test_sweeping_removes_what_nobody_refers_to_and_records_it(folder):
    async with folder.open() as store:
        tenant = (await store.registry.create_tenant(name="acme", actor=ACTOR)).id
        gone = (await store.registry.create_tenant(name="gone", actor=ACTOR)).id
        kept = await write_blob(store, tenant, b"kept")
        loose = await write_blob(store, tenant, b"loose")
        theirs = await write_blob(store, gone, b"theirs")
        assert await store.blobs.sweep({kept.id}, age_s=0) == 0  # written by this very process
    async with folder.open() as store:
        assert await store.blobs.sweep({kept.id, theirs.id}) == 0  # too young
        await store.registry.remove_tenant(tenant_id=gone, actor=ACTOR)
        assert await store.blobs.sweep({kept.id, theirs.id}, age_s=0) == 2
        removed = [e.event["blob_id"] for e in store.ledger.read(0, 99) if e.kind == "blob.removed"]
        assert sorted(removed) == sorted([loose.id, theirs.id])
        assert await read_blob(store, tenant, kept.id) == b"kept"
        with pytest.raises(NotFound):
            await read_blob(store, tenant, loose.id)
        assert not (folder.path / "blobs" / gone).exists()


async def test_no_plaintext_of_a_blob_is_on_the_disk(store, tenant, folder):
    canary = b"CANARY-weights-0123456789" * 4000
    await write_blob(store, tenant, canary)
    for path in folder.path.rglob("*"):
        assert not path.is_file() or b"CANARY-weights" not in path.read_bytes()
