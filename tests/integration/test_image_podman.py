"""Imported images under real Podman: the runner protocol, output, files, and how they end."""

from __future__ import annotations

import asyncio

import pytest
from boxes import RUN_MODEL, Box, pieces, spec_of, tar_of

from appliance.errors import OutOfMemory, RunnerCrashed
from appliance.records import Container
from appliance.sandbox.podman import PodmanExecutor
from appliance.sandbox.spec import SandboxSpec

pytestmark = [pytest.mark.podman, pytest.mark.asyncio(loop_scope="session")]

# A runner of somebody else: PROTOCOL.md in thirty lines.
RUNNER = b"""
import json, socket, struct, sys
link = socket.socket(socket.AF_UNIX)
link.connect("/run/app/a.sock")
def send(body=b"", **header):
    text = json.dumps(header).encode()
    link.sendall(struct.pack(">IQ", len(text), len(body)) + text + body)
def take(size):
    data = b""
    while len(data) < size:
        piece = link.recv(size - len(data))
        if not piece:
            sys.exit()
        data += piece
    return data
def receive():
    head, body = struct.unpack(">IQ", take(12))
    return json.loads(take(head)), take(body)
print("hello from the image", flush=True)
send(type="HELLO", proto=1, role="runner", runtime="own", version="1", concurrency=1)
size = 0
while True:
    header, body = receive()
    if header["type"] == "CHUNK":
        size += len(body)
        if header["last"]:
            send(type="READY", compute_us=0)
    elif header["type"] == "REQ":
        send(str(size).encode() + body, type="RES", id=header["id"], compute_us=1,
             content_type="text/plain")
"""


def of_image(name: str, files: dict[str, bytes], **told: object) -> SandboxSpec:
    container = Container(**{"protocol": "sagemaker", "model_path": "/model", **told})  # type: ignore[arg-type]
    return spec_of("image", runtime=name, entry="", files=files, container=container)


async def test_an_image_may_speak_the_runner_protocol(
    podman_executor: PodmanExecutor, served_image: str
) -> None:
    command = ("/usr/bin/python3.11", "-c", RUNNER.decode())
    spec = of_image(served_image, {}, protocol="runner", command=command)
    sandbox = await podman_executor.create(spec)
    try:
        tar = tar_of({"weights": b"w"})
        await sandbox.load(pieces(tar))
        kind, body = await Box(sandbox, spec).ask(b"!", "text/plain")
        assert (kind, body) == ("text/plain", str(len(tar)).encode() + b"!")
        assert "hello from the image" in sandbox.stderr_tail()
    finally:
        await sandbox.destroy()


async def test_files_come_before_the_first_instruction_and_are_not_to_be_changed(
    podman_executor: PodmanExecutor, served_image: str
) -> None:
    files = {"model.py": RUN_MODEL, "a/b/weights": b"w" * 100_000, ".secrets/token": b"s3cret"}
    spec = of_image(served_image, files)
    sandbox = await podman_executor.create(spec)
    try:
        await sandbox.load(pieces(tar_of(files)))
        one = Box(sandbox, spec)
        assert await one.run("answer = len(open('/model/a/b/weights').read())") == 100_000
        assert await one.run("answer = open('/model/.secrets/token').read()") == "s3cret"
        changed = """
import os
answer = []
for act in (lambda: open("/model/a/b/weights", "a"), lambda: os.unlink("/model/model.py")):
    try:
        act()
        answer.append("done")
    except OSError as error:
        answer.append(type(error).__name__)
"""
        assert await one.run(changed) == ["PermissionError", "PermissionError"]
        assert "s3cret" not in await one.run("import os; answer = list(os.environ.values())")
    finally:
        await sandbox.destroy()


async def test_a_flood_of_output_neither_stops_the_model_nor_is_kept(
    podman_executor: PodmanExecutor, served_image: str
) -> None:
    files = {"model.py": RUN_MODEL}
    spec = of_image(served_image, files)
    sandbox = await podman_executor.create(spec)
    try:
        await sandbox.load(pieces(tar_of(files)))
        one = Box(sandbox, spec)
        flood = "for n in range(100000): print('line', n, 'x' * 50)\nanswer = 'said'"
        assert await one.run(flood) == "said"
        await asyncio.sleep(0.5)
        tail = sandbox.stderr_tail()
        assert "line 99999 " + "x" * 50 in tail
        assert len(tail) <= 202
    finally:
        await sandbox.destroy()


async def test_how_an_image_ends_is_told(
    podman_executor: PodmanExecutor, served_image: str
) -> None:
    files = {"model.py": RUN_MODEL}
    ends = {
        "import os; print('bye'); os._exit(3)": RunnerCrashed,
        "import os, signal; os.kill(os.getpid(), signal.SIGSEGV); os._exit(7)": RunnerCrashed,
        "held = [bytearray(1 << 20) for _ in range(10000)]": OutOfMemory,
    }
    for text, problem in ends.items():
        spec = of_image(served_image, files)
        sandbox = await podman_executor.create(spec)
        try:
            await sandbox.load(pieces(tar_of(files)))
            with pytest.raises(problem) as caught:
                await Box(sandbox, spec).run(text)
            if "bye" in text:
                assert caught.value.extensions["exit_code"] == 3
                assert "bye" in " ".join(caught.value.stderr)
            assert not sandbox.alive
        finally:
            await sandbox.destroy()
