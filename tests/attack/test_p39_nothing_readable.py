"""P39: during and after a call no disk holds the model's bytes, the key, the input or a name."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import RunningAppliance

pytestmark = pytest.mark.podman

WEIGHTS = b"canary-weights-7f3a91"
INPUT = "canary-input-55d0c2"
NAMES = {
    "tenant": "canary-tenant-91be",
    "model": "canary-model-40ac",
    "description": "canary description 8e1d",
    "feature": "canary_feature_3c77",
    "reason": "canary reason 12aa",
}
MODEL = b"""
import os, time
class Model:
    def __init__(self, path):
        with open(os.path.join(path, "weights.bin"), "rb") as file:
            self.weights = file.read()
    def predict(self, inputs):
        time.sleep(inputs["nap"])
        return {"got": inputs["text"], "weights": len(self.weights)}
"""
MANIFEST = f"""
runtime = "python3.11"
entry = "model:Model"
description = "{NAMES["description"]}"
[input_schema.properties.{NAMES["feature"]}]
type = "number"
"""


def disk_folders(appliance: RunningAppliance) -> list[Path]:
    """Everywhere the service user may write: state, run folder, temporary and home folders."""
    home = Path(os.environ.get("HOME", "/nonexistent")) / ".local"
    return [appliance.data_dir, appliance.run_dir, Path("/tmp"), Path("/var/tmp"), home]


def own_files(folder: Path) -> Iterator[Path]:
    """Files of the service user, which is all that the appliance can have written."""
    skipped = {"runtimes", "deps", "__pycache__", "pytest-cache-files"}
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in skipped]
        for name in files:
            path = Path(root) / name
            with contextlib.suppress(OSError):  # hidden by another user's folder, or gone
                found = path.lstat()
                if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid():
                    yield path


def hits(appliance: RunningAppliance, canaries: dict[str, bytes]) -> list[str]:
    found = []
    own = Path(__file__).read_bytes()
    for folder in disk_folders(appliance):
        for path in own_files(folder):
            try:
                data = path.read_bytes()
            except OSError:
                continue
            # The test tree itself may lie in a temporary folder.
            if data == own or path.suffix in (".py", ".pyc"):
                continue
            found += [f"{name} in {path}" for name, canary in canaries.items() if canary in data]
    return found


def test_a_scan_of_every_disk_finds_nothing_during_and_after_a_call(
    running: RunningAppliance,
) -> None:
    tenant, model = NAMES["tenant"], NAMES["model"]
    secret = running.tenant(tenant)
    canaries = {name: text.encode() for name, text in NAMES.items()}
    canaries |= {"weights": WEIGHTS, "input": INPUT.encode(), "key": secret.encode()}
    files = {
        "appliance.toml": MANIFEST.encode(),
        "model.py": MODEL,
        "weights.bin": WEIGHTS * 1000,
    }
    made = running.push(secret, f"{tenant}/{model}", files)
    assert made.status_code == 201, made.text
    path = f"/api/v1/models/{tenant}/{model}"
    with running.https(secret) as client:
        moved = client.put(
            f"{path}/aliases/champion", json={"version": 1, "reason": NAMES["reason"]}
        )
        assert moved.status_code in (200, 201), moved.text
    answers = []

    def call() -> None:
        with running.https(secret) as client:
            answers.append(client.post(f"{path}/invoke", json={"text": INPUT, "nap": 8}))

    caller = threading.Thread(target=call)
    caller.start()
    during = hits(running, canaries)
    was_running = caller.is_alive()
    caller.join()
    assert answers[0].json() == {"got": INPUT, "weights": len(WEIGHTS) * 1000}
    assert was_running, "the scan must overlap the call"
    assert during == []
    assert hits(running, canaries) == []
    assert running.stop() == 0
    assert hits(running, canaries) == []
    running.start()
