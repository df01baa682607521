"""Train the example: one version that asks a scikit-learn and a LightGBM model and weighs both.

    python -m pip install -r requirements.txt
    python train.py out

``out/`` is then a model folder to push. Beside it lie ``rows.json``, wines held out of the
training, and ``expected.json``, what the same two models answer for them in this process.
"""

import argparse
import json
import shutil
from pathlib import Path

import lightgbm
import numpy as np
import skops.io
from sklearn.datasets import load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

HERE = Path(__file__).resolve().parent
ROWS_SENT = 8
WEIGHTS = {"linear": 0.6, "trees": 0.4}
ROUNDS = 40


def main() -> None:
    """Train both, and write the model folder, the rows and the expected answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="model folder to write")
    out = parser.parse_args().out

    data = load_wine()
    train_x, test_x, train_y, test_y = train_test_split(
        data.data, data.target, test_size=0.3, random_state=0, stratify=data.target
    )
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    linear.fit(train_x, train_y)
    settings = {"objective": "multiclass", "num_class": 3, "num_leaves": 7, "verbose": -1}
    settings |= {"deterministic": True, "num_threads": 1, "seed": 0}
    trees = lightgbm.train(settings, lightgbm.Dataset(train_x, train_y), ROUNDS)

    out.mkdir(parents=True, exist_ok=True)
    for name in ("appliance.toml", "model.py"):
        shutil.copyfile(HERE / "model" / name, out / name)
    skops.io.dump(linear, out / "linear.skops")
    trees.save_model(str(out / "trees.txt"))
    (out / "weights.json").write_text(json.dumps(WEIGHTS) + "\n")

    rows = test_x[:ROWS_SENT]
    both = WEIGHTS["linear"] * linear.predict_proba(rows) + WEIGHTS["trees"] * trees.predict(rows)
    (out.parent / "rows.json").write_text(json.dumps({"rows": rows.tolist()}) + "\n")
    expected = {
        "classes": data.target_names.tolist(),
        "linear": linear.predict_proba(rows).tolist(),
        "trees": trees.predict(rows).tolist(),
        "probabilities": both.tolist(),
    }
    (out.parent / "expected.json").write_text(json.dumps(expected) + "\n")
    whole = WEIGHTS["linear"] * linear.predict_proba(test_x)
    whole = whole + WEIGHTS["trees"] * trees.predict(test_x)
    accuracy = float(np.mean(whole.argmax(axis=1) == test_y))
    print(f"trained on {len(train_x)} wines, accuracy on {len(test_x)} held-out: {accuracy:.3f}")


if __name__ == "__main__":
    main()
