"""What the Python runner makes of inputs, answers, exceptions and endings.

Each case runs twice: with the runner as a plain process (fast, anywhere), and in a sandbox.
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
from typing import Any, Protocol

import pytest
from boxes import RUN_MODEL, SPEAK, Box, box, pieces, spec_of, tar_of

from appliance.errors import GuestError, LoadFailed, ModelRaised, RunnerCrashed, RunnerProtocol
from appliance.sandbox.frames import GuestFault, LinkLost
from appliance.sandbox.link import Link
from appliance.sandbox.spec import Reply, Request, SandboxSpec

pytestmark = pytest.mark.asyncio(loop_scope="session")


class PlainSandbox:
    """The runner as a child process of the tests: its protocol, without a container."""

    def __init__(self, link: Link, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.link = link
        self.process = process
        self.folder = folder

    async def load(self, spec: SandboxSpec, tar: AsyncIterator[bytes]) -> None:
        header = {"entry": spec.entry, "path": str(self.folder), "deps": ""}
        try:
            await asyncio.wait_for(self.link.load(header, tar), 30)
        except GuestFault as fault:
            raise LoadFailed(fault.detail, missing=fault.missing) from fault

    async def request(self, request: Request) -> Reply:
        try:
            return await asyncio.wait_for(self.link.request(request), 20)
        except GuestFault as fault:
            await self.link.settle_logs()
            tail = (*self.link.logs.lines(), *fault.trace)
            raise ModelRaised(fault.detail, stderr=tail) from fault
        except LinkLost as lost:
            if lost.protocol:
                raise RunnerProtocol(lost.protocol) from lost
            await asyncio.wait_for(self.link.monitor_lost.wait(), 30)
            tail = self.link.logs.lines()
            raise RunnerCrashed("ended", stderr=tail, exit_code=self.link.exit_code) from lost


class Open(Protocol):
    def __call__(
        self, files: dict[str, bytes] | None = None, entry: str = "model:Model"
    ) -> Any: ...


@asynccontextmanager
async def plain_box(
    files: dict[str, bytes] | None = None, entry: str = "model:Model"
) -> AsyncIterator[Box]:
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
            await asyncio.wait_for(link.hello(), 30)
            sandbox = PlainSandbox(link, process, folder)
            spec = spec_of(entry=entry)
            await sandbox.load(spec, pieces(tar_of(files or {"model.py": RUN_MODEL}), 1000))
            yield Box(sandbox, spec)  # type: ignore[arg-type]
        finally:
            await link.close()
            await asyncio.wait_for(process.wait(), 30)


@pytest.fixture(params=[pytest.param("process"), pytest.param("podman", marks=pytest.mark.podman)])
def opened(request: pytest.FixtureRequest) -> Open:
    if request.param == "process":
        return plain_box
    executor = request.getfixturevalue("podman_executor")

    def in_a_sandbox(files: dict[str, bytes] | None = None, entry: str = "model:Model") -> Any:
        return box(executor, spec_of(entry=entry, files=files), files)

    return in_a_sandbox


VALUES = {
    "object": {"a": [1, 2.5, None, True], "b": {"c": ""}},
    "unicode": "Ünïcødé \U0001f600 \u0000 \u2028",
    "long integer": 2**200,
    "deep": json.loads("[" * 500 + "]" * 500),
    "empty": [],
    "null": None,
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
async def test_json_comes_back_as_it_was(opened: Open, value: Any) -> None:
    files = {"model.py": b"def load(path): return lambda inputs: [inputs]"}
    async with opened(files, "model:load") as one:
        for media in ("application/json", "application/json; charset=utf-8", "application/x+json"):
            kind, body = await one.ask(json.dumps(value).encode(), media)
            assert (kind, json.loads(body)) == ("application/json", [value])


async def test_text_and_bytes_keep_their_kind(opened: Open) -> None:
    files = {"model.py": b"def load(path): return lambda inputs: inputs"}
    async with opened(files, "model:load") as one:
        assert await one.ask("ä\n".encode(), "text/csv") == (
            "text/plain; charset=utf-8",
            "ä\n".encode(),
        )
        data = bytes(range(256)) * 100
        assert await one.ask(data, "image/png") == ("application/octet-stream", data)
        assert await one.ask(b"", "application/octet-stream") == ("application/octet-stream", b"")


async def test_ten_megabytes_go_both_ways(opened: Open) -> None:
    files = {"model.py": b"def load(path): return lambda inputs: inputs[::-1]"}
    data = bytes(range(250)) * 42_000
    async with opened(files, "model:load") as one:
        assert (await one.ask(data, "application/octet-stream"))[1] == data[::-1]


async def test_nan_is_refused_in_and_null_out(opened: Open) -> None:
    async with opened() as one:
        with pytest.raises(ModelRaised, match="not valid application/json"):
            await one.ask(b"[NaN]")
        _, body = await one.ask(
            b"{\"run\": \"answer = [float('nan'), {'x': float('inf')}, (1.5,)]\"}"
        )
        assert json.loads(body) == [None, {"x": None}, [1.5]]


async def test_array_like_answers_become_lists(opened: Open) -> None:
    async with opened() as one:
        answer = await one.run("""
class Array:
    def tolist(self):
        return [1, 2]
answer = {"a": Array(), "b": [float("nan"), Array()]}
""")
        assert answer == {"a": [1, 2], "b": [None, [1, 2]]}


@pytest.mark.parametrize(
    ("body", "media"), [(b"{", "application/json"), (b"\xff", "text/plain"), (b"", "a/b+json")]
)
async def test_a_body_that_does_not_decode_is_named(opened: Open, body: bytes, media: str) -> None:
    async with opened() as one:
        with pytest.raises(ModelRaised, match="The body is not valid"):
            await one.ask(body, media)
        assert await one.run("answer = 5") == 5


async def test_an_answer_that_cannot_be_sent_is_named(opened: Open) -> None:
    async with opened() as one:
        for text in ("answer = {1, 2}", "answer = object()", "answer = []; answer.append(answer)"):
            with pytest.raises(ModelRaised, match="The answer cannot be sent"):
                await one.run(text)


async def test_an_exception_shows_the_models_own_lines(opened: Open) -> None:
    async with opened() as one:
        with pytest.raises(ModelRaised) as caught:
            await one.run("print('before')\ndef inner():\n    raise KeyError('Ünï')\ninner()")
        assert caught.value.detail == "KeyError: 'Ünï'"
        assert "before" in caught.value.stderr
        assert any("inner" in line for line in caught.value.stderr)
        assert not any("python_" in line for line in caught.value.stderr)


@pytest.mark.parametrize(
    "text",
    [
        "import sys; sys.exit(3)",
        "raise KeyboardInterrupt",
        "raise Exception('x' * 1_000_000)",
        "class E(Exception):\n    def __str__(self): raise ValueError\nraise E",
        "def f(): f()\nf()",
        "raise UnicodeError('\\ud800')",
        "raise BaseExceptionGroup('g', [ValueError('\\n' * 10000)])",
    ],
)
async def test_whatever_is_raised_the_runner_goes_on(opened: Open, text: str) -> None:
    async with opened() as one:
        with pytest.raises(ModelRaised) as caught:
            await one.run(text)
        assert 0 < len(caught.value.detail) <= 2000
        assert await one.run("answer = 'still here'") == "still here"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("import os; os._exit(42)", 42),
        ("import os; os.kill(os.getpid(), 9)", 137),
        ("import os; os.abort()", 134),
        ("import ctypes; ctypes.string_at(0)", 139),
    ],
)
async def test_an_end_of_the_process_tells_its_code(opened: Open, text: str, code: int) -> None:
    async with opened() as one:
        with pytest.raises(RunnerCrashed) as caught:
            await one.run(f"print('last words', flush=True)\n{text}")
        found = caught.value.extensions["exit_code"]
        assert found in (code, 128 - code)
        assert "last words" in caught.value.stderr


async def test_noise_on_stdout_does_not_disturb_answers(opened: Open) -> None:
    async with opened() as one:
        text = "import os\nfor _ in range(2000): print('x' * 1000)\n"
        text += "os.write(1, b'\\xff\\x00')\nanswer = 1"
        for _ in range(5):
            assert await one.run(text) == 1


@pytest.mark.parametrize(
    "what",
    [
        "link.sendall(b'\\xff' * 100)",
        "link.sendall(b'\\x00' * 100)",
        "send(b'[1]', 0)",
        "send(b'{', 0)",
        "send(b'\"x\"', 0)",
        "send(b'[' * 10000, 0)",
        "send({'type': 7}, 0)",
        "send({'type': 'RES'}, 0)",
        "send({'type': 'RES', 'id': 'other', 'content_type': 'a/b'}, 0)",
        "send({'type': 'RES', 'id': 'r1', 'content_type': 'a/b\\r\\nX: y'}, 0)",
        "send({'type': 'RES', 'id': 'r1'}, 0)",
        "send({'type': 'READY'}, 0)",
        "send({'type': 'HELLO', 'proto': 1, 'role': 'runner'}, 0)",
        "send({'type': 'NOPE'}, 0)",
        "send({'type': 'LOG', 'stream': 'stdout'}, 1 << 40)",
        "send({'type': 'ERR', 'id': 'r1', 'kind': 'raised'}, 5, b'abcde')",
        "import sys; sys.setrecursionlimit(10**6); send(b'{\"type\":' + b'{' * 9000, 0)",
        "new = socket.socket(socket.AF_UNIX); new.connect(link.getpeername())",
    ],
)
async def test_bad_frames_are_protocol_errors(opened: Open, what: str) -> None:
    async with opened() as one:
        with pytest.raises(GuestError) as caught:
            await one.run(
                f"{SPEAK}\n{what}\nimport time\ntime.sleep(1)\nlink.shutdown(2)\nos._exit(1)"
            )
        allowed = (RunnerProtocol,)
        if "connect" in what:  # nobody listens any more
            allowed = (RunnerProtocol, ModelRaised, RunnerCrashed)
        assert isinstance(caught.value, allowed), caught.value


ENTRIES = {
    "a class": (b"class Model:\n  def __init__(self, path): self.p = path\n"
                b"  def predict(self, x): return x", "model:Model"),
    "a function": (b"def load(path): return lambda x: x", "model:load"),
    "an attribute of a class": (b"class A:\n  class B:\n    def __init__(self, p): pass\n"
                                b"    def predict(self, x): return x", "model:A.B"),
}  # fmt: skip


@pytest.mark.parametrize(("source", "entry"), ENTRIES.values(), ids=ENTRIES.keys())
async def test_entries_that_work(opened: Open, source: bytes, entry: str) -> None:
    async with opened({"model.py": source}, entry) as one:
        assert json.loads((await one.ask(b"[3]"))[1]) == [3]


BAD = {
    "no module": (b"", "other:Model", "other"),
    "no attribute": (b"", "model:Model", "no 'Model'"),
    "no predict": (b"class Model:\n  def __init__(self, p): pass", "model:Model", "predict"),
    "not callable": (b"Model = 7", "model:Model", "is no entry"),
    "syntax": (b"def", "model:Model", "SyntaxError"),
    "raises": (b"raise RuntimeError('at import')", "model:Model", "at import"),
    "exits": (b"import sys; sys.exit(2)", "model:Model", "SystemExit"),
    "constructor": (b"class Model:\n  def __init__(self, p): open('/none')", "model:Model",
                    "FileNotFoundError"),
}  # fmt: skip


@pytest.mark.parametrize(("source", "entry", "detail"), BAD.values(), ids=BAD.keys())
async def test_entries_that_do_not_load(
    opened: Open, source: bytes, entry: str, detail: str
) -> None:
    with pytest.raises(LoadFailed, match=detail):
        async with opened({"model.py": source}, entry):
            pass


async def test_artifact_files_arrive_as_they_are(opened: Open) -> None:
    long = "/".join(["folder-with-a-long-name"] * 8) + "/" + "n" * 120 + ".bin"
    files = {
        "model.py": RUN_MODEL,
        "data/sub/x.bin": bytes(range(256)) * 5000,
        "empty": b"",
        long: b"long",
        "ünï/\U0001f600.txt": b"name",
    }
    async with opened(files) as one:
        found = await one.run("""
import hashlib, os
answer = {}
for folder, _, names in os.walk("."):
    for name in names:
        path = os.path.join(folder, name)
        answer[path[2:]] = hashlib.sha256(open(path, "rb").read()).hexdigest()
""")
    import hashlib

    assert found == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


async def test_model_code_can_import_its_neighbours(opened: Open) -> None:
    files = {
        "model.py": b"from pkg.helper import work\ndef load(path): return work",
        "pkg/__init__.py": b"",
        "pkg/helper.py": b"def work(x): return x * 2",
    }
    async with opened(files, "model:load") as one:
        assert json.loads((await one.ask(b"4"))[1]) == 8
