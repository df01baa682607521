"""Routes by command, on real sandboxes: shares, canary, return, promotion, successor."""

from __future__ import annotations

import json
from typing import Any

import pytest
from running import RunningAppliance

pytestmark = pytest.mark.podman
TARGET = "traffic/m"


def model_files(number: int) -> dict[str, bytes]:
    source = f"""
class Model:
    def __init__(self, path): pass
    def predict(self, inputs): return {{"answer": {number}}}
"""
    manifest = b'runtime = "python3.11"\nentry = "model:Model"\n'
    return {"appliance.toml": manifest, "model.py": source.encode()}


def cli(running: RunningAppliance, *arguments: str, code: int = 0) -> Any:
    done = running.cli("--json", *arguments)
    assert done.returncode == code, (done.stdout, done.stderr)
    return json.loads(done.stdout if code == 0 else done.stderr.splitlines()[-1])


def text(running: RunningAppliance, *arguments: str) -> str:
    done = running.cli(*arguments)
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout.decode()


def test_a_route_from_the_first_share_to_promotion(running: RunningAppliance) -> None:
    secret = running.tenant("traffic")
    for number in (1, 2):
        assert running.push(secret, TARGET, model_files(number)).status_code == 201
    assert "never had a route" in running.cli("route", "history", TARGET).stderr.decode()

    def answers(calls: int, **headers: str) -> set[int]:
        found = set()
        with running.https(secret) as client:
            for _ in range(calls):
                reply = client.post(f"/api/v1/models/{TARGET}/invoke", json={}, headers=headers)
                assert reply.status_code == 200, reply.text
                assert reply.headers["model-version"] == str(reply.json()["answer"])
                found.add(reply.json()["answer"])
        return found

    assert answers(3) == {1}
    shown = text(running, "route", "set", TARGET, "1=50", "2=50", "--reason", "A/B")
    assert "version 1     50 %" in shown
    assert answers(40) == {1, 2}
    shown = text(running, "route", "stats", TARGET)
    assert "version 2 minus version 1" in shown
    assert "calls needed" in shown
    problem = cli(running, "route", "set", TARGET, "1=50", "2=40", code=65)
    assert problem["code"] == "route-invalid"
    assert "sum to 90 percent" in problem["detail"]
    problem = cli(running, "route", "hold", TARGET, "--revision", "7", code=75)
    assert problem["code"] == "revision-stale"
    made = cli(
        running, "route", "canary", TARGET, "2", "--percent", "10", "--error-rate-max", "0.02",
        "--latency-ratio-max", "2", "--step", "50", "--step", "100", "--sticky", "header:x-user",
    )  # fmt: skip
    assert [a["percent"] for a in made["arms"]] == [90, 10]
    assert (made["canary"]["against"], made["canary"]["steps_percent"]) == (1, [50, 100])
    homes = [answers(3, **{"x-user": f"u{n}"}) for n in range(8)]
    assert all(len(home) == 1 for home in homes)
    assert "steps   50, 100 %" in text(running, "route", "show", TARGET)
    assert "held" in text(running, "route", "hold", TARGET)
    assert "aborted" in text(running, "route", "abort", TARGET, "--reason", "bad")
    assert answers(5) == {1}
    assert "held" in text(running, "route", "back", TARGET)
    assert (
        cli(running, "model", "rm", f"{TARGET}:2", "--force", code=69)["code"] == "version-routed"
    )
    assert "version 2 of traffic/m is live" in text(running, "route", "promote", TARGET)
    assert answers(3) == {2}
    states = [one["state"] for one in cli(running, "route", "history", TARGET)["items"]]
    assert states == ["promoted", "held", "aborted", "held", "active", "active"]
    assert cli(running, "model", "rm", f"{TARGET}:1", "--force")
    gone = cli(running, "model", "call", f"{TARGET}:1", "--data", "{}", code=65)
    assert gone["code"] == "gone"
    assert "call version 2 instead" in gone["detail"]
