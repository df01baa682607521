"""What the console's tests see of runtimes: rows, and what is beside them."""

from __future__ import annotations

from typing import Any

AT = "2026-01-31T12:00:00.123Z"


def runtime_rows(names: list[str], size: int) -> list[dict[str, Any]]:
    """A row for each name; they are used by no version, by four, by eight."""
    return [
        {
            "name": name,
            "kind": ("language", "image")[i % 2],
            "digest": f"sha256:{i:064x}",
            "built_at": AT,
            "size_bytes": size * 1000,
            "tree": "",
            "signer": "sha256:" + "ab" * 32 if i % 2 else "",
            "uses": [{"tenant": name, "model": name, "version": 7}] * (i % 3 * 4),
        }
        for i, name in enumerate(names)
    ]


def beside_runtimes(names: list[str], size: int) -> dict[str, Any]:
    """Sets, registrations and jobs that have these names in them."""
    return {
        "available": ["python3.11", "node18"],
        "sets": [
            {
                "key": f"{i:064x}",
                "runtime": "python3.11",
                "built_at": AT,
                "size_bytes": size,
                "packages": [f"{name} 1.0"],
                "uses": [{"tenant": name, "model": name, "version": 7}] * (i % 2),
            }
            for i, name in enumerate(names)
        ],
        "builds": [
            {
                "tenant": name,
                "model": name,
                "step": "build",
                "detail": f"Collecting {name}",
                "fraction": 0.37,
                "started_at": AT,
            }
            for name in names[:2]
        ],
        "jobs": [
            {
                "id": f"job_{i}",
                "verb": ("build", "verify")[i % 2],
                "name": name,
                "state": ("running", "done", "failed")[i % 3],
                "detail": name,
                "fraction": 0.5,
                "started_at": AT,
                "ended_at": AT if i % 3 else "",
            }
            for i, name in enumerate(names[:5])
        ],
    }
