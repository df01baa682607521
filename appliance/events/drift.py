"""Events of drift: baselines, thresholds, and scores that crossed them.

Owns: what a version is compared with, and when it was found to differ.
Never: every score; only crossings.
Read next: ``events`` (the list of all), ``store.drift`` (what they do).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from appliance.events.base import Event
from appliance.records import Baseline, Breach


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineSet(Event):
    """A version's calls are compared with this from now on; what it had breached is forgotten."""

    KIND: ClassVar[str] = "drift.baseline-set"
    SEALED: ClassVar[bool] = True
    baseline: Baseline


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineRemoved(Event):
    """A version's calls are compared with nothing any more, and counted no more; last revision."""

    KIND: ClassVar[str] = "drift.baseline-removed"
    SEALED: ClassVar[bool] = True
    baseline: Baseline


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdsSet(Event):
    """The thresholds of a version's baseline changed; the baseline is the same."""

    KIND: ClassVar[str] = "drift.thresholds-set"
    SEALED: ClassVar[bool] = True
    baseline: Baseline


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftBreached(Event):
    """A column of a version went beyond a threshold; said once, until it recovers."""

    KIND: ClassVar[str] = "drift.breach"
    SEALED: ClassVar[bool] = True
    model_id: str
    number: int
    breach: Breach


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftRecovered(Event):
    """A column that was beyond a threshold is within it again; ``breach`` has the value now."""

    KIND: ClassVar[str] = "drift.recovered"
    SEALED: ClassVar[bool] = True
    model_id: str
    number: int
    breach: Breach
