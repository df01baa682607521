"""Train the example: a classifier of irises, written as one ONNX file.

    python -m pip install -r requirements.txt
    python train.py out

``out/iris.onnx`` is then the model: it is pushed as it is, without a manifest. Beside it lie
``rows.json``, flowers that were held out of the training, and ``expected.json``, what the same
classifier answers for them in this process before it became ONNX (which computes in 32 bits).
"""

import argparse
import json
from pathlib import Path

import numpy as np
from skl2onnx import to_onnx
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

ROWS_SENT = 12


def main() -> None:
    """Train, convert, and write the model, the rows and the expected answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write")
    out = parser.parse_args().out

    data = load_iris()
    train_x, test_x, train_y, test_y = train_test_split(
        data.data, data.target, test_size=0.3, random_state=0, stratify=data.target
    )
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    classifier.fit(train_x, train_y)

    out.mkdir(parents=True, exist_ok=True)
    converted = to_onnx(classifier, train_x[:1].astype(np.float32), options={"zipmap": False})
    (out / "iris.onnx").write_bytes(converted.SerializeToString())
    rows = test_x[:ROWS_SENT]
    (out / "rows.json").write_text(json.dumps({"rows": rows.tolist()}) + "\n")
    expected = {
        "label": classifier.predict(rows).tolist(),
        "probabilities": classifier.predict_proba(rows).tolist(),
    }
    (out / "expected.json").write_text(json.dumps({"predictions": expected}) + "\n")
    print(
        f"trained on {len(train_x)} rows, accuracy on {len(test_x)} held-out rows: "
        f"{classifier.score(test_x, test_y):.3f}"
    )


if __name__ == "__main__":
    main()
