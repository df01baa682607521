"""Secrets of a model: only its versions that name one get it, and nothing else ever shows it."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from running import ECHO_MODEL, RunningAppliance

pytestmark = pytest.mark.podman

CANARY = "canary-secret-c1b7f0"
NEWER = "canary-newer-5e90aa"
READS = b"""
import os
class Model:
    def __init__(self, path):
        folder = os.path.join(path, ".secrets")
        names = os.listdir(folder) if os.path.isdir(folder) else []
        self.found = {name: open(os.path.join(folder, name)).read() for name in sorted(names)}
    def predict(self, inputs):
        places = [" ".join(os.environ.values()), open("/proc/self/cmdline").read(),
                  open("/proc/self/mountinfo").read()]
        return {"found": self.found, "elsewhere": any("canary" in text for text in places)}
"""
NEEDS = b'runtime = "python3.11"\nentry = "model:Model"\nsecrets = ["db-password"]\n'
PLAIN = b'runtime = "python3.11"\nentry = "model:Model"\n'


def put(running: RunningAppliance, key: str, model: str, name: str, value: str) -> object:
    with running.https(key) as client:
        return client.put(f"/api/v1/models/{model}/secrets/{name}", json={"value": value})


def call(running: RunningAppliance, key: str, model: str, how: str = "") -> object:
    with running.https(key) as client:
        return client.post(f"/api/v1/models/{model}{how}/invoke", json={})


def test_a_secret_reaches_the_versions_that_name_it_and_nothing_else(
    running: RunningAppliance,
) -> None:
    key, model = running.tenant("vault"), "vault/m"
    files = {"appliance.toml": NEEDS, "model.py": READS}
    refused = running.push(key, model, files)
    assert (refused.status_code, refused.json()["code"]) == (409, "secret-missing")
    assert refused.json()["missing"] == ["db-password"]
    assert "appliance secret set vault/m db-password" in refused.text
    set_ = put(running, key, model, "db-password", CANARY)
    assert set_.status_code == 200
    assert CANARY not in set_.text
    assert put(running, key, model, "unused", CANARY).status_code == 200
    assert running.push(key, model, files).status_code == 201
    assert running.push(key, model, {**files, "appliance.toml": PLAIN}).status_code == 201

    got = call(running, key, model, "/versions/1").json()
    assert got == {"found": {"db-password": CANARY}, "elsewhere": False}
    assert call(running, key, model, "/versions/2").json()["found"] == {}

    # A changed one replaces the sandbox that was warm; a removed one stops the version.
    put(running, key, model, "db-password", NEWER)
    assert call(running, key, model, "/versions/1").json()["found"] == {"db-password": NEWER}
    with running.https(key) as client:
        listed = client.get(f"/api/v1/models/{model}/secrets")
        assert [s["name"] for s in listed.json()["items"]] == ["db-password", "unused"]
        assert listed.json()["items"][0]["needed_by"] == [1]
        assert client.delete(f"/api/v1/models/{model}/secrets/db-password").status_code == 204
        assert client.get(f"/api/v1/models/{model}/secrets").json()["missing"] == ["db-password"]
        audit = client.get("/api/v1/audit?limit=1000")
    late = call(running, key, model, "/versions/1")
    assert (late.status_code, late.json()["code"]) == (409, "secret-missing")
    assert "audit_seq" in late.json()

    kinds = [entry["kind"] for entry in audit.json()["entries"]]
    assert kinds.count("secret.set") == 3
    assert kinds.count("secret.removed") == 1
    for text in (listed.text, audit.text, running.log()):
        assert CANARY not in text
        assert NEWER not in text
        assert '"box"' not in text
    backup = running.data_dir.parent / "secrets.backup"
    with running.admin() as admin:
        assert admin.post("/admin/v1/backup", json={"path": str(backup)}).status_code == 201
    for path in (*running.data_dir.rglob("*"), *running.run_dir.rglob("*"), backup):
        if path.is_file() and not {"runtimes", "deps"} & set(path.parts):
            data = path.read_bytes()
            for text in (CANARY, NEWER):
                assert text.encode() not in data, path
                assert base64.b64encode(text.encode()) not in data, path


def test_only_the_owner_sets_and_sees_names(running: RunningAppliance) -> None:
    running.tenant("vault")
    caller = running.tenant("vault", "caller")
    foreign = running.tenant("strangers")
    with running.admin() as admin:
        made = admin.post("/api/v1/keys", json={"name": "boss", "role": "admin"})
    for key, status in ((caller, 403), (foreign, 404), (made.json()["secret"], 403)):
        with running.https(key) as client:
            path = "/api/v1/models/vault/m/secrets"
            assert client.get(path).status_code == status
            body = {"value": CANARY}
            assert client.put(f"{path}/db-password", json=body).status_code == status
            assert client.delete(f"{path}/db-password").status_code == status


@pytest.mark.parametrize("path", [".secrets/db-password", ".Secrets/x", ".secrets"])
def test_an_archive_brings_no_secrets_of_its_own(running: RunningAppliance, path: str) -> None:
    key = running.tenant("vault")
    answer = running.push(key, "vault/forged", {**ECHO_MODEL, path: b"forged"})
    assert (answer.status_code, answer.json()["code"]) == (422, "archive-rejected")


def test_the_command_line_takes_a_value_from_input_or_a_file_only(
    running: RunningAppliance, tmp_path: Path
) -> None:
    running.tenant("vault")
    file = tmp_path / "value"
    file.write_bytes(b"\x00\xff" + CANARY.encode())
    done = running.cli("secret", "set", "vault/m", "from-input", stdin=CANARY.encode() + b"\n")
    assert done.returncode == 0, done.stderr
    done = running.cli("secret", "set", "vault/m", "from-file", "--from-file", str(file))
    assert done.returncode == 0, done.stderr
    assert running.cli("secret", "set", "vault/m", "argument", CANARY).returncode == 64
    assert running.cli("secret", "set", "vault/m", "empty", stdin=b"").returncode != 0
    listed = running.cli("secret", "list", "vault/m")
    assert b"from-input" in listed.stdout
    assert b"from-file" in listed.stdout
    assert CANARY.encode() not in listed.stdout + done.stdout
    assert running.cli("secret", "rm", "vault/m", "from-file").returncode == 0, running.log()
