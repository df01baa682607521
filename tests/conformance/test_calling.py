"""Calls that a model makes, over a real runner and a real link: what it gets, and what it may not.

The runner is a plain process here: frames are the same with a container around it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from boxes import RUN_MODEL, SPEAK, pieces, tar_of
from other_models import Other

from appliance.sandbox.frames import GuestFault, LinkLost
from appliance.sandbox.link import Link
from appliance.sandbox.spec import Asked, Request

pytestmark = pytest.mark.asyncio(loop_scope="session")

DEADLINE_S = 60


class Talk:
    """A loaded model that runs what it is told, and whom it calls."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.other = Other()
        self._count = 0

    async def run(self, text: str, **inputs: Any) -> Any:
        self._count += 1
        request = Request(
            id=f"r{self._count}",
            content_type="application/json",
            body=json.dumps({"run": text, **inputs}).encode(),
            timeout_ms=DEADLINE_S * 1000,
            reply_bytes_max=100_000,
            calls=self.other,
        )
        reply = await asyncio.wait_for(self.link.request(request), DEADLINE_S)
        return json.loads(reply.body) if "json" in reply.content_type else reply.body


@asynccontextmanager
async def talk(*, calls: bool = True, model: bytes = RUN_MODEL) -> AsyncIterator[Talk]:
    link = Link()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        folder.mkdir()
        await link.listen(Path(name) / "a.sock", uid=os.geteuid())
        runner = resources.files("appliance.sandbox").joinpath("guest", "python_runner.py")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-B", str(runner), f"{name}/a.sock", env={}, cwd="/"
        )
        try:
            await asyncio.wait_for(link.hello(), DEADLINE_S)
            header = {"entry": "model:Model", "path": str(folder), "deps": "", "calls": calls}
            tar = pieces(tar_of({"model.py": model}))
            await asyncio.wait_for(link.load(header, tar), DEADLINE_S)
            yield Talk(link)
        finally:
            await link.close()
            if process.returncode is None:
                process.kill()
            await process.wait()


async def test_a_model_calls_another_and_gets_what_that_answers() -> None:
    async with talk() as it:
        answer = await it.run(
            "from appliance_model import call\n"
            "answer = [call('echo', {'a': 1}), call('echo:3', 'text'), call('e@live', b'\\0')[0],\n"
            "          call('echo', '[1]', content_type='application/json')]"
        )
        assert answer == [{"a": 1}, "text", 0, [1]]
        assert [one.target for one in it.other.asked] == ["echo", "echo:3", "e@live", "echo"]
        assert it.other.asked[0] == Asked(
            target="echo", content_type="application/json", body=b'{"a":1}'
        )


async def test_what_is_refused_is_an_exception_with_its_code() -> None:
    text = (
        "from appliance_model import call, CallFailed\n"
        "answer = []\n"
        "for target, inputs in (('no', 1), ('crash', 1), ('echo', 'x' * 5000)):\n"
        "    try:\n"
        "        call(target, inputs)\n"
        "    except CallFailed as error:\n"
        "        answer.append([error.code, error.status, str(error)])\n"
    )
    async with talk() as it:
        refused, crashed, large = await it.run(text)
        assert refused == ["forbidden", 403, "you may not"]
        assert crashed[:2] == ["internal", 500]
        assert "secret" not in crashed[2]
        assert large[0] == "too-large"
        it.other.room = 0
        assert (await it.run(text.replace("'no'", "'echo'")))[0][0] == "capacity-exhausted"


async def test_threads_call_at_once_as_many_as_may_be_and_each_gets_its_own_answer() -> None:
    async with talk() as it:
        it.other.frames_max = 100
        answer = await it.run(
            "from concurrent.futures import ThreadPoolExecutor\n"
            "from appliance_model import call\n"
            "with ThreadPoolExecutor(12) as threads:\n"
            "    answer = list(threads.map(lambda n: call('echo', n), range(40)))"
        )
        assert answer == list(range(40))
        assert it.other.most == 3


async def test_a_call_left_open_ends_with_its_request_and_the_next_is_not_confused() -> None:
    text = (
        "import threading\n"
        "from appliance_model import call\n"
        "def ask():\n"
        "    try:\n"
        "        kept['said'] = call('slow', 1)\n"
        "    except Exception as error:\n"
        "        kept['said'] = str(error)\n"
        "thread = threading.Thread(target=ask)\n"
        "thread.start()\n"
        "call('second', 1)\n"
        "kept['thread'], answer = thread, 'done'"
    )
    async with talk() as it:
        assert await it.run(text) == b"done"
        for _ in range(500):
            if it.other.cancelled:
                break
            await asyncio.sleep(0.02)
        assert it.other.cancelled == 1
        assert await it.run("kept['thread'].join(30)\nanswer = kept['said']") == (
            b"The request was answered."
        )
        assert await it.run("from appliance_model import call\nanswer = call('echo', [2])") == [2]


async def test_nothing_is_called_while_no_request_is_open() -> None:
    model = b"from appliance_model import call\ncall('echo', 1)\n" + RUN_MODEL
    with pytest.raises(GuestFault, match="while a request is answered only"):
        async with talk(model=model):
            pass


async def test_a_model_that_declares_nothing_has_no_such_module() -> None:
    model = b"from appliance_model import call\n" + RUN_MODEL
    with pytest.raises(GuestFault, match="declare calls") as caught:
        async with talk(calls=False, model=model):
            pass
    assert caught.value.kind == "raised"


CALL = {"type": "CALL", "id": "c1", "target": "echo", "content_type": "text/plain"}


@pytest.mark.parametrize(
    ("header", "size", "reason"),
    [
        ({}, 2000, "over its cap"),
        ({}, 1 << 63, "over its cap"),
        ({"req": "r999"}, 0, "not open"),
        ({"req": ""}, 0, "not open"),
        ({"id": ""}, 0, "whose id"),
        ({"id": "x" * 65}, 0, "whose id"),
        ({"id": "a\n"}, 0, "whose id"),
        ({"target": "x" * 141}, 0, "out of bounds"),
        ({"content_type": ""}, 0, "out of bounds"),
        ({"content_type": "a\r\nx-evil: 1"}, 0, "out of bounds"),
        ({"target": 3}, 0, "not a JSON object of known members"),
    ],
)
async def test_a_forged_call_ends_the_sandbox(
    header: dict[str, object], size: int, reason: str
) -> None:
    async with talk() as it:
        frame = {**CALL, "req": "r1", **header}
        with pytest.raises(LinkLost, match=reason):
            await it.run(SPEAK + f"send({frame!r}, {size})\nimport time\ntime.sleep(60)")
        assert it.other.asked == []


async def test_a_flood_of_calls_ends_the_sandbox_and_starts_few() -> None:
    flood = (
        "for n in range(100_000):\n"
        "    send({'type': 'CALL', 'id': f'c{n}', 'req': 'r1', 'target': 'slow',\n"
        "          'content_type': 'text/plain'}, 0)\n"
        "import time\ntime.sleep(60)"
    )
    async with talk() as it:
        with pytest.raises(LinkLost, match="flood"):
            await it.run(SPEAK + flood)
        assert it.other.most <= it.other.parallel_max
        assert len(it.other.asked) <= it.other.frames_max


async def test_an_id_that_is_open_is_not_opened_again() -> None:
    twice = f"send({ {**CALL, 'req': 'r1', 'target': 'slow'}!r}, 0)\n" * 2
    async with talk() as it:
        with pytest.raises(LinkLost, match="open already"):
            await it.run(SPEAK + twice + "import time\ntime.sleep(60)")


async def test_a_call_of_a_sandbox_that_declares_none_is_a_protocol_error() -> None:
    async with talk(calls=False) as it:
        it.other = None  # type: ignore[assignment]
        frame = {**CALL, "id": "r1", "req": "r1"}
        with pytest.raises(LinkLost, match="CALL is not allowed here"):
            await it.run(SPEAK + f"send({frame!r}, 0)\nimport time\ntime.sleep(60)")


async def test_a_call_after_the_answer_is_a_protocol_error() -> None:
    async with talk() as it:
        late = (
            "send({'type': 'RES', 'id': 'r1', 'content_type': 'text/plain', 'compute_us': 1}, 0)\n"
            f"send({ {**CALL, 'req': 'r1'}!r}, 0)\nimport time\ntime.sleep(60)"
        )
        assert await it.run(SPEAK + late) == b""
        await asyncio.wait_for(it.link.lost.wait(), DEADLINE_S)
        assert "CALL" in it.link.protocol_error
        assert it.other.asked == []
