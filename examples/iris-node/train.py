"""Train the example: a softmax regression on the iris data that scikit-learn ships.

    python -m pip install scikit-learn==1.9.1
    python train.py out/model

``out/model`` is then a model folder to push; beside it lie ``rows.json``, rows held out of the
training, and ``expected.json``, what scikit-learn's own ``predict_proba`` says of them.
"""

import argparse
import json
import shutil
from pathlib import Path

from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Train, write the model folder, the rows and the expected answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="model folder to write")
    out = parser.parse_args().out
    data = load_iris()
    train_x, test_x, train_y, test_y = train_test_split(
        data.data, data.target, test_size=0.25, random_state=0, stratify=data.target
    )
    classifier = LogisticRegression(max_iter=2000).fit(train_x, train_y)
    classes = data.target_names.tolist()

    shutil.copytree(HERE / "model", out, dirs_exist_ok=True)
    coefficients = {
        "classes": classes,
        "weights": classifier.coef_.tolist(),
        "intercepts": classifier.intercept_.tolist(),
    }
    (out / "coefficients.json").write_text(json.dumps(coefficients) + "\n")
    expected = {"classes": classes, "probabilities": classifier.predict_proba(test_x).tolist()}
    (out.parent / "rows.json").write_text(json.dumps({"rows": test_x.tolist()}) + "\n")
    (out.parent / "expected.json").write_text(json.dumps(expected) + "\n")
    print(f"accuracy on {len(test_x)} held-out rows: {classifier.score(test_x, test_y):.3f}")


if __name__ == "__main__":
    main()
