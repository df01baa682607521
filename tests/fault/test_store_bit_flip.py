"""1,000 single flipped bits: an error that names the object, or the right bytes; never wrong."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random

import pytest
from storing import ACTOR, SETTINGS, Folder, artifact, fill, manifest, read_blob, write_blob

from appliance.errors import StoreCorrupt, UnsealFailed
from appliance.store import Store, seal, state, verify
from appliance.store.keyring import Keyring
from appliance.store.ledger import Ledger
from appliance.store.proofs import Signer
from appliance.store.state import registry_view

DATA = os.urandom(600_000)


class Original:
    """A folder with something of everything, and what is right about it."""

    def __init__(self, base):
        self.folder = Folder(base).make()
        self.rng = random.Random(21)
        asyncio.run(self.fill())
        self.root = self.folder.root()
        self.secret = self.root.derive("x")
        self.records = self.read_ledger()

    async def fill(self):
        async with self.folder.open() as store:
            self.tenant = await store.registry.create_tenant(name="acme", actor=ACTOR)
            self.blob = await write_blob(store, self.tenant.id, DATA)
            await store.registry.register_version(
                tenant_id=self.tenant.id,
                model_name="m",
                manifest=manifest(description="words"),
                artifact=artifact(self.blob),
                runtime_digest="d",
                actor=ACTOR,
            )
            await fill(store, 10)
        async with self.folder.open() as store:
            await fill(store, 10)
            await store.queries.wait(store.ledger.head.size, 10)
            self.entries = await store.queries.audit()
            self.view = registry_view(store.registry.snapshot)

    def read_ledger(self):
        """Every record, through recovery as at a start; raises StoreCorrupt."""
        ledger = Ledger(
            self.folder.path,
            key=self.root.derive("ledger"),
            signer=Signer(self.root.derive("ledger-signing")),
            keyring=Keyring(self.folder.path, self.root),
            segment_bytes=1 << 26,
            queue_max=100,
            free_bytes_min=0,
        )
        records = []
        assert ledger.recover(None, records.extend, is_new=False) is None
        return records

    def flips(self, path, count):
        """Flip one bit after the other, each time yielding where; the file is whole afterwards."""
        right = path.read_bytes()
        for _ in range(count):
            at, bit = self.rng.randrange(len(right)), self.rng.randrange(8)
            wrong = bytearray(right)
            wrong[at] ^= 1 << bit
            path.write_bytes(wrong)
            yield f"{path.name} byte {at} bit {bit}"
        path.write_bytes(right)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return Original(tmp_path_factory.mktemp("flips"))


def test_300_flips_in_the_ledger(original):
    folder, wrong = original.folder, []
    key, public = original.root.derive("ledger"), verify.PublicKey(folder.public_key)
    for path in folder.segments():
        for where in original.flips(path, 150):
            try:
                if original.read_ledger() != original.records:
                    wrong.append(where)
            except StoreCorrupt:
                pass
            else:
                wrong.append(f"{where} was not noticed")
            anchor = (folder.path / "anchor").read_text()
            if verify.verify_ledger(folder.path / "ledger", key, public, anchor).ok:
                wrong.append(f"{where} was not noticed by the verifier")
    assert wrong == []
    assert original.read_ledger() == original.records


def test_100_flips_in_the_last_frame_without_help_of_the_anchor(original, tmp_path):
    """As after a crash within the anchor's second: damage is not mistaken for a torn tail."""
    folder = original.folder
    path = folder.segments()[-1]
    data, anchor = path.read_bytes(), folder.path / "anchor"
    newest = anchor.read_text()
    start = data.rindex(verify.FRAME_MAGIC)
    public = verify.PublicKey(folder.public_key)
    heads = verify.walk(
        folder.path / "ledger", original.root.derive("ledger"), public, verify.State()
    )
    before_last = [head for head, _records in heads][-2]
    anchor.write_text(Signer(original.root.derive("ledger-signing")).note(before_last))
    assert original.read_ledger() == original.records
    for _ in range(100):
        at = original.rng.randrange(start, len(data))
        wrong = bytearray(data)
        wrong[at] ^= 1 << original.rng.randrange(8)
        path.write_bytes(wrong)
        with pytest.raises(StoreCorrupt, match="damaged at entry"):
            original.read_ledger()
    path.write_bytes(data)
    anchor.write_text(newest)


async def test_250_flips_in_a_blob(original):
    folder, wrong = original.folder, []
    store = await Store.open(folder.path, folder.root(), SETTINGS)
    where_blob = folder.path / "blobs" / original.tenant.id / original.blob.id[:2]
    try:
        for path, count in (("part-000", 150), ("manifest", 100)):
            for where in original.flips(where_blob / original.blob.id / path, count):
                try:
                    if await read_blob(store, original.tenant.id, original.blob.id) != DATA:
                        wrong.append(where)
                except StoreCorrupt as error:
                    is_named = original.blob.id in error.detail
                    wrong += [] if is_named else [f"{where} names no blob"]
                else:
                    wrong.append(f"{where} was not noticed")
    finally:
        await store.close()
    assert wrong == []


def test_100_flips_in_a_tenants_keys(original):
    folder = original.folder
    plain = Keyring(folder.path, original.root).object_key(original.tenant.id, original.blob.id)
    named = set()
    for where in original.flips(folder.path / f"keys/{original.tenant.id}.json", 100):
        try:
            keyring = Keyring(folder.path, original.root)
        except StoreCorrupt as error:
            named.add(original.tenant.id in error.detail)
            continue
        found = keyring.object_key(original.tenant.id, original.blob.id)
        assert found == plain, where
    assert named == {True}


def test_100_flips_in_the_slots(original):
    folder = original.folder
    for where in original.flips(folder.path / "keys/slots.json", 100):
        try:
            root = folder.root()
        except (StoreCorrupt, UnsealFailed):
            continue
        assert root.derive("x") == original.secret, where
        assert seal.slots(folder.path)[0].name == "key-file", where


def test_100_flips_in_the_registry_snapshot_and_the_anchor(original):
    folder = original.folder
    keyring = Keyring(folder.path, original.root)
    path = folder.path / "registry.snap"
    for where in original.flips(path, 70):
        found = state.load(path, original.root, keyring)
        assert found is None or registry_view(found[0].freeze()) == original.view, where
    public = verify.PublicKey(folder.public_key)
    size = public.open_note((folder.path / "anchor").read_text())
    for where in original.flips(folder.path / "anchor", 30):
        with contextlib.suppress(verify.Bad, UnicodeDecodeError):
            assert public.open_note((folder.path / "anchor").read_text("utf-8")) == size, where


async def test_50_flips_in_the_database_and_tree_hashes(original):
    folder = original.folder
    targets = [(folder.path / "db/appliance.duckdb", 25), (folder.path / "db/tiles/0", 25)]
    for path, count in targets:
        for number, where in enumerate(original.flips(path, count)):
            if path.name == "appliance.duckdb" and number % 2:
                head = bytearray(path.read_bytes())  # the half that is metadata
                head[original.rng.randrange(20_000)] ^= 1
                path.write_bytes(head)
            async with folder.open() as store:
                for _attempt in range(50):
                    try:
                        await store.queries.wait(store.ledger.head.size, 10)
                        assert await store.queries.audit() == original.entries, where
                        break
                    except StoreCorrupt:
                        await asyncio.sleep(0.1)
                else:
                    raise AssertionError(f"{where}: not repaired")
                if path.name == "0":
                    public = verify.PublicKey(store.public_key)
                    assert verify.verify_proof(await store.prove(3), public)[0] == 3
