"""Rows of view ``drift`` as the server would send them, for the console's tests."""

from __future__ import annotations

from typing import Any

AT = "2026-01-31T12:00:00.000Z"


def drift_rows(names: list[str], many: int) -> list[dict[str, Any]]:
    """A row per name: over a threshold, within all, or with too few records."""
    return [
        {
            "tenant": name,
            "model": name,
            "version": at + 1,
            "state": ("warn", "ok", "off")[at % 3],
            "rows": many,
            "window_s": 3600,
            "columns": 31,
            "breaches": (24, 0, 0)[at % 3],
            "since": AT if at % 3 == 0 else None,
            "feature": name if at % 3 < 2 else "",
            "statistic": "outside" if at % 3 < 2 else "",
            "value": 1.7889 if at % 3 < 2 else None,
            "threshold": 0.25 if at % 3 < 2 else None,
            "source": "data",
            "baseline_rows": many,
            "revision": 2,
            "set_at": AT,
            "set_by": "key:abc",
        }
        for at, name in enumerate(names)
    ]
