"""Bodies are held to a version's schema on every way a call is made, before its model runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from inside import Inside, inside

MODEL = "/api/v1/models/acme/m"
SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0}},
    "required": ["age"],
}


@pytest.fixture
async def it(tmp_path: Path) -> AsyncIterator[Inside]:
    async with inside(tmp_path) as found:
        await found.tenant("acme")
        await found.version("acme", "m", input_schema=SCHEMA, check_input=True)
        yield found


async def test_a_wrong_field_is_refused_before_the_model_runs(it: Inside) -> None:
    async with it.client(await it.key("acme")) as client:
        for path in ("/invoke", "/versions/1/invoke", "/aliases/live/invoke"):
            answer = await client.post(MODEL + path, json={"age": "old"})
            assert (answer.status_code, answer.json()["code"]) == (422, "input-invalid")
            assert answer.json()["errors"] == [
                {"pointer": "/age", "detail": '"old" is not of type "integer"'}
            ]
        good = await client.post(MODEL + "/invoke", json={"age": 7})
        assert (good.status_code, good.json()) == (200, {"age": 7})
        entries = (await client.get("/api/v1/audit?kind=call.intent")).json()["entries"]
    assert len(entries) == 1, "nothing was executed for what was refused"


async def test_a_job_with_a_wrong_body_is_not_taken_on(it: Inside) -> None:
    async with it.client(await it.key("acme")) as client:
        headers = {"Prefer": "respond-async"}
        answer = await client.post(MODEL + "/invoke", json={}, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (422, "input-invalid")
        listed: dict[str, Any] = (await client.get("/api/v1/jobs/acme")).json()
    assert listed["items"] == []


async def test_a_version_shows_whether_it_checks(it: Inside) -> None:
    async with it.client(await it.key("acme")) as client:
        shown = (await client.get(MODEL + "/versions/1")).json()
    assert (shown["input_schema"], shown["check_input"]) == (SCHEMA, True)
