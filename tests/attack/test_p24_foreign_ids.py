"""P24: tenant B uses every id of tenant A on every route; it must read like a random id."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from inside import Inside, inside, without_request_id
from routes import GUARDED, name_of, request_of


@pytest.fixture
async def it(tmp_path: Path) -> AsyncIterator[Inside]:
    async with inside(tmp_path) as found:
        for tenant in ("acme", "beta"):
            await found.tenant(tenant)
        await found.version("acme", "fraud")
        await found.version("beta", "own")
        yield found


async def seqs_of(it: Inside, tenant: str) -> list[int]:
    await it.store.queries.wait(it.store.ledger.head.size, 5.0)
    tenant_id = it.store.registry.snapshot.tenant(tenant).id
    return [entry.seq for entry in await it.store.queries.audit(tenant_id=tenant_id)]


async def ask(it: Inside, secret: str, operation: Any, values: dict[str, str]) -> Any:
    async with it.client(secret) as client:
        return await client.request(**request_of(operation, values))


async def job_of(it: Inside) -> str:
    """A job of the other tenant that really is there."""
    async with it.client(await it.key("acme")) as client:
        made = await client.post(
            "/api/v1/models/acme/fraud/invoke", content=b"1", headers={"Prefer": "respond-async"}
        )
        return str(made.json()["id"])


async def batch_of(it: Inside) -> str:
    """A batch of the other tenant that really is there."""
    async with it.client(await it.key("acme")) as client:
        csv = {"Content-Type": "text/csv"}
        made = await client.post("/api/v1/models/acme/fraud/batch", content=b"a\n1\n", headers=csv)
        return str(made.json()["id"])


async def webhook_of(it: Inside) -> str:
    """A webhook of the other tenant that really is there."""
    async with it.client(await it.key("acme")) as client:
        made = await client.post("/api/v1/tenants/acme/webhooks", json={})
        return str(made.json()["webhook"]["id"])


async def schedule_of(it: Inside) -> str:
    """A schedule of the other tenant that really is there."""
    async with it.client(await it.key("acme")) as client:
        path = "/api/v1/models/acme/fraud/schedules"
        made = await client.post(path, params={"cron": "0 2 * * *"}, content=b"1")
        return str(made.json()["id"])


async def draft_of(it: Inside) -> str:
    """A logged model of the other tenant that really is there."""
    async with it.client(await it.key("acme")) as client:
        made = await client.post("/t/acme/api/2.0/mlflow/logged-models", json={"name": "x"})
        return str(made.json()["model"]["info"]["model_id"])


async def comparison_of(it: Inside) -> str:
    """A comparison of the other tenant that really is there."""
    async with it.client(await it.key("acme")) as client:
        made = await client.post(
            "/api/v1/comparisons/acme?models=fraud",
            content=b"[[1]]",
            headers={"Content-Type": "application/json"},
        )
        return str(made.json()["id"])


RANDOM = {
    "tenant": "xq7w", "model": "zz81", "version": "1", "alias": "live", "key_id": "A1b2C3d4E",
    "seq": "123456789", "rule_id": "eg_none", "secret": "db-password", "sandbox_id": "box_none",
    "job": "job_none", "batch": "batch_none", "webhook": "wh_none", "schedule": "sch_none",
    "call": "call_none", "delivery": "msg_none",
    "draft": "m-none", "tag": "none", "path": "versions/zz81/1/model.py",
    "comparison": "cmp_none",
}  # fmt: skip


async def test_a_foreign_tenant_reads_like_one_that_does_not_exist(it: Inside) -> None:
    foreign_key = (await it.key("acme"))[4:13]
    seq = (await seqs_of(it, "acme"))[0]
    theirs = {
        "tenant": "acme", "model": "fraud", "version": "1", "alias": "live",
        "key_id": foreign_key, "seq": str(seq), "rule_id": "eg_none",
        "secret": "own", "sandbox_id": "box_none", "job": await job_of(it),
        "batch": await batch_of(it),
        "webhook": await webhook_of(it), "delivery": "msg_none",
        "schedule": await schedule_of(it),
        "draft": await draft_of(it), "tag": "none", "path": "versions/fraud/1/model.py",
        "comparison": await comparison_of(it),
    }  # fmt: skip
    checked = 0
    for role in ("owner", "caller"):
        secret = await it.key("beta", role)
        for operation in GUARDED:
            if operation.place != "tenant":
                continue
            found = await ask(it, secret, operation, theirs)
            random = await ask(it, secret, operation, RANDOM)
            assert found.status_code == 404, (name_of(operation), found.text)
            assert without_request_id(found) == without_request_id(random), name_of(operation)
            checked += 1
    assert checked >= 38


async def test_a_foreign_id_under_the_own_tenant_reads_like_a_random_one(it: Inside) -> None:
    secret = await it.key("beta")
    foreign_key = (await it.key("acme"))[4:13]
    theirs = {"model": "fraud", "key_id": foreign_key}
    for operation in GUARDED:
        inner = [name for name in ("model", "key_id") if name in operation.params]
        if operation.place != "tenant" or not inner:
            continue
        if operation.permission in ("model:register", "secret:set"):
            continue  # registering under a name nobody of the own tenant has is allowed
        values = {**RANDOM, "tenant": "beta"}
        found = await ask(it, secret, operation, values | {n: theirs[n] for n in inner})
        random = await ask(it, secret, operation, values)
        assert found.status_code == 404, (name_of(operation), found.text)
        assert without_request_id(found) == without_request_id(random), name_of(operation)
    snapshot = it.store.registry.snapshot
    assert not snapshot.key(foreign_key).revoked_ns


async def test_a_foreign_audit_entry_reads_like_one_that_does_not_exist(it: Inside) -> None:
    secret = await it.key("beta")
    async with it.client(secret) as client:
        missing = without_request_id(await client.get("/api/v1/audit/123456789"))
        for path in ("", "/proof"):
            for seq in [*await seqs_of(it, "acme"), 1]:
                answer = await client.get(f"/api/v1/audit/{seq}{path}")
                assert without_request_id(answer) == missing
        by_name = await client.get("/api/v1/audit?tenant=acme")
        assert without_request_id(by_name) == without_request_id(
            await client.get("/api/v1/audit?tenant=xq7w")
        )
        page = await client.get("/api/v1/audit?limit=1000")
        beta = it.store.registry.snapshot.tenant("beta")
        assert {entry["tenant"] for entry in page.json()["entries"]} == {beta.name}


async def test_appliance_keys_are_not_reached_through_a_tenant(it: Inside) -> None:
    auditor = (await it.key("", "auditor"))[4:13]
    async with it.client(await it.key("beta")) as client:
        assert (await client.delete(f"/api/v1/tenants/beta/keys/{auditor}")).status_code == 404
        assert (await client.delete(f"/api/v1/keys/{auditor}")).status_code == 403
    async with it.client(admin=True) as admin:
        tenant_key = (await it.key("beta"))[4:13]
        assert (await admin.delete(f"/api/v1/keys/{tenant_key}")).status_code == 404
        assert (await admin.delete(f"/api/v1/tenants/acme/keys/{tenant_key}")).status_code == 404
