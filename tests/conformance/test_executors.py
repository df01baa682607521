"""What every executor must do. A new engine adds one line to ``ENGINES``."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from boxes import Box, box, pieces, spec_of, tar_of
from fake_executor import FakeExecutor

from appliance.errors import (
    InvokeTimeout,
    LoadFailed,
    LoadTimeout,
    ModelRaised,
    OutOfMemory,
    ReplyTooLarge,
    RunnerCrashed,
    RunnerProtocol,
)
from appliance.sandbox.executor import Executor

ENGINES = [
    pytest.param("fake"),
    pytest.param("podman", marks=pytest.mark.podman),
]
pytestmark = pytest.mark.asyncio(loop_scope="session")

COMMANDS = {
    "model.py": b"""
import os, sys, time

class Model:
    def __init__(self, path):
        pass
    def predict(self, inputs):
        if not isinstance(inputs, dict) or "do" not in inputs:
            return inputs
        what = inputs["do"]
        if what == "raise":
            raise ValueError("as asked")
        if what == "print":
            print(inputs["text"])
        if what == "sleep":
            time.sleep(inputs["s"])
        while what == "spin":
            pass
        if what == "exit":
            os._exit(inputs["code"])
        if what == "eat":
            held = [bytearray(b"x") * (1 << 20) for _ in range(1 << 16)]
        if what == "garbage":
            for fd in range(3, 20):
                try:
                    os.write(fd, b"\\xff" * 64)
                except OSError:
                    pass
        if what == "large":
            return b"x" * inputs["bytes"]
"""
}


@pytest.fixture(params=ENGINES)
def executor(request: pytest.FixtureRequest) -> Executor:
    if request.param == "fake":
        return FakeExecutor()
    engine: Executor = request.getfixturevalue("podman_executor")
    return engine


async def do(one: Box, what: str, **more: Any) -> bytes:
    options = {k: more.pop(k) for k in ("timeout_ms", "reply_bytes_max") if k in more}
    return (await one.ask(json.dumps({"do": what, **more}).encode(), **options))[1]


async def test_a_request_is_answered(executor: Executor) -> None:
    async with box(executor, files=COMMANDS) as one:
        assert json.loads((await one.ask(b'{"a": [1, 2]}'))[1]) == {"a": [1, 2]}
        content_type, body = await one.ask(b"text \xc3\xa4", "text/plain; charset=utf-8")
        assert content_type.startswith("text/plain")
        assert body == b"text \xc3\xa4"


async def test_a_sandbox_serves_one_call_after_another(executor: Executor) -> None:
    async with box(executor, files=COMMANDS) as one:
        for number in range(20):
            assert json.loads((await one.ask(b"%d" % number))[1]) == number
        assert one.sandbox.info().calls == 20


async def test_an_exception_leaves_the_sandbox_usable(executor: Executor) -> None:
    async with box(executor, files=COMMANDS) as one:
        with pytest.raises(ModelRaised, match="ValueError: as asked") as caught:
            await do(one, "raise")
        assert any("as asked" in line for line in caught.value.stderr)
        assert one.sandbox.alive
        assert json.loads((await one.ask(b"7"))[1]) == 7


@pytest.mark.parametrize("code", [0, 3, 255])
async def test_a_process_that_ends_is_a_crash_with_its_exit_code(
    executor: Executor, code: int
) -> None:
    async with box(executor, files=COMMANDS) as one:
        with pytest.raises(RunnerCrashed) as caught:
            await do(one, "exit", code=code)
        assert caught.value.extensions["exit_code"] == code
        assert not one.sandbox.alive


async def test_the_invoke_deadline_ends_the_sandbox(executor: Executor) -> None:
    async with box(executor, files=COMMANDS) as one:
        started = asyncio.get_running_loop().time()
        with pytest.raises(InvokeTimeout) as caught:
            await do(one, "spin", timeout_ms=300)
        assert asyncio.get_running_loop().time() - started < 3
        assert caught.value.extensions["limit_ms"] == 300
        assert not one.sandbox.alive


async def test_too_much_memory_ends_the_sandbox(executor: Executor) -> None:
    async with box(executor, spec_of(memory_mb=96), COMMANDS) as one:
        with pytest.raises(OutOfMemory):
            await do(one, "eat")
        assert not one.sandbox.alive


async def test_garbage_on_the_link_ends_the_sandbox(executor: Executor) -> None:
    async with box(executor, files=COMMANDS) as one:
        with pytest.raises(RunnerProtocol):
            await do(one, "garbage")
        assert not one.sandbox.alive


async def test_an_answer_over_the_cap_ends_the_sandbox(executor: Executor) -> None:
    async with box(executor, files=COMMANDS) as one:
        assert len(await do(one, "large", bytes=1000, reply_bytes_max=1000)) == 1000
        with pytest.raises(ReplyTooLarge) as caught:
            await do(one, "large", bytes=1001, reply_bytes_max=1000)
        assert caught.value.extensions["limit_bytes"] == 1000
        assert not one.sandbox.alive


async def test_a_missing_module_at_load_is_named(executor: Executor) -> None:
    files = {"model.py": b"import nothing_of_this_name\n"}
    with pytest.raises(LoadFailed, match="nothing_of_this_name") as caught:
        async with box(executor, files=files):
            pass
    assert caught.value.extensions["missing"] == "nothing_of_this_name"


async def test_the_load_deadline_ends_the_sandbox(executor: Executor) -> None:
    files = {"model.py": b"# loads for ever\nwhile True: pass\n"}
    sandbox = await executor.create(spec_of(load_timeout_ms=300))
    with pytest.raises(LoadTimeout) as caught:
        await sandbox.load(pieces(tar_of(files)))
    assert caught.value.extensions["limit_ms"] == 300
    assert not sandbox.alive


async def test_what_the_model_prints_is_kept(executor: Executor) -> None:
    async with box(executor, files=COMMANDS) as one:
        await do(one, "print", text="hello from inside")
        for _ in range(100):
            if "hello from inside" in one.sandbox.stderr_tail():
                break
            await asyncio.sleep(0.02)
        assert "hello from inside" in one.sandbox.stderr_tail()


async def test_destroying_during_a_call_ends_the_call(executor: Executor) -> None:
    async with box(executor, files=COMMANDS) as one:
        call = asyncio.ensure_future(do(one, "spin"))
        await asyncio.sleep(0.1)
        await one.sandbox.destroy()
        with pytest.raises(RunnerCrashed):
            await call


async def test_a_cancelled_call_ends_the_sandbox(executor: Executor) -> None:
    async with box(executor, files=COMMANDS) as one:
        call = asyncio.ensure_future(do(one, "spin"))
        await asyncio.sleep(0.1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert not one.sandbox.alive


async def test_destroy_is_idempotent(executor: Executor) -> None:
    sandbox = await executor.create(spec_of())
    await asyncio.gather(sandbox.destroy(), sandbox.destroy())
    await sandbox.destroy()
    assert not sandbox.alive


async def test_the_state_is_shown(executor: Executor) -> None:
    async with box(executor, files=COMMANDS) as one:
        info = one.sandbox.info()
        assert (info.state, info.version_key, info.tenant_id) == ("ready", "v1", "tenant-of-v1")
        assert info.id == one.sandbox.id
        call = asyncio.ensure_future(do(one, "sleep", s=0.3))
        await asyncio.sleep(0.1)
        assert one.sandbox.info().state == "busy"
        await call
    assert one.sandbox.info().state == "killed"
