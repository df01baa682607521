"""A comparison as it is kept: what was asked, and how it stands.

Owns: ``Comparison`` and ``Target``, and their bytes.
Never: the data set or the report: those lie beside it.
Read next: ``runner`` (what a comparison goes through).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from appliance.comparison.report import Task
from appliance.records import JOB_ENDS, JobStatus

Source = Literal["data", "replay"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A version rows go through; ``form`` is how it takes them."""

    model_id: str
    model: str
    number: int
    form: str = "rows"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A data set, or a model's recorded calls, through versions of a tenant.

    ``task`` is ``None`` where it is to be told from the data. ``problem`` is there if it failed.
    ``limit`` and ``since_ns`` say which recorded calls a replay repeats: at most so many, the
    newest first, none older. ``total`` is how many rows times targets, or calls, it is.
    """

    id: str
    tenant_id: str
    source: Source
    targets: tuple[Target, ...]
    media_type: str = ""
    label: str = ""
    group: str = ""
    task: Task | None = None
    batch: int = 100
    tolerance: float = 1e-6
    worst: int = 10
    limit: int = 0
    since_ns: int = 0
    rows: int = 0
    data_bytes: int = 0
    data_digest: str = ""
    created_ns: int
    created_by: str
    status: JobStatus = "starting"
    started_ns: int = 0
    ended_ns: int = 0
    problem: dict[str, Any] | None = None

    @property
    def is_ended(self) -> bool:
        """Whether nothing more happens to it."""
        return self.status in JOB_ENDS

    @property
    def total(self) -> int:
        """How much there is to do: rows through targets, or calls."""
        return self.rows * len(self.targets)


def bytes_from_comparison(comparison: Comparison) -> bytes:
    """It as JSON."""
    return msgspec.json.encode(comparison)


def comparison_from_bytes(data: bytes) -> Comparison:
    """It from JSON. Raises msgspec.DecodeError."""
    return msgspec.json.decode(data, type=Comparison)
