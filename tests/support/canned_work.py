"""Rows of work without a caller who waits, as the server would send them: jobs to samples.

Owns: one row a name in every state there is, and the documents of one of each.
Never: answers a request (``canned_world`` does).
"""

from __future__ import annotations

from typing import Any

AT = "2026-01-31T12:00:00.000Z"
SOON = "2026-01-31T14:30:00.000Z"
STATUSES = ("processing", "succeeded", "failed", "canceled", "starting")


def work_rows(names: list[str], many: int) -> dict[str, list[dict[str, Any]]]:
    """The six views, a row per name."""
    each = list(enumerate(names))
    return {
        "jobs": [job(at, name, many) for at, name in each],
        "batches": [batch(at, name, many) for at, name in each],
        "schedules": [schedule(at, name) for at, name in each],
        "webhooks": [webhook(at, name, many) for at, name in each],
        "deliveries": [delivery(at, name, many) for at, name in each],
        "comparisons": [comparison(at, name, many) for at, name in each],
        "samples": [sample(at, name, many) for at, name in each],
    }


def _made(at: int, name: str, kind: str) -> dict[str, Any]:
    status = STATUSES[at % 5]
    return {
        "id": f"{kind}_{at:013d}",
        "status": status,
        "tenant": name,
        "created_at": AT,
        "created_by": f"key:{name}",
        "started_at": None if status == "starting" else AT,
        "completed_at": SOON if status in ("succeeded", "failed", "canceled") else None,
        "code": "model-raised" if status == "failed" else "",
    }


def job(at: int, name: str, many: int) -> dict[str, Any]:
    """A row of view ``jobs``."""
    made = _made(at, name, "job")
    is_over = made["status"] == "succeeded"
    return made | {
        "model": name,
        "version": 7,
        "input_type": "application/json",
        "input_bytes": many,
        "output_type": "application/json" if is_over else None,
        "output_bytes": many if is_over else None,
        "metrics": {"queue_ms": 12, "run_ms": 4711, "attempts": 1, "cold": False},
        "audit_seq": 12 if is_over else None,
        "idempotency_key": None,
        "webhook": None,
        "scheduled_by": f"sch_{at:013d}" if at % 2 else None,
    }


def batch(at: int, name: str, many: int) -> dict[str, Any]:
    """A row of view ``batches``."""
    made = _made(at, name, "batch")
    rows = max(many, 10)
    done = {"succeeded": rows, "starting": 0}.get(made["status"], rows // 2)
    return made | {
        "model": name,
        "version": 7,
        "source": "csv",
        "into": "parquet",
        "form": "records",
        "chunk_rows": 1000,
        "carry": True,
        "taken_from": f"in:{name}" if at % 2 else None,
        "put_into": f"out:{name}" if at % 2 else None,
        "scheduled_by": None,
        "webhook": None,
        "on_error": "null",
        "columns": [{"name": "age", "type": "BIGINT"}, {"name": name, "type": "VARCHAR"}],
        "rows": rows,
        "rows_done": done,
        "rows_failed": at % 3,
        "rows_per_s": 722.0 if made["status"] == "processing" else 0.0,
        "eta_s": 95.0 if made["status"] == "processing" else None,
        "input_bytes": many,
    }


def schedule(at: int, name: str) -> dict[str, Any]:
    """A row of view ``schedules``."""
    run = {"due_at": AT, "code": ("started", "overlap", "quota-exceeded")[at % 3], "count": 1}
    return {
        "id": f"sch_{at:013d}",
        "tenant": name,
        "model": name,
        "target": ("", "@live", ":3")[at % 3],
        "cron": "0 2 * * mon-fri",
        "timezone": "Europe/Berlin",
        "state": ("active", "paused", "stopped: key-revoked")[at % 3],
        "next": [] if at % 3 else [SOON, SOON, SOON],
        "last": run | {"manual": False, "job": "job_0123456789abc", "status": "succeeded"}
        if at != 1
        else None,
        "input_type": "application/json",
        "input_bytes": 26,
        "batch": {"taken_from": f"lake/{name}", "put_into": None} if at % 2 else None,
        "catch_up": "one",
        "overlap": False,
        "repeatable": False,
        "run_as": "key:abc",
        "created_at": AT,
        "created_by": f"key:{name}",
    }


def webhook(at: int, name: str, many: int) -> dict[str, Any]:
    """A row of view ``webhooks``."""
    return {
        "id": f"wh_{at:013d}",
        "tenant": name,
        "url": "" if at == 2 else f"https://ci.example.com/{name}",
        "events": [] if at == 2 else ["job.completed", "route.aborted"],
        "with_output": bool(at % 2),
        "state": ("on", "off: failing", "on")[at % 3],
        "failing_since": AT if at % 3 == 1 else None,
        "waiting": many,
        "secrets": 1,
        "created_at": AT,
        "created_by": f"key:{name}",
    }


def delivery(at: int, name: str, many: int) -> dict[str, Any]:
    """A row of view ``deliveries``."""
    code, status = (("egress-denied", None), ("http-500", 500), ("ok", 204))[at % 3]
    state = ("waiting", "failed", "delivered")[at % 3]
    return {
        "id": f"msg_{at:026d}",
        "type": "job.completed",
        "state": state,
        "attempts": min(many, 99),
        "code": code,
        "status": status,
        "to": f"https://{name}",
        "job": f"job_{at:013d}" if at % 2 else None,
        "queued_at": AT,
        "next_at": SOON if state == "waiting" else None,
        "ended_at": None if state == "waiting" else AT,
    }


def comparison(at: int, name: str, many: int) -> dict[str, Any]:
    """A row of view ``comparisons``."""
    made = _made(at, name, "cmp")
    total = 2 * max(many, 10)
    return made | {
        "source": ("data", "replay")[at % 2],
        "targets": [
            {"model": name, "version": version, "form": "rows"} for version in (3, 4)[: 2 - at % 2]
        ],
        "rows": max(many, 10),
        "done": {"succeeded": total, "starting": 0}.get(made["status"], total // 2),
        "total": total,
    }


def sample(at: int, name: str, many: int) -> dict[str, Any]:
    """A row of view ``samples``."""
    is_on = at % 2 == 0
    return {
        "tenant": name,
        "model": name,
        "percent": 5.0 if is_on else 0.0,
        "days": 7 if is_on else None,
        "count_max": 1000 if is_on else None,
        "bytes_max": 64 * 1024 * 1024 if is_on else None,
        "set_at": AT if is_on else None,
        "set_by": f"key:{name}" if is_on else None,
        "kept": many,
        "kept_bytes": many * 1000,
        "oldest_at": AT,
        "dropped": at,
    }


def documents(name: str, many: int) -> dict[str, dict[str, Any]]:
    """What the pages of one thing fetch, by path: of the tenant ``risk``, with this in it."""
    problem = {"title": "Model raised", "code": "model-raised", "detail": name, "hint": name}
    printed = {"stderr": [name, "second line"]}
    run = {"due_at": AT, "code": "overlap", "count": 3, "manual": True, "job": "job_0123456789abc"}
    return {
        "/api/v1/jobs/risk/job_1": job(1, name, many)
        | {"tenant": "risk", "error": problem | printed, "output": {"answer": name}}
        | {"urls": {"output": "/api/v1/jobs/risk/job_1/output"}},
        "/api/v1/batches/risk/batch_1": batch(1, name, many) | {"tenant": "risk", "error": problem},
        "/api/v1/schedules/risk/sch_1": schedule(0, name) | {"tenant": "risk", "runs": [run, run]},
        "/api/v1/comparisons/risk/cmp_1": comparison(6, name, many)
        | {"tenant": "risk", "status": "succeeded", "error": None, "replay": None}
        | {"report": report(name, many)},
        "/api/v1/comparisons/risk/cmp_2": comparison(1, name, many)
        | {"tenant": "risk", "status": "succeeded", "error": None, "report": None}
        | {"replay": replay(name, many)},
    }


def _latency(many: int) -> dict[str, Any]:
    return {"calls": many, "failed_calls": 0, "p50_ms": 1.5, "p95_ms": 38.72, "row_ms": None}


def report(name: str, many: int) -> dict[str, Any]:
    """A report of two versions that differ in two rows."""
    cost = {"compute_s": 1.25, "sandbox_s": 2.5, "cold_starts": 1}
    sure = {"value": name, "probabilities": [0.1, 0.9]}
    return {
        "task": "classification",
        "is_task_inferred": True,
        "rows": many,
        "columns": ["age", name],
        "label": name,
        "targets": [
            {
                "model": name,
                "version": version,
                "rows": many,
                "failed_rows": failed,
                "metrics": {"accuracy": 0.9123456, "roc_auc": None},
                "latency": _latency(many),
                "cost": cost,
                "problems": {"model-raised": failed} if failed else {},
            }
            for version, failed in ((3, 0), (4, 2))
        ],
        "agreement": [
            {"a": 0, "b": 1, "rows": many, "agree": 4, "share": 0.57, "mean_difference": None}
        ],
        "worst": [
            {
                "row": 17,
                "spread": 1.8,
                "label": name,
                "answers": [sure, "no"],
                "input": {"age": 41},
            },
            {"row": 3, "spread": 1.0, "label": None, "answers": [name, None], "input": None},
        ],
    }


def replay(name: str, many: int) -> dict[str, Any]:
    """A report of kept calls to another version."""
    return {
        "model": name,
        "against": 4,
        "calls": 10,
        "equal": 6,
        "close": 1,
        "different": 2,
        "failed": 1,
        "gone": 1,
        "problems": {"model-raised": 1},
        "versions": {"3": 10},
        "latency_then": _latency(many),
        "latency_now": _latency(many),
        "latency_ratio": 1.0512,
        "worst": [
            {
                "call_id": "req_0123456789abc",
                "at": AT,
                "version": 3,
                "distance": 0.25,
                "input": {"age": 41},
                "then": {"score": 0.5},
                "now": name,
            }
        ],
    }
