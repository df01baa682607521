"""From one appliance to another without an index: build, list, export, import, verify, remove."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import RunningAppliance, tar_of_files
from tiny_runtime import tiny_runtime

pytestmark = pytest.mark.podman
FILES = {
    "appliance.toml": b'runtime = "python3.11"\nentry = "model:Model"\n'
    b'requirements = "requirements.txt"\n',
    "requirements.txt": b"# pinned\nalpha==1.0\n",
    "model.py": b"import alpha, beta\nclass Model:\n    def __init__(self, path): pass\n"
    b"    def predict(self, inputs): return [alpha.VALUE, beta.VALUE]\n",
}


def wheel(folder: Path, name: str, requires: str = "") -> None:
    folder.mkdir(exist_ok=True)
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    about += f"Requires-Dist: {requires}\n" if requires else ""
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        info = f"{name}-1.0.dist-info"
        archive.writestr(f"{name}.py", f"VALUE = '{name}'\n")
        archive.writestr(f"{info}/METADATA", about)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def cli(running: RunningAppliance, *arguments: str, code: int = 0) -> Any:
    """Run a command with --json; its parsed answer (of stderr when a problem is expected)."""
    done = running.cli("--json", *arguments)
    assert done.returncode == code, (done.stdout, done.stderr)
    return json.loads(done.stdout if code == 0 else done.stderr.splitlines()[-1])


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("house")
    wheel(folder, "alpha", "beta==1.0")
    wheel(folder, "beta")
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, house: Path) -> Iterator[RunningAppliance]:
    """An appliance whose Python runtime and sets are its own, not links to the tests' data."""
    data_dir = tmp_path_factory.mktemp("supply") / "data"
    base = os.environ.get("APPLIANCE_TEST_RUN", "/dev/shm")
    with tempfile.TemporaryDirectory(prefix="su-", dir=base, ignore_cleanup_errors=True) as run:
        Path(run).chmod(0o711)
        appliance = RunningAppliance(data_dir, Path(run), build__wheelhouse=house)
        appliance.initialise()
        (data_dir / "deps").unlink()
        source = (data_dir / "runtimes").resolve()
        (data_dir / "runtimes").unlink()
        (data_dir / "runtimes").mkdir(mode=0o711)
        newest = max(source.glob("python3.11-*"))
        shutil.copytree(newest, data_dir / "runtimes" / newest.name, symlinks=True)
        tiny_runtime(data_dir)
        try:
            appliance.start()
            yield appliance
        finally:
            appliance.close()


@pytest.fixture(scope="module")
def secret(own: RunningAppliance) -> str:
    return own.tenant("acme")


@pytest.fixture(scope="module")
def version(own: RunningAppliance, secret: str) -> dict[str, Any]:
    made = own.push(secret, "acme/two", FILES)
    assert made.status_code == 201, made.text
    return dict(made.json())


def test_a_version_records_every_package_and_shows_it(
    own: RunningAppliance, version: dict[str, Any]
) -> None:
    assert [(one["name"], one["version"]) for one in version["lock"]] == [
        ("alpha", "1.0"),
        ("beta", "1.0"),
    ]
    assert all(one["digest"].startswith("sha256:") for one in version["lock"])
    shown = own.cli("model", "show", "acme/two:1").stdout.decode()
    assert "beta 1.0 sha256:" in shown


def test_a_failed_build_names_package_line_and_what_to_do(
    own: RunningAppliance, secret: str
) -> None:
    files = {**FILES, "requirements.txt": b"alpha==1.0\ngamma==3.0\n"}
    refused = own.push(secret, "acme/three", files)
    assert refused.status_code == 422
    problem = refused.json()
    assert problem["code"] == "build-failed"
    assert problem["errors"][0]["pointer"] == "requirements.txt:2"
    assert problem["package"] == "gamma==3.0"
    assert "build.wheelhouse" in problem["hint"]


def test_the_log_of_a_build_is_streamed(own: RunningAppliance, secret: str) -> None:
    files = {**FILES, "requirements.txt": b"beta==1.0\n", "model.py": FILES["model.py"].replace(
        b"import alpha, beta", b"import beta").replace(b"alpha.VALUE, ", b"")}  # fmt: skip
    with own.https(secret) as client:
        reply = client.post(
            "/api/v1/models/acme/logged/versions",
            content=tar_of_files(files),
            headers={"Content-Type": "application/x-tar", "Accept": "application/x-ndjson"},
        )
    lines = [json.loads(line) for line in reply.text.splitlines()]
    assert lines[-1]["version"]["version"] == 1
    told = [line["detail"] for line in lines if line.get("step") == "build"]
    assert any("Successfully installed beta-1.0" in line for line in told), told
    fractions = [line["fraction"] for line in lines if "fraction" in line]
    assert fractions == sorted(fractions)


def test_runtimes_and_sets_are_listed_with_who_uses_them(
    own: RunningAppliance, version: dict[str, Any]
) -> None:
    listed = cli(own, "runtime", "list")
    python, ruby = listed["items"]
    assert (ruby["uses"], ruby["size_bytes"]) == ([], 3003)
    assert {"tenant": "acme", "model": "two", "version": 1} in python["uses"]
    assert listed["signer"].startswith("sha256:")
    sets = cli(own, "runtime", "sets")["items"]
    assert ["alpha 1.0", "beta 1.0"] in [one["packages"] for one in sets]
    assert "python3.11" in own.cli("runtime", "list").stdout.decode()
    assert "KEY" in own.cli("runtime", "sets").stdout.decode()


def test_a_runtime_goes_to_an_appliance_without_an_index(
    own: RunningAppliance, version: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "ruby.bundle"
    done = cli(own, "runtime", "export", "ruby3.1", "-o", str(file))
    again = cli(own, "runtime", "export", "ruby3.1", "-o", str(file), code=65)
    assert "exists already" in again["detail"]
    key = cli(own, "runtime", "sets")["items"][0]["key"]
    other = cli(
        own, "runtime", "export", "ruby3.1", "--with-deps", key[:8], "-o", f"{file}2", code=65
    )
    assert "is of another runtime" in other["detail"]

    there = RunningAppliance(tmp_path / "there", tmp_path / "run")
    there.data_dir.mkdir()
    refused = cli(there, "runtime", "import", str(file), code=65)
    assert refused["code"] == "bundle-rejected"
    assert done["signer"] in refused["detail"]
    installed = cli(there, "runtime", "import", str(file), "--trust", done["signer"])
    assert installed["digest"] == done["digest"]
    assert installed["signer"] == done["signer"]
    (row,) = cli(there, "runtime", "verify")["items"]
    assert row["state"] == "same"
    changed = Path(installed["rootfs"]) / "etc/debian_version"
    changed.write_text("other\n")
    problem = there.cli("--json", "runtime", "verify", "ruby3.1")
    assert problem.returncode != 0
    assert json.loads(problem.stdout)["items"][0]["differences"] == ["changed: /etc/debian_version"]


def test_a_running_appliance_does_the_work_and_records_it(
    own: RunningAppliance, version: dict[str, Any]
) -> None:
    (row,) = cli(own, "runtime", "verify", "ruby3.1")["items"]
    assert row["state"] == "same"
    kept = cli(own, "runtime", "build", "cobol", code=69)
    assert kept["code"] == "runtime-missing"
    with own.admin() as client:
        entries = client.get("/api/v1/audit", params={"limit": 10}).json()["entries"]
        jobs = client.get("/admin/v1/runtimes").json()["jobs"]
    assert {"runtime.verified", "runtime.requested"} <= {entry["kind"] for entry in entries}
    assert [(one["verb"], one["name"], one["state"]) for one in jobs] == [
        ("verify", "ruby3.1", "done"),
        ("build", "cobol", "failed"),
    ]


def test_what_is_used_stays_and_what_is_not_goes(
    own: RunningAppliance, version: dict[str, Any], secret: str
) -> None:
    digest = cli(own, "runtime", "list")["items"][0]["digest"]
    refused = cli(own, "runtime", "remove", "python3.11", digest[:19], "--force", code=65)
    assert refused["code"] == "runtime-in-use"
    assert "acme/two:1" in refused["detail"]
    assert cli(own, "runtime", "gc", "--now")["removed"] == []
    with own.https(secret) as client:
        for name in ("two", "logged"):
            assert client.delete(f"/api/v1/models/acme/{name}").status_code == 204
    assert cli(own, "runtime", "gc")["removed"] == [], "asked for within the hour"
    gone = cli(own, "runtime", "gc", "--now")
    assert len(gone["removed"]) == 2
    assert gone["size_bytes"] > 0
    assert not list((own.data_dir / "deps").iterdir())
    tiny = cli(own, "runtime", "list")["items"][1]["digest"]
    cli(own, "runtime", "remove", "ruby3.1", tiny[:15], "--force")
    assert [one["name"] for one in cli(own, "runtime", "list")["items"]] == ["python3.11"]
    with own.admin() as client:
        entries = client.get("/api/v1/audit", params={"limit": 200}).json()["entries"]
    kinds = {entry["kind"] for entry in entries}
    assert {"runtime.removed", "dependencies.removed", "runtime.exported"} <= kinds
