"""Train the example: a ridge regression on the diabetes data that scikit-learn ships.

    python -m pip install scikit-learn==1.9.1
    python train.py out/model

``out/model`` is then a model folder to push; beside it lie ``rows.json``, rows held out of the
training, and ``expected.json``, what scikit-learn's own ``predict`` says of them.
"""

import argparse
import json
import shutil
from pathlib import Path

from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from sklearn.model_selection import train_test_split

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Train, write the model folder, the rows and the expected answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="model folder to write")
    out = parser.parse_args().out
    data = load_diabetes()
    train_x, test_x, train_y, test_y = train_test_split(
        data.data, data.target, test_size=0.25, random_state=0
    )
    regression = Ridge(alpha=0.1).fit(train_x, train_y)

    shutil.copytree(HERE / "model", out, dirs_exist_ok=True)
    fitted = {"weights": regression.coef_.tolist(), "intercept": float(regression.intercept_)}
    (out / "coefficients.json").write_text(json.dumps(fitted) + "\n")
    expected = {"progression": regression.predict(test_x).tolist()}
    (out.parent / "rows.json").write_text(json.dumps({"rows": test_x.tolist()}) + "\n")
    (out.parent / "expected.json").write_text(json.dumps(expected) + "\n")
    print(f"R^2 on {len(test_x)} held-out rows: {regression.score(test_x, test_y):.3f}")


if __name__ == "__main__":
    main()
