"""The registry: tenants, keys, models, versions and aliases as they are now.

Owns: the commands that change them and the immutable snapshot every request reads.
Never: queries DuckDB, or applies a change before its entry is durable.
Read next: ``state`` (how an event changes the snapshot), ``ledger`` (where the change is first).

A command: validate against the snapshot under one lock, append, swap the snapshot, return. A caller
who is cancelled in the middle does not stop the command.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from appliance import clock
from appliance.errors import (
    ApplianceError,
    CapacityExhausted,
    DiskFull,
    Gone,
    NameTaken,
    NotFound,
    QuotaExceeded,
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
    SecretRemoved,
    SecretSet,
    TenantCreated,
    TenantIsolationSet,
    TenantRemoved,
    VersionRegistered,
    VersionRetired,
)
from appliance.records import (
    LIVE,
    Alias,
    ApiKey,
    Artifact,
    EgressRule,
    Isolation,
    Manifest,
    Model,
    Package,
    Reservation,
    Secret,
    Tenant,
    Version,
    require_name,
)
from appliance.store import secrets
from appliance.store.keyring import Keyring
from appliance.store.ledger import Ledger
from appliance.store.secrets import SECRET_PREFIX, SECRETS_MAX
from appliance.store.state import Snapshot, Tables

__all__ = ["Registry", "Snapshot"]

T = TypeVar("T")


class Registry:
    """Commands on the registry; use from one event loop."""

    def __init__(self, ledger: Ledger, keyring: Keyring, snapshot: Snapshot) -> None:
        """Start from the snapshot that replaying the ledger gave."""
        self.snapshot = snapshot
        self.changes = 0
        self.lock = asyncio.Lock()
        self._ledger = ledger
        self._keyring = keyring
        self._tasks: set[asyncio.Task[Any]] = set()

    async def close(self) -> None:
        """Wait for the commands in progress."""
        while self._tasks:
            await asyncio.wait(self._tasks)

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
                await self._commit(TenantCreated(tenant=tenant), tenant.id, actor, tenant.id)
            except (DiskFull, CapacityExhausted):  # certainly not recorded
                await asyncio.to_thread(self._keyring.shred, tenant.id)
                raise
            return tenant

        return await self._run(command())

    async def remove_tenant(self, *, tenant_id: str, actor: str) -> None:
        """Remove a tenant with everything it has, and destroy its keys (audit: tenant.removed).

        Raises:
            NotFound: there is no such tenant.
        """

        async def command() -> None:
            self._tenant(tenant_id)
            await self._commit(TenantRemoved(tenant_id=tenant_id), tenant_id, actor, tenant_id)
            await asyncio.to_thread(self._keyring.shred, tenant_id)

        await self._run(command())

    async def set_isolation(self, *, tenant_id: str, isolation: Isolation, actor: str) -> Tenant:
        """Say how strongly a tenant's sandboxes are kept apart. Raises NotFound."""

        async def command() -> Tenant:
            tenant = self._tenant(tenant_id)
            if tenant.isolation != isolation:
                event = TenantIsolationSet(tenant_id=tenant_id, isolation=isolation)
                await self._commit(event, tenant_id, actor, tenant_id)
            return self._tenant(tenant_id)

        return await self._run(command())

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
                self._tenant(key.tenant_id)
            await self._commit(KeyCreated(key=key), key.tenant_id, actor, key.id)
            return key

        return await self._run(command())

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
                await self._commit(KeyRevoked(key_id=one.id), one.tenant_id, actor, one.id)
            return tuple(self.snapshot.key(k.id) or k for k in (key, *fresh))

        return await self._run(command())

    async def create_model(
        self, *, tenant_id: str, name: str, description: str = "", actor: str
    ) -> Model:
        """Take a model name. Raises InputInvalid, NotFound (tenant), NameTaken."""
        require_name(name, "model")

        async def command() -> Model:
            self._tenant(tenant_id)
            if self.snapshot.model(tenant_id, name):
                raise NameTaken(f"There is already a model named '{name}'.")
            model = self._new_model(tenant_id, name, description, actor)
            await self._commit(ModelCreated(model=model), tenant_id, actor, model.id)
            return model

        return await self._run(command())

    async def remove_model(self, *, model_id: str, actor: str) -> None:
        """Remove a model with its versions and aliases; its name is free again. Raises NotFound."""

        async def command() -> None:
            model = self._model(model_id)
            gone = {secret.id for secret in self.snapshot.secrets(model_id)}
            await self._commit(ModelRemoved(model_id=model_id), model.tenant_id, actor, model_id)
            await self._forget(model.tenant_id, gone)

        await self._run(command())

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
        actor: str,
    ) -> Version:
        """Register the next version; makes the model if missing, and ``live`` with the first.

        All of it is one unit in the ledger. Raises InputInvalid, NotFound (tenant).
        """
        require_name(model_name, "model")

        async def command() -> Version:
            self._tenant(tenant_id)
            events: list[Event] = []
            model = self.snapshot.model(tenant_id, model_name)
            if model is None:
                model = self._new_model(tenant_id, model_name, manifest.description, actor)
                events.append(ModelCreated(model=model))
            newest = self.snapshot.newest(model.id)
            version = Version(
                model_id=model.id,
                tenant_id=tenant_id,
                number=newest.number + 1 if newest else 1,
                manifest=manifest,
                artifact=artifact,
                runtime_digest=runtime_digest,
                deps_key=deps_key,
                lock=lock,
                created_ns=clock.now_ns(),
                created_by=actor,
            )
            events.append(VersionRegistered(version=version))
            if newest is None:
                alias = self._next_alias(model, LIVE, 1, "first version", actor)
                events.append(AliasSet(alias=alias))
            await self._commit(events, tenant_id, actor, model.id)
            return version

        return await self._run(command())

    async def retire_version(self, *, model_id: str, number: int, actor: str) -> Version:
        """Take a version out of service; retiring it again changes nothing. Raises NotFound."""

        async def command() -> Version:
            model = self._model(model_id)
            version = self.snapshot.version(model_id, number)
            if version is None:
                raise NotFound("There is no such version.")
            if not version.retired_ns:
                event = VersionRetired(model_id=model_id, number=number)
                await self._commit(event, model.tenant_id, actor, model_id)
            return self.snapshot.version(model_id, number) or version

        return await self._run(command())

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
        require_name(name, "alias")

        async def command() -> Alias:
            model = self._model(model_id)
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
            await self._commit(AliasSet(alias=alias), model.tenant_id, actor, model_id)
            return alias

        return await self._run(command())

    async def remove_alias(self, *, model_id: str, name: str, actor: str) -> None:
        """Remove an alias. Raises NotFound."""

        async def command() -> None:
            model = self._model(model_id)
            if self.snapshot.alias(model_id, name) is None:
                raise NotFound("There is no such alias.")
            event = AliasRemoved(model_id=model_id, name=name)
            await self._commit(event, model.tenant_id, actor, model_id)

        await self._run(command())

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
            model = self._model(model_id)
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
            await self._commit(ReservationSet(reservation=one), model.tenant_id, actor, model_id)
            return one

        return await self._run(command())

    async def remove_reservation(self, *, model_id: str, number: int, actor: str) -> None:
        """Have a version's sandboxes made on demand again. Raises NotFound."""

        async def command() -> None:
            model = self._model(model_id)
            if self.snapshot.reservation(model_id, number) is None:
                raise NotFound("This version has no reservation.")
            event = ReservationRemoved(model_id=model_id, number=number)
            await self._commit(event, model.tenant_id, actor, model_id)

        await self._run(command())

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
            self._tenant(rule.tenant_id)
            known = self.snapshot.egress_rules(rule.tenant_id)
            if before and not any(one.id == before for one in known):
                raise NotFound("There is no such egress rule to put it before.")
            fits(self.snapshot)
            event = EgressRuleAdded(rule=rule, before=before)
            await self._commit(event, rule.tenant_id, actor, rule.id)
            return rule

        return await self._run(command())

    async def remove_egress_rule(
        self, *, tenant_id: str, rule_id: str, reason: str, actor: str
    ) -> None:
        """Remove an egress rule. Raises NotFound."""

        async def command() -> None:
            known = self.snapshot.egress_rules(tenant_id)
            if not any(one.id == rule_id for one in known):
                raise NotFound("There is no such egress rule.")
            event = EgressRuleRemoved(tenant_id=tenant_id, rule_id=rule_id, reason=reason)
            await self._commit(event, tenant_id, actor, rule_id)

        await self._run(command())

    async def set_secret(
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
            self._tenant(tenant_id)
            events: list[Event] = []
            model = self.snapshot.model(tenant_id, model_name)
            if model is None:
                model = self._new_model(tenant_id, model_name, "", actor)
                events.append(ModelCreated(model=model))
            before = self.snapshot.secret(model.id, name)
            if before is None and len(self.snapshot.secrets(model.id)) >= SECRETS_MAX:
                raise QuotaExceeded(f"A model has at most {SECRETS_MAX} secrets; remove one.")
            secret_id = clock.new_id(SECRET_PREFIX)
            box = await asyncio.to_thread(
                secrets.seal, self._keyring, tenant_id, secret_id, f"{model.id}\0{name}", value
            )
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
                await self._commit([*events, SecretSet(secret=secret)], tenant_id, actor, model.id)
            except (DiskFull, CapacityExhausted):  # certainly not recorded
                await self._forget(tenant_id, {secret_id})
                raise
            if before is not None:
                await self._forget(tenant_id, {before.id})
            return secret

        return await self._run(command())

    async def remove_secret(self, *, model_id: str, name: str, actor: str) -> None:
        """Remove a secret and destroy the key of its value. Raises NotFound."""

        async def command() -> None:
            model = self._model(model_id)
            secret = self.snapshot.secret(model_id, name)
            if secret is None:
                raise NotFound("There is no such secret.")
            event = SecretRemoved(model_id=model_id, name=name)
            await self._commit(event, model.tenant_id, actor, model_id)
            await self._forget(model.tenant_id, {secret.id})

        await self._run(command())

    def secret_value(self, secret: Secret) -> bytes:
        """What a secret is; for a sandbox of its model only.

        Raises:
            NotFound: it was replaced or removed meanwhile, or its tenant was.
            StoreCorrupt: it is damaged.
        """
        return secrets.value(self._keyring, secret)

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

    async def _forget(self, tenant_id: str, secret_ids: set[str]) -> None:
        """Destroy the keys of secrets; what a crash leaves is destroyed at the next start."""
        if secret_ids:
            await asyncio.to_thread(self._keyring.drop_object_keys, tenant_id, secret_ids)

    async def _run(self, command: Coroutine[Any, Any, T]) -> T:
        async def locked() -> T:
            async with self.lock:
                return await command

        task = asyncio.create_task(locked())
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and isinstance(task.exception(), ApplianceError):
            return  # already told to the caller, or the caller is gone

    async def _commit(
        self, events: Event | list[Event], tenant_id: str, actor: str, obj: str
    ) -> None:
        many = events if isinstance(events, list) else [events]
        entries = await self._ledger.append(*many, tenant_id=tenant_id, actor=actor, object=obj)
        tables = Tables.of(self.snapshot)
        for event, entry in zip(many, entries, strict=True):
            tables.apply(event, entry.seq, entry.time_ns)
        self.snapshot = tables.freeze()
        self.changes += len(many)

    def _tenant(self, tenant_id: str) -> Tenant:
        tenant = self.snapshot.tenant_by_id(tenant_id)
        if tenant is None:
            raise NotFound("There is no such tenant.")
        return tenant

    def _model(self, model_id: str) -> Model:
        model = self.snapshot.model_by_id(model_id)
        if model is None or model.removed_ns:
            raise NotFound("There is no such model.")
        return model

    @staticmethod
    def _new_model(tenant_id: str, name: str, description: str, actor: str) -> Model:
        return Model(
            id=clock.new_id("mod"),
            tenant_id=tenant_id,
            name=name,
            description=description,
            created_ns=clock.now_ns(),
            created_by=actor,
        )

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
