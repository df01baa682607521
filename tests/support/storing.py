"""An initialised data folder and an open store, for the tests of the store."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from appliance import config
from appliance.events import CallIntent, CallOutcome
from appliance.records import Artifact, ArtifactFile, Blob, Entry, Manifest
from appliance.store import RootKey, Store, seal

SETTINGS = config.Store(free_bytes_min=0, query_memory_bytes=128 * 1024 * 1024)
ACTOR = "key:tester"
VERIFY = Path(seal.__file__).with_name("verify.py")


class Folder:
    """A data folder with its key file beside it."""

    def __init__(self, base: Path) -> None:
        self.path = base / "data"
        self.key_file = base / "unseal.key"
        self.public_key = ""
        self.ledger_key = ""

    def make(self) -> Folder:
        seal.initialise(self.path, key_file=self.key_file).close()
        return self

    def root(self) -> RootKey:
        return seal.unseal(self.path, key_file=self.key_file)

    @contextlib.asynccontextmanager
    async def open(self, settings: config.Store = SETTINGS) -> AsyncIterator[Store]:
        store = await Store.open(self.path, self.root(), settings)
        self.public_key, self.ledger_key = store.public_key, store.ledger_key
        try:
            yield store
        finally:
            await store.close()

    def copy(self, base: Path) -> Folder:
        """The same folder elsewhere; same keys."""
        base.mkdir(parents=True, exist_ok=True)
        other = Folder(base)
        shutil.rmtree(other.path, ignore_errors=True)
        shutil.copytree(self.path, other.path)
        shutil.copy2(self.key_file, other.key_file)
        other.public_key, other.ledger_key = self.public_key, self.ledger_key
        return other

    def segments(self) -> list[Path]:
        return sorted((self.path / "ledger").iterdir())

    def verify(self, *more: str) -> tuple[int, str]:
        """Exit status and output of a copy of verify.py that cannot see the appliance."""
        base = self.key_file.parent
        shutil.copy(VERIFY, base / "verify.py")
        (base / "ledger.key").write_text(self.ledger_key + "\n")
        command = [sys.executable, "-I", str(base / "verify.py"), "ledger", str(self.path)]
        command += ["--ledger-key", str(base / "ledger.key"), "--public-key", self.public_key]
        done = subprocess.run([*command, *more], capture_output=True, text=True, cwd="/")
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout


def artifact(blob: Blob | None = None, path: str = "weights.bin") -> Artifact:
    blob = blob or Blob(id="0" * 64, size_bytes=3, digest="sha256:00")
    return Artifact(
        blob=blob,
        files=(ArtifactFile(path=path, size_bytes=blob.size_bytes, digest=blob.digest),),
    )


def manifest(**more: object) -> Manifest:
    return Manifest(runtime="python3.11", entry="model:Model", **more)  # type: ignore[arg-type]


def intent(number: int = 0, model_id: str = "mod_x") -> CallIntent:
    return CallIntent(
        call_id=f"call_{number}",
        model_id=model_id,
        number=1,
        request_digest="ab" * 32,
        request_bytes=100,
    )


def outcome(of: Entry, **changes: object) -> CallOutcome:
    assert of.event is not None
    fields: dict[str, object] = {
        "call_id": of.event["call_id"],
        "intent_seq": of.seq,
        "model_id": of.event["model_id"],
        "number": of.event["number"],
        "code": "ok",
        "status": 200,
        "reply_digest": "cd" * 32,
        "reply_bytes": 10,
        "cold": False,
        "queue_us": 1,
        "load_us": 0,
        "compute_us": 500,
        "total_us": 1000,
        "sandbox_id": "sbx_1",
    }
    return CallOutcome(**{**fields, **changes})  # type: ignore[arg-type]


async def fill(store: Store, count: int, tenant_id: str = "ten_x") -> list[Entry]:
    """``count`` intents, each in a frame of its own."""
    entries = []
    for number in range(count):
        entries += await store.ledger.append(intent(number), tenant_id=tenant_id, actor=ACTOR)
    return entries


async def read_blob(store: Store, tenant_id: str, blob_id: str, **where: int) -> bytes:
    return b"".join([piece async for piece in store.blobs.read(tenant_id, blob_id, **where)])


async def write_blob(store: Store, tenant_id: str, data: bytes, piece: int = 1 << 20) -> Blob:
    async with store.blobs.writer(tenant_id) as writer:
        for start in range(0, len(data), piece):
            await writer.write(data[start : start + piece])
        return await writer.commit()


def edit_json(path: Path, change: Callable[[dict[str, object]], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
