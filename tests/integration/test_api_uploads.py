"""Registering over HTTP: both forms of answer, and what is refused before a byte is read."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from inside import Inside, inside
from running import ECHO_MODEL, tar_of_files

PATH = "/api/v1/models/acme/echo/versions"
TAR = {"content-type": "application/x-tar"}
NDJSON = {"accept": "application/x-ndjson"}


@pytest.fixture
async def it(tmp_path: Path) -> AsyncIterator[Inside]:
    async with inside(tmp_path) as found:
        runtime = tmp_path / "data" / "runtimes" / "python3.11-000000000000"
        (runtime / "rootfs").mkdir(parents=True)
        about = {"name": "python3.11", "digest": "sha256:0", "packages": [], "built_at": "2026"}
        (runtime / "runtime.json").write_text(json.dumps(about))
        await found.tenant("acme")
        yield found


async def test_an_archive_becomes_a_version_with_an_address(it: Inside) -> None:
    async with it.client(await it.key("acme")) as client:
        made = await client.post(PATH, content=tar_of_files(ECHO_MODEL), headers=TAR)
        assert made.status_code == 201, made.text
        assert made.headers["location"] == f"{PATH}/1"
        version = made.json()
        assert (version["tenant"], version["model"], version["version"]) == ("acme", "echo", 1)
        assert {file["path"] for file in version["files"]} == set(ECHO_MODEL)
        assert version["url"] == f"https://a{PATH}/1"
        assert (await client.get(made.headers["location"])).json() == version
        packed = gzip.compress(tar_of_files(ECHO_MODEL))
        again = await client.post(
            PATH, content=packed, headers={"content-type": "application/gzip"}
        )
        assert again.json()["version"] == 2
        called = await client.post("/api/v1/models/acme/echo/invoke", content=b"x")
        assert called.headers["model-version"] == "1"


async def test_a_version_may_not_ask_for_more_of_the_appliance_than_it_gives(it: Inside) -> None:
    """An answer is held in the appliance's memory: how large it may get is not the owner's word."""
    manifest = ECHO_MODEL["appliance.toml"] + b"[limits]\nreply_bytes_max = 1073741824\n"
    async with it.client(await it.key("acme")) as client:
        files = {**ECHO_MODEL, "appliance.toml": manifest}
        refused = await client.post(PATH, content=tar_of_files(files), headers=TAR)
    assert (refused.status_code, refused.json()["code"]) == (422, "manifest-invalid")
    assert "reply_bytes_max" in refused.json()["detail"]


async def test_progress_is_told_line_by_line_and_ends_with_the_version(it: Inside) -> None:
    async with it.client(await it.key("acme")) as client:
        answer = await client.post(PATH, content=tar_of_files(ECHO_MODEL), headers=TAR | NDJSON)
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line["step"] for line in lines[:-1]] == ["receive", "try", "register"]
    fractions = [line["fraction"] for line in lines[:-1]]
    assert fractions == sorted(fractions)
    assert lines[-1]["version"]["version"] == 1


async def test_progress_ends_with_the_problem(it: Inside) -> None:
    files = {**ECHO_MODEL, "appliance.toml": b'runtime = "python3.11"\nentri = "x"\n'}
    async with it.client(await it.key("acme")) as client:
        answer = await client.post(PATH, content=tar_of_files(files), headers=TAR | NDJSON)
        problem = json.loads(answer.text.splitlines()[-1])["problem"]
        assert (problem["status"], problem["code"]) == (422, "manifest-invalid")
        assert problem["instance"] == answer.headers["request-id"]
        plain = await client.post(PATH, content=tar_of_files(files), headers=TAR)
        assert (plain.status_code, plain.json()["code"]) == (422, "manifest-invalid")
        assert (await client.get("/api/v1/models/acme/echo")).status_code == 404


async def test_what_cannot_be_an_archive_is_refused_unread(it: Inside) -> None:
    async def never() -> AsyncIterator[bytes]:
        await asyncio.sleep(3600)
        yield b""

    async with it.client(await it.key("acme")) as client:
        cases = [
            (PATH, {"content-type": "application/zip"}, 415),
            (PATH, {}, 415),
            (PATH, TAR | {"content-length": str(2**50)}, 413),
            (PATH, TAR | {"content-encoding": "gzip"}, 415),
            ("/api/v1/models/acme/Bad-Name/versions", TAR, 422),
            ("/api/v1/models/none/echo/versions", TAR, 404),
        ]
        for path, headers, status in cases:
            async with asyncio.timeout(30):
                answer = await client.post(path, content=never(), headers=headers)
            assert answer.status_code == status, (path, headers, answer.text)
