"""Zygotes: sandboxes made ahead of the call that will need them.

Owns: which kinds are kept ready, making and replacing them, handing each out once.
Never: gives one to a second version, or lets one tenant's imports decide about another's.
Read next: ``zygote_policy`` (how many), ``executor`` (``create_ahead``, ``bind``).

A kind is what a version's own last load showed it needs: runtime, dependencies, resources, and the
modules it imported from them. A version that never loaded here starts from what its tenant's last
load of the same dependencies imported; without that there is nothing to make ahead.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import OrderedDict
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

from appliance import clock, config
from appliance.errors import ApplianceError, GuestError, LoadFailed, LoadTimeout
from appliance.sandbox import zygote_policy as policy
from appliance.sandbox.executor import Executor, Sandbox
from appliance.sandbox.keeper import Load
from appliance.sandbox.spec import MIB, SandboxInfo, SandboxSpec, ZygoteKey

_LOG = logging.getLogger(__name__)
_TICK_S = 2.0
_LOOK_S = 10.0
_VERSIONS_KNOWN = 1024
_KINDS_MAX = 256
_START_S_MAX = 10.0
_PAUSE_S = 30.0  # without making any, after memory was short
_BLANK_BYTES = 18 * MIB
_MODULE_BYTES = MIB // 10  # until one was measured

_Origin = tuple[str, str, str, str]


@dataclass(slots=True, kw_only=True, eq=False)
class _Kind:
    """What is known of one kind, and those that are ready."""

    demand: policy.Demand
    cost_bytes: int
    start_s: float = 1.0
    ready: list[Sandbox] = field(default_factory=list)
    making: int = 0
    failures: int = 0
    not_before_ns: int = 0

    def failed(self, now_ns: int) -> None:
        """One could not be made, or died while it waited."""
        self.failures += 1
        self.not_before_ns = now_ns + int(policy.back_off_s(self.failures) * 1e9)


class Zygotes:
    """The sandboxes made ahead for one pool; used from one event loop."""

    def __init__(
        self, executor: Executor, settings: config.Sandbox, *, look_s: float = _LOOK_S
    ) -> None:
        """Make none yet.

        Args:
            executor: a started engine.
            settings: the ``[sandbox]`` section.
            look_s: time between looks whether what they are made of is still installed.
        """
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self.budget_bytes = policy.budget_bytes(settings.zygote_memory_bytes_max, total)
        self._executor = executor
        self._look_s = look_s
        self._idle_s = settings.zygote_idle_s
        self._making_max = max(1, len(os.sched_getaffinity(0)) - 1)
        self._kinds: dict[ZygoteKey, _Kind] = {}
        self._by_version: OrderedDict[str, ZygoteKey] = OrderedDict()
        self._by_origin: OrderedDict[_Origin, tuple[str, ...]] = OrderedDict()
        self._callers = 0
        self._not_before_ns = 0
        self._looked_ns = clock.monotonic_ns()
        self._wake = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._makers: set[asyncio.Task[None]] = set()
        self._enders: set[asyncio.Task[None]] = set()
        self._closing = False

    def list(self) -> list[SandboxInfo]:
        """Those that are ready."""
        return [one.info() for kind in self._kinds.values() for one in kind.ready]

    @contextlib.contextmanager
    def callers_start(self) -> Iterator[None]:
        """While a caller's own sandbox is started: nothing is made ahead meanwhile."""
        self._callers += 1
        if self._callers == 1:
            self._executor.hold_back(True)
        try:
            yield
        finally:
            self._callers -= 1
            if not self._callers:
                self._executor.hold_back(False)
                self._wake.set()

    async def take(self, spec: SandboxSpec) -> Sandbox | None:
        """One that is bound to this version now, if any is ready; counts as a cold start."""
        key = self._key_of(spec)
        if key is None or self._closing or spec.resources.gpus or spec.container is not None:
            return None
        kind = self._kind(key)
        kind.demand = kind.demand.arrived(clock.monotonic_ns())
        while kind.ready:
            one = kind.ready.pop(0)
            if not one.alive:
                self._end(one)
                continue
            try:
                await one.bind(spec)
            except ApplianceError as error:
                _LOG.warning("a sandbox made ahead was not usable: %s", error.detail)
                kind.failed(clock.monotonic_ns())
                continue
            kind.failures = 0
            return one
        return None

    async def bound(self, spec: SandboxSpec, load: Load) -> Sandbox | None:
        """One that was made ahead, loaded. None if there is none, or it did not serve.

        Whether the model or what was imported before it is at fault, only a sandbox of its own can
        say: the caller then gets that one.
        """
        sandbox = await self.take(spec)
        if sandbox is None:
            return None
        try:
            await sandbox.load(load())
        except BaseException as error:
            await asyncio.shield(sandbox.destroy())
            if isinstance(error, LoadTimeout) or not isinstance(error, GuestError | LoadFailed):
                raise
            _LOG.info("a load in a sandbox made ahead failed (%s); again from nothing", error.slug)
            return None
        return sandbox

    def loaded(self, spec: SandboxSpec, modules: tuple[str, ...], *, ahead: bool) -> None:
        """A version was loaded: what it imported is what is made ahead for it from now on.

        Args:
            spec: the version's sandbox.
            modules: names the guest reported; they are imported in this tenant's zygotes only.
            ahead: it was made ahead, so that the names include what it found imported.
        """
        if not self.budget_bytes or self._closing or spec.resources.gpus:
            return  # a GPU is never held for nobody
        if spec.container is not None:
            return  # an imported image knows nothing of imports
        key = _key(spec, modules)
        used = self._key_of(spec) if ahead else None
        if used is not None and set(modules) <= set(used.modules):
            key = used
        _put(self._by_version, spec.version_key, key, _VERSIONS_KNOWN)
        if not ahead:
            _put(self._by_origin, _origin(spec), key.modules, _VERSIONS_KNOWN)
        kind = self._kind(key)
        if not kind.demand.last_ns:
            kind.demand = kind.demand.arrived(clock.monotonic_ns())
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep(), name="zygotes")
        self._wake.set()

    async def stop(self, sandbox_id: str) -> bool:
        """Destroy one that is ready; False if there is none of this id."""
        for kind in self._kinds.values():
            for one in kind.ready:
                if one.id == sandbox_id:
                    kind.ready.remove(one)
                    await one.destroy()
                    return True
        return False

    async def shed(self) -> bool:
        """End one of the kind that was used longest ago, and make none for a while; False if none.

        Memory is short: what is ready before it is asked for is the first to go.
        """
        self._not_before_ns = clock.monotonic_ns() + int(_PAUSE_S * 1e9)
        kinds = [kind for kind in self._kinds.values() if kind.ready]
        if not kinds:
            return False
        oldest = min(kinds, key=lambda kind: kind.demand.last_ns)
        await oldest.ready.pop(0).destroy()
        return True

    async def close(self) -> None:
        """Make no more, destroy all; idempotent."""
        self._closing = True
        tasks = [*self._makers, *((self._keeper,) if self._keeper else ())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for kind in self._kinds.values():
            self._end(*kind.ready)
        self._kinds.clear()
        await asyncio.gather(*self._enders)

    def _key_of(self, spec: SandboxSpec) -> ZygoteKey | None:
        if spec.isolation != "standard":
            return None  # one with a kernel of its own cannot be fitted to a version later
        known = self._by_version.get(spec.version_key)
        if known is not None and known.is_fit_for(spec):
            return known
        modules = self._by_origin.get(_origin(spec))
        return None if modules is None else _key(spec, modules)

    def _kind(self, key: ZygoteKey) -> _Kind:
        kind = self._kinds.get(key)
        if kind is None:
            cost = _BLANK_BYTES + len(key.modules) * _MODULE_BYTES
            kind = self._kinds[key] = _Kind(demand=policy.Demand(), cost_bytes=cost)
        return kind

    async def _keep(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self._look()
                self._balance()
            except Exception:  # noqa: BLE001 - it must go on; calls do not depend on it
                _LOG.exception("keeping sandboxes ready failed")

    async def _look(self) -> None:
        """Drop the dead, measure the living, and end those whose packages were removed."""
        now = clock.monotonic_ns()
        for kind in [*self._kinds.values()]:
            for one in [*kind.ready]:
                moved = one.alive and await one.has_moved()
                if one in kind.ready and (moved or not one.alive):
                    kind.ready.remove(one)
                    kind.failed(now)
                    self._end(one)
            used = [one.info().memory_bytes for one in kind.ready]
            kind.cost_bytes = max((size for size in used if size), default=kind.cost_bytes)
        if now - self._looked_ns < self._look_s * 1e9:
            return
        self._looked_ns = now
        for key in list(self._kinds):
            if not await asyncio.to_thread(self._executor.has_installed, key):
                gone = self._kinds.pop(key, None)
                self._end(*(gone.ready if gone else ()))

    def targets(self) -> dict[ZygoteKey, int]:
        """How many of each kind there should be now."""
        now = clock.monotonic_ns()
        found = {}
        for key, kind in self._kinds.items():
            number = policy.wanted(
                kind.demand, now_ns=now, start_s=kind.start_s, idle_s=self._idle_s
            )
            found[key] = policy.Candidate(
                wanted=number, cost_bytes=kind.cost_bytes, last_ns=kind.demand.last_ns
            )
        return policy.share(found, self.budget_bytes)

    def _balance(self) -> None:
        """End what is too much, begin what is missing."""
        now = clock.monotonic_ns()
        for key, target in self.targets().items():
            kind = self._kinds[key]
            while kind.ready and len(kind.ready) + kind.making > target:
                self._end(kind.ready.pop(0))
            if not target and not kind.making and self._is_old(kind, now):
                del self._kinds[key]
            missing = target - len(kind.ready) - kind.making
            for _ in range(missing if now >= kind.not_before_ns else 0):
                if self._is_held(now) or self._being_made() >= self._making_max:
                    break
                kind.making += 1
                _keep_until_done(self._makers, self._make(key, kind))

    def _is_old(self, kind: _Kind, now: int) -> bool:
        unused = now - kind.demand.last_ns >= self._idle_s * 1e9
        return unused or len(self._kinds) > _KINDS_MAX

    def _is_held(self, now: int) -> bool:
        """Whether none may be made now: a caller starts its own, or memory was short."""
        return bool(self._callers) or now < self._not_before_ns

    def _being_made(self) -> int:
        return sum(kind.making for kind in self._kinds.values())

    async def _make(self, key: ZygoteKey, kind: _Kind) -> None:
        started = clock.monotonic_ns()
        try:
            one = await self._executor.create_ahead(key)
        except Exception as error:  # noqa: BLE001 - whatever it is, not again at once
            kind.failed(clock.monotonic_ns())
            _LOG.warning("a sandbox could not be made ahead: %r", error)
            return
        finally:
            kind.making -= 1
            self._wake.set()
        took_s = min((clock.monotonic_ns() - started) / 1e9, _START_S_MAX)
        kind.start_s += 0.3 * (took_s - kind.start_s)
        if self._kinds.get(key) is kind and not self._closing:
            kind.ready.append(one)
        else:
            await one.destroy()

    def _end(self, *sandboxes: Sandbox) -> None:
        for one in sandboxes:
            _keep_until_done(self._enders, one.destroy())


def _keep_until_done(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


def _key(spec: SandboxSpec, modules: tuple[str, ...]) -> ZygoteKey:
    return ZygoteKey(
        runtime=spec.runtime,
        runtime_digest=spec.runtime_digest,
        deps_key=spec.deps_key,
        resources=spec.resources,
        isolation=spec.isolation,
        modules=tuple(sorted(modules)),  # the order of a real load differs from run to run
    )


def _origin(spec: SandboxSpec) -> _Origin:
    return spec.tenant_id, spec.runtime, spec.runtime_digest, spec.deps_key


def _put(table: OrderedDict[Any, Any], key: object, value: object, most: int) -> None:
    """Remember a value, and forget the longest unused above ``most``."""
    table[key] = value
    table.move_to_end(key)
    while len(table) > most:
        table.popitem(last=False)
