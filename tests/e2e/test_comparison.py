"""A comparison by command, on real sandboxes: two models of different code, measured and shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from running import RunningAppliance

pytestmark = pytest.mark.podman
SHARP = "int(row[0] > 5)"
BLUNT = "int(row[0] > 7)"


def model_files(rule: str) -> dict[str, bytes]:
    source = f"""
class Model:
    def __init__(self, path): pass
    def predict(self, inputs):
        said = [{rule} for row in inputs["rows"]]
        return {{"classes": [0, 1], "probabilities": [[1 - y * 0.8, y * 0.8] for y in said]}}
"""
    manifest = b'runtime = "python3.11"\nentry = "model:Model"\n'
    return {"appliance.toml": manifest, "model.py": source.encode()}


def test_two_versions_are_compared_from_the_command_line(
    running: RunningAppliance, tmp_path: Path
) -> None:
    secret = running.tenant("compare")
    for rule in (SHARP, BLUNT):
        assert running.push(secret, "compare/m", model_files(rule)).status_code == 201
    data = tmp_path / "test.csv"
    data.write_text("x,y\n" + "".join(f"{n % 10},{int(n % 10 > 5)}\n" for n in range(200)))
    asked = ("model", "compare", "compare/m@1", "compare/m:2", "--data", str(data), "--label", "y")
    shown = running.cli(*asked)
    assert shown.returncode == 0, shown.stderr
    text = shown.stdout.decode()
    assert "200 rows, classification (told from the data)" in text
    assert "m:1 and m:2" in text
    assert "80.00 %" in text
    found = json.loads(running.cli("--json", *asked, "--worst", "1").stdout)
    metrics = [one["metrics"]["accuracy"] for one in found["report"]["targets"]]
    assert metrics == [1.0, 0.8]
    assert found["report"]["worst"][0]["input"] in ({"x": 6}, {"x": 7})
    listed = running.cli("comparison", "list", "compare").stdout.decode()
    assert found["id"] in listed
    place = f"compare/{found['id']}"
    assert "differ most:" in running.cli("comparison", "show", place).stdout.decode()
    wrong = running.cli("model", "compare", "compare/m:9", "--data", str(data))
    assert wrong.returncode == 65
    assert b"'m' has no version 9" in wrong.stderr
