"""PURE: the memory that bodies and answers take while they are on their way.

Owns: how many bytes of them there are, of all callers and of each tenant, and the refusal of more.
Never: holds a byte itself, or waits.
Read next: ``wire`` (bodies), ``api.dispatch`` (answers, and when a request gives its room back).

Each body has a limit, but callers may send many and take long, or take no answer at all: without
this, one tenant's slow callers would fill the memory of everybody's appliance.
"""

from __future__ import annotations

from appliance.errors import CapacityExhausted

FREE_BYTES = 64 * 1024
"""What each request has without asking: small ones go on while large ones are refused."""


class Room:
    """What there is for all; one tenant has at most half of it."""

    def __init__(self, bytes_max: int) -> None:
        """Args: ``bytes_max`` of bodies and answers together."""
        self.bytes_max = bytes_max
        self.taken = 0
        self._by_tenant: dict[str, int] = {}

    def take(self, tenant_id: str, size: int) -> None:
        """Take room for so many bytes.

        Raises:
            CapacityExhausted: there is none.
        """
        own = self._by_tenant.get(tenant_id, 0) + size
        if self.taken + size > self.bytes_max or own > self.bytes_max // 2:
            raise CapacityExhausted(
                "Too many large bodies and answers are on their way; take what was answered, and "
                "try again.",
                hint="http.memory_bytes_max",
            )
        self.taken += size
        self._by_tenant[tenant_id] = own

    def give(self, tenant_id: str, size: int) -> None:
        """Give room back."""
        self.taken -= size
        left = self._by_tenant.get(tenant_id, 0) - size
        if left > 0:
            self._by_tenant[tenant_id] = left
        else:
            self._by_tenant.pop(tenant_id, None)


class Hold:
    """What one request holds of the room, of whose tenant it is; ``give_back`` ends it."""

    def __init__(self, room: Room, tenant_id: str) -> None:
        self._room = room
        self._tenant_id = tenant_id
        self._size = 0
        self._taken = 0

    def add(self, size: int) -> None:
        """So many bytes more are held.

        Raises:
            CapacityExhausted: there is no room for them.
        """
        missing = max(0, self._size + size - FREE_BYTES) - self._taken
        if missing > 0:
            self._room.take(self._tenant_id, missing)
            self._taken += missing
        self._size += size

    def give_back(self) -> None:
        """Nothing is held any more; idempotent."""
        if self._taken:
            self._room.give(self._tenant_id, self._taken)
        self._size = self._taken = 0
