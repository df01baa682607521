"""Kept calls from the command line, with real sandboxes: off, on, listed, repeated, deleted."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from running import RunningAppliance

pytestmark = pytest.mark.podman
CANARY = 770_123_456


def model_files(more: str) -> dict[str, bytes]:
    source = f"""
class Model:
    def __init__(self, path): pass
    def predict(self, inputs):
        n = inputs["n"]
        return {{"twice": 2 * n + ({more})}}
"""
    manifest = b'runtime = "python3.11"\nentry = "model:Model"\n'
    return {"appliance.toml": manifest, "model.py": source.encode()}


def call(running: RunningAppliance, secret: str, n: int) -> Any:
    with running.https(secret) as client:
        reply = client.post("/api/v1/models/keep/m/invoke", json={"n": n})
    assert reply.status_code == 200, reply.text
    return reply


def said(running: RunningAppliance, *arguments: str) -> dict[str, Any]:
    done = running.cli("--json", *arguments)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def refused(running: RunningAppliance, code: int, word: bytes, *arguments: str) -> None:
    done = running.cli(*arguments)
    assert (done.returncode, word in done.stderr) == (code, True), (done.stderr, done.stdout)


def kept_files(running: RunningAppliance) -> list[Path]:
    return sorted((running.data_dir / "samples").glob("*/*"))


def wait_kept(running: RunningAppliance, count: int) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while (found := said(running, "sample", "show", "keep/m"))["kept"] != count:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return found


def test_calls_are_kept_only_while_an_owner_asks_and_are_repeated_to_another_version(
    running: RunningAppliance,
) -> None:
    secret = running.tenant("keep")
    for more in ("0", "1000 if n == 3 else 0"):
        assert running.push(secret, "keep/m", model_files(more)).status_code == 201
    refused(running, 65, b"No calls of that time are kept", *replay_of(2))

    assert "sampled-percent" not in call(running, secret, CANARY).headers
    assert said(running, "sample", "show", "keep/m")["percent"] == 0
    assert said(running, "sample", "list", "keep/m") == {"items": []}
    assert kept_files(running) == []

    on = said(running, "sample", "set", "keep/m", "--percent", "100", "--days", "2")
    assert (on["percent"], on["days"]) == (100, 2)
    replies = [call(running, secret, n) for n in (1, 2, 3, CANARY)]
    assert {one.headers["sampled-percent"] for one in replies} == {"100"}
    wait_kept(running, 4)
    listed = said(running, "sample", "list", "keep/m", "--limit", "3")["items"]
    assert [one["call_id"] for one in listed] == [
        one.headers["request-id"] for one in reversed(replies[1:])
    ]
    files = kept_files(running)
    assert len(files) == 4
    assert not any(str(CANARY).encode() in one.read_bytes() for one in files)
    text = running.cli("sample", "list", "keep/m").stdout.decode()
    assert text.count("call_") + text.count("req_") >= 4
    assert str(CANARY) not in text

    said(running, "sample", "off", "keep/m")
    assert "sampled-percent" not in call(running, secret, 5).headers
    found = said(running, *replay_of(2), "--worst", "1")
    assert (found["status"], found["done"]) == ("succeeded", 4)
    report = found["replay"]
    assert [report[one] for one in ("calls", "equal", "different", "failed")] == [4, 3, 1, 0]
    (worst,) = report["worst"]
    assert (worst["call_id"], worst["distance"]) == (replies[2].headers["request-id"], 1000)
    assert (worst["input"], worst["now"]) == ({"n": 3}, {"twice": 1006})
    assert kept_files(running) == files, "neither what came after 'off' nor the replay is kept"
    shown = running.cli("comparison", "show", f"keep/{found['id']}").stdout.decode()
    assert "1 different" in shown or "different" in shown

    refused(running, 65, b"add --force", "sample", "rm", "keep/m")
    assert said(running, "sample", "rm", "keep/m", "--force") == {"removed": 4}
    assert kept_files(running) == []


def replay_of(version: int) -> tuple[str, ...]:
    return ("model", "replay", "keep/m", "--against", str(version))


def test_what_cannot_be_kept_or_repeated_is_refused_with_what_to_change(
    running: RunningAppliance,
) -> None:
    secret = running.tenant("keep")
    caller = running.tenant("keep", "caller")
    assert running.push(secret, "keep/m", model_files("0")).status_code == 201
    refused(running, 64, b"--percent", "sample", "set", "keep/m", "--percent", "0")
    refused(running, 64, b"--percent", "sample", "set", "keep/m")
    refused(running, 64, b"24h", *replay_of(1), "--since", "5x")
    refused(running, 65, b"no version 99", *replay_of(99))
    refused(running, 65, b"0.01", "sample", "set", "keep/m", "--percent", "0.001")
    done = running.cli("--json", "sample", "show", "keep/nothing")
    assert done.returncode == 65, done.stderr
    assert json.loads(done.stderr)["code"] == "not-found"
    with running.https(caller) as client:
        for answer in (
            client.get("/api/v1/models/keep/m/samples/calls"),
            client.put("/api/v1/models/keep/m/samples", json={"percent": 5}),
            client.post("/api/v1/models/keep/m/replay", json={"against": 1}),
        ):
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert kept_files(running) == []
