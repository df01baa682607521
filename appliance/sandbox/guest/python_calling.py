"""The Python runner's CALL: a model calls another model of its tenant.

Owns: CALL, RETURN and ERR of PROTOCOL.md for Python, and the module ``appliance_model`` that models
import; standard library only; executed by ``python_serve`` where the manifest declares ``calls``.
Never: is trusted; decides nothing: the appliance does.
Read next: ``PROTOCOL.md``, ``python_serve``.

    from appliance_model import call, CallFailed

    rows = call("features", {"ids": [1, 2]})
    score = call("scorer@live", rows)

Any thread may call while a request is being answered. Whoever waits first reads the connection for
all: there is no thread of the runner's own.
"""

from __future__ import annotations

import sys
import threading

TYPE_CHECKING = False  # see python_runner
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

ANSWERS = ("RES", "ERR")


class CallFailed(Exception):
    """A call of another model was refused or failed.

    ``code`` is the problem (``/problems/CODE`` at the appliance), ``status`` its HTTP status.
    """

    def __init__(self, detail: str, code: str = "", status: int = 0) -> None:
        """What the appliance said of it."""
        super().__init__(detail)
        self.code = code
        self.status = status


class Calls:
    """Calls over the runner's connection, beside the requests that it answers."""

    def __init__(self, channel: Any, members: dict[str, Any]) -> None:
        """Take over a channel's frames.

        Args:
            channel: the runner's.
            members: of ``python_serve``: how values and bodies become each other.
        """
        self.json = channel.json
        self.inputs_from_body = members["inputs_from_body"]
        self.body_from_answer = members["body_from_answer"]
        self.fault: Any = members["Fault"]
        self.read, self.write = channel.receive, channel.send
        self.sending = threading.RLock()
        self.gate = threading.Condition()
        self.is_reading = False
        self.frames: list[tuple[dict[str, Any], bytes | bytearray]] = []
        self.answers: dict[str, tuple[dict[str, Any], bytes | bytearray] | None] = {}
        self.request = ""
        self.body_bytes_max = 0
        self.free = threading.Semaphore(0)
        self.count = 0

    def receive(self) -> tuple[dict[str, Any], bytes | bytearray]:
        """The next frame that is no answer to a call, for the runner's own loop."""
        with self.gate:
            self.answers.clear()
            self.gate.notify_all()
        header, body = self.wait(lambda: self.frames.pop(0) if self.frames else None)
        limits = header.get("calls")
        if header.get("type") == "REQ" and limits:
            with self.sending:
                self.request = header.get("id", "")
                self.body_bytes_max = limits["body_bytes_max"]
                self.free = threading.Semaphore(limits["parallel_max"])
        return header, body

    def send(self, header: dict[str, Any], body: bytes = b"") -> None:
        """Send a frame whole; after the answer to a request nothing is called for it any more."""
        with self.sending:
            if header.get("type") in ANSWERS:
                self.request = ""
            self.write(header, body)

    def wait(self, take: Callable[[], Any]) -> Any:
        """What ``take`` finds, once there is something; reads the connection if nobody does."""
        while True:
            with self.gate:
                while True:
                    found = take()
                    if found is not None:
                        return found
                    if not self.is_reading:
                        break
                    self.gate.wait()
                self.is_reading = True
            frame = None
            try:
                frame = self.read()
            finally:
                with self.gate:
                    self.is_reading = False
                    if frame is not None:
                        self.sort(*frame)
                    self.gate.notify_all()

    def sort(self, header: dict[str, Any], body: bytes | bytearray) -> None:
        """Put a frame where it is waited for; an answer that nobody waits for is dropped."""
        if header.get("type") not in ("RETURN", "ERR"):
            self.frames.append((header, body))
        elif header.get("id") in self.answers:
            self.answers[header["id"]] = (header, body)

    def call(self, target: str, inputs: Any = None, *, content_type: str = "") -> Any:
        """The answer of another model of the same tenant.

        Args:
            target: ``NAME``, ``NAME:VERSION`` or ``NAME@ALIAS``; declared in ``calls``.
            inputs: text, bytes, or anything that can be JSON.
            content_type: of ``inputs``, where it is not what that would be.

        Raises:
            CallFailed: there is no answer; ``code`` says why.
        """
        try:
            media, body = self.body_from_answer(self.json, inputs)
        except self.fault as fault:
            raise TypeError(f"{type(inputs).__name__}: {fault.detail}") from None
        answer, content = self.exchange(str(target), content_type or media, body)
        if answer["type"] == "ERR":
            raise CallFailed(answer.get("detail", ""), answer.get("code", ""), answer["status"])
        return self.inputs_from_body(self.json, answer.get("content_type", ""), content)

    def exchange(
        self, target: str, content_type: str, body: bytes
    ) -> tuple[dict[str, Any], bytes | bytearray]:
        """Send a CALL and wait for its answer."""
        if len(body) > self.body_bytes_max and self.request:
            raise CallFailed(f"The body is over {self.body_bytes_max} bytes.", "too-large", 413)
        free = self.free
        with self.sending:
            is_open, request = bool(self.request), self.request
        if not is_open:
            raise CallFailed("Models are called while a request is answered only.")
        with free:
            with self.sending:
                if self.request != request:
                    raise CallFailed("The request this call was for has been answered.")
                self.count += 1
                ident = f"c{self.count}"
                with self.gate:
                    self.answers[ident] = None
                header = {"type": "CALL", "id": ident, "req": request, "target": target[:140]}
                self.write({**header, "content_type": content_type[:256]}, body)
            return self.answered(ident)

    def answered(self, ident: str) -> tuple[dict[str, Any], bytes | bytearray]:
        """The answer to an open call."""
        gone = ({"type": "ERR", "detail": "The request was answered.", "status": 0}, b"")

        def take() -> Any:
            return self.answers.get(ident, gone)

        try:
            found: tuple[dict[str, Any], bytes | bytearray] = self.wait(take)
            return found
        finally:
            with self.gate:
                self.answers.pop(ident, None)


def install(channel: Any, members: dict[str, Any]) -> None:
    """Let the model import ``appliance_model``, and its calls go over this channel."""
    calls = Calls(channel, members)
    channel.receive, channel.send = calls.receive, calls.send
    module: Any = type(sys)("appliance_model")
    module.__doc__ = "Calls of other models of the same tenant: call(target, inputs), CallFailed."
    module.call = calls.call
    module.CallFailed = CallFailed
    sys.modules["appliance_model"] = module
