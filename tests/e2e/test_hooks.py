"""Webhooks and schedules as they are used: by the command line, a real model and a receiver."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import standardwebhooks
from running import ECHO_MODEL, RunningAppliance

pytestmark = pytest.mark.podman

TALKS = {
    "appliance.toml": b'runtime = "python3.11"\nentry = "model:Model"\n',
    "model.py": (
        b"import time\n"
        b"class Model:\n"
        b"    def __init__(self, path): pass\n"
        b"    def predict(self, inputs):\n"
        b"        print('begun', flush=True)\n"
        b"        time.sleep(1.5)\n"
        b"        print('halfway', flush=True)\n"
        b"        time.sleep(1.5)\n"
        b"        print('done', flush=True)\n"
        b"        return inputs\n"
    ),
}


class Heard(BaseHTTPRequestHandler):
    got: list[tuple[dict[str, str], bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.got.append((dict(self.headers), body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hears() -> Iterator[ThreadingHTTPServer]:
    kind = type("Kept", (Heard,), {"got": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def appliance(
    tmp_path: Path, run_root: Path, hears: ThreadingHTTPServer
) -> Iterator[RunningAppliance]:
    allow = f"http://127.0.0.1:{hears.server_port}"
    made = RunningAppliance(tmp_path / "data", run_root, webhooks__allow=allow)
    made.initialise()
    made.start()
    yield made
    made.close()


def typed(appliance: RunningAppliance, *arguments: str, stdin: bytes = b"", code: int = 0) -> str:
    done = appliance.cli(*arguments, stdin=stdin)
    assert done.returncode == code, (arguments, done.stdout, done.stderr)
    return done.stdout.decode()


def test_a_run_by_hand_is_told_of_with_its_output(
    appliance: RunningAppliance, hears: ThreadingHTTPServer
) -> None:
    url = f"http://127.0.0.1:{hears.server_port}/in"
    secret = appliance.tenant("acme")
    assert appliance.push(secret, "acme/echo", ECHO_MODEL).status_code == 201
    refused = appliance.cli(
        "webhook", "create", "acme", "https://127.0.0.1/x", "--event", "alias.set"
    )
    assert refused.returncode == 77
    assert b"webhooks.destinations" in refused.stderr
    made = typed(
        appliance, "webhook", "create", "acme", url, "--event", "job.completed", "--with-output"
    )
    hook, signed_with = made.split()
    own = typed(appliance, "webhook", "create", "acme", "--for-jobs").split()
    assert typed(appliance, "webhook", "test", "acme", hook).split()[1:] == ["delivered", "ok"]

    created = typed(
        appliance, "schedule", "create", "acme/echo", "--cron", "0 2 1 1 *",
        "--timezone", "Europe/Berlin", stdin=b'{"n": 1}',
    )  # fmt: skip
    place = created.split()[0]
    listed = json.loads(typed(appliance, "schedule", "list", "acme", "--json"))["items"][0]
    assert (listed["cron"], len(listed["next"])) == ("0 2 1 1 *", 3)
    assert all(at.endswith("-01-01T01:00:00.000Z") for at in listed["next"])
    job = typed(appliance, "schedule", "run-now", place).split()[0]
    typed(appliance, "job", "wait", job)
    assert "started" in typed(appliance, "schedule", "show", place)
    typed(
        appliance, "job", "submit", "acme/echo", "--data", '{"n":2}', "--webhook", f"{url}/own",
        "--webhook-event", "completed",
    )  # fmt: skip
    got = hears.RequestHandlerClass.got  # type: ignore[attr-defined]
    deadline = time.monotonic() + 60
    while len(got) < 4:  # the test, two jobs for the webhook, one of them for its own
        assert time.monotonic() < deadline, got
        time.sleep(0.05)
    told = []
    for headers, body in got:
        is_own = b'"output"' not in body and b"webhook.test" not in body
        key = own[1] if is_own else signed_with
        told.append(standardwebhooks.Webhook(key).verify(body, headers))
    outputs = [one["data"]["output"] for one in told if "output" in one["data"]]
    assert sorted(one["echo"]["n"] for one in outputs) == [1, 2]
    assert {one["data"].get("scheduled_by") for one in told} == {None, place.split("/")[1]}

    assert appliance.push(secret, "acme/talks", TALKS).status_code == 201
    before = len(got)
    job = typed(
        appliance, "job", "submit", "acme/talks", "--data", "1", "--webhook", f"{url}/logs",
        "--webhook-event", "logs",
    ).split()[0]  # fmt: skip
    typed(appliance, "job", "wait", job)
    lines: list[str] = []
    deadline = time.monotonic() + 60
    while len(lines) < 3:
        assert time.monotonic() < deadline, got[before:]
        time.sleep(0.05)
        parts = [json.loads(body)["data"] for _, body in got[before:] if b"job.logs" in body]
        parts = list({one["first_line"]: one for one in parts}.values())
        lines = [
            line for one in sorted(parts, key=lambda p: p["first_line"]) for line in one["logs"]
        ]
    assert lines == ["begun", "halfway", "done"]
    assert len(parts) > 1  # not all of it at the end

    assert typed(appliance, "schedule", "pause", place).split()[1] == "paused"
    assert typed(appliance, "schedule", "resume", place).split()[1] == "active"
    typed(appliance, "schedule", "rm", place)
    typed(appliance, "schedule", "show", place, code=65)
    assert "whsec_" in typed(appliance, "webhook", "rotate", "acme", hook, "--overlap-hours", "1")
    assert "off: command" in typed(appliance, "webhook", "disable", "acme", hook)
    assert " on" in typed(appliance, "webhook", "enable", "acme", hook)
    shown = typed(appliance, "webhook", "show", "acme", hook)
    assert shown.count("job.completed") == 3
    typed(appliance, "webhook", "rm", "acme", hook)
    assert hook not in typed(appliance, "webhook", "list", "acme")
    kinds = typed(appliance, "audit", "list", "--tenant", "acme", "--kind", "delivery.*")
    assert "delivery.opened" in kinds
