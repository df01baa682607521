"""Calls of versions that may be joined: they wait here, and leave several in one frame.

Owns: a line of calls per version, its bounds and deadlines, who of it leaves together and when,
and who runs again after a sandbox was lost.
Never: parses a body, mixes versions, or makes sandboxes (``pool`` lends them).
Read next: ``PROTOCOL.md``, "Several calls in one frame"; ``batches`` (a frame on its link).

A carrier leases one sandbox for as long as calls wait, and keeps two frames with it, so that the
runner never waits for the host: what came meanwhile leaves together when the first is answered, or
shortly before where the model takes its time.
There is no timer unless one pays (``_Line.delay_s``). A carrier whose turn is over gives its
sandbox back where others wait for one.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from appliance import clock, config
from appliance.errors import (
    ApplianceError,
    CapacityExhausted,
    DeadlinePassed,
    GuestError,
    HostError,
)
from appliance.metrics import Metrics
from appliance.records import (
    Batching,
)
from appliance.sandbox.batches import CALLS_MAX
from appliance.sandbox.keeper import Load
from appliance.sandbox.lease import Lease
from appliance.sandbox.pool import Pool
from appliance.sandbox.spec import Batch, Reply, Request, SandboxSpec

_LOG = logging.getLogger(__name__)
CREDITS = 2
_TURN_S = 0.05
_PATIENCE_S = 0.25
_TRIES_MAX = 3
_GATHER_FROM_S = 0.002
_GATHER_MAX_S = 0.001
_GATHER_SHARE = 0.2
_HOLD_SHARE = 0.8
_LATE = "The call's deadline passed while it waited."


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """Where a call went, told as it leaves the line; ``queue_us`` waited, ``load_us`` of a load."""

    sandbox_id: str
    cold: bool
    queue_us: int
    load_us: int


@dataclass(slots=True, kw_only=True, eq=False)
class _Call:
    """One call, from its entry into the line to its answer."""

    request: Request
    spec: SandboxSpec
    files: Load
    sent: Callable[[Sent], object]
    deadline: float | None
    done: asyncio.Future[Reply]
    entered_ns: int = field(default_factory=clock.monotonic_ns)
    is_waiting: bool = True
    is_alone: bool = False
    tries: int = 0
    timer: asyncio.TimerHandle | None = None

    @property
    def is_late(self) -> bool:
        """Whether its own deadline passed."""
        return self.deadline is not None and asyncio.get_running_loop().time() >= self.deadline

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def answer(self, result: Reply | ApplianceError) -> None:
        if self.done.done():  # its caller is gone
            return
        if isinstance(result, Reply):
            self.done.set_result(result)
        else:
            self.done.set_exception(result)
            self.done.exception()  # retrieved here if its caller is gone


@dataclass(slots=True, kw_only=True, eq=False)
class _Flight:
    """Calls that went in one frame; ``left`` are the places of those without an answer."""

    calls: list[_Call]
    left: set[int]
    sent_at: float
    group: str = ""


class _Line:
    """The calls of one version that wait, and what is known of how it takes them."""

    def __init__(self, batching: Batching) -> None:
        self.batching = batching
        self.calls: deque[_Call] = deque()
        self.waiting = 0  # of those, the ones whose caller still waits
        self.carriers: list[_Carrier] = []
        self.service_s = 0.0
        self.rows_per_call = 1.0
        self.last_calls = 1
        self.watch: asyncio.TimerHandle | None = None

    @property
    def calls_max(self) -> int:
        """How many calls are likely to fill one call of the model."""
        wanted = int(self.batching.max_rows / max(self.rows_per_call, 1.0))
        return min(max(wanted, 1), CALLS_MAX)

    @property
    def delay_s(self) -> float:
        """How long the first of a frame waits for others.

        Unless the manifest says it: not at all, but where a call of the model takes long against
        the wait and the last frame shows that there are others.
        """
        if self.batching.max_queue_delay_us is not None:
            return self.batching.max_queue_delay_us / 1e6
        if self.service_s < _GATHER_FROM_S or self.last_calls < 2:
            return 0.0
        return min(_GATHER_MAX_S, _GATHER_SHARE * self.service_s)

    def head(self) -> _Call | None:
        """The first that still waits, and is still worth sending."""
        while self.calls:
            call = self.calls[0]
            if call.is_waiting and call.is_late:
                self.leave(call)
                call.answer(DeadlinePassed(_LATE))
            if call.is_waiting:
                return call
            self.calls.popleft()
        return None

    def take(self, spec: SandboxSpec) -> list[_Call]:
        """Who leaves now, for a sandbox of this spec: none if the first is not for it."""
        taken: list[_Call] = []
        size, limit = 0, self.calls_max
        while len(taken) < limit and (call := self.head()) is not None:
            size += len(call.request.body)
            if taken and not (
                size <= self.batching.max_bytes
                and not call.is_alone
                and call.request.content_type == taken[0].request.content_type
            ):
                break
            if call.spec is not spec and call.spec != spec:
                break
            self.calls.popleft()
            self.leave(call)
            taken.append(call)
            if call.is_alone:
                break
        return taken

    def leave(self, call: _Call) -> None:
        """A call waits no more."""
        call.is_waiting = False
        call.stop_timer()
        self.waiting -= 1

    def learn(self, flight: _Flight, service_s: float) -> None:
        """A frame was answered."""
        self.last_calls = len(flight.calls)
        self.service_s += 0.2 * (service_s - self.service_s)


class _Carrier:
    """Takes calls of one line to one sandbox after the other, one at a time."""

    def __init__(self, line: _Line) -> None:
        self.line = line
        self.flights: list[_Flight] = []
        self.credits = 0
        self.is_lost = False  # the oldest frame failed with its sandbox
        self.answered_at = 0.0
        self._wake: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Have ``rest`` end."""
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def rest(self, timeout_s: float | None = None) -> None:
        """Wait until something changed, or for this long."""
        loop = asyncio.get_running_loop()
        self._wake = loop.create_future()
        timer = loop.call_later(timeout_s, self.wake) if timeout_s is not None else None
        try:
            await self._wake
        finally:
            self._wake = None
            if timer is not None:
                timer.cancel()


class Joining:
    """All lines; used from one event loop."""

    def __init__(self, pool: Pool, settings: config.Sandbox, metrics: Metrics) -> None:
        """Take calls to sandboxes of ``pool``."""
        self._pool = pool
        self._settings = settings
        self._metrics = metrics
        self._lines: dict[str, _Line] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """Calls that wait to be sent."""
        return sum(line.waiting for line in self._lines.values())

    async def call(
        self,
        spec: SandboxSpec,
        files: Load,
        request: Request,
        *,
        sent: Callable[[Sent], object],
        deadline: float | None = None,
    ) -> Reply:
        """One call, in company where there is some. Cancelled before it was sent, it leaves.

        Args:
            spec: the version's sandbox; its ``batch`` says how calls are joined.
            files: as for ``Pool.lease``.
            request: the call.
            sent: told when it leaves the line, again if it has to run again.
            deadline: loop time at which it is not worth sending any more.

        Raises:
            CapacityExhausted: too many wait, or it waited too long; it was not sent.
            DeadlinePassed: it was not sent.
            ApplianceError: what ``Pool.lease``, ``Lease.request`` and ``Lease.batch`` raise.
        """
        line = self._lines.get(spec.version_key)
        if line is None or line.batching is not spec.batch:
            line = self._line_for(spec)
        if line.waiting >= self._settings.queue_max:
            raise CapacityExhausted(
                f"{self._settings.queue_max} calls already wait for this version."
            )
        loop = asyncio.get_running_loop()
        call = _Call(
            request=request, spec=spec, files=files, sent=sent, deadline=deadline,
            done=loop.create_future(),
        )  # fmt: skip
        line.waiting += 1
        line.calls.append(call)
        self._nudge(line)
        if call.is_waiting:
            self._start_timer(line, call)
        try:
            return await call.done
        finally:
            if call.is_waiting:
                line.leave(call)

    def _line_for(self, spec: SandboxSpec) -> _Line:
        if spec.batch is None:
            raise ValueError("calls of this version cannot be joined")
        line = self._lines.get(spec.version_key)
        if line is None:
            line = self._lines[spec.version_key] = _Line(spec.batch)
        line.batching = spec.batch
        return line

    def _start_timer(self, line: _Line, call: _Call) -> None:
        loop = asyncio.get_running_loop()
        at = loop.time() + self._settings.queue_timeout_s
        if call.deadline is not None:
            at = min(at, call.deadline)
        call.timer = loop.call_at(at, self._expire, line, call)

    def _expire(self, line: _Line, call: _Call) -> None:
        """A call waited long enough."""
        if not call.is_waiting:
            return
        line.leave(call)
        if call.is_late:
            call.answer(DeadlinePassed(_LATE))
            return
        call.answer(
            CapacityExhausted(f"No sandbox became free within {self._settings.queue_timeout_s} s.")
        )

    # --- carriers ----------------------------------------------------------------------------

    def _nudge(self, line: _Line) -> None:
        """Somebody waits: wake those who carry, or start one who does."""
        for carrier in line.carriers:
            if carrier.credits > 0:
                carrier.wake()
        if not line.carriers:
            self._start_carrier(line)
        elif line.waiting >= line.calls_max and all(c.credits <= 0 for c in line.carriers):
            self._start_carrier(line)  # a full frame waits, and nobody can take it
        if line.watch is None and line.waiting:
            loop = asyncio.get_running_loop()
            line.watch = loop.call_later(_PATIENCE_S, self._look, line)

    def _look(self, line: _Line) -> None:
        """Whether somebody has waited so long that one more carrier is worth a sandbox."""
        line.watch = None
        head = line.head()
        if head is None:
            return
        if clock.monotonic_ns() - head.entered_ns >= _PATIENCE_S * 1e9:
            self._start_carrier(line)
        line.watch = asyncio.get_running_loop().call_later(_PATIENCE_S, self._look, line)

    def _start_carrier(self, line: _Line) -> None:
        if len(line.carriers) >= self._pool.per_version_max:
            return
        carrier = _Carrier(line)
        line.carriers.append(carrier)
        task = asyncio.create_task(self._carry(carrier), name="carrier")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, carrier: _Carrier) -> None:
        line = carrier.line
        try:
            while (head := line.head()) is not None:
                started_ns = clock.monotonic_ns()
                try:
                    async with self._pool.lease(head.spec, head.files) as lease:
                        await self._serve(carrier, lease, head.spec)
                except ApplianceError as error:
                    self._refuse(carrier, head.spec, error, started_ns)
                    if len(line.carriers) > 1:
                        return
        except Exception:  # noqa: BLE001 - whatever it is, nobody may wait for ever
            _LOG.exception("calls that were waiting to be joined could not be sent")
            self._refuse_all(line, HostError("Something failed inside the appliance."))
        finally:
            line.carriers.remove(carrier)

    def _refuse(
        self, carrier: _Carrier, spec: SandboxSpec, error: ApplianceError, started_ns: int
    ) -> None:
        """No sandbox was to be had: tell those who waited for it."""
        line = carrier.line
        if len(line.carriers) > 1:
            return  # others carry on
        for call in list(line.calls):
            is_older = call.entered_ns <= started_ns or not isinstance(error, CapacityExhausted)
            if call.is_waiting and call.spec == spec and is_older:
                line.leave(call)
                call.answer(_copy(error))

    @staticmethod
    def _refuse_all(line: _Line, error: ApplianceError) -> None:
        for call in line.calls:
            if call.is_waiting:
                line.leave(call)
                call.answer(_copy(error))

    async def _serve(self, carrier: _Carrier, lease: Lease, spec: SandboxSpec) -> None:
        """Take calls to one sandbox while there are some, it is wanted and its turn lasts."""
        line, loop = carrier.line, asyncio.get_running_loop()
        carrier.flights, carrier.is_lost = [], False
        carrier.credits = CREDITS if lease.can_batch else 1
        carrier.answered_at = loop.time()
        turn_ends = carrier.answered_at + _TURN_S
        is_cold = lease.cold
        is_first = True
        try:
            while True:
                is_over = not lease.is_usable or (
                    not is_first and self._pool.waiting > 0 and loop.time() > turn_ends
                )
                if is_over and not carrier.flights:
                    return
                if is_over or carrier.credits <= 0:
                    await carrier.rest()
                    continue
                head = line.head()
                if head is None or head.spec != spec:
                    if not carrier.flights:
                        return
                    await carrier.rest()
                    continue
                if (pause_s := max(self._pause_s(line, head, spec), self._hold_s(carrier))) > 0:
                    await carrier.rest(pause_s)
                    continue
                calls = line.take(spec) if lease.can_batch else [self._take_one(line, head)]
                self._send(carrier, lease, calls, is_cold=is_cold)
                is_cold = is_first = False
        finally:
            carrier.credits = 0

    @staticmethod
    def _pause_s(line: _Line, head: _Call, spec: SandboxSpec) -> float:
        """How much longer the first waits for company."""
        delay_s = line.delay_s
        if not delay_s or head.is_alone or line.waiting >= line.calls_max:
            return 0.0
        return delay_s - (clock.monotonic_ns() - head.entered_ns) / 1e9

    @staticmethod
    def _hold_s(carrier: _Carrier) -> float:
        """How much longer a second frame would only lie with a runner that is busy for a while.

        What leaves just before it is needed leaves with all who came until then; what left at once
        would leave with the few who were first, and make small frames of many callers.
        """
        line = carrier.line
        is_short = line.service_s < _GATHER_FROM_S
        if not carrier.flights or is_short or line.waiting >= line.calls_max:
            return 0.0
        begun_at = max(carrier.flights[0].sent_at, carrier.answered_at)
        return begun_at + _HOLD_SHARE * line.service_s - asyncio.get_running_loop().time()

    @staticmethod
    def _take_one(line: _Line, call: _Call) -> _Call:
        line.calls.popleft()
        line.leave(call)
        return call

    def _send(self, carrier: _Carrier, lease: Lease, calls: list[_Call], *, is_cold: bool) -> None:
        loop = asyncio.get_running_loop()
        now_ns, load_us = clock.monotonic_ns(), lease.load_us if is_cold else 0
        for call in calls:
            waited_us = (now_ns - call.entered_ns) // 1000
            own_load_us = min(load_us, waited_us)
            call.sent(
                Sent(
                    sandbox_id=lease.sandbox_id,
                    cold=is_cold,
                    queue_us=waited_us - own_load_us,
                    load_us=own_load_us,
                )
            )
        flight = _Flight(calls=calls, left=set(range(len(calls))), sent_at=loop.time())
        carrier.flights.append(flight)
        carrier.credits -= 1
        task = asyncio.create_task(self._fly(carrier, lease, flight), name="flight")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _fly(self, carrier: _Carrier, lease: Lease, flight: _Flight) -> None:
        line = carrier.line
        try:
            if lease.can_batch:
                await lease.batch(self._batch_of(line, flight))
            else:
                reply = await lease.request(flight.calls[0].request)
                flight.left.clear()
                flight.calls[0].answer(reply)
        except ApplianceError as error:
            self._lost(carrier, flight, error)
        except BaseException:
            self._lost(carrier, flight, HostError("The appliance gave the call up."))
            raise
        else:
            now = asyncio.get_running_loop().time()
            line.learn(flight, now - max(flight.sent_at, carrier.answered_at))
            carrier.answered_at = now
        finally:
            carrier.flights.remove(flight)
            carrier.credits += 1
            carrier.wake()

    def _batch_of(self, line: _Line, flight: _Flight) -> Batch:
        def answered(place: int, result: Reply | ApplianceError) -> None:
            flight.left.discard(place)
            merged = result.merged if isinstance(result, Reply) else None
            if merged is not None:
                line.rows_per_call += 0.1 * (max(merged.own_rows, 1) - line.rows_per_call)
                if merged.id != flight.group:
                    flight.group = merged.id
                    self._metrics.batch_ran(calls=merged.calls, rows=merged.rows)
            flight.calls[place].answer(result)

        return Batch(
            id=clock.new_id("batch"),
            requests=[call.request for call in flight.calls],
            batching=line.batching,
            answered=answered,
            split=self._metrics.batch_split,
        )

    def _lost(self, carrier: _Carrier, flight: _Flight, error: ApplianceError) -> None:
        """The sandbox ended with calls of this frame unanswered: who fails, and who runs again.

        Only the oldest frame was begun. Its one call without an answer is to blame; of several
        nobody knows which, so each runs again alone.
        """
        line, lost = carrier.line, [flight.calls[place] for place in sorted(flight.left)]
        is_begun = carrier.flights[0] is flight and not carrier.is_lost
        carrier.is_lost = carrier.is_lost or is_begun
        is_to_blame = not isinstance(error, GuestError) or (is_begun and len(lost) == 1)
        again: list[_Call] = []
        for call in lost:
            if is_to_blame or (call.is_alone and is_begun) or call.tries >= _TRIES_MAX:
                call.answer(_copy(error))
            elif not call.done.done():
                call.tries += 1
                call.is_alone = call.is_alone or is_begun
                again.append(call)
        if is_begun and again:
            self._metrics.batch_split("lost")
        for call in reversed(again):
            call.is_waiting = True
            line.waiting += 1
            line.calls.appendleft(call)
            self._start_timer(line, call)


def _copy(error: ApplianceError) -> ApplianceError:
    """The same problem for another caller: what is added to one is not in the other."""
    twin = copy.copy(error)
    twin.extensions = dict(error.extensions)
    return twin.with_traceback(None)
