"""Secrets of models: values sealed one by one, each under a key of its own.

Owns: how a value is boxed and opened, and destroying the keys nothing refers to any more.
Never: keeps a value, writes one anywhere, or decides who may set or see one.
Read next: ``registry`` (sets and removes them), ``keyring`` (keeps the keys), ``provision``.

The ledger only grows, so a value in it has to become unreadable by losing its key: the key of a
secret is in its tenant's key file under the secret's own id, and goes when the secret goes.
"""

from __future__ import annotations

import base64
import os

from appliance.errors import NotFound, StoreCorrupt
from appliance.records import Secret
from appliance.store.keyring import Keyring
from appliance.store.seal import box_open, box_seal
from appliance.store.state import Snapshot

SECRET_PREFIX = "sec"  # noqa: S105 - of ids
SECRETS_MAX = 32
VALUE_BYTES_MAX = 64 * 1024
_LABEL = "secret"


def seal(keyring: Keyring, tenant_id: str, secret_id: str, place: str, value: bytes) -> str:
    """The box of a value, base64; its key is durable when this returns. Blocking.

    Args:
        keyring: keeps the key.
        tenant_id: whose it is.
        secret_id: names the key.
        place: model and name, so that no box can be put in another's place.
        value: what to seal.

    Raises:
        NotFound: the tenant has no keys (removed).
    """
    key = os.urandom(32)
    box = box_seal(key, _LABEL, place.encode(), value)
    keyring.save_object_key(tenant_id, secret_id, key)
    return base64.b64encode(box).decode("ascii")


def value(keyring: Keyring, secret: Secret) -> bytes:
    """The plaintext of a secret.

    Raises:
        NotFound: its key was destroyed: it was replaced or removed, or its tenant was.
        StoreCorrupt: its box is damaged.
    """
    key = keyring.object_key(secret.tenant_id, secret.id)
    if key is None:
        raise NotFound("There is no such secret.")
    place = f"{secret.model_id}\0{secret.name}".encode()
    try:
        return box_open(key, _LABEL, place, base64.b64decode(secret.box, validate=True))
    except ValueError as error:
        raise StoreCorrupt("A secret of a model is damaged.", secret_id=secret.id) from error


def sweep(keyring: Keyring, snapshot: Snapshot) -> None:
    """Destroy the keys of secrets that are no longer there: a crash came in between. Blocking."""
    for tenant in snapshot.tenants():
        known = snapshot.secret_ids(tenant.id)
        ids = {i for i in keyring.object_ids(tenant.id) if i.startswith(f"{SECRET_PREFIX}_")}
        if ids - known:
            keyring.drop_object_keys(tenant.id, ids - known)
