"""kill -9 in the middle of an attempt and between two: the receiver is told all the same.

The message comes again with the id it had; nothing that was told is told anew.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import standardwebhooks
from running import RunningAppliance

DEADLINE_S = 90.0
HOOKS = "/api/v1/tenants/acme/webhooks"


class Hearing:
    """A receiver in threads: it hears a request to its end, then answers as it is told, or not."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def until(self, count: int) -> None:
        wait(lambda: len(self.got) >= count)

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._hear, args=(connection,), daemon=True).start()

    def _hear(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as file:
            file.readline()
            headers = {}
            while (line := file.readline().decode().strip()) != "":
                name, _, value = line.partition(":")
                headers[name.lower()] = value.strip()
            body = file.read(int(headers["content-length"]))
            self.got.append((headers, body))
            if self.answers:
                connection.sendall(self.answers.pop(0))
            else:
                file.read()  # no answer: until the other side is gone


def wait(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def answer(status: int) -> bytes:
    return f"HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n".encode()


@pytest.fixture
def hears() -> Iterator[Hearing]:
    made = Hearing()
    yield made
    made.close()


@pytest.fixture
def appliance(tmp_path: Path, run_root: Path, hears: Hearing) -> Iterator[RunningAppliance]:
    allow = f"http://127.0.0.1:{hears.port}"
    made = RunningAppliance(
        tmp_path / "data", run_root, webhooks__allow=allow, webhooks__timeout_s=60
    )
    made.initialise()
    yield made
    made.close()


def test_what_a_kill_cut_off_is_told_again_with_the_same_id(
    appliance: RunningAppliance, hears: Hearing
) -> None:
    appliance.start()
    secret = appliance.tenant("acme")
    with appliance.https(secret) as client:
        body = {"url": f"http://127.0.0.1:{hears.port}/x", "events": ["key.created"]}
        made = client.post(HOOKS, json=body).json()
        path = f"{HOOKS}/{made['webhook']['id']}"
        hears.answers.append(answer(500))
        client.post("/api/v1/tenants/acme/keys", json={"name": "one", "role": "caller"})
        wait(lambda: [d["code"] for d in client.get(path).json()["deliveries"]] == ["http-500"])
    appliance.kill()  # between two attempts
    appliance.start()
    hears.until(2)  # it has the message again, and the appliance waits for the answer
    appliance.kill()
    hears.answers.append(answer(200))
    appliance.start()
    hears.until(3)
    with appliance.https(secret) as client:
        wait(lambda: client.get(path).json()["deliveries"][0]["state"] == "delivered")
        (delivery,) = client.get(path).json()["deliveries"]
    assert delivery["attempts"] == 3
    assert [headers["webhook-id"] for headers, _ in hears.got] == [delivery["id"]] * 3
    for headers, content in hears.got:
        message = standardwebhooks.Webhook(made["secret"]).verify(content, headers)
        assert message["data"]["name"] == "one"
    hears.answers.append(answer(200))
    with appliance.https(secret) as client:
        assert client.post(f"{path}/test").json()["code"] == "ok"
    assert len(hears.got) == 4  # what was told before is not told anew
