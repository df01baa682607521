"""The registry: tenants, keys, models, versions and aliases as they are now.

Owns: the commands that change them, and what each asks of the state it finds.
Never: queries DuckDB, or changes anything but through the writer.
Read next: ``writer`` (how a command runs), ``secrets`` (its commands), ``state``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from appliance import clock
from appliance.errors import (
    CapacityExhausted,
    DiskFull,
    FieldError,
    Gone,
    InputInvalid,
    NameTaken,
    NotFound,
    RevisionStale,
)
from appliance.events import (
    AliasRemoved,
    AliasSet,
    EgressRuleAdded,
    EgressRuleRemoved,
    Event,
    KeyCreated,
    KeyRevoked,
    ModelCreated,
    ModelRemoved,
    ReservationRemoved,
    ReservationSet,
    TenantCreated,
    TenantIsolationSet,
    TenantRemoved,
    VersionRegistered,
    VersionRetired,
)
from appliance.records import (
    LIVE,
    Alias,
    Alike,
    ApiKey,
    Artifact,
    EgressRule,
    Isolation,
    Manifest,
    Model,
    Package,
    Parent,
    Reservation,
    Tenant,
    Version,
    require_name,
)
from appliance.store.baselines import DriftCommands
from appliance.store.keyring import Keyring
from appliance.store.lineage import require_parents
from appliance.store.routes import RouteCommands, require_unrouted
from appliance.store.sampling import SamplingCommands
from appliance.store.secrets import SecretCommands
from appliance.store.snapshot import Snapshot
from appliance.store.webhook_commands import WebhookCommands
from appliance.store.writer import Writer, new_model

__all__ = ["Registry", "Snapshot"]


class Registry:
    """Commands on the registry; use from one event loop."""

    def __init__(self, writer: Writer, keyring: Keyring) -> None:
        """Change what ``writer`` holds; tenants' keys are made and destroyed in ``keyring``."""
        self.secrets = SecretCommands(writer, keyring)
        self.routes = RouteCommands(writer, self._next_alias)
        self.drift = DriftCommands(writer)
        self.webhooks = WebhookCommands(writer, keyring)
        self.samplings = SamplingCommands(writer)
        self._writer = writer
        self._keyring = keyring

    @property
    def snapshot(self) -> Snapshot:
        """Everything as it is now; it never changes, the next one replaces it."""
        return self._writer.snapshot

    @property
    def lock(self) -> asyncio.Lock:
        """Held by a command; whoever holds it sees no command half done."""
        return self._writer.lock

    @property
    def changes(self) -> int:
        """How many events were applied since the start."""
        return self._writer.changes

    async def close(self) -> None:
        """Wait for the commands in progress."""
        await self._writer.close()

    async def create_tenant(self, *, name: str, actor: str) -> Tenant:
        """Create a tenant and its keys.

        Raises:
            InputInvalid: the name is not legal.
            NameTaken: a tenant of this name exists.
        """
        require_name(name, "tenant")

        async def command() -> Tenant:
            if self.snapshot.tenant(name):
                raise NameTaken(f"There is already a tenant named '{name}'.")
            tenant = Tenant(
                id=clock.new_id("ten"), name=name, created_ns=clock.now_ns(), created_by=actor
            )
            await asyncio.to_thread(self._keyring.create, tenant.id)
            try:
                await self._writer.commit(TenantCreated(tenant=tenant), tenant.id, actor, tenant.id)
            except (DiskFull, CapacityExhausted):  # certainly not recorded
                await asyncio.to_thread(self._keyring.shred, tenant.id)
                raise
            return tenant

        return await self._writer.run(command())

    async def remove_tenant(self, *, tenant_id: str, actor: str) -> None:
        """Remove a tenant with everything it has, and destroy its keys (audit: tenant.removed).

        Raises:
            NotFound: there is no such tenant.
        """

        async def command() -> None:
            self._writer.tenant(tenant_id)
            await self._writer.commit(
                TenantRemoved(tenant_id=tenant_id), tenant_id, actor, tenant_id
            )
            await asyncio.to_thread(self._keyring.shred, tenant_id)

        await self._writer.run(command())

    async def set_isolation(self, *, tenant_id: str, isolation: Isolation, actor: str) -> Tenant:
        """Say how strongly a tenant's sandboxes are kept apart. Raises NotFound."""

        async def command() -> Tenant:
            tenant = self._writer.tenant(tenant_id)
            if tenant.isolation != isolation:
                event = TenantIsolationSet(tenant_id=tenant_id, isolation=isolation)
                await self._writer.commit(event, tenant_id, actor, tenant_id)
            return self._writer.tenant(tenant_id)

        return await self._writer.run(command())

    async def create_key(self, *, key: ApiKey, actor: str) -> ApiKey:
        """Record an API key made by the caller.

        Raises:
            NameTaken: the id exists.
            NotFound: the key's tenant does not exist.
        """

        async def command() -> ApiKey:
            if self.snapshot.key(key.id):
                raise NameTaken("There is already a key with this id.")
            if key.tenant_id:
                self._writer.tenant(key.tenant_id)
            await self._writer.commit(KeyCreated(key=key), key.tenant_id, actor, key.id)
            return key

        return await self._writer.run(command())

    async def revoke_key(
        self, *, key_id: str, actor: str, with_issued: bool = True
    ) -> tuple[ApiKey, ...]:
        """Revoke a key and, unless told not to, every key issued with it, however indirectly.

        Args:
            key_id: the key.
            actor: who asks.
            with_issued: False leaves the keys it issued in force.

        Returns:
            The key, then what else was revoked; revoking it again changes nothing more.

        Raises:
            NotFound: there is no such key.
        """

        async def command() -> tuple[ApiKey, ...]:
            key = self.snapshot.key(key_id)
            if key is None:
                raise NotFound("There is no such key.")
            issued = self._issued_with(key_id) if with_issued else []
            fresh = [k for k in issued if not k.revoked_ns]
            # The key itself last: a crash in between leaves a revocation that can be repeated.
            for one in (*reversed(fresh), *(() if key.revoked_ns else (key,))):
                await self._writer.commit(KeyRevoked(key_id=one.id), one.tenant_id, actor, one.id)
            return tuple(self.snapshot.key(k.id) or k for k in (key, *fresh))

        return await self._writer.run(command())

    async def create_model(
        self, *, tenant_id: str, name: str, description: str = "", actor: str
    ) -> Model:
        """Take a model name. Raises InputInvalid, NotFound (tenant), NameTaken."""
        require_name(name, "model")

        async def command() -> Model:
            self._writer.tenant(tenant_id)
            if self.snapshot.model(tenant_id, name):
                raise NameTaken(f"There is already a model named '{name}'.")
            model = new_model(tenant_id, name, description, actor)
            await self._writer.commit(ModelCreated(model=model), tenant_id, actor, model.id)
            return model

        return await self._writer.run(command())

    async def remove_model(self, *, model_id: str, actor: str) -> None:
        """Remove a model with its versions and aliases; its name is free again. Raises NotFound."""

        async def command() -> None:
            model = self._writer.model(model_id)
            gone = {secret.id for secret in self.snapshot.secrets(model_id)}
            event = ModelRemoved(model_id=model_id)
            await self._writer.commit(event, model.tenant_id, actor, model_id)
            await self.secrets.forget(model.tenant_id, gone)

        await self._writer.run(command())

    async def register_version(
        self,
        *,
        tenant_id: str,
        model_name: str,
        manifest: Manifest,
        artifact: Artifact,
        runtime_digest: str,
        deps_key: str = "",
        lock: tuple[Package, ...] = (),
        parents: tuple[Parent, ...] = (),
        alike: tuple[Alike, ...] = (),
        number: int = 0,
        actor: str,
    ) -> Version:
        """Register the next version; makes the model if missing, and ``live`` with the first.

        All of it is one unit in the ledger. A parent is there before its child, so that no version
        is its own ancestor. ``number`` is one that was promised, 0 for the next.

        Raises:
            InputInvalid: the name is not legal.
            NotFound: there is no such tenant, or the number is not promised (any more).
            ManifestInvalid: a parent is not there.
        """
        require_name(model_name, "model")

        async def command() -> Version:
            self._writer.tenant(tenant_id)
            require_parents(self.snapshot, tenant_id, parents)
            events: list[Event] = []
            model = self.snapshot.model(tenant_id, model_name)
            if model is None:
                model = new_model(tenant_id, model_name, manifest.description, actor)
                events.append(ModelCreated(model=model))
            promise = self.snapshot.tracking(tenant_id).promise(model.id, number)
            if number and (promise is None or promise.state != "pending"):
                raise NotFound(f"Version {number} is not promised to anybody.")
            newest = self.snapshot.newest(model.id)
            version = Version(
                model_id=model.id,
                tenant_id=tenant_id,
                number=number or self.snapshot.next_number(model),
                manifest=manifest,
                artifact=artifact,
                runtime_digest=runtime_digest,
                deps_key=deps_key,
                lock=lock,
                parents=parents,
                alike=alike,
                created_ns=clock.now_ns(),
                created_by=actor,
            )
            events.append(VersionRegistered(version=version))
            if newest is None:
                alias = self._next_alias(model, LIVE, version.number, "first version", actor)
                events.append(AliasSet(alias=alias))
            await self._writer.commit(events, tenant_id, actor, model.id)
            return version

        return await self._writer.run(command())

    async def retire_version(self, *, model_id: str, number: int, actor: str) -> Version:
        """Take a version out of service; twice changes nothing. Raises NotFound, VersionRouted."""

        async def command() -> Version:
            model = self._writer.model(model_id)
            version = self.snapshot.version(model_id, number)
            if version is None:
                raise NotFound("There is no such version.")
            if not version.retired_ns:
                require_unrouted(self.snapshot, model_id, number)
                event = VersionRetired(model_id=model_id, number=number)
                await self._writer.commit(event, model.tenant_id, actor, model_id)
            return self.snapshot.version(model_id, number) or version

        return await self._writer.run(command())

    async def set_alias(
        self,
        *,
        model_id: str,
        name: str,
        number: int,
        revision: int | None = None,
        reason: str = "",
        actor: str,
    ) -> Alias:
        """Create or move an alias.

        Args:
            model_id: the model.
            name: a legal name.
            number: the version it will point to.
            revision: the revision the caller saw (0: none exists); ``None`` does not check.
            reason: kept with the alias.
            actor: who asks.

        Raises:
            InputInvalid: the name is not legal.
            NotFound: no such model or version.
            Gone: the version was retired.
            RevisionStale: somebody moved the alias since ``revision``.
        """
        require_alias(name)

        async def command() -> Alias:
            model = self._writer.model(model_id)
            version = self.snapshot.version(model_id, number)
            if version is None:
                raise NotFound("There is no such version.")
            if version.retired_ns:
                raise Gone(f"Version {number} was retired.")
            alias = self._next_alias(model, name, number, reason, actor)
            if revision is not None and revision != alias.revision - 1:
                raise RevisionStale(
                    f"The alias is at revision {alias.revision - 1}, not {revision}."
                )
            await self._writer.commit(AliasSet(alias=alias), model.tenant_id, actor, model_id)
            return alias

        return await self._writer.run(command())

    async def remove_alias(self, *, model_id: str, name: str, actor: str) -> None:
        """Remove an alias. Raises NotFound."""

        async def command() -> None:
            model = self._writer.model(model_id)
            if self.snapshot.alias(model_id, name) is None:
                raise NotFound("There is no such alias.")
            event = AliasRemoved(model_id=model_id, name=name)
            await self._writer.commit(event, model.tenant_id, actor, model_id)

        await self._writer.run(command())

    async def set_reservation(
        self,
        *,
        model_id: str,
        number: int,
        warm: int,
        fits: Callable[[Snapshot], None] = lambda _snapshot: None,
        actor: str,
    ) -> Reservation:
        """Have a number of a version's sandboxes kept loaded; the same number changes nothing.

        Args:
            model_id: the model.
            number: a version in service.
            warm: how many, at least 1.
            fits: raises if that is too many beside what is reserved already.
            actor: who asks.

        Raises:
            NotFound: no such model or version.
            Gone: the version was retired.
        """

        async def command() -> Reservation:
            model = self._writer.model(model_id)
            version = self.snapshot.version(model_id, number)
            if version is None:
                raise NotFound("There is no such version.")
            if version.retired_ns:
                raise Gone(f"Version {number} was retired.")
            fits(self.snapshot)
            known = self.snapshot.reservation(model_id, number)
            if known is not None and known.warm == warm:
                return known
            one = Reservation(
                model_id=model_id,
                tenant_id=model.tenant_id,
                number=number,
                warm=warm,
                set_ns=clock.now_ns(),
                set_by=actor,
            )
            await self._writer.commit(
                ReservationSet(reservation=one), model.tenant_id, actor, model_id
            )
            return one

        return await self._writer.run(command())

    async def remove_reservation(self, *, model_id: str, number: int, actor: str) -> None:
        """Have a version's sandboxes made on demand again. Raises NotFound."""

        async def command() -> None:
            model = self._writer.model(model_id)
            if self.snapshot.reservation(model_id, number) is None:
                raise NotFound("This version has no reservation.")
            event = ReservationRemoved(model_id=model_id, number=number)
            await self._writer.commit(event, model.tenant_id, actor, model_id)

        await self._writer.run(command())

    async def add_egress_rule(
        self,
        *,
        rule: EgressRule,
        before: str = "",
        fits: Callable[[Snapshot], None] = lambda _snapshot: None,
        actor: str,
    ) -> EgressRule:
        """Add an egress rule to its tenant's list.

        Args:
            rule: a checked rule.
            before: the id of the rule it goes in front of; last if empty.
            fits: raises if there are too many already.
            actor: who asks.

        Raises:
            NotFound: no such tenant, or it has no rule ``before``.
        """

        async def command() -> EgressRule:
            self._writer.tenant(rule.tenant_id)
            known = self.snapshot.egress_rules(rule.tenant_id)
            if before and not any(one.id == before for one in known):
                raise NotFound(
                    "There is no such egress rule to put it before.",
                    hint="appliance egress list TENANT names them",
                )
            fits(self.snapshot)
            event = EgressRuleAdded(rule=rule, before=before)
            await self._writer.commit(event, rule.tenant_id, actor, rule.id)
            return rule

        return await self._writer.run(command())

    async def remove_egress_rule(
        self, *, tenant_id: str, rule_id: str, reason: str, actor: str
    ) -> None:
        """Remove an egress rule. Raises NotFound."""

        async def command() -> None:
            known = self.snapshot.egress_rules(tenant_id)
            if not any(one.id == rule_id for one in known):
                raise NotFound("There is no such egress rule.")
            event = EgressRuleRemoved(tenant_id=tenant_id, rule_id=rule_id, reason=reason)
            await self._writer.commit(event, tenant_id, actor, rule_id)

        await self._writer.run(command())

    async def change(
        self, make: Callable[[], list[Event]], *, tenant_id: str, actor: str, obj: str
    ) -> None:
        """Record and apply what ``make`` returns under the registry's lock; it may raise."""

        async def command() -> None:
            self._writer.tenant(tenant_id)
            if events := make():
                await self._writer.commit(events, tenant_id, actor, obj)

        await self._writer.run(command())

    # --- helpers -----------------------------------------------------------------------------

    def _issued_with(self, key_id: str) -> list[ApiKey]:
        """Keys issued with this one, and with those, nearest first; revoked ones included."""
        found: list[ApiKey] = []
        issuers = {key_id}
        keys = self.snapshot.keys()
        while issuers:
            layer = [k for k in keys if k.created_by in issuers]
            found += layer
            issuers = {k.id for k in layer}
        return found

    def _next_alias(self, model: Model, name: str, number: int, reason: str, actor: str) -> Alias:
        current = self.snapshot.alias(model.id, name)
        fresh = Alias(
            model_id=model.id,
            tenant_id=model.tenant_id,
            name=name,
            number=number,
            revision=1,
            reason=reason,
            set_ns=clock.now_ns(),
            set_by=actor,
        )
        return replace(fresh, revision=current.revision + 1) if current else fresh


def require_alias(name: str) -> None:
    """Return if an alias may be called that.

    Raises:
        InputInvalid: it is no legal name, or a number, which would read like a version.
    """
    require_name(name, "alias")
    if name.isdigit():
        detail = f"'{name}' reads like a version: 'model@{name}' is version {name}."
        raise InputInvalid(
            detail,
            hint=f"an alias has a letter in it, such as v{name}",
            fields=(FieldError(pointer="/alias", detail=detail),),
        )
