"""Events that change the registry: tenants, keys, models, versions, aliases, routes, secrets.

Owns: every change of what there is and where calls go.
Never: calls themselves (``calls``).
Read next: ``events`` (the list of all), ``store/FORMAT.md`` (their bytes).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from appliance.events.base import Event
from appliance.records import (
    Alias,
    ApiKey,
    Isolation,
    Model,
    Reservation,
    Route,
    Secret,
    Tenant,
    Version,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantCreated(Event):
    """A tenant was created."""

    KIND: ClassVar[str] = "tenant.created"
    SEALED: ClassVar[bool] = True
    tenant: Tenant


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantIsolationSet(Event):
    """How strongly a tenant's sandboxes are kept apart, from their next start on."""

    KIND: ClassVar[str] = "tenant.isolation-set"
    tenant_id: str
    isolation: Isolation


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantRemoved(Event):
    """A tenant was removed and its keys destroyed; its sealed events are unreadable from now on."""

    KIND: ClassVar[str] = "tenant.removed"
    tenant_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyCreated(Event):
    """An API key was issued; only its HMAC is recorded."""

    KIND: ClassVar[str] = "key.created"
    SEALED: ClassVar[bool] = True
    HIDDEN: ClassVar[tuple[tuple[str, ...], ...]] = (("key", "mac"),)
    key: ApiKey


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRevoked(Event):
    """An API key was revoked and is refused from now on."""

    KIND: ClassVar[str] = "key.revoked"
    key_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCreated(Event):
    """A model name was taken."""

    KIND: ClassVar[str] = "model.created"
    SEALED: ClassVar[bool] = True
    model: Model


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRemoved(Event):
    """A model and all its versions were removed from service."""

    KIND: ClassVar[str] = "model.removed"
    model_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRegistered(Event):
    """An immutable version was registered."""

    KIND: ClassVar[str] = "version.registered"
    SEALED: ClassVar[bool] = True
    version: Version


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRetired(Event):
    """A version was taken out of service; it answers 410 from now on."""

    KIND: ClassVar[str] = "version.retired"
    model_id: str
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasSet(Event):
    """An alias was created or moved."""

    KIND: ClassVar[str] = "alias.set"
    SEALED: ClassVar[bool] = True
    alias: Alias


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasRemoved(Event):
    """An alias was removed."""

    KIND: ClassVar[str] = "alias.removed"
    SEALED: ClassVar[bool] = True
    model_id: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteSet(Event):
    """A model's route was set or changed, by somebody or by its canary rule; one revision."""

    KIND: ClassVar[str] = "route.set"
    SEALED: ClassVar[bool] = True
    route: Route


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteRemoved(Event):
    """A model's route ended, by promotion or removal: ``live`` decides again; its last revision."""

    KIND: ClassVar[str] = "route.removed"
    SEALED: ClassVar[bool] = True
    route: Route


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservationSet(Event):
    """A number of a version's sandboxes is kept loaded from now on."""

    KIND: ClassVar[str] = "reservation.set"
    reservation: Reservation


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservationRemoved(Event):
    """A version's sandboxes are made on demand again; retiring it does this too, unsaid."""

    KIND: ClassVar[str] = "reservation.removed"
    model_id: str
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretSet(Event):
    """A model's secret was set or replaced; its value is sealed once more inside this event."""

    KIND: ClassVar[str] = "secret.set"
    SEALED: ClassVar[bool] = True
    HIDDEN: ClassVar[tuple[tuple[str, ...], ...]] = (("secret", "box"),)
    secret: Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretRemoved(Event):
    """A model's secret was removed and the key of its value destroyed."""

    KIND: ClassVar[str] = "secret.removed"
    SEALED: ClassVar[bool] = True
    model_id: str
    name: str
