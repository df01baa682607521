"""Reservations through HTTP: who may, what fits, what is answered, recorded and restored."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from inside import EchoExecutor, Inside, inside

from appliance import api, config
from appliance.node import Node
from appliance.wire import Front

PATH = "/api/v1/models/acme/m/versions/1/reservation"
SANDBOX = {"instances_max": 6, "instances_per_version_max": 4, "reserved_max": 4}


@pytest.fixture
async def it(tmp_path: Path) -> AsyncIterator[Inside]:
    async with inside(tmp_path, sandbox=SANDBOX) as found:
        await found.tenant("acme")
        await found.version("acme", "m")
        yield found


async def until_kept(client: Any, path: str = PATH) -> dict[str, Any]:
    async with asyncio.timeout(30):
        while (found := (await client.get(path)).json())["state"] != "kept":
            await asyncio.sleep(0.02)
    return dict(found)


async def sandboxes(it: Inside) -> list[dict[str, Any]]:
    async with it.client(admin=True) as admin:
        return list((await admin.get("/admin/v1/sandboxes")).json()["items"])


async def test_an_owner_keeps_sandboxes_warm_and_lets_them_go(it: Inside) -> None:
    async with it.client(await it.key("acme")) as client:
        assert (await client.get(PATH)).status_code == 404
        made = await client.put(PATH, json={"warm": 2})
        assert made.status_code == 200
        assert (made.json()["warm"], made.json()["set_by"]) == (2, made.json()["set_by"])
        kept = await until_kept(client)
        assert (kept["ready"], kept["problem"], kept["retry_s"]) == (2, "", 0)
        assert len(await sandboxes(it)) == 2
        called = await client.post("/api/v1/models/acme/m/invoke", content=b"x")
        assert called.status_code == 200
        entry = (await client.get(f"/api/v1/audit/{called.headers['audit-seq']}")).json()
        assert entry["event"]["cold"] is False
        assert (await client.put(PATH, json={"warm": 3})).json()["warm"] == 3
        assert (await until_kept(client))["ready"] == 3
        assert (await client.delete(PATH)).status_code == 204
        assert (await client.get(PATH)).status_code == 404
        assert (await client.delete(PATH)).status_code == 404
        entries = (await client.get("/api/v1/audit")).json()["entries"]
    kinds = [e["kind"] for e in entries if e["kind"].startswith("reservation.")]
    assert kinds == ["reservation.removed", "reservation.set", "reservation.set"]


@pytest.mark.parametrize(
    ("warm", "words"), [(5, "at most 4"), (3, "2 are left")], ids=["version", "appliance"]
)
async def test_what_does_not_fit_is_refused_with_what_is_left(
    it: Inside, warm: int, words: str
) -> None:
    await it.version("acme", "other")
    async with it.client(await it.key("acme")) as client:
        other = PATH.replace("/m/", "/other/")
        assert (await client.put(other, json={"warm": 2})).status_code == 200
        refused = await client.put(PATH, json={"warm": warm})
        assert (refused.status_code, refused.json()["code"]) == (409, "reservation-refused")
        assert words in refused.json()["detail"]
        assert "sandbox." in refused.json()["hint"]
        assert (await client.get(PATH)).status_code == 404
        for body in ({"warm": 0}, {"warm": "two"}, {"warm": 1, "cold": 2}, {}):
            assert (await client.put(PATH, json=body)).status_code == 422


async def test_memory_that_is_not_there_is_not_reserved(tmp_path: Path) -> None:
    small = {**SANDBOX, "reserved_memory_bytes_max": 1200 * 1024 * 1024}
    async with inside(tmp_path, sandbox=small) as it:
        await it.tenant("acme")
        await it.version("acme", "m")  # asks for 512 MiB
        async with it.client(await it.key("acme")) as client:
            refused = (await client.put(PATH, json={"warm": 3})).json()
            assert "1200 MiB" in refused["detail"]
            assert refused["warm_left"] == 2
            assert (await client.put(PATH, json={"warm": 2})).status_code == 200


async def test_retiring_removing_and_losing_the_tenant_end_it(it: Inside) -> None:
    await it.version("acme", "m")
    await it.version("acme", "other")
    await it.tenant("beta")
    await it.version("beta", "m")
    second = PATH.replace("versions/1", "versions/2")
    other = PATH.replace("/m/", "/other/")
    beta = PATH.replace("/acme/", "/beta/")
    async with it.client(await it.key("acme")) as client, it.client(admin=True) as admin:
        for path in (PATH, second, other, beta):
            assert (await admin.put(path, json={"warm": 1})).status_code == 200
            await until_kept(admin, path)
        assert len(await sandboxes(it)) == 4
        assert (await client.delete("/api/v1/models/acme/m/versions/2")).status_code == 200
        assert (await client.get(second)).status_code == 404
        assert (await client.put(second, json={"warm": 1})).status_code == 410
        assert len(await sandboxes(it)) == 3
        assert (await client.delete("/api/v1/models/acme/other")).status_code == 204
        assert (await admin.delete("/api/v1/tenants/beta")).status_code == 204
        await asyncio.sleep(0.2)
        (left,) = await sandboxes(it)
        assert (left["tenant"], left["model"], left["version"]) == ("acme", "m", 1)


async def test_who_may_not_reserve_is_refused_and_a_stranger_sees_nothing(it: Inside) -> None:
    await it.tenant("beta")
    for role, tenant, status in (
        ("caller", "acme", 403), ("owner", "beta", 404), ("auditor", "", 403), ("admin", "", 403),
        ("operator", "", 200),
    ):  # fmt: skip
        async with it.client(await it.key(tenant, role)) as client:
            assert (await client.put(PATH, json={"warm": 1})).status_code == status, role


async def test_the_console_shows_what_is_kept(it: Inside) -> None:
    async with it.client(admin=True) as admin:
        await admin.put(PATH, json={"warm": 2})
        await until_kept(admin)
        (row,) = (await admin.get("/admin/v1/snapshot?view=versions")).json()["rows"]
        assert (row["warm"], row["warm_ready"]) == (2, 2)
        pool = (await admin.get("/admin/v1/snapshot?view=sandboxes")).json()["pool"]
        assert (pool["warm"], pool["warm_ready"]) == (2, 2)


async def test_it_is_kept_again_after_a_restart(tmp_path: Path) -> None:
    async with inside(tmp_path, sandbox=SANDBOX) as it:
        await it.tenant("acme")
        await it.version("acme", "m")
        async with it.client(admin=True) as admin:
            await admin.put(PATH, json={"warm": 2})
        settings = it.node.settings
    node = Node(settings, executor_factory=lambda: EchoExecutor(tmp_path / "data"))
    front = Front(url="https://a")
    try:
        await node.unseal(key_file=tmp_path / "unseal.key")
        again = Inside(node=node, front=front, apps=api.build(node, front))
        async with again.client(admin=True) as admin:
            assert (await until_kept(admin))["warm"] == 2
    finally:
        await node.close()


async def test_while_sandboxes_cannot_run_it_says_so(tmp_path: Path) -> None:
    from appliance.errors import PodmanUnavailable

    class Broken(EchoExecutor):
        async def start(self) -> None:
            raise PodmanUnavailable("Podman is not installed.")

    settings = config.replace(
        config.Settings(), "paths", data_dir=str(tmp_path / "data"), run_dir=str(tmp_path / "run")
    )
    node = Node(settings, executor_factory=lambda: Broken(tmp_path / "data"))
    front = Front(url="https://a")
    try:
        await node.initialise(key_file=tmp_path / "unseal.key")
        it = Inside(node=node, front=front, apps=api.build(node, front))
        await it.tenant("acme")
        await it.version("acme", "m")
        async with it.client(admin=True) as admin:
            refused = await admin.put(PATH, json={"warm": 1})
            assert (refused.status_code, refused.json()["code"]) == (500, "podman-unavailable")
            assert (await admin.get(PATH)).status_code == 404
    finally:
        await node.close()
