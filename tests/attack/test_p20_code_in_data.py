"""P20: a pickle whose loading has effects never has them on the host, at any step."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from running import RunningAppliance
from sklearn.dummy import DummyClassifier

pytestmark = pytest.mark.podman

MODEL = b"""
import os, pickle
class Model:
    def __init__(self, path):
        with open(os.path.join(path, "model.pkl"), "rb") as file:
            self.value = pickle.load(file)
    def predict(self, inputs):
        return {"exists": os.path.exists(inputs["path"])}
"""


class Bomb:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return os.system, (f"touch {self.path}",)


def test_the_file_appears_in_the_sandbox_only(running: RunningAppliance, tmp_path: Path) -> None:
    target = "/tmp/appliance-p20-canary"  # the one place that exists on both sides
    Path(target).unlink(missing_ok=True)
    secret = running.tenant("pickles")
    files = {
        "appliance.toml": b'runtime = "python3.11"\nentry = "model:Model"\n',
        "model.py": MODEL,
        "model.pkl": pickle.dumps(Bomb(target)),
        "requirements.txt": b"",
    }
    made = running.push(secret, "pickles/bomb", files)
    assert made.status_code == 201, made.text
    with running.https(secret) as client:
        reply = client.post("/api/v1/models/pickles/bomb/invoke", json={"path": target})
        assert reply.json() == {"exists": True}, "the model's own load has its effect inside"
        client.get("/api/v1/models/pickles/bomb/versions/1")
    assert not Path(target).exists()


def test_a_pickle_that_is_recognised_without_a_manifest_runs_in_the_sandbox_only(
    running: RunningAppliance,
) -> None:
    target = "/tmp/appliance-p20-recognised"
    Path(target).unlink(missing_ok=True)
    secret = running.tenant("pickles")
    fitted = DummyClassifier().fit([[0.0], [1.0]], [0, 1])
    fitted.extra = Bomb(target)
    examples = Path(__file__).parents[2] / "examples"
    files = {
        "model.pkl": pickle.dumps(fitted),
        "requirements.txt": (examples / "breast-cancer" / "requirements.txt").read_bytes(),
    }
    made = running.push(secret, "pickles/recognised", files)
    assert made.status_code == 201, made.text
    with running.https(secret) as client:
        reply = client.post("/api/v1/models/pickles/recognised/invoke", json={"rows": [[0.5]]})
        assert reply.json() == {"predictions": [0]}
    assert not Path(target).exists()
