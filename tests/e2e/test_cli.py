"""The command line against a real appliance: every noun, every form of output, every exit code."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from running import ECHO_MODEL, RunningAppliance

pytestmark = pytest.mark.podman
VERIFIER = Path(__file__).parents[2] / "appliance" / "store" / "verify.py"


def cli(running: RunningAppliance, *arguments: str, stdin: bytes = b"", code: int = 0) -> Any:
    """Run a command with --json; its parsed answer (of stderr when a problem is expected)."""
    done = running.cli("--json", *arguments, stdin=stdin)
    assert done.returncode == code, (done.stdout, done.stderr)
    return json.loads(done.stdout if code == 0 else done.stderr.splitlines()[-1])


def text(running: RunningAppliance, *arguments: str, stdin: bytes = b"") -> str:
    done = running.cli(*arguments, stdin=stdin)
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout.decode()


@pytest.fixture(scope="module")
def tenant(running: RunningAppliance) -> str:
    assert cli(running, "tenant", "create", "cli")["name"] == "cli"
    return "cli"


@pytest.fixture(scope="module")
def key_file(
    running: RunningAppliance, tenant: str, tmp_path_factory: pytest.TempPathFactory
) -> str:
    file = tmp_path_factory.mktemp("key") / "owner.key"
    made = cli(running, "key", "create", tenant, "me", "--role", "owner", "--out", str(file))
    assert "secret" not in made
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text().startswith("mak_")
    return str(file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    for name, content in ECHO_MODEL.items():
        (path / name).write_bytes(content)
    (path / "__pycache__").mkdir()
    (path / "__pycache__" / "model.pyc").write_bytes(b"x")
    return path


@pytest.fixture(scope="module")
def over_https(running: RunningAppliance, key_file: str) -> tuple[str, ...]:
    return ("--url", running.url, "--api-key-file", key_file, "--ca", str(running.ca_file()))


@pytest.fixture(scope="module")
def model(running: RunningAppliance, over_https: tuple[str, ...], folder: Path) -> str:
    done = running.cli(*over_https, "model", "push", str(folder), "cli/echo")
    assert done.returncode == 0, done.stderr
    first, url, curl = done.stdout.decode().splitlines()
    assert first == "cli/echo version 1"
    assert url == f"https://localhost:{running.port}/api/v1/models/cli/echo/versions/1"
    assert curl.startswith("curl --cacert ")
    assert curl.endswith("/versions/1/invoke")
    return "cli/echo"


def test_status_shows_the_limits_in_force_and_the_ledger(running: RunningAppliance) -> None:
    document = cli(running, "status")
    assert document["state"] == "ready"
    shown = text(running, "status")
    for word in ("ready", document["limits"]["level"], document["url"], "entries"):
        assert word in shown


def test_doctor_asks_the_running_appliance(running: RunningAppliance) -> None:
    done = running.cli("--json", "doctor")
    assert done.returncode in (0, 78)
    names = {item["name"] for item in json.loads(done.stdout)["items"]}
    assert {"podman", "ledger", "limits"} <= names


def test_a_tenant_and_its_key_are_listed_without_the_secret(
    running: RunningAppliance, tenant: str, key_file: str
) -> None:
    assert tenant in {item["name"] for item in cli(running, "tenant", "list")["items"]}
    (item,) = (k for k in cli(running, "key", "list", tenant)["items"] if k["name"] == "me")
    assert item["role"] == "owner"
    assert Path(key_file).read_text().strip() not in text(running, "key", "list", tenant)


def test_a_key_file_that_exists_is_never_overwritten(
    running: RunningAppliance, tenant: str, key_file: str
) -> None:
    before = Path(key_file).read_text()
    cli(running, "key", "create", tenant, "x", "--out", key_file, code=78)
    assert Path(key_file).read_text() == before


def test_a_revoked_key_is_refused(running: RunningAppliance, tenant: str, tmp_path: Path) -> None:
    file = tmp_path / "k"
    made = cli(running, "key", "create", tenant, "gone", "--role", "owner", "--out", str(file))
    ca = str(running.ca_file())
    https = ("--url", running.url, "--api-key-file", str(file), "--ca", ca)
    assert cli(running, *https, "model", "list", tenant)
    cli(running, "key", "revoke", tenant, made["id"])
    problem = cli(running, *https, "model", "list", tenant, code=77)
    assert problem["code"] == "unauthenticated"
    assert problem["instance"]


def test_the_same_files_make_no_new_version(
    running: RunningAppliance, over_https: tuple[str, ...], model: str, folder: Path
) -> None:
    again = cli(running, *over_https, "model", "push", "--if-changed", str(folder), model)
    assert again["version"] == 1
    shown = cli(running, "model", "show", model)
    assert [v["version"] for v in shown["versions"]] == [1]
    assert {f["path"] for f in shown["versions"][0]["files"]} == set(ECHO_MODEL)


@pytest.mark.parametrize("name", ["cli/echo", "cli/echo@live", "cli/echo:1"])
def test_a_model_is_called_by_name_alias_and_version(
    running: RunningAppliance, model: str, name: str
) -> None:
    done = running.cli("model", "call", name, "--data", '{"a": 1}')
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"echo": {"a": 1}}
    assert b"version 1" in done.stderr


def test_data_comes_from_a_file_or_standard_input(
    running: RunningAppliance, model: str, tmp_path: Path
) -> None:
    (tmp_path / "rows.json").write_text("[1, 2]")
    answer = text(running, "model", "call", model, "--data", str(tmp_path / "rows.json"))
    assert json.loads(answer) == {"echo": [1, 2]}
    piped = text(
        running, "model", "call", model, "--data", "-", "--content-type", "text/plain", stdin=b"hi"
    )
    assert json.loads(piped) == {"echo": "hi"}
    cli(running, "model", "call", model, "--data", "no-such-file", code=65)


def test_an_unknown_version_ends_with_65_and_a_request_id(
    running: RunningAppliance, model: str
) -> None:
    problem = cli(running, "model", "call", f"{model}:99", "--data", "{}", code=65)
    assert problem["code"] == "not-found"
    done = running.cli("model", "call", f"{model}:99", "--data", "{}")
    assert b"error: " in done.stderr
    assert b"request id: " in done.stderr
    assert done.stdout == b""


def test_a_model_that_does_not_import_names_the_package_in_the_first_lines(
    running: RunningAppliance, over_https: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "appliance.toml").write_bytes(ECHO_MODEL["appliance.toml"])
    (tmp_path / "model.py").write_text("import no_such_package\n")
    done = running.cli(*over_https, "model", "push", str(tmp_path), "cli/broken")
    assert done.returncode == 65
    lines = [ln for ln in done.stderr.decode().splitlines() if not ln.startswith("  ")]
    assert any("no_such_package" in line for line in lines[:3]), done.stderr


def test_an_unknown_manifest_key_is_named_with_its_line(
    running: RunningAppliance, over_https: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "appliance.toml").write_text(
        'runtime = "python3.11"\nentry = "model:Model"\nx = 1\n'
    )
    (tmp_path / "model.py").write_bytes(ECHO_MODEL["model.py"])
    done = running.cli(*over_https, "model", "push", str(tmp_path), "cli/broken")
    assert done.returncode == 65
    assert b"appliance.toml:3" in done.stderr


def test_an_alias_moves_and_the_next_call_follows(
    running: RunningAppliance, over_https: tuple[str, ...], model: str, folder: Path
) -> None:
    (folder / "note.txt").write_text("second")
    assert cli(running, *over_https, "model", "push", str(folder), model)["version"] == 2
    assert cli(running, "alias", "set", model, "live", "2", "--reason", "test")["version"] == 2
    done = running.cli("model", "call", model, "--data", "{}")
    assert b"version 2" in done.stderr
    stale = cli(running, "alias", "set", model, "live", "1", "--revision", "1", code=75)
    assert stale["code"] == "revision-stale"
    assert cli(running, "alias", "set", model, "old", "1")["name"] == "old"
    assert cli(running, "alias", "rm", model, "old") == {"removed": "old"}
    assert {a["name"] for a in cli(running, "alias", "list", model)["items"]} == {"live"}


def test_the_audit_log_is_listed_verified_and_proved_without_the_appliance(
    running: RunningAppliance, model: str, tmp_path: Path
) -> None:
    page = cli(running, "audit", "list", "--kind", "version.registered")
    entry = page["entries"][0]
    assert entry["kind"] == "version.registered"
    assert cli(running, "audit", "verify")["ok"] is True
    proof = cli(running, "audit", "prove", str(entry["seq"]))
    file = tmp_path / "entry.proof"
    file.write_bytes(running.cli("audit", "prove", str(entry["seq"])).stdout)
    command = [sys.executable, str(VERIFIER), "proof", str(file)]
    done = subprocess.run(
        [*command, "--public-key", proof["public_key"]], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_retired_version_is_gone(
    running: RunningAppliance, over_https: tuple[str, ...], model: str
) -> None:
    assert running.cli(*over_https, "model", "rm", f"{model}:1").returncode == 65  # nobody to ask
    cli(running, *over_https, "model", "rm", f"{model}:1", "--force")
    problem = cli(running, "model", "call", f"{model}:1", "--data", "{}", code=65)
    assert problem["code"] == "gone"


def test_a_backup_is_made_verified_and_restored(running: RunningAppliance, tmp_path: Path) -> None:
    target = tmp_path / "backup"
    cli(running, "backup", "make", str(target))
    assert running.cli("backup", "verify", str(target)).returncode == 0
    restored = tmp_path / "restored"
    cli(running, "backup", "restore", str(target), "--data-dir", str(restored))
    assert (restored / "keys").is_dir()
    again = running.cli("backup", "restore", str(target), "--data-dir", str(restored))
    assert again.returncode != 0


def test_without_a_key_nothing_is_told_over_https(running: RunningAppliance) -> None:
    ca = str(running.ca_file())
    cli(running, "--url", running.url, "--ca", ca, "tenant", "list", code=77)


def test_a_wrong_ca_is_named_with_the_option_that_fixes_it(running: RunningAppliance) -> None:
    done = running.cli("--url", running.url, "tenant", "list")
    assert done.returncode == 78
    assert b"--ca FILE" in done.stderr


def test_the_console_without_a_terminal_says_so(running: RunningAppliance) -> None:
    done = running.cli("tui")
    assert done.returncode == 78
    assert b"terminal" in done.stderr


@pytest.fixture
def fresh(tmp_path: Path, run_root: Path) -> RunningAppliance:
    run = run_root / f"r{len(list(run_root.iterdir()))}"
    run.mkdir(mode=0o711)
    return RunningAppliance(tmp_path / "data", run)


def test_init_never_overwrites_and_a_wrong_passphrase_opens_nothing(
    fresh: RunningAppliance, tmp_path: Path
) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text("correct horse battery\n")
    bad.write_text("wrong horse battery\n")
    assert fresh.cli("init", "--passphrase-file", str(good)).returncode == 0
    before = sorted(p.name for p in fresh.data_dir.rglob("*"))
    assert fresh.cli("init", "--passphrase-file", str(bad)).returncode == 73
    assert sorted(p.name for p in fresh.data_dir.rglob("*")) == before
    sealed = RunningAppliance(fresh.data_dir, fresh.run_dir, unseal__key_file="")
    sealed.start_process()
    try:
        assert json.loads(sealed.cli("--json", "status").stdout)["state"] == "sealed"
        assert sealed.cli("status").returncode == 75
        assert sealed.cli("unseal", "--passphrase-file", str(bad)).returncode == 77
        done = sealed.cli("tenant", "list")
        assert done.returncode == 75
        assert b"hint: appliance unseal" in done.stderr
        assert (
            sealed.cli("unseal", "--passphrase-file", "-", stdin=good.read_bytes()).returncode == 0
        )
        assert sealed.cli("tenant", "list").returncode == 0
        assert sealed.cli("seal").returncode == 0
        assert json.loads(sealed.cli("--json", "status").stdout)["state"] == "sealed"
    finally:
        sealed.close()


def test_a_port_in_use_is_said_and_nothing_is_started(
    fresh: RunningAppliance,
) -> None:
    fresh.initialise()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", fresh.port))
        listener.listen()
        done = fresh.cli("serve")
    assert done.returncode == 69
    assert str(fresh.port).encode() in done.stderr


def test_serve_before_init_says_what_to_type(fresh: RunningAppliance) -> None:
    fresh.start_process()
    try:
        assert json.loads(fresh.cli("--json", "status").stdout)["state"] == "uninitialised"
        done = fresh.cli("tenant", "list")
        assert done.returncode == 78
        assert b"hint: appliance init" in done.stderr
    finally:
        fresh.close()
