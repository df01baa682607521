"""Rows of every view as the server would send them, for the console's tests.

Owns: how a world that is empty, small, full, long-winded or foreign looks.
Never: answers a request (``canned_world`` does).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from canned_drift import drift_rows
from canned_runtimes import beside_runtimes, runtime_rows
from canned_work import work_rows

LONG = "a-very-long-name-that-does-not-fit-anywhere-at-eighty-columns-xx"
T0 = "2026-01-31T12:00:00.123Z"
MANY = 150
Views = dict[str, list[dict[str, Any]]]


def views_of(kind: str) -> tuple[Views, dict[str, dict[str, Any]]]:
    """Rows and extras of every view: empty, one, many (more than fit), long, foreign."""
    n = {"empty": 0, "one": 1, "many": MANY}.get(kind, 3)
    name: Callable[[int], str] = {
        "long": lambda i: f"{LONG}{i}",
        "foreign": lambda i: ("データ分析", "größe-ß\u202e[bold]", "émoji👩\u200d🔬\x1b[31m")[i],
    }.get(kind, lambda i: "risk" if i == 0 else f"name-{i:03d}")
    many = 48_213_944_000 if kind == "long" else 7
    views: Views = {
        "dashboard": [
            {
                "tenant": name(i),
                "model": name(i) if kind in ("long", "foreign") else f"fraud{i}",
                "live": i or None,
                "calls": many - i,
                "errors": 1,
                "p95_ms": 38.7 if i else None,
                "runtime": "python3.11",
            }
            for i in range(min(n, 50))
        ],
        "tenants": [
            {
                "id": f"ten_{i:013d}",
                "name": name(i),
                "isolation": ("standard", "gvisor")[i % 2],
                "models": i,
                "keys": i * 3,
                "calls_15m": many,
                "storage_bytes": many * 1000,
                "created_at": T0,
                "created_by": "uid:0",
            }
            for i in range(n)
        ],
        "keys": [
            {
                "id": f"key_{i:013d}",
                "tenant": name(i) if i % 3 else "",
                "name": name(i),
                "role": ("owner", "caller", "auditor")[i % 3],
                "scopes": ["fraud"],
                "state": ("active", "expired", "revoked")[i % 3],
                "created_at": T0,
                "created_by": "uid:0",
                "expires_at": "2026-05-01T00:00:00Z",
                "last_used_at": None if i % 2 else T0,
            }
            for i in range(n)
        ],
        "models": [
            {
                "tenant": name(i),
                "model": name(i) if kind in ("long", "foreign") else f"fraud{i}",
                "description": name(i),
                "versions": 3,
                "newest": 3,
                "live": 2,
                "runtime": "python3.11",
                "size_bytes": many * 1000,
                "takes": ["age", name(i)],
                "gives": ["score"],
                "tags": {"team": name(i)},
                "calls_15m": many,
                "errors_15m": 2,
                "p95_ms": 38.7,
                "created_at": T0,
                "created_by": "key:abc",
            }
            for i in range(n)
        ],
        "versions": [
            {
                "tenant": "risk",
                "model": "fraud",
                "version": n - i,
                "state": "retired" if i == 2 else "ready",
                "runtime": "python3.11",
                "entry": "model:Model",
                "digest": "sha256:" + "ab" * 32,
                "size_bytes": many * 1000,
                "aliases": ["live", name(i)] if i == 1 or n == 1 else [],
                "calls_15m": many,
                "errors_15m": 0,
                "p95_ms": None,
                "warm": 2 if i == 1 else 0,
                "warm_ready": 1 if i == 1 else 0,
                "created_at": T0,
                "created_by": name(i),
            }
            for i in range(n)
        ],
        "sandboxes": [
            {
                "id": f"sbx_{i:013d}",
                "tenant": name(i),
                "model": name(i),
                "version": 7,
                "state": "ready",
                "pid": 4242 + i,
                "created_at": T0,
                "last_used_at": T0,
                "calls": many,
                "rss_bytes": 123_456_789,
                "memory_bytes": 536_870_912,
                "cpu_ms": 61_000,
                "gpus": ["0", "1:0"] if i % 2 else [],
                "gpu_memory_bytes": many,
            }
            for i in range(n)
        ],
        "gpus": [
            {
                "id": f"GPU-{i:032x}",
                "index": f"{i}:0" if i % 2 else str(i),
                "name": name(i),
                "vendor": "nvidia.com",
                "state": ("free", "held", "shared")[i % 3],
                "tenant": name(i) if i % 3 else "",
                "driver": "580.159.04",
                "memory_bytes": 85_899_345_920 if i % 4 else None,
                "allocated_bytes": many,
                "used_bytes": many if i % 2 else None,
                "busy_percent": 100 if i % 2 else None,
            }
            for i in range(n)
        ],
        "audit": [
            {
                "seq": n - i,
                "time": T0,
                "kind": "call.outcome" if i % 2 else "tenant.created",
                "tenant": name(i),
                "actor": f"key:{name(i)}",
                "object": name(i),
                "outcome": "ok" if i % 2 else "",
                "leaf": f"{i:064x}",
            }
            for i in range(n)
        ],
        "egress": [
            {
                "id": f"eg_{i:013d}",
                "tenant": name(i),
                "position": i + 1,
                "model": "*" if i % 2 else name(i),
                "action": ("allow", "deny")[i % 2],
                "host": "db.example.test" if kind != "long" else LONG,
                "ports": ["5432", "8000-8100"] if i % 3 else [],
                "protocol": "any",
                "reason": name(i),
                "note": "" if kind != "long" else LONG,
                "created_at": T0,
                "created_by": "uid:0",
            }
            for i in range(n)
        ],
        "routes": [
            {
                "tenant": name(i),
                "model": name(i),
                "version": i + 1,
                "role": ("baseline", "canary", "shadow")[i % 3],
                "percent": (90.0, 9.99, None)[i % 3],
                "calls": many,
                "error_percent": 0.25,
                "p95_ms": 38.7 if i % 2 else None,
                "detail": "4711 equal, 12 close, 3 different" if i % 3 == 2 else "",
                "arms": [{"version": 1, "percent": 90.0}, {"version": 2, "percent": 10.0}],
                "sticky": "header:x-user",
                "shadows": [3],
                "canary": {
                    "version": 2,
                    "against": 1,
                    "error_rate_max": 0.01,
                    "latency_ratio_max": 1.5,
                    "action": "abort",
                },
                "against": 1,
                "complaint": name(i) if kind == "long" else "",
                "state": ("active", "held", "aborted")[i % 3],
                "revision": 41,
                "reason": name(i),
                "set_at": T0,
                "set_by": "key:abc",
            }
            for i in range(n)
        ],
        "drift": drift_rows([name(i) for i in range(n)], many),
        "runtimes": runtime_rows([name(i) for i in range(n)], many),
        **work_rows([name(i) for i in range(n)], many),
        "health": [
            {
                "name": f"check-{i}",
                "title": "Rootless Podman" if kind != "long" else LONG,
                "state": ("ok", "warn", "fail", "off")[i % 4],
                "detail": name(i) + (" and more words" * 9 if kind == "long" else ""),
                "remedy": "" if i % 4 in (0, 3) else f"apt install {name(i)}",
                "checked_at": T0,
            }
            for i in range(min(n, 12))
        ],
    }
    health = [r for r in views["health"] if r["state"] in ("warn", "fail")]
    extras: dict[str, dict[str, Any]] = {
        "deliveries": {"webhook": views["webhooks"][0] if n else None},
        "dashboard": {
            "totals": {
                **dict.fromkeys(("tenants", "models", "versions", "keys", "sandboxes"), n),
                "sandboxes_max": 8,
                "gpus": n,
                "gpus_held": n // 2,
            },
            "calls": {"minutes": 15, "calls": many, "errors": 1, "p50_ms": 1.0, "p95_ms": 38.7},
            "series": [{"at": T0, "calls": i, "errors": 0, "p95_ms": i / 2} for i in range(15)],
            "problems": health,
            "recent": views["audit"][:5],
        },
        "sandboxes": {"pool": {"running": n, "max": 8, "waiting": 2, "warm": 2, "warm_ready": 1}},
        "gpus": {"gpus": n, "gpus_held": n // 2, "gpu_calls_waiting": n},
        "egress": {
            "open": many,
            "decisions": [
                {
                    "seq": i,
                    "time": T0,
                    "kind": ("egress.denied", "egress.opened", "egress.passed")[i % 3],
                    "tenant": name(i),
                    "model": name(i),
                    "to": "db.example.test:5432",
                    "protocol": "tcp",
                    "rule": "",
                    "count": 1,
                    "detail": "default",
                }
                for i in range(min(n, 20))
            ],
        },
        "runtimes": beside_runtimes([name(i) for i in range(min(n, 20))], many),
        "audit": {"head": {"size": n, "root": "cd" * 32, "time": T0}},
        "versions": {
            "model": {
                "tenant": "risk",
                "model": "fraud",
                "description": name(0) if n else "",
                "created_at": T0,
                "created_by": "key:abc",
            },
            "aliases": [
                {
                    "name": alias,
                    "version": 1,
                    "revision": 4,
                    "reason": name(0),
                    "set_at": T0,
                    "set_by": "uid:0",
                }
                for alias in (("live", "champion") if n else ())
            ],
        },
    }
    return views, extras
