"""What is appended to the ledger at once: events made into records, and who waits for them.

Owns: ``Appended``, and the form of a record but for its number.
Never: writes; knows the ledger's files.
Read next: ``ledger``, which writes these, ``FORMAT.md`` section 3.
"""

from __future__ import annotations

import asyncio
import base64

import msgspec

from appliance import clock
from appliance.errors import ApplianceError
from appliance.events import Event
from appliance.store.keyring import Keyring

_ENCODER = msgspec.json.Encoder()
LATER = -1
"""As ``intent_seq`` of an outcome: the number its intent will have had."""
_LATER = b'"intent_seq":%d,' % LATER


class _Tail(msgspec.Struct):
    """A record without its sequence number, which the writer puts in front."""

    v: int
    ts: int
    mono: int
    boot: str
    kind: str
    tenant: str
    actor: str
    object: str
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    sealed: str | msgspec.UnsetType = msgspec.UNSET


class Appended:
    """One ``append``: its records, and who waits for them.

    One that comes ``after`` another has the other's number put in where its event says ``LATER``.
    """

    __slots__ = (
        "after", "events", "first_seq", "future", "leaves", "mono_ns", "problem", "size", "tails",
        "time_ns",
    )  # fmt: skip

    def __init__(self, future: asyncio.Future[None] | None) -> None:
        self.future = future
        self.after: Appended | None = None
        self.problem: ApplianceError | None = None
        self.events: list[bytes] = []
        self.tails: list[bytes] = []
        self.size = 0
        self.first_seq = 0
        self.leaves: list[bytes] = []
        self.time_ns = clock.now_ns()
        self.mono_ns = clock.monotonic_ns()

    def fill(
        self,
        events: tuple[Event, ...],
        keyring: Keyring,
        boot: str,
        tenant_id: str,
        actor: str,
        obj: str,
    ) -> None:
        """Make events into records.

        Raises:
            NotFound: an event is sealed for a tenant that was removed.
        """
        for event in events:
            encoded = _ENCODER.encode(event)
            tail = _Tail(
                v=1,
                ts=self.time_ns,
                mono=self.mono_ns,
                boot=boot,
                kind=event.KIND,
                tenant=tenant_id,
                actor=actor,
                object=obj,
            )
            if event.SEALED:
                box = keyring.seal(tenant_id, "audit", event.KIND.encode(), encoded)
                tail.sealed = base64.b64encode(box).decode("ascii")
            else:
                tail.data = msgspec.Raw(encoded)
            text = _ENCODER.encode(tail)[1:]
            self.events.append(encoded)
            self.tails.append(text)
            self.size += len(text)

    def numbered(self, tail: bytes) -> bytes:
        """A record with the number of what it comes after."""
        if self.after is None:
            return tail
        return tail.replace(_LATER, b'"intent_seq":%d,' % self.after.first_seq, 1)
