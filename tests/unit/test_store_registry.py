"""Registry commands: what they return, refuse and record."""

from __future__ import annotations

import asyncio

import pytest
from storing import ACTOR, Folder, artifact, manifest

from appliance.errors import (
    Gone,
    InputInvalid,
    NameTaken,
    NotFound,
    ReservationRefused,
    RevisionStale,
)
from appliance.records import ApiKey, EgressRule, Lineage
from appliance.store.state import registry_view


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path).make()


@pytest.fixture
async def store(folder):
    async with folder.open() as store:
        yield store


def key(key_id="abc", tenant_id=""):
    return ApiKey(
        id=key_id,
        tenant_id=tenant_id,
        name="ci",
        role="owner" if tenant_id else "operator",
        mac="00" * 32,
        created_ns=1,
        created_by=ACTOR,
        expires_ns=2,
    )


async def register(store, tenant_id, name="m", **more):
    return await store.registry.register_version(
        tenant_id=tenant_id,
        model_name=name,
        manifest=manifest(**more),
        artifact=artifact(),
        runtime_digest="sha256:aa",
        deps_key="",
        actor=ACTOR,
    )


async def test_tenants_are_found_by_name_and_id(store):
    tenant = await store.registry.create_tenant(name="acme", actor=ACTOR)
    snapshot = store.registry.snapshot
    assert snapshot.tenant("acme") == snapshot.tenant_by_id(tenant.id) == tenant
    assert snapshot.tenants() == (tenant,)
    assert snapshot.tenant("other") is None
    with pytest.raises(NameTaken):
        await store.registry.create_tenant(name="acme", actor=ACTOR)
    with pytest.raises(InputInvalid):
        await store.registry.create_tenant(name="Not A Name", actor=ACTOR)


async def test_a_snapshot_never_changes(store):
    before = store.registry.snapshot
    await store.registry.create_tenant(name="acme", actor=ACTOR)
    assert before.tenants() == ()
    assert before.seq < store.registry.snapshot.seq


async def test_the_first_version_makes_the_model_and_its_live_alias_in_one_unit(store):
    tenant = await store.registry.create_tenant(name="acme", actor=ACTOR)
    size = store.ledger.head.size
    version = await register(store, tenant.id, description="d", lineage=Lineage(code="git:1"))
    assert [e.kind for e in store.ledger.read(size, 9)] == [
        "model.created",
        "version.registered",
        "alias.set",
    ]
    snapshot = store.registry.snapshot
    model = snapshot.model(tenant.id, "m")
    assert (model.description, version.number) == ("d", 1)
    assert snapshot.alias(model.id, "live").number == 1
    second = await register(store, tenant.id)
    snapshot = store.registry.snapshot
    assert snapshot.versions(model.id) == (version, second)
    assert snapshot.newest(model.id) == snapshot.version(model.id, 2) == second
    assert snapshot.alias(model.id, "live").number == 1  # moving it is a decision
    assert snapshot.version(model.id, 3) is snapshot.version(model.id, 0) is None
    assert snapshot.blob_ids() == {"0" * 64}


async def test_a_retired_version_stays_visible_and_takes_no_alias(store):
    tenant = await store.registry.create_tenant(name="acme", actor=ACTOR)
    version = await register(store, tenant.id)
    retired = await store.registry.retire_version(model_id=version.model_id, number=1, actor=ACTOR)
    assert retired.retired_ns > 0
    size = store.ledger.head.size
    again = await store.registry.retire_version(model_id=version.model_id, number=1, actor=ACTOR)
    assert (again, store.ledger.head.size) == (retired, size)
    with pytest.raises(Gone):
        await store.registry.set_alias(model_id=version.model_id, name="x", number=1, actor=ACTOR)
    with pytest.raises(NotFound):
        await store.registry.retire_version(model_id=version.model_id, number=2, actor=ACTOR)


@pytest.mark.parametrize("name", ["3", "007", "Live", "-x"])
async def test_an_alias_that_reads_like_a_version_or_is_no_name_is_refused(store, name):
    tenant = await store.registry.create_tenant(name="acme", actor=ACTOR)
    version = await register(store, tenant.id)
    with pytest.raises(InputInvalid, match="reads like a version" if name.isdigit() else "1 to 63"):
        await store.registry.set_alias(model_id=version.model_id, name=name, number=1, actor=ACTOR)
    assert [one.name for one in store.registry.snapshot.aliases(version.model_id)] == ["live"]


async def test_aliases_move_only_from_the_revision_that_was_seen(store):
    tenant = await store.registry.create_tenant(name="acme", actor=ACTOR)
    model_id = (await register(store, tenant.id)).model_id
    await register(store, tenant.id)
    set_alias = store.registry.set_alias
    first = await set_alias(model_id=model_id, name="beta", number=1, revision=0, actor=ACTOR)
    assert first.revision == 1
    second = await set_alias(
        model_id=model_id, name="beta", number=2, revision=1, reason="better", actor=ACTOR
    )
    assert (second.number, second.revision, second.reason) == (2, 2, "better")
    with pytest.raises(RevisionStale):
        await set_alias(model_id=model_id, name="beta", number=1, revision=1, actor=ACTOR)
    with pytest.raises(NotFound):
        await set_alias(model_id=model_id, name="beta", number=9, actor=ACTOR)
    moved = await asyncio.gather(
        *(
            set_alias(model_id=model_id, name="beta", number=1, revision=2, actor=ACTOR)
            for _ in range(8)
        ),
        return_exceptions=True,
    )
    assert sum(not isinstance(m, Exception) for m in moved) == 1
    assert [a.name for a in store.registry.snapshot.aliases(model_id)] == ["beta", "live"]
    await store.registry.remove_alias(model_id=model_id, name="beta", actor=ACTOR)
    with pytest.raises(NotFound):
        await store.registry.remove_alias(model_id=model_id, name="beta", actor=ACTOR)
    assert store.registry.snapshot.alias(model_id, "beta") is None


async def test_keys_are_recorded_and_revoked_once(store):
    tenant = await store.registry.create_tenant(name="acme", actor=ACTOR)
    await store.registry.create_key(key=key("one", tenant.id), actor=ACTOR)
    await store.registry.create_key(key=key("two"), actor=ACTOR)
    with pytest.raises(NameTaken):
        await store.registry.create_key(key=key("one"), actor=ACTOR)
    with pytest.raises(NotFound):
        await store.registry.create_key(key=key("three", "ten_none"), actor=ACTOR)
    (revoked,) = await store.registry.revoke_key(key_id="one", actor=ACTOR)
    assert revoked.revoked_ns > 0
    assert await store.registry.revoke_key(key_id="one", actor=ACTOR) == (revoked,)
    with pytest.raises(NotFound):
        await store.registry.revoke_key(key_id="none", actor=ACTOR)
    snapshot = store.registry.snapshot
    assert [k.id for k in snapshot.keys(tenant.id)] == ["one"]
    assert [k.id for k in snapshot.keys("")] == ["two"]
    assert [k.id for k in snapshot.keys(None)] == ["one", "two"]
    assert snapshot.key("one") == revoked


async def test_a_removed_model_frees_its_name_and_a_removed_tenant_takes_all_along(store):
    tenant = await store.registry.create_tenant(name="acme", actor=ACTOR)
    old = await register(store, tenant.id)
    await store.registry.remove_model(model_id=old.model_id, actor=ACTOR)
    snapshot = store.registry.snapshot
    assert snapshot.model(tenant.id, "m") is None
    assert snapshot.model_by_id(old.model_id).removed_ns > 0
    assert snapshot.versions(old.model_id) == ()
    with pytest.raises(NotFound):
        await store.registry.remove_model(model_id=old.model_id, actor=ACTOR)
    new = await register(store, tenant.id)
    assert (new.number, new.model_id != old.model_id) == (1, True)
    await store.registry.create_key(key=key("one", tenant.id), actor=ACTOR)
    await store.registry.remove_tenant(tenant_id=tenant.id, actor=ACTOR)
    snapshot = store.registry.snapshot
    assert (snapshot.tenants(), snapshot.models(), snapshot.keys()) == ((), (), ())
    with pytest.raises(NotFound):
        await register(store, tenant.id)
    again = await store.registry.create_tenant(name="acme", actor=ACTOR)
    assert again.id != tenant.id


async def test_a_cancelled_command_still_happens_completely(store):
    task = asyncio.ensure_future(store.registry.create_tenant(name="acme", actor=ACTOR))
    await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await store.registry.create_tenant(name="other", actor=ACTOR)  # commands run one by one
    names = [t.name for t in store.registry.snapshot.tenants()]
    assert names == ["acme", "other"]
    assert len([e for e in store.ledger.read(0, 9) if e.kind == "tenant.created"]) == 2


async def test_the_registry_is_the_same_after_a_restart_with_or_without_its_snapshot(folder):
    async with folder.open() as store:
        tenant = await store.registry.create_tenant(name="acme", actor=ACTOR)
        await register(store, tenant.id, tags={"k": "v"}, input_schema={"type": "object"})
        version = await register(store, tenant.id)
        await store.registry.set_alias(
            model_id=version.model_id, name="live", number=2, actor=ACTOR
        )
        await store.registry.create_key(key=key("one", tenant.id), actor=ACTOR)
        await store.registry.retire_version(model_id=version.model_id, number=1, actor=ACTOR)
        expected = registry_view(store.registry.snapshot)
    async with folder.open() as store:
        assert registry_view(store.registry.snapshot) == expected
    snap = folder.path / "registry.snap"
    data = snap.read_bytes()
    snap.unlink()
    async with folder.open() as store:
        assert registry_view(store.registry.snapshot) == expected
    snap.write_bytes(data[:50] + b"\0" + data[51:])
    async with folder.open() as store:
        assert registry_view(store.registry.snapshot) == expected


async def test_a_change_of_the_registry_is_visible_at_once_and_durable(folder):
    async with folder.open() as store:
        for number in range(20):
            await store.registry.create_tenant(name=f"t-{number}", actor=ACTOR)
            assert store.registry.snapshot.tenant(f"t-{number}")
        copy = folder.copy(folder.path.parent / "crash")  # what a crash would leave
    (copy.path / "LOCK").unlink()
    async with copy.open() as store:
        assert len(store.registry.snapshot.tenants()) == 20


async def test_a_reservation_is_of_a_version_in_service_and_ends_with_it(store):
    tenant = await store.registry.create_tenant(name="acme", actor=ACTOR)
    first = await register(store, tenant.id)
    second = await register(store, tenant.id)
    made = []
    for version in (first, second):
        made.append(
            await store.registry.set_reservation(
                model_id=version.model_id, number=version.number, warm=2, actor=ACTOR
            )
        )
    assert store.registry.snapshot.reservations() == tuple(made)
    await store.registry.retire_version(model_id=first.model_id, number=1, actor=ACTOR)
    assert store.registry.snapshot.reservations() == (made[1],)
    with pytest.raises(Gone):
        await store.registry.set_reservation(model_id=first.model_id, number=1, warm=2, actor=ACTOR)
    with pytest.raises(NotFound):
        await store.registry.remove_reservation(model_id=first.model_id, number=1, actor=ACTOR)
    await store.registry.remove_reservation(model_id=first.model_id, number=2, actor=ACTOR)
    assert store.registry.snapshot.reservations() == ()


async def test_a_reservation_that_does_not_fit_is_not_recorded(store):
    tenant = await store.registry.create_tenant(name="acme", actor=ACTOR)
    version = await register(store, tenant.id)

    def refuse(_snapshot):
        raise ReservationRefused("too many")

    size = store.ledger.head.size
    with pytest.raises(ReservationRefused):
        await store.registry.set_reservation(
            model_id=version.model_id, number=1, warm=9, fits=refuse, actor=ACTOR
        )
    assert store.registry.snapshot.reservations() == ()
    assert store.ledger.head.size == size


async def test_reservations_survive_a_restart_and_end_with_their_tenant(folder):
    async with folder.open() as store:
        tenant = await store.registry.create_tenant(name="acme", actor=ACTOR)
        version = await register(store, tenant.id)
        made = await store.registry.set_reservation(
            model_id=version.model_id, number=1, warm=3, actor=ACTOR
        )
    async with folder.open() as store:
        assert store.registry.snapshot.reservation(version.model_id, 1) == made
        await store.registry.remove_tenant(tenant_id=tenant.id, actor=ACTOR)
        assert store.registry.snapshot.reservations() == ()
    (folder.path / "registry.snap").unlink()
    async with folder.open() as store:
        assert store.registry.snapshot.reservations() == ()


def egress_rule(tenant_id, name, host="db.example.test"):
    return EgressRule(
        id=name,
        tenant_id=tenant_id,
        action="allow",
        host=host,
        ports=((5432, 5432),),
        reason="features",
        created_ns=1,
        created_by=ACTOR,
    )


async def test_egress_rules_keep_their_order_over_restarts_and_end_with_their_tenant(folder):
    async with folder.open() as store:
        tenant = await store.registry.create_tenant(name="acme", actor=ACTOR)
        for name, before in (("a", ""), ("b", ""), ("c", "b")):
            rule = egress_rule(tenant.id, name)
            await store.registry.add_egress_rule(rule=rule, before=before, actor=ACTOR)
        rule = egress_rule(tenant.id, "d")
        with pytest.raises(NotFound):
            await store.registry.add_egress_rule(rule=rule, before="x", actor=ACTOR)
        await store.registry.remove_egress_rule(
            tenant_id=tenant.id, rule_id="a", reason="moved", actor=ACTOR
        )
        with pytest.raises(NotFound):
            await store.registry.remove_egress_rule(
                tenant_id=tenant.id, rule_id="a", reason="again", actor=ACTOR
            )
        view = registry_view(store.registry.snapshot)
    async with folder.open() as store:
        assert registry_view(store.registry.snapshot) == view
        assert [r.id for r in store.registry.snapshot.egress_rules(tenant.id)] == ["c", "b"]
    (folder.path / "registry.snap").unlink()
    async with folder.open() as store:
        assert registry_view(store.registry.snapshot) == view
        await store.registry.remove_tenant(tenant_id=tenant.id, actor=ACTOR)
        assert store.registry.snapshot.egress_rules(tenant.id) == ()


async def test_no_host_of_an_egress_rule_is_readable_in_the_data_folder(folder):
    async with folder.open() as store:
        tenant = await store.registry.create_tenant(name="acme", actor=ACTOR)
        rule = egress_rule(tenant.id, "a", "canary-host.example.test")
        await store.registry.add_egress_rule(rule=rule, actor=ACTOR)
        await store.queries.wait(store.ledger.head.size, 10)
    for path in folder.path.rglob("*"):
        if path.is_file():
            assert b"canary-host" not in path.read_bytes(), path
