"""Keys: the root key and its unseal slots, tenant keys, and small sealed boxes.

Owns: ``keys/``: slots.json and one file of wrapped keys per tenant; the box format.
Never: writes a key unwrapped, or lets a wrapped key reach the ledger or the projection.
Read next: ``FORMAT.md`` sections 0 to 2; ``blobs`` uses the object keys.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import errno
import hashlib
import hmac
import json
import os
import stat
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from appliance import clock
from appliance.errors import (
    AlreadyInitialised,
    DiskFull,
    InputInvalid,
    NameTaken,
    NotFound,
    StoreCorrupt,
    Uninitialised,
    UnsealFailed,
)

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Error numbers that mean no room."""

_BOX_V1 = b"\x01"
_SALT = 16
_TAG = 16
_NO_NONCE = bytes(12)  # every box has a key of its own, so the nonce may be constant

SlotKind = Literal["passphrase", "key-file"]


def hkdf(key: bytes, salt: bytes, info: bytes, length: int = 32) -> bytes:
    """HKDF-SHA-256 (RFC 5869) of ``key``; an empty salt is the all-zero salt."""
    return HKDF(algorithm=SHA256(), length=length, salt=salt or None, info=info).derive(key)


def box_seal(key: bytes, label: str, aad: bytes, plaintext: bytes) -> bytes:
    """A sealed box of ``plaintext``; 33 bytes longer than it."""
    salt = os.urandom(_SALT)
    sub = hkdf(key, salt, b"box/" + label.encode())
    return _BOX_V1 + salt + AESGCM(sub).encrypt(_NO_NONCE, plaintext, aad)


def box_open(key: bytes, label: str, aad: bytes, box: bytes) -> bytes:
    """The plaintext of a box.

    Raises:
        ValueError: wrong key, label or aad, or the box is damaged.
    """
    if len(box) < 1 + _SALT + _TAG or box[:1] != _BOX_V1:
        raise ValueError("not a box")
    sub = hkdf(key, box[1 : 1 + _SALT], b"box/" + label.encode())
    try:
        return AESGCM(sub).decrypt(_NO_NONCE, box[1 + _SALT :], aad)
    except InvalidTag:
        raise ValueError("box does not open") from None


def fsync_dir(path: Path) -> None:
    """Make creations, renames and removals inside a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def telling_full_disk(what: str) -> Iterator[None]:
    """Turn a full disk into ``DiskFull``; ``what`` was not done."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise DiskFull(f"The data folder's disk is full; {what}.") from error
        raise


def replace_file(path: Path, data: bytes) -> None:
    """Replace a file's content atomically and durably, mode 0600. Raises DiskFull, OSError."""
    with telling_full_disk(f"{path.name} was not changed"):
        _replace_file(path, data)


def _replace_file(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One way to unseal: its name, kind and creation time (ns)."""

    name: str
    kind: SlotKind
    created_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Argon2:
    """Cost of a passphrase guess; the defaults take about a second on a small server."""

    memory_kib: int = 256 * 1024
    iterations: int = 3
    lanes: int = 2

    def key(self, passphrase: str, salt: bytes) -> bytes:
        """The 32-byte slot key of a passphrase. Blocking, about a second."""
        secret = unicodedata.normalize("NFC", passphrase).encode()
        return Argon2id(
            salt=salt,
            length=32,
            iterations=self.iterations,
            lanes=self.lanes,
            memory_cost=self.memory_kib,
        ).derive(secret)

    def is_bounded(self) -> bool:
        """Whether the costs are ones this program could have written."""
        return (
            8 <= self.memory_kib <= 4 * 1024 * 1024
            and 1 <= self.iterations <= 64
            and 1 <= self.lanes <= 64
            and self.memory_kib >= 8 * self.lanes
        )


class RootKey:
    """The root of all keys; exists in memory only, while the appliance is unsealed."""

    def __init__(self, secret: bytes, slot: str) -> None:
        """Wrap 32 secret bytes opened through ``slot``."""
        self._secret = bytearray(secret)
        self.slot = slot

    def derive(self, label: str, length: int = 32) -> bytes:
        """A sub-key for one purpose.

        Raises:
            ValueError: the key was closed.
        """
        if not self._secret:
            raise ValueError("the root key is closed")
        return hkdf(bytes(self._secret), b"", b"appliance/" + label.encode(), length)

    def close(self) -> None:
        """Forget the secret (best effort: Python may have copied it)."""
        for index in range(len(self._secret)):
            self._secret[index] = 0
        self._secret.clear()

    def __repr__(self) -> str:
        return f"RootKey(slot={self.slot!r})"


def _keys_dir(data_dir: Path) -> Path:
    return data_dir / "keys"


def _slots_file(data_dir: Path) -> Path:
    return _keys_dir(data_dir) / "slots.json"


def _canonical(document: dict[str, Any], *without: str) -> bytes:
    kept = {k: v for k, v in document.items() if k not in without}
    return json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def is_initialised(data_dir: Path) -> bool:
    """Whether the data folder holds an initialised appliance."""
    return _slots_file(data_dir).exists()


def initialise(
    data_dir: Path,
    *,
    passphrase: str | None = None,
    key_file: Path | None = None,
    argon2: Argon2 | None = None,
) -> RootKey:
    """Create the data folder's keys with at least one unseal slot. Blocking.

    Args:
        data_dir: made with mode 0700 if absent; files of other names in it are left alone.
        passphrase: opens slot ``passphrase``.
        key_file: opens slot ``key-file``; created with 32 random bytes if absent.
        argon2: cost of the passphrase slot, ``None`` for the default.

    Raises:
        AlreadyInitialised: slots exist; nothing was changed.
        InputInvalid: neither a passphrase nor a key file was given, or one is unusable.
    """
    if is_initialised(data_dir):
        raise AlreadyInitialised(f"{data_dir} is already initialised.", hint="appliance unseal")
    if passphrase is None and key_file is None:
        raise InputInvalid("A passphrase or a key file is needed to initialise.")
    for folder in (data_dir, _keys_dir(data_dir)):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    root = RootKey(os.urandom(32), "passphrase" if key_file is None else "key-file")
    entries = []
    if passphrase is not None:
        entries.append(_new_slot(root, "passphrase", passphrase=passphrase, argon2=argon2))
    if key_file is not None:
        entries.append(_new_slot(root, "key-file", key_file=key_file))
    _write_slots(data_dir, root, entries)
    fsync_dir(data_dir)
    return root


def unseal(
    data_dir: Path, *, passphrase: str | None = None, key_file: Path | None = None
) -> RootKey:
    """Open the root key through any slot that fits. Blocking (Argon2id): call it in a thread.

    Raises:
        Uninitialised: there are no slots.
        UnsealFailed: none opens with what was given.
        StoreCorrupt: ``slots.json`` is damaged or was edited.
    """
    document = _read_slots(data_dir)
    for entry in document["slots"]:
        secret = _open_slot(entry, passphrase, key_file)
        if secret is None:
            continue
        root = RootKey(secret, entry["name"])
        mac = hmac.new(root.derive("slots-mac"), _canonical(document, "sum", "mac"), "sha256")
        if not hmac.compare_digest(mac.hexdigest(), str(document["mac"])):
            raise StoreCorrupt("keys/slots.json was changed by something else.")
        return root
    raise UnsealFailed("No unseal slot opens with this passphrase or key file.")


def slots(data_dir: Path) -> tuple[Slot, ...]:
    """The unseal slots, in the order they are tried. Raises Uninitialised, StoreCorrupt."""
    return tuple(
        Slot(name=e["name"], kind=e["kind"], created_ns=e["created_ns"])
        for e in _read_slots(data_dir)["slots"]
    )


def add_slot(
    data_dir: Path,
    root: RootKey,
    *,
    name: str,
    passphrase: str | None = None,
    key_file: Path | None = None,
    argon2: Argon2 | None = None,
) -> Slot:
    """Add one unseal slot; exactly one of ``passphrase`` and ``key_file`` is given.

    Raises:
        NameTaken: a slot of this name exists.
        InputInvalid: both or neither secret was given.
    """
    if (passphrase is None) == (key_file is None):
        raise InputInvalid("A slot needs a passphrase or a key file, not both.")
    entries = _read_slots(data_dir)["slots"]
    if any(e["name"] == name for e in entries):
        raise NameTaken(f"There is already a slot named '{name}'.")
    entry = _new_slot(root, name, passphrase=passphrase, key_file=key_file, argon2=argon2)
    _write_slots(data_dir, root, [*entries, entry])
    return Slot(name=name, kind=entry["kind"], created_ns=entry["created_ns"])


def remove_slot(data_dir: Path, root: RootKey, name: str) -> None:
    """Remove a slot. Raises NotFound, and InputInvalid for the last one."""
    entries = _read_slots(data_dir)["slots"]
    kept = [e for e in entries if e["name"] != name]
    if len(kept) == len(entries):
        raise NotFound(f"There is no slot named '{name}'.")
    if not kept:
        raise InputInvalid("The last slot cannot be removed: nothing could unseal the appliance.")
    _write_slots(data_dir, root, kept)


def _new_slot(
    root: RootKey,
    name: str,
    *,
    passphrase: str | None = None,
    key_file: Path | None = None,
    argon2: Argon2 | None = None,
) -> dict[str, Any]:
    salt = os.urandom(_SALT)
    if passphrase is not None:
        if not passphrase:
            raise InputInvalid("The passphrase is empty.")
        cost = argon2 or Argon2()
        kind: SlotKind = "passphrase"
        key = cost.key(passphrase, salt)
        kdf: dict[str, Any] = {
            "name": "argon2id",
            "memory_kib": cost.memory_kib,
            "iterations": cost.iterations,
            "lanes": cost.lanes,
        }
    else:
        assert key_file is not None  # noqa: S101 - narrowed by both callers
        kind, kdf = "key-file", {"name": "hkdf"}
        key = hkdf(_key_file_bytes(key_file, create=True), salt, b"appliance/slot")
    kdf["salt"] = _b64(salt)
    secret = bytes(root._secret)
    wrap = _b64(box_seal(key, "slot", f"{name}\0{kind}".encode(), secret))
    return {"name": name, "kind": kind, "created_ns": clock.now_ns(), "kdf": kdf, "wrap": wrap}


def _open_slot(
    entry: dict[str, Any], passphrase: str | None, key_file: Path | None
) -> bytes | None:
    """The root secret if this slot opens with what was given."""
    try:
        kdf, name, kind = entry["kdf"], entry["name"], entry["kind"]
        salt = base64.b64decode(kdf["salt"], validate=True)
        wrap = base64.b64decode(entry["wrap"], validate=True)
        if kind == "passphrase":
            if passphrase is None:
                return None
            cost = Argon2(
                memory_kib=kdf["memory_kib"], iterations=kdf["iterations"], lanes=kdf["lanes"]
            )
            if not cost.is_bounded():
                raise StoreCorrupt("keys/slots.json asks for impossible key derivation costs.")
            key = cost.key(passphrase, salt)
        else:
            if key_file is None:
                return None
            key = hkdf(_key_file_bytes(key_file, create=False), salt, b"appliance/slot")
    except (KeyError, TypeError, binascii.Error) as error:
        raise StoreCorrupt("keys/slots.json is damaged.") from error
    try:
        return box_open(key, "slot", f"{name}\0{kind}".encode(), wrap)
    except ValueError:
        return None


def _key_file_bytes(path: Path, *, create: bool) -> bytes:
    if create and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(base64.b64encode(os.urandom(32)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        fsync_dir(path.parent)
    try:
        info = path.stat()
        secret = base64.b64decode(path.read_bytes().strip(), validate=True)
    except OSError as error:
        raise UnsealFailed(f"The key file {path} cannot be read: {error.strerror}.") from error
    except binascii.Error:
        secret = b""
    if len(secret) != 32:
        raise UnsealFailed(f"{path} is not a key file: 32 bytes in base64 are expected.")
    if stat.S_IMODE(info.st_mode) & 0o077:
        raise UnsealFailed(f"The key file {path} is open to others.", hint=f"chmod 600 {path}")
    return secret


def _read_slots(data_dir: Path) -> dict[str, Any]:
    try:
        document = json.loads(_slots_file(data_dir).read_bytes())
        total = hashlib.sha256(_canonical(document, "sum", "mac")).hexdigest()
        is_whole = document["v"] == 1 and document["sum"] == total and "mac" in document
    except FileNotFoundError:
        raise Uninitialised(f"{data_dir} is not initialised.", hint="appliance init") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        is_whole = False
    if not is_whole:
        raise StoreCorrupt("keys/slots.json is damaged.", hint="restore it from a backup")
    return dict(document)


def _write_slots(data_dir: Path, root: RootKey, entries: list[dict[str, Any]]) -> None:
    document: dict[str, Any] = {"v": 1, "slots": entries}
    text = _canonical(document)
    document["sum"] = hashlib.sha256(text).hexdigest()
    document["mac"] = hmac.new(root.derive("slots-mac"), text, "sha256").hexdigest()
    replace_file(_slots_file(data_dir), json.dumps(document, indent=1).encode() + b"\n")
