"""Secrets of models: values sealed one by one, each under a key of its own.

Owns: the commands that set and remove one, how a value is boxed and opened, and destroying the
keys nothing refers to any more.
Never: keeps a value, writes one anywhere, or decides who may set or see one.
Read next: ``writer`` (runs the commands), ``keyring`` (keeps the keys), ``provision``.

The ledger only grows, so a value in it has to become unreadable by losing its key: the key of a
secret is in its tenant's key file under the secret's own id, and goes when the secret goes.
"""

from __future__ import annotations

import asyncio
import base64
import os

from appliance import clock
from appliance.errors import (
    CapacityExhausted,
    DiskFull,
    NotFound,
    QuotaExceeded,
    StoreCorrupt,
)
from appliance.events import Event, ModelCreated, SecretRemoved, SecretSet
from appliance.records import Secret, require_name
from appliance.store.keyring import Keyring
from appliance.store.seal import box_open, box_seal
from appliance.store.snapshot import Snapshot
from appliance.store.writer import Writer, new_model

SECRET_PREFIX = "sec"  # noqa: S105 - of ids
SECRETS_MAX = 32
VALUE_BYTES_MAX = 64 * 1024
_LABEL = "secret"


class SecretCommands:
    """Commands on the secrets of models."""

    def __init__(self, writer: Writer, keyring: Keyring) -> None:
        self._writer = writer
        self._keyring = keyring

    async def put(
        self, *, tenant_id: str, model_name: str, name: str, value: bytes, actor: str
    ) -> Secret:
        """Set or replace a secret of a model; makes the model if its name is free.

        Raises:
            InputInvalid: a name is not legal.
            NotFound: there is no such tenant.
            QuotaExceeded: the model has as many secrets as a model may have.
        """
        require_name(model_name, "model")
        require_name(name, "secret")

        async def command() -> Secret:
            writer, snapshot = self._writer, self._writer.snapshot
            writer.tenant(tenant_id)
            events: list[Event] = []
            model = snapshot.model(tenant_id, model_name)
            if model is None:
                model = new_model(tenant_id, model_name, "", actor)
                events.append(ModelCreated(model=model))
            before = snapshot.secret(model.id, name)
            if before is None and len(snapshot.secrets(model.id)) >= SECRETS_MAX:
                raise QuotaExceeded(f"A model has at most {SECRETS_MAX} secrets; remove one.")
            secret_id = clock.new_id(SECRET_PREFIX)
            place = f"{model.id}\0{name}"
            box = await asyncio.to_thread(seal, self._keyring, tenant_id, secret_id, place, value)
            secret = Secret(
                id=secret_id,
                model_id=model.id,
                tenant_id=tenant_id,
                name=name,
                box=box,
                set_ns=clock.now_ns(),
                set_by=actor,
            )
            try:
                await writer.commit([*events, SecretSet(secret=secret)], tenant_id, actor, model.id)
            except (DiskFull, CapacityExhausted):  # certainly not recorded
                await self.forget(tenant_id, {secret_id})
                raise
            if before is not None:
                await self.forget(tenant_id, {before.id})
            return secret

        return await self._writer.run(command())

    async def remove(self, *, model_id: str, name: str, actor: str) -> None:
        """Remove a secret and destroy the key of its value. Raises NotFound."""

        async def command() -> None:
            model = self._writer.model(model_id)
            secret = self._writer.snapshot.secret(model_id, name)
            if secret is None:
                raise NotFound("There is no such secret.")
            event = SecretRemoved(model_id=model_id, name=name)
            await self._writer.commit(event, model.tenant_id, actor, model_id)
            await self.forget(model.tenant_id, {secret.id})

        await self._writer.run(command())

    def value(self, secret: Secret) -> bytes:
        """What a secret is; for a sandbox of its model only.

        Raises:
            NotFound: it was replaced or removed meanwhile, or its tenant was.
            StoreCorrupt: it is damaged.
        """
        return value(self._keyring, secret)

    async def forget(self, tenant_id: str, secret_ids: set[str]) -> None:
        """Destroy the keys of secrets; what a crash leaves is destroyed at the next start."""
        if secret_ids:
            await asyncio.to_thread(self._keyring.drop_object_keys, tenant_id, secret_ids)


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
    place = f"{secret.model_id}\0{secret.name}"
    return opened(keyring, secret.tenant_id, secret.id, place, secret.box)


def opened(keyring: Keyring, tenant_id: str, secret_id: str, place: str, box: str) -> bytes:
    """What ``seal`` put into a box; raises like ``value``."""
    key = keyring.object_key(tenant_id, secret_id)
    if key is None:
        raise NotFound("There is no such secret.")
    try:
        return box_open(key, _LABEL, place.encode(), base64.b64decode(box, validate=True))
    except ValueError as error:
        raise StoreCorrupt("A secret is damaged.", secret_id=secret_id) from error


def sweep(keyring: Keyring, snapshot: Snapshot) -> None:
    """Destroy the keys of secrets that are no longer there: a crash came in between. Blocking."""
    for tenant in snapshot.tenants():
        known = snapshot.secret_ids(tenant.id)
        ids = {i for i in keyring.object_ids(tenant.id) if i.startswith(f"{SECRET_PREFIX}_")}
        if ids - known:
            keyring.drop_object_keys(tenant.id, ids - known)
