"""A model that calls two others: it scales, classifies, and says which rows are doubtful."""

from appliance_model import call

DOUBT = 0.9


class Model:
    """``{"rows": [[...], ...]}`` becomes a list of names; a doubtful row's is null."""

    def __init__(self, path):
        """Nothing of its own to read."""

    def predict(self, inputs):
        """The class of each row, where its probability is 0.9 or more."""
        scaled = call("iris-scaler", inputs)
        answer = call("iris-classifier@live", scaled["features"])
        return [
            answer["classes"][row.index(max(row))] if max(row) >= DOUBT else None
            for row in answer["probabilities"]
        ]
