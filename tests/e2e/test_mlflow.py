"""Folders that MLflow itself makes now: registered, called, compared with ``mlflow.pyfunc``.

Installs MLflow into a virtual environment (a minute) and runs it in a sandbox: only with
APPLIANCE_TEST_MLFLOW=1. A folder that MLflow made is in ``examples/iris-mlflow`` and always tested.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from running import RunningAppliance, tar_of_files
from whole_mlflow import python_with_mlflow

pytestmark = [
    pytest.mark.podman,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not os.environ.get("APPLIANCE_TEST_MLFLOW"), reason="APPLIANCE_TEST_MLFLOW is not set"
    ),
]
MAKE = """
import json, sys
from pathlib import Path
import mlflow, pandas
from mlflow.models import infer_signature
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier

class Widest(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        factor = (params or {}).get("factor", 1)
        return [float(row.max()) * factor for _, row in model_input.iterrows()]

out = Path(sys.argv[1])
X, y = load_iris(return_X_y=True, as_frame=True)
forest = RandomForestClassifier(n_estimators=8, random_state=0).fit(X, y)
signature = infer_signature(X, forest.predict(X))
trusted = ["sklearn.tree._tree.Tree", "numpy.dtype", "sklearn.tree._tree.Node"]
mlflow.sklearn.save_model(
    forest, str(out / "skops"), signature=signature, input_example=X.head(2),
    skops_trusted_types=trusted,
)
mlflow.sklearn.save_model(
    forest, str(out / "pickled"), signature=signature, serialization_format="cloudpickle"
)
mlflow.pyfunc.save_model(
    str(out / "pyfunc"), python_model=Widest(),
    signature=infer_signature(X, [1.0], params={"factor": 1}),
)
rows = X[::10]
for name in ("skops", "pickled", "pyfunc"):
    answer = mlflow.pyfunc.load_model(str(out / name)).predict(rows)
    (out / f"{name}.json").write_text(json.dumps([float(value) for value in answer]))
split = {"columns": list(rows.columns), "data": rows.to_numpy().tolist()}
(out / "rows.json").write_text(json.dumps({"dataframe_split": split}))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what MLflow saved, and what it answers itself."""
    folder = tmp_path_factory.mktemp("mlflow")
    python = python_with_mlflow(folder)
    subprocess.run([python, "-c", MAKE, str(folder)], check=True, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def owner(running: RunningAppliance) -> str:
    return running.tenant("acme")


@pytest.mark.parametrize(
    ("name", "entry"),
    [("skops", "@sklearn:model.skops"), ("pickled", "@sklearn:model.pkl"), ("pyfunc", "@mlflow")],
)
def test_what_mlflow_saved_answers_as_it_does_in_mlflow(
    running: RunningAppliance, owner: str, saved: Path, name: str, entry: str
) -> None:
    files = {
        str(path.relative_to(saved / name)): path.read_bytes()
        for path in (saved / name).rglob("*")
        if path.is_file()
    }
    with running.https(owner) as client:
        client.timeout = 1500  # dependencies are built while it waits
        made = client.post(
            f"/api/v1/models/acme/{name}/versions",
            content=tar_of_files(files),
            headers={"Content-Type": "application/x-tar"},
        )
        assert made.status_code == 201, made.text
        assert made.json()["entry"] == entry
        found: Any = client.post(
            f"/api/v1/models/acme/{name}/invoke",
            content=(saved / "rows.json").read_bytes(),
            headers={"Content-Type": "application/json"},
        ).json()
    assert found["predictions"] == pytest.approx(json.loads((saved / f"{name}.json").read_text()))
    assert made.json()["sample"], "a body was found that it answers"
