"""Models without a manifest: registered as they are, called, and the numbers checked."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import skops.io
from running import RunningAppliance
from scipy.special import logsumexp
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

pytestmark = pytest.mark.podman
EXAMPLES = Path(__file__).parents[2] / "examples"
PINS = (EXAMPLES / "breast-cancer" / "requirements.txt").read_bytes()  # built for other tests too
FLOWERS = load_iris()
ROWS = FLOWERS.data[::10]


@pytest.fixture(scope="module")
def owner(running: RunningAppliance) -> str:
    return running.tenant("acme")


@pytest.fixture(scope="module")
def classifier() -> Any:
    made = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    return made.fit(FLOWERS.data, FLOWERS.target)


def register(
    running: RunningAppliance, owner: str, name: str, files: dict[str, bytes]
) -> dict[str, Any]:
    made = running.push(owner, f"acme/{name}", files)
    assert made.status_code == 201, made.text
    version: dict[str, Any] = made.json()
    return version


def answered(running: RunningAppliance, owner: str, name: str, body: Any) -> Any:
    text = body if isinstance(body, str) else json.dumps(body)
    kind = "application/json" if text.startswith(("{", "[")) else "text/csv"
    with running.https(owner) as client:
        reply = client.post(
            f"/api/v1/models/acme/{name}/invoke", content=text, headers={"Content-Type": kind}
        )
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_a_joblib_file_is_a_model(
    running: RunningAppliance, owner: str, classifier: Any, tmp_path: Path
) -> None:
    joblib.dump(classifier, tmp_path / "iris.joblib")
    files = {"iris.joblib": (tmp_path / "iris.joblib").read_bytes(), "requirements.txt": PINS}
    version = register(running, owner, "joblib", files)
    assert version["convention"] == "pickle"
    assert version["entry"] == "@sklearn:iris.joblib"
    assert "scikit-learn==1.9.1" in version["requirements"]
    expected = {"predictions": classifier.predict(ROWS).tolist()}
    for body in (
        ROWS.tolist(),
        {"rows": ROWS.tolist()},
        {"instances": ROWS.tolist()},
        {"inputs": ROWS.tolist()},
        {"dataframe_split": {"columns": list("abcd"), "data": ROWS.tolist()}},
        {"records": [dict(zip("abcd", row, strict=True)) for row in ROWS.tolist()]},
        {"columns": dict(zip("abcd", ROWS.T.tolist(), strict=True))},
        "a,b,c,d\n" + "\n".join(",".join(map(str, row)) for row in ROWS.tolist()),
    ):
        assert answered(running, owner, "joblib", body) == expected, body
    assert answered(running, owner, "joblib", version["sample"])["predictions"]


def test_a_plain_pickle_brings_its_version_and_options_choose_the_method(
    running: RunningAppliance, owner: str, classifier: Any
) -> None:
    manifest = (
        b'runtime = "python3.11"\nentry = "@sklearn:m.pkl"\nrequirements = "requirements.txt"\n'
        b'[options]\nmethod = "predict_proba"\n'
    )
    files = {"m.pkl": pickle.dumps(classifier), "requirements.txt": PINS}
    version = register(running, owner, "pickle", {**files, "appliance.toml": manifest})
    assert version["convention"] == ""
    found = answered(running, owner, "pickle", {"rows": ROWS.tolist()})
    assert found["classes"] == [0, 1, 2]
    np.testing.assert_allclose(found["predictions"], classifier.predict_proba(ROWS), rtol=1e-12)


def test_the_mlflow_folder_in_the_examples_answers_as_mlflow_does(
    running: RunningAppliance, owner: str
) -> None:
    folder = EXAMPLES / "iris-mlflow"
    files = {path.name: path.read_bytes() for path in (folder / "model").iterdir()}
    version = register(running, owner, "mlflow", files)
    assert version["convention"] == "mlflow"
    assert version["entry"] == "@sklearn:model.pkl"
    assert version["input_schema"]["properties"]["records"]["items"]["properties"] == {
        name: {"type": "number"} for name in FLOWERS.feature_names
    }
    expected = json.loads((folder / "expected.json").read_text())
    assert answered(running, owner, "mlflow", (folder / "rows.json").read_text()) == expected
    split = json.loads((folder / "rows.json").read_text())["dataframe_split"]
    swapped = [
        dict(reversed(list(zip(split["columns"], row, strict=True)))) for row in split["data"]
    ]
    assert answered(running, owner, "mlflow", {"dataframe_records": swapped}) == expected
    example = json.loads((folder / "model" / "serving_input_example.json").read_text())
    assert json.loads(version["sample"]) == example


def trained(example: str, folder: Path) -> Path:
    script = EXAMPLES / example / "train.py"
    subprocess.run([sys.executable, str(script), str(folder)], check=True)
    return folder


def test_a_bare_onnx_file_is_a_model(running: RunningAppliance, owner: str, tmp_path: Path) -> None:
    folder = trained("iris-onnx", tmp_path)
    version = register(running, owner, "onnx", {"iris.onnx": (folder / "iris.onnx").read_bytes()})
    assert version["entry"] == "@onnx:iris.onnx"
    assert [pin for pin in version["requirements"] if pin.startswith("onnxruntime==")]
    assert any("onnxruntime==" in note for note in version["notes"])
    rows = json.loads((folder / "rows.json").read_text())["rows"]
    expected = json.loads((folder / "expected.json").read_text())["predictions"]
    name = next(iter(json.loads(version["sample"])["inputs"]))
    for body in ({"rows": rows}, {"inputs": {name: rows}}, {"instances": rows}):
        found = answered(running, owner, "onnx", body)["predictions"]
        assert found["label"] == expected["label"]
        np.testing.assert_allclose(found["probabilities"], expected["probabilities"], atol=1e-6)
    assert answered(running, owner, "onnx", version["sample"])["predictions"]["label"]


def test_two_frameworks_in_one_version_answer_what_both_say(
    running: RunningAppliance, owner: str, tmp_path: Path
) -> None:
    folder = trained("wine-ensemble", tmp_path / "model")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    register(running, owner, "ensemble", files)
    found = answered(running, owner, "ensemble", (tmp_path / "rows.json").read_text())
    expected = json.loads((tmp_path / "expected.json").read_text())
    assert found["classes"] == expected["classes"]
    for key in ("linear", "trees", "probabilities"):
        np.testing.assert_allclose(found[key], expected[key], rtol=1e-9)


def test_a_skops_file_loads_known_types_only_unless_the_manifest_lists_more(
    running: RunningAppliance, owner: str, classifier: Any
) -> None:
    pins = (EXAMPLES / "wine-ensemble" / "requirements.txt").read_bytes()
    files = {"iris.skops": skops.io.dumps(classifier), "requirements.txt": pins}
    version = register(running, owner, "skops", files)
    assert version["convention"] == "skops"
    expected = {"predictions": classifier.predict(ROWS).tolist()}
    assert answered(running, owner, "skops", {"rows": ROWS.tolist()}) == expected

    own = make_pipeline(
        FunctionTransformer(logsumexp, kw_args={"axis": 1, "keepdims": True}),
        LogisticRegression(max_iter=500),
    )
    own.fit(FLOWERS.data, FLOWERS.target)
    files["iris.skops"] = skops.io.dumps(own)
    problem = running.push(owner, "acme/own-types", files).json()
    assert problem["code"] == "load-failed"
    assert "scipy.special._logsumexp.logsumexp" in problem["detail"], problem
    assert 'trusted = ["scipy.special._logsumexp.logsumexp"]' in problem["detail"]
    manifest = (
        b'runtime = "python3.11"\nentry = "@sklearn:iris.skops"\n'
        b'requirements = "requirements.txt"\n'
        b'[options]\ntrusted = ["scipy.special._logsumexp.logsumexp"]\n'
    )
    register(running, owner, "own-types", {**files, "appliance.toml": manifest})
    found = answered(running, owner, "own-types", {"rows": ROWS.tolist()})
    assert found == {"predictions": own.predict(ROWS).tolist()}


def test_what_push_prints_can_be_typed(
    running: RunningAppliance, owner: str, classifier: Any, tmp_path: Path
) -> None:
    """A single file, from the first try-out to the curl line, with no manifest and no rows."""
    (tmp_path / "iris.pkl").write_bytes(pickle.dumps(classifier))
    (tmp_path / "requirements.txt").write_bytes(PINS)
    (tmp_path / "me.key").write_text(owner)
    (tmp_path / "me.key").chmod(0o600)
    model = str(tmp_path / "iris.pkl")
    shown = running.cli("model", "push", model, "acme/typed", "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert b'entry = "@sklearn:iris.pkl"' in shown.stdout
    with running.https(owner) as client:
        assert client.get("/api/v1/models/acme/typed").status_code == 404, "nothing was sent"

    where = ["--url", running.url, "--ca", str(running.ca_file())]
    where += ["--api-key-file", str(tmp_path / "me.key")]
    done = running.cli(*where, "model", "push", model, "acme/typed")
    assert done.returncode == 0, done.stderr
    assert b"'iris.pkl' is a pickled scikit-learn estimator" in done.stderr
    title, url, curl = done.stdout.decode().splitlines()
    assert title == "acme/typed version 1"
    assert url.endswith("/api/v1/models/acme/typed/versions/1")
    called = subprocess.run(["bash", "-c", f"{curl} --silent"], capture_output=True, check=True)
    assert json.loads(called.stdout)["predictions"]


def test_push_of_what_is_not_recognised_says_what_to_write(
    running: RunningAppliance, tmp_path: Path
) -> None:
    (tmp_path / "weights.pt").write_bytes(b"x")
    done = running.cli("model", "push", str(tmp_path), "acme/none")
    assert done.returncode == 65
    assert b"weights.pt" in done.stderr
    assert b'entry = "model:Model"' in done.stderr
