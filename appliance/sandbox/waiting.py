"""Who waits for a sandbox, what they get, and whose turn it is.

Owns: ``Entry``, ``Grant``, ``Waiter``, and the order in which waiters are looked at.
Never: makes, lends or ends a sandbox.
Read next: ``pool``, the only user.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from appliance.sandbox.executor import Sandbox
from appliance.sandbox.gpu_place import Hold
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
    grant: asyncio.Future[Grant] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


def in_turn(waiters: Iterable[Waiter], lent: Mapping[str, int]) -> list[Waiter]:
    """The waiters in the order in which they are to be served.

    Whose tenant has the fewest sandboxes lent comes first, and of those who waits longest: a tenant
    that asks for many is served as much as there is room, and stands in nobody's way. Who waits for
    GPUs comes before, and is not overtaken by one who came later: it may need several at once.

    Args:
        waiters: those who wait, oldest first.
        lent: sandboxes lent, by tenant.
    """
    return sorted(
        waiters,
        key=lambda one: -1 if one.spec.resources.gpus else lent.get(one.spec.tenant_id, 0),
    )
