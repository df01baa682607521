"""The same console against the real application in process: nothing canned.

Owns: that the members the screens read are what the appliance answers, and that verbs take effect.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from inside import PASSPHRASE, Inside, inside
from textual.pilot import Pilot
from tiny_runtime import tiny_runtime

from appliance.sandbox.gpu_place import Gpu, Places
from tui import rows as shapes
from tui.app import ConsoleApp
from tui.client import Check, Client, Query

ROWS = {
    "dashboard": shapes.BusyRow,
    "tenants": shapes.TenantRow,
    "keys": shapes.KeyRow,
    "models": shapes.ModelRow,
    "versions": shapes.VersionRow,
    "sandboxes": shapes.SandboxRow,
    "gpus": shapes.GpuRow,
    "egress": shapes.EgressRow,
    "routes": shapes.RouteRow,
    "drift": shapes.DriftRow,
    "runtimes": shapes.RuntimeRow,
    "audit": shapes.AuditRow,
    "health": Check,
}
Open = Callable[[Inside], AbstractAsyncContextManager[Pilot[int]]]


@pytest.fixture
async def it(tmp_path: Path) -> AsyncIterator[Inside]:
    async with inside(tmp_path, has_passphrase=True) as found:
        tiny_runtime(found.node.data_dir)
        await found.tenant("acme")
        await found.version("acme", "fraud")
        await found.version("acme", "fraud")
        executor = found.node._executor
        assert executor is not None
        gpu = Gpu(id="GPU-a", vendor="nvidia.com", name="NVIDIA A100", index="0")
        executor.places = Places((gpu,))  # type: ignore[misc]
        async with found.client(admin=True) as admin:
            rule = {"action": "allow", "host": "db.example.test", "ports": ["5432"]}
            path = "/api/v1/tenants/acme/egress"
            assert (await admin.post(path, json=rule | {"reason": "x"})).status_code == 201
            route = {
                "arms": [{"version": 1, "percent": 90}, {"version": 2, "percent": 10}],
                "canary": {"version": 2, "error_rate_max": 0.01},
            }
            data = "\n".join(["x", *map(str, range(300))]).encode()
            path = "/api/v1/models/acme/fraud/versions/2/drift/baseline"
            kind = {"content-type": "text/csv"}
            assert (await admin.put(path, content=data, headers=kind)).status_code == 200
            path = "/api/v1/models/acme/fraud/route"
            assert (await admin.put(path, json=route)).status_code == 200
        yield found


@pytest.fixture
def open_on(tools: Any) -> Open:
    @asynccontextmanager
    async def opened(it: Inside) -> AsyncIterator[Pilot[int]]:
        transport = it.client(admin=True)._transport
        app = ConsoleApp(Client(socket="/x", transport=transport), interval_s=0.1, is_mono=False)
        app.animation_level = "none"
        async with app.run_test(size=(80, 24), notifications=True) as pilot:
            await tools.until(pilot, lambda: bool(app.feed.state))
            yield pilot

    return opened


async def go(pilot: Pilot[int], tools: Any, words: str, shown: str) -> None:
    await tools.type_text(pilot, f":{words}")
    await pilot.press("enter")
    await tools.until(pilot, lambda: shown in tools.screen_text(pilot))


async def call(it: Inside, tenant: str, model: str) -> None:
    async with it.client(await it.key(tenant)) as client:
        done = await client.post(f"/api/v1/models/{tenant}/{model}/invoke", json=[1])
        assert done.status_code == 200, done.text


@pytest.mark.parametrize("view", sorted(ROWS))
async def test_every_row_has_the_members_the_screens_read(it: Inside, view: str) -> None:
    await call(it, "acme", "fraud")
    client = Client(socket="/x", transport=it.client(admin=True)._transport)
    for _ in range(100):  # the statistics follow the ledger a moment later
        snapshot = await client.snapshot(Query(view=view))
        assert snapshot is not None
        if snapshot.rows:
            break
        await asyncio.sleep(0.05)
    assert snapshot.state == "ready"
    assert snapshot.rows
    for row in snapshot.rows:
        assert set(ROWS[view].__annotations__) - set(row) == set()
    assert snapshot.etag
    assert await client.snapshot(Query(view="tenants")) is not None
    await client.close()


async def test_an_unchanged_view_is_not_sent_again(it: Inside) -> None:
    client = Client(socket="/x", transport=it.client(admin=True)._transport)
    first = await client.snapshot(Query(view="models"))
    assert first is not None
    assert await client.snapshot(Query(view="models"), first.etag) is None
    await client.close()


async def test_every_screen_draws_what_the_appliance_answers(
    it: Inside, open_on: Open, tools: Any
) -> None:
    await call(it, "acme", "fraud")
    async with open_on(it) as pilot:
        for words, shown in (
            ("d", "acme"),
            ("t", "acme"),
            ("k", "OK active"),
            ("m", "fraud"),
            ("v", "acme/fraud"),
            ("s", "acme/fraud v2"),
            ("g", "NVIDIA A100"),
            ("e", "db.example.test:5432"),
            ("f", "acme/fraud v2"),
            ("rt", "ruby3.1"),
            ("a", "call.outcome ok"),
            ("h", "STATE"),
            ("model acme fraud", "live"),
            ("version acme fraud 1", "model:Model"),
            ("entry 1", "appliance.initialised"),
        ):
            expected = "acme/fraud v" if words == "s" else shown
            await go(pilot, tools, words, expected)
            assert tools.clipped(pilot) == []


async def test_tenants_and_keys_are_made_and_taken_away(
    it: Inside, open_on: Open, tools: Any
) -> None:
    async with open_on(it) as pilot:
        await go(pilot, tools, "t", "acme")
        await pilot.press("n")
        await tools.type_text(pilot, "retail")
        await pilot.press("enter")
        await tools.until(pilot, lambda: pilot.app.page.table.shown == 2)
        await go(pilot, tools, "k", "No API keys")
        await pilot.press("n")
        await tools.type_text(pilot, "ci")
        pilot.app.screen.query_one("#f-tenant").value = "retail"
        pilot.app.screen.query_one("#f-scopes").focus()
        await pilot.press("enter")
        await tools.until(pilot, lambda: "mak_" in tools.screen_text(pilot))
        secret = next(w for w in tools.screen_text(pilot).split() if w.startswith("mak_"))
        await tools.type_text(pilot, secret[-4:])
        await pilot.press("enter")
        await tools.until(pilot, lambda: not tools.is_dialog(pilot))
        await tools.until(pilot, lambda: "OK active" in tools.screen_text(pilot))
        async with it.client(secret) as client:
            assert (await client.get("/api/v1/whoami")).status_code == 200
            await pilot.press("x")
            pilot.app.screen.query_one("#name").focus()
            await tools.type_text(pilot, "ci")
            pilot.app.screen.query_one("#verb").focus()
            await pilot.press("enter")
            await tools.until(pilot, lambda: "- revoked" in tools.screen_text(pilot))
            assert (await client.get("/api/v1/whoami")).status_code == 401


async def test_aliases_move_once_and_versions_retire(it: Inside, open_on: Open, tools: Any) -> None:
    async with open_on(it) as pilot:
        await go(pilot, tools, "model acme fraud", "v2")
        await pilot.press("a")
        await tools.until(
            pilot, lambda: "Calls to 'live' move from v1 to v2" in tools.screen_text(pilot)
        )
        async with it.client(admin=True) as client:
            path = "/api/v1/models/acme/fraud/aliases/live"
            moved = await client.put(path, json={"version": 2, "reason": "first"})
            assert moved.status_code == 200, moved.text
            # A version that a route names is not retired.
            ended = await client.delete("/api/v1/models/acme/fraud/route")
            assert ended.status_code in (200, 204), ended.text
        pilot.app.screen.query_one("#f-reason").focus()
        await pilot.press("enter")
        await tools.until(pilot, lambda: "412" in tools.screen_text(pilot))
        await pilot.press("escape")
        await pilot.press("j", "a")
        await tools.until(pilot, lambda: "move from v2 to v1" in tools.screen_text(pilot))
        pilot.app.screen.query_one("#f-reason").focus()
        await pilot.press("enter")
        await tools.until(pilot, lambda: "live is v1" in tools.screen_text(pilot))
        await pilot.press("k", "x")
        pilot.app.screen.query_one("#name").focus()
        await tools.type_text(pilot, "v2")
        pilot.app.screen.query_one("#verb").focus()
        await pilot.press("enter")
        await tools.until(pilot, lambda: "- retired" in tools.screen_text(pilot))


async def test_the_ledger_is_verified_and_a_proof_saved(
    it: Inside, open_on: Open, tools: Any, tmp_path: Path
) -> None:
    async with open_on(it) as pilot:
        await go(pilot, tools, "a", "tenant.created")
        await pilot.press("v")
        await tools.until(pilot, lambda: "ledger is whole" in tools.screen_text(pilot), 30)
        await pilot.press("escape")
        await go(pilot, tools, "entry 1", "leaf digest")
        await pilot.press("o")
        await tools.until(pilot, lambda: tools.is_dialog(pilot))
        target = tmp_path / "one.proof"
        pilot.app.screen.query_one("#f-path").value = str(target)
        await pilot.press("enter")
        await tools.until(pilot, lambda: not tools.is_dialog(pilot))
        assert target.stat().st_size > 100


async def test_sealing_is_followed_and_unsealing_goes_back(
    it: Inside, open_on: Open, tools: Any
) -> None:
    async with open_on(it) as pilot:
        await go(pilot, tools, "m", "fraud")
        async with it.client(admin=True) as client:
            assert (await client.post("/admin/v1/seal", json={})).status_code == 200
        await tools.until(pilot, lambda: "Unseal with" in tools.screen_text(pilot), 30)
        await tools.type_text(pilot, "not the passphrase")
        await pilot.press("enter")
        await tools.until(pilot, lambda: "stays sealed" in tools.screen_text(pilot), 30)
        pilot.app.screen.query_one("#secret-in").value = PASSPHRASE
        await pilot.press("enter")
        await tools.until(pilot, lambda: "appliance > models" in tools.screen_text(pilot), 30)


async def test_an_empty_folder_is_initialised(tmp_path: Path, open_on: Open, tools: Any) -> None:
    async with inside(tmp_path, initialise=False) as it, open_on(it) as pilot:
        await tools.until(pilot, lambda: "1 of 3 preflight" in tools.screen_text(pilot))
        await tools.settle(pilot)
        assert "None" not in tools.screen_text(pilot)
        await pilot.press("enter")
        for _ in range(2):
            await tools.type_text(pilot, PASSPHRASE)
            await pilot.press("enter")
        await tools.until(pilot, lambda: "3 of 3" in tools.screen_text(pilot), 60)
        await tools.type_text(pilot, "acme")
        await pilot.press("enter")
        await tools.until(pilot, lambda: "mak_" in tools.screen_text(pilot), 30)


async def test_egress_rules_are_added_and_removed(it: Inside, open_on: Open, tools: Any) -> None:
    tenant = it.store.registry.snapshot.tenant("acme")
    assert tenant is not None
    async with open_on(it) as pilot:
        await go(pilot, tools, "e", "db.example.test:5432")
        await pilot.press("n")
        await tools.settle(pilot)
        for field, typed in (("host", "*.corp.test"), ("ports", "443 80"), ("reason", "apis")):
            pilot.app.screen.query_one(f"#f-{field}").value = typed  # type: ignore[attr-defined]
        pilot.app.screen.query_one("#f-reason").focus()
        await pilot.press("enter")
        await tools.until(pilot, lambda: pilot.app.page.table.shown == 2)
        rules = it.store.registry.snapshot.egress_rules(tenant.id)
        assert [(r.host, r.ports) for r in rules][1] == ("*.corp.test", ((80, 80), (443, 443)))
        await pilot.press("x")
        await tools.settle(pilot)
        pilot.app.screen.query_one("#reason").value = "ended"  # type: ignore[attr-defined]
        pilot.app.screen.query_one("#verb").focus()
        await pilot.press("enter")
        await tools.until(pilot, lambda: pilot.app.page.table.shown == 1)
    assert len(it.store.registry.snapshot.egress_rules(tenant.id)) == 1
