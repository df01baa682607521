"""The conformance model: text is a command, anything else comes back."""

import os
import subprocess


class Model:
    """Does what the first word of a text asks for."""

    def __init__(self, path):
        self.held = []

    def predict(self, inputs):
        """The answer to one command."""
        if isinstance(inputs, bytes):
            return inputs[::-1]
        if not isinstance(inputs, str):
            return inputs
        word, _, rest = inputs.partition(" ")
        return getattr(self, f"do_{word}", lambda _: inputs)(rest)

    def do_raise(self, _):
        raise ValueError("as asked")

    def do_exit(self, rest):
        os._exit(int(rest))

    def do_spin(self, _):
        while True:
            pass

    def do_print(self, rest):
        print(rest)
        return "printed"

    def do_noise(self, _):
        for _ in range(2000):
            print("x" * 1000)
        return "done"

    def do_nan(self, _):
        return [float("nan"), {"x": float("inf")}, 1.5]

    def do_eat(self, _):
        while True:
            self.held.append(bytearray(b"x") * (1 << 20))

    def do_read(self, rest):
        with open(rest, encoding="utf-8") as file:
            return file.read()

    def do_run(self, rest):
        done = subprocess.run(["/bin/sh", "-c", rest], capture_output=True, text=True, check=False)
        return done.stdout

    def do_unsendable(self, _):
        return object()
