"""Backups: consistent, checked to the byte, useless without an unseal slot."""

from __future__ import annotations

import asyncio
import os
import random
import tarfile

import pytest
from storing import ACTOR, Folder, artifact, fill, intent, manifest, read_blob, write_blob

from appliance.errors import InputInvalid, NotFound, StoreCorrupt, UnsealFailed
from appliance.store import backup, seal
from appliance.store.state import registry_view

DATA = os.urandom(700_000)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path).make()


async def populate(store):
    tenant = await store.registry.create_tenant(name="acme", actor=ACTOR)
    blob = await write_blob(store, tenant.id, DATA)
    await store.registry.register_version(
        tenant_id=tenant.id,
        model_name="m",
        manifest=manifest(),
        artifact=artifact(blob),
        runtime_digest="sha256:aa",
        actor=ACTOR,
    )
    await fill(store, 5)
    return tenant, blob


@pytest.fixture
async def made(folder, tmp_path):
    async with folder.open() as store:
        tenant, blob = await populate(store)
        report = await store.backup(tmp_path / "monday.backup")
        return tmp_path / "monday.backup", report, tenant, blob, store.public_key


async def test_a_backup_restores_to_the_same_appliance(folder, made, tmp_path):
    path, report, tenant, blob, public_key = made
    assert backup.verify(path, public_key=public_key) == report
    restored = Folder(tmp_path)
    restored.path = tmp_path / "restored"
    assert backup.restore(path, restored.path).digest == report.digest
    async with folder.open() as store:
        expected, entries = registry_view(store.registry.snapshot), store.ledger.read(0, 99)
    async with restored.open() as store:
        assert registry_view(store.registry.snapshot) == expected
        assert store.ledger.read(0, 99) == entries[: report.entries]
        assert await read_blob(store, tenant.id, blob.id) == DATA
        assert (await store.verify()).ok
        await fill(store, 1)
        await store.queries.wait(store.ledger.head.size, 10)
        assert len(await store.queries.audit()) == report.entries + 1
    assert restored.verify()[0] == 0


async def test_a_backup_taken_under_load_is_consistent(folder, tmp_path):
    async with folder.open() as store:
        tenant, _blob = await populate(store)
        stop = False

        async def load():
            while not stop:
                await store.ledger.append(intent(), actor=ACTOR)

        async def commands():
            number = 0
            while not stop:
                number += 1
                await write_blob(store, tenant.id, str(number).encode())
                other = await store.registry.create_tenant(name=f"t-{number}", actor=ACTOR)
                await store.registry.remove_tenant(tenant_id=other.id, actor=ACTOR)

        running = [asyncio.ensure_future(f()) for f in (load, load, commands)]
        for number in range(5):
            await asyncio.sleep(0.05)
            await store.backup(tmp_path / f"{number}.backup")
        stop = True
        await asyncio.gather(*running)
    for number in range(5):
        restored = Folder(tmp_path)
        restored.path = tmp_path / f"restored-{number}"
        report = backup.restore(tmp_path / f"{number}.backup", restored.path)
        async with restored.open() as store:
            assert store.ledger.head.size == report.entries
            assert (await store.verify()).ok
            assert store.registry.snapshot.tenant("acme") == tenant


async def test_any_changed_bit_is_refused(made):
    path, report, *_ = made
    data = bytearray(path.read_bytes())
    rng = random.Random(3)
    structure = [rng.randrange(len(data)) for _ in range(60)]
    structure += [rng.randrange(20_000) for _ in range(100)]  # headers, keys, padding
    structure += [len(data) - rng.randrange(1, 4_000) for _ in range(100)]  # the manifest
    for at in structure:
        bit = 1 << rng.randrange(8)
        data[at] ^= bit
        path.write_bytes(data)
        with pytest.raises(StoreCorrupt, match="backup"):
            backup.verify(path)
        data[at] ^= bit
    path.write_bytes(data)
    assert backup.verify(path) == report


async def test_a_cut_or_extended_backup_is_refused_and_leaves_nothing(made, tmp_path):
    path, *_ = made
    data = path.read_bytes()
    rng = random.Random(4)
    for size in [0, 1, 511, 512, len(data) - 1, len(data) - 512, len(data) - 1024] + [
        rng.randrange(len(data)) for _ in range(30)
    ]:
        path.write_bytes(data[:size])
        with pytest.raises(StoreCorrupt, match="backup"):
            backup.restore(path, tmp_path / "restored")
        assert not (tmp_path / "restored").exists()
    path.write_bytes(data + b"\0")
    with pytest.raises(StoreCorrupt, match="backup"):
        backup.verify(path)
    assert not list(tmp_path.glob(".restored*"))


async def test_a_backup_of_another_key_is_refused_when_the_key_is_known(made, tmp_path):
    path, *_ = made
    other = Folder(tmp_path / "other")
    (tmp_path / "other").mkdir()
    other.make()
    async with other.open() as store:
        with pytest.raises(StoreCorrupt):
            backup.verify(path, public_key=store.public_key)


async def test_a_file_smuggled_into_a_backup_is_refused(made, tmp_path):
    path, *_ = made
    for name in ("files/../escape", "files/keys/../../x.json", "/etc/x", "files/LOCK", "x"):
        block = backup._header(name, 1) + b"x" + bytes(511)
        bad = tmp_path / "bad"
        bad.write_bytes(block + path.read_bytes())
        with pytest.raises(StoreCorrupt):
            backup.restore(bad, tmp_path / "restored")
    assert not (tmp_path / "escape").exists()


async def test_a_backup_never_overwrites(made, folder, tmp_path):
    path, *_ = made
    with pytest.raises(InputInvalid):
        backup.restore(path, folder.path)
    async with folder.open() as store:
        with pytest.raises(InputInvalid):
            await store.backup(path)
        with pytest.raises(InputInvalid):
            await store.backup(tmp_path / "no/such/folder")
    with pytest.raises(NotFound):
        backup.verify(tmp_path / "absent")


async def test_a_backup_is_an_ordinary_tar_of_sealed_files(made, tmp_path):
    path, report, tenant, *_ = made
    with tarfile.open(path) as tar:
        names = tar.getnames()
    assert len(names) == report.files + 1
    assert names[-1] == "manifest.json"
    assert {"files/anchor", "files/registry.snap", "files/keys/slots.json"} <= set(names)
    assert not any("db/" in n or "staging" in n for n in names)
    assert b"acme" not in path.read_bytes()
    assert path.stat().st_mode & 0o077 == 0
    backup.restore(path, tmp_path / "restored")
    seal.initialise(tmp_path / "other", key_file=tmp_path / "other.key")
    with pytest.raises(UnsealFailed):
        seal.unseal(tmp_path / "restored", key_file=tmp_path / "other.key")
    assert tenant.name == "acme"
