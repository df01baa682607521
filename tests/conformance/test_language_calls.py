"""What a model of every language gets when it calls another one, the same for all."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from boxes import Box
from languages import CALLERS, box_of, installed
from other_models import Other

from appliance.errors import LoadFailed, ModelRaised
from appliance.sandbox.podman import PodmanExecutor
from appliance.sandbox.runtimes import RUNTIMES

pytestmark = [pytest.mark.podman, pytest.mark.asyncio(loop_scope="session")]
LANGUAGES = [name for name in installed() if name in CALLERS]
WITH_THREADS = [name for name in LANGUAGES if name != "r4.2"]
DEADLINE_S = 60


@pytest.fixture(params=LANGUAGES)
def language(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=WITH_THREADS)
def threaded(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def told(one: Box, text: str, other: Other) -> Any:
    """What the model answered: text or bytes as they are, JSON read."""
    kind, body = await one.ask(text.encode(), "text/plain", calls=other)
    if kind == "application/json":
        return json.loads(body)
    return body.decode() if kind.startswith("text/") else body


async def test_every_language_that_calls_is_tested_here() -> None:
    able = {name for name, one in RUNTIMES.items() if one.makes_calls}
    assert able - {"python3.11-torch1.13"} == set(CALLERS)


async def test_a_model_calls_others_and_what_they_answer_is_of_its_language(
    podman_executor: PodmanExecutor, language: str
) -> None:
    async with box_of(podman_executor, language, calls=True) as one:
        other = Other()
        assert "while a request is answered" in await told(one, "early", other)
        assert other.asked == []
        assert await told(one, "text Ünï 1", other) == "Ünï 1"
        assert await told(one, "values", other) == {"a": [1, 2.5, None, True], "b": {"c": "ü"}}
        assert await told(one, "bytes", other) == bytes(range(256))
        assert await told(one, 'typed {"x": [1]}', other) == {"x": [1]}
        assert [(asked.target, asked.content_type) for asked in other.asked] == [
            ("echo:3", "text/plain; charset=utf-8"),
            ("echo", "application/json"),
            ("echo@live", "application/octet-stream"),
            ("echo", "application/json"),
        ]
        other.frames_max = 300
        for number in range(200):
            assert await told(one, f"text {number}", other) == str(number)


async def test_what_is_refused_is_an_exception_with_its_code(
    podman_executor: PodmanExecutor, language: str
) -> None:
    async with box_of(podman_executor, language, calls=True) as one:
        other = Other()
        assert await told(one, "refused no", other) == "forbidden 403 you may not"
        assert (await told(one, "refused crash", other)).startswith("internal 500 ")
        assert (await told(one, "large 1001", other)).startswith("too-large 413 ")
        assert await told(one, "large 1000", other) == "x" * 1000
        with pytest.raises(ModelRaised, match="you may not"):
            await told(one, "through no", other)
        other.room = 0
        assert (await told(one, "refused echo", other)).startswith("capacity-exhausted ")
        assert await told(one, "early", other)


async def test_calls_at_once_are_as_many_as_may_be_and_each_gets_its_own_answer(
    podman_executor: PodmanExecutor, threaded: str
) -> None:
    async with box_of(podman_executor, threaded, calls=True) as one:
        other = Other()
        other.frames_max = 100
        assert await told(one, "many 24", other) == list(range(24))
        assert other.most <= other.parallel_max


async def test_a_call_left_open_ends_with_its_request_and_the_next_is_not_confused(
    podman_executor: PodmanExecutor, threaded: str
) -> None:
    async with box_of(podman_executor, threaded, calls=True) as one:
        other = Other()
        assert await told(one, "leave", other) == "done"
        async with asyncio.timeout(DEADLINE_S):
            while other.open:
                await asyncio.sleep(0.02)
        assert other.cancelled >= 1
        assert await told(one, "left", other) == "The request was answered."
        assert await told(one, "text next", other) == "next"


async def test_a_model_that_declares_nothing_is_told_that_it_has_to(
    podman_executor: PodmanExecutor, language: str
) -> None:
    with pytest.raises((LoadFailed, ModelRaised), match="declare calls"):
        async with box_of(podman_executor, language, calls=False) as one:
            await one.ask(b"through echo", "text/plain")


@pytest.mark.parametrize("interrupting", ["ruby3.1", "java17"])
async def test_a_call_that_the_model_gives_up_leaves_the_connection_whole(
    podman_executor: PodmanExecutor, interrupting: str
) -> None:
    if interrupting not in LANGUAGES:
        pytest.skip(f"{interrupting} is not installed")
    async with box_of(podman_executor, interrupting, calls=True) as one:
        other = Other()
        for number in range(1, 4):
            assert await told(one, "impatient", other) == "went on"
            async with asyncio.timeout(DEADLINE_S):
                while other.cancelled < number:
                    await asyncio.sleep(0.02)
