"""Train the example: a small neural network on the digits data that scikit-learn ships.

    python -m pip install scikit-learn==1.9.1
    python train.py out/model

``out/model`` is then a model folder to push; it holds source, and is compiled where it is
registered. Beside it lie ``rows.csv``, images held out of the training, and ``expected.json``, what
scikit-learn's own ``predict_proba`` says of them.
"""

import argparse
import json
import shutil
from pathlib import Path

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

HERE = Path(__file__).resolve().parent
ROWS_SENT = 50


def main() -> None:
    """Train, write the model folder, the rows and the expected answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="model folder to write")
    out = parser.parse_args().out
    data = load_digits()
    train_x, test_x, train_y, test_y = train_test_split(
        data.data, data.target, test_size=0.25, random_state=0, stratify=data.target
    )
    network = MLPClassifier((32,), solver="lbfgs", max_iter=500, random_state=0)
    network.fit(train_x / 16.0, train_y)

    shutil.copytree(HERE / "model", out, dirs_exist_ok=True)
    lines = [str(len(network.coefs_))]
    for weights, biases in zip(network.coefs_, network.intercepts_, strict=True):
        lines.append(f"{weights.shape[1]} {weights.shape[0]}")
        lines += [" ".join(map(repr, row)) for row in weights.T.tolist()]
        lines.append(" ".join(map(repr, biases.tolist())))
    (out / "weights.txt").write_text("\n".join(lines) + "\n")
    rows = test_x[:ROWS_SENT] / 16.0
    text = "\n".join(",".join(map(repr, row)) for row in rows.tolist())
    (out.parent / "rows.csv").write_text(text + "\n")
    expected = {"probabilities": network.predict_proba(rows).tolist()}
    (out.parent / "expected.json").write_text(json.dumps(expected) + "\n")
    score = network.score(test_x / 16.0, test_y)
    print(f"accuracy on {len(test_x)} held-out images: {score:.3f}")


if __name__ == "__main__":
    main()
