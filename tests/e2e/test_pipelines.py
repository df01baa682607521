"""Models that call models, in real sandboxes, from push to the audit log."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from languages import installed
from running import RunningAppliance

pytestmark = pytest.mark.podman
DOCUMENT = Path(__file__).parents[2] / "docs" / "pipelines.md"
LANGUAGES = {
    "node18": ("javascript", "model.js", "model.js:Model"),
    "ruby3.1": ("ruby", "model.rb", "model.rb:Model"),
    "java17": ("java", "Model.java", "Model.java:Model"),
    "cpp": ("cpp", "model.cpp", "model.cpp:Model"),
    "mono6.8": ("csharp", "Model.cs", "Model.cs:Model"),
    "r4.2": ("r", "model.R", "model.R:load_model"),
}
EXAMPLE = Path(__file__).parents[2] / "examples" / "iris-pipeline"
ROWS = str(EXAMPLE / "rows.json")


def text(running: RunningAppliance, *arguments: str) -> str:
    done = running.cli(*arguments)
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout.decode()


def cli(running: RunningAppliance, *arguments: str) -> Any:
    return json.loads(text(running, "--json", *arguments))


@pytest.fixture(scope="module")
def parts(running: RunningAppliance) -> str:
    """The tenant whose two models the others are made of."""
    cli(running, "tenant", "create", "demo")
    for folder in ("scaler", "classifier"):
        text(running, "model", "push", str(EXAMPLE / folder), f"demo/iris-{folder}")
    return "demo"


def test_a_model_calls_two_others_and_the_audit_log_shows_all_three(
    running: RunningAppliance, parts: str
) -> None:
    made = cli(running, "model", "push", str(EXAMPLE / "screener"), f"{parts}/screener")
    assert made["calls"] == ["iris-scaler", "iris-classifier@live"]
    done = running.cli("model", "call", f"{parts}/screener", "--data", ROWS)
    assert done.returncode == 0, done.stderr
    expected = json.loads((EXAMPLE / "expected.json").read_text())
    assert json.loads(done.stdout) == [
        expected["classes"][row.index(max(row))] if max(row) >= 0.9 else None
        for row in expected["probabilities"]
    ]
    request_id = done.stderr.decode().split()[-1]
    tree = cli(running, "audit", "calls", request_id)
    assert [(one["depth"], one["model"], one["code"]) for one in tree["calls"]] == [
        (0, "screener", "ok"),
        (1, "iris-scaler", "ok"),
        (1, "iris-classifier", "ok"),
    ]
    lines = text(running, "audit", "calls", request_id).splitlines()
    assert lines[1].startswith("demo/screener:1 ")
    assert lines[2].startswith("  demo/iris-scaler:1 ")


@pytest.mark.parametrize("runtime", [name for name in LANGUAGES if name in installed()])
def test_what_the_document_shows_in_each_language_calls_as_it_says(
    running: RunningAppliance, parts: str, tmp_path: Path, runtime: str
) -> None:
    spoken, file, entry = LANGUAGES[runtime]
    (code,) = re.findall(rf"```{spoken}\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    (tmp_path / file).write_text(code)
    (tmp_path / "appliance.toml").write_text(
        f'runtime = "{runtime}"\nentry = "{entry}"\n'
        'calls = ["iris-scaler", "iris-classifier@live"]\n'
    )
    name = f"{parts}/calls-{spoken}"
    text(running, "model", "push", str(tmp_path), name)
    done = running.cli("model", "call", name, "--data", ROWS)
    assert done.returncode == 0, done.stderr
    expected = json.loads((EXAMPLE / "expected.json").read_text())
    answer = json.loads(done.stdout)
    if runtime == "cpp":  # passes the scaler's answer on
        assert len(answer["features"]) == len(expected["probabilities"])
    else:
        assert answer["classes"] == expected["classes"]
    tree = cli(running, "audit", "calls", done.stderr.decode().split()[-1])
    called = [] if runtime == "cpp" else ["iris-classifier"]
    assert [one["model"] for one in tree["calls"]][1:] == ["iris-scaler", *called]


def test_a_declared_pipeline_answers_as_the_whole_does(
    running: RunningAppliance, parts: str
) -> None:
    made = cli(running, "model", "push", str(EXAMPLE / "pipeline"), f"{parts}/iris")
    assert [one["target"] for one in made["steps"]] == ["iris-scaler:1", "iris-classifier@live"]
    answer = json.loads(text(running, "model", "call", f"{parts}/iris", "--data", ROWS))
    expected = json.loads((EXAMPLE / "expected.json").read_text())
    assert answer["classes"] == expected["classes"]
    for found, wanted in zip(answer["probabilities"], expected["probabilities"], strict=True):
        assert found == pytest.approx(wanted, abs=1e-9)
    assert "iris-classifier: iris-classifier@live takes" in text(
        running, "model", "show", f"{parts}/iris:1"
    )
    tree = text(running, "model", "lineage", f"{parts}/iris").splitlines()
    assert tree[1] == "made from, and calls"
    assert tree[2].startswith("├── calls iris-scaler@1  live")
    assert tree[3].startswith("└── calls iris-classifier@live, now iris-classifier@1  live")
    callers = text(running, "model", "lineage", f"{parts}/iris-scaler")
    assert "became, and called by" in callers
    assert "called by iris@1  live" in callers
    graph = cli(running, "model", "lineage", f"{parts}/iris", "--direction", "ancestors")
    assert [(one["kind"], one["call"]) for one in graph["edges"]] == [
        ("calls", "iris-scaler:1"),
        ("calls", "iris-classifier@live"),
    ]
