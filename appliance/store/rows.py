"""Registry rows of the projection: ids, numbers and times in the clear, all text sealed.

Owns: the SQL that applies registry entries, and how a row's text is sealed to its place.
Never: opens the database (``projection`` passes a connection) or is read to serve a request.
Read next: ``projection``; ``FORMAT.md`` section 6.
"""

from __future__ import annotations

import hmac
from dataclasses import replace
from typing import Any, Protocol

import msgspec

from appliance.errors import NotFound
from appliance.events import (
    AliasRemoved,
    AliasSet,
    KeyCreated,
    KeyRevoked,
    ModelCreated,
    ModelRemoved,
    RouteRemoved,
    RouteSet,
    SecretRemoved,
    SecretSet,
    TenantCreated,
    TenantIsolationSet,
    TenantRemoved,
    VersionRegistered,
    VersionRetired,
)
from appliance.records import Alias, ApiKey, Entry, Model, Route, Secret, Tenant, Version
from appliance.store.keyring import Keyring
from appliance.store.seal import box_open, box_seal
from appliance.store.snapshot import Snapshot
from appliance.store.state import REGISTRY_EVENTS, ROUTES_KEPT, Tables

_ROW = "row"


class Connection(Protocol):
    """What is used of a database connection."""

    def execute(self, query: str, parameters: list[Any], /) -> Any:
        """Run one statement."""


def actor_tag(key: bytes, actor: str) -> bytes:
    """What stands for an actor or a name in a column that is searched: a keyed hash, 16 bytes."""
    return hmac.digest(key, actor.encode(), "sha256")[:16]


class RegistryRows:
    """Applies registry entries to the tables; runs on the projection's thread."""

    def __init__(self, keyring: Keyring, key: bytes) -> None:
        """``key`` is the projection key, for rows of no tenant."""
        self._keyring = keyring
        self._key = key

    def apply(self, con: Connection, entry: Entry) -> None:
        """Apply one entry if it is a registry entry; what was shredded is left out."""
        cls = REGISTRY_EVENTS.get(entry.kind)
        if cls is None or entry.event is None:
            return
        event = msgspec.convert(entry.event, cls)
        match event:
            case TenantCreated(tenant=tenant):
                self._tenant(con, tenant)
            case TenantIsolationSet(tenant_id=tenant_id, isolation=isolation):
                con.execute("UPDATE tenant SET isolation = ? WHERE id = ?", [isolation, tenant_id])
            case TenantRemoved(tenant_id=tenant_id):
                for table in ("api_key", "model", "version", "alias", "secret", "route", "metric"):
                    con.execute(f"DELETE FROM {table} WHERE tenant_id = ?", [tenant_id])  # noqa: S608
                con.execute("DELETE FROM tenant WHERE id = ?", [tenant_id])
            case KeyCreated(key=key):
                self._api_key(con, key)
            case KeyRevoked(key_id=key_id):
                con.execute(
                    "UPDATE api_key SET revoked_ns = ? WHERE id = ?", [entry.time_ns, key_id]
                )
            case _:
                self._apply_model(con, entry, event)

    def _apply_model(self, con: Connection, entry: Entry, event: Any) -> None:
        match event:
            case ModelCreated(model=model):
                self._model(con, model)
            case ModelRemoved(model_id=model_id):
                con.execute(
                    "UPDATE model SET removed_ns = ? WHERE id = ?", [entry.time_ns, model_id]
                )
                for table in ("version", "alias", "secret", "route"):
                    con.execute(f"DELETE FROM {table} WHERE model_id = ?", [model_id])  # noqa: S608
            case VersionRegistered(version=version):
                self._version(con, version)
            case VersionRetired(model_id=model_id, number=number):
                con.execute(
                    "UPDATE version SET retired_ns = ? WHERE model_id = ? AND number = ?",
                    [entry.time_ns, model_id, number],
                )
            case _:
                self._apply_named(con, event)

    def _apply_named(self, con: Connection, event: Any) -> None:
        match event:
            case AliasSet(alias=alias):
                self._alias(con, alias)
            case AliasRemoved(model_id=model_id, name=name):
                con.execute(
                    "DELETE FROM alias WHERE model_id = ? AND tag = ?",
                    [model_id, actor_tag(self._key, name)],
                )
            case RouteSet(route=route) | RouteRemoved(route=route):
                self._route(con, route)
            case SecretSet(secret=secret):
                self._secret(con, secret)
            case SecretRemoved(model_id=model_id, name=name):
                con.execute(
                    "DELETE FROM secret WHERE model_id = ? AND tag = ?",
                    [model_id, actor_tag(self._key, name)],
                )

    def _tenant(self, con: Connection, tenant: Tenant) -> None:
        sealed = self._seal(tenant.id, f"tenant\0{tenant.id}", tenant)
        if sealed is not None:
            con.execute(
                "INSERT INTO tenant VALUES (?, ?, ?, ?)",
                [tenant.id, tenant.created_ns, tenant.isolation, sealed],
            )

    def _api_key(self, con: Connection, key: ApiKey) -> None:
        sealed = self._seal(key.tenant_id, f"api_key\0{key.id}", key)
        if sealed is not None:
            con.execute(
                "INSERT INTO api_key VALUES (?, ?, ?, ?, ?, ?, ?)",
                [key.id, key.tenant_id, key.role, key.created_ns, key.expires_ns, 0, sealed],
            )

    def _model(self, con: Connection, model: Model) -> None:
        sealed = self._seal(model.tenant_id, f"model\0{model.id}", model)
        if sealed is not None:
            con.execute(
                "INSERT INTO model VALUES (?, ?, ?, 0, ?)",
                [model.id, model.tenant_id, model.created_ns, sealed],
            )

    def _version(self, con: Connection, version: Version) -> None:
        place = f"version\0{version.model_id}\0{version.number}"
        sealed = self._seal(version.tenant_id, place, version)
        size = sum(f.size_bytes for f in version.artifact.files)
        if sealed is not None:
            con.execute(
                "INSERT INTO version VALUES (?, ?, ?, ?, ?, 0, ?)",
                [
                    version.model_id,
                    version.number,
                    version.tenant_id,
                    size,
                    version.created_ns,
                    sealed,
                ],
            )

    def _alias(self, con: Connection, alias: Alias) -> None:
        tag = actor_tag(self._key, alias.name)
        place = f"alias\0{alias.model_id}\0{tag.hex()}"
        sealed = self._seal(alias.tenant_id, place, alias)
        if sealed is not None:
            con.execute(
                "INSERT OR REPLACE INTO alias VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    alias.model_id,
                    tag,
                    alias.tenant_id,
                    alias.number,
                    alias.revision,
                    alias.set_ns,
                    sealed,
                ],
            )

    def _route(self, con: Connection, route: Route) -> None:
        place = f"route\0{route.model_id}\0{route.revision}"
        sealed = self._seal(route.tenant_id, place, route)
        if sealed is not None:
            con.execute(
                "INSERT INTO route VALUES (?, ?, ?, ?, ?)",
                [route.model_id, route.revision, route.tenant_id, route.set_ns, sealed],
            )
            con.execute(
                "DELETE FROM route WHERE model_id = ? AND revision <= ?",
                [route.model_id, route.revision - ROUTES_KEPT],
            )

    def _secret(self, con: Connection, secret: Secret) -> None:
        tag = actor_tag(self._key, secret.name)
        place = f"secret\0{secret.model_id}\0{tag.hex()}"
        sealed = self._seal(secret.tenant_id, place, secret)
        if sealed is not None:
            con.execute(
                "INSERT OR REPLACE INTO secret VALUES (?, ?, ?, ?, ?)",
                [secret.model_id, tag, secret.tenant_id, secret.set_ns, sealed],
            )

    def _seal(self, tenant_id: str, place: str, record: Any) -> bytes | None:
        """The record sealed to its row; ``None`` when its tenant was removed since."""
        plain = msgspec.json.encode(record)
        if not tenant_id:
            return box_seal(self._key, _ROW, place.encode(), plain)
        try:
            return self._keyring.seal(tenant_id, _ROW, place.encode(), plain)
        except NotFound:
            return None

    def _open(self, tenant_id: str, place: str, sealed: bytes, kind: type[Any]) -> Any:
        aad = place.encode()
        if tenant_id:
            plain = self._keyring.open(tenant_id, _ROW, aad, sealed)
        else:
            plain = box_open(self._key, _ROW, aad, sealed)
        return msgspec.json.decode(plain, type=kind)

    def snapshot(self, query: Any) -> Snapshot:
        """The registry as the tables hold it, to compare with the one in memory. Blocking.

        Args:
            query: ``Projection.query``.
        """
        tables = Tables()
        for row_id, isolation, sealed in query("SELECT id, isolation, sealed FROM tenant"):
            tenant = self._open(row_id, f"tenant\0{row_id}", sealed, Tenant)
            tenant = replace(tenant, isolation=isolation)
            tables.tenants[tenant.id] = tenant
            tables.names["", tenant.name] = tenant.id
        for row_id, tenant_id, revoked_ns, sealed in query(
            "SELECT id, tenant_id, revoked_ns, sealed FROM api_key"
        ):
            key = self._open(tenant_id, f"api_key\0{row_id}", sealed, ApiKey)
            tables.keys[key.id] = replace(key, revoked_ns=revoked_ns)
        for row_id, tenant_id, removed_ns, sealed in query(
            "SELECT id, tenant_id, removed_ns, sealed FROM model"
        ):
            model = replace(
                self._open(tenant_id, f"model\0{row_id}", sealed, Model), removed_ns=removed_ns
            )
            tables.models[model.id] = model
            if not model.removed_ns:
                tables.names[model.tenant_id, model.name] = model.id
        for model_id, number, tenant_id, retired_ns, sealed in query(
            "SELECT model_id, number, tenant_id, retired_ns, sealed FROM version ORDER BY ALL"
        ):
            version = self._open(tenant_id, f"version\0{model_id}\0{number}", sealed, Version)
            before = tables.versions.get(model_id, ())
            tables.versions[model_id] = (*before, replace(version, retired_ns=retired_ns))
        for model_id, tag, tenant_id, sealed in query(
            "SELECT model_id, tag, tenant_id, sealed FROM alias"
        ):
            alias = self._open(tenant_id, f"alias\0{model_id}\0{tag.hex()}", sealed, Alias)
            tables.aliases.setdefault(model_id, {})[alias.name] = alias
        for model_id, tag, tenant_id, sealed in query(
            "SELECT model_id, tag, tenant_id, sealed FROM secret"
        ):
            secret = self._open(tenant_id, f"secret\0{model_id}\0{tag.hex()}", sealed, Secret)
            tables.secrets.setdefault(model_id, {})[secret.name] = secret
        for model_id, revision, tenant_id, sealed in query(
            "SELECT model_id, revision, tenant_id, sealed FROM route ORDER BY model_id, revision"
        ):
            route = self._open(tenant_id, f"route\0{model_id}\0{revision}", sealed, Route)
            tables.routes[model_id] = (*tables.routes.get(model_id, ()), route)
        return tables.freeze()
