"""The unmodified MLflow client against a real appliance: logged, registered, called, compared.

Always with ``mlflow-skinny``, which is the client; with APPLIANCE_TEST_MLFLOW=1 with the whole of
MLflow as well, which is installed into a virtual environment first and chooses its requirements.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from running import RunningAppliance
from whole_mlflow import python_with_mlflow

pytestmark = pytest.mark.podman
SCRIPTS = Path(__file__).parents[1] / "support"
PINS = Path(__file__).parents[2] / "examples" / "iris-mlflow" / "model" / "requirements.txt"


def client_says(
    running: RunningAppliance, tenant: str, secret: str, python: str, *pins: str,
    script: str = "mlflow_script.py",
) -> dict[str, Any]:  # fmt: skip
    """What a script printed."""
    with running.admin() as admin:
        ca_file = running.data_dir.parent / "ca.pem"
        ca_file.write_text(admin.get("/ca.pem").text)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(running.data_dir.parent),
        "MLFLOW_TRACKING_URI": f"https://localhost:{running.port}/t/{tenant}",
        "MLFLOW_TRACKING_TOKEN": secret,
        "MLFLOW_TRACKING_SERVER_CERT_PATH": str(ca_file),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    done = subprocess.run(
        [python, str(SCRIPTS / script), *pins], env=environment, capture_output=True, timeout=1200,
        cwd=running.data_dir.parent, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-6000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def require_all(running: RunningAppliance, tenant: str, secret: str, said: dict[str, Any]) -> None:
    """What the client was told is so, and what it logged answers as it does in MLflow."""
    assert said["models"] == ["iris"]
    assert said["versions"] == ["1"]
    assert {"champion", "live"} <= set(said["aliases"])
    assert said["version"] == {
        "status": "READY",
        "run_id": said["run_id"],
        "description": "the first one",
        "tags": {"checked": "yes"},
    }
    assert (said["runs"], said["params"]) == (["first"], {"max_iter": "300"})
    assert said["history"] == pytest.approx([1.0, 0.5, 1 / 3])
    assert said["outputs"] == [said["model_id"]]
    assert said["copied"][0] == "iris-copy"
    assert (str(said["again"]), said["staged"], said["left"]) == ("2", ["1"], ["1"])
    assert {"MLmodel", "requirements.txt"} <= set(said["files"])
    assert said["notes"] == {"seen": 150}
    assert said["missing"].startswith("RESOURCE_DOES_NOT_EXIST")
    assert "'my-model'" in said["illegal"]
    assert said["elsewhere"].startswith("INVALID_PARAMETER_VALUE")
    require_seen(running, tenant, said["broken"])
    table = {"columns": said["columns"], "data": said["rows"]}
    addresses = (
        f"/t/{tenant}/models/iris/aliases/champion/invocations",
        f"/t/{tenant}/models/iris/invocations",
        f"/api/v1/models/{tenant}/iris/versions/1/invoke",
        f"/t/{tenant}/models/iris-copy/invocations",
    )
    with running.https(secret) as client:
        client.timeout = 300
        for address in addresses:
            answer = client.post(address, json={"dataframe_split": table})
            assert answer.status_code == 200, answer.text
            assert answer.json()["predictions"] == said["predicted"], address
        tensor = {"name": "rows", "datatype": "FP64", "shape": [len(said["rows"]), 4]}
        infer = {"inputs": [{**tensor, "data": said["rows"]}]}
        refused_or_same = client.post(f"/t/{tenant}/v2/models/iris/infer", json=infer)
        assert refused_or_same.status_code == 200, refused_or_same.text
        data = refused_or_same.json()["outputs"][0]["data"]
        assert data == said["predicted"]
        shown = client.get(f"/api/v1/models/{tenant}/iris/versions/1").json()
        assert shown["lineage"]["run"] == said["run_id"]


def require_seen(running: RunningAppliance, tenant: str, broken: list[str]) -> None:
    """A version that could not be registered is told of everywhere, and can be taken off."""
    assert broken[0] == "FAILED_REGISTRATION"
    assert "entri" in broken[1]
    assert broken[1][:60] in broken[2]
    listed = running.cli("model", "show", f"{tenant}/broken")
    assert b"1        failed" in listed.stdout
    assert b"version 1 could not be registered: " in listed.stderr
    shown = running.cli("model", "show", f"{tenant}/broken:1")
    assert shown.returncode != 0
    assert b"Version 1 could not be registered: " in shown.stderr
    assert running.cli("model", "rm", f"{tenant}/broken:1", "--force").returncode == 0
    found = json.loads(running.cli("--json", "model", "show", f"{tenant}/broken").stdout)
    assert (found["versions"], found["promised"]) == ([], [])


@pytest.mark.timeout(900)  # its requirements are installed
def test_a_model_that_the_client_logs_is_registered_and_answers_as_in_mlflow(
    running: RunningAppliance,
) -> None:
    secret = running.tenant("acme")
    said = client_says(running, "acme", secret, sys.executable, *PINS.read_text().split())
    require_all(running, "acme", secret, said)


whole = pytest.mark.skipif(
    not os.environ.get("APPLIANCE_TEST_MLFLOW"), reason="APPLIANCE_TEST_MLFLOW is not set"
)


@whole
@pytest.mark.timeout(1800)
def test_the_whole_of_mlflow_does_the_same_with_requirements_of_its_own_choice(
    running: RunningAppliance, tmp_path: Path
) -> None:
    python = python_with_mlflow(tmp_path)
    secret = running.tenant("whole")
    require_all(running, "whole", secret, client_says(running, "whole", secret, python))


@whole
@pytest.mark.timeout(1800)
def test_what_only_the_whole_of_mlflow_does_is_served(
    running: RunningAppliance, tmp_path: Path
) -> None:
    secret = running.tenant("more")
    said = client_says(
        running, "more", secret, python_with_mlflow(tmp_path), *PINS.read_text().split(),
        script="mlflow_whole_script.py",
    )  # fmt: skip
    for name, found in said["flavours"].items():
        assert found["status"] == "READY", name
        with running.https(secret) as client:
            client.timeout = 300
            answer = client.post(f"/t/more/models/{name}/invocations", json=said["body"])
            assert answer.status_code == 200, answer.text
            assert answer.json()["predictions"] == pytest.approx(found["answer"]), name
    automatic = said["automatic"]
    assert automatic["params"] > 10
    assert {"training_accuracy_score", "training_f1_score"} <= set(automatic["metrics"])
    assert (automatic["data"], automatic["models"]) == (["dataset"], 1)
    assert said["judged"]["accuracy"] == said["judged"]["logged"] > 0.9
    assert said["files"] == {
        "whole": True,
        "table": [1, 2, 3],
        "images": 2,
        "top": ["a.txt", "images", "table.json", "weights"],
    }
    searches = said["searches"]
    assert [len(page) for page in searches["pages"]] == [5, 5, 2]
    assert searches["pages"][0][:2] == ["m-22", "m-20"]
    assert searches["versions"] == [["1", "2", "3"], ["4"]]
    assert searches["runs"] == pytest.approx([1.0, 0.9, 0.7, 0.6])
    assert (searches["history"], searches["long"]) == ([0, 900, 1800], 2700)
    changes = said["changes"]
    assert changes["staged"] == {"Staging": "1", "Production": "3", "None": "4"}
    assert changes["aliases"] == ["live", "production", "staging"]
    assert (changes["tags"], changes["left"], changes["models"]) == ({}, ["1", "2", "3"], 22)
    assert (changes["runs"], changes["group"]) == ([11, 1, 12], "deleted")
    assert "retired" in changes["archived"]
