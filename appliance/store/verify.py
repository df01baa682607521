"""Skeleton."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """Result of a verification."""

    ok: bool
    entries: int
    first_bad_seq: int | None
    detail: str
    head: str
