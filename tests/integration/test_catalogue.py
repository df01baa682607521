"""The catalogue through the API: what is found, by whom, and what registration says is alike."""

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
NDJSON = {"accept": "application/x-ndjson"}
CHURN = """description = "Who leaves within 90 days"
[tags]
team = "retention"
[lineage]
data = ["sha256:77d2e4c09a contracts"]
code = "git 1a2b3c4d5e6f"
run = "nightly 17"
[input_schema.properties]
age = { type = "integer" }
income = { type = "number" }
[output_schema.properties]
score = { type = "number" }
"""


@pytest.fixture
async def it(tmp_path: Path) -> AsyncIterator[Inside]:
    async with inside(tmp_path) as found:
        echo_runtime(found.node.data_dir)
        await found.tenant("acme")
        await found.tenant("beta")
        yield found


async def push(
    client: Any, target: str, told: str = "", *, weights: bytes = b"", **headers: str
) -> Any:
    files = {**ECHO_MODEL, "appliance.toml": ECHO_MODEL["appliance.toml"] + told.encode()}
    if weights:
        files["weights.bin"] = weights
    tenant, _, model = target.partition("/")
    answer = await client.post(
        f"/api/v1/models/{tenant}/{model}/versions",
        content=tar_of_files(files),
        headers=TAR | headers,
    )
    assert answer.status_code in (200, 201), answer.text
    return answer


async def find(client: Any, tenant: str = "", **query: Any) -> Any:
    path = f"/api/v1/catalogue/{tenant}" if tenant else "/api/v1/catalogue"
    answer = await client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def names(page: Any) -> list[str]:
    return [f"{item['tenant']}/{item['model']}@{item['version']}" for item in page["items"]]


async def test_each_sees_the_models_it_may_and_a_page_at_a_time(it: Inside) -> None:
    acme, beta = await it.key("acme", name="amy"), await it.key("beta")
    async with it.client(acme) as one, it.client(beta) as other, it.client(admin=True) as admin:
        await push(one, "acme/churn", CHURN)
        await push(one, "acme/prices")
        await push(other, "beta/churn", CHURN, weights=b"other")
        assert names(await find(one, text="churn")) == ["acme/churn@1"]
        assert names(await find(one, "acme")) == ["acme/churn@1", "acme/prices@1"]
        assert names(await find(admin, text="churn")) == ["acme/churn@1", "beta/churn@1"]
        assert names(await find(admin, "beta")) == ["beta/churn@1"]
        assert (await other.get("/api/v1/catalogue/acme")).status_code == 404
        async with it.client(await it.key("", "auditor")) as auditor:
            assert len(names(await find(auditor))) == 3
        async with it.client(await it.key("acme", "caller")) as caller:
            assert (await caller.get("/api/v1/catalogue")).status_code == 403
        async with it.client(await it.key("acme", scopes=["model:read:prices"])) as narrow:
            assert (await narrow.get("/api/v1/catalogue/acme")).status_code == 403
        first = await find(admin, limit=2)
        assert (first["total"], first["next_offset"]) == (3, 2)
        rest = await find(admin, limit=2, offset=2)
        assert (names(first) + names(rest), rest["next_offset"]) == (names(await find(admin)), None)


async def test_it_is_found_by_columns_tags_owner_and_lineage_with_the_reasons(it: Inside) -> None:
    secret = await it.key("acme")
    async with it.client(secret) as client:
        await push(client, "acme/churn", CHURN)
        await push(client, "acme/prices")
        for query, field, marked in (
            ({"takes": "age,Income"}, "takes", ["age", "income"]),
            ({"gives": '["score"]'}, "gives", ["score"]),
            ({"tag": "team=retention"}, "tag", ["team=retention"]),
            ({"text": "leaves DAYS"}, "text", ["leaves", "days"]),
            ({"data": "sha256:77d2e4c"}, "data", ["sha256:77d2e4c09a"]),
            ({"code": "1a2b3c4d5e6f70718293"}, "code", ["1a2b3c4d5e6f"]),
            ({"run": "nightly 17"}, "run", ["nightly", "17"]),
        ):
            page = await find(client, **query)
            assert names(page) == ["acme/churn@1"], query
            reason = next(r for r in page["items"][0]["reasons"] if r["field"] == field)
            assert [reason["text"][a:b] for a, b in reason["spans"]] == marked
        mine = await find(client, owner=secret[4:13], runtime="python", text="prices")
        assert names(mine) == ["acme/prices@1"]
        assert mine["items"][0]["owner"]
        assert names(await find(client, owner=mine["items"][0]["owner"].upper())) == [
            "acme/churn@1", "acme/prices@1",
        ]  # fmt: skip
        for nothing in ({"takes": "age,height"}, {"run": "nightly 1"}, {"owner": "nobody"}):
            assert names(await find(client, **nothing)) == []
        assert (await client.delete("/api/v1/models/acme/churn/versions/1")).status_code == 200
        assert names(await find(client, takes="age")) == []
        gone = await find(client, takes="age", retired="true")
        assert gone["items"][0]["state"] == "retired"
        for wrong in ("takes=%5B1%5D", "limit=0", "retired=yes", f"text={'x' * 1001}"):
            assert (await client.get(f"/api/v1/catalogue?{wrong}")).status_code == 422, wrong


async def test_registration_says_what_is_there_already_and_show_keeps_it(it: Inside) -> None:
    async with it.client(await it.key("acme")) as client:
        first = (await push(client, "acme/churn", CHURN, weights=b"w" * 500)).json()
        assert first["alike"] == []
        same = (
            await push(client, "acme/copy", 'description = "mine"\n', weights=b"w" * 500)
        ).json()
        assert same["alike"] == [
            {"model": "churn", "version": 1, "kind": "files", "share": 1.0,
             "text": "churn@1 has the same files"}
        ]  # fmt: skip
        told = await push(client, "acme/again", CHURN, weights=b"v" * 500, **NDJSON)
        lines = [json.loads(line) for line in told.text.splitlines()]
        said = [line["detail"] for line in lines if line.get("step") == "compare"]
        assert said == ["churn@1 has the same columns"]
        fractions = [line["fraction"] for line in lines[:-1]]
        assert fractions == sorted(fractions)
        shown = (await client.get("/api/v1/models/acme/again/versions/1")).json()
        assert shown["alike"] == lines[-1]["version"]["alike"]
        assert [one["kind"] for one in shown["alike"]] == ["columns"]


async def test_what_is_alike_is_named_only_to_those_who_may_see_it(it: Inside) -> None:
    async with it.client(await it.key("acme")) as client, it.client(await it.key("beta")) as other:
        await push(client, "acme/secret-plan", CHURN, weights=b"w" * 500)
        scopes = ["model:register:mine", "model:read:mine"]
        async with it.client(await it.key("acme", scopes=scopes)) as narrow:
            told = await push(narrow, "acme/mine", CHURN, weights=b"w" * 500, **NDJSON)
            assert "secret-plan" not in told.text
            assert "compare" not in told.text
            shown = await narrow.get("/api/v1/models/acme/mine/versions/1")
            assert shown.json()["alike"] == []
        seen = (await client.get("/api/v1/models/acme/mine/versions/1")).json()["alike"]
        assert {one["model"] for one in seen} == {"secret-plan"}
        foreign = await push(other, "beta/mine", CHURN, weights=b"w" * 500, **NDJSON)
        assert "compare" not in foreign.text
        assert "secret-plan" not in foreign.text
