"""Backups: one tar of sealed files, consistent at one signed head, strict when read.

Owns: making, verifying and restoring backups (``FORMAT.md`` section 7).
Never: holds plaintext or a usable key: without an unseal slot a backup is noise.
Read next: ``Store.backup`` chooses the moment.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from appliance import clock
from appliance.errors import InputInvalid, NotFound, StoreCorrupt
from appliance.store import verify as verifier
from appliance.store.proofs import Signer
from appliance.store.seal import fsync_dir, telling_full_disk

_BLOCK = 512
_PIECE = 1024 * 1024
_CONTEXT = b"model-appliance-backup-v1\n"
_MANIFEST = "manifest.json"
_MANIFEST_BYTES_MAX = 1024**3
_PATHS = re.compile(
    r"anchor|registry\.snap|keys/[a-z0-9_-]{1,80}\.json|ledger/seg-[0-9]{8}"
    r"|blobs/[a-z0-9_-]{1,80}/[0-9a-f]{2}/[0-9a-f]{64}/(manifest|part-[0-9]{3})"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupReport:
    """What a backup holds: files, bytes, ledger entries, and the sha-256 of its manifest."""

    path: str
    files: int
    size_bytes: int
    entries: int
    created_ns: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to put into a backup, taken at one moment.

    ``memory`` are files given as bytes; ``paths`` are immutable files, each up to a size.
    """

    note: str
    memory: dict[str, bytes]
    paths: tuple[tuple[str, Path, int], ...]


def plan_blobs(data_dir: Path) -> Iterator[tuple[str, Path, int]]:
    """Every blob file: they are written once, so they may be copied at leisure."""
    for path in sorted((data_dir / "blobs").glob("*/??/*/*")):
        yield str(path.relative_to(data_dir)), path, path.stat().st_size


def make(target: Path, plan: Plan, signer: Signer) -> BackupReport:
    """Write a backup file; it appears under its name only when complete. Blocking.

    Raises:
        InputInvalid: the target exists or its folder does not.
        DiskFull: there is no room; nothing was left behind.
    """
    if target.exists() or not target.parent.is_dir():
        raise InputInvalid(f"{target} must be a new file in an existing folder.")
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with telling_full_disk("there is no backup"):
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as out:
                report = _write(out, target, plan, signer)
                out.flush()
                os.fsync(out.fileno())
            temporary.rename(target)
            fsync_dir(target.parent)
    finally:
        temporary.unlink(missing_ok=True)
    return report


def _write(out: IO[bytes], target: Path, plan: Plan, signer: Signer) -> BackupReport:
    files: list[dict[str, Any]] = []
    for name, data in plan.memory.items():
        _member(out, f"files/{name}", data)
        files.append({"path": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    for name, path, size in plan.paths:
        out.write(_header(f"files/{name}", size))
        digest = hashlib.sha256()
        with path.open("rb") as file:
            left = size
            while left:
                piece = file.read(min(left, _PIECE))
                if not piece:
                    raise StoreCorrupt(f"{name} became shorter while it was copied.")
                out.write(piece)
                digest.update(piece)
                left -= len(piece)
        out.write(bytes(-size % _BLOCK))
        files.append({"path": name, "size": size, "sha256": digest.hexdigest()})
    manifest: dict[str, Any] = {
        "v": 1,
        "created_ns": clock.now_ns(),
        "origin": signer.origin,
        "files": files,
        "checkpoint": plan.note,
        "public_key": signer.public_text,
    }
    signature = signer.sign(_CONTEXT + _canonical(manifest))
    manifest["signature"] = base64.b64encode(signature).decode()
    text = json.dumps(manifest, sort_keys=True).encode()
    _member(out, _MANIFEST, text)
    out.write(bytes(2 * _BLOCK))
    return _report(target, manifest, text)


def verify(path: Path, *, public_key: str | None = None) -> BackupReport:
    """Check every byte of a backup. Blocking.

    Args:
        path: the backup.
        public_key: the ledger's public key, if it was kept elsewhere; otherwise the one inside the
            backup is used, which proves that it is whole but not whose it is.

    Raises:
        NotFound: there is no such file.
        StoreCorrupt: the backup is cut, changed or not signed by the key; the file is named.
    """
    return _read(path, public_key, None)


def restore(path: Path, data_dir: Path, *, public_key: str | None = None) -> BackupReport:
    """Restore a backup into a data folder that is absent or empty. Blocking.

    Everything is checked while it is written to a folder beside it, which then takes the name.

    Raises:
        InputInvalid: the data folder is not empty.
        StoreCorrupt: as for ``verify``; nothing was restored.
        DiskFull: there is no room; nothing was restored.
    """
    if data_dir.exists() and any(data_dir.iterdir()):
        raise InputInvalid(f"{data_dir} is not empty; a backup is restored into a new folder.")
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    staging = data_dir.with_name(f".{data_dir.name}.restore")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(mode=0o700)
    try:
        with telling_full_disk("nothing was restored"):
            report = _read(path, public_key, staging)
            for folder in (staging, *(p for p in staging.rglob("*") if p.is_dir())):
                fsync_dir(folder)
            if data_dir.exists():
                data_dir.rmdir()
            staging.rename(data_dir)
            fsync_dir(data_dir.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return report


def _read(path: Path, public_key: str | None, target: Path | None) -> BackupReport:
    seen: list[dict[str, Any]] = []
    try:
        with path.open("rb") as source:
            while True:
                name, size = _next_header(source, path)
                if name == _MANIFEST:
                    break
                inner = name.removeprefix("files/")
                if inner == name or not _PATHS.fullmatch(inner):
                    raise _bad(path, f"it holds an unexpected file {name!r}")
                digest = _copy(source, path, size, target / inner if target else None)
                seen.append({"path": inner, "size": size, "sha256": digest})
            if size > _MANIFEST_BYTES_MAX:
                raise _bad(path, "its manifest is too large")
            text = _exactly(source, size, path)
            rest = _exactly(source, -size % _BLOCK, path) + source.read(2 * _BLOCK + 1)
            if rest != bytes(-size % _BLOCK + 2 * _BLOCK):
                raise _bad(path, "its end is damaged")
    except FileNotFoundError:
        raise NotFound(f"There is no backup {path}.") from None
    manifest = _manifest(path, text, public_key)
    if manifest["files"] != seen:
        both = zip(manifest["files"], seen, strict=False)
        wrong = next((a["path"] for a, b in both if a != b), "a file")
        raise _bad(path, f"{wrong} is damaged or missing")
    return _report(path, manifest, text)


def _manifest(path: Path, text: bytes, public_key: str | None) -> dict[str, Any]:
    try:
        manifest = dict(json.loads(text))
        public = verifier.PublicKey(public_key or manifest["public_key"])
        signature = base64.b64decode(manifest["signature"], validate=True)
        public.check(signature, _CONTEXT + _canonical(manifest))
        public.open_note(manifest["checkpoint"])
        if text != json.dumps(manifest, sort_keys=True).encode() or manifest["v"] != 1:
            raise ValueError("form")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _bad(path, "its manifest is damaged or signed by another key") from error
    return manifest


def _report(path: Path, manifest: dict[str, Any], text: bytes) -> BackupReport:
    return BackupReport(
        path=str(path),
        files=len(manifest["files"]),
        size_bytes=sum(f["size"] for f in manifest["files"]),
        entries=int(manifest["checkpoint"].split("\n")[1]),
        created_ns=manifest["created_ns"],
        digest=f"sha256:{hashlib.sha256(text).hexdigest()}",
    )


def _canonical(manifest: dict[str, Any]) -> bytes:
    kept = {k: v for k, v in manifest.items() if k != "signature"}
    return json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    return info.tobuf(tarfile.USTAR_FORMAT)


def _member(out: IO[bytes], name: str, data: bytes) -> None:
    out.write(_header(name, len(data)) + data + bytes(-len(data) % _BLOCK))


def _next_header(source: IO[bytes], path: Path) -> tuple[str, int]:
    block = _exactly(source, _BLOCK, path)
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        if _header(info.name, info.size) != block:
            raise ValueError("not as written")
    except (tarfile.HeaderError, ValueError) as error:
        raise _bad(path, "a header in it is damaged") from error
    return info.name, info.size


def _copy(source: IO[bytes], path: Path, size: int, target: Path | None) -> str:
    """Read one member (into ``target``) and return its sha-256 in hex."""
    digest = hashlib.sha256()
    fd = -1
    if target is not None:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        left = size
        while left:
            piece = _exactly(source, min(left, _PIECE), path)
            digest.update(piece)
            left -= len(piece)
            view = memoryview(piece)
            while fd >= 0 and view:
                view = view[os.write(fd, view) :]
        if fd >= 0:
            os.fsync(fd)
    finally:
        if fd >= 0:
            os.close(fd)
    if any(_exactly(source, -size % _BLOCK, path)):
        raise _bad(path, "bytes between its files are damaged")
    return digest.hexdigest()


def _exactly(source: IO[bytes], size: int, path: Path) -> bytes:
    data = source.read(size)
    if len(data) != size:
        raise _bad(path, "it is cut short")
    return data


def _bad(path: Path, why: str) -> StoreCorrupt:
    return StoreCorrupt(f"The backup {path} is not usable: {why}.")
