"""A day with the unmodified MLflow client; run as a program, with its address and key as variables.

Prints one JSON document: what the client was told, for the test to compare with the appliance.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

NAME = "iris"
REQUIREMENTS = sys.argv[1:] or None


def refusal(work: Any) -> str:
    try:
        work()
    except MlflowException as error:
        return f"{error.error_code}: {error.message}"
    raise AssertionError("it was not refused")


def main() -> dict[str, Any]:
    client = mlflow.MlflowClient()
    mlflow.set_experiment("flowers")
    X, y = load_iris(return_X_y=True, as_frame=True)
    with mlflow.start_run(run_name="first") as run:
        model = LogisticRegression(max_iter=300).fit(X, y)
        mlflow.log_params({"max_iter": 300})
        for step in range(3):
            mlflow.log_metric("loss", 1.0 / (step + 1), step=step)
        mlflow.set_tag("who", "tests")
        logged = mlflow.sklearn.log_model(
            model,
            name="model",
            registered_model_name=NAME,
            signature=infer_signature(X, model.predict(X)),
            input_example=X.head(2),
            pip_requirements=REQUIREMENTS,
        )
        mlflow.log_dict({"seen": 150}, "notes/data.json")
        mlflow.log_text('runtime = "python3.11"\nentri = "x"\n', "bad/appliance.toml")
    client.create_registered_model("broken")
    raised = refusal(lambda: client.create_model_version("broken", f"runs:/{run.info.run_id}/bad"))
    broken = client.get_model_version("broken", "1")
    rows = X[::7]
    client.set_registered_model_alias(NAME, "champion", "1")
    client.set_registered_model_tag(NAME, "team", "botany")
    client.set_model_version_tag(NAME, "1", "checked", "yes")
    client.update_model_version(NAME, "1", "the first one")
    loaded = mlflow.sklearn.load_model(f"models:/{NAME}@champion")
    found = client.search_registered_models("name LIKE 'ir%' AND tags.team = 'botany'")
    versions = client.search_model_versions(f"name = '{NAME}'", order_by=["version_number DESC"])
    version = client.get_model_version_by_alias(NAME, "champion")
    runs = mlflow.search_runs(
        experiment_names=["flowers"], filter_string="metrics.loss < 0.5", output_format="list"
    )
    copied = client.copy_model_version(f"models:/{NAME}@champion", "iris-copy")
    with tempfile.TemporaryDirectory() as folder:
        path = mlflow.artifacts.download_artifacts(f"models:/{NAME}/1", dst_path=folder)
        files = sorted(str(p.relative_to(path)) for p in Path(path).rglob("*") if p.is_file())
        notes = json.loads(
            Path(client.download_artifacts(run.info.run_id, "notes/data.json", folder)).read_text()
        )
    again = mlflow.register_model(f"runs:/{run.info.run_id}/model", NAME)
    client.transition_model_version_stage(NAME, "1", "Production")
    staged = client.get_latest_versions(NAME, stages=["Production"])
    client.delete_model_version(NAME, again.version)
    return {
        "rows": rows.to_numpy().tolist(),
        "columns": list(rows.columns),
        "predicted": [int(value) for value in loaded.predict(rows)],
        "models": [one.name for one in found],
        "versions": [one.version for one in versions],
        "aliases": sorted(client.get_registered_model(NAME).aliases),
        "version": {
            "status": version.status,
            "run_id": version.run_id,
            "description": version.description,
            "tags": version.tags,
        },
        "run_id": run.info.run_id,
        "model_id": logged.model_id,
        "runs": [one.info.run_name for one in runs],
        "params": client.get_run(run.info.run_id).data.params,
        "history": [one.value for one in client.get_metric_history(run.info.run_id, "loss")],
        "outputs": [o.model_id for o in client.get_run(run.info.run_id).outputs.model_outputs],
        "copied": [copied.name, copied.version],
        "again": again.version,
        "staged": [one.version for one in staged],
        "left": [one.version for one in client.search_model_versions(f"name = '{NAME}'")],
        "files": files,
        "notes": notes,
        "broken": [broken.status, broken.status_message, raised],
        "missing": refusal(lambda: client.get_registered_model("nothing")),
        "illegal": refusal(lambda: client.create_registered_model("My_Model")),
        "elsewhere": refusal(lambda: client.create_model_version(NAME, "s3://bucket/model")),
        "traces": refusal(lambda: client.rename_registered_model("nothing", "other")),
    }


if __name__ == "__main__":
    print(json.dumps(main()))
