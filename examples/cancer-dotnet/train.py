"""Train the example: a support vector machine on the breast cancer data that scikit-learn ships.

    python -m pip install scikit-learn==1.9.1
    python train.py out/model

``out/model`` is then a model folder to push; it holds source, and is compiled where it is
registered. Beside it lie ``rows.json``, tumours held out of the training, and ``expected.json``,
what scikit-learn's own ``decision_function`` and ``predict`` say of them.
"""

import argparse
import json
import shutil
from pathlib import Path

from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

HERE = Path(__file__).resolve().parent


def line(values) -> str:
    """Numbers as text that is read back exactly."""
    return " ".join(map(repr, values.tolist()))


def main() -> None:
    """Train, write the model folder, the rows and the expected answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="model folder to write")
    out = parser.parse_args().out
    data = load_breast_cancer()
    train_x, test_x, train_y, test_y = train_test_split(
        data.data, data.target, test_size=0.25, random_state=0, stratify=data.target
    )
    scaler = StandardScaler().fit(train_x)
    gamma = 1 / train_x.shape[1]
    machine = SVC(C=10.0, kernel="rbf", gamma=gamma).fit(scaler.transform(train_x), train_y)

    shutil.copytree(HERE / "model", out, dirs_exist_ok=True)
    lines = [" ".join(data.target_names.tolist()), line(scaler.mean_), line(scaler.scale_)]
    lines.append(f"{gamma!r} {machine.intercept_[0].item()!r}")
    lines += [line(machine.dual_coef_[0]), *map(line, machine.support_vectors_)]
    (out / "machine.txt").write_text("\n".join(lines) + "\n")
    rows = scaler.transform(test_x)
    expected = {
        "margins": machine.decision_function(rows).tolist(),
        "classes": data.target_names[machine.predict(rows)].tolist(),
    }
    (out.parent / "rows.json").write_text(json.dumps({"rows": test_x.tolist()}) + "\n")
    (out.parent / "expected.json").write_text(json.dumps(expected) + "\n")
    print(f"accuracy on {len(test_x)} held-out tumours: {machine.score(rows, test_y):.3f}")


if __name__ == "__main__":
    main()
