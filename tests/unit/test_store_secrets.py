"""Secrets of models in the store: sealed one by one, and unreadable once they are gone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from storing import ACTOR, Folder

from appliance.errors import InputInvalid, NotFound, QuotaExceeded, StoreCorrupt
from appliance.store import Store
from appliance.store.secrets import SECRETS_MAX, value

CANARY = b"canary-secret-value-83af21"


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path).make()


async def with_secret(store: Store, content: bytes = CANARY):
    tenant = store.registry.snapshot.tenant("acme")
    if tenant is None:
        tenant = await store.registry.create_tenant(name="acme", actor=ACTOR)
    return await store.registry.secrets.put(
        tenant_id=tenant.id, model_name="m", name="db-password", value=content, actor=ACTOR
    )


def readable(folder) -> list[str]:
    return [str(p) for p in folder.path.rglob("*") if p.is_file() and CANARY in p.read_bytes()]


async def test_a_secret_makes_its_model_survives_a_restart_and_is_on_no_disk(folder):
    async with folder.open() as store:
        secret = await with_secret(store)
        assert store.registry.secrets.value(secret) == CANARY
        assert [s.name for s in store.registry.snapshot.secrets(secret.model_id)] == ["db-password"]
        assert readable(folder) == []
    for name in ("registry.snap", "db"):
        async with folder.open() as store:
            found = store.registry.snapshot.secret(secret.model_id, "db-password")
            assert found == secret
            assert store.registry.secrets.value(found) == CANARY
        assert readable(folder) == [], name
        (folder.path / "registry.snap").unlink()


async def test_a_replaced_secret_cannot_be_read_again_not_even_from_the_ledger(folder):
    async with folder.open() as store:
        first = await with_secret(store)
        second = await with_secret(store, b"other")
        with pytest.raises(NotFound):
            store.registry.secrets.value(first)
        assert store.registry.secrets.value(second) == b"other"
        events = [e.event for e in store.ledger.read(0, 20) if e.kind == "secret.set"]
        assert [e["secret"]["box"] for e in events] == [first.box, second.box]


@pytest.mark.parametrize("how", ["secret", "model", "tenant"])
async def test_a_removed_secret_is_gone_with_its_key(folder, how):
    async with folder.open() as store:
        secret = await with_secret(store)
        registry = store.registry
        if how == "secret":
            await registry.secrets.remove(model_id=secret.model_id, name=secret.name, actor=ACTOR)
        elif how == "model":
            await registry.remove_model(model_id=secret.model_id, actor=ACTOR)
        else:
            await registry.remove_tenant(tenant_id=secret.tenant_id, actor=ACTOR)
        with pytest.raises(NotFound):
            registry.secrets.value(secret)
        assert registry.snapshot.secrets(secret.model_id) == ()
    async with folder.open() as store:
        assert store.registry.snapshot.secrets(secret.model_id) == ()
        with pytest.raises(NotFound):
            store.registry.secrets.value(secret)


async def test_a_key_that_a_crash_left_is_destroyed_at_the_next_start(folder):
    async with folder.open() as store:
        secret = await with_secret(store)
        store.keyring.save_object_key(secret.tenant_id, "sec_orphan", b"k" * 32)
    async with folder.open() as store:
        ids = store.keyring.object_ids(secret.tenant_id)
        assert "sec_orphan" not in ids
        assert secret.id in ids


async def test_a_box_in_another_place_does_not_open(folder):
    async with folder.open() as store:
        secret = await with_secret(store)
        for other in (replace(secret, name="x"), replace(secret, model_id="mod_x")):
            with pytest.raises(StoreCorrupt):
                value(store.keyring, other)


async def test_a_model_has_a_bounded_number_of_secrets_of_legal_names(folder):
    async with folder.open() as store:
        secret = await with_secret(store)

        async def set_one(name: str) -> None:
            await store.registry.secrets.put(
                tenant_id=secret.tenant_id, model_name="m", name=name, value=b"x", actor=ACTOR
            )

        for name in ("../x", "", "A", "a" * 64):
            with pytest.raises(InputInvalid):
                await set_one(name)
        for number in range(SECRETS_MAX - 1):
            await set_one(f"s{number}")
        with pytest.raises(QuotaExceeded):
            await set_one("one-more")
        await set_one("s0")  # replacing is no addition
