"""Questions: answered from the projection, shown from the ledger, nothing readable on disk."""

from __future__ import annotations

import time

import duckdb
import pytest
from storing import ACTOR, Folder, artifact, fill, intent, manifest, outcome, write_blob

from appliance import clock
from appliance.errors import InputInvalid, StoreCorrupt
from appliance.events import RequestRefused
from appliance.records import Lineage
from appliance.store.projection import Projection

CANARIES = ("zebra-tenant", "yak-model", "xerus-alias", "walrus-words", "vole-feature", "urial-key")


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path).make()


@pytest.fixture
async def store(folder):
    async with folder.open() as store:
        yield store


async def call(store, tenant_id, model_id, actor=ACTOR, **changes):
    (begun,) = await store.ledger.append(
        intent(model_id=model_id), tenant_id=tenant_id, actor=actor, object=model_id
    )
    (ended,) = await store.ledger.append(
        outcome(begun, **changes), tenant_id=tenant_id, actor=actor, object=model_id
    )
    return begun, ended


async def caught_up(store):
    assert await store.queries.wait(store.ledger.head.size, 10)


async def test_one_sees_ones_own_entry_after_waiting_for_it(store):
    for _ in range(3):
        (entry,) = await store.ledger.append(intent(), actor=ACTOR)
        started = time.monotonic()
        assert await store.queries.wait(entry.seq, 10)
        assert time.monotonic() - started < 8
        assert (await store.queries.audit(limit=1)) == [entry]
    assert not await store.queries.wait(10**6, 0.05)


async def test_the_audit_log_is_searched_by_everything_it_promises(store):
    a1, a2 = await call(store, "ten_a", "mod_1", actor="key:one")
    b1, b2 = await call(store, "ten_b", "mod_2", actor="key:two")
    refused = RequestRefused(
        request_id="r", method="GET", target="/x", status=404, code="not-found"
    )
    (r,) = await store.ledger.append(refused, actor="key:one")
    await caught_up(store)
    audit = store.queries.audit
    assert await audit() == [r, b2, b1, a2, a1]
    assert await audit(tenant_id="ten_a") == [a2, a1]
    assert await audit(tenant_id="") == [r]
    assert await audit(kind="call.intent") == [b1, a1]
    assert await audit(kind="call.*") == [b2, b1, a2, a1]
    assert await audit(actor="key:one") == [r, a2, a1]
    assert await audit(actor="key:one' OR true --") == []
    assert await audit(model_id="mod_2") == [b2, b1]
    assert await audit(after_seq=2) == [b1, b2, r]
    assert await audit(after_seq=2, limit=1) == [b1]
    assert await audit(before_seq=3) == [a2, a1]
    assert await audit(after_seq=1, before_seq=4) == [a2, b1]
    assert await audit(limit=2) == [r, b2]
    assert await store.queries.entry(3) == b1
    assert await store.queries.entry(99) is await store.queries.entry(0) is None
    for limit in (0, -1, 10_001):
        with pytest.raises(InputInvalid):
            await audit(limit=limit)


async def test_an_intent_without_an_outcome_is_found_after_a_restart_only(folder):
    async with folder.open() as store:
        await call(store, "ten_a", "mod_1")
        (lost,) = await store.ledger.append(intent(5), tenant_id="ten_a", actor=ACTOR)
        await call(store, "ten_a", "mod_1")
        assert await store.queries.open_intents(store.ledger.boot) == []
    async with folder.open() as store:
        await store.ledger.append(intent(6), tenant_id="ten_a", actor=ACTOR)
        assert await store.queries.open_intents(store.ledger.boot) == [lost]
        await store.ledger.append(
            outcome(lost, code="unknown", status=500), tenant_id="ten_a", actor=ACTOR
        )
        assert await store.queries.open_intents(store.ledger.boot) == []
        await caught_up(store)
        usage = await store.queries.usage(since_ns=0, until_ns=clock.now_ns())
        assert sum(row.request_bytes for row in usage) == 300  # also across batches and boots
        assert sum(row.errors for row in usage) == 1


async def test_call_statistics_count_the_last_minutes(store):
    for total_us in (1000, 2000, 3000):
        await call(store, "ten_a", "mod_1", total_us=total_us)
    await call(store, "ten_b", "mod_2", total_us=9000, code="model-raised", status=502)
    await caught_up(store)
    stats = await store.queries.call_stats(minutes=15)
    assert (stats.calls, stats.errors, len(stats.series)) == (4, 1, 15)
    assert [(m.model_id, m.calls, m.errors) for m in stats.per_model] == [
        ("mod_1", 3, 0),
        ("mod_2", 1, 1),
    ]
    assert stats.per_model[0].p50_ms == pytest.approx(2.0)
    assert sum(m.calls for m in stats.series) == 4
    assert stats.series == tuple(sorted(stats.series, key=lambda m: m.minute_ns))
    mine = await store.queries.call_stats(tenant_id="ten_b", minutes=1)
    assert (mine.calls, mine.errors, len(mine.series)) in ((1, 1, 1), (0, 0, 1))
    nobody = await store.queries.call_stats(tenant_id="ten_none")
    assert (nobody.calls, nobody.p50_ms, nobody.per_model) == (0, 0, ())


async def test_usage_adds_up_per_hour_and_version(store):
    for number in (1, 1, 2):
        await call(store, "ten_a", "mod_1", number=number, compute_us=7, reply_bytes=11)
    await caught_up(store)
    rows = await store.queries.usage(since_ns=0, until_ns=1 << 62, tenant_id="ten_a")
    assert [(r.number, r.calls, r.compute_us, r.reply_bytes) for r in rows] in (
        [(1, 2, 14, 22), (2, 1, 7, 11)],
        [(1, 1, 7, 11), (1, 1, 7, 11), (2, 1, 7, 11)],  # an hour began in between
    )
    assert rows[0].hour_ns % 3_600_000_000_000 == 0
    assert await store.queries.usage(since_ns=0, until_ns=1) == []
    assert await store.queries.usage(since_ns=0, until_ns=1 << 62, tenant_id="ten_b") == []


async def test_entries_come_from_the_ledger_not_from_the_database(store):
    entries = await fill(store, 3)
    await caught_up(store)
    con = store._projection._con
    con.execute("UPDATE entry SET kind = 'forged', tenant_id = 'ten_forged' WHERE seq = 2")
    assert await store.queries.audit(kind="forged") == [entries[1]]
    con.execute("UPDATE entry SET position = 1 WHERE seq = 3")
    with pytest.raises(StoreCorrupt):
        await store.queries.audit()


@pytest.mark.parametrize(
    "statement",
    [
        "COPY entry TO '/tmp/appliance-leak.csv'",
        "SELECT * FROM read_csv('/etc/passwd')",
        "ATTACH '/tmp/appliance-other.duckdb'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access=true",
        "SELECT * FROM CANARIES",
    ],
)
async def test_the_database_is_locked_down(store, statement):
    with pytest.raises(duckdb.Error):
        store._projection._con.cursor().execute(statement)


async def test_a_bad_question_does_not_hurt_the_database(store):
    await fill(store, 2)
    await caught_up(store)
    with pytest.raises(StoreCorrupt):
        store._projection.query("SELECT nonsense")
    assert len(await store.queries.audit()) == 2
    assert store._projection.rebuilds == 0


async def test_a_removed_or_damaged_database_is_rebuilt_by_itself(folder):
    async with folder.open() as store:
        tenant = await store.registry.create_tenant(name="acme", actor=ACTOR)
        await call(store, tenant.id, "mod_1")
        await caught_up(store)
        before = await store.queries.audit()
    database = folder.path / "db/appliance.duckdb"
    for spoil in (
        lambda: database.unlink(),
        lambda: database.write_bytes(b"\0" * 300_000),
        lambda: database.write_bytes(database.read_bytes()[:20_000]),
        lambda: database.write_bytes(b""),
        lambda: other_schema(database),
    ):
        spoil()
        async with folder.open() as store:
            await caught_up(store)
            assert await store.queries.audit() == before
            rows = store._projection._rows.snapshot(store._projection.query)
            assert rows.tenants() == (tenant,)
    assert len(list((folder.path / "db").glob("quarantine-*"))) <= 2


def other_schema(path):
    con = duckdb.connect(str(path))
    con.execute("UPDATE meta SET schema_version = 99")
    con.close()


async def test_a_projection_that_is_ahead_of_the_ledger_is_not_believed(folder, tmp_path):
    async with folder.open() as store:
        await fill(store, 2)
    young = folder.copy(tmp_path / "young")
    async with folder.open() as store:
        await fill(store, 5)
    source = folder.path / "db/appliance.duckdb"
    (young.path / "db/appliance.duckdb").write_bytes(source.read_bytes())
    async with young.open() as store:
        await caught_up(store)
        assert store._projection.rebuilds == 1
        assert [e.seq for e in await store.queries.audit()] == [2, 1]


async def test_the_projection_survives_losing_its_connection(store):
    await fill(store, 3)
    await caught_up(store)
    store._projection._con.close()
    await fill(store, 3)
    await caught_up(store)
    assert len(await store.queries.audit()) == 6


def test_tables_hold_no_text_columns_for_free_text():
    import inspect

    from appliance.store import projection

    assert Projection.query.__doc__
    text = inspect.getsource(projection)
    for banned in ("name VARCHAR", "description", "manifest VARCHAR", "FOREIGN KEY", "REFERENCES"):
        assert banned not in text


async def test_no_name_text_feature_or_key_is_readable_in_the_data_folder(folder, tmp_path):
    async with folder.open() as store:
        tenant = await store.registry.create_tenant(name=CANARIES[0], actor=f"uid:{CANARIES[5]}")
        blob = await write_blob(store, tenant.id, CANARIES[4].encode() * 100)
        version = await store.registry.register_version(
            tenant_id=tenant.id,
            model_name=CANARIES[1],
            manifest=manifest(
                description=CANARIES[3],
                requirements=(f"{CANARIES[3]}==1",),
                lineage=Lineage(code=CANARIES[3]),
                tags={CANARIES[3]: CANARIES[3]},
                input_schema={"properties": {CANARIES[4]: {}}},
            ),
            artifact=artifact(blob, path=f"{CANARIES[3]}.bin"),
            runtime_digest="sha256:aa",
            actor=ACTOR,
        )
        await store.registry.set_alias(
            model_id=version.model_id,
            name=CANARIES[2],
            number=1,
            reason=CANARIES[3],
            actor=CANARIES[5],
        )
        await call(store, tenant.id, version.model_id, actor=CANARIES[5])
        await caught_up(store)
        store._projection._con.execute("CHECKPOINT")
        secrets = [store.ledger_key.encode(), store.secret("x"), folder.key_file.read_bytes()[:44]]
        found = scan(folder.path, secrets)
    assert found + scan(folder.path, secrets) == []


def scan(folder, more):
    words = [w.encode() for w in CANARIES] + [w.encode("utf-16-le") for w in CANARIES] + more
    words += [w.encode().hex().encode() for w in CANARIES]
    return [
        (path.name, word)
        for path in folder.rglob("*")
        if path.is_file() and path.name != "LOCK"
        for word in words
        if word in path.read_bytes() or word in str(path).encode()
    ]
