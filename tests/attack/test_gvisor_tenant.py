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


LONELY = b"""
import urllib.request
class Model:
    def __init__(self, path):
        pass
    def predict(self, inputs):
        return urllib.request.urlopen("http://192.0.2.7:8080/", timeout=2).read().decode()
"""


def test_a_version_with_no_way_out_says_so_when_registered_and_when_it_fails(
    running: RunningAppliance,
) -> None:
    if not tiers.runsc_path():
        pytest.skip(f"gVisor is not installed here: {tiers.INSTALL}")
    key = running.tenant("lonely")
    manifest = b'runtime = "python3.11"\nentry = "model:Model"\nisolation = "gvisor"\n'
    plain = {"appliance.toml": manifest, "model.py": LONELY}
    assert running.push(key, "lonely/before", plain).json()["notes"] == []
    rule = ("egress", "allow", "lonely", "192.0.2.7", "--port", "8080", "--reason", "a test")
    done = running.cli(*rule)
    assert done.returncode == 0, done.stderr
    assert "not in force for before version 1" in done.stdout.decode()
    made = running.push(key, "lonely/m", plain)
    assert made.status_code == 201, made.text
    assert "egress rules are not in force here" in made.json()["notes"][-1]
    assert "have no way out" in running.cli("egress", "list", "lonely").stdout.decode()
    told = running.cli("egress", "explain", "lonely", "192.0.2.7", "--port", "8080",
                       "--model", "m", "--protocol", "http")  # fmt: skip
    assert told.returncode == 77
    assert "have no way out" in told.stdout.decode()
    with running.https(key) as client:
        answer = client.post("/api/v1/models/lonely/m/invoke", json={})
    assert answer.status_code == 502, answer.text
    assert "egress rules are not in force here" in answer.json()["stderr"][0]
