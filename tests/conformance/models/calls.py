"""The conformance model that calls: text is a command."""

import threading
from concurrent.futures import ThreadPoolExecutor

from appliance_model import CallFailed, call


class Model:
    """Does what the first word of a text asks for."""

    def __init__(self, path):
        self.left = None
        try:
            call("echo", 1)
        except CallFailed as error:
            self.early = str(error)

    def predict(self, inputs):
        """The answer to one command."""
        word, _, rest = inputs.partition(" ")
        return getattr(self, f"do_{word}")(rest)

    def do_early(self, _):
        return self.early

    def do_text(self, rest):
        return call("echo:3", rest)

    def do_values(self, _):
        return call("echo", {"a": [1, 2.5, None, True], "b": {"c": "ü"}})

    def do_bytes(self, _):
        return call("echo@live", bytes(range(256)))

    def do_typed(self, rest):
        return call("echo", rest, content_type="application/json")

    def do_refused(self, rest):
        try:
            return call(rest, 1)
        except CallFailed as error:
            return f"{error.code} {error.status} {error}"

    def do_through(self, rest):
        return call(rest, 1)

    def do_large(self, rest):
        try:
            return call("echo", "x" * int(rest))
        except CallFailed as error:
            return f"{error.code} {error.status} {error}"

    def do_many(self, rest):
        with ThreadPoolExecutor(8) as threads:
            return list(threads.map(lambda n: call("echo", n), range(int(rest))))

    def do_leave(self, _):
        def ask():
            try:
                self.said = call("slow", 1)
            except CallFailed as error:
                self.said = str(error)

        self.left = threading.Thread(target=ask)
        self.left.start()
        call("second", 1)
        return "done"

    def do_left(self, _):
        self.left.join(30)
        return self.said
