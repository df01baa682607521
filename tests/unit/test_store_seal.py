"""Unseal slots, tenant keys and sealed boxes."""

from __future__ import annotations

import stat

import pytest
from storing import Folder, edit_json

from appliance.errors import (
    AlreadyInitialised,
    InputInvalid,
    NameTaken,
    NotFound,
    StoreCorrupt,
    Uninitialised,
    UnsealFailed,
)
from appliance.store import seal
from appliance.store.keyring import Keyring

CHEAP = seal.Argon2(memory_kib=8 * 1024, iterations=1, lanes=1)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path).make()


@pytest.fixture
def keyring(folder):
    return Keyring(folder.path, folder.root())


def test_a_new_folder_is_private_and_its_key_file_too(folder):
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.key_file.stat().st_mode) == 0o600
    assert stat.S_IMODE((folder.path / "keys/slots.json").stat().st_mode) == 0o600
    assert len(folder.key_file.read_text().strip()) == 44


def test_initialising_twice_changes_nothing(folder):
    before = (folder.path / "keys/slots.json").read_bytes()
    with pytest.raises(AlreadyInitialised):
        seal.initialise(folder.path, passphrase="other")
    assert (folder.path / "keys/slots.json").read_bytes() == before


def test_initialising_needs_a_secret(tmp_path):
    with pytest.raises(InputInvalid):
        seal.initialise(tmp_path / "x")
    assert not seal.is_initialised(tmp_path / "x")
    with pytest.raises(Uninitialised):
        seal.unseal(tmp_path / "x", passphrase="p")


def test_every_slot_opens_the_same_root_key(tmp_path):
    data, key_file = tmp_path / "d", tmp_path / "k"
    made = seal.initialise(data, passphrase="correct horse", key_file=key_file, argon2=CHEAP)
    by_file = seal.unseal(data, key_file=key_file)
    by_phrase = seal.unseal(data, passphrase="correct horse")
    assert made.derive("x") == by_file.derive("x") == by_phrase.derive("x")
    assert made.derive("x") != made.derive("y")
    assert (by_file.slot, by_phrase.slot) == ("key-file", "passphrase")
    assert [s.kind for s in seal.slots(data)] == ["passphrase", "key-file"]


def test_the_default_cost_of_a_passphrase_is_256_mib(tmp_path):
    seal.initialise(tmp_path / "d", passphrase="p\u00e9")
    assert seal.unseal(tmp_path / "d", passphrase="pe\u0301").slot == "passphrase"  # NFC
    with pytest.raises(UnsealFailed):
        seal.unseal(tmp_path / "d", passphrase="pe")
    assert '"memory_kib": 262144' in (tmp_path / "d/keys/slots.json").read_text()


def test_another_key_file_does_not_unseal(folder, tmp_path):
    seal.initialise(tmp_path / "other", key_file=tmp_path / "other.key")
    with pytest.raises(UnsealFailed):
        seal.unseal(folder.path, key_file=tmp_path / "other.key")
    with pytest.raises(UnsealFailed):
        seal.unseal(folder.path, key_file=tmp_path / "absent.key")
    with pytest.raises(UnsealFailed):
        seal.unseal(folder.path, passphrase="x")


def test_a_key_file_open_to_others_is_refused(folder):
    folder.key_file.chmod(0o640)
    with pytest.raises(UnsealFailed, match="open to others"):
        folder.root()


def test_slots_can_be_added_and_removed_but_not_the_last(folder):
    root = folder.root()
    seal.add_slot(folder.path, root, name="it", passphrase="p", argon2=CHEAP)
    with pytest.raises(NameTaken):
        seal.add_slot(folder.path, root, name="it", passphrase="q", argon2=CHEAP)
    assert seal.unseal(folder.path, passphrase="p").derive("x") == root.derive("x")
    seal.remove_slot(folder.path, root, "key-file")
    with pytest.raises(UnsealFailed):
        folder.root()
    with pytest.raises(InputInvalid):
        seal.remove_slot(folder.path, root, "it")
    with pytest.raises(NotFound):
        seal.remove_slot(folder.path, root, "nobody")


def test_an_edited_slot_file_is_damage_not_a_wrong_passphrase(folder):
    path = folder.path / "keys/slots.json"
    edit_json(path, lambda d: d["slots"][0].update(name="renamed"))
    with pytest.raises(StoreCorrupt, match=r"slots\.json"):
        folder.root()
    path.write_text("not json")
    with pytest.raises(StoreCorrupt, match=r"slots\.json"):
        seal.slots(folder.path)


def test_a_slot_asking_for_endless_memory_is_refused_before_it_is_spent(folder):
    import hashlib

    path = folder.path / "keys/slots.json"
    root = folder.root()
    seal.add_slot(folder.path, root, name="it", passphrase="p", argon2=CHEAP)

    def change(document):
        document["slots"][1]["kdf"]["memory_kib"] = 1 << 40
        document["sum"] = hashlib.sha256(seal._canonical(document, "sum", "mac")).hexdigest()

    edit_json(path, change)
    with pytest.raises(StoreCorrupt, match="costs"):
        seal.unseal(folder.path, passphrase="p")


def test_a_closed_root_key_derives_nothing(folder):
    root = folder.root()
    root.close()
    with pytest.raises(ValueError, match="closed"):
        root.derive("x")
    assert "0x" not in repr(root)


def test_a_box_opens_only_with_its_key_label_and_place():
    box = seal.box_seal(b"k" * 32, "label", b"place", b"text")
    assert seal.box_open(b"k" * 32, "label", b"place", box) == b"text"
    for key, label, aad in ((b"j" * 32, "label", b"place"), (b"k" * 32, "other", b"place")):
        with pytest.raises(ValueError, match="open"):
            seal.box_open(key, label, aad, box)
    with pytest.raises(ValueError, match="open"):
        seal.box_open(b"k" * 32, "label", b"elsewhere", box)
    with pytest.raises(ValueError, match="box"):
        seal.box_open(b"k" * 32, "label", b"place", box[:20])


def test_tenants_cannot_open_each_others_boxes(keyring):
    keyring.create("ten_a")
    keyring.create("ten_b")
    box = keyring.seal("ten_a", "audit", b"x", b"text")
    assert keyring.open("ten_a", "audit", b"x", box) == b"text"
    with pytest.raises(StoreCorrupt):
        keyring.open("ten_b", "audit", b"x", box)
    with pytest.raises(StoreCorrupt):
        keyring.open("ten_a", "audit", b"y", box)
    assert keyring.digest("ten_a", "d", b"x") != keyring.digest("ten_b", "d", b"x")
    assert keyring.digest("ten_a", "d", b"x") == keyring.digest("ten_a", "d", b"x")


def test_keys_survive_a_restart_and_a_rotation(folder, keyring):
    keyring.create("ten_a")
    before = keyring.seal("ten_a", "audit", b"x", b"old")
    keyring.save_object_key("ten_a", "b" * 64, b"o" * 32)
    assert keyring.rotate("ten_a") == 2
    after = keyring.seal("ten_a", "audit", b"x", b"new")
    again = Keyring(folder.path, folder.root())
    assert again.open("ten_a", "audit", b"x", before) == b"old"
    assert again.open("ten_a", "audit", b"x", after) == b"new"
    assert again.object_key("ten_a", "b" * 64) == b"o" * 32
    assert again.digest("ten_a", "d", b"x") == keyring.digest("ten_a", "d", b"x")


def test_a_shredded_tenant_is_gone_from_memory_and_disk(folder, keyring):
    keyring.create("ten_a")
    box = keyring.seal("ten_a", "audit", b"x", b"text")
    keyring.shred("ten_a")
    with pytest.raises(NotFound):
        keyring.open("ten_a", "audit", b"x", box)
    assert not (folder.path / "keys/ten_a.json").exists()
    assert "ten_a" not in Keyring(folder.path, folder.root())
    with pytest.raises(NotFound):
        keyring.seal("ten_a", "audit", b"x", b"text")


def test_key_files_cannot_be_swapped_or_edited(folder, keyring):
    keyring.create("ten_a")
    keyring.create("ten_b")
    a, b = folder.path / "keys/ten_a.json", folder.path / "keys/ten_b.json"
    text = a.read_bytes()
    a.write_bytes(b.read_bytes())
    with pytest.raises(StoreCorrupt, match=r"ten_a\.json"):
        Keyring(folder.path, folder.root())
    a.write_bytes(text)
    edit_json(a, lambda d: d["objects"].update({"c" * 64: {"version": 1, "wrap": ""}}))
    with pytest.raises(StoreCorrupt, match=r"ten_a\.json"):
        Keyring(folder.path, folder.root())


def test_key_files_nested_without_end_are_damage_and_no_crash(folder, keyring):
    keyring.create("ten_a")
    (folder.path / "keys/ten_a.json").write_bytes(b"[" * 100_000)
    with pytest.raises(StoreCorrupt, match=r"ten_a\.json"):
        Keyring(folder.path, folder.root())
    (folder.path / "keys/slots.json").write_bytes(b"[" * 100_000)
    with pytest.raises(StoreCorrupt, match="slots"):
        seal.slots(folder.path)
