"""Skeleton."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.records import Entry
from appliance.store.usage import UsageRow


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStats:
    """Calls of one model."""

    tenant_id: str
    model_id: str
    calls: int
    errors: int
    p50_ms: float
    p95_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MinuteStats:
    """Calls of one minute."""

    minute_ns: int
    calls: int
    errors: int
    p95_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CallStats:
    """Calls of the last minutes."""

    calls: int
    errors: int
    p50_ms: float
    p95_ms: float
    per_model: tuple[ModelStats, ...]
    series: tuple[MinuteStats, ...]


class Queries:
    """Questions to the projection."""

    applied_seq: int

    async def audit(
        self,
        *,
        tenant_id: str | None = None,
        kind: str | None = None,
        actor: str | None = None,
        model_id: str | None = None,
        after_seq: int | None = None,
        before_seq: int | None = None,
        limit: int = 100,
    ) -> list[Entry]:
        raise NotImplementedError

    async def entry(self, seq: int) -> Entry | None:
        raise NotImplementedError

    async def open_intents(self, boot: str) -> list[Entry]:
        raise NotImplementedError

    async def call_stats(self, *, tenant_id: str | None = None, minutes: int = 15) -> CallStats:
        raise NotImplementedError

    async def usage(
        self, *, since_ns: int, until_ns: int, tenant_id: str | None = None
    ) -> list[UsageRow]:
        raise NotImplementedError

    async def wait(self, seq: int, timeout_s: float) -> bool:
        raise NotImplementedError
