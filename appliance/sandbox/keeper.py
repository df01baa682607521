"""What a pool does between calls: keeps reservations warm, looks after the idle, yields memory.

Owns: how many sandboxes each version has reserved, when one is made again, and the regular look.
Never: makes or ends a sandbox itself, or serves a call (``pool`` does both).
Read next: ``pool``, ``zygote_policy`` (the same back-off).

A reservation is a number of loaded sandboxes that are there whether or not anybody calls: they do
not end when idle and make no room for others. One that fails, or dies soon after it was made, is
made again at once; after that with a pause that doubles.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol

from appliance import clock
from appliance.errors import ApplianceError
from appliance.sandbox import kernel
from appliance.sandbox import zygote_policy as policy
from appliance.sandbox.spec import ReservationInfo, SandboxSpec

_LOG = logging.getLogger(__name__)
_SOUND_S = 60.0  # one that lived this long did not fail because of how it was made
_FREE_SHARE = 20

Load = Callable[[], AsyncIterator[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How soon and how often a pool's idle sandboxes are seen to.

    An idle one is frozen after ``freeze_s``: calls one after the other never meet a frozen one.
    ``tick_s`` is the time between looks, ``shed_max`` how many may end at each for memory, and
    ``free_bytes`` tells how much the machine has left, 0 if it cannot.
    """

    freeze_s: float = 0.25
    tick_s: float = 1.0
    shed_max: int = 4
    free_bytes: Callable[[], int] = kernel.free_bytes


class Host(Protocol):
    """What the keeper asks of its pool."""

    def held(self, version_key: str) -> int:
        """Sandboxes of a version there are, those being made or ended included."""
        ...

    def ready(self, version_key: str) -> int:
        """Loaded ones, lent ones included."""
        ...

    async def prepare(self, spec: SandboxSpec, load: Load) -> bool:
        """Make one and keep it idle; False if there is no place for it now."""
        ...

    async def look(self) -> tuple[tuple[str, float], ...]:
        """End the idle ones that died or moved: version key and age in seconds of each."""
        ...

    async def shed(self) -> bool:
        """End what is needed least of all that waits; False if there is nothing."""
        ...

    def let_go(self, version_key: str) -> None:
        """A version's sandboxes may end when idle again."""
        ...


@dataclass(slots=True, kw_only=True, eq=False)
class _Reserved:
    """One reservation and how it goes."""

    spec: SandboxSpec
    load: Load
    warm: int
    making: bool = False
    failures: int = 0
    not_before_ns: int = 0
    problem: str = ""

    def failed(self, problem: str) -> None:
        self.failures += 1
        self.problem = problem
        pause_ns = int(policy.back_off_s(self.failures) * 1e9)
        self.not_before_ns = clock.monotonic_ns() + pause_ns


class Keeper:
    """One pool's keeper; used from one event loop."""

    def __init__(
        self,
        host: Host,
        *,
        reserved_max: int,
        per_version_max: int,
        free_bytes_min: int,
        pace: Pace,
    ) -> None:
        """Keep nothing yet.

        Args:
            host: the pool.
            reserved_max: sandboxes all reservations may keep together.
            per_version_max: sandboxes one version may have.
            free_bytes_min: free memory below which what waits is ended early.
            pace: how often it looks.
        """
        self._host = host
        self._reserved_max = reserved_max
        self._per_version_max = per_version_max
        self._free_bytes_min = free_bytes_min
        self._pace = pace
        self._reserved: dict[str, _Reserved] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._makers: set[asyncio.Task[None]] = set()
        self._closing = False

    def start(self) -> None:
        """Begin to look; no-op if it has."""
        if self._task is None and not self._closing:
            self._task = asyncio.create_task(self._run(), name="pool-keeper")

    def wake(self) -> None:
        """Something ended: look soon."""
        self._wake.set()

    def reserve(self, spec: SandboxSpec, load: Load, warm: int) -> None:
        """Keep ``warm`` sandboxes of a version from now on; a failing one is tried at once."""
        self._reserved[spec.version_key] = _Reserved(spec=spec, load=load, warm=warm)
        self.start()
        self.wake()

    def drop(self, version_key: str) -> None:
        """Keep none of a version any more; no-op if there is no reservation."""
        if self._reserved.pop(version_key, None) is not None:
            self._host.let_go(version_key)

    def wanted(self, version_key: str) -> int:
        """How many of a version are kept: less than reserved where the settings allow less."""
        left = self._reserved_max
        for key, one in self._reserved.items():
            granted = max(0, min(one.warm, self._per_version_max, left))
            if key == version_key:
                return granted
            left -= granted
        return 0

    def list(self) -> tuple[ReservationInfo, ...]:
        """Every reservation, in the order they are met."""
        return tuple(self._info(key, one) for key, one in self._reserved.items())

    def served(self, version_key: str) -> None:
        """A call of a version was answered: it is sound."""
        one = self._reserved.get(version_key)
        if one is not None and one.failures:
            one.failures, one.problem = 0, ""

    async def close(self) -> None:
        """Stop looking and making."""
        self._closing = True
        tasks = [*self._makers, *((self._task,) if self._task else ())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _info(self, key: str, one: _Reserved) -> ReservationInfo:
        granted = self.wanted(key)
        ready = self._host.ready(key)
        problem = one.problem if ready < granted else ""
        if granted < one.warm:
            problem = f"The settings in force let {granted} of {one.warm} be kept."
        pause_s = (one.not_before_ns - clock.monotonic_ns()) / 1e9
        return ReservationInfo(
            version_key=key,
            warm=one.warm,
            ready=ready,
            problem=problem,
            retry_s=max(0, round(pause_s)) if problem else 0,
            spec=one.spec,
        )

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pace.tick_s):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self._look()
                self._fill()
            except Exception:  # noqa: BLE001 - it must go on; calls do not depend on it
                _LOG.exception("looking after sandboxes failed")

    async def _look(self) -> None:
        for key, age_s in await self._host.look():
            one = self._reserved.get(key)
            if one is not None:
                if age_s > _SOUND_S:
                    one.failures = 0
                one.failed("A sandbox ended while it waited.")
        for _ in range(self._pace.shed_max):
            free = self._pace.free_bytes()
            if not 0 < free < self._free_bytes_min or not await self._host.shed():
                return
            _LOG.warning("%d MiB of memory are free; a waiting sandbox was ended", free >> 20)

    def _fill(self) -> None:
        """Begin to make what is missing, one at a time of each version."""
        now = clock.monotonic_ns()
        for key, one in self._reserved.items():
            if one.making or now < one.not_before_ns or self._closing:
                continue
            if self._host.held(key) < self.wanted(key):
                one.making = True
                task = asyncio.create_task(self._make(one), name=f"reserve-{key}")
                self._makers.add(task)
                task.add_done_callback(self._makers.discard)

    async def _make(self, one: _Reserved) -> None:
        started = clock.monotonic_ns()
        try:
            made = await self._host.prepare(one.spec, one.load)
        except ApplianceError as error:
            one.failed(error.detail)
            _LOG.warning("a reserved sandbox could not be made: %s", error.slug)
        except Exception as error:  # noqa: BLE001 - whatever it is, not again at once
            one.failed("Something failed inside the appliance.")
            _LOG.warning("a reserved sandbox could not be made: %r", error)
        else:
            if made:
                one.problem = ""
                self._wake.set()
            else:
                one.problem = "There is no place for it now."
                one.not_before_ns = started + int(self._pace.tick_s * 1e9)
        finally:
            one.making = False


def free_bytes_min(setting: int, total_bytes: int) -> int:
    """The memory meant by the setting: -1 is a twentieth of the machine's."""
    return setting if setting >= 0 else total_bytes // _FREE_SHARE
