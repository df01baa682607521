"""Measurements in centimetres become features: mean 0, standard deviation 1."""

import json
from pathlib import Path


class Model:
    """``{"rows": [[...], ...]}`` becomes ``{"features": [[...], ...]}``."""

    def __init__(self, path):
        """Read what the training found."""
        self.found = json.loads(Path(path, "scaling.json").read_text())

    def predict(self, inputs):
        """Each row, scaled."""
        scaling = list(zip(self.found["means"], self.found["deviations"], strict=True))
        return {
            "features": [
                [(x - mean) / deviation for x, (mean, deviation) in zip(row, scaling, strict=True)]
                for row in inputs["rows"]
            ]
        }
