"""What every language's runner does, the same for all: one model each, told what to do by text."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from boxes import Box, box, spec_of
from languages import SPOKEN, box_of, installed, with_program

from appliance.errors import (
    BuildFailed,
    InvokeTimeout,
    LoadFailed,
    ModelRaised,
    OutOfMemory,
    ReplyTooLarge,
    RunnerCrashed,
)
from appliance.sandbox.podman import PodmanExecutor

pytestmark = [pytest.mark.podman, pytest.mark.asyncio(loop_scope="session")]
LANGUAGES = installed()


@pytest.fixture(params=LANGUAGES)
def language(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def told(one: Box, text: str, **more: Any) -> str:
    return (await one.ask(text.encode(), "text/plain", **more))[1].decode()


VALUES = {
    "object": {"a": [1, 2.5, None, True], "b": {"c": ""}, "d": [], "e": {}},
    "unicode": ["Ünïcødé \U0001f600 \u2028", '\\ " \t'],
    "numbers": [0, -1, 1e-300, 1.7976931348623157e308, 0.1, 2**53, -0.5],
    "deep": json.loads("[" * 200 + "1" + "]" * 200),
    "null": [None],
}


async def test_values_come_back_as_they_went(
    podman_executor: PodmanExecutor, language: str
) -> None:
    async with box_of(podman_executor, language) as one:
        for value in VALUES.values():
            for media in ("application/json", "application/json; charset=utf-8"):
                kind, body = await one.ask(json.dumps(value).encode(), media)
                assert kind == "application/json"
                assert json.loads(body) == value
        text = "Ünïcødé\n\U0001f600"
        kind, body = await one.ask(text.encode(), "text/csv; charset=utf-8")
        assert kind.startswith("text/plain")
        assert body.decode() == text
        data = bytes(range(256)) * 100
        assert await one.ask(data, "image/png") == ("application/octet-stream", data[::-1])
        assert await one.ask(b"", "a/b") == ("application/octet-stream", b"")


async def test_ten_megabytes_go_both_ways(podman_executor: PodmanExecutor, language: str) -> None:
    data = bytes(range(250)) * 42_000
    async with box_of(podman_executor, language) as one:
        assert (await one.ask(data, "application/octet-stream"))[1] == data[::-1]


async def test_many_calls_one_after_another(podman_executor: PodmanExecutor, language: str) -> None:
    async with box_of(podman_executor, language) as one:
        for number in range(200):
            assert json.loads((await one.ask(b"[%d]" % number))[1]) == [number]
        assert one.sandbox.info().calls == 200


async def test_nan_is_refused_in_and_null_out(
    podman_executor: PodmanExecutor, language: str
) -> None:
    if not SPOKEN[language].keeps_json:
        pytest.skip("the model gets the body's bytes and writes its own JSON")
    async with box_of(podman_executor, language) as one:
        for body in (b"[NaN]", b"{", b"", b"\xff"):
            with pytest.raises(ModelRaised, match="not valid application/json"):
                await one.ask(body)
        assert json.loads(await told(one, "nan")) == [None, {"x": None}, 1.5]
        with pytest.raises(ModelRaised, match="The answer cannot be sent"):
            await told(one, "unsendable")
        assert await told(one, "still here") == "still here"


async def test_an_exception_is_told_by_its_last_line(
    podman_executor: PodmanExecutor, language: str
) -> None:
    async with box_of(podman_executor, language) as one:
        assert await told(one, "print before") == "printed"
        with pytest.raises(ModelRaised) as caught:
            await told(one, "raise")
        assert caught.value.detail.endswith(SPOKEN[language].error)
        assert "before" in caught.value.stderr
        assert await told(one, "still here") == "still here"


@pytest.mark.parametrize("code", [0, 3])
async def test_an_end_of_the_process_tells_its_code(
    podman_executor: PodmanExecutor, language: str, code: int
) -> None:
    async with box_of(podman_executor, language) as one:
        await told(one, "print last words")
        with pytest.raises(RunnerCrashed) as caught:
            await told(one, f"exit {code}")
        assert caught.value.extensions["exit_code"] == code
        assert "last words" in caught.value.stderr
        assert not one.sandbox.alive


async def test_an_endless_loop_ends_at_the_deadline(
    podman_executor: PodmanExecutor, language: str
) -> None:
    async with box_of(podman_executor, language) as one:
        with pytest.raises(InvokeTimeout):
            await told(one, "spin", timeout_ms=500)
        assert not one.sandbox.alive


async def test_too_much_memory_is_told_as_such(
    podman_executor: PodmanExecutor, language: str
) -> None:
    async with box_of(podman_executor, language) as one:
        with pytest.raises(OutOfMemory):
            await told(one, "eat")
        assert not one.sandbox.alive


async def test_noise_on_stdout_does_not_disturb_answers(
    podman_executor: PodmanExecutor, language: str
) -> None:
    async with box_of(podman_executor, language) as one:
        for _ in range(3):
            assert await told(one, "noise") == "done"
        assert len(one.sandbox.stderr_tail()) <= 201


async def test_an_answer_over_its_cap_is_cut(
    podman_executor: PodmanExecutor, language: str
) -> None:
    async with box_of(podman_executor, language) as one:
        with pytest.raises(ReplyTooLarge):
            await one.ask(b"x" * 1001, "a/b", reply_bytes_max=1000)


async def test_an_entry_that_is_not_there_is_named(
    podman_executor: PodmanExecutor, language: str
) -> None:
    spoken = SPOKEN[language]
    entry = spoken.entry.rpartition(":")[0] + ":Nobody"

    async def register(files: dict[str, bytes]) -> None:
        files = await with_program(podman_executor, language, entry, files)
        async with box(podman_executor, spec_of(runtime=language, entry=entry, files=files), files):
            pass

    with pytest.raises((LoadFailed, BuildFailed), match="Nobody"):
        await register({spoken.file: b"\n"})


async def test_orphans_are_reaped_and_a_killed_runner_is_a_crash(
    podman_executor: PodmanExecutor, language: str
) -> None:
    async with box_of(podman_executor, language) as one:
        for _ in range(5):
            await told(one, "run (sleep 0.05 >/dev/null 2>&1 &) ; true")
        await asyncio.sleep(0.3)
        states = await told(one, "run cat /proc/[0-9]*/stat")
        assert " Z " not in states
        with pytest.raises(RunnerCrashed) as caught:
            await told(one, "run kill -9 $PPID; sleep 1")
        assert caught.value.extensions["exit_code"] in (137, 143)
