"""The servers that are compared: how each is installed, given the model, started and asked.

Every server but the appliance has a virtual environment of its own, made on demand; what cannot be
installed is left out with a word. All get the same fitted scikit-learn model and one row.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROWS = [[5.1, 3.5, 1.4, 0.2]]
PLAIN = json.dumps(ROWS).encode()
OIP = json.dumps(
    {"inputs": [{"name": "rows", "shape": [1, 4], "datatype": "FP64", "data": ROWS[0]}]}
).encode()
SCIKIT = "scikit-learn==1.9.1"

FIT = """
import sys, joblib
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
rows, labels = load_iris(return_X_y=True)
kind = {"linear": LogisticRegression(max_iter=1000),
        "forest": RandomForestClassifier(100, random_state=0)}[sys.argv[1]]
joblib.dump(kind.fit(rows, labels), sys.argv[2])
"""

APP = """
import sys, json, joblib
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

model = joblib.load("model.joblib")

async def invoke(request):
    answer = model.predict(await request.json())
    return Response(json.dumps(answer.tolist()), media_type="application/json")

app = Starlette(routes=[Route("/invoke", invoke, methods=["POST"])])
"""

HYPERCORN = """
import asyncio, sys
from hypercorn.asyncio import serve
from hypercorn.config import Config
from app import app

config = Config()
config.bind = [f"127.0.0.1:{sys.argv[1]}"]
config.keep_alive_max_requests = 10**9
if len(sys.argv) > 2:
    config.certfile = config.keyfile = sys.argv[2]
    config.alpn_protocols = ["http/1.1"]
asyncio.run(serve(app, config))
"""

BENTO = """
import bentoml, joblib
import numpy as np

@bentoml.service(metrics={"enabled": False}, logging={"access": {"enabled": False}})
class Iris:
    def __init__(self):
        self.model = joblib.load("model.joblib")

    @bentoml.api(BATCHABLE)
    def invoke(self, rows: np.ndarray) -> np.ndarray:
        return self.model.predict(rows)
"""

MLSERVER_MODEL = {
    "name": "iris",
    "implementation": "mlserver_sklearn.SKLearnModel",
    "parameters": {"uri": "./model.joblib", "version": "v1"},
}
MLFLOW = """
import joblib, mlflow.sklearn
mlflow.sklearn.save_model(joblib.load("model.joblib"), "saved")
"""

MODEL = """
import joblib

class Model:
    def __init__(self, path):
        self.model = joblib.load(f"{path}/model.joblib")
    def predict(self, rows):
        return self.model.predict(rows)
"""


class LeftOut(Exception):
    """A server cannot be had here; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One server of others. ``needs`` is what pip installs; ``files`` lie in its folder."""

    name: str
    needs: tuple[str, ...]
    command: Callable[[str, int], list[str]]
    path: str
    body: bytes
    files: dict[str, str] = field(default_factory=dict)
    prepare: str = ""
    variables: dict[str, str] = field(default_factory=dict)
    tls: bool = False


def _python(*arguments: str) -> Callable[[str, int], list[str]]:
    return lambda bin_dir, port: [
        f"{bin_dir}/python",
        *(part.replace("PORT", str(port)) for part in arguments),
    ]


def _mlserver(name: str, **settings: object) -> Peer:
    files = {
        "model-settings.json": json.dumps({**MLSERVER_MODEL, **settings.pop("model", {})}),  # type: ignore[dict-item]
        "settings.json": json.dumps({"debug": False, "metrics_endpoint": None, **settings}),
    }
    return Peer(
        name=name,
        needs=("mlserver==1.7.1", "mlserver-sklearn==1.7.1", SCIKIT, "uvloop<0.22"),
        command=lambda bin_dir, _: [f"{bin_dir}/mlserver", "start", "."],
        path="/v2/models/iris/infer",
        body=OIP,
        files=files,
        variables={"MLSERVER_HTTP_PORT": "PORT", "MLSERVER_GRPC_PORT": "PORT+1"},
    )


def _bento(name: str, batchable: str) -> Peer:
    return Peer(
        name=name,
        needs=("bentoml>=1.4,<1.5", SCIKIT),
        command=lambda bin_dir, port: [
            f"{bin_dir}/bentoml",
            "serve",
            "service:Iris",
            "--port",
            str(port),
            "--host",
            "127.0.0.1",
        ],
        path="/invoke",
        body=json.dumps({"rows": ROWS}).encode(),
        files={"service.py": BENTO.replace("BATCHABLE", batchable)},
        variables={"BENTOML_DO_NOT_TRACK": "1"},
    )


_STARLETTE = ("starlette>=1.10,<1.11", SCIKIT)
PEERS = (
    Peer(
        name="bare Starlette on Hypercorn",
        needs=(*_STARLETTE, "hypercorn==0.18.0"),
        command=_python("serve.py", "PORT"),
        path="/invoke",
        body=PLAIN,
        files={"app.py": APP, "serve.py": HYPERCORN},
    ),
    Peer(
        name="the same, TLS",
        needs=(*_STARLETTE, "hypercorn==0.18.0"),
        command=_python("serve.py", "PORT", "leaf.pem"),
        path="/invoke",
        body=PLAIN,
        files={"app.py": APP, "serve.py": HYPERCORN},
        tls=True,
    ),
    Peer(
        name="Starlette on uvicorn",
        needs=(*_STARLETTE, "uvicorn[standard]"),
        command=_python("-m", "uvicorn", "app:app", "--port", "PORT", "--no-access-log"),
        path="/invoke",
        body=PLAIN,
        files={"app.py": APP},
    ),
    _mlserver("MLServer, in process", parallel_workers=0),
    _mlserver("MLServer, one worker"),
    _mlserver(
        "MLServer, batches of 64, 5 ms",
        parallel_workers=0,
        model={"max_batch_size": 64, "max_batch_time": 0.005},
    ),
    _bento("BentoML", ""),
    _bento("BentoML, batchable", "batchable=True"),
    Peer(
        name="mlflow models serve",
        needs=("mlflow", SCIKIT),
        command=lambda bin_dir, port: [
            f"{bin_dir}/mlflow",
            "models",
            "serve",
            "-m",
            "saved",
            "--env-manager",
            "local",
            "-p",
            str(port),
            "-h",
            "127.0.0.1",
        ],
        path="/invocations",
        body=json.dumps({"inputs": ROWS}).encode(),
        prepare=MLFLOW,
    ),
)


def environment_for(peer: Peer, folder: Path) -> Path:
    """The ``bin`` of a virtual environment that has what a server needs, made if it is not there.

    Raises:
        LeftOut: pip cannot get it.
    """
    key = "-".join(sorted(need.split("=")[0].split("<")[0].split(">")[0] for need in peer.needs))
    place = folder / key.replace("[", "-").replace("]", "")
    ready = place / "ready"
    if not ready.exists():
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        done = subprocess.run(
            [str(place / "bin/pip"), "install", "--quiet", *peer.needs],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["pip failed"]
            raise LeftOut(f"{' '.join(peer.needs)} cannot be installed: {last[0]}")
        ready.touch()
    return place / "bin"


def lay_out(peer: Peer, folder: Path, bin_dir: Path, model: Path, leaf: Path) -> None:
    """Put the model and a server's files into its folder."""
    folder.mkdir(parents=True)
    (folder / "model.joblib").write_bytes(model.read_bytes())
    if peer.tls:
        (folder / "leaf.pem").write_bytes(leaf.read_bytes())
    for name, text in peer.files.items():
        (folder / name).write_text(text)
    if peer.prepare:
        done = subprocess.run(
            [str(bin_dir / "python"), "-c", peer.prepare],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise LeftOut(f"its model cannot be made: {done.stderr.strip().splitlines()[-1]}")


def variables_for(peer: Peer, port: int, bin_dir: Path) -> dict[str, str]:
    """The environment of a server's process."""
    told = {"PORT": str(port), "PORT+1": str(port + 1)}
    own = {name: told.get(value, value) for name, value in peer.variables.items()}
    path = f"{bin_dir}:{os.environ['PATH']}"
    return {**os.environ, **own, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
