"""Events of comparisons and of the samples replays are made from.

Owns: what was compared with what and how it ended; which calls may be kept, and their deletion.
Never: the calls a comparison makes (``calls``): each of them is on record by itself.
Read next: ``events`` (the list of all), ``comparison.runner`` (who writes these).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from appliance.events.base import Event
from appliance.standing import Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonQueued(Event):
    """A comparison was taken on; the ids of its calls begin with its own.

    ``targets`` are ``model id/number``. ``data_digest`` is keyed (HMAC) of the
    data set's SHA-256, and empty for a replay, which repeats recorded calls.
    """

    KIND: ClassVar[str] = "comparison.queued"
    comparison_id: str
    source: str
    targets: tuple[str, ...]
    rows: int
    data_bytes: int
    data_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonEnded(Event):
    """A comparison has its report, failed or was cancelled; its data set was deleted."""

    KIND: ClassVar[str] = "comparison.ended"
    comparison_id: str
    status: str
    code: str
    calls: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonsRemoved(Event):
    """Ended comparisons were forgotten after their time, and their reports with them."""

    KIND: ClassVar[str] = "comparison.removed"
    comparison_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSet(Event):
    """An owner has a share of a model's calls kept, sealed, from the next call on."""

    KIND: ClassVar[str] = "sampling.set"
    sampling: Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingRemoved(Event):
    """No more calls of a model are kept; those that are stay until their time is over."""

    KIND: ClassVar[str] = "sampling.removed"
    model_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplesRemoved(Event):
    """An owner had the kept calls of a model deleted."""

    KIND: ClassVar[str] = "samples.removed"
    model_id: str
    count: int
