"""Skeleton."""

from __future__ import annotations

from appliance.records import Alias, ApiKey, Artifact, Manifest, Model, Tenant, Version


class Snapshot:
    """Immutable registry state."""

    seq: int

    def tenants(self) -> tuple[Tenant, ...]:
        raise NotImplementedError

    def tenant(self, name: str) -> Tenant | None:
        raise NotImplementedError

    def tenant_by_id(self, tenant_id: str) -> Tenant | None:
        raise NotImplementedError

    def keys(self, tenant_id: str | None = None) -> tuple[ApiKey, ...]:
        raise NotImplementedError

    def key(self, key_id: str) -> ApiKey | None:
        raise NotImplementedError

    def models(self, tenant_id: str | None = None) -> tuple[Model, ...]:
        raise NotImplementedError

    def model(self, tenant_id: str, name: str) -> Model | None:
        raise NotImplementedError

    def model_by_id(self, model_id: str) -> Model | None:
        raise NotImplementedError

    def versions(self, model_id: str) -> tuple[Version, ...]:
        raise NotImplementedError

    def version(self, model_id: str, number: int) -> Version | None:
        raise NotImplementedError

    def newest(self, model_id: str) -> Version | None:
        raise NotImplementedError

    def aliases(self, model_id: str) -> tuple[Alias, ...]:
        raise NotImplementedError

    def alias(self, model_id: str, name: str) -> Alias | None:
        raise NotImplementedError


class Registry:
    """Commands."""

    snapshot: Snapshot

    async def create_tenant(self, *, name: str, actor: str) -> Tenant:
        raise NotImplementedError

    async def remove_tenant(self, *, tenant_id: str, actor: str) -> None:
        raise NotImplementedError

    async def create_key(self, *, key: ApiKey, actor: str) -> ApiKey:
        raise NotImplementedError

    async def revoke_key(self, *, key_id: str, actor: str) -> ApiKey:
        raise NotImplementedError

    async def create_model(
        self, *, tenant_id: str, name: str, description: str = "", actor: str
    ) -> Model:
        raise NotImplementedError

    async def remove_model(self, *, model_id: str, actor: str) -> None:
        raise NotImplementedError

    async def register_version(
        self,
        *,
        tenant_id: str,
        model_name: str,
        manifest: Manifest,
        artifact: Artifact,
        runtime_digest: str,
        deps_key: str = "",
        actor: str,
    ) -> Version:
        raise NotImplementedError

    async def retire_version(self, *, model_id: str, number: int, actor: str) -> Version:
        raise NotImplementedError

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
        raise NotImplementedError

    async def remove_alias(self, *, model_id: str, name: str, actor: str) -> None:
        raise NotImplementedError
