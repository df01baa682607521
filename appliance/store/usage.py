"""Skeleton."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRow:
    """Usage of one version in one hour."""

    tenant_id: str
    model_id: str
    number: int
    hour_ns: int
    calls: int
    errors: int
    compute_us: int
    total_us: int
    request_bytes: int
    reply_bytes: int
