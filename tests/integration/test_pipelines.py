"""Pipelines: registered when their steps are there, run step by step, each on record."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from inside import Inside, inside
from running import tar_of_files

from appliance import steps
from appliance.errors import ManifestInvalid, StepFailed

TAR = {"Content-Type": "application/x-tar"}
JSON = {"Content-Type": "application/json"}
JOIN = """
steps = [
    { model = "one", version = 1 },
    { model = "two", alias = "live", name = "b", take = "input/rows", as = "x" },
    { model = "one", name = "both", take = { left = "one/rows/0", right = "b/x" } },
]
answer = { joined = "both", raw = "input/rows" }
"""


@asynccontextmanager
async def stage(folder: Path) -> AsyncIterator[tuple[Inside, Any]]:
    async with inside(folder, sandbox={"instances_max": 8}) as it:
        await it.tenant("acme")
        await it.version("acme", "one")
        await it.version("acme", "two")
        async with it.client(await it.key("acme")) as client:
            yield it, client


async def push(client: Any, name: str, text: str) -> Any:
    tar = tar_of_files({"pipeline.toml": text.encode()})
    path = f"/api/v1/models/acme/{name}/versions"
    return await client.post(path, content=tar, headers=TAR)


async def call(client: Any, name: str, body: bytes, **headers: str) -> Any:
    path = f"/api/v1/models/acme/{name}/invoke"
    return await client.post(path, content=body, headers={**JSON, **headers})


async def test_steps_fan_out_and_join_and_each_is_a_call_on_record(tmp_path: Path) -> None:
    async with stage(tmp_path) as (_it, client):
        made = await push(client, "chain", JOIN)
        assert made.status_code == 201, made.text
        shown = made.json()
        assert (shown["runtime"], shown["entry"]) == ("pipeline", "")
        assert [one["target"] for one in shown["steps"]] == ["one:1", "two@live", "one"]
        answer = await call(client, "chain", b'{"rows":[1,2]}')
        assert answer.json() == {"joined": {"left": 1, "right": [1, 2]}, "raw": [1, 2]}
        assert answer.headers["model-steps"] == "one=one:1, b=two:1, both=one:1"
        tree = (await client.get(f"/api/v1/audit/calls/{answer.headers['request-id']}")).json()
        assert [one["depth"] for one in tree["calls"]] == [0, 1, 1, 1]
        assert tree["calls"][0]["model"] == "chain"
        assert sorted(one["model"] for one in tree["calls"][1:]) == ["one", "one", "two"]
        assert {one["parent"] for one in tree["calls"][1:]} == {tree["root"]}


async def test_a_body_that_nothing_is_taken_of_passes_through_untouched(tmp_path: Path) -> None:
    async with stage(tmp_path) as (_it, client):
        await push(client, "chain", 'steps = [{ model = "one" }, { model = "two" }]')
        answer = await call(client, "chain", b"\xff\x00", **{"Content-Type": "image/png"})
        assert (answer.content, answer.headers["content-type"]) == (b"\xff\x00", "image/png")


async def test_a_steps_problem_names_the_step(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client):
        await push(client, "chain", 'steps = [{ model = "one" }, { model = "two", name = "b" }]')
        failed = await call(client, "chain", b"raise", **{"Content-Type": "text/plain"})
        assert (failed.status_code, failed.json()["code"]) == (502, "model-raised")
        assert failed.json()["step"] == "one"
        assert failed.json()["detail"].startswith("Step 'one' (one): ")
        taking = 'steps = [{ model = "one" }, { model = "two", name = "b", take = "one/y/3" }]'
        await push(client, "take", taking)
        for body in (b'{"y":[1]}', b"[]", b"no json"):
            failed = (await call(client, "take", body)).json()
            assert (failed["code"], failed["step"]) == ("step-failed", "b"), failed
        narrow = await it.key("acme", "caller", scopes=["model:invoke:chain", "model:invoke:one"])
        async with it.client(narrow) as other:
            failed = (await call(other, "chain", b"1")).json()
            assert (failed["code"], failed["step"], failed["cause"]) == (
                "step-failed",
                "b",
                "forbidden",
            )


async def test_a_pipeline_is_a_version_like_others(tmp_path: Path) -> None:
    async with stage(tmp_path) as (_it, client):
        await push(client, "chain", 'steps = [{ model = "one" }]')
        await push(client, "chain", 'steps = [{ model = "two" }]')
        job = await call(client, "chain", b"[1]", Prefer="respond-async")
        job = job.json()
        for _ in range(10):
            job = (await client.get(job["urls"]["get"], params={"wait_s": 5})).json()
            if job["status"] == "succeeded":
                break
        assert job["output"] == [1]
        path = "/api/v1/models/acme/chain/versions/2"
        assert (await client.post(path + "/invoke", content=b"[2]", headers=JSON)).json() == [2]
        refused = await client.put(path + "/reservation", json={"warm": 1})
        assert refused.json()["code"] == "reservation-refused"
        outer = await push(client, "outer", 'steps = [{ model = "chain", version = 2 }]')
        assert outer.status_code == 201
        assert (await call(client, "outer", b"[3]")).json() == [3]


async def test_steps_that_are_not_there_or_lead_back_are_refused(tmp_path: Path) -> None:
    async with stage(tmp_path) as (_it, client):
        await push(client, "inner", 'steps = [{ model = "one" }]')
        await push(client, "mid", 'steps = [{ model = "inner", version = 1 }]')
        for name, model in (
            ("chain", 'model = "nobody"'),
            ("chain", 'model = "one", version = 9'),
            ("chain", 'model = "one", alias = "none"'),
            ("chain", 'model = "chain"'),
            ("one", 'model = "mid"'),
        ):
            made = await push(client, name, f"steps = [{{ {model} }}]")
            assert (made.status_code, made.json()["code"]) == (422, "manifest-invalid"), made.text
            assert "pipeline.toml" in made.json()["detail"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "steps"),
        ("steps = []", "steps"),
        ("steps = [{}]", "model"),
        ('steps = [{ model = "a", extra = 1 }]', "extra"),
        ('steps = [{ model = "a" }, { model = "a" }]', "two things are called 'a'"),
        ('steps = [{ model = "input" }]', "'input' stands for the caller's input"),
        ('steps = [{ model = "a", take = "b" }]', "takes 'b'"),
        ('steps = [{ model = "a", take = "input/" }]', "takes 'input/'"),
        ('steps = [{ model = "a", version = 1, alias = "x" }]', "one of them decides"),
        ('steps = [{ model = "a", take = { x = "input" }, as = "y" }]', "one reference"),
        ('steps = [{ model = "../a" }]', "model"),
        ("steps = [", "TOML"),
        ("x = nan", "nan"),
    ],
)
def test_a_wrong_file_is_told_what_is_wrong(text: str, reason: str) -> None:
    with pytest.raises(ManifestInvalid, match=reason) as caught:
        steps.parse({"pipeline.toml": text.encode()})
    assert caught.value.detail.startswith("pipeline.toml")


def test_members_are_looked_up_and_nothing_is_evaluated() -> None:
    known = {"input": steps.Piece(content_type="application/json", body=b'{"a":{"0":[7]},"~":1}')}
    assert steps.body_of("s", {"": "input/a/0/0"}, known).body == b"7"
    assert steps.body_of("s", {"x": "input/~"}, known).body == b'{"x":1}'
    for reference in ("input/a/1", "input/a/0/-1", "input/a/0/1", "input/__class__"):
        with pytest.raises(StepFailed):
            steps.body_of("s", {"": reference}, known)
    deep = {"input": steps.Piece(content_type="application/json", body=b"[" * 100_000)}
    with pytest.raises(StepFailed):
        steps.body_of("s", {"": "input/0"}, deep)
