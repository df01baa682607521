"""PURE: calls that wait for each other: which may have a sandbox, and when nobody could go on.

Owns: ``Line`` (a call's place below others), how many sandboxes go to calls that may call, and the
search for a circle of calls that wait for each other's sandboxes.
Never: lends a sandbox, or knows what one is.
Read next: ``pool``.

A call that waits for another keeps its sandbox meanwhile. Were all sandboxes kept so, all would
wait for ever. So callers' calls of versions that call get half of the places, a call below them
goes first in the queue, and one that could never be served is refused at once: when everything it
could get is held, directly or through others, by calls that wait.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True, eq=False)
class Line:
    """A call and the one it is below. ``has_calls``: it may call while it holds its sandbox."""

    above: Line | None = None
    has_calls: bool = False
    is_holding: bool = False

    @property
    def holder(self) -> Line | None:
        """The nearest call above that holds a sandbox; a pipeline's own call holds none."""
        line = self.above
        while line is not None and not line.is_holding:
            line = line.above
        return line


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A sandbox that is lent, being made or ending: of which version, and to which call."""

    key: str
    line: Line | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanting:
    """A call that waits for a sandbox.

    ``at_cap``: its version has as many as it may; ``at_holders``: so have all calls that may call.
    """

    key: str
    line: Line
    at_cap: bool
    at_holders: bool = False


@dataclass(slots=True)
class Holders:
    """The calls that hold a sandbox and may call."""

    places: int
    lines: set[Line] = field(default_factory=set)

    def may_have(self, line: Line | None) -> bool:
        """Whether a call may have a sandbox now, as far as calls that wait are concerned."""
        if line is None or not line.has_calls:
            return True
        most = self.places - 1 if line.holder is not None else self.places // 2
        return len(self.lines) < max(1, most)

    def begin(self, line: Line | None) -> None:
        """It has one."""
        if line is not None:
            line.is_holding = True
            if line.has_calls:
                self.lines.add(line)

    def end(self, line: Line | None) -> None:
        """It has none any more."""
        if line is not None:
            line.is_holding = False
            self.lines.discard(line)


def is_hopeless(
    line: Line, waiting: Iterable[Wanting], taken: Iterable[Taken], *, is_full: bool
) -> bool:
    """Whether a call that waits below another can never get a sandbox.

    Args:
        line: the call; it is among those ``waiting``.
        waiting: the calls below others that wait for a sandbox.
        taken: every sandbox that is not idle.
        is_full: whether there are as many sandboxes as there may be, and none can be ended.

    Cost: the square of the calls that wait for others, at worst.
    """
    holder = line.holder
    if holder is None:
        return False
    below: dict[Line, list[Wanting]] = {}
    for one in waiting:
        if one.line.holder is not None:
            below.setdefault(one.line.holder, []).append(one)
    stuck: list[Taken] = []
    moving: list[Taken] = []
    for held in taken:
        (stuck if held.line in below else moving).append(held)
    while stuck:
        freed = [
            one
            for one in stuck
            if one.line and all(_has_hope(w, moving, is_full=is_full) for w in below[one.line])
        ]
        if not freed:
            break
        moving += freed
        stuck = [one for one in stuck if one not in freed]
    return any(one.line is holder for one in stuck)


def _has_hope(one: Wanting, moving: list[Taken], *, is_full: bool) -> bool:
    """Whether a call that waits will have a sandbox once those that move on have ended."""
    if one.at_cap and not any(held.key == one.key for held in moving):
        return False
    if one.at_holders and not any(held.line and held.line.has_calls for held in moving):
        return False
    return bool(moving) or not is_full
