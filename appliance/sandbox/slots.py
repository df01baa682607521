"""Which pair of host user ids a container has, and when a pair may be used again.

Owns: the free pairs of the service user's subordinate ids.
Never: looks at processes.
Read next: ``container`` (takes one), ``podman`` (gives it back once the container is gone).
"""

from __future__ import annotations

from appliance.errors import CapacityExhausted
from appliance.sandbox.hardening import Slot
from appliance.sandbox.kernel import SubIds


class Slots:
    """Pairs of sub-ids, each used by one container at a time, the longest unused first."""

    def __init__(self, ids: SubIds, *, start: int = 0, without: int = -1) -> None:
        """Every pair but the one with the id that is ``without`` above the first."""
        pairs = [
            Slot(
                first=at,
                root_uid=ids.uid_base + at,
                user_uid=ids.uid_base + at + 1,
                user_gid=ids.gid_base + at + 1,
            )
            for at in range(ids.skip, ids.skip + ids.count - 1, 2)
            if without not in (at, at + 1)
        ]
        start %= max(1, len(pairs))
        self._free = pairs[start:] + pairs[:start]

    def take(self) -> Slot:
        """A free pair.

        Raises:
            CapacityExhausted: there is none.
        """
        if not self._free:
            raise CapacityExhausted("Every pair of container user ids is in use.")
        return self._free.pop(0)

    def give(self, slot: Slot) -> None:
        """Return a pair whose container is gone."""
        self._free.append(slot)
