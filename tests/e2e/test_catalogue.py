"""Lineage and the catalogue by command, against a real appliance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from running import RunningAppliance

pytestmark = pytest.mark.podman

MODEL = """
class Model:
    def __init__(self, path): pass
    def predict(self, inputs): return {{"score": {number}}}
"""
BASE = """\
runtime = "python3.11"
entry = "model:Model"
description = "Customer encoder, trained on all regions"

[lineage]
parents = ["bert-base of elsewhere"]
data = ["sha256:6a1f0cb3 customers 2026-10"]
"""
CHURN = """\
runtime = "python3.11"
entry = "model:Model"
description = "Churn within 90 days"

[lineage]
parents = ["base@1"]
data = ["sha256:77d2e4c0 contracts 2026-10"]
code = "git 1a2b3c4"
run = "nightly 17"

[tags]
team = "retention"

[input_schema.properties]
age = {{ type = "integer" }}
income = {{ type = "number" }}

[output_schema.properties]
score = {{ type = "number" }}
# {number}
"""
NEXT = CHURN.replace("base@1", "churn@1").replace("nightly 17", "nightly 18")


def cli(running: RunningAppliance, *arguments: str, code: int = 0) -> Any:
    done = running.cli("--json", *arguments)
    assert done.returncode == code, (done.stdout, done.stderr)
    return json.loads(done.stdout if code == 0 else done.stderr.splitlines()[-1])


def text(running: RunningAppliance, *arguments: str) -> str:
    done = running.cli(*arguments)
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout.decode()


def push(
    running: RunningAppliance, folder: Path, name: str, manifest: str, number: int
) -> tuple[int, str]:
    """Exit code and what was said to the person."""
    folder.mkdir(exist_ok=True)
    (folder / "appliance.toml").write_text(manifest.format(number=number))
    (folder / "model.py").write_text(MODEL.format(number=number))
    done = running.cli("model", "push", str(folder), name)
    return done.returncode, done.stderr.decode()


def test_lineage_from_the_manifest_to_the_tree(running: RunningAppliance, tmp_path: Path) -> None:
    running.tenant("family")
    for at, (name, manifest) in enumerate((("base", BASE), ("churn", CHURN), ("churn", NEXT))):
        code, said = push(running, tmp_path / name, f"family/{name}", manifest, at)
        assert code == 0, said
    code, said = push(running, tmp_path / "m", "family/m", CHURN.replace("base@1", "base@7"), 9)
    assert code == 65
    assert "appliance.toml:6: lineage.parents: 'base@7'" in said
    assert "its versions are 1 to 1" in said

    shown = text(running, "model", "lineage", "family/churn@2", "--direction", "ancestors")
    lines = shown.splitlines()
    assert lines[0] == "family/churn@2  Churn within 90 days"
    assert "made from" in lines
    at = {name: next(n for n, line in enumerate(lines) if name in line) for name in
          ("churn@2", "└── churn@1", "└── base@1", "from bert-base of elsewhere")}  # fmt: skip
    assert list(at.values()) == sorted(at.values())
    assert "data sha256:6a1f0cb3 customers 2026-10" in shown
    shown = text(running, "model", "lineage", "family/base@live")
    assert "made from: no version of this tenant" in shown
    assert "churn@2" in shown
    assert "churn@1  live" in shown
    near = running.cli("model", "lineage", "family/base", "--depth", "1")
    assert "1 more beyond here" in near.stderr.decode()
    graph = cli(running, "model", "lineage", "family/churn", "--depth", "3")
    assert (graph["version"], len(graph["nodes"]), len(graph["edges"])) == (1, 3, 2)
    assert cli(running, "model", "lineage", "family/none", code=65)["code"] == "not-found"


def test_search_and_the_hint_that_it_is_there_already(
    running: RunningAppliance, tmp_path: Path
) -> None:
    running.tenant("shop")
    code, said = push(running, tmp_path / "base", "shop/base", BASE, 1)
    assert code == 0, said
    code, said = push(running, tmp_path / "churn", "shop/churn", CHURN, 2)
    assert code == 0, said
    assert "same" not in said
    folder = tmp_path / "copy"
    code, said = push(running, folder, "shop/copy", CHURN.replace("Churn", "Loss"), 2)
    assert code == 0, said
    assert "  compare: churn@1 has the same files" in said.splitlines()
    assert "churn@1 has the same files" in said.splitlines()
    loss = CHURN.replace("Churn", "Loss")
    code, said = push(running, tmp_path / "other", "shop/copy", loss, 3)
    assert code == 0, said
    assert "churn@1 has the same columns" in said.splitlines()
    assert "alike          churn@1 has the same files" in text(
        running, "model", "show", "shop/copy:1"
    )

    found = running.cli("model", "search", "churn", "--tenant", "shop", "--takes", "age")
    assert found.stdout.decode().splitlines() == [
        "shop/churn@1  live  Churn within 90 days",
        "    text      Churn within 90 days",
        "    takes     age, income",
    ]
    assert found.stderr.decode() == "1 of 1 models\n"
    page = cli(running, "model", "search", "--data", "sha256:77d2e4c", "--tenant", "shop")
    assert [item["model"] for item in page["items"]] == ["churn", "copy"]
    first = running.cli("model", "search", "--tenant", "shop", "--limit", "2")
    assert "2 of 3 models; next: --offset 2" in first.stderr.decode()
    nothing = running.cli("model", "search", "--gives", "price", "--tenant", "shop")
    assert (nothing.returncode, nothing.stdout, nothing.stderr) == (0, b"", b"nothing found\n")
    assert cli(running, "model", "search", "--tenant", "none", code=65)["code"] == "not-found"
