"""Questions to the projection: audit search, open intents, call statistics, usage.

Owns: the SQL of every question, beside the function that asks it.
Never: writes, or shows an entry from DuckDB: rows only say where in the ledger an entry is.
Read next: ``projection`` (the tables), ``usage``.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from appliance import clock
from appliance.errors import GuestError, InputInvalid, problem_classes
from appliance.records import Entry
from appliance.store.ledger import Ledger
from appliance.store.projection import Projection
from appliance.store.rows import actor_tag
from appliance.store.usage import UsageRow, usage_row, usage_sql
from appliance.store.verify import Frame

_MINUTE_NS = 60 * 1_000_000_000
_LIMIT_MAX = 10_000
_FRAME_CACHE = 64
_CATCH_UP_S = 300.0
_FAULTS = sorted(cls.slug for cls in problem_classes() if issubclass(cls, GuestError))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStats:
    """Calls of one model; percentiles in milliseconds of the whole call."""

    tenant_id: str
    model_id: str
    calls: int
    errors: int
    p50_ms: float
    p95_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionStats:
    """Every call of one version so far; times are sums in microseconds.

    ``ok_us`` is the part of ``total_us`` that calls without an error took; ``last_ns`` is when the
    last one ended. ``executions`` is how often the model was called for those without an error,
    where one call of it may have answered several; ``rows`` is how many rows they had, where known.
    """

    model_id: str
    number: int
    calls: int
    errors: int
    total_us: int
    ok_us: int
    queue_us: int
    compute_us: int
    last_ns: int
    executions: int
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmStats:
    """Calls that a route sent to one version, and what was reported of their answers.

    ``calls`` are those that say something about the version: answered, or failed by its fault.
    Times are of answered calls, in microseconds from having a sandbox on; ``took_variance`` and
    ``metric_variance`` are sample variances.
    """

    number: int
    calls: int = 0
    errors: int = 0
    took_mean: float = 0.0
    took_variance: float = 0.0
    took_p50: float = 0.0
    took_p95: float = 0.0
    metrics: int = 0
    metric_mean: float = 0.0
    metric_variance: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowStats:
    """What a shadow did: how its replies compare, how often it failed, its 95th percentile.

    ``missed`` calls it did not get because no sandbox was to spare.
    """

    number: int
    calls: int = 0
    equal: int = 0
    close: int = 0
    different: int = 0
    failed: int = 0
    missed: int = 0
    took_p95: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MinuteStats:
    """Calls that ended in one minute; ``minute_ns`` is its start."""

    minute_ns: int
    calls: int
    errors: int
    p95_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CallStats:
    """Calls of the last minutes, busiest model first, minutes oldest first (empty ones too)."""

    calls: int
    errors: int
    p50_ms: float
    p95_ms: float
    per_model: tuple[ModelStats, ...]
    series: tuple[MinuteStats, ...]


class Queries:
    """Asynchronous questions; at most two run at once."""

    def __init__(self, projection: Projection, ledger: Ledger, key: bytes) -> None:
        """``key`` is the projection key, for finding actors."""
        self._projection = projection
        self._ledger = ledger
        self._key = key
        self._gate = asyncio.Semaphore(2)

    @property
    def applied_seq(self) -> int:
        """The newest entry that questions see."""
        return self._projection.applied_seq

    async def wait(self, seq: int, timeout_s: float = 5.0) -> bool:
        """Wait until questions see entry ``seq``; False if that takes longer."""
        if self.applied_seq >= seq:
            return True
        return await asyncio.to_thread(self._projection.wait, seq, timeout_s)

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
        """Entries that match all that is given.

        Args:
            tenant_id: of this tenant (``""``: of none).
            kind: of this kind, or of a family: ``model.*``.
            actor: by this actor.
            model_id: about this model.
            after_seq: newer than this, oldest first; otherwise newest first.
            before_seq: older than this.
            limit: at most this many, 1 to 10,000.

        Raises:
            InputInvalid: the limit is out of bounds.
            StoreCorrupt: the ledger is damaged where an entry stands.
        """
        if not 1 <= limit <= _LIMIT_MAX:
            raise InputInvalid(f"limit must be 1 to {_LIMIT_MAX}.")
        where, parameters = ["true"], []
        tag = actor_tag(self._key, actor) if actor is not None else None
        for clause, value in (
            ("tenant_id = ?", tenant_id),
            ("starts_with(kind, ?)" if kind and kind.endswith("*") else "kind = ?", kind),
            ("actor = ?", tag),
            ("model_id = ?", model_id),
            ("seq > ?", after_seq),
            ("seq < ?", before_seq),
        ):
            if value is not None:
                where.append(clause)
                parameters.append(value.rstrip("*") if value is kind and kind else value)
        order = "ASC" if after_seq is not None else "DESC"
        sql = (
            f"SELECT segment, position, place FROM entry WHERE {' AND '.join(where)} "  # noqa: S608
            f"ORDER BY seq {order} LIMIT {int(limit)}"
        )
        return await self._entries(sql, parameters)

    async def entry(self, seq: int) -> Entry | None:
        """One entry, straight from the ledger; ``None`` if there is none of this number."""
        if not 1 <= seq <= self._ledger.position.size:
            return None
        found = await asyncio.to_thread(self._ledger.read, seq - 1, 1)
        return found[0] if found else None

    async def open_intents(self, boot: str) -> list[Entry]:
        """Call intents without an outcome from boots other than ``boot``, oldest first.

        Waits until the projection knows everything that was durable when it was asked.
        """
        await self.wait(self._ledger.position.size, _CATCH_UP_S)
        return await self._entries(
            "SELECT entry.segment, entry.position, entry.place FROM intent "
            "JOIN entry USING (seq) WHERE intent.boot <> ? ORDER BY seq",
            [boot],
        )

    async def call_stats(self, *, tenant_id: str | None = None, minutes: int = 15) -> CallStats:
        """Calls that ended in the last ``minutes`` (1 to 1440); shadows are not among them."""
        minutes = min(max(minutes, 1), 1440)
        last = clock.now_ns() // _MINUTE_NS * _MINUTE_NS
        first = last - (minutes - 1) * _MINUTE_NS
        where, parameters = "time_ns >= ? AND shadow_of IS NULL", [first]
        if tenant_id is not None:
            where += " AND tenant_id = ?"
            parameters.append(tenant_id)  # type: ignore[arg-type]
        figures = (
            "count(*), count(*) FILTER (code <> 'ok'), "
            "coalesce(quantile_cont(total_us, 0.5) / 1000, 0), "
            "coalesce(quantile_cont(total_us, 0.95) / 1000, 0)"
        )
        rows = await self._ask(
            f"SELECT tenant_id, model_id, time_ns // {_MINUTE_NS} * {_MINUTE_NS} AS minute, "  # noqa: S608
            f"{figures} FROM call WHERE {where} "
            "GROUP BY GROUPING SETS ((), (tenant_id, model_id), (minute))",
            parameters,
        )
        return _stats(rows, range(first, last + 1, _MINUTE_NS))

    async def version_stats(self, *, tenant_id: str) -> list[VersionStats]:
        """Calls of each of a tenant's versions that was ever called, by model and number."""
        rows = await self._ask(
            "SELECT model_id, number, count(*), count(*) FILTER (code <> 'ok'), "
            "sum(total_us)::BIGINT, coalesce(sum(total_us) FILTER (code = 'ok'), 0)::BIGINT, "
            "sum(queue_us)::BIGINT, sum(compute_us)::BIGINT, max(time_ns), "
            "coalesce(round(sum(1 / coalesce(merged_calls, 1)) FILTER (code = 'ok')), 0)::BIGINT, "
            "coalesce(sum(own_rows) FILTER (code = 'ok'), 0)::BIGINT FROM call "
            "WHERE tenant_id = ? GROUP BY model_id, number ORDER BY model_id, number",
            [tenant_id],
        )
        names = VersionStats.__slots__
        return [VersionStats(**dict(zip(names, row, strict=True))) for row in rows]

    async def arm_stats(self, *, model_id: str, since_revision: int) -> list[ArmStats]:
        """What each version did with the calls a route sent it, since a revision of the route."""
        took = "FILTER (code = 'ok')"
        rows = await self._ask(
            "SELECT c.*, m.* EXCLUDE (number) FROM (SELECT number, count(*), "  # noqa: S608
            f"count(*) FILTER (code <> 'ok'), coalesce(avg(took) {took}, 0), "
            f"coalesce(var_samp(took) {took}, 0), coalesce(quantile_cont(took, 0.5) {took}, 0), "
            f"coalesce(quantile_cont(took, 0.95) {took}, 0) "
            "FROM (SELECT *, total_us - queue_us - load_us AS took FROM call WHERE model_id = ? "
            "AND route_revision >= ? AND shadow_of IS NULL "
            "AND (code = 'ok' OR list_contains(?::VARCHAR[], code))) GROUP BY number) c "
            "LEFT JOIN (SELECT number, count(*) AS n, avg(value) AS mean, "
            "coalesce(var_samp(value), 0) AS variance FROM (SELECT any_value(number) AS number, "
            "arg_max(value, seq) AS value FROM metric WHERE model_id = ? AND route_revision >= ? "
            "GROUP BY call_id) GROUP BY number) m USING (number) ORDER BY number",
            [model_id, since_revision, _FAULTS, model_id, since_revision],
        )
        names = ArmStats.__slots__
        return [ArmStats(**dict(zip(names, (v or 0 for v in row), strict=True))) for row in rows]

    async def shadow_stats(self, *, model_id: str, since_revision: int) -> list[ShadowStats]:
        """What each shadow did since a revision of the route."""
        rows = await self._ask(
            "SELECT number, count(*), count(*) FILTER (match = 'equal'), "
            "count(*) FILTER (match = 'close'), count(*) FILTER (match = 'different'), "
            "count(*) FILTER (list_contains(?::VARCHAR[], code)), "
            "count(*) FILTER (code <> 'ok' AND NOT list_contains(?::VARCHAR[], code)), "
            "coalesce(quantile_cont(total_us - queue_us - load_us, 0.95) FILTER (code = 'ok'), 0) "
            "FROM call WHERE model_id = ? AND route_revision >= ? AND shadow_of IS NOT NULL "
            "GROUP BY number ORDER BY number",
            [_FAULTS, _FAULTS, model_id, since_revision],
        )
        names = ShadowStats.__slots__
        return [ShadowStats(**dict(zip(names, row, strict=True))) for row in rows]

    async def routed_call(self, *, model_id: str, call_id: str) -> tuple[int, int] | None:
        """Version and route revision of a call that a route sent on; ``None`` if there was none."""
        rows = await self._ask(
            "SELECT number, route_revision FROM call WHERE model_id = ? AND call_id = ? "
            "AND shadow_of IS NULL LIMIT 1",
            [model_id, call_id],
        )
        return rows[0] if rows else None

    async def calls_with(self, call_id: str, *, limit: int = 1000) -> list[Entry]:
        """The outcomes of the calls one belongs with: above, below and beside it, as they ended.

        Args:
            call_id: of any of them; a call that neither makes nor was made by one is with none.
            limit: at most this many.
        """
        return await self._entries(
            "SELECT entry.segment, entry.position, entry.place FROM call JOIN entry USING (seq) "
            "WHERE root = (SELECT root FROM call WHERE call_id = ? AND root IS NOT NULL LIMIT 1) "
            "ORDER BY seq LIMIT ?",
            [call_id, limit],
        )

    async def usage(
        self, *, since_ns: int, until_ns: int, tenant_id: str | None = None
    ) -> list[UsageRow]:
        """Usage per hour and version of calls that ended in [since, until)."""
        rows = await self._ask(*usage_sql(since_ns, until_ns, tenant_id))
        return [usage_row(row) for row in rows]

    async def _ask(self, sql: str, parameters: list[Any]) -> list[tuple[Any, ...]]:
        async with self._gate:
            return await asyncio.to_thread(self._projection.query, sql, parameters)

    async def _entries(self, sql: str, parameters: list[Any]) -> list[Entry]:
        def work() -> list[Entry]:
            frames: dict[tuple[int, int], Frame] = {}
            entries = []
            for segment, position, place in self._projection.query(sql, parameters):
                if (segment, position) not in frames:
                    if len(frames) >= _FRAME_CACHE:
                        frames.clear()
                    frames[segment, position] = self._ledger.frame_at(segment, position)
                entries.append(self._ledger.entry(frames[segment, position].records[place]))
            return entries

        async with self._gate:
            return await asyncio.to_thread(work)


def _stats(rows: list[tuple[Any, ...]], minutes: range) -> CallStats:
    models, by_minute = [], {}
    total: tuple[Any, ...] = (0, 0, 0.0, 0.0)
    for tenant_id, model_id, minute, *figures in rows:
        calls, errors, p50_ms, p95_ms = figures
        if minute is not None:
            by_minute[minute] = (calls, errors, p95_ms)
        elif model_id is not None:
            models.append(
                ModelStats(
                    tenant_id=tenant_id,
                    model_id=model_id,
                    calls=calls,
                    errors=errors,
                    p50_ms=p50_ms,
                    p95_ms=p95_ms,
                )
            )
        else:
            total = tuple(figures)
    series = []
    for minute in minutes:
        calls, errors, p95_ms = by_minute.get(minute, (0, 0, 0.0))
        series.append(MinuteStats(minute_ns=minute, calls=calls, errors=errors, p95_ms=p95_ms))
    return CallStats(
        calls=total[0],
        errors=total[1],
        p50_ms=total[2],
        p95_ms=total[3],
        per_model=tuple(sorted(models, key=lambda m: -m.calls)),
        series=tuple(series),
    )
