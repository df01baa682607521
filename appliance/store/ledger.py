"""Skeleton."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.events import Event
from appliance.records import Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A signed head."""

    size: int
    root_hex: str
    time_ns: int


class Ledger:
    """Sealed ledger."""

    head: Head
    state: str

    async def append(
        self, *events: Event, tenant_id: str = "", actor: str, object: str = ""
    ) -> tuple[Entry, ...]:
        raise NotImplementedError

    def append_later(
        self, event: Event, *, tenant_id: str = "", actor: str, object: str = ""
    ) -> None:
        raise NotImplementedError

    def read(self, after_seq: int, limit: int) -> list[Entry]:
        raise NotImplementedError
