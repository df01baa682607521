"""Drift through HTTP: baselines, counting after the reply, breaches told once, restarts."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from inside import Inside, inside

from appliance import watch
from appliance.drift import bodies
from appliance.watch.data import table_of

MODEL = "/api/v1/models/acme/m"
DRIFT = MODEL + "/versions/1/drift"
RNG = random.Random(7)


def rows(count: int, shift: float = 0.0) -> list[list[Any]]:
    return [
        [round(RNG.gauss(shift, 1), 6), RNG.choice("rgb"), RNG.randint(0, 3)] for _ in range(count)
    ]


def data(count: int = 2000) -> bytes:
    lines = [f"{x},{colour},{n}" for x, colour, n in rows(count)]
    return "\n".join(["x,colour,n", *lines]).encode()


CSV = {"content-type": "text/csv"}


@pytest.fixture
async def it(tmp_path: Path) -> AsyncIterator[Inside]:
    async with inside(tmp_path) as found:
        await found.tenant("acme")
        for _ in range(2):
            await found.version("acme", "m")
        yield found


@pytest.fixture
async def client(it: Inside) -> AsyncIterator[Any]:
    async with it.client(await it.key("acme")) as found:
        yield found


async def baseline(client: Any, body: bytes | None = None, path: str = DRIFT, **rest: Any) -> Any:
    made = await client.put(f"{path}/baseline", content=body or data(), headers=CSV, **rest)
    assert made.status_code == 200, made.text
    return made.json()


async def call(client: Any, body: Any, version: int = 1) -> None:
    """An echo: the answer is the body."""
    path = f"{MODEL}/versions/{version}/invoke"
    reply = await client.post(path, content=json.dumps(body).encode())
    assert reply.status_code == 200, reply.text


async def shown(it: Inside, client: Any, path: str = DRIFT, **query: Any) -> Any:
    await it.node.services.watch.counted()
    found = await client.get(path, params=query)
    assert found.status_code == 200, found.text
    return found.json()


async def told(client: Any, kind: str) -> list[dict[str, Any]]:
    found = (await client.get(f"/api/v1/audit?kind={kind}")).json()["entries"]
    return [entry["event"] for entry in reversed(found)]


async def flushed(it: Inside) -> None:
    await it.node.services.watch.counted()
    await it.node.services.watch.flush()


def verdicts(document: Any) -> dict[str, str]:
    return {f"{one['feature']} {one['statistic']}": one["verdict"] for one in document["scores"]}


async def test_calls_are_compared_with_a_baseline_column_by_column(it: Inside, client: Any) -> None:
    made = await baseline(client)
    assert (made["rows"], made["inputs"], made["outputs"]) == (2000, 3, 0)
    assert (made["revision"], made["source"]) == (1, "data")
    await call(client, {"rows": rows(250)})
    for one in rows(20):
        await call(client, [one])
    document = await shown(it, client)
    assert (document["rows"], document["calls"], document["unread"]) == (270, 21, 0)
    assert set(verdicts(document).values()) <= {"ok", "unjudged"}
    assert [(f["feature"], f["kind"]) for f in document["features"]] == [
        ("x", "numeric"), ("colour", "categorical"), ("n", "numeric"),
    ]  # fmt: skip
    assert document["features"][0]["window"]["values"] == 270
    assert abs(document["features"][0]["baseline"]["mean"]) < 0.2
    await call(client, {"rows": rows(400, shift=2)})
    after = verdicts(await shown(it, client))
    assert (after["x psi"], after["colour psi"], after["n psi"]) == ("breach", "ok", "ok")


async def test_a_breach_is_told_once_and_once_more_when_it_is_over(it: Inside, client: Any) -> None:
    await baseline(client)
    await call(client, {"rows": rows(150, shift=3)})
    await flushed(it)
    assert await told(client, "drift.breach") == [], "fewer records than are judged"
    for _ in range(3):
        await call(client, {"rows": rows(150, shift=3)})
        await flushed(it)
    found = await told(client, "drift.breach")
    named = {(e["breach"]["feature"], e["breach"]["statistic"]) for e in found}
    assert named == {("x", "psi"), ("x", "outside")}
    assert len(found) == 2, "once, not every period"
    first = found[0]["breach"]
    assert (first["rows"], first["threshold"] < first["value"]) == (300, True)
    assert found[0]["number"] == 1
    document = await shown(it, client)
    assert {b["statistic"] for b in document["breaches"]} == {"psi", "outside"}
    async with it.client(await it.key("", "operator")) as operator:
        text = (await operator.get("/metrics")).text
    assert "appliance_drift_breaches 2.0" in text
    assert 'appliance_drift_calls_total{result="counted"} 4.0' in text
    for _ in range(12):
        await call(client, {"rows": rows(1000)})
    await flushed(it)
    await flushed(it)
    over = await told(client, "drift.recovered")
    assert {(e["breach"]["feature"], e["breach"]["statistic"]) for e in over} == named
    assert over[0]["breach"]["since_ns"] == first["since_ns"]
    assert (await shown(it, client))["breaches"] == []


async def test_outputs_drift_though_inputs_do_not(it: Inside, client: Any) -> None:
    """The echo answers with what it was asked, so a body may carry its own answer."""
    lines = [f"{RNG.random()},{RNG.choice(['yes', 'no'])}" for _ in range(1000)]
    made = await baseline(
        client, "\n".join(["x,label", *lines]).encode(), params={"output": "label"}
    )
    assert (made["inputs"], made["outputs"]) == (1, 1)
    body = {"rows": [[RNG.random()] for _ in range(400)], "predictions": ["yes"] * 400}
    await call(client, body)
    document = await shown(it, client)
    found = {(s["feature"], s["output"]): s for s in document["scores"] if s["statistic"] == "psi"}
    assert found["x", False]["verdict"] == "ok"
    assert found["prediction", True]["verdict"] == "breach"
    assert document["answers"] == 400
    await flushed(it)
    (event,) = await told(client, "drift.breach")
    assert (event["breach"]["feature"], event["breach"]["is_output"]) == ("prediction", True)


async def test_missing_values_and_new_categories_are_told_apart(it: Inside, client: Any) -> None:
    await baseline(client)
    await call(client, {"records": [{"x": None, "colour": "mauve", "n": 1} for _ in range(300)]})
    found = verdicts(await shown(it, client))
    assert [found[f"x {s}"] for s in ("missing", "psi", "outside")] == ["breach", "ok", "ok"]
    assert [found[f"colour {s}"] for s in ("outside", "psi", "missing")] == [
        "breach", "breach", "ok",
    ]  # fmt: skip


async def test_what_is_no_table_is_counted_as_unread(it: Inside, client: Any) -> None:
    await baseline(client)
    for body in ({"prompt": "hello"}, [[1, 2]], "text"):
        await call(client, body)
    reply = await client.post(f"{MODEL}/versions/1/invoke", content=b"\x00\xff")
    assert reply.status_code == 200
    document = await shown(it, client)
    assert (document["rows"], document["calls"], document["unread"]) == (0, 4, 4)
    assert set(verdicts(document).values()) == {"few", "unjudged"}


async def test_versions_without_a_baseline_are_not_counted(it: Inside, client: Any) -> None:
    await baseline(client)
    await call(client, {"rows": rows(5)}, version=2)
    await it.node.services.watch.counted()
    problem = await client.get(MODEL + "/versions/2/drift")
    assert problem.status_code == 404
    assert "has no baseline" in problem.json()["detail"]
    assert (await shown(it, client))["calls"] == 0


async def test_too_many_bodies_are_dropped_and_counted(
    it: Inside, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await baseline(client)
    monkeypatch.setattr(watch, "QUEUE_BYTES_MAX", 40_000)
    for _ in range(3):
        await call(client, {"rows": rows(2)})
        await it.node.services.watch.counted()
    await call(client, {"rows": rows(2000)})
    document = await shown(it, client)
    assert (document["calls"], document["dropped"]) == (3, 1)
    assert it.node.services.watch._held_bytes == 0


async def test_large_bodies_are_looked_at_in_part(it: Inside, client: Any) -> None:
    await baseline(client)
    await call(client, {"rows": rows(2500)})
    document = await shown(it, client)
    assert (document["rows"], document["skipped"]) == (1000, 1500)


async def test_every_change_is_a_revision_with_its_reason(it: Inside, client: Any) -> None:
    await baseline(client, params={"reason": "first"})
    stale = await client.put(
        f"{DRIFT}/baseline", content=data(300), headers=CSV | {"if-match": '"0"'}
    )
    assert (stale.status_code, stale.json()["code"]) == (412, "revision-stale")
    assert "first" in stale.json()["detail"]
    body = {"limits": {"psi": 0.4, "ks": 0.2}, "features": {"x": {"psi": 0.5}}, "window_s": 600}
    made = await client.put(f"{DRIFT}/thresholds", json=body, headers={"if-match": '"1"'})
    assert made.status_code == 200, made.text
    assert made.headers["etag"] == '"2"'
    known = made.json()["thresholds"]
    assert (known["limits"]["psi"], known["limits"]["ks"], known["limits"]["missing"]) == (
        0.4, 0.2, 0.1,
    )  # fmt: skip
    assert (known["features"], known["window_s"], known["rows_min"]) == (
        {"x": {"psi": 0.5}}, 600, 200,
    )  # fmt: skip
    undone = {"limits": {"psi": None}, "features": {"x": {"psi": None}}}
    made = await client.put(f"{DRIFT}/thresholds", json=undone)
    assert made.json()["thresholds"]["limits"]["psi"] == 0.25
    assert made.json()["thresholds"]["features"] == {}
    again = await baseline(client)
    assert (again["revision"], again["thresholds"]["limits"]["ks"]) == (4, 0.2)
    assert (
        await client.delete(f"{DRIFT}/baseline", headers={"if-match": '"4"'})
    ).status_code == 204
    assert (await client.get(DRIFT)).status_code == 404
    assert (await baseline(client))["revision"] == 6
    for kind, count in (("baseline-set", 3), ("thresholds-set", 2), ("baseline-removed", 1)):
        assert len(await told(client, f"drift.{kind}")) == count


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"limits": {"chi": 1}}, "'chi' is no statistic"),
        ({"features": {"y": {"psi": 1}}}, "no column 'y'"),
        ({"rows_min": 1}, "20"),
        ({"window_s": 1}, "60"),
        ({"limits": {"psi": -1}}, "0"),
    ],
)
async def test_bad_thresholds_are_refused(client: Any, body: Any, says: str) -> None:
    await baseline(client)
    problem = await client.put(f"{DRIFT}/thresholds", json=body)
    assert problem.status_code == 422
    assert says in problem.text


@pytest.mark.parametrize(
    ("content", "kind", "query", "status", "says"),
    [
        (b"a\n1\n", "text/csv", {"output": "b"}, 422, "no column 'b'"),
        (b"a\n", "text/csv", {}, 422, "no records"),
        (b"a,b\n1,2\n3\n", "text/csv", {}, 422, "line"),
        (b'{"a": [1], "b": []}', "application/json", {}, 422, "not equally long"),
        (b'a\n""\n', "text/csv", {}, 422, "Every column of the data is empty"),
        (b"PAR1 and no more", "application/vnd.apache.parquet", {}, 422, "parquet"),
        (b"a", "text/plain", {}, 415, "text/csv"),
    ],
)
async def test_data_that_is_no_baseline_is_refused(
    client: Any, content: bytes, kind: str, query: Any, status: int, says: str
) -> None:
    problem = await client.put(
        f"{DRIFT}/baseline", content=content, headers={"content-type": kind}, params=query
    )
    assert problem.status_code == status, problem.text
    assert says in problem.text


async def test_a_window_of_calls_becomes_the_baseline(it: Inside, client: Any) -> None:
    refused = await client.post(f"{DRIFT}/baseline/window", json={"window_s": 600})
    assert refused.status_code == 404
    await baseline(client)
    refused = await client.post(f"{DRIFT}/baseline/window", json={"window_s": 600})
    assert refused.status_code == 422
    assert "0 records" in refused.json()["detail"]
    await call(client, {"rows": rows(600, shift=2)})
    await flushed(it)
    assert await told(client, "drift.breach")
    body = {"window_s": 600, "reason": "the new normal"}
    made = await client.post(f"{DRIFT}/baseline/window", json=body)
    assert made.status_code == 200, made.text
    assert (made.json()["source"], made.json()["rows"]) == ("window", 600)
    document = await shown(it, client)
    assert (document["rows"], document["breaches"]) == (600, [])
    assert set(verdicts(document).values()) <= {"ok", "unjudged"}
    other = await client.post(
        f"{MODEL}/versions/2/drift/baseline/window", json={"window_s": 600, "of": 1}
    )
    assert (other.status_code, other.json()["version"]) == (200, 2)
    await call(client, {"rows": rows(300)}, version=2)
    found = verdicts(await shown(it, client, MODEL + "/versions/2/drift"))
    assert found["x psi"] == "breach"


async def test_what_was_counted_survives_a_restart(tmp_path: Path) -> None:
    async with inside(tmp_path) as it:
        await it.tenant("acme")
        await it.version("acme", "m")
        async with it.client(await it.key("acme")) as client:
            await baseline(client)
            await call(client, {"rows": rows(400, shift=3)})
            await flushed(it)
            await call(client, {"rows": rows(30, shift=3)})
            before = await shown(it, client)
            secret = client.headers["authorization"].removeprefix("Bearer ")
    async with inside(tmp_path, initialise=False) as it:
        await it.node.unseal(passphrase=None, key_file=tmp_path / "unseal.key")
        async with it.client(secret) as client:
            after = await shown(it, client)
            assert after == before | {"dropped": 0}
            assert len(after["breaches"]) == 2
            await call(client, {"rows": rows(50, shift=3)})
            await flushed(it)
            assert len(await told(client, "drift.breach")) == 2, "not told again"
            assert (await shown(it, client))["rows"] == 480


async def test_nothing_of_a_value_or_a_name_is_readable_on_the_disk(
    it: Inside, client: Any, tmp_path: Path
) -> None:
    marker = "Zr9qVb7mQw"
    body = f"{marker}col,n\n" + "\n".join(f"{marker}val,{n}" for n in range(300))
    await baseline(client, body.encode())
    await call(client, {"records": [{f"{marker}col": f"{marker}val", "n": 1}] * 300})
    await flushed(it)
    await it.store.queries.wait(it.store.ledger.head.size, 10)
    files = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert any("sketches" in path.parts for path in files)
    assert not [path for path in files if marker.encode() in path.read_bytes()]


async def test_what_was_counted_goes_with_its_baseline_its_model_and_its_tenant(
    it: Inside, client: Any, tmp_path: Path
) -> None:
    def folders() -> int:
        return sum(1 for path in (tmp_path / "data" / "sketches").glob("*/*") if path.is_dir())

    async def counted(path: str = DRIFT) -> None:
        await baseline(client, path=path)
        await call(client, {"rows": rows(5)}, version=int(path.split("/")[-2]))
        await flushed(it)

    await counted()
    blobs = len(it.store.registry.snapshot.blob_ids())
    assert folders() == 1
    await baseline(client)
    assert (folders(), len(it.store.registry.snapshot.blob_ids())) == (0, blobs)
    await counted()
    assert (await client.delete(f"{DRIFT}/baseline")).status_code == 204
    assert (folders(), len(it.store.registry.snapshot.blob_ids())) == (0, blobs - 1)
    await counted(MODEL + "/versions/2/drift")
    assert folders() == 1
    assert (await client.delete(MODEL)).status_code in (200, 204)
    await it.node.services.watch.tidy()
    assert folders() == 0


async def test_a_tenant_has_a_bounded_number_of_baselines(it: Inside, client: Any) -> None:
    it.node.services.watch._baselines._tenant_max = 1
    await baseline(client)
    await baseline(client)
    path = f"{MODEL}/versions/2/drift/baseline"
    problem = await client.put(path, content=data(20), headers=CSV)
    assert (problem.status_code, problem.json()["code"]) == (429, "quota-exceeded")


async def test_who_may(it: Inside, client: Any) -> None:
    await baseline(client)
    for role, tenant, reads, sets in (
        ("caller", "acme", 403, 403), ("operator", "", 200, 403), ("auditor", "", 403, 403),
    ):  # fmt: skip
        async with it.client(await it.key(tenant, role)) as other:
            assert (await other.get(DRIFT)).status_code == reads
            body = {"limits": {"psi": 1}}
            assert (await other.put(f"{DRIFT}/thresholds", json=body)).status_code == sets


async def test_a_retired_version_gets_no_baseline(it: Inside, client: Any) -> None:
    await client.delete(MODEL + "/versions/2")
    problem = await client.put(f"{MODEL}/versions/2/drift/baseline", content=data(20), headers=CSV)
    assert problem.status_code == 410


async def test_no_caller_waits_for_counting(it: Inside, client: Any) -> None:
    await baseline(client)
    service = it.node.services.watch
    async with service._flushing:  # whoever counts would have to wait for this
        service._watched.clear()
        await asyncio.wait_for(call(client, {"rows": rows(2)}), 30)
        assert service._held_bytes > 0
    assert (await shown(it, client))["calls"] == 1


async def test_a_baseline_is_learned_from_the_next_calls(it: Inside, client: Any) -> None:
    made = await client.post(f"{DRIFT}/baseline/learn", json={"records": 300})
    assert made.status_code == 200, made.text
    assert (made.json()["source"], made.json()["rows"]) == ("learning", 300)
    lines = rows(290)
    for at in range(0, 290, 29):
        some = [dict(zip(("x", "colour", "n"), row, strict=True)) for row in lines[at : at + 29]]
        await call(client, {"records": some, "predictions": [row["n"] for row in some]})
    await call(client, "no table")
    await it.node.services.watch.counted()
    problem = await client.get(DRIFT)
    assert problem.status_code == 404
    assert "290 of 300 records" in problem.json()["detail"]
    some = [dict(zip(("x", "colour", "n"), row, strict=True)) for row in rows(40)]
    await call(client, {"records": some, "predictions": [row["n"] for row in some]})
    document = await shown(it, client)
    known = document["baseline"]
    assert (known["source"], known["rows"], known["revision"]) == ("calls", 300, 2)
    assert (known["inputs"], known["outputs"], known["set_by"]) == (3, 1, "appliance")
    assert document["rows"] == 0
    await call(client, {"rows": rows(300, shift=3)})
    assert verdicts(await shown(it, client))["x psi"] == "breach"


async def test_learning_is_a_revision_that_can_be_taken_back(it: Inside, client: Any) -> None:
    await client.post(f"{DRIFT}/baseline/learn", json={"records": 50})
    await call(client, {"rows": rows(30)})
    await it.node.services.watch.counted()
    assert (
        await client.delete(f"{DRIFT}/baseline", headers={"if-match": '"1"'})
    ).status_code == 204
    await call(client, {"rows": rows(30)})
    await it.node.services.watch.counted()
    assert "has no baseline" in (await client.get(DRIFT)).json()["detail"]
    assert it.node.services.watch._queue.empty()
    await client.post(f"{DRIFT}/baseline/learn", json={"records": 50})
    await call(client, {"rows": rows(30)})
    await it.node.services.watch.counted()
    assert "30 of 50 records" in (await client.get(DRIFT)).json()["detail"]
    await baseline(client)
    await call(client, {"rows": rows(30)})
    assert (await shown(it, client))["baseline"]["source"] == "data"


async def test_jobs_are_counted_too(it: Inside, client: Any) -> None:
    await baseline(client)
    reply = await client.post(
        f"{MODEL}/versions/1/invoke", json={"rows": rows(3)}, headers={"prefer": "respond-async"}
    )
    assert reply.status_code == 202
    async with asyncio.timeout(60):
        while (await client.get(reply.headers["location"])).json()["status"] != "succeeded":
            await asyncio.sleep(0.05)
    document = await shown(it, client)
    assert (document["rows"], document["calls"]) == (3, 1)


async def test_the_console_is_told_what_is_over(it: Inside, client: Any) -> None:
    await baseline(client)
    async with it.client(admin=True) as admin:
        quiet = (await admin.get("/admin/v1/snapshot?view=drift")).json()
        assert [(r["state"], r["rows"]) for r in quiet["rows"]] == [("off", 0)]
        await call(client, {"rows": rows(400, shift=3)})
        await flushed(it)
        view = (await admin.get("/admin/v1/snapshot?view=drift")).json()
        (row,) = view["rows"]
        assert (row["model"], row["state"], row["breaches"], row["rows"]) == ("m", "warn", 2, 400)
        assert (row["feature"], row["value"] > row["threshold"]) == ("x", True)
        assert view["alerts"]["warn"] == quiet["alerts"]["warn"] + 1
        checks = (await admin.get("/admin/v1/snapshot?view=health")).json()["rows"]
        (alert,) = [check for check in checks if check["name"] == "drift"]
        assert "acme/m v1 x psi" in alert["detail"]
        assert alert["remedy"] == "appliance drift show acme/m:1"


async def test_every_format_of_data_makes_the_same_baseline(
    it: Inside, client: Any, tmp_path: Path
) -> None:
    lines = rows(400)
    names = ("x", "colour", "n")
    records = [dict(zip(names, row, strict=True)) for row in lines]
    con = duckdb.connect()
    con.execute("CREATE TABLE t (x DOUBLE, colour VARCHAR, n INTEGER)")
    con.executemany("INSERT INTO t VALUES (?, ?, ?)", lines)
    con.execute(f"COPY t TO '{tmp_path / 't.parquet'}' (FORMAT parquet)")
    found = []
    for kind, body in (
        ("application/vnd.apache.parquet", (tmp_path / "t.parquet").read_bytes()),
        ("text/csv", "\n".join(["x,colour,n", *(f"{x},{c},{n}" for x, c, n in lines)]).encode()),
        ("application/x-ndjson", "\n".join(map(json.dumps, records)).encode()),
        ("application/json", json.dumps(records).encode()),
        ("application/json", json.dumps({"rows": lines, "columns": names}).encode()),
    ):
        reply = await client.put(f"{DRIFT}/baseline", content=body, headers={"content-type": kind})
        assert reply.status_code == 200, (kind, reply.text)
        found.append((await shown(it, client))["features"])
    assert all(one == found[0] for one in found)
    assert [(f["kind"], f["baseline"]["values"]) for f in found[0]] == [
        ("numeric", 400), ("categorical", 400), ("numeric", 400),
    ]  # fmt: skip


async def test_long_data_is_read_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "DATA_ROWS_MAX", 1000)
    body = "\n".join(["a", *map(str, range(7000))]).encode()
    table = await table_of("text/csv", body)
    values = list(table.columns["a"])
    assert (table.rows + table.skipped, table.rows) == (7000, 875)
    assert values == list(range(0, 7000, 8))
