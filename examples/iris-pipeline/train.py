"""Train the two models of this example on the iris data that scikit-learn ships.

    python -m pip install scikit-learn==1.9.1
    python train.py .

What the training finds is a few numbers, which lie beside the models already: this file says where
they come from. ``rows.json`` are rows held out of the training, ``expected.json`` is what
scikit-learn's own pipeline says of them.
"""

import argparse
import json
from pathlib import Path

from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

ROWS_SENT = 6


def main() -> None:
    """Train, and write the numbers, the rows and the expected answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder with the two models' folders")
    out = parser.parse_args().out
    data = load_iris()
    train_x, test_x, train_y, test_y = train_test_split(
        data.data, data.target, test_size=0.25, random_state=0, stratify=data.target
    )
    scaler, classifier = StandardScaler(), LogisticRegression(max_iter=2000)
    both = make_pipeline(scaler, classifier).fit(train_x, train_y)
    found = {
        "scaler/scaling.json": {
            "means": scaler.mean_.tolist(),
            "deviations": scaler.scale_.tolist(),
        },
        "classifier/coefficients.json": {
            "classes": data.target_names.tolist(),
            "weights": classifier.coef_.tolist(),
            "intercepts": classifier.intercept_.tolist(),
        },
        "rows.json": {"rows": test_x[:ROWS_SENT].tolist()},
        "expected.json": {
            "classes": data.target_names.tolist(),
            "probabilities": both.predict_proba(test_x[:ROWS_SENT]).tolist(),
        },
    }
    for name, value in found.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(json.dumps(value) + "\n")
    print(f"accuracy on {len(test_x)} held-out rows: {both.score(test_x, test_y):.3f}")


if __name__ == "__main__":
    main()
