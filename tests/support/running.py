"""A real appliance process for tests: ``appliance serve`` on a data folder of its own.

Started with the interpreter that runs the tests, stopped with SIGTERM or killed with SIGKILL; the
runtimes it uses are linked from the folder ``APPLIANCE_TEST_DATA`` names, so that none is built.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx

READY_TIMEOUT_S = 60.0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def tar_of_files(files: dict[str, bytes]) -> bytes:
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for path, content in files.items():
            info = tarfile.TarInfo(path)
            info.size = len(content)
            tar.addfile(info, BytesIO(content))
    return out.getvalue()


def tree(folder: Path) -> str:
    """A digest of every file outside the ledger and the database, which record the refusal."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        kept = not {"ledger", "db", "runtimes", "deps"} & set(path.relative_to(folder).parts)
        if kept and path.is_file() and not path.name.startswith(("anchor", "registry.snap")):
            digest.update(str(path).encode() + path.read_bytes())
    return digest.hexdigest()


ECHO_MODEL = {
    "appliance.toml": b'runtime = "python3.11"\nentry = "model:Model"\n',
    "model.py": (
        b"class Model:\n"
        b"    def __init__(self, path): pass\n"
        b"    def predict(self, inputs): return {'echo': inputs}\n"
    ),
}


class RunningAppliance:
    """One appliance on one data folder; may be started, stopped and killed repeatedly."""

    def __init__(self, data_dir: Path, run_dir: Path, **settings: Any) -> None:
        self.data_dir = data_dir
        self.run_dir = run_dir
        self.port = free_port()
        self.key_file = data_dir.parent / "unseal.key"
        self.log_file = data_dir.parent / "appliance.log"
        self.socket = run_dir / "admin.sock"
        self.process: subprocess.Popen[bytes] | None = None
        self._settings = settings

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        chosen = {
            "paths.data_dir": str(self.data_dir),
            "paths.run_dir": str(self.run_dir),
            "http.port": str(self.port),
            "unseal.key_file": str(self.key_file),
            "sandbox.accept_supervised_limits": "true",
            **{key.replace("__", "."): str(value) for key, value in self._settings.items()},
        }
        variables = {
            f"APPLIANCE__{key.upper().replace('.', '__')}": value for key, value in chosen.items()
        }
        return {**os.environ, **variables}

    def cli(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "appliance", *arguments],
            input=stdin,
            capture_output=True,
            env=self.environment(),
            timeout=180,
            check=False,
        )

    def initialise(self) -> None:
        done = self.cli("init", "--key-file", str(self.key_file))
        if done.returncode:
            raise AssertionError(done.stderr.decode())
        source = os.environ.get("APPLIANCE_TEST_DATA")
        if source:
            for folder in ("runtimes", "deps"):
                (Path(source) / folder).mkdir(exist_ok=True)
                (self.data_dir / folder).symlink_to(Path(source) / folder)

    def start(self) -> None:
        self.start_process()
        self.wait_ready()

    def start_process(self) -> None:
        """Start ``serve`` and wait for its admin socket only: it may have no key to get ready."""
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "appliance", "serve"],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not self._is_listening():
            if self.process.poll() is not None:
                raise AssertionError(f"serve ended with {self.process.returncode}: {self.log()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"no admin socket after {READY_TIMEOUT_S} s: {self.log()}")
            time.sleep(0.02)

    def _is_listening(self) -> bool:
        """Whether the admin socket answers; httpcore leaves its own open after a refusal."""
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def wait_ready(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"serve ended with {self.process.returncode}: {self.log()}")
            with contextlib.suppress(httpx.HTTPError, OSError), self.admin() as client:
                if client.get("/readyz").status_code == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(f"not ready after {READY_TIMEOUT_S} s: {self.log()}")

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")[-4000:] if self.log_file.exists() else ""

    def stop(self, timeout_s: float = 60.0) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout_s)
        self.process = None
        return code

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def close(self) -> None:
        if self.process and self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.kill()

    @contextlib.contextmanager
    def admin(self) -> Iterator[httpx.Client]:
        transport = httpx.HTTPTransport(uds=str(self.socket))
        with httpx.Client(transport=transport, base_url="http://appliance", timeout=120) as client:
            yield client

    def ca_file(self) -> Path:
        return self.data_dir / "tls" / "ca.pem"

    def https(self, secret: str = "") -> httpx.Client:
        context = ssl.create_default_context(cafile=str(self.ca_file()))
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        return httpx.Client(base_url=self.url, verify=context, headers=headers, timeout=120)

    def tenant(self, name: str = "acme", role: str = "owner") -> str:
        """Create the tenant if need be and return a fresh key's secret."""
        with self.admin() as client:
            client.post("/api/v1/tenants", json={"name": name})
            made = client.post(f"/api/v1/tenants/{name}/keys", json={"name": role, "role": role})
            assert made.status_code == 201, made.text
            return str(made.json()["secret"])

    def push(
        self, secret: str, target: str, files: dict[str, bytes], timeout_s: float = 120.0
    ) -> httpx.Response:
        with self.https(secret) as client:
            client.timeout = timeout_s
            return client.post(
                f"/api/v1/models/{target}/versions",
                content=tar_of_files(files),
                headers={"Content-Type": "application/x-tar"},
            )
