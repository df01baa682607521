"""A model server that knows nothing of the appliance: SageMaker's container contract, plain Python.

``GET /ping`` answers 200 once the model is loaded, ``POST /invocations`` scores rows. The weights
are read from ``/opt/ml/model``, as SageMaker puts them there.
"""

import json
import math
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

with open("/opt/ml/model/weights.json") as file:
    MODEL = json.load(file)


def score(row):
    """The probability that this customer leaves: a logistic regression."""
    total = MODEL["intercept"]
    for name, weight in MODEL["weights"].items():
        value = (float(row[name]) - MODEL["mean"][name]) / MODEL["scale"][name]
        total += weight * value
    return 1 / (1 + math.exp(-total))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer(200 if self.path == "/ping" else 404, {})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            rows = json.loads(body)["instances"]
            self.answer(200, {"predictions": [score(row) for row in rows]})
        except (KeyError, TypeError, ValueError) as error:
            self.answer(400, {"message": f"not scored: {error!r}"})

    def log_message(self, text, *values):
        print(text % values, file=sys.stderr, flush=True)


if __name__ == "__main__":
    HTTPServer(("0.0.0.0", 8080), Handler).serve_forever()
