"""Train the example: a classifier of breast tumours on the Wisconsin data that scikit-learn ships.

    python -m pip install -r requirements.txt
    python train.py out

``out/`` is then a model folder (appliance.toml, model.py, model.joblib) to push, and beside it lie
``rows.json``, real rows that were held out of the training, and ``expected.json``, what the very
same classifier answers for them in this process. Same inputs, same bytes: nothing is random.
"""

import argparse
import json
import shutil
from pathlib import Path

import joblib
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

HERE = Path(__file__).resolve().parent
ROWS_SENT = 5


def main() -> None:
    """Train, check, and write the model folder, the rows and the expected answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="model folder to write")
    out = parser.parse_args().out

    data = load_breast_cancer()
    train_x, test_x, train_y, test_y = train_test_split(
        data.data, data.target, test_size=0.25, random_state=0, stratify=data.target
    )
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    classifier.fit(train_x, train_y)

    out.mkdir(parents=True, exist_ok=True)
    for name in ("appliance.toml", "model.py"):
        shutil.copyfile(HERE / "model" / name, out / name)
    joblib.dump(classifier, out / "model.joblib")
    rows = test_x[:ROWS_SENT]
    beside = out.parent
    (beside / "rows.json").write_text(json.dumps({"rows": rows.tolist()}) + "\n")
    expected = {
        "classes": data.target_names.tolist(),
        "probabilities": classifier.predict_proba(rows).tolist(),
    }
    (beside / "expected.json").write_text(json.dumps(expected) + "\n")
    print(
        f"trained on {len(train_x)} rows, accuracy on {len(test_x)} held-out rows: "
        f"{classifier.score(test_x, test_y):.3f}"
    )


if __name__ == "__main__":
    main()
