"""A tenant's isolation, end to end: its models run with a kernel of their own, secrets included."""

from __future__ import annotations

import os

import pytest
from running import RunningAppliance

from appliance.sandbox import tiers

pytestmark = pytest.mark.podman

MODEL = b"""
class Model:
    def __init__(self, path):
        self.secret = open(path + "/.secrets/word").read()
    def predict(self, inputs):
        return {"kernel": open("/proc/version").read(), "secret": self.secret}
"""
MANIFEST = b'runtime = "python3.11"\nentry = "model:Model"\nsecrets = ["word"]\n'


def test_the_stronger_of_tenants_and_versions_wish_wins(running: RunningAppliance) -> None:
    if not tiers.runsc_path():
        pytest.skip(f"gVisor is not installed here: {tiers.INSTALL}")
    key, path = running.tenant("kernels"), "/api/v1/models/kernels/m"
    with running.https(key) as client:
        client.put(f"{path}/secrets/word", json={"value": "open"})
    for manifest in (MANIFEST, MANIFEST + b'isolation = "gvisor"\n'):
        made = running.push(key, "kernels/m", {"appliance.toml": manifest, "model.py": MODEL})
        assert made.status_code == 201, made.text

    def kernel_of(version: int) -> str:
        with running.https(key) as client:
            answer = client.post(f"{path}/versions/{version}/invoke", json={})
        assert answer.status_code == 200, answer.text
        assert answer.json()["secret"] == "open"
        return str(answer.json()["kernel"])

    own = os.uname().release
    assert own in kernel_of(1)
    assert own not in kernel_of(2)
    done = running.cli("tenant", "isolate", "kernels", "gvisor")
    assert done.returncode == 0, done.stderr
    assert own not in kernel_of(1)
    assert running.cli("tenant", "isolate", "kernels", "standard").returncode == 0
    assert own in kernel_of(1)
    assert own not in kernel_of(2)
