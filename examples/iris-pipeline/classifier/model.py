"""Softmax regression on scaled measurements."""

import json
import math
from pathlib import Path


class Model:
    """``[[...], ...]`` becomes ``{"classes": [...], "probabilities": [[...], ...]}``."""

    def __init__(self, path):
        """Read what the training found."""
        self.found = json.loads(Path(path, "coefficients.json").read_text())

    def predict(self, inputs):
        """The probability of each class for each row."""
        return {
            "classes": self.found["classes"],
            "probabilities": [self.softmax(row) for row in inputs],
        }

    def softmax(self, row):
        """Probabilities of one row."""
        weighed = zip(self.found["weights"], self.found["intercepts"], strict=True)
        scores = [sum(w * x for w, x in zip(ws, row, strict=True)) + b for ws, b in weighed]
        powers = [math.exp(score - max(scores)) for score in scores]
        return [power / sum(powers) for power in powers]
