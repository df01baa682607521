"""Egress from the command line to a real model's connection, and back into the audit log."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import RunningAppliance

pytestmark = pytest.mark.podman

MODEL = {
    "appliance.toml": b'runtime = "python3.11"\nentry = "model:Model"\n',
    "model.py": b"""
import os, socket, urllib.request
class Model:
    def __init__(self, path): pass
    def predict(self, inputs):
        try:
            if "url" in inputs:
                with urllib.request.urlopen(inputs["url"], timeout=5) as reply:
                    return {"said": reply.read().decode()}
            with socket.create_connection((inputs["host"], inputs["port"]), 5) as link:
                link.sendall(b"hello")
                return {"said": link.recv(100).decode(), "proxy": os.environ.get("HTTPS_PROXY")}
        except OSError as error:
            return {"said": str(error), "proxy": os.environ.get("HTTPS_PROXY")}
""",
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, run_root: Path) -> Iterator[RunningAppliance]:
    folder = tmp_path_factory.mktemp("appliance")
    (folder / "hosts").write_text("127.0.0.7 db.example.test\n")
    appliance = RunningAppliance(folder / "data", run_root, egress__hosts_file=folder / "hosts")
    appliance.initialise()
    try:
        appliance.start()
        yield appliance
    finally:
        appliance.close()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server on a loopback address that answers once per connection."""
    with socket.create_server(("127.0.0.7", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    link, _ = server.accept()
                except OSError:
                    return
                with link:
                    asked = link.recv(4096)
                    head = b"HTTP/1.0 200 OK\r\n\r\n" if asked.startswith(b"GET") else b""
                    link.sendall(head + b"answered")

        threading.Thread(target=serve, daemon=True).start()
        yield int(server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)


def cli(running: RunningAppliance, *arguments: str, code: int = 0) -> Any:
    done = running.cli("--json", *arguments)
    assert done.returncode == code, (done.stdout, done.stderr)
    return json.loads(done.stdout) if done.stdout else None


def test_a_rule_lets_a_model_out_and_its_removal_ends_it(
    running: RunningAppliance, port: int
) -> None:
    secret = running.tenant("acme")
    assert running.push(secret, "acme/out", MODEL).status_code == 201

    def ask(**inputs: Any) -> dict[str, Any]:
        with running.https(secret) as client:
            answer = client.post("/api/v1/models/acme/out/invoke", json=inputs)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    here = {"host": "db.example.test", "port": port}
    before = ask(**here)
    assert before["said"] != "answered"
    assert before["proxy"] is None
    why = ("--port", str(port), "--reason", "features")
    literal = cli(running, "egress", "allow", "acme", "127.0.0.7", *why)
    rule = cli(running, "egress", "allow", "acme", "db.example.test", *why, "--model", "out")
    after = ask(**here)
    assert after == {"said": "answered", "proxy": "http://127.0.0.1:3128"}
    assert ask(url=f"http://db.example.test:{port}/")["said"] == "answered"
    assert "403" in ask(url=f"http://other.example.test:{port}/")["said"]
    listed = cli(running, "egress", "list", "acme")["items"]
    assert [row["id"] for row in listed] == [literal["id"], rule["id"]]
    explained = cli(
        running, "egress", "explain", "acme", "db.example.test", "--port", str(port),
        "--model", "out", "--protocol", "tcp",
    )  # fmt: skip
    assert explained["rule"]["id"] == rule["id"]
    cli(running, "egress", "explain", "acme", "other.example.test", code=77)
    cli(running, "egress", "remove", "acme", rule["id"], "--reason", "over", "--force")
    cli(running, "egress", "remove", "acme", literal["id"], "--reason", "over", "--force")
    assert ask(**here) == before
    kinds = [e["kind"] for e in cli(running, "audit", "list", "--kind", "egress.*")["entries"]]
    assert kinds.count("egress.opened") == 2
    assert kinds.count("egress.passed") == 2
    assert kinds.count("egress.denied") == 1


def test_a_mistyped_rule_says_what_to_do(running: RunningAppliance) -> None:
    done = running.cli("egress", "allow", "acme", "a b", "--reason", "x")
    assert done.returncode == 65 or done.returncode == 64
    assert b"egress allow --help" in done.stderr
    shown = running.cli("egress", "allow", "--help").stdout.decode()
    assert shown.index("Examples") < shown.index("Usage")
