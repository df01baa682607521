"""Tenant keys and object keys: made, used, and destroyed here.

Owns: ``keys/<tenant id>.json``.
Never: hands out a tenant key, or keeps one after its tenant was shredded.
Read next: ``FORMAT.md`` section 2; ``registry`` calls ``create`` and ``shred``.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import threading
from pathlib import Path
from typing import Any

import msgspec

from appliance import clock
from appliance.errors import NameTaken, NotFound, StoreCorrupt
from appliance.store.seal import RootKey, box_open, box_seal, fsync_dir, hkdf, replace_file

_ID = re.compile(r"^[a-z0-9_-]{1,80}$")


class _Mac:
    """HMAC-SHA-256 (RFC 2104) under a fixed key, whose two halves are hashed once.

    Every call is digested twice; setting the key up took most of that time.
    """

    __slots__ = ("_inner", "_outer")

    def __init__(self, key: bytes) -> None:
        block = key.ljust(64, b"\0")  # a derived key is 32 bytes, never more than a block
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block))

    def hex(self, data: bytes) -> str:
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(data)
        outer.update(inner.digest())
        return outer.hexdigest()


class _TenantKeys:
    """The unwrapped keys of one tenant, in memory."""

    __slots__ = ("derived", "document", "macs", "newest", "objects", "versions")

    def __init__(self, document: dict[str, Any], versions: dict[int, bytes]) -> None:
        self.document = document
        self.versions = versions
        self.newest = max(versions)
        self.derived: dict[tuple[int, str], bytes] = {}
        self.objects: dict[str, bytes] = {}
        self.macs: dict[str, _Mac] = {}

    def derive(self, version: int, label: str) -> bytes:
        found = self.derived.get((version, label))
        if found is None:
            found = hkdf(self.versions[version], b"", b"tenant/" + label.encode())
            self.derived[version, label] = found
        return found


class Keyring:
    """Every tenant's keys; thread-safe."""

    def __init__(self, data_dir: Path, root: RootKey) -> None:
        """Load every key file.

        Raises:
            StoreCorrupt: a key file is damaged, edited or misplaced; the file is named.
        """
        self._dir = data_dir / "keys"
        self._wrap_key = root.derive("tenant-wrap")
        self._mac_key = root.derive("keys-mac")
        self._lock = threading.Lock()
        self._tenants: dict[str, _TenantKeys] = {}
        # The appliance itself: seals what belongs to no tenant, and is in no file.
        self._own = _TenantKeys({}, {1: root.derive("appliance-box")})
        for path in sorted(self._dir.glob("*.json")):
            if path.name != "slots.json":
                self._tenants[path.stem] = self._load(path)

    def tenants(self) -> tuple[str, ...]:
        """Ids of the tenants whose keys exist."""
        return tuple(self._tenants)

    def __contains__(self, tenant_id: str) -> bool:
        return tenant_id in self._tenants

    def create(self, tenant_id: str) -> None:
        """Make and store a tenant's first key; durable when it returns. Blocking.

        Raises:
            NameTaken: the tenant has keys already.
        """
        if not _ID.match(tenant_id):
            raise ValueError(f"not a tenant id: {tenant_id!r}")
        with self._lock:
            if tenant_id in self._tenants:
                raise NameTaken(f"{tenant_id} has keys already.")
            document: dict[str, Any] = {
                "v": 1,
                "tenant": tenant_id,
                "versions": [],
                "objects": {},
            }
            versions: dict[int, bytes] = {}
            self._add_version(document, versions)
            self._save(document)
            self._tenants[tenant_id] = _TenantKeys(document, versions)

    def rotate(self, tenant_id: str) -> int:
        """Add a new key version; what was sealed before stays readable. Returns its number."""
        with self._lock:
            keys = self._keys(tenant_id)
            document = {**keys.document, "versions": list(keys.document["versions"])}
            versions = dict(keys.versions)
            number = self._add_version(document, versions)
            self._save(document)
            self._tenants[tenant_id] = _TenantKeys(document, versions)
            return number

    def shred(self, tenant_id: str) -> None:
        """Destroy a tenant's keys: everything sealed under them is unreadable from now on."""
        with self._lock:
            self._tenants.pop(tenant_id, None)
            path = self._path(tenant_id)
            if not path.exists():
                return
            with path.open("r+b") as file:
                file.write(bytes(path.stat().st_size))
                file.flush()
                os.fsync(file.fileno())
            path.unlink()
            fsync_dir(self._dir)

    def seal(self, tenant_id: str, label: str, aad: bytes, plaintext: bytes) -> bytes:
        """A tenant box of ``plaintext`` under the tenant's newest key (``""``: the appliance's).

        Raises:
            NotFound: the tenant has no keys (removed).
        """
        keys = self._keys(tenant_id) if tenant_id else self._own
        key = keys.derive(keys.newest, "box")
        full = tenant_id.encode() + b"\0" + aad
        return keys.newest.to_bytes(2, "big") + box_seal(key, label, full, plaintext)

    def open(self, tenant_id: str, label: str, aad: bytes, sealed: bytes) -> bytes:
        """The plaintext of a tenant box.

        Raises:
            NotFound: the tenant has no keys (removed).
            StoreCorrupt: the box is damaged, or belongs to another tenant, label or place.
        """
        keys = self._keys(tenant_id) if tenant_id else self._own
        version = int.from_bytes(sealed[:2], "big")
        try:
            if version not in keys.versions:
                raise ValueError("unknown key version")
            full = tenant_id.encode() + b"\0" + aad
            return box_open(keys.derive(version, "box"), label, full, sealed[2:])
        except ValueError as error:
            raise StoreCorrupt(f"A sealed {label} of tenant {tenant_id} is damaged.") from error

    def digest(self, tenant_id: str, label: str, data: bytes) -> str:
        """Keyed HMAC-SHA-256 of ``data``, hex: equal only for equal data of the same tenant."""
        keys = self._keys(tenant_id)
        mac = keys.macs.get(label)
        if mac is None:
            mac = keys.macs[label] = _Mac(keys.derive(1, f"digest/{label}"))
        return mac.hex(data)

    def blob_id(self, tenant_id: str, digest: bytes, size: int) -> str:
        """The id of a blob from its plaintext SHA-256 and size."""
        key = self._keys(tenant_id).derive(1, "blob-id")
        return hmac.digest(key, digest + size.to_bytes(8, "big"), "sha256").hex()

    def object_key(self, tenant_id: str, blob_id: str) -> bytes | None:
        """The key of a blob, ``None`` if it has none."""
        with self._lock:
            keys = self._keys(tenant_id)
            entry = keys.document["objects"].get(blob_id)
            if entry is None:
                return None
            if blob_id not in keys.objects:
                try:
                    keys.objects[blob_id] = box_open(
                        keys.derive(int(entry["version"]), "blob-wrap"),
                        "object",
                        f"{tenant_id}\0{blob_id}".encode(),
                        base64.b64decode(entry["wrap"], validate=True),
                    )
                except (ValueError, KeyError, TypeError) as error:
                    raise StoreCorrupt(f"The key of blob {blob_id} is damaged.") from error
            return keys.objects[blob_id]

    def save_object_key(self, tenant_id: str, blob_id: str, key: bytes) -> None:
        """Store a blob's key, wrapped; durable when it returns. Blocking."""
        with self._lock:
            keys = self._keys(tenant_id)
            wrap = box_seal(
                keys.derive(keys.newest, "blob-wrap"),
                "object",
                f"{tenant_id}\0{blob_id}".encode(),
                key,
            )
            entry = {"version": keys.newest, "wrap": base64.b64encode(wrap).decode()}
            objects = {**keys.document["objects"], blob_id: entry}
            document = {**keys.document, "objects": objects}
            self._save(document)
            keys.document = document
            keys.objects[blob_id] = key

    def object_ids(self, tenant_id: str) -> set[str]:
        """Everything of a tenant that has a key of its own: blobs and secrets."""
        return set(self._keys(tenant_id).document["objects"])

    def drop_object_keys(self, tenant_id: str, blob_ids: set[str]) -> None:
        """Destroy the keys of removed blobs. Blocking."""
        with self._lock:
            keys = self._keys(tenant_id)
            objects = {k: v for k, v in keys.document["objects"].items() if k not in blob_ids}
            document = {**keys.document, "objects": objects}
            self._save(document)
            keys.document = document
            for blob_id in blob_ids:
                keys.objects.pop(blob_id, None)

    def _keys(self, tenant_id: str) -> _TenantKeys:
        keys = self._tenants.get(tenant_id)
        if keys is None:
            raise NotFound("There is no such tenant.")
        return keys

    def _path(self, tenant_id: str) -> Path:
        return self._dir / f"{tenant_id}.json"

    def _add_version(self, document: dict[str, Any], versions: dict[int, bytes]) -> int:
        number = max(versions, default=0) + 1
        key = os.urandom(32)
        aad = f"{document['tenant']}\0{number}".encode()
        wrap = base64.b64encode(box_seal(self._wrap_key, "tenant", aad, key)).decode()
        created_ns = clock.now_ns()
        document["versions"].append({"version": number, "created_ns": created_ns, "wrap": wrap})
        versions[number] = key
        return number

    def _mac(self, document: dict[str, Any]) -> str:
        kept = {k: v for k, v in document.items() if k != "mac"}
        text = msgspec.json.encode(
            kept, order="sorted"
        )  # as json.dumps does, in a tenth of the time
        return hmac.digest(self._mac_key, text, "sha256").hex()

    def _save(self, document: dict[str, Any]) -> None:
        document["mac"] = self._mac(document)
        text = msgspec.json.encode(document)
        replace_file(self._path(document["tenant"]), text)

    def _load(self, path: Path) -> _TenantKeys:
        try:
            document = json.loads(path.read_bytes())
            if document["tenant"] != path.stem or not hmac.compare_digest(
                self._mac(document), document["mac"]
            ):
                raise ValueError("mac")
            versions = {}
            for entry in document["versions"]:
                aad = f"{path.stem}\0{entry['version']}".encode()
                wrap = base64.b64decode(entry["wrap"], validate=True)
                versions[int(entry["version"])] = box_open(self._wrap_key, "tenant", aad, wrap)
            return _TenantKeys(document, versions)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StoreCorrupt(
                f"keys/{path.name} is damaged.", hint="restore it from a backup"
            ) from error
