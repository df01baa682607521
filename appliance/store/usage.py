"""Usage: what each version did in each hour, from the outcomes in the ledger.

Owns: the rollup question and its row.
Never: counts anything itself; every number comes from an audited outcome.
Read next: ``queries``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

HOUR_NS = 3_600 * 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRow:
    """One version in one hour; ``hour_ns`` is the hour's start, times are in microseconds."""

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


def usage_sql(since_ns: int, until_ns: int, tenant_id: str | None) -> tuple[str, list[Any]]:
    """The question for calls that ended in [since, until), and its parameters."""
    sql = """
        SELECT tenant_id, model_id, number, time_ns // ? * ? AS hour_ns, count(*),
               count(*) FILTER (code <> 'ok'), sum(compute_us)::BIGINT, sum(total_us)::BIGINT,
               coalesce(sum(request_bytes), 0)::BIGINT, sum(reply_bytes)::BIGINT
        FROM call WHERE time_ns >= ? AND time_ns < ?"""
    parameters: list[Any] = [HOUR_NS, HOUR_NS, since_ns, until_ns]
    if tenant_id is not None:
        sql += " AND tenant_id = ?"
        parameters.append(tenant_id)
    return sql + " GROUP BY ALL ORDER BY hour_ns, tenant_id, model_id, number", parameters


def usage_row(row: tuple[Any, ...]) -> UsageRow:
    """The row of one answer tuple."""
    names = UsageRow.__dataclass_fields__
    return UsageRow(**dict(zip(names, row, strict=True)))
