"""Train the example: a classifier of irises, saved by MLflow.

    python -m pip install -r requirements.txt
    python train.py out

``out/model`` is then a folder as ``mlflow.sklearn.save_model`` writes it, to push as it is. Beside
it lie ``rows.json`` and ``expected.json``, what the same classifier answers in this process.
"""

import argparse
import json
import shutil
from pathlib import Path

import mlflow.sklearn
from mlflow.models import infer_signature
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

ROWS_SENT = 12
PINS = (
    "scikit-learn==1.9.1",
    "numpy==2.4.6",
    "scipy==1.17.1",
    "joblib==1.6.0",
    "threadpoolctl==3.8.0",
    "narwhals==2.29.0",
    "cloudpickle==3.1.2",
)


def main() -> None:
    """Train, save with MLflow, and write the rows and the expected answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write")
    out = parser.parse_args().out

    data = load_iris(as_frame=True)
    train_x, test_x, train_y, _ = train_test_split(
        data.data, data.target, test_size=0.3, random_state=0, stratify=data.target
    )
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    classifier.fit(train_x, train_y)

    out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(out / "model", ignore_errors=True)
    mlflow.sklearn.save_model(
        classifier,
        str(out / "model"),
        serialization_format="cloudpickle",
        signature=infer_signature(train_x, classifier.predict(train_x)),
        input_example=test_x.head(2),
        pip_requirements=list(PINS),
    )
    rows = test_x.head(ROWS_SENT)
    split = {"columns": list(rows.columns), "data": rows.to_numpy().tolist()}
    (out / "rows.json").write_text(json.dumps({"dataframe_split": split}) + "\n")
    expected = {"predictions": classifier.predict(rows).tolist()}
    (out / "expected.json").write_text(json.dumps(expected) + "\n")


if __name__ == "__main__":
    main()
