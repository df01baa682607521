"""P23: every guarded route against every way to come without the right credential."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from inside import Inside, inside, without_request_id
from routes import ADMIN, GUARDED, name_of, request_of

from appliance.auth import api_key
from appliance.policy import PERMISSIONS

VALUES = {
    "tenant": "acme",
    "model": "fraud",
    "version": "1",
    "alias": "live",
    "secret": "db-password",
    "seq": "1",
    "rule_id": "eg_none",
    "slug": "not-found",
    "job": "job_none",
    "batch": "batch_none",
    "webhook": "wh_none",
    "schedule": "sch_none",
    "delivery": "msg_none",
    "call": "call_none",
    "comparison": "cmp_none",
    "sandbox_id": "box_1",
    "name": "python3.11",
    "digest": "0" * 64,
    "draft": "m-none",
    "tag": "none",
    "path": "0/models/m-none/artifacts/none",
}


@dataclass
class Stage:
    it: Inside
    owner: str
    key_id: str

    @property
    def values(self) -> dict[str, str]:
        return {**VALUES, "key_id": self.key_id}

    async def send(self, operation: Any, headers: Any, query: str = "") -> Any:
        made = request_of(operation, self.values)
        made["url"] += query
        sent = [*headers, *made.pop("headers", {}).items()]
        async with self.it.client() as client:
            return await client.request(headers=sent, **made)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with inside(tmp_path) as it:
        await it.tenant("acme")
        await it.tenant("beta")
        await it.version("acme", "fraud")
        secret = await it.key("acme")
        yield Stage(it=it, owner=secret, key_id=secret[4:13])


def bearer(secret: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {secret}")]


async def issued(it: Inside, *, days: int, revoked: bool = False) -> str:
    tenant = it.store.registry.snapshot.tenant("acme")
    key, secret = api_key.issue(
        it.store.secret("api-key-pepper"), tenant_id=tenant.id, name=f"k{days}{int(revoked)}-x",
        role="owner", created_by="uid:0", expires_in_days=days,
    )  # fmt: skip
    await it.store.registry.create_key(key=key, actor="uid:0")
    if revoked:
        await it.store.registry.revoke_key(key_id=key.id, actor="uid:0")
    return secret


def with_checksum(body: str) -> str:
    return body + api_key._checksum(body)


async def test_every_bad_key_gets_one_and_the_same_401_everywhere(stage: Stage) -> None:
    good = stage.owner
    flipped = "A" if good[20] != "A" else "B"
    presented = {
        "none": [],
        "empty": [("authorization", "")],
        "basic": [("authorization", "Basic YTpi")],
        "no secret": [("authorization", "Bearer")],
        "bad checksum": bearer(good[:-1] + ("0" if good[-1] != "0" else "1")),
        "mistyped": bearer(good[:20] + flipped + good[21:]),
        "wrong secret": bearer(with_checksum(good[:20] + flipped + good[21:-6])),
        "unknown id": bearer(with_checksum("mak_" + "0" * 9 + good[13:-6])),
        "expired": bearer(await issued(stage.it, days=-1)),
        "revoked": bearer(await issued(stage.it, days=9, revoked=True)),
        "lower-cased": bearer(good.lower()),
        "too long": bearer(good + "0"),
        "non-ascii": [("authorization", b"Bearer \xff\xfe")],
    }
    seen = set()
    for operation in GUARDED:
        for how, headers in presented.items():
            answer = await stage.send(operation, headers)
            assert answer.status_code == 401, (name_of(operation), how, answer.text)
            seen.add((id(operation.form), without_request_id(answer)))
    assert len(seen) == len({form for form, _ in seen})  # one a contract's form
    assert len(GUARDED) >= 30


async def test_a_key_in_the_address_or_two_of_them_are_refused_with_400(stage: Stage) -> None:
    good = stage.owner
    seen: dict[tuple[str, int], set[Any]] = {}
    for operation in GUARDED:
        form = id(operation.form)
        for query in (f"?api_key={good}", f"?x={good}&y=1", f"?{good}", f"?a%3D{good}"):
            answer = await stage.send(operation, bearer(good), query)
            assert answer.status_code == 400, (name_of(operation), query, answer.text)
            assert good not in answer.text
            seen.setdefault(("address", form), set()).add(without_request_id(answer))
        answer = await stage.send(operation, bearer(good) * 2)
        assert answer.status_code == 400, (name_of(operation), answer.text)
        seen.setdefault(("two", form), set()).add(without_request_id(answer))
    assert {len(answers) for answers in seen.values()} == {1}


async def test_another_tenants_key_sees_nothing(stage: Stage) -> None:
    foreign = await stage.it.key("beta")
    seen: dict[int, set[Any]] = {}
    for operation in GUARDED:
        answer = await stage.send(operation, bearer(foreign))
        if operation.place == "own":
            assert "acme" not in answer.text, name_of(operation)
            assert "fraud" not in answer.text, name_of(operation)
            continue
        expected = 404 if operation.place == "tenant" else 403
        assert answer.status_code == expected, (name_of(operation), answer.text)
        if expected == 404:
            seen.setdefault(id(operation.form), set()).add(without_request_id(answer))
    assert {len(answers) for answers in seen.values()} == {1}


async def test_a_key_narrowed_to_other_rights_is_refused(stage: Stage) -> None:
    everything = {op.permission for op in GUARDED}
    assert everything <= set(PERMISSIONS)
    for operation in GUARDED:
        if operation.permission == "self:read":
            continue
        others = [p for p in PERMISSIONS if p != operation.permission]
        scopes = [*others[:-1], f"{operation.permission}:other"]
        if operation.permission.split(":")[0] not in ("model", "alias", "version"):
            scopes = others
        key = await stage.it.key("acme", "owner", scopes=scopes)
        answer = await stage.send(operation, bearer(key))
        assert answer.status_code == 403, (name_of(operation), answer.text)
        assert "does not carry the right" in answer.text


async def test_a_key_narrowed_to_one_model_reaches_that_model_only(stage: Stage) -> None:
    await stage.it.version("acme", "other")
    key = await stage.it.key("acme", "caller", scopes=["model:invoke:fraud"])
    async with stage.it.client(key) as client:
        for model, status in (("fraud", 200), ("other", 403), ("missing", 403)):
            answer = await client.post(f"/api/v1/models/acme/{model}/invoke", content=b"x")
            assert answer.status_code == status


async def test_the_admin_contract_is_not_there_for_keys_or_strangers(stage: Stage) -> None:
    admin_key = await stage.it.key("", "admin")
    values = {**stage.values, "key_id": "0" * 9}
    for operation in ADMIN:
        made = request_of(operation, values)
        async with stage.it.client(admin_key) as client:
            assert (await client.request(**made)).status_code == 404, name_of(operation)
        async with stage.it.client(admin_key, admin=True, uid=4242) as client:
            assert (await client.request(**made)).status_code == 401, name_of(operation)
    assert len(ADMIN) >= 10


async def test_a_removed_tenants_keys_are_refused(stage: Stage) -> None:
    foreign = await stage.it.key("beta")
    async with stage.it.client(admin=True) as admin:
        assert (await admin.delete("/api/v1/tenants/beta")).status_code == 204
    async with stage.it.client(foreign) as client:
        assert (await client.get("/api/v1/whoami")).status_code == 401
