"""Imported images end to end: the command imports an archive, a version is pushed, called, told."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from http_images import python_image
from oci_images import docker_archive, file, layer, oci_archive
from running import RunningAppliance

from appliance.sandbox import images

pytestmark = pytest.mark.podman
EXAMPLE = Path(__file__).parents[2] / "examples" / "churn-image"
MODEL = b"""
class Model:
    def __init__(self, path):
        print("loaded from", path)
    def predict(self, inputs):
        if isinstance(inputs, dict) and inputs.get("raise"):
            raise ValueError("as asked")
        if isinstance(inputs, dict) and "inputs" in inputs:  # the Open Inference Protocol
            data = [2 * value for value in inputs["inputs"][0]["data"]]
            outputs = [{"name": "y", "shape": [len(data)], "datatype": "FP64", "data": data}]
            return {"model_name": "model", "outputs": outputs}
        return {"doubled": [2 * value for value in inputs["rows"]]}
"""


@pytest.fixture(scope="module")
def owner(running: RunningAppliance) -> str:
    return running.tenant("acme")


@pytest.fixture(scope="module")
def archive(runtime: images.Runtime, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive that was never given a protocol."""
    path = tmp_path_factory.mktemp("archive") / "served.tar"
    path.write_bytes(oci_archive(python_image(runtime.rootfs)))
    return path


@pytest.fixture(scope="module")
def imports(running: RunningAppliance) -> Iterator[list[str]]:
    """The names imported here; their folders are gone at the end."""
    names: list[str] = []
    yield names
    for one in images.installed(running.data_dir):
        if one.name in names:
            shutil.rmtree(one.rootfs.parent)


def brought(
    running: RunningAppliance, imports: list[str], archive: Path, name: str, *options: str
) -> dict[str, Any]:
    imports.append(name)
    done = running.cli("runtime", "import", str(archive), "--name", name, "--json", *options)
    assert done.returncode == 0, done.stderr.decode()
    made: dict[str, Any] = json.loads(done.stdout)
    return made


@pytest.fixture(scope="module")
def served(running: RunningAppliance, imports: list[str], archive: Path) -> str:
    """An image imported by the command, of which each version says what it speaks."""
    made = brought(running, imports, archive, "acme-served")
    assert made["kind"] == "image"
    return str(made["name"])


def manifest(runtime: str, more: str = "") -> bytes:
    return f'runtime = "{runtime}"\n[resources]\nmemory_mb = 128\n{more}'.encode()


def invoke(running: RunningAppliance, owner: str, name: str, value: Any) -> Any:
    with running.https(owner) as client:
        return client.post(f"/api/v1/models/acme/{name}/invoke", json=value)


CALLS: dict[str, tuple[Any, Any]] = {
    "sagemaker": ({"rows": [1, 2]}, {"doubled": [2, 4]}),
    "mlflow": ({"rows": [3]}, {"doubled": [6]}),
    "cog": ({"rows": [4]}, {"doubled": [8]}),
    "oip": (
        {"inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": [2.5]}]},
        {
            "model_name": "model",
            "outputs": [{"name": "y", "shape": [1], "datatype": "FP64", "data": [5.0]}],
        },
    ),
}


@pytest.mark.parametrize("protocol", CALLS)
def test_a_version_of_an_image_is_registered_and_called_by_its_protocol(
    running: RunningAppliance, owner: str, served: str, protocol: str
) -> None:
    name = f"by-{protocol}"
    path = {"oip": "/mnt/models", "cog": "/model"}.get(protocol, "/opt/ml/model")
    more = f'[container]\nprotocol = "{protocol}"\nenvironment = {{ FILES = "{path}" }}\n'
    if protocol == "sagemaker":  # a program "serve" is what the contract starts
        more += 'command = ["python3.11", "server.py", "serve"]\n'
    pushed = running.push(
        owner, f"acme/{name}", {"appliance.toml": manifest(served, more), "model.py": MODEL}
    )
    assert pushed.status_code == 201, pushed.text
    assert pushed.json()["container"]["environment"] == {"FILES": path}
    asked, expected = CALLS[protocol]
    reply = invoke(running, owner, name, asked)
    assert (reply.status_code, reply.json()) == (200, expected)
    failed = invoke(running, owner, name, {"raise": True})
    assert (failed.status_code, failed.json()["code"]) == (502, "model-raised")
    assert "as asked" in failed.json()["detail"]
    assert f"loaded from {path}" in " ".join(failed.json()["stderr"])
    assert invoke(running, owner, name, asked).json() == expected


def test_a_docker_archive_is_the_same_and_a_version_may_say_everything_itself(
    running: RunningAppliance,
    owner: str,
    imports: list[str],
    runtime: images.Runtime,
    tmp_path: Path,
) -> None:
    path = tmp_path / "docker.tar"
    path.write_bytes(docker_archive(python_image(runtime.rootfs, Entrypoint=None)))
    brought(running, imports, path, "acme-docker")
    bare = {"appliance.toml": manifest("acme-docker"), "model.py": MODEL}
    refused = running.push(owner, "acme/bare", bare)
    assert (refused.status_code, refused.json()["code"]) == (422, "manifest-invalid")
    assert "which protocol" in refused.json()["detail"]
    more = (
        '[container]\nprotocol = "http"\nport = 81\ncommand = ["python3.11", "server.py"]\n'
        'path = "/score"\nhealth_path = "/health"\n'
    )
    files = {"appliance.toml": manifest("acme-docker", more), "model.py": MODEL}
    pushed = running.push(owner, "acme/whole", files)
    assert pushed.status_code == 201, pushed.text
    assert invoke(running, owner, "whole", {"rows": [5]}).json() == {"doubled": [10]}


FAILING = {
    "nothing to start": ('command = ["/no/such/server"]', "cannot start '/no/such/server'", ""),
    "it ends": (
        'command = ["python3.11", "-c", "print(\'so long\'); exit(3)"]',
        "code 3",
        "so long",
    ),
    "another port": (
        "port = 9999\nenvironment = { PORT = '9998' }",
        "nothing listens on",
        "starting",
    ),
    "never ready": ('health_path = "/nope"', "/nope answered 404", "starting"),
    "no such folder": ('model_path = "/srv/none"', "no folder /srv/none", ""),
}


@pytest.mark.parametrize(("told", "detail", "printed"), FAILING.values(), ids=FAILING)
def test_an_image_that_does_not_come_up_is_refused_with_what_it_printed(
    running: RunningAppliance,
    owner: str,
    served: str,
    told: str,
    detail: str,
    printed: str,
) -> None:
    more = f'[limits]\nload_timeout_ms = 1500\n[container]\nprotocol = "mlflow"\n{told}\n'
    files = {"appliance.toml": manifest(served, more), "model.py": MODEL}
    refused = running.push(owner, "acme/failing", files)
    assert refused.status_code == 422, refused.text
    assert detail in refused.json()["detail"]
    assert printed in " ".join(refused.json().get("stderr", []))


def test_a_hostile_archive_is_told_by_layer_and_member_and_leaves_nothing(
    running: RunningAppliance, tmp_path: Path, runtime: images.Runtime
) -> None:
    parts = python_image(runtime.rootfs)
    parts.layers.append(layer(file("../../escape")))
    path = tmp_path / "evil.tar"
    path.write_bytes(oci_archive(parts))
    before = sorted(os.listdir(running.data_dir / "runtimes"))
    done = running.cli("runtime", "import", str(path), "--name", "evil")
    said = done.stderr.decode()
    assert done.returncode == 65
    assert "Layer 3" in said
    assert "../../escape" in said
    assert sorted(os.listdir(running.data_dir / "runtimes")) == before


def test_an_import_that_is_ended_or_killed_leaves_nothing_that_stays(
    running: RunningAppliance, imports: list[str], archive: Path
) -> None:
    folder = running.data_dir / "runtimes"

    def left() -> list[str]:
        return [name for name in os.listdir(folder) if name.startswith((".import-", "acme-killed"))]

    assert left() == []
    for signal_name in ("TERM", "KILL"):
        command = [sys.executable, "-m", "appliance", "runtime", "import", str(archive)]
        with subprocess.Popen(
            [*command, "--name", "acme-killed"],
            env=running.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            while not left():
                assert process.poll() is None
            process.send_signal({"TERM": 15, "KILL": 9}[signal_name])
        deadline = time.monotonic() + 30
        while left():
            assert time.monotonic() < deadline, left()
            time.sleep(0.05)
    assert "acme-killed" not in images.imported(running.data_dir)
    brought(running, imports, archive, "acme-again", "--protocol", "mlflow")
    assert left() == []


@pytest.mark.slow
def test_the_example_from_podmans_own_archive_answers_what_the_trained_model_says(
    running: RunningAppliance, owner: str, imports: list[str], served: str, tmp_path: Path
) -> None:
    rootfs = images.require(running.data_dir, served).rootfs  # smaller than a language's
    saved = tmp_path / "churn-server.tar"
    made = subprocess.run(
        ["/bin/sh", str(EXAMPLE / "image.sh"), str(rootfs), str(saved)],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr.decode()
    made_of = brought(running, imports, saved, "churn-server", "--protocol", "sagemaker")
    assert made_of["kind"] == "image sagemaker"
    listed = json.loads(running.cli("runtime", "list", "--json").stdout)["items"]
    assert made_of["digest"] in [one["digest"] for one in listed if one["name"] == "churn-server"]
    again = brought(running, imports, saved, "churn-server", "--protocol", "sagemaker")
    assert again == made_of
    folder = tmp_path / "model"
    subprocess.run([sys.executable, str(EXAMPLE / "train.py"), str(folder)], check=True)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    pushed = running.push(owner, "acme/churn", files)
    assert pushed.status_code == 201, pushed.text
    rows = json.loads((tmp_path / "rows.json").read_text())
    found = invoke(running, owner, "churn", rows).json()["predictions"]
    expected = json.loads((tmp_path / "expected.json").read_text())["predictions"]
    assert len(found) == len(expected) == 5
    assert all(math.isclose(a, b, rel_tol=1e-9) for a, b in zip(found, expected, strict=True))
    wrong = invoke(running, owner, "churn", {"rows": []})
    assert "not scored: KeyError" in wrong.json()["detail"]
    for path in running.data_dir.rglob("*"):
        if path.is_file() and "runtimes" not in path.parts:
            assert b"late_payments" not in path.read_bytes(), path
