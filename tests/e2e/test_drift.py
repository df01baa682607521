"""Drift of a real model on real data whose distribution is really shifted, by command."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from typing import Any

import pytest
from running import RunningAppliance
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

pytestmark = pytest.mark.podman
TARGET = "clinic/tumours"
WAIT_S = 120.0
SOURCE = b"""
import json, os
class Model:
    def __init__(self, path):
        with open(os.path.join(path, "fit.json")) as file:
            self.fit = json.load(file)
    def predict(self, inputs):
        fit = self.fit
        def one(row):
            values = zip(fit["names"], fit["mean"], fit["scale"], fit["weights"])
            return fit["offset"] + sum((row[n] - m) / s * w for n, m, s, w in values)
        return {"predictions": [int(one(row) > 0) for row in inputs["records"]]}
"""


def written(path: Path, names: list[str], rows: Any) -> str:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(rows)
    return str(path)


def typed(running: RunningAppliance, *arguments: str, code: int = 0) -> str:
    done = running.cli(*arguments)
    assert done.returncode == code, (done.stdout, done.stderr)
    print("$ appliance", *arguments)  # shown by pytest -s
    print(done.stderr.decode() + done.stdout.decode())
    return done.stdout.decode()


def told(running: RunningAppliance, kind: str) -> list[dict[str, Any]]:
    done = running.cli("--json", "audit", "list", "--kind", kind)
    assert done.returncode == 0, done.stderr
    return [entry["event"] for entry in json.loads(done.stdout)["entries"]]


def test_tumours_of_one_kind_only_are_a_breach_and_a_fair_sample_is_none(
    running: RunningAppliance, tmp_path: Path
) -> None:
    found = load_breast_cancer()
    names = [name.replace(" ", "_") for name in found.feature_names]
    train_x, test_x, train_y, test_y = train_test_split(
        found.data, found.target, test_size=0.5, random_state=0, stratify=found.target
    )
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(train_x, train_y)
    scaler, fitted = model[0], model[1]
    files = {
        "appliance.toml": b'runtime = "python3.11"\nentry = "model:Model"\n',
        "model.py": SOURCE,
        "fit.json": json.dumps(
            {
                "names": names,
                "mean": scaler.mean_.tolist(),
                "scale": scaler.scale_.tolist(),
                "weights": fitted.coef_[0].tolist(),
                "offset": fitted.intercept_[0],
            }
        ).encode(),
    }
    secret = running.tenant("clinic")
    for _ in range(2):
        made = running.push(secret, TARGET, files)
        assert made.status_code == 201, made.text
    train = written(
        tmp_path / "train.csv",
        [*names, "benign"],
        [[*row, label] for row, label in zip(train_x, model.predict(train_x), strict=True)],
    )
    for number in (1, 2):
        which = f"{TARGET}:{number}"
        shown = typed(
            running, "drift", "baseline", "set", which, "--data", train, "--output", "benign"
        )
        assert "284 records of data, 30 input and 1 output columns" in shown
        typed(running, "drift", "thresholds", "set", which, "--rows-min", "100")

    calls = {1: 0, 2: 0}

    def call(number: int, rows: Any) -> None:
        with running.https(secret) as client:
            for at in range(0, len(rows), 10):
                some = rows[at : at + 10]
                body = {"records": [dict(zip(names, row, strict=True)) for row in some.tolist()]}
                path = f"/api/v1/models/{TARGET}/versions/{number}/invoke"
                reply = client.post(path, json=body)
                assert reply.status_code == 200, reply.text
                assert reply.json()["predictions"] == model.predict(some).tolist()
                calls[number] += 1

    def document(number: int) -> Any:
        deadline = time.monotonic() + WAIT_S
        while True:
            done = running.cli("--json", "drift", "show", f"{TARGET}:{number}")
            shown = json.loads(done.stdout)
            if shown["calls"] == calls[number]:
                return shown
            assert time.monotonic() < deadline, shown
            time.sleep(0.2)

    call(1, test_x)
    fair = document(1)
    assert {score["verdict"] for score in fair["scores"]} <= {"ok", "unjudged"}
    malignant = test_x[test_y == 0]
    call(2, malignant)
    shifted = document(2)
    breached = {
        score["feature"]
        for score in shifted["scores"]
        if (score["verdict"], score["statistic"]) == ("breach", "psi")
    }
    assert {"mean_radius", "worst_perimeter", "worst_concave_points", "prediction"} <= breached
    typed(running, "drift", "show", f"{TARGET}:1")
    typed(running, "drift", "show", f"{TARGET}:2", "--since", "1h")
    deadline = time.monotonic() + WAIT_S
    while not (events := told(running, "drift.breach")):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert {event["number"] for event in events} == {2}
    assert breached >= {e["breach"]["feature"] for e in events if e["breach"]["statistic"] == "psi"}
    typed(running, "audit", "list", "--kind", "drift.breach", "--limit", "2")
    one = written(tmp_path / "fair.csv", names, test_x)
    other = written(tmp_path / "malignant.csv", names, malignant)
    assert "0.0000" not in typed(running, "drift", "compare", train, one)
    rows = json.loads(running.cli("--json", "drift", "compare", train, other).stdout)["features"]
    radius = next(row for row in rows if row["feature"] == "mean_radius")
    assert (radius["exact"], radius["p_value"] < 1e-9, radius["psi"] > 0.25) == (True, True, True)
    typed(running, "drift", "compare", train, other)
    problem = running.cli("drift", "show", "clinic/none:1")
    assert problem.returncode != 0
    done = running.cli("drift", "thresholds", "set", f"{TARGET}:1", "chi=1")
    assert done.returncode == 65, done.stderr
    assert b"'chi' is no statistic" in done.stderr
    assert "removed" in typed(running, "drift", "baseline", "rm", f"{TARGET}:1")
    done = running.cli("drift", "show", f"{TARGET}:1")
    assert b"has no baseline" in done.stderr
