"""What only the whole of MLflow does; run as a program, with its address and key as variables.

Prints one JSON document: what the client was told, for the test to compare with the appliance.
The arguments are requirements for models that need no more than those.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.entities import Metric, ViewType
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

PINS = sys.argv[1:] or None
TRUSTED = ["sklearn.tree._tree.Tree", "numpy.dtype", "sklearn.tree._tree.Node"]
CODE = """
import mlflow

class Longest(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return [float(row.max()) for _, row in model_input.iterrows()]

mlflow.models.set_model(Longest())
"""
MIB = 1 << 20

client = mlflow.MlflowClient()
X, y = load_iris(return_X_y=True, as_frame=True)
rows = X[::10]


class Widest(mlflow.pyfunc.PythonModel):
    """A model of one's own, with a parameter."""

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        factor = (params or {}).get("factor", 1)
        return [float(row.max()) * factor for _, row in model_input.iterrows()]


def flavours() -> dict[str, Any]:
    """A model of each kind, registered while it is logged, and what it answers in MLflow."""
    forest = RandomForestClassifier(n_estimators=8, random_state=0).fit(X, y)
    signature = infer_signature(X, forest.predict(X))
    mlflow.sklearn.log_model(
        forest, name="skops", registered_model_name="skops", signature=signature,
        skops_trusted_types=TRUSTED, input_example=X.head(2),
    )  # fmt: skip
    mlflow.sklearn.log_model(
        forest, name="pickled", registered_model_name="pickled", signature=signature,
        serialization_format="cloudpickle", pip_requirements=PINS,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        note, code = Path(folder) / "note.txt", Path(folder) / "longest.py"
        note.write_text("beside the model")
        code.write_text(CODE)
        mlflow.pyfunc.log_model(
            name="pyfunc", python_model=Widest(), artifacts={"note": str(note)},
            registered_model_name="pyfunc",
            signature=infer_signature(X, [1.0], params={"factor": 1}),
        )  # fmt: skip
        mlflow.pyfunc.log_model(
            name="code", python_model=str(code), registered_model_name="code",
            input_example=X.head(2),
        )  # fmt: skip
    names = ("skops", "pickled", "pyfunc", "code")
    return {
        name: {
            "status": client.get_model_version(name, "1").status,
            "answer": [
                float(one) for one in mlflow.pyfunc.load_model(f"models:/{name}@live").predict(rows)
            ],
        }
        for name in names
    }


def automatic() -> dict[str, Any]:
    """What autologging leaves: parameters, metrics, plots, the data it used, and a model."""
    mlflow.set_experiment("automatic")
    mlflow.sklearn.autolog()
    with mlflow.start_run() as run:
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=200)).fit(X, y)
    mlflow.sklearn.autolog(disable=True)
    found = client.get_run(run.info.run_id)
    return {
        "params": len(found.data.params),
        "metrics": sorted(found.data.metrics),
        "data": [one.dataset.name for one in found.inputs.dataset_inputs],
        "models": len(found.outputs.model_outputs),
        "files": sorted(one.path for one in client.list_artifacts(run.info.run_id)),
    }


def judged() -> dict[str, Any]:
    """A registered model evaluated by MLflow, and what the run says it used."""
    with mlflow.start_run() as run:
        result = mlflow.models.evaluate(
            "models:/pickled/1", X.assign(species=y), targets="species", model_type="classifier",
            evaluators=["default"],
            evaluator_config={"default": {"log_model_explainability": False}},
        )  # fmt: skip
    return {
        "accuracy": result.metrics["accuracy_score"],
        "logged": client.get_run(run.info.run_id).data.metrics["accuracy_score"],
    }


def files() -> dict[str, Any]:
    """Files of every kind of call, one of them sent and fetched in parts where that is possible."""
    parts = {
        "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "true",
        "MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE": str(5 * MIB),
        "MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE": str(5 * MIB),
        "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "true",
        "MLFLOW_MULTIPART_DOWNLOAD_MINIMUM_FILE_SIZE": str(5 * MIB),
    }
    os.environ.update(parts)
    content = os.urandom(12 * MIB)
    with tempfile.TemporaryDirectory() as folder, mlflow.start_run() as run:
        large = Path(folder) / "epoch=3,loss=0.1.bin"
        large.write_bytes(content)
        mlflow.log_artifact(str(large), "weights")
        mlflow.log_text("text", "a.txt")
        mlflow.log_table({"a": [1, 2]}, "table.json")
        mlflow.log_table({"a": [3]}, "table.json")
        mlflow.log_image(np.zeros((4, 4, 3), dtype="uint8"), key="dogs", step=3, synchronous=True)
        back = mlflow.artifacts.download_artifacts(
            run_id=run.info.run_id, artifact_path=f"weights/{large.name}", dst_path=folder + "/out"
        )
        is_whole = Path(back).read_bytes() == content
    for name in parts:
        del os.environ[name]
    return {
        "whole": is_whole,
        "table": mlflow.load_table("table.json", run_ids=[run.info.run_id])["a"].tolist(),
        "images": len(client.list_artifacts(run.info.run_id, "images")),
        "top": sorted(one.path for one in client.list_artifacts(run.info.run_id)),
    }


def searches() -> dict[str, Any]:
    """Filters, orders and pages, of models, versions and runs; a long history of one metric."""
    for number in range(23):
        client.create_registered_model(f"m-{number:02}", tags={"n": str(number % 2)})
    pages, token = [], None
    while True:
        page = client.search_registered_models(
            "name LIKE 'm-%' AND tags.n = '0'", max_results=5, order_by=["name DESC"],
            page_token=token,
        )  # fmt: skip
        pages.append([one.name for one in page])
        token = page.token
        if not token:
            break
    for _ in range(4):
        mlflow.register_model("models:/pickled/1", "many")
    first = client.search_model_versions(
        "name = 'many'", max_results=3, order_by=["version_number ASC"]
    )
    second = client.search_model_versions(
        "name = 'many'", max_results=3, order_by=["version_number ASC"], page_token=first.token
    )
    mlflow.set_experiment("searched")
    for number in range(12):
        with mlflow.start_run(run_name=f"r{number}", tags={"k": str(number % 3)}) as run:
            mlflow.log_metric("auc", number / 10)
            mlflow.log_param("depth", number)
    for start in range(0, 2700, 900):
        steps = range(start, start + 900)
        client.log_batch(run.info.run_id, [Metric("loss", float(n), n, n) for n in steps])
    found = mlflow.search_runs(
        experiment_names=["searched"], order_by=["metrics.auc DESC"],
        filter_string="metrics.auc > 0.5 AND params.depth != '8' AND tags.k IN ('0', '1')",
    )  # fmt: skip
    return {
        "pages": pages,
        "versions": [[one.version for one in page] for page in (first, second)],
        "runs": found["metrics.auc"].tolist(),
        "history": [one.step for one in client.get_metric_history(run.info.run_id, "loss")][::900],
        "long": len(client.get_metric_history(run.info.run_id, "loss")),
    }


def changes() -> dict[str, Any]:
    """Stages, aliases, tags and what is deleted; a run and an experiment that come back."""
    client.transition_model_version_stage("many", "1", "Staging")
    client.transition_model_version_stage("many", "2", "Production")
    client.transition_model_version_stage("many", "3", "Production", archive_existing_versions=True)
    staged = {one.current_stage: one.version for one in client.get_latest_versions("many")}
    mlflow.sklearn.load_model("models:/many/Production")
    client.set_registered_model_alias("many", "best", "2")
    client.delete_registered_model_alias("many", "best")
    client.set_model_version_tag("many", "2", "good", "yes")
    client.delete_model_version_tag("many", "2", "good")
    client.delete_model_version("many", "4")
    client.delete_registered_model("m-00")
    group = mlflow.get_experiment_by_name("searched").experiment_id
    run_id = client.search_runs([group])[0].info.run_id
    client.delete_run(run_id)
    counts = [
        len(client.search_runs([group], run_view_type=view))
        for view in (ViewType.ACTIVE_ONLY, ViewType.DELETED_ONLY, ViewType.ALL)
    ]
    client.restore_run(run_id)
    client.delete_experiment(group)
    stage = mlflow.get_experiment(group).lifecycle_stage
    client.restore_experiment(group)
    try:
        client.transition_model_version_stage("many", "1", "Archived")
        archived = ""
    except MlflowException as error:
        archived = error.message
    return {
        "staged": staged,
        "aliases": sorted(client.get_registered_model("many").aliases),
        "tags": client.get_model_version("many", "2").tags,
        "left": sorted(one.version for one in client.search_model_versions("name = 'many'")),
        "models": len(client.search_registered_models("name LIKE 'm-%'")),
        "runs": counts,
        "group": stage,
        "archived": archived,
    }


if __name__ == "__main__":
    parts = (flavours, automatic, judged, files, searches, changes)
    done = {part.__name__: part() for part in parts}
    split = {"columns": list(rows.columns), "data": rows.to_numpy().tolist()}
    print(json.dumps({**done, "body": {"dataframe_split": split}}))
