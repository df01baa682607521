"""The server inside test images: knows no appliance, answers by every protocol's routes.

It loads ``model.py`` from the version's folder if there is one, and calls its ``Model``.
"""

import json
import os
import sys
import traceback
from http.server import BaseHTTPRequestHandler, HTTPServer

FOLDER = os.environ.get("FILES", "/model")
READY = {"/v2/models/model/ready", "/ping", "/health", "/"}
sys.path.insert(0, FOLDER)
sys.stdout.reconfigure(line_buffering=True)


class Echo:
    def predict(self, inputs):
        return inputs


def load():
    if os.path.exists(FOLDER + "/model.py"):
        import model

        return model.Model(FOLDER)
    return Echo()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def answer(self, status, body, kind="application/json"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/health-check":
            self.answer(200, json.dumps({"status": os.environ.get("HEALTH", "READY")}).encode())
        else:
            self.answer(200 if self.path in READY else 404, b"{}")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        kind = self.headers.get("Content-Type", "")
        try:
            inputs = json.loads(body) if kind == "application/json" else body
            if self.path == "/predictions":
                said = {"status": "succeeded", "output": MODEL.predict(inputs["input"])}
                self.answer(200, json.dumps(said).encode())
                return
            found = MODEL.predict(inputs)
        except MemoryError:
            traceback.print_exc()
            os._exit(1)
        except Exception as error:  # noqa: BLE001 - whatever the model raises is its answer
            traceback.print_exc()
            last = traceback.format_exception_only(error)[-1].strip()
            if self.path == "/predictions":
                self.answer(200, json.dumps({"status": "failed", "error": last}).encode())
            else:
                self.answer(500, json.dumps({"error": last}).encode())
            return
        if isinstance(found, bytes):
            self.answer(200, found, "application/octet-stream")
        elif isinstance(found, str):
            self.answer(200, found.encode(), "text/plain; charset=utf-8")
        else:
            self.answer(200, json.dumps(found).encode())


if __name__ == "__main__":
    print("starting", *sys.argv[1:], "in", os.getcwd())
    MODEL = load()
    HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
