"""Lineage through the API: edges are checked when a version is registered, and walked."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from inside import Inside, inside
from running import ECHO_MODEL, tar_of_files
from tiny_runtime import echo_runtime

TAR = {"content-type": "application/x-tar"}


@pytest.fixture
async def it(tmp_path: Path) -> AsyncIterator[Inside]:
    async with inside(tmp_path) as found:
        echo_runtime(found.node.data_dir)
        await found.tenant("acme")
        yield found


async def push(client: Any, model: str, told: str = "", **headers: str) -> Any:
    manifest = ECHO_MODEL["appliance.toml"] + told.encode()
    return await client.post(
        f"/api/v1/models/acme/{model}/versions",
        content=tar_of_files({**ECHO_MODEL, "appliance.toml": manifest}),
        headers=TAR | headers,
    )


async def lineage(client: Any, model: str, version: int, query: str = "") -> Any:
    answer = await client.get(f"/api/v1/models/acme/{model}/versions/{version}/lineage{query}")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def family(client: Any) -> None:
    """base@1 <- churn@1 <- churn@2, and base@1 <- twin@1."""
    for model, told in (
        ("base", 'description = "common encoder"\n'),
        ("churn", '[lineage]\nparents = ["base@1", "bert of elsewhere"]\ndata = ["sha256:ab"]\n'),
        ("churn", '[lineage]\nparents = ["acme/churn:1"]\ncode = "1a2b3c4"\nrun = "n 7"\n'),
        ("twin", '[lineage]\nparents = ["base:1"]\n'),
    ):
        made = await push(client, model, told)
        assert made.status_code == 201, made.text


async def test_a_version_tells_its_ancestors_and_descendants(it: Inside) -> None:
    async with it.client(await it.key("acme")) as client:
        await family(client)
        shown = (await client.get("/api/v1/models/acme/churn/versions/2")).json()
        assert shown["parents"] == [{"model": "churn", "version": 1}]
        assert shown["lineage"]["parents"] == ["acme/churn:1"]
        found = await lineage(client, "churn", 2)
        assert [(n["id"], n["distance"]) for n in found["nodes"]] == [
            ("churn@2", 0), ("churn@1", -1), ("base@1", -2),
        ]  # fmt: skip
        assert found["edges"] == [
            {"child": "churn@2", "parent": "churn@1", "kind": "made", "call": ""},
            {"child": "churn@1", "parent": "base@1", "kind": "made", "call": ""},
        ]
        assert (found["nodes"][0]["code"], found["nodes"][0]["run"]) == ("1a2b3c4", "n 7")
        assert found["nodes"][1]["outside"] == ["bert of elsewhere"]
        assert found["nodes"][1]["data"] == ["sha256:ab"]
        ahead = await lineage(client, "base", 1, "?direction=descendants")
        assert {n["id"] for n in ahead["nodes"]} == {"base@1", "churn@1", "twin@1", "churn@2"}
        near = await lineage(client, "base", 1, "?depth=1")
        assert (len(near["nodes"]), near["left_off"]) == (3, 1)
        for query in ("?direction=up", "?depth=-1", "?depth=10001", "?limit=0"):
            path = f"/api/v1/models/acme/base/versions/1/lineage{query}"
            assert (await client.get(path)).status_code == 422
        assert (await client.get("/api/v1/models/acme/base/versions/9/lineage")).status_code == 404
        assert (await client.delete("/api/v1/models/acme/churn")).status_code == 204
        await push(client, "churn")
        ahead = await lineage(client, "base", 1, "?direction=descendants")
        assert {n["id"] for n in ahead["nodes"]} == {"base@1", "twin@1"}


async def test_whom_a_version_calls_and_who_calls_it_are_edges_too(it: Inside) -> None:
    async with it.client(await it.key("acme")) as client:
        for _ in range(2):
            await it.version("acme", "base")
        await it.version("acme", "caller", calls=("base@live", "gone"))
        text = b'steps = [{ model = "base", version = 2 }, { model = "caller" }]'
        made = await client.post(
            "/api/v1/models/acme/chain/versions",
            content=tar_of_files({"pipeline.toml": text}),
            headers={"Content-Type": "application/x-tar"},
        )
        assert made.status_code == 201, made.text
        found = await lineage(client, "chain", 1)
        assert [(n["id"], n["distance"]) for n in found["nodes"]] == [
            ("chain@1", 0), ("base@2", -1), ("caller@1", -1), ("base@1", -2),
        ]  # fmt: skip
        assert [tuple(edge.values()) for edge in found["edges"]] == [
            ("chain@1", "base@2", "calls", "base:2"),
            ("chain@1", "caller@1", "calls", "caller"),
            ("caller@1", "base@1", "calls", "base@live"),
        ]
        assert found["nodes"][2]["calls"] == ["base@live", "gone"]
        callers = await lineage(client, "base", 1)
        assert [(n["id"], n["distance"]) for n in callers["nodes"]] == [
            ("base@1", 0), ("caller@1", 1), ("chain@1", 2),
        ]  # fmt: skip
        await client.put("/api/v1/models/acme/base/aliases/live", json={"version": 2})
        assert len((await lineage(client, "base", 1))["nodes"]) == 1, "live is another one now"
        moved = await lineage(client, "base", 2)
        assert {n["id"] for n in moved["nodes"]} == {"base@2", "caller@1", "chain@1"}
        await it.version("acme", "loop", calls=("loop",))
        ring = await lineage(client, "loop", 1)
        assert [tuple(edge.values()) for edge in ring["edges"]] == [
            ("loop@1", "loop@1", "calls", "loop")
        ]


async def test_an_edge_to_a_removed_model_does_not_become_one_to_its_successor(it: Inside) -> None:
    async with it.client(await it.key("acme")) as client:
        await family(client)
        await client.delete("/api/v1/models/acme/base")
        await push(client, "base")
        found = await lineage(client, "twin", 1)
        old = found["nodes"][1]
        assert (old["model"], old["version"], old["state"]) == ("base", 1, "removed")
        assert old["id"] != "base@1"
        assert await lineage(client, "base", 1) | {"nodes": []} == {
            "tenant": "acme", "model": "base", "version": 1, "direction": "both", "depth": 10,
            "nodes": [], "edges": [], "hidden": 0, "left_off": 0,
        }  # fmt: skip


async def test_a_wrong_parent_is_refused_before_anything_is_built_or_kept(it: Inside) -> None:
    async with it.client(await it.key("acme")) as client:
        await push(client, "base")
        refused = await push(client, "m", '[lineage]\nparents = ["base@2"]\n')
        problem = refused.json()
        assert (refused.status_code, problem["code"]) == (422, "manifest-invalid")
        assert "appliance.toml:4: lineage.parents: 'base@2'" in problem["detail"]
        assert "its versions are 1 to 1" in problem["detail"]
        told = await push(
            client, "m", '[lineage]\nparents = ["x@1"]\n', accept="application/x-ndjson"
        )
        lines = [json.loads(line) for line in told.text.splitlines()]
        assert [line.get("step") for line in lines] == ["receive", None]
        assert (await client.get("/api/v1/models/acme/m")).status_code == 404


async def test_a_narrowed_key_is_told_of_no_other_model(it: Inside) -> None:
    async with it.client(await it.key("acme")) as client:
        await family(client)
    narrow = await it.key("acme", scopes=["model:read:churn", "model:register:churn"])
    async with it.client(narrow) as client:
        found = await lineage(client, "churn", 2)
        assert [n["id"] for n in found["nodes"]] == ["churn@2", "churn@1"]
        assert found["hidden"] == 1
        shown = (await client.get("/api/v1/models/acme/churn/versions/1")).json()
        assert shown["parents"] == []
        answers = [
            (await push(client, "churn", f'[lineage]\nparents = ["{name}@1"]\n')).json()["detail"]
            for name in ("base", "none")
        ]
        assert answers[0].replace("base", "none") == answers[1]
        own = await push(client, "churn", '[lineage]\nparents = ["churn@2"]\n')
        assert own.status_code == 201, own.text


async def test_edges_are_there_after_a_restart_from_the_ledger_alone(tmp_path: Path) -> None:
    async with inside(tmp_path) as it:
        echo_runtime(it.node.data_dir)
        await it.tenant("acme")
        async with it.client(await it.key("acme")) as client:
            await family(client)
        before = it.store.registry.snapshot
        model = before.model(before.tenant("acme").id, "churn")
        edges = [v.parents for v in before.versions(model.id)]
    (tmp_path / "data" / "registry.snap").unlink()
    async with inside(tmp_path, initialise=False) as it:
        await it.node.unseal(key_file=tmp_path / "unseal.key")
        after = it.store.registry.snapshot
        assert [v.parents for v in after.versions(model.id)] == edges
        assert [len(parents) for parents in edges] == [1, 1]
