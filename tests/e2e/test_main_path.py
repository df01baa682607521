"""The main job through the front door: register over HTTPS, call, read the proof of the call."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from running import ECHO_MODEL, RunningAppliance

pytestmark = pytest.mark.podman
MODEL = (
    b"import os, sys, time\n"
    b"class Model:\n"
    b"    def __init__(self, path):\n"
    b"        self.path = path\n"
    b"    def predict(self, inputs):\n"
    b"        if not isinstance(inputs, dict): return inputs\n"
    b"        do = inputs.get('do')\n"
    b"        print('doing', do, file=sys.stderr, flush=True)\n"
    b"        if do == 'raise': raise ValueError('no such row')\n"
    b"        if do == 'exit': os._exit(7)\n"
    b"        if do == 'sleep': time.sleep(60)\n"
    b"        if do == 'nap': time.sleep(1)\n"
    b"        if do == 'memory': return len(bytearray(1 << 33))\n"
    b"        if do == 'big': return 'x' * (1 << 22)\n"
    b"        return {'echo': inputs}\n"
)
MANIFEST = (
    b'runtime = "python3.11"\nentry = "model:Model"\n'
    b"[resources]\nmemory_mb = 128\n[limits]\ninvoke_timeout_ms = 1500\nreply_bytes_max = 1048576\n"
)


@pytest.fixture(scope="module")
def owner(running: RunningAppliance) -> str:
    return running.tenant("acme")


@pytest.fixture(scope="module")
def model(running: RunningAppliance, owner: str) -> str:
    made = running.push(owner, "acme/probe", {"appliance.toml": MANIFEST, "model.py": MODEL})
    assert made.status_code == 201, made.text
    assert made.json()["version"] == 1
    return "/api/v1/models/acme/probe"


def call(running: RunningAppliance, secret: str, path: str, **kwargs: object) -> httpx.Response:
    with running.https(secret) as client:
        return client.post(path, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["invoke", "versions/1/invoke", "aliases/live/invoke"])
def test_a_call_answers_with_its_version_and_audit_entry(
    running: RunningAppliance, owner: str, model: str, how: str
) -> None:
    reply = call(running, owner, f"{model}/{how}", json={"a": 1})
    assert reply.status_code == 200, reply.text
    assert reply.json() == {"echo": {"a": 1}}
    assert reply.headers["Model-Version"] == "1"
    assert reply.headers["Request-Id"]
    assert int(reply.headers["Audit-Seq"]) > 0


@pytest.mark.parametrize(
    ("content_type", "body"),
    [("text/plain; charset=utf-8", "grüße"), ("application/octet-stream", bytes(range(256)))],
)
def test_text_and_binary_bodies_come_back_as_they_went(
    running: RunningAppliance, owner: str, model: str, content_type: str, body: str | bytes
) -> None:
    reply = call(
        running, owner, f"{model}/invoke", content=body, headers={"Content-Type": content_type}
    )
    assert reply.status_code == 200, reply.text
    assert reply.content == (body.encode() if isinstance(body, str) else body)
    assert reply.headers["Content-Type"].split(";")[0] == content_type.split(";")[0]


FAILURES = {
    "raise": (502, "model-raised"),
    "exit": (502, "runner-crashed"),
    "sleep": (504, "invoke-timeout"),
    "memory": (507, "out-of-memory"),
    "big": (502, "reply-too-large"),
}


@pytest.mark.parametrize(("do", "expected"), FAILURES.items(), ids=FAILURES)
def test_each_way_to_fail_is_its_own_problem_with_the_last_lines_for_the_owner(
    running: RunningAppliance, owner: str, model: str, do: str, expected: tuple[int, str]
) -> None:
    reply = call(running, owner, f"{model}/invoke", json={"do": do})
    problem = reply.json()
    assert (reply.status_code, problem["code"]) == expected, reply.text
    assert reply.headers["Content-Type"] == "application/problem+json"
    # An answer over its limit is cut off at once, with whatever output had arrived by then.
    assert do == "big" or any(f"doing {do}" in line for line in problem["stderr"])
    assert reply.headers["Audit-Seq"]
    assert call(running, owner, f"{model}/invoke", json={"ok": 1}).status_code == 200


def test_a_caller_does_not_see_the_models_output(
    running: RunningAppliance, owner: str, model: str
) -> None:
    caller = running.tenant("acme", role="caller")
    problem = call(running, caller, f"{model}/invoke", json={"do": "raise"}).json()
    assert problem["code"] == "model-raised"
    assert "stderr" not in problem
    assert "no such row" not in str(problem)


def test_a_model_that_does_not_import_is_refused_with_the_missing_package_first(
    running: RunningAppliance, owner: str
) -> None:
    files = {"appliance.toml": MANIFEST, "model.py": b"import pandas_of_nowhere\n"}
    made = running.push(owner, "acme/broken", files)
    problem = made.json()
    assert (made.status_code, problem["code"]) == (422, "load-failed")
    assert "pandas_of_nowhere" in problem["detail"]
    with running.https(owner) as client:
        assert client.get("/api/v1/models/acme/broken").status_code == 404


def test_a_model_that_never_becomes_ready_is_refused_with_its_deadline_and_last_words(
    running: RunningAppliance, owner: str
) -> None:
    manifest = b'runtime = "python3.11"\nentry = "model:Model"\n[limits]\nload_timeout_ms = 1500\n'
    text = (
        b"import sys, time\nprint('still warming up', file=sys.stderr, flush=True)\n"
        b"time.sleep(60)\n"
    )
    made = running.push(owner, "acme/slow", {"appliance.toml": manifest, "model.py": text})
    problem = made.json()
    assert (made.status_code, problem["code"]) == (422, "load-failed")
    assert problem["cause"] == "load-timeout"
    assert "1500 ms" in problem["detail"]
    assert any("still warming up" in line for line in problem["stderr"])


def test_a_manifest_that_asks_for_too_much_time_is_refused_with_key_line_and_setting(
    running: RunningAppliance, owner: str
) -> None:
    manifest = b'runtime = "python3.11"\nentry = "model:Model"\nidle_timeout_s = 86400\n'
    made = running.push(owner, "acme/slow", {**ECHO_MODEL, "appliance.toml": manifest})
    problem = made.json()
    assert (made.status_code, problem["code"]) == (422, "manifest-invalid")
    assert "appliance.toml:3: idle_timeout_s" in problem["detail"]
    assert "sandbox.idle_timeout_s_max" in problem["hint"]


def test_a_version_is_reserved_by_command_and_its_calls_are_warm(
    running: RunningAppliance, owner: str
) -> None:
    assert running.push(owner, "acme/kept", ECHO_MODEL).status_code == 201
    command = ("model", "reserve", "acme/kept", "--version", "1", "--json")
    made = running.cli(*command, "--warm", "1")
    assert made.returncode == 0, made.stderr
    end = time.monotonic() + 30
    while json.loads(running.cli(*command).stdout)["state"] != "kept":
        assert time.monotonic() < end
    reply = call(running, owner, "/api/v1/models/acme/kept/invoke", json={"n": 1})
    with running.https(owner) as client:
        entry = client.get(f"/api/v1/audit/{reply.headers['Audit-Seq']}").json()
    assert entry["event"]["cold"] is False
    refused = running.cli(*command, "--warm", "4000")
    assert refused.returncode != 0
    assert b"reservation-refused" in refused.stdout + refused.stderr
    assert running.cli(*command, "--warm", "0").returncode == 0
    assert running.cli(*command).returncode != 0


def test_an_unknown_manifest_key_is_refused_with_key_and_line(
    running: RunningAppliance, owner: str
) -> None:
    files = {**ECHO_MODEL, "appliance.toml": MANIFEST.replace(b"memory_mb", b"memroy_mb")}
    made = running.push(owner, "acme/broken", files)
    assert made.status_code == 422
    assert "appliance.toml:4" in made.json()["detail"]
    assert "memroy_mb" in made.json()["detail"]


def test_a_version_that_does_not_exist_is_not_found_and_a_retired_one_is_gone(
    running: RunningAppliance, owner: str
) -> None:
    for _ in range(2):
        assert running.push(owner, "acme/two", ECHO_MODEL).status_code == 201
    path = "/api/v1/models/acme/two"
    assert call(running, owner, f"{path}/versions/9/invoke", json=1).status_code == 404
    with running.https(owner) as client:
        assert client.delete(f"{path}/versions/2").status_code in (200, 204)
    assert call(running, owner, f"{path}/versions/2/invoke", json=1).status_code == 410
    assert call(running, owner, f"{path}/versions/1/invoke", json=1).status_code == 200


def test_a_body_of_four_gibibytes_is_refused_at_once(
    running: RunningAppliance, owner: str, model: str
) -> None:
    done = subprocess.run(
        [
            *("curl", "-sS", "--max-time", "20", "--cacert", str(running.ca_file())),
            *("-H", f"Authorization: Bearer {owner}", "-H", "Content-Type: text/plain"),
            *("-H", f"Content-Length: {4 << 30}", "--data-binary", "x" * 1000),
            *("-o", "/dev/null", "-w", "%{http_code}", f"{running.url}{model}/invoke"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "413", done.stderr


def test_the_audit_proves_a_call_to_somebody_who_has_only_the_public_key(
    running: RunningAppliance, owner: str, model: str, tmp_path: Path
) -> None:
    seq = call(running, owner, f"{model}/invoke", json={"a": 1}).headers["Audit-Seq"]
    key = running.cli("--json", "audit", "key")
    proof = running.cli("audit", "prove", seq)
    assert proof.returncode == 0, proof.stderr
    (tmp_path / "proof").write_bytes(proof.stdout)
    with running.admin() as client:
        public = client.get("/api/v1/audit/key").json()["public_key"]
    assert key.returncode != 0 or public in key.stdout.decode()
    source = Path(__file__).parents[2] / "appliance" / "store" / "verify.py"
    command = [sys.executable, str(source), "proof", str(tmp_path / "proof")]
    done = subprocess.run([*command, "--public-key", public], capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = proof.stdout.decode().splitlines(keepends=True)
    for number, line in enumerate(lines):
        flipped = line.replace("A", "B", 1) if "A" in line else line.replace("1", "2", 1)
        if flipped == line:
            continue
        (tmp_path / "proof").write_text("".join([*lines[:number], flipped, *lines[number + 1 :]]))
        done = subprocess.run([*command, "--public-key", public], capture_output=True, check=False)
        assert done.returncode != 0, f"line {number} may be changed: {flipped}"


def test_the_whole_ledger_verifies(running: RunningAppliance) -> None:
    done = running.cli("audit", "verify")
    assert done.returncode == 0, done.stderr


def test_a_second_serve_on_the_same_data_folder_is_refused(running: RunningAppliance) -> None:
    done = running.cli("serve")
    assert done.returncode == 75
    assert b"Data folder in use" in done.stderr or b"already" in done.stderr


def test_calls_in_flight_survive_sigterm_and_the_restart_finds_everything(
    running: RunningAppliance, owner: str, model: str
) -> None:
    assert call(running, owner, f"{model}/invoke", json={"a": 1}).status_code == 200
    nap = subprocess.Popen(
        [
            *("curl", "-sS", "--cacert", str(running.ca_file()), "-w", "%{http_code}"),
            *("-H", f"Authorization: Bearer {owner}", "-H", "Content-Type: application/json"),
            *("-d", '{"do": "nap"}', f"{running.url}{model}/invoke"),
        ],
        stdout=subprocess.PIPE,
    )
    time.sleep(0.4)
    assert running.stop() == 0
    answer, _ = nap.communicate(timeout=30)
    assert answer.endswith(b"200")
    running.start()
    assert call(running, owner, f"{model}/invoke", json={"a": 2}).status_code == 200
