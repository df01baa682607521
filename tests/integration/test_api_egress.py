"""Egress rules over HTTP: who may change them, what is recorded, what is explained."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from inside import Inside, inside

PATH = "/api/v1/tenants/acme/egress"
RULE = {"action": "allow", "host": "DB.example.test", "ports": ["5432"], "reason": "features"}


@pytest.fixture
async def it(tmp_path: Path) -> AsyncIterator[Inside]:
    async with inside(tmp_path) as found:
        await found.tenant("acme")
        yield found


async def add(it: Inside, **changes: Any) -> dict[str, Any]:
    async with it.client(admin=True) as admin:
        answer = await admin.post(PATH, json=RULE | changes)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def hosts(it: Inside) -> list[str]:
    async with it.client(admin=True) as admin:
        return [row["host"] for row in (await admin.get(PATH)).json()["items"]]


async def test_rules_are_added_in_order_and_removed_with_a_reason(it: Inside) -> None:
    first = await add(it)
    assert (first["host"], first["ports"], first["protocol"]) == (
        "db.example.test",
        ["5432"],
        "any",
    )
    await add(it, host="b.test")
    await add(it, action="deny", host="a.test", before=first["id"])
    assert await hosts(it) == ["a.test", "db.example.test", "b.test"]
    async with it.client(admin=True) as admin:
        assert (await admin.delete(f"{PATH}/{first['id']}")).status_code == 422
        gone = await admin.delete(f"{PATH}/{first['id']}", params={"reason": "ended"})
        again = await admin.delete(f"{PATH}/{first['id']}", params={"reason": "ended"})
    assert (gone.status_code, again.status_code) == (204, 404)
    assert await hosts(it) == ["a.test", "b.test"]
    await it.store.queries.wait(it.store.ledger.head.size, 5)
    (removed,) = await it.store.queries.audit(kind="egress.rule-removed")
    added = await it.store.queries.audit(kind="egress.rule-added")
    assert removed.event is not None
    assert (removed.event["reason"], removed.actor) == ("ended", added[0].actor)
    assert len(added) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"host": "a b"},
        {"host": "2130706433"},
        {"ports": ["0"]},
        {"ports": ["9-8"]},
        {"model": "Not A Name"},
        {"action": "perhaps"},
        {"reason": ""},
        {"protocol": "udp"},
        {"host": "*", "protocol": "tcp"},
        {"surplus": 1},
    ],
    ids=str,
)
async def test_a_rule_that_makes_no_sense_is_refused_with_the_field(
    it: Inside, changes: dict[str, Any]
) -> None:
    async with it.client(admin=True) as admin:
        answer = await admin.post(PATH, json=RULE | changes)
    assert answer.status_code in (400, 422)
    assert answer.json()["errors"]
    assert await hosts(it) == []


async def test_owners_read_their_rules_and_change_nothing(it: Inside) -> None:
    rule = await add(it)
    admin, owner = await it.key("", "admin"), await it.key("acme", "owner")
    auditor, caller = await it.key("", "auditor"), await it.key("acme", "caller")
    for secret, status in ((admin, 201), (owner, 403), (auditor, 403), (caller, 403)):
        async with it.client(secret) as client:
            assert (await client.post(PATH, json=RULE)).status_code == status
            removed = await client.delete(f"{PATH}/eg_none", params={"reason": "x"})
            assert removed.status_code == (404 if status == 201 else 403)
    for secret, status in ((admin, 200), (owner, 200), (auditor, 200), (caller, 403)):
        async with it.client(secret) as client:
            assert (await client.get(PATH)).status_code == status
            seen = await client.get(f"{PATH}/explain", params={"host": "x.test"})
            assert seen.status_code == status
    async with it.client(owner) as client:
        assert (await client.get(PATH)).json()["items"][0]["id"] == rule["id"]


async def test_it_is_explained_what_would_happen_and_why(it: Inside) -> None:
    rule = await add(it, host="127.0.0.9")
    name = await add(it, host="localhost", model="fraud")

    async def ask(**query: Any) -> dict[str, Any]:
        async with it.client(admin=True) as admin:
            answer = await admin.get(f"{PATH}/explain", params=query)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    allowed = await ask(host="127.0.0.9", port=5432)
    assert allowed["allowed"]
    assert allowed["rule"]["id"] == rule["id"]
    assert allowed["addresses"] == ["127.0.0.9"]
    refused = await ask(host="127.0.0.9", port=5433)
    assert (refused["allowed"], refused["reason"], refused["rule"]) == (False, "default", None)
    led = await ask(host="localhost", port=5432, model="fraud")
    assert (led["reason"], led["rule"]["id"]) == ("loopback", name["id"])
    assert "no egress rule" in (await ask(host="localhost", port=5432))["text"]
    assert (await ask(host="0x7f.1"))["reason"] == "host-malformed"
    async with it.client(admin=True) as admin:
        wrong = await admin.get(f"{PATH}/explain", params={"host": "x", "protocol": "udp"})
        assert wrong.status_code == 422
    assert await it.store.queries.audit(kind="egress.denied") == []


async def test_a_tenant_has_no_more_rules_than_it_may(it: Inside) -> None:
    from appliance.egress.rules import RULES_MAX

    async with it.client(admin=True) as admin:
        for number in range(RULES_MAX):
            made = await admin.post(PATH, json=RULE | {"host": f"h{number}.test"})
            assert made.status_code == 201
        assert (await admin.post(PATH, json=RULE)).status_code == 429


async def explained(it: Inside, **query: Any) -> dict[str, Any]:
    wanted = {"host": "192.0.2.7", "port": 5432, "protocol": "connect"} | query
    async with it.client(admin=True) as admin:
        answer = await admin.get(f"{PATH}/explain", params=wanted)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_a_version_with_a_kernel_of_its_own_is_said_to_have_no_way_out(it: Inside) -> None:
    assert (await add(it, host="192.0.2.7"))["note"] == ""
    await it.version("acme", "fraud")
    assert (await explained(it, model="fraud"))["text"].endswith(".")
    await it.version("acme", "fraud", isolation="gvisor")
    partly = await explained(it, model="fraud")
    assert partly["allowed"]
    assert "not in force for fraud version 2" in partly["text"]
    async with it.client(admin=True) as admin:
        (row,) = (await admin.get(PATH)).json()["items"]
        assert "fraud version 2" in row["note"]
        view = await admin.get("/admin/v1/snapshot", params={"view": "egress"})
        assert view.json()["rows"][0]["note"] == row["note"]
        assert (await admin.delete("/api/v1/models/acme/fraud/versions/1")).status_code < 300
    wholly = await explained(it, model="fraud")
    assert (wholly["allowed"], wholly["reason"]) == (False, "isolation")
    assert "have no way out" in wholly["text"]
    assert (await explained(it, model="other"))["allowed"]


async def test_the_rules_of_a_tenant_of_that_isolation_are_said_to_be_in_force_for_nobody(
    it: Inside,
) -> None:
    await add(it, host="192.0.2.7")
    tenant = it.store.registry.snapshot.tenant("acme")
    assert tenant is not None
    await it.store.registry.set_isolation(tenant_id=tenant.id, isolation="gvisor", actor="uid:0")
    answer = await explained(it)
    assert (answer["allowed"], answer["reason"]) == (False, "isolation")
    async with it.client(admin=True) as admin:
        (row,) = (await admin.get(PATH)).json()["items"]
    assert "have no way out" in row["note"]
    assert (await add(it, action="deny", host="x.test"))["note"] == ""
