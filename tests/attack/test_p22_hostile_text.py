"""P22: text made to hurt its reader is refused at once: never a 500, never a wait.

Manifests, MLflow's YAML files, requirement files and the API's own JSON bodies; each refusal is a
problem of the caller's within 100 ms, and the appliance answers on. Counted is the processor time
of the appliance, which a busy machine does not lengthen as it does the time on the wall.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest
from running import RunningAppliance, tar_of_files

pytestmark = pytest.mark.podman
LIMIT_S = 0.1
WALL_S = 2.0
TRIES = 3


@contextmanager
def counted(running: RunningAppliance, spent: list[float]) -> Iterator[None]:
    """Adds the appliance's processor time for the block, in seconds."""
    assert running.process is not None
    process = psutil.Process(running.process.pid)
    before, started = process.cpu_times(), time.perf_counter()
    yield
    after = process.cpu_times()
    assert time.perf_counter() - started < WALL_S
    spent.append(after.user + after.system - before.user - before.system)


BOMB = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (98 + i, 98 + i, b", ".join([b"*%c" % (97 + i)] * 9)) for i in range(9)
)
HEAD = b'runtime = "python3.11"\nentry = "model:Model"\n'
SIGNATURE = b"flavors:\n  python_function:\n    loader_module: x\nsignature:\n  inputs: '%s'\n"
LONG = b"9" * 100_000

HOSTILE = {
    "toml: deep lists": {"appliance.toml": HEAD + b"input_schema.a = " + b"[" * 100_000},
    "toml: deep tables": {"appliance.toml": HEAD + b"input_schema = " + b"{a=" * 50_000},
    "toml: dotted key": {"appliance.toml": HEAD + b"input_schema." + b"a." * 60_000 + b"a = 1"},
    "toml: long integer": {"appliance.toml": HEAD + b"idle_timeout_s = " + LONG},
    "toml: integer over 64 bits": {
        "appliance.toml": HEAD + b"input_schema.maximum = 1" + b"0" * 30
    },
    "toml: nan": {"appliance.toml": HEAD + b"[resources]\ncpus = nan\n"},
    "toml: nan in a schema": {"appliance.toml": HEAD + b"[input_schema]\nmaximum = nan\n"},
    "toml: inf": {"appliance.toml": HEAD + b"[input_schema]\nmaximum = -inf\n"},
    "toml: a date in a schema": {"appliance.toml": HEAD + b"[input_schema]\nx = 2020-01-01\n"},
    "toml: UTF-16": {"appliance.toml": HEAD.decode().encode("utf-16")},
    "toml: UTF-16 without mark": {"appliance.toml": HEAD.decode().encode("utf-16-le")},
    "toml: byte order mark": {"appliance.toml": b"\xef\xbb\xbf" + HEAD},
    "toml: lone surrogate": {"appliance.toml": HEAD + b'description = "\\ud800"'},
    "toml: surrogate bytes": {"appliance.toml": HEAD + b'description = "\xed\xa0\x80"'},
    "toml: NUL": {"appliance.toml": HEAD + b'description = "\x00"'},
    "toml: too large": {"appliance.toml": HEAD + b"#" * 300_000},
    "toml: 60 KiB of values": {"appliance.toml": HEAD + b"x = [" + b"1," * 30_000 + b"]"},
    "toml: 60 KiB of keys": {
        "appliance.toml": HEAD + b"".join(b"k%05d = 1\n" % i for i in range(5_500))
    },
    "yaml: alias bomb": {"MLmodel": BOMB},
    "yaml: alias bomb in conda.yaml": {"MLmodel": SIGNATURE % b"[]", "conda.yaml": BOMB},
    "yaml: deep lists": {"MLmodel": b"flavors: " + b"[" * 100_000},
    "yaml: deep mappings": {"MLmodel": b"{a: " * 50_000},
    "yaml: block mappings": {"MLmodel": b"? " * 90_000},
    "yaml: block lists": {"MLmodel": b"- " * 90_000},
    "yaml: many values": {"MLmodel": b"- x\n" * 50_000},
    "yaml: a Python object": {"MLmodel": b"flavors: !!python/object/apply:os.system ['true']\n"},
    "yaml: long integer": {"MLmodel": b"flavors: " + LONG},
    "yaml: a quote without end": {"MLmodel": b'"' + b"a" * 180_000},
    "yaml: UTF-16": {"MLmodel": "flavors: {}".encode("utf-16")},
    "yaml: byte order mark": {"MLmodel": b"\xef\xbb\xbfflavors: {}"},
    "yaml: lone surrogate": {"MLmodel": b'flavors: "\\ud800"'},
    "yaml: merge key": {"MLmodel": b"flavors: {<<: {spark: {}}}"},
    "yaml: second document": {"MLmodel": b"flavors: {}\n---\nflavors: {}\n"},
    "yaml: not captured": {"MLmodel": b"#" * 400_000},
    "signature: deep": {
        "MLmodel": SIGNATURE % (b"[" * 100_000),
        "requirements.txt": b"mlflow==3.0.0",
    },
    "signature: long integer": {
        "MLmodel": SIGNATURE % (b'[{"name": "a", "type": ' + LONG + b"}, 1"),
        "requirements.txt": b"mlflow==3.0.0",
    },
    "signature: NaN": {"MLmodel": SIGNATURE % b"[NaN]", "requirements.txt": b"mlflow==3.0.0"},
    "requirements: UTF-16": {"m.onnx": b"x", "requirements.txt": "a==1".encode("utf-16")},
    "requirements: one long line": {"m.onnx": b"x", "requirements.txt": b"a" * 190_000},
    "requirements: many extras": {"m.onnx": b"x", "requirements.txt": b"a[" + b"b," * 60_000},
    "two models": {"a.onnx": b"x", "b.onnx": b"x"},
}


@pytest.mark.parametrize("files", HOSTILE.values(), ids=HOSTILE)
def test_an_upload_with_hostile_text_is_refused_at_once(
    running: RunningAppliance, files: dict[str, bytes]
) -> None:
    secret = running.tenant("texts")
    body = tar_of_files(files)
    spent: list[float] = []
    with running.https(secret) as client:
        client.get("/api/v1/whoami")  # the connection is there
        for _ in range(TRIES):
            with counted(running, spent):
                reply = client.post(
                    "/api/v1/models/texts/hostile/versions",
                    content=body,
                    headers={"Content-Type": "application/x-tar"},
                )
            assert reply.status_code == 422, reply.text
            assert reply.headers["content-type"] == "application/problem+json"
            problem = reply.json()
            assert problem["code"] == "manifest-invalid", problem
            assert problem["detail"]
            assert problem["hint"], problem
    assert min(spent) <= LIMIT_S, spent


BODIES = {
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"name":' * 100_000,
    "long integer": b'{"name": ' + LONG + b"}",
    "nan": b'{"name": NaN}',
    "UTF-16": '{"name": "a"}'.encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf" + b'{"name": "a"}',
    "lone surrogate": b'{"name": "\\ud800"}',
    "surrogate bytes": b'{"name": "\xed\xa0\x80"}',
    "key twice, deep": b'{"name": "a", "x": ' + b"[" * 5000 + b"]" * 5000 + b"}",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_hostile_body_of_the_api_is_refused_at_once(
    running: RunningAppliance, body: bytes
) -> None:
    spent: list[float] = []
    with running.admin() as client:
        for _ in range(TRIES):
            with counted(running, spent):
                reply = client.post(
                    "/api/v1/tenants", content=body, headers={"Content-Type": "application/json"}
                )
            assert 400 <= reply.status_code < 500, reply.text
            assert reply.headers["content-type"] == "application/problem+json"
    assert min(spent) <= LIMIT_S, spent


@pytest.mark.parametrize("body", [b"[" * 100_000, b"[" + LONG + b"]", b"[NaN]", b'"\\ud800"'])
def test_a_hostile_input_of_a_model_is_the_models_business(
    running: RunningAppliance, body: bytes
) -> None:
    secret = running.tenant("texts")
    files = {
        "appliance.toml": HEAD,
        "model.py": b"class Model:\n    def __init__(self, path): pass\n"
        b"    def predict(self, inputs): return {'kind': type(inputs).__name__}\n",
    }
    with running.https(secret) as client:
        if client.get("/api/v1/models/texts/kind").status_code == 404:
            assert running.push(secret, "texts/kind", files).status_code == 201
        reply = client.post(
            "/api/v1/models/texts/kind/invoke",
            content=body,
            headers={"Content-Type": "application/json"},
        )
        assert reply.status_code in (200, 422, 502), reply.text
        assert client.post("/api/v1/models/texts/kind/invoke", json=[1]).json() == {"kind": "list"}
