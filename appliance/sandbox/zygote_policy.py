"""PURE: how many sandboxes are started ahead, of which kind, inside which memory.

Owns: the rate of cold starts, what a kind of sandbox deserves, and sharing the memory out.
Never: does I/O, reads the time, or knows what a sandbox is.
Read next: ``zygotes`` (who acts on this).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

WINDOW_S = 60.0
PER_KEY_MAX = 16
BACK_OFF_S = 30.0
BACK_OFF_MAX_S = 600.0
K = TypeVar("K", bound=Hashable)
_NS = 1_000_000_000
_AUTO_SHARE = 10
_AUTO_MAX_BYTES = 2 * 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Cold starts of one kind: an exponentially weighted rate, exact at ``last_ns``."""

    rate_per_s: float = 0.0
    last_ns: int = 0

    def rate_at(self, now_ns: int) -> float:
        """The rate now, per second."""
        return self.rate_per_s * math.exp(-max(0, now_ns - self.last_ns) / _NS / WINDOW_S)

    def arrived(self, now_ns: int) -> Demand:
        """The demand after one more cold start."""
        rate = self.rate_at(now_ns) + 1 / WINDOW_S
        return Demand(rate_per_s=rate, last_ns=max(now_ns, self.last_ns))


def wanted(demand: Demand, *, now_ns: int, start_s: float, idle_s: float) -> int:
    """How many should be ready: what arrives while one is made, and one; none when unused.

    Args:
        demand: its cold starts.
        now_ns: the time, on the same clock.
        start_s: how long it takes to make one.
        idle_s: after this time without a cold start none is kept.
    """
    if now_ns - demand.last_ns >= idle_s * _NS:
        return 0
    return min(PER_KEY_MAX, round(demand.rate_at(now_ns) * start_s) + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A kind that wants some: how many, what one costs in bytes, when it was used last."""

    wanted: int
    cost_bytes: int
    last_ns: int


def share(candidates: Mapping[K, Candidate], budget_bytes: int) -> dict[K, int]:
    """How many of each kind fit: one of each, the last used first, then another of each, ...

    A kind that does not fit any more leaves the room to smaller ones.
    """
    granted = dict.fromkeys(candidates, 0)
    order = sorted(candidates, key=lambda key: -candidates[key].last_ns)
    left = budget_bytes
    while order:
        still = []
        for key in order:
            one = candidates[key]
            if granted[key] < one.wanted and one.cost_bytes <= left:
                granted[key] += 1
                left -= one.cost_bytes
                still.append(key)
        order = still
    return granted


def back_off_s(failures: int) -> float:
    """How long to wait after so many failures in a row; the first one is tried again at once."""
    return min(BACK_OFF_MAX_S, BACK_OFF_S * 2 ** min(failures - 2, 10)) if failures > 1 else 0.0


def budget_bytes(setting: int, total_bytes: int) -> int:
    """The memory meant by the setting: -1 is a tenth of the machine's, at most 2 GiB."""
    return setting if setting >= 0 else min(total_bytes // _AUTO_SHARE, _AUTO_MAX_BYTES)
