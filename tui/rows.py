"""Rows of views that one screen alone reads.

Owns: their shapes.
Never: reads or draws one.
Read next: ``client`` (the other views), ``tests/tui/test_contract.py`` (holds them to the server).
"""

from __future__ import annotations

from typing import TypedDict


class DriftRow(TypedDict):
    """One row of view ``drift``: a version with a baseline; ``state`` is warn, ok or off (few).

    ``feature``, ``statistic``, ``value`` and ``threshold`` are of its worst score.
    """

    tenant: str
    model: str
    version: int
    state: str
    rows: int
    window_s: int
    columns: int
    breaches: int
    since: str | None
    feature: str
    statistic: str
    value: float | None
    threshold: float | None
    source: str
    baseline_rows: int
    revision: int
    set_at: str
    set_by: str
