"""Comparisons through HTTP: taken on, called on record, measured, kept, cancelled, cut off."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from inside import Inside, inside
from scripted import ScriptedExecutor

from appliance import config, tables
from appliance.comparison import pieces
from appliance.errors import ModelRaised

COMPARE = "/api/v1/comparisons/acme"
CSV = {"Content-Type": "text/csv"}
DATA = b"a,b,y\n" + b"".join(b"%d,%d,%d\n" % (n, -n, n % 2) for n in range(40))


def script(number: int, body: Any) -> Any:
    """1 is right, 2 says 0 always, 3 is right but for multiples of ten, 4 refuses the row 13."""
    sent = body.get("rows") or body.get("records") or []
    rows = [list(row.values()) if isinstance(row, dict) else row for row in sent]
    if number == 4 and any(row[0] == 13 for row in rows):
        raise ModelRaised("ValueError: 13", stderr=("a secret",))
    if number == 5:
        return None
    if number == 6:
        raise ModelRaised("ValueError: never")
    right = [row[0] % 2 for row in rows]
    if number == 2:
        return {"classes": [0, 1], "probabilities": [[0.75, 0.25] for _ in rows]}
    if number == 3:
        return [1 - y if row[0] % 10 == 0 else y for row, y in zip(rows, right, strict=True)]
    return {"predictions": right}


@asynccontextmanager
async def stage(folder: Path, versions: int = 6) -> AsyncIterator[tuple[Inside, Any]]:
    executor = functools.partial(ScriptedExecutor, script=script)
    is_new = not (folder / "data").exists()
    async with inside(folder, executor=executor, initialise=is_new) as it:
        if not is_new:
            await it.node.unseal(key_file=folder / "unseal.key")
        else:
            await it.tenant("acme")
            for _ in range(versions):
                await it.version("acme", "m")
        async with it.client(await it.key("acme")) as client:
            yield it, client


async def asked(client: Any, models: str, data: bytes = DATA, **query: Any) -> dict[str, Any]:
    params = {"models": models, **query}
    answer = await client.post(COMPARE, params=params, content=data, headers=CSV)
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == answer.json()["urls"]["get"]
    return dict(answer.json())


async def ended(client: Any, comparison: dict[str, Any]) -> dict[str, Any]:
    for _ in range(12):
        found = (await client.get(comparison["urls"]["get"], params={"wait_s": 5})).json()
        if found["status"] in ("succeeded", "failed", "canceled"):
            return dict(found)
    raise AssertionError(found)


async def reached(client: Any, comparison: dict[str, Any], status: str) -> None:
    async with asyncio.timeout(30):
        while (await client.get(comparison["urls"]["get"])).json()["status"] != status:
            await asyncio.sleep(0.02)


class SlowShelf:
    """A shelf on which nothing is put down before it is let."""

    def __init__(self, shelf: Any) -> None:
        self._shelf = shelf
        self.is_asked, self.may_go = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shelf, name)

    async def put(self, tenant_id: str, name: str, data: bytes, **rest: Any) -> int:
        if name.endswith(".head"):
            self.is_asked.set()
            await self.may_go.wait()
        return int(await self._shelf.put(tenant_id, name, data, **rest))


async def test_one_that_is_not_saved_yet_is_not_begun(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client):
        comparisons = it.node.services.comparisons
        comparisons._shelf = slow = SlowShelf(comparisons._shelf)
        asking = asyncio.create_task(asked(client, "m:1"))
        async with asyncio.timeout(30):
            await slow.is_asked.wait()
        (found,) = comparisons.all(it.store.registry.snapshot.tenant("acme").id)
        assert found.status == "starting"
        assert comparisons._next() is None
        slow.may_go.set()
        assert (await ended(client, await asking))["status"] == "succeeded"


async def test_versions_are_measured_and_compared_and_every_call_is_on_record(
    tmp_path: Path,
) -> None:
    async with stage(tmp_path) as (it, client):
        made = await asked(client, "m:1,m:2,m:3", label="y", batch=16)
        assert (made["rows"], made["total"], made["report"]) == (40, 120, None)
        found = await ended(client, made)
        assert found["status"] == "succeeded", found["error"]
        assert found["done"] == 120
        report = found["report"]
        assert (report["task"], report["is_task_inferred"]) == ("classification", True)
        assert report["columns"] == ["a", "b"]
        one, two, three = report["targets"]
        assert [t["metrics"]["accuracy"] for t in (one, two, three)] == [1.0, 0.5, 0.9]
        assert one["metrics"]["log_loss"] is None  # it brought no probabilities
        assert two["metrics"]["roc_auc"] == 0.5
        assert two["metrics"]["recall_macro"] == 0.5
        assert [t["latency"]["calls"] for t in (one, two, three)] == [3, 3, 3]
        assert one["cost"]["compute_s"] == pytest.approx(0.003)
        assert one["cost"]["cold_starts"] == 1
        shares = {(p["a"], p["b"]): (p["rows"], p["agree"]) for p in report["agreement"]}
        assert shares == {(0, 1): (40, 20), (0, 2): (40, 36), (1, 2): (40, 16)}
        worst = report["worst"]
        assert len(worst) == 10
        assert worst[0]["input"] == {"a": worst[0]["row"] - 1, "b": 1 - worst[0]["row"]}
        assert worst[0]["label"] == (worst[0]["row"] - 1) % 2
        entries = (await client.get("/api/v1/audit?kind=call.intent&limit=100")).json()["entries"]
        calls = [e["event"]["call_id"] for e in entries]
        assert sorted(calls) == sorted(f"{made['id']}-{n}" for n in range(1, 10))
        assert {e["actor"] for e in entries} == {made["created_by"]}
        kinds = [e.kind for e in it.store.ledger.read(0, 999) if e.kind.startswith("comparison.")]
        assert kinds == ["comparison.queued", "comparison.ended"]
        left = {path.name for path in (tmp_path / "data/comparisons").glob("*/*")}
        assert left == {f"{made['id']}.head", f"{made['id']}.report"}  # the data set is gone


async def test_nothing_of_a_data_set_or_report_can_be_read_on_the_disk(tmp_path: Path) -> None:
    async with stage(tmp_path) as (_it, client):
        data = b"canary_column,y\n" + b"".join(b"%d,77123456\n" % n for n in range(3))
        made = await asked(client, "m:5,m:1", data, label="y")
        await reached(client, made, "processing")
        kept = [path.read_bytes() for path in (tmp_path / "data/comparisons").glob("*/*")]
        assert len(kept) == 2  # the head and one piece
        assert not any(word in text for text in kept for word in (b"canary_column", b"77123456"))
        await client.post(made["urls"]["cancel"])


async def test_one_bad_row_costs_no_other_its_answer_and_a_broken_version_is_given_up(
    tmp_path: Path,
) -> None:
    async with stage(tmp_path) as (_it, client):
        found = await ended(client, await asked(client, "m:4,m:6", label="y", batch=20))
        four, six = found["report"]["targets"]
        assert (four["rows"], four["failed_rows"]) == (39, 1)
        assert four["problems"] == {"model-raised": 1}
        assert four["metrics"]["accuracy"] == 1.0
        assert (six["rows"], six["failed_rows"]) == (0, 40)
        assert six["problems"] == {"given-up": 20, "model-raised": 20}
        assert six["metrics"]["accuracy"] is None
        assert found["report"]["agreement"][0]["share"] is None


async def test_the_rows_are_shown_to_an_owner_only_and_a_comparison_to_its_caller(
    tmp_path: Path,
) -> None:
    async with stage(tmp_path) as (it, client):
        await it.tenant("beta")
        mine = await asked(client, "m:1,m:2", label="y")
        async with (
            it.client(await it.key("acme", "caller")) as caller,
            it.client(await it.key("beta")) as beta,
        ):
            own = await ended(caller, await asked(caller, "m:1,m:2", label="y"))
            assert own["report"]["worst"] == []
            assert own["report"]["targets"][0]["metrics"]["accuracy"] == 1.0
            listed = (await caller.get(COMPARE)).json()["items"]
            assert [one["id"] for one in listed] == [own["id"]]
            for path in (mine["urls"]["get"], mine["urls"]["get"].replace("acme", "beta")):
                assert (await caller.get(path)).status_code == 404
                assert (await beta.get(path)).status_code == 404
            assert (await caller.post(mine["urls"]["cancel"])).status_code == 404
        shown = (await client.get(own["urls"]["get"])).json()
        assert len(shown["report"]["worst"]) == 10
        both = [one["id"] for one in (await client.get(COMPARE)).json()["items"]]
        assert both == [own["id"], mine["id"]]


async def test_a_key_compares_only_what_it_may_call(tmp_path: Path) -> None:
    async with stage(tmp_path, versions=1) as (it, _client):
        await it.version("acme", "other")
        scopes = ["model:invoke:m", "comparison:create", "comparison:read"]
        async with it.client(await it.key("acme", scopes=scopes)) as client:
            refused = await client.post(
                COMPARE, params={"models": "m:1,other:1"}, content=DATA, headers=CSV
            )
            assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
            assert (await ended(client, await asked(client, "m:1")))["status"] == "succeeded"


async def test_a_revoked_key_or_a_retired_version_ends_a_comparison(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client):
        key = await it.key("acme")
        most = it.node.services.comparisons.settings.running_max
        first = [await asked(client, "m:5") for _ in range(most)]
        async with it.client(key) as other:
            revoked = await asked(other, "m:1")
        retired = await asked(client, "m:2")
        async with it.client(admin=True) as admin:
            await admin.delete(f"/api/v1/tenants/acme/keys/{key[4:13]}")
        await client.delete("/api/v1/models/acme/m/versions/2")
        for one in first:
            await client.post(one["urls"]["cancel"])
        for one, code in ((revoked, "forbidden"), (retired, "gone")):
            found = await ended(client, one)
            assert (found["status"], found["error"]["code"]) == ("failed", code)
        refused = await client.post(COMPARE, params={"models": "m:2"}, content=DATA, headers=CSV)
        assert (refused.status_code, refused.json()["code"]) == (410, "gone")


async def test_a_running_comparison_is_cancelled_and_its_data_deleted(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client):
        made = await asked(client, "m:5")
        async with asyncio.timeout(30):
            while not (await client.get("/api/v1/audit?kind=call.intent")).json()["entries"]:
                await asyncio.sleep(0.02)
        gone = (await client.post(made["urls"]["cancel"])).json()
        assert gone["status"] == "canceled"
        again = (await client.post(made["urls"]["cancel"])).json()
        assert again["completed_at"] == gone["completed_at"]
        assert [path.suffix for path in (tmp_path / "data/comparisons").glob("*/*")] == [".head"]
        entries = (await client.get("/api/v1/audit?kind=call.outcome")).json()["entries"]
        assert [e["event"]["code"] for e in entries] == ["cancelled"]
        assert it.node.services.comparisons.find("", made["id"]) is None


async def test_a_restart_fails_what_was_cut_off_and_runs_what_had_not_started(
    tmp_path: Path,
) -> None:
    async with stage(tmp_path) as (it, client):
        comparisons = it.node.services.comparisons
        running = [await asked(client, "m:5") for _ in range(comparisons.settings.running_max)]
        for one in running:
            await reached(client, one, "processing")
        waiting = await asked(client, "m:1", label="y")
        assert waiting["status"] == "starting"
    async with stage(tmp_path) as (it, client):
        found = await ended(client, waiting)
        assert found["status"] == "succeeded"
        assert found["report"]["targets"][0]["metrics"]["accuracy"] == 1.0
        for one in running:
            cut = (await client.get(one["urls"]["get"])).json()
            assert (cut["status"], cut["error"]["code"]) == ("failed", "interrupted")
        names = {path.suffix for path in (tmp_path / "data/comparisons").glob("*/*")}
        assert names == {".head", ".report"}


async def test_reports_are_deleted_after_their_time_and_with_their_tenant(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client):
        made = await ended(client, await asked(client, "m:1"))
        comparisons = it.node.services.comparisons
        assert await comparisons.sweep() == 0
        comparisons._settings = config.replace(
            config.Settings(), "comparisons", kept_max=1
        ).comparisons
        newer = await ended(client, await asked(client, "m:1"))
        assert await comparisons.sweep() == 1
        assert (await client.get(made["urls"]["get"])).status_code == 404
        assert (await client.get(newer["urls"]["get"])).status_code == 200
        async with it.client(admin=True) as admin:
            assert (await admin.delete("/api/v1/tenants/acme")).status_code == 204
        await comparisons.sweep()
        assert list((tmp_path / "data/comparisons").iterdir()) == []


async def test_a_tenant_has_a_bounded_number_of_unfinished_comparisons(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client):
        comparisons = it.node.services.comparisons
        comparisons._settings = config.replace(
            config.Settings(), "comparisons", queued_max=2
        ).comparisons
        made = [await asked(client, "m:5") for _ in range(2)]
        full = await client.post(COMPARE, params={"models": "m:1"}, content=DATA, headers=CSV)
        assert (full.status_code, full.json()["code"]) == (429, "quota-exceeded")
        for one in made:
            await client.post(one["urls"]["cancel"])
        await asked(client, "m:1")


BAD = (
    ({}, DATA, 422, "models"),
    ({"models": ",".join(f"m:{n}" for n in range(1, 10))}, DATA, 422, "1 to 8"),
    ({"models": "m:1,m@live"}, DATA, 422, "twice"),
    ({"models": "m:1,../x"}, DATA, 422, "MODEL:VERSION"),
    ({"models": "no:1"}, DATA, 422, "no model 'no'"),
    ({"models": "m:99"}, DATA, 422, "version 99"),
    ({"models": "m@beta"}, DATA, 422, "beta"),
    ({"models": "m:1", "label": "z"}, DATA, 422, "no column 'z'"),
    ({"models": "m:1", "task": "x"}, DATA, 422, "classification"),
    ({"models": "m:1", "form": "x"}, DATA, 422, "records"),
    ({"models": "m:1", "tolerance": "nan"}, DATA, 422, "tolerance"),
    ({"models": "m:1", "batch": "0"}, DATA, 422, "batch"),
    ({"models": "m:1"}, b"", 422, "no first line"),
    ({"models": "m:1"}, b"a,y\n", 422, "no rows"),
    ({"models": "m:1", "label": "a"}, b"a\n1\n", 422, "Nothing is left"),
    ({"models": "m:1"}, b"a,b\n1\n", 422, "line 2"),
    ({"models": "m:1"}, b"a,a\n1,2\n", 422, "must differ"),
    ({"models": "m:1"}, b"a\n\xff", 422, "UTF-8"),
    ({"models": "m:1"}, b'a\n"x', 422, "a quote is opened"),
    ({"models": "m:1", "label": "y"}, b"a,y\n1,1\n2,\n", 422, "Row 2 has no 'y'"),
)


async def test_what_cannot_be_compared_is_refused_with_what_to_change(tmp_path: Path) -> None:
    async with stage(tmp_path, versions=2) as (it, client):
        for params, data, status, word in BAD:
            answer = await client.post(COMPARE, params=params, content=data, headers=CSV)
            assert answer.status_code == status, (params, answer.text)
            assert word in answer.json()["detail"], (params, answer.text)
        form = {"Content-Type": "application/pdf"}
        answer = await client.post(COMPARE, params={"models": "m:1"}, content=b"x", headers=form)
        assert answer.status_code == 415
        named = {"models": "m:1", "form": "records"}
        kind = {"Content-Type": "application/json"}
        answer = await client.post(COMPARE, params=named, content=b"[[1, 2]]", headers=kind)
        assert "columns' names" in answer.json()["detail"]
        assert list((tmp_path / "data/comparisons").glob("*/*")) == []
        it.node.services.comparisons._settings = config.replace(
            config.Settings(), "comparisons", rows_max=39
        ).comparisons
        answer = await client.post(COMPARE, params={"models": "m:1"}, content=DATA, headers=CSV)
        assert (answer.status_code, answer.json()["code"]) == (413, "too-large")


async def test_json_and_ndjson_mean_the_same_as_csv(tmp_path: Path) -> None:
    rows = [{"a": n, "b": -n, "y": n % 2} for n in range(40)]
    lists = [list(row.values()) for row in rows]
    bodies = (
        ("application/json", rows, "y"),
        ("application/json", {"records": rows}, "y"),
        ("application/json", {"columns": ["a", "b", "y"], "data": lists}, "y"),
        ("application/json", {"rows": lists}, "3"),
        ("application/json", lists, "3"),
        ("application/x-ndjson", "\n".join(json.dumps(row) for row in lists), "3"),
        ("application/x-ndjson", "\n".join(json.dumps(row) for row in rows), "y"),
    )
    async with stage(tmp_path) as (_it, client):
        reports = []
        for kind, body, label in bodies:
            content = body if isinstance(body, str) else json.dumps(body)
            made = await client.post(
                COMPARE, params={"models": "m:1,m:3", "label": label}, content=content,
                headers={"Content-Type": kind},
            )  # fmt: skip
            report = (await ended(client, made.json()))["report"]
            reports.append([
                [one["metrics"] for one in report["targets"]], report["agreement"], report["rows"]
            ])  # fmt: skip
        assert all(one == reports[0] for one in reports)
        assert reports[0][0][1]["accuracy"] == 0.9


async def test_a_data_set_of_many_pieces_passes_by_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 100)
    async with stage(tmp_path) as (it, client):
        made = await asked(client, "m:5", label="y")
        assert made["rows"] == 40
        await reached(client, made, "processing")
        names = {path.name for path in (tmp_path / "data/comparisons").glob("*/*")}
        assert names == {f"{made['id']}.head", *pieces.names_of(made["id"], len(DATA))}
        assert len(names) == 1 + -(-len(DATA) // 100) > 4
        await client.post(made["urls"]["cancel"])
        found = await ended(client, await asked(client, "m:2", label="y", worst=3))
        assert found["report"]["targets"][0]["metrics"]["accuracy"] == 0.5
        assert [one["input"] for one in found["report"]["worst"]] == [
            {"a": n, "b": -n} for n in (1, 3, 5)
        ]
        left = {path.suffix for path in (tmp_path / "data/comparisons").glob("*/*")}
        assert left == {".head", ".report"}
        folder = next((tmp_path / "data/comparisons").iterdir())
        (folder / "cmp_0000000000000.data.0").write_bytes(b"left by a crash")
        await it.node.services.comparisons.recover()
        assert not list(folder.glob("*.data.*"))


async def test_a_parquet_file_is_a_data_set_like_any_other(tmp_path: Path) -> None:
    columns = {"a": "BIGINT", "b": "BIGINT", "y": "BIGINT"}

    async def rows() -> AsyncIterator[list[dict[str, Any]]]:
        yield [{"a": n, "b": -n, "y": n % 2} for n in range(40)]

    data = b"".join(
        [piece async for piece in tables.written(rows(), columns=columns, into="parquet")]
    )
    async with stage(tmp_path) as (_, client):
        for body, kind in ((data, tables.MEDIA_TYPES["parquet"]), (DATA, "text/csv")):
            answer = await client.post(
                COMPARE,
                params={"models": "m:1,m:2", "label": "y"},
                content=body,
                headers={"Content-Type": kind},
            )
            assert answer.status_code == 202, answer.text
            assert answer.json()["rows"] == 40
        torn = await client.post(
            COMPARE,
            params={"models": "m:1,m:2"},
            content=data[:-20],
            headers={"Content-Type": tables.MEDIA_TYPES["parquet"]},
        )
        assert (torn.status_code, torn.json()["code"]) == (422, "input-invalid")
