"""What goes on record about connections out of sandboxes, and how much of it.

Owns: the entries ``egress.opened``, ``.passed``, ``.denied`` and ``.suppressed``, their counting
together, and the rate at which one version may cause them.
Never: decides anything; loses a count: what was not written alone is written as a number.
Read next: ``guard``.

The first connection to a destination is on record before it is made; what passed is added up and
written when the destination is quiet, each minute, and at the sandbox's end. A refusal is written
at once and its repetitions are counted. New destinations cost an allowance that refills slowly:
without it a connection waits or is refused, and a refusal is only counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from appliance import clock
from appliance.errors import ApplianceError
from appliance.events import EgressDenied, EgressOpened, EgressPassed, EgressSuppressed, Event
from appliance.sandbox.egress import Passage, Who

_LOG = logging.getLogger(__name__)
BURST = 32.0
"""Entries about new destinations a version may cause at once."""
PER_S = 0.2
_VERSIONS_MAX = 4096
_KEPT_MAX = 64
_TICK_S = 5.0
_QUIET_S = 5.0
_PERIOD_S = 60.0
_WAIT_S = 10.0
_WAIT_STEP_S = 0.25

Append = Callable[[Event, Who], Awaitable[None]]
Key = tuple[str, str, str, int, str]


@dataclass(slots=True, kw_only=True)
class Flow:
    """What passed between a sandbox and one destination since it was last written down."""

    who: Who
    rule_id: str
    host: str
    port: int
    protocol: str
    live: dict[Passage, tuple[int, int]] = field(default_factory=dict)
    connections: int = 0
    failed: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    revoked: bool = False
    changed_s: float = 0.0
    written_s: float = 0.0
    is_written: bool = False

    def begin(self, passage: Passage) -> None:
        """A connection of it is about to be made."""
        self.live[passage] = (0, 0)
        self.changed_s = _now_s()

    def end(self, passage: Passage, *, failed: bool) -> None:
        """A connection of it is over, or was never made."""
        self.collect()
        self.live.pop(passage, None)
        self.connections += not failed
        self.failed += failed
        self.revoked = self.revoked or passage.revoked
        self.changed_s = _now_s()

    def collect(self) -> None:
        """Add up what passed through open connections since the last time."""
        for passage, (sent, received) in self.live.items():
            self.sent_bytes += passage.sent_bytes - sent
            self.received_bytes += passage.received_bytes - received
            self.live[passage] = (passage.sent_bytes, passage.received_bytes)

    @property
    def is_owed(self) -> bool:
        """Whether something happened that no entry tells."""
        return bool(self.connections or self.failed or self.sent_bytes or self.received_bytes)


@dataclass(slots=True, kw_only=True)
class _Denial:
    event: EgressDenied
    who: Who
    count: int = 0
    written_s: float = 0.0


@dataclass(slots=True, kw_only=True)
class _Allowance:
    left: float = BURST
    at_s: float = 0.0

    def is_taken(self) -> bool:
        now = clock.monotonic_ns() / 1e9
        if self.at_s:
            self.left = min(BURST, self.left + (now - self.at_s) * PER_S)
        self.at_s = now
        if self.left < 1:
            return False
        self.left -= 1
        return True


@dataclass(slots=True, kw_only=True)
class _Box:
    """What is owed about one sandbox."""

    flows: dict[Key, Flow] = field(default_factory=dict)
    denials: dict[tuple[Key, str], _Denial] = field(default_factory=dict)
    suppressed: int = 0
    suppressed_s: float = 0.0
    opening: dict[Key, asyncio.Lock] = field(default_factory=dict)


class Record:
    """Writes entries for all sandboxes; used from one event loop."""

    def __init__(self, append: Append) -> None:
        """Args: ``append`` makes an event of a sandbox's durable."""
        self._append = append
        self._boxes: dict[Who, _Box] = {}
        self._allowances: OrderedDict[str, _Allowance] = OrderedDict()
        self._keeper: asyncio.Task[None] | None = None

    async def opened(
        self, who: Who, *, rule_id: str, host: str, port: int, protocol: str, address: str
    ) -> Flow | None:
        """The flow of an allowed destination, its first use on record; ``None`` if it must wait.

        Raises:
            ApplianceError: the ledger takes nothing now.
        """
        box = self._boxes.setdefault(who, _Box())
        key: Key = (rule_id, host, protocol, port, "")
        async with box.opening.setdefault(key, asyncio.Lock()):
            flow = box.flows.get(key)
            if flow is None:
                if not await self._is_allowed_soon(who):
                    box.opening.pop(key, None)
                    return None
                model_id, number = version_of(who)
                event = EgressOpened(
                    sandbox_id=who.sandbox_id,
                    model_id=model_id,
                    number=number,
                    rule_id=rule_id,
                    host=host,
                    port=port,
                    protocol=protocol,
                    address=address,
                )
                await self._append(event, who)
                flow = Flow(who=who, rule_id=rule_id, host=host, port=port, protocol=protocol)
                flow.written_s = _now_s()
                await self._make_room(who, box)
                box.flows[key] = flow
        self._keep()
        return flow

    async def denied(
        self, who: Who, *, rule_id: str, host: str, port: int, protocol: str, reason: str
    ) -> None:
        """Put a refusal on record, or count it."""
        box = self._boxes.setdefault(who, _Box())
        key = ((rule_id, host, protocol, port, ""), reason)
        self._keep()
        known = box.denials.get(key)
        if known is not None:
            known.count += 1
            return
        if len(box.denials) >= _KEPT_MAX or not self._allowance(who).is_taken():
            box.suppressed += 1
            return
        model_id, number = version_of(who)
        event = EgressDenied(
            sandbox_id=who.sandbox_id,
            model_id=model_id,
            number=number,
            rule_id=rule_id,
            host=host,
            port=port,
            protocol=protocol,
            reason=reason,
            count=1,
        )
        box.denials[key] = _Denial(event=event, who=who, written_s=_now_s())
        try:
            await self._append(event, who)
        except ApplianceError as error:
            _LOG.warning("a refusal could not be recorded: %s", error.slug)
            box.suppressed += 1

    async def left(self, who: Who) -> None:
        """Write down everything about a sandbox that is gone."""
        box = self._boxes.pop(who, None)
        if box is not None:
            await self._write(who, box, is_last=True)

    async def close(self) -> None:
        """Write down everything and stop."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeper
        for who in list(self._boxes):
            await self.left(who)

    async def _is_allowed_soon(self, who: Who) -> bool:
        waited_s = 0.0
        while not self._allowance(who).is_taken():
            if waited_s >= _WAIT_S:
                return False
            await asyncio.sleep(_WAIT_STEP_S)
            waited_s += _WAIT_STEP_S
        return True

    def _allowance(self, who: Who) -> _Allowance:
        found = self._allowances.setdefault(who.version_key, _Allowance())
        self._allowances.move_to_end(who.version_key)
        if len(self._allowances) > _VERSIONS_MAX:
            self._allowances.popitem(last=False)
        return found

    def _keep(self) -> None:
        if self._keeper is None or self._keeper.done():
            self._keeper = asyncio.create_task(self._run(), name="egress-record")

    async def _run(self) -> None:
        while self._boxes:
            await asyncio.sleep(_TICK_S)
            for who, box in list(self._boxes.items()):
                await self._write(who, box, is_last=False)

    async def _write(self, who: Who, box: _Box, *, is_last: bool) -> None:
        now = _now_s()
        events: list[Event] = []
        for flow in box.flows.values():
            flow.collect()
            is_quiet = not flow.live and not flow.is_written and now - flow.changed_s >= _QUIET_S
            if flow.is_owed and (is_last or is_quiet or now - flow.written_s >= _PERIOD_S):
                events.append(_passed(flow))
                _forget(flow, now)
        for denial in box.denials.values():
            if denial.count and (is_last or now - denial.written_s >= _PERIOD_S):
                events.append(_repeated(denial))
                denial.count, denial.written_s = 0, now
        if box.suppressed and (is_last or now - box.suppressed_s >= _PERIOD_S):
            model_id, number = version_of(who)
            events.append(
                EgressSuppressed(
                    sandbox_id=who.sandbox_id,
                    model_id=model_id,
                    number=number,
                    count=box.suppressed,
                )
            )
            box.suppressed, box.suppressed_s = 0, now
        for event in events:
            await self._write_one(event, who)

    async def _make_room(self, who: Who, box: _Box) -> None:
        """Forget the destination that was quiet for longest, if there are too many."""
        quiet = [key for key, flow in box.flows.items() if not flow.live]
        if len(box.flows) < _KEPT_MAX or not quiet:
            return
        key = min(quiet, key=lambda one: box.flows[one].changed_s)
        flow = box.flows.pop(key)
        box.opening.pop(key, None)
        if flow.is_owed:
            await self._write_one(_passed(flow), who)

    async def _write_one(self, event: Event, who: Who) -> None:
        try:
            await self._append(event, who)
        except ApplianceError as error:  # the tenant was removed, or the ledger is closed
            _LOG.warning("egress of %s could not be recorded: %s", who.sandbox_id, error.slug)


def version_of(who: Who) -> tuple[str, int]:
    """Model id and version number of a sandbox; number 0 for one that is being tried."""
    model_id, _, number = who.version_key.rpartition("/")
    return model_id, int(number) if number.isdigit() else 0


def _passed(flow: Flow) -> EgressPassed:
    model_id, number = version_of(flow.who)
    return EgressPassed(
        sandbox_id=flow.who.sandbox_id,
        model_id=model_id,
        number=number,
        rule_id=flow.rule_id,
        host=flow.host,
        port=flow.port,
        protocol=flow.protocol,
        connections=flow.connections,
        failed=flow.failed,
        sent_bytes=flow.sent_bytes,
        received_bytes=flow.received_bytes,
        code="revoked" if flow.revoked else "open" if flow.live else "closed",
    )


def _forget(flow: Flow, now_s: float) -> None:
    flow.connections = flow.failed = flow.sent_bytes = flow.received_bytes = 0
    flow.revoked = False
    flow.written_s, flow.is_written = now_s, True


def _repeated(denial: _Denial) -> EgressDenied:
    event = denial.event
    return EgressDenied(
        sandbox_id=event.sandbox_id,
        model_id=event.model_id,
        number=event.number,
        rule_id=event.rule_id,
        host=event.host,
        port=event.port,
        protocol=event.protocol,
        reason=event.reason,
        count=denial.count,
    )


def _now_s() -> float:
    return clock.monotonic_ns() / 1e9
