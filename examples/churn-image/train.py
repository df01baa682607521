"""Train the weights: a logistic regression of synthetic customers, by gradient descent.

    python train.py FOLDER

writes FOLDER/weights.json beside a copy of the manifest, and next to FOLDER the rows to send and
the answer the trained model itself gives.
"""

import json
import math
import random
import shutil
import sys
from pathlib import Path

NAMES = ("months", "calls", "late_payments")


def customers(count, seed=7):
    dice = random.Random(seed)
    for _ in range(count):
        row = {
            "months": dice.randint(1, 72),
            "calls": dice.randint(0, 9),
            "late_payments": dice.randint(0, 5),
        }
        pull = 0.5 - row["months"] / 24 + row["calls"] / 3 + row["late_payments"] / 2
        yield row, dice.random() < 1 / (1 + math.exp(-pull))


def train(data):
    mean = {n: sum(row[n] for row, _ in data) / len(data) for n in NAMES}
    spread = {n: sum((row[n] - mean[n]) ** 2 for row, _ in data) / len(data) for n in NAMES}
    scale = {n: math.sqrt(spread[n]) for n in NAMES}
    rows = [([(row[n] - mean[n]) / scale[n] for n in NAMES], left) for row, left in data]
    weights, intercept = [0.0] * len(NAMES), 0.0
    for _ in range(300):
        slopes, slope = [0.0] * len(NAMES), 0.0
        for values, left in rows:
            total = intercept + sum(w * v for w, v in zip(weights, values, strict=True))
            error = left - 1 / (1 + math.exp(-total))
            slope += error / len(rows)
            slopes = [s + error * v / len(rows) for s, v in zip(slopes, values, strict=True)]
        intercept += slope
        weights = [w + s for w, s in zip(weights, slopes, strict=True)]
    named = dict(zip(NAMES, weights, strict=True))
    return {"weights": named, "intercept": intercept, "mean": mean, "scale": scale}


def score(model, row):
    total = model["intercept"] + sum(
        weight * (row[n] - model["mean"][n]) / model["scale"][n]
        for n, weight in model["weights"].items()
    )
    return 1 / (1 + math.exp(-total))


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    model = train(list(customers(500)))
    rows = [row for row, _ in customers(5, seed=8)]
    (folder / "weights.json").write_text(json.dumps(model))
    shutil.copy(Path(__file__).parent / "model" / "appliance.toml", folder)
    (folder.parent / "rows.json").write_text(json.dumps({"instances": rows}))
    expected = {"predictions": [score(model, row) for row in rows]}
    (folder.parent / "expected.json").write_text(json.dumps(expected))


if __name__ == "__main__":
    main()
