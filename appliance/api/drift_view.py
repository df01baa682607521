"""The console's view of drift: one row per version that has a baseline, and what alerts say of it.

Owns: the rows of view ``drift`` and the alert of open breaches.
Never: computes a score; it shows the last judgement, at most a period old.
Read next: ``snapshot`` (serves it), ``native.drift`` (a version's scores in full).
"""

from __future__ import annotations

from typing import Any

from appliance import clock
from appliance.api.dispatch import Context
from appliance.records import Baseline, Breach

Rows = list[dict[str, Any]]
_ROWS_MAX = 500
_NAMED_MAX = 3


async def drift_view(context: Context) -> tuple[Rows, dict[str, Any]]:
    """A row per version with a baseline, those with breaches first."""
    snapshot = context.snapshot
    found = [
        (one, snapshot.breaches(one.model_id, one.number), name)
        for one in snapshot.baselines()
        if (name := _name(context, one)) is not None
    ]
    found.sort(key=lambda each: (-len(each[1]), each[2], each[0].number))
    return [_row(context, *each) for each in found[:_ROWS_MAX]], {"total": len(found)}


def drift_alert(context: Context) -> Rows:
    """The alert of open breaches, as a check's row; nothing where there are none."""
    snapshot = context.snapshot
    found = [
        (name, one.number, breach)
        for one in snapshot.baselines()
        if (name := _name(context, one)) is not None
        for breach in snapshot.breaches(one.model_id, one.number)
    ]
    if not found:
        return []
    found.sort(key=lambda each: each[2].since_ns)
    (tenant, model), number, _breach = found[0]
    words = [
        f"{name[0]}/{name[1]} v{number} {breach.feature} {breach.statistic} "
        f"{breach.value:.2f} > {breach.threshold:g}"
        for name, number, breach in found[:_NAMED_MAX]
    ]
    more = len(found) - len(words)
    return [
        {
            "name": "drift",
            "title": "Drift",
            "state": "warn",
            "detail": "; ".join(words) + (f"; {more} more" if more else ""),
            "remedy": f"appliance drift show {tenant}/{model}:{number}",
            "checked_at": clock.text_from_ns(clock.now_ns() // 60_000_000_000 * 60_000_000_000),
        }
    ]


def _name(context: Context, one: Baseline) -> tuple[str, str] | None:
    tenant = context.snapshot.tenant_by_id(one.tenant_id)
    model = context.snapshot.model_by_id(one.model_id)
    version = context.snapshot.version(one.model_id, one.number)
    if tenant is None or model is None or version is None or version.retired_ns:
        return None
    return tenant.name, model.name


def _row(
    context: Context, one: Baseline, breaches: tuple[Breach, ...], name: tuple[str, str]
) -> dict[str, Any]:
    judged = context.services.watch.judged(one.model_id, one.number)
    limited = [score for score in judged.scores if score.threshold]
    worst = max(limited, key=lambda score: score.value / score.threshold, default=None)
    is_few = judged.rows < one.thresholds.rows_min
    oldest = min((breach.since_ns for breach in breaches), default=0)
    return {
        "tenant": name[0],
        "model": name[1],
        "version": one.number,
        "state": "warn" if breaches else "off" if is_few else "ok",
        "rows": judged.rows,
        "window_s": one.thresholds.window_s,
        "columns": one.inputs + one.outputs,
        "breaches": len(breaches),
        "since": clock.text_from_ns(oldest) if oldest else None,
        "feature": worst.feature if worst else "",
        "statistic": worst.statistic if worst else "",
        "value": worst.value if worst else None,
        "threshold": worst.threshold if worst else None,
        "source": one.source,
        "baseline_rows": one.rows,
        "revision": one.revision,
        "set_at": clock.text_from_ns(one.set_ns),
        "set_by": one.set_by,
    }
