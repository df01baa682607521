"""Train the example: a random forest on the wine data that scikit-learn ships.

    python -m pip install scikit-learn==1.9.1
    python train.py out/model

``out/model`` is then a model folder to push; it holds source, and is compiled where it is
registered. Beside it lie ``rows.json``, wines held out of the training, and ``expected.json``, what
scikit-learn's own ``predict_proba`` says of them.
"""

import argparse
import json
import shutil
from pathlib import Path

from sklearn.datasets import load_wine
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import train_test_split

HERE = Path(__file__).resolve().parent


def lines_of_tree(tree) -> list[str]:
    """One line a node: children, feature, threshold, shares of the classes."""
    lines = [str(tree.node_count)]
    for n in range(tree.node_count):
        shares = tree.value[n][0] / tree.value[n][0].sum()
        numbers = [tree.threshold[n].item(), *shares.tolist()]
        left, right = tree.children_left[n], tree.children_right[n]
        lines.append(f"{left} {right} {tree.feature[n]} {' '.join(map(repr, numbers))}")
    return lines


def main() -> None:
    """Train, write the model folder, the rows and the expected answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="model folder to write")
    out = parser.parse_args().out
    data = load_wine()
    train_x, test_x, train_y, test_y = train_test_split(
        data.data, data.target, test_size=0.25, random_state=0, stratify=data.target
    )
    forest = RandomForestClassifier(50, random_state=0).fit(train_x, train_y)

    shutil.copytree(HERE / "model", out, dirs_exist_ok=True)
    lines = [f"{len(forest.estimators_)} {train_x.shape[1]} {len(forest.classes_)}"]
    for one in forest.estimators_:
        lines += lines_of_tree(one.tree_)
    (out / "forest.txt").write_text("\n".join(lines) + "\n")
    expected = {"probabilities": forest.predict_proba(test_x).tolist()}
    (out.parent / "rows.json").write_text(json.dumps({"rows": test_x.tolist()}) + "\n")
    (out.parent / "expected.json").write_text(json.dumps(expected) + "\n")
    print(f"accuracy on {len(test_x)} held-out wines: {forest.score(test_x, test_y):.3f}")


if __name__ == "__main__":
    main()
