"""Canaries and comparisons through HTTP: steps, holds, aborts, effects, reported outcomes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from inside import Inside, inside
from scipy import stats

MODEL = "/api/v1/models/acme/m"
ROUTE = MODEL + "/route"
RULE = {
    "version": 2, "error_rate_max": 0.1, "latency_ratio_max": 3.0, "calls_min": 10, "window_s": 60,
}  # fmt: skip


@pytest.fixture
async def it(tmp_path: Path) -> AsyncIterator[Inside]:
    async with inside(tmp_path) as found:
        await found.tenant("acme")
        for _ in range(3):
            await found.version("acme", "m")
        yield found


@pytest.fixture
async def client(it: Inside) -> AsyncIterator[Any]:
    async with it.client(await it.key("acme")) as found:
        yield found


async def start(client: Any, *, percent: float = 50, **rule: Any) -> dict[str, Any]:
    arms = [{"version": 1, "percent": 100 - percent}, {"version": 2, "percent": percent}]
    made = await client.put(ROUTE, json={"arms": arms, "canary": {**RULE, **rule}})
    assert made.status_code == 200, made.text
    return dict(made.json())


async def call(client: Any, body: bytes, times: int = 60) -> list[Any]:
    return [await client.post(MODEL + "/invoke", content=body) for _ in range(times)]


async def until(client: Any, **wanted: Any) -> dict[str, Any]:
    """The route once it is as wanted."""
    async with asyncio.timeout(60):
        while True:
            found = (await client.get(ROUTE)).json()
            if wanted.items() <= found.items():
                return dict(found)
            await asyncio.sleep(0.05)


async def looked(it: Inside) -> None:
    """The background has looked since; its period is half a second."""
    await it.node.services.canaries.look()


async def test_a_candidate_that_fails_is_aborted_with_the_figures(it: Inside, client: Any) -> None:
    await start(client)
    await looked(it)
    await call(client, b"at 2 raise")
    found = await until(client, state="aborted")
    assert [(a["version"], a["percent"]) for a in found["arms"]] == [(1, 100), (2, 0)]
    assert (found["set_by"], found["revision"]) == ("appliance", 2)
    assert "error rate 100.00%" in found["reason"]
    assert "more than 10" in found["reason"]
    assert {r.headers["model-version"] for r in await call(client, b"x", 10)} == {"1"}
    entries = (await client.get("/api/v1/audit?kind=route.set")).json()["entries"]
    assert entries[0]["actor"] == "appliance"
    assert entries[0]["event"]["route"]["reason"] == found["reason"]
    history = (await client.get(ROUTE + "/history")).json()["items"]
    assert [h["state"] for h in history] == ["aborted", "active"]


async def test_a_candidate_that_is_slow_is_held_at_its_weight(it: Inside, client: Any) -> None:
    await start(client, action="hold", percent=40)
    await looked(it)
    await call(client, b"at 2 sleep 0.3", 40)  # a busy machine makes both slow
    found = await until(client, state="held")
    assert [a["percent"] for a in found["arms"]] == [60, 40]
    assert "95th percentile" in found["reason"]
    assert "times, more than 3" in found["reason"]
    await looked(it)
    assert (await client.get(ROUTE)).json()["revision"] == 2, "held once"


async def test_without_an_action_it_only_says_so(it: Inside, client: Any) -> None:
    await start(client, action="none")
    await looked(it)
    await call(client, b"at 2 raise", 50)
    await looked(it)
    assert (await client.get(ROUTE)).json()["state"] == "active"
    shown = (await client.get(ROUTE + "/stats")).json()["canary"]
    assert "error rate" in shown["complaint"]
    assert [a["version"] for a in shown["arms"]] == [1, 2]
    assert shown["arms"][1]["errors"] == shown["arms"][1]["calls"] > 10


async def test_errors_of_the_caller_and_of_both_versions_are_nobodys_fault(
    it: Inside, client: Any
) -> None:
    await start(client)
    await looked(it)
    await call(client, b"raise", 40)
    await client.post(MODEL + "/invoke", content=b"x" * 17_000_000)
    await looked(it)
    assert (await client.get(ROUTE)).json()["state"] == "active"


async def test_too_few_calls_decide_nothing(it: Inside, client: Any) -> None:
    await start(client, calls_min=1000)
    await looked(it)
    await call(client, b"at 2 raise", 30)
    await looked(it)
    assert (await client.get(ROUTE)).json()["state"] == "active"


async def test_a_candidate_without_complaints_is_stepped_up(it: Inside, client: Any) -> None:
    await start(client, percent=20, steps_percent=[40, 70.5], step_s=1, latency_ratio_max=0)
    await looked(it)
    await call(client, b"x", 120)
    found = await until(client, revision=2)
    assert [a["percent"] for a in found["arms"]] == [60, 40]
    assert "1 s without a complaint" in found["reason"]
    found = await until(client, revision=3)
    assert [a["percent"] for a in found["arms"]] == [29.5, 70.5]
    assert found["set_by"] == "appliance"


async def test_steps_wait_for_calls_and_stop_when_held(it: Inside, client: Any) -> None:
    await start(client, percent=20, steps_percent=[40], step_s=1)
    await looked(it)
    await asyncio.sleep(1.2)
    await looked(it)
    assert (await client.get(ROUTE)).json()["revision"] == 1
    await client.post(ROUTE + "/hold", json={})
    await call(client, b"x", 100)
    await asyncio.sleep(1.2)
    await looked(it)
    assert (await client.get(ROUTE)).json()["revision"] == 2


async def test_setting_an_aborted_canary_again_starts_with_clean_figures(
    it: Inside, client: Any
) -> None:
    await start(client)
    await looked(it)
    await call(client, b"at 2 raise")
    await until(client, state="aborted")
    await start(client)
    await call(client, b"x", 50)
    await looked(it)
    assert (await client.get(ROUTE)).json()["state"] == "active"


async def test_statistics_tell_versions_apart_and_equal_scipys(it: Inside, client: Any) -> None:
    rng = random.Random(5)
    arms = [{"version": 1, "percent": 50}, {"version": 2, "percent": 50}]
    await client.put(ROUTE, json={"arms": arms})
    values: dict[int, list[float]] = {1: [], 2: []}
    for reply in await call(client, b"x", 40):
        number = int(reply.headers["model-version"])
        value = rng.gauss(number, 0.5)
        values[number].append(value)
        said = await client.post(
            ROUTE + "/outcomes", json={"request_id": reply.headers["request-id"], "value": value}
        )
        assert said.status_code == 200, said.text
        assert said.json()["version"] == number
    await call(client, b"at 2 raise", 20)
    found = (await client.get(ROUTE + "/stats")).json()
    one, two = found["arms"]
    assert (one["metrics"], two["metrics"]) == (len(values[1]), len(values[2]))
    assert (one["errors"], one["calls"] + two["calls"]) == (0, 60)
    assert two["errors"] > 0
    (comparison,) = found["comparisons"]
    wanted = stats.ttest_ind(values[2], values[1], equal_var=False).confidence_interval()
    metric = comparison["metric"]
    assert (metric["low"], metric["high"]) == pytest.approx((wanted.low, wanted.high), rel=1e-8)
    assert metric["clear"]
    assert metric["needed"] > 2
    assert comparison["error_rate"]["difference"] == pytest.approx(two["error_rate"])
    assert comparison["error_rate"]["clear"]
    assert not comparison["error_rate"]["enough"]
    assert two["error_low"] < two["error_rate"] < two["error_high"]


async def test_the_last_word_on_a_call_counts_and_only_routed_calls_are_taken(
    it: Inside, client: Any
) -> None:
    unrouted = await client.post(MODEL + "/invoke", content=b"x")
    path = ROUTE + "/outcomes"
    for request_id in (unrouted.headers["request-id"], "req_none"):
        refused = await client.post(path, json={"request_id": request_id, "value": 1})
        assert refused.status_code == 404
    await client.put(ROUTE, json={"arms": [{"version": 2, "percent": 100}]})
    (reply,) = await call(client, b"x", 1)
    async with it.client(await it.key("acme", "caller")) as caller:
        for value in (1.0, 7.5):
            said = {"request_id": reply.headers["request-id"], "value": value}
            assert (await caller.post(path, json=said)).status_code == 200
        for value in ("high", None, True, 1e300):
            said = {"request_id": reply.headers["request-id"], "value": value}
            assert (await caller.post(path, json=said)).status_code == 422
    (arm,) = (await client.get(ROUTE + "/stats")).json()["arms"]
    assert (arm["metrics"], arm["metric_mean"]) == (1, 7.5)


async def test_figures_begin_where_the_versions_became_these(it: Inside, client: Any) -> None:
    await client.put(ROUTE, json={"arms": [{"version": 3, "percent": 100}]})
    await call(client, b"x", 5)
    for share in (10, 30):
        arms = [{"version": 1, "percent": 100 - share}, {"version": 3, "percent": share}]
        await client.put(ROUTE, json={"arms": arms})
        await call(client, b"x", 10)
    found = (await client.get(ROUTE + "/stats")).json()
    assert (found["revision"], found["since_revision"]) == (3, 2)
    assert sum(arm["calls"] for arm in found["arms"]) == 20
    found = (await client.get(ROUTE + "/stats?since=3")).json()
    assert sum(arm["calls"] for arm in found["arms"]) == 10
