"""Who waits for a sandbox, what they get, and whose turn it is.

Owns: ``Entry``, ``Grant``, ``Waiter``, and the order in which waiters are looked at.
Never: makes, lends or ends a sandbox.
Read next: ``pool``, the only user.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from appliance.sandbox.executor import Sandbox
from appliance.sandbox.gpu_place import Hold
from appliance.sandbox.nesting import Holders, Line, Taken, Wanting, is_hopeless
from appliance.sandbox.spec import SandboxSpec


@dataclass(slots=True, kw_only=True, eq=False)
class Entry:
    """A sandbox in the pool: idle with a timer, or lent."""

    sandbox: Sandbox
    spec: SandboxSpec
    hold: Hold
    ahead: bool = False
    lent: bool = True
    retiring: bool = False
    line: Line | None = None
    timer: asyncio.TimerHandle | None = None
    freezer: asyncio.TimerHandle | None = None

    def cancel_timers(self) -> None:
        """It is used or ended: its clocks stop."""
        for timer in (self.timer, self.freezer):
            if timer is not None:
                timer.cancel()
        self.timer = self.freezer = None


@dataclass(slots=True, kw_only=True, eq=False)
class Grant:
    """What a waiter gets: an idle entry, or the right to make one once ``victim`` is gone.

    With the right come the GPUs it will have: ``hold`` is ``None`` with an entry only.
    """

    entry: Entry | None = None
    victim: Entry | None = None
    hold: Hold | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class Waiter:
    """A call that waits for its grant."""

    spec: SandboxSpec
    line: Line | None = None
    entered: int = 0
    grant: asyncio.Future[Grant] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Waiting:
    """All who wait for a sandbox.

    Those who wait for the same are one group, so that a sandbox that becomes free costs a look at
    the first of each group and not at everybody.
    """

    def __init__(self) -> None:
        self._groups: dict[int, OrderedDict[Waiter, None]] = {}
        self._counts: Counter[str] = Counter()
        self._entered = 0

    def __len__(self) -> int:
        return self._counts.total()

    def __bool__(self) -> bool:
        return bool(self._groups)

    def __iter__(self) -> Iterator[Waiter]:
        for group in self._groups.values():
            yield from group

    def of(self, version_key: str) -> int:
        """How many wait for a version."""
        return self._counts[version_key]

    def add(self, waiter: Waiter) -> None:
        """One more waits, behind the others."""
        self._entered += 1
        waiter.entered = self._entered
        self._groups.setdefault(_group_of(waiter), OrderedDict())[waiter] = None
        self._counts[waiter.spec.version_key] += 1

    def remove(self, waiter: Waiter) -> bool:
        """One waits no more; False if it did not."""
        group = self._groups.get(_group_of(waiter))
        if group is None or waiter not in group:
            return False
        del group[waiter]
        if not group:
            del self._groups[_group_of(waiter)]
        key = waiter.spec.version_key
        self._counts[key] -= 1
        if not self._counts[key]:
            del self._counts[key]
        return True

    def clear(self) -> None:
        """Nobody waits any more."""
        self._groups.clear()
        self._counts.clear()

    def in_turn(self, lent: Mapping[str, int]) -> Iterator[Waiter]:
        """The waiters in the order in which they are to be served.

        Whose tenant has the fewest sandboxes lent comes first, and of those who waits longest: a
        tenant that asks for many is served as much as there is room, and stands in nobody's way.
        Who waits for GPUs comes before, and is not overtaken by one who came later: it may need
        several at once. Before all of them come calls that a call waits for which holds a sandbox
        meanwhile.

        One that is still among the waiters when the next is asked for got nothing: those who wait
        for the same are then passed over.

        Args:
            lent: sandboxes lent, by tenant; what counts is how many were when this began.
        """
        groups = [(_turn(next(iter(group)), lent), group) for group in self._groups.values()]
        while groups:
            place = 0
            if len(groups) > 1:
                order = [(turn, next(iter(group)).entered) for turn, group in groups]
                place = order.index(min(order))
            group = groups[place][1]
            first = next(iter(group))
            yield first
            if not group or first in group:
                del groups[place]


def _group_of(waiter: Waiter) -> int:
    """Calls below others, and those that may call, are each served by rules of their own."""
    return id(waiter.spec) if waiter.line is None else id(waiter)


def _turn(waiter: Waiter, lent: Mapping[str, int]) -> int:
    if waiter.line is not None and waiter.line.holder is not None:
        return -2
    return -1 if waiter.spec.resources.gpus else lent.get(waiter.spec.tenant_id, 0)


IN_VAIN = "Every sandbox this call could get is held by calls that wait for it, or for its like."


def is_in_vain(
    waiter: Waiter,
    waiters: Iterable[Waiter],
    entries: Collection[Entry],
    counts: Mapping[str, int],
    holders: Holders,
    *,
    full: Collection[str],
    is_full: bool,
) -> bool:
    """Whether a call below another waits for what is held by calls that wait; see ``nesting``.

    Args:
        waiter: the call, which is among the waiters.
        waiters: all who wait.
        entries: every sandbox there is.
        counts: sandboxes of each version, those being made or ending included.
        holders: the calls that may call and have one.
        full: versions that have as many as they may.
        is_full: whether there are as many as there may be, and none can be ended.
    """
    line = waiter.line
    if line is None or line.holder is None:
        return False
    waiting = [
        Wanting(
            key=one.spec.version_key,
            line=one.line,
            at_cap=one.spec.version_key in full,
            at_holders=not holders.may_have(one.line),
        )
        for one in waiters
        if one.line is not None and not one.grant.done()
    ]
    taken = [Taken(key=one.spec.version_key, line=one.line) for one in entries if one.lent]
    # What counts and is no entry is being made or ending: it goes on by itself.
    changing = Counter(counts)
    changing.subtract(one.spec.version_key for one in entries)
    taken += [Taken(key=key) for key, count in changing.items() if count > 0]
    return is_hopeless(line, waiting, taken, is_full=is_full)
