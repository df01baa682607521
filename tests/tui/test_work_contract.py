"""Screens of work against the real application in process: nothing canned.

Owns: that the members these screens read are what the appliance answers; that verbs take effect.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from inside import Inside, inside
from textual.pilot import Pilot

from appliance.store.announce import TYPES
from tui import rows as shapes
from tui.app import ConsoleApp
from tui.client import Client, Query
from tui.nav import Place
from tui.screens.webhooks import EVENTS

ROWS = {
    "jobs": shapes.JobRow,
    "batches": shapes.BatchRow,
    "schedules": shapes.ScheduleRow,
    "webhooks": shapes.WebhookRow,
    "deliveries": shapes.DeliveryRow,
    "comparisons": shapes.ComparisonRow,
    "samples": shapes.SampleRow,
}
CSV = {"Content-Type": "text/csv"}
TABLE = b"i\n1\n2\n3\n"
HOOKS = {"destinations": ("10.0.0.1",), "allow": ("http://10.0.0.1:9",), "timeout_s": 1}


@pytest.fixture
async def it(tmp_path: Path) -> AsyncIterator[Inside]:
    async with inside(tmp_path, webhooks=HOOKS) as found:
        await found.tenant("acme")
        for _ in range(2):
            await found.version("acme", "echo")
        yield found


async def one_of_each(it: Inside) -> dict[str, str]:
    """A job, a batch, a schedule, a webhook, a comparison and a kept call; their ids."""
    model, ids = "/api/v1/models/acme/echo", {}
    async with it.client(admin=True) as admin:

        async def made(method: str, path: str, **more: Any) -> Any:
            answer = await admin.request(method, path, **more)
            assert answer.status_code < 300, answer.text
            return answer.json()

        hook = {"url": "http://10.0.0.1:9/in", "events": ["job.completed"]}
        ids["webhook"] = (await made("POST", "/api/v1/tenants/acme/webhooks", json=hook))[
            "webhook"
        ]["id"]
        await made("PUT", f"{model}/samples", json={"percent": 100})
        await made("POST", f"{model}/invoke", json={"rows": [[1]]})
        job = await made("POST", f"{model}/invoke", json=[1], headers={"Prefer": "respond-async"})
        ids["job"] = job["id"]
        await made("GET", job["urls"]["get"], params={"wait_s": 30})
        asked = {"form": "records", "into": "csv", "carry": "false"}
        batch = await made("POST", f"{model}/batch", content=TABLE, params=asked, headers=CSV)
        ids["batch"] = batch["id"]
        asked = {"cron": "0 2 * * *", "timezone": "Europe/Berlin"}
        ids["schedule"] = (await made("POST", f"{model}/schedules", json=[1], params=asked))["id"]
        asked = {"models": "echo:1,echo:2", "form": "records"}
        comparison = await made(
            "POST", "/api/v1/comparisons/acme", content=TABLE, params=asked, headers=CSV
        )
        ids["comparison"] = comparison["id"]
        for document in (batch, comparison):
            await made("GET", document["urls"]["get"], params={"wait_s": 60})
    return ids


@asynccontextmanager
async def opened(it: Inside, tools: Any) -> AsyncIterator[Pilot[int]]:
    transport = it.client(admin=True)._transport
    app = ConsoleApp(Client(socket="/x", transport=transport), interval_s=0.1, is_mono=False)
    app.animation_level = "none"
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await tools.until(pilot, lambda: bool(app.feed.state))
        yield pilot


async def go(pilot: Pilot[int], tools: Any, place: Place, shown: str) -> None:
    pilot.app.go(place)  # type: ignore[attr-defined]
    await tools.until(pilot, lambda: shown in tools.screen_text(pilot))
    await tools.settle(pilot)
    assert tools.clipped(pilot) == []


async def test_what_the_screens_read_and_draw_is_what_the_appliance_answers(
    it: Inside, tools: Any
) -> None:
    ids = await one_of_each(it)
    client = Client(socket="/x", transport=it.client(admin=True)._transport)
    for view, shape in ROWS.items():
        params = (("tenant", "acme"), ("webhook", ids["webhook"])) if view == "deliveries" else ()
        for _ in range(600):  # kept calls and deliveries come a moment later
            snapshot = await client.snapshot(Query(view=view, params=params))
            assert snapshot is not None
            if snapshot.rows:
                break
            await asyncio.sleep(0.05)
        assert snapshot.rows, view
        for row in snapshot.rows:
            assert set(shape.__annotations__) - set(row) == set(), view
            assert not {"error", "output", "urls"} & set(row), view
    await client.close()
    async with opened(it, tools) as pilot:
        for noun, shown in (
            ("jobs", "OK succeeded"),
            ("batches", "[######] 100%"),
            ("schedules", "OK active"),
            ("webhooks", "http://10.0.0.1:9"),
            ("comparisons", "echo:1 echo:2"),
            ("samples", "acme/echo"),
            ("catalogue", "acme/echo v"),
        ):
            await go(pilot, tools, Place(noun), shown)
        for noun, shown in (
            ("job", "ran"),
            ("batch", "3 of 3 rows"),
            ("schedule", "last runs, UTC"),
            ("webhook", "told of job.completed"),
            ("comparison", "AGREE"),
        ):
            await go(pilot, tools, Place(noun, ("acme", ids[noun])), shown)


async def test_a_view_of_one_tenant_shows_no_other(it: Inside) -> None:
    await it.tenant("other")
    ids = await one_of_each(it)
    client = Client(socket="/x", transport=it.client(admin=True)._transport)
    for view in ROWS:
        if view != "deliveries":
            found = await client.snapshot(Query(view=view, params=(("tenant", "other"),)))
            assert found is not None
            assert found.rows == (), view
    async with it.client(admin=True) as admin:
        asked = {"view": "deliveries", "tenant": "other", "webhook": ids["webhook"]}
        assert (await admin.get("/admin/v1/snapshot", params=asked)).status_code == 404
    await client.close()


async def test_verbs_take_effect_and_refusals_are_the_appliances_own(
    it: Inside, tools: Any, tmp_path: Path
) -> None:
    snapshot = lambda: it.store.registry.snapshot  # noqa: E731
    tenant = snapshot().tenant("acme")
    data = tmp_path / "rows.csv"
    data.write_bytes(TABLE)

    async def fill(key: str, **values: str) -> None:
        await pilot.press(key)
        await tools.until(pilot, lambda: tools.is_dialog(pilot))
        for name, value in values.items():
            pilot.app.screen.query_one(f"#f-{name}").value = value  # type: ignore[attr-defined]
        pilot.app.screen.query_one("#verb").focus()
        await pilot.press("enter")

    async with opened(it, tools) as pilot:
        await go(pilot, tools, Place("schedules"), "No schedules")
        await fill("n", tenant="acme", model="echo:1", cron="61 * * * *", body="[1]")
        await tools.until(pilot, lambda: "422" in tools.screen_text(pilot))
        await pilot.press("escape")
        await fill("n", tenant="acme", model="echo:1", cron="0 2 * * *", body="[1]")
        await tools.until(pilot, lambda: "acme/echo:1" in tools.screen_text(pilot))
        await fill("h")
        await tools.until(pilot, lambda: "- paused" in tools.screen_text(pilot))
        assert [one.state for one in snapshot().schedules(tenant.id)] == ["paused"]

        await go(pilot, tools, Place("webhooks"), "No webhooks")
        await fill("n", tenant="acme", url="https://169.254.169.254/x")
        await tools.until(pilot, lambda: "No webhook may go to" in tools.screen_text(pilot))
        await pilot.press("escape")
        await fill("n", tenant="acme", url="http://10.0.0.1:9/in")
        await tools.until(pilot, lambda: "whsec_" in tools.screen_text(pilot))
        secret = next(w for w in tools.screen_text(pilot).split() if w.startswith("whsec_"))
        await tools.type_text(pilot, secret[-3:])
        pilot.app.screen.query_one("#back").value = secret[-4:]  # type: ignore[attr-defined]
        await pilot.press("enter")
        await tools.until(pilot, lambda: "OK on" in tools.screen_text(pilot))

        await go(pilot, tools, Place("drift"), "No version has a baseline")
        await fill("n", version="acme/echo:2", file=str(data))
        await tools.until(pilot, lambda: "acme/echo v2" in tools.screen_text(pilot))
        await fill("e", **{"l-psi": "0.5"}, columns="i:psi=0.75", window="6h")
        await tools.until(pilot, lambda: "baseline revision 2" in tools.screen_text(pilot))
        model = snapshot().model(tenant.id, "echo")
        kept = snapshot().baseline(model.id, 2).thresholds
        assert kept.window_s == 21_600
        assert kept.limits["psi"] == 0.5
        assert kept.features["i"] == {"psi": 0.75}

        await go(pilot, tools, Place("comparisons"), "No comparisons")
        await fill("n", tenant="acme", models="echo:1 echo:2", data=str(data))
        await tools.until(pilot, lambda: "AGREE" in tools.screen_text(pilot), 60)


def test_the_events_that_are_offered_are_those_there_are() -> None:
    assert EVENTS.split() == list(TYPES)
