"""What runs in the sandbox: load the fitted classifier once, answer rows with probabilities."""

from pathlib import Path

import joblib
import numpy


class Model:
    """A fitted scikit-learn classifier behind one ``predict``."""

    def __init__(self, path):
        self.classifier = joblib.load(Path(path) / "model.joblib")
        self.classes = ["malignant", "benign"]

    def predict(self, inputs):
        """Probabilities of the rows of ``{"rows": [[30 numbers], ...]}``, one row each."""
        rows = numpy.asarray(inputs["rows"], dtype=float)
        return {"classes": self.classes, "probabilities": self.classifier.predict_proba(rows)}
