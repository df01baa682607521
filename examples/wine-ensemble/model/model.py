"""What runs in the sandbox: two models of two frameworks, asked together, their answers weighed."""

import json
from pathlib import Path

import lightgbm
import numpy
import skops.io


class Model:
    """A scikit-learn pipeline and LightGBM trees behind one ``predict``."""

    def __init__(self, path):
        folder = Path(path)
        self.linear = skops.io.load(folder / "linear.skops")
        self.trees = lightgbm.Booster(model_file=str(folder / "trees.txt"))
        self.weights = json.loads((folder / "weights.json").read_text())
        self.classes = ["class_0", "class_1", "class_2"]

    def predict(self, inputs):
        """Probabilities of ``{"rows": [[13 numbers], ...]}``: each model's, and both weighed."""
        rows = numpy.asarray(inputs["rows"], dtype=float)
        linear = self.linear.predict_proba(rows)
        trees = self.trees.predict(rows, num_threads=1)
        both = self.weights["linear"] * linear + self.weights["trees"] * trees
        return {
            "classes": self.classes,
            "linear": linear,
            "trees": trees,
            "probabilities": both,
        }
