"""The life of the process: uninitialised, sealed, ready, draining.

Owns: the state, what exists in each state, and the order in which parts start and stop.
Never: knows HTTP or the command line; runs calls itself.
Read next: ``invoke`` and ``lifecycle`` (what a ready node offers), ``app`` (who makes it).

    uninitialised --initialise--> sealed --unseal--> ready --seal--> sealed
    any --drain--> draining --close--> gone

A node without working sandboxes is still ready: the registry and the audit answer, every call
gets the reason, and the start of the executor is tried again in the background.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from appliance import __version__, clock, config, doctor
from appliance.afterwards import Afterwards
from appliance.artifacts import Artifacts
from appliance.batches import Batches
from appliance.canary import Canaries
from appliance.comparison.runner import Comparisons
from appliance.egress.guard import EgressGuard
from appliance.errors import (
    AlreadyInitialised,
    ApplianceError,
    Draining,
    PodmanUnavailable,
    Sealed,
    Uninitialised,
)
from appliance.events import (
    AuditVerified,
    BackupMade,
    Initialised,
    LimitsProbed,
    SealedAgain,
    Unsealed,
)
from appliance.intake import Intake
from appliance.invoke import Invoker
from appliance.jobs import Jobs
from appliance.lifecycle import Lifecycle
from appliance.metrics import Metrics
from appliance.nested import Outer, Parts
from appliance.policy import Policy
from appliance.reservations import Reservations
from appliance.room import Room
from appliance.routing import Routing
from appliance.samples import Samples
from appliance.sandbox import dependencies, images
from appliance.sandbox.executor import Executor, open_executor
from appliance.sandbox.pool import Pool
from appliance.schedules import Schedules
from appliance.shadow import Shadows
from appliance.store import RootKey, Store, seal
from appliance.supply import Supply
from appliance.tracking import Tracking
from appliance.watch import Watch
from appliance.webhooks import Webhooks

_log = logging.getLogger(__name__)
_RETRY_S = 30.0
_CHECKS_AGE_NS = 30_000_000_000
_ACTOR = "appliance"

_STATUS_OF_LEVEL: dict[str, Literal["ok", "warn", "fail"]] = {
    "enforced": "ok",
    "supervised": "warn",
    "none": "fail",
}

State = Literal["uninitialised", "sealed", "ready", "draining"]
ExecutorFactory = Callable[[], Executor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What exists only while the node is unsealed."""

    store: Store
    invoker: Invoker
    jobs: Jobs
    batches: Batches
    lifecycle: Lifecycle
    tracking: Tracking
    intake: Intake
    artifacts: Artifacts
    reservations: Reservations
    routing: Routing
    canaries: Canaries
    shadows: Shadows
    watch: Watch
    comparisons: Comparisons
    samples: Samples
    afterwards: Afterwards
    pool: Callable[[], Pool]
    executor: Callable[[], Executor]
    egress: EgressGuard
    supply: Supply
    webhooks: Webhooks
    schedules: Schedules


def _room_bytes(settings: config.Settings) -> int:
    """Memory for bodies and answers on their way: as set, or an eighth of the machine's.

    Of the largest calls two of one tenant always fit in.
    """
    if settings.http.memory_bytes_max >= 0:
        return settings.http.memory_bytes_max
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(total // 8, 4 * (settings.http.body_bytes_max + settings.sandbox.reply_bytes_max))


class Node:
    """One appliance process; made sealed, used from one event loop."""

    def __init__(
        self,
        settings: config.Settings,
        *,
        explained: tuple[config.Explained, ...] = (),
        executor_factory: ExecutorFactory | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """Make a node that has touched nothing yet.

        Args:
            settings: the settings in force.
            explained: where each setting came from, for ``explain``.
            executor_factory: makes the execution engine; rootless Podman by default.
            metrics: counters to report to; fresh ones by default.
        """
        self.settings = settings
        self.metrics = metrics or Metrics()
        self.instance = clock.new_id("node")
        self.data_dir = Path(settings.paths.data_dir)
        self.room = Room(_room_bytes(settings))
        self._explained = explained
        self._executor_factory = executor_factory or self._podman
        self._started_ns = clock.monotonic_ns()
        self._change = asyncio.Lock()
        self._draining = False
        self.policy = Policy()
        self._services: Services | None = None
        self._root: RootKey | None = None
        self._executor: Executor | None = None
        self._guard: EgressGuard | None = None
        self._pool: Pool | None = None
        self._sandbox_problem: ApplianceError | None = None
        self._checked: tuple[doctor.Check, ...] = ()
        self._checked_ns = 0
        self._checked_state: State = "sealed"
        self._background: set[asyncio.Task[None]] = set()
        self._is_initialised = seal.is_initialised(self.data_dir)

    @property
    def state(self) -> State:
        """Where in its life the node is."""
        if self._draining:
            return "draining"
        if not self._is_initialised:
            return "uninitialised"
        return "ready" if self._services else "sealed"

    @property
    def services(self) -> Services:
        """The parts of an unsealed node; kept while draining, for what was accepted before.

        Raises:
            Uninitialised, Sealed, Draining: there are none in this state.
        """
        if self._services:
            return self._services
        if self._draining:
            raise Draining("The appliance is shutting down.")
        if not self._is_initialised:
            raise Uninitialised("This appliance was never initialised.", hint="appliance init")
        raise Sealed("This appliance is sealed.", hint="appliance unseal")

    async def start(self) -> None:
        """Unseal by the configured key file, if there is one; otherwise stay sealed.

        Raises:
            UnsealFailed, StoreCorrupt, DataDirBusy: the configured key file did not lead to a
                ready node.
        """
        if self._is_initialised and self.settings.unseal.key_file:
            await self.unseal(key_file=Path(self.settings.unseal.key_file))

    async def initialise(
        self, *, passphrase: str | None = None, key_file: Path | None = None
    ) -> None:
        """Create the data folder and open it.

        Raises:
            AlreadyInitialised: it exists; nothing is changed.
        """
        async with self._change:
            if self._is_initialised:
                raise AlreadyInitialised("This data folder is initialised already.")
            root = await asyncio.to_thread(
                seal.initialise, self.data_dir, passphrase=passphrase, key_file=key_file
            )
            self._is_initialised = True
            await self._open(root)

    async def unseal(self, *, passphrase: str | None = None, key_file: Path | None = None) -> None:
        """Open the root key with one secret and bring everything up; no-op when ready.

        Raises:
            Uninitialised: there is nothing to unseal.
            UnsealFailed: the secret opens no slot.
            StoreCorrupt: the store fails verification; the node stays sealed.
        Audit: appliance.unsealed, limits.probed.
        """
        async with self._change:
            if self.state == "ready":
                return
            if not self._is_initialised:
                raise Uninitialised("This appliance was never initialised.", hint="appliance init")
            if self._draining:
                raise Draining("The appliance is shutting down.")
            root = await asyncio.to_thread(
                seal.unseal, self.data_dir, passphrase=passphrase, key_file=key_file
            )
            await self._open(root)

    async def seal(self, reason: str = "command") -> None:
        """Finish running calls, drop every key from memory and serve health and unseal only.

        Audit: appliance.sealed.
        """
        async with self._change:
            await self._close(reason)

    def drain(self) -> None:
        """Say that the end is near: readiness turns red, what was accepted goes on."""
        self._draining = True
        if self._services:
            self._services.jobs.drain()
            self._services.batches.drain()
            self._services.comparisons.drain()

    async def close(self) -> None:
        """Stop every part in order; the node is gone afterwards. Idempotent."""
        self._draining = True
        async with self._change:
            await self._close("shutdown")

    def tls_secret(self) -> bytes | None:
        """32 bytes that seal the CA's private key, or ``None`` while the node is sealed."""
        return self._services.store.secret("tls-ca") if self._services else None

    def explain(self) -> tuple[config.Explained, ...]:
        """Every setting with its origin."""
        return self._explained

    def sandbox_problem(self) -> ApplianceError | None:
        """What keeps sandboxes from running now, if anything."""
        return self._sandbox_problem

    async def status(self) -> dict[str, Any]:
        """The node's own facts, for the console and ``appliance status``; no tenant's data."""
        usage = await asyncio.to_thread(shutil.disk_usage, _existing(self.data_dir))
        runtimes = await asyncio.to_thread(images.installed, self.data_dir)
        services = self._services
        executor = self._executor
        return {
            "version": __version__,
            "state": self.state,
            "instance": self.instance,
            "pid": os.getpid(),
            "uptime_s": (clock.monotonic_ns() - self._started_ns) // 1_000_000_000,
            "data_dir": str(self.data_dir),
            "limits": asdict(executor.limits) if executor and not self._sandbox_problem else None,
            "podman": executor.info() if executor and not self._sandbox_problem else None,
            "sandbox_problem": self._sandbox_problem.detail if self._sandbox_problem else "",
            "runtimes": [{"name": r.name, "digest": r.digest} for r in runtimes],
            "ledger": _ledger_status(services.store) if services else None,
            "sandboxes": len(self._pool.list()) if self._pool else 0,
            "disk": {"free_bytes": usage.free, "total_bytes": usage.total},
            "slots": [
                {"name": slot.name, "kind": slot.kind}
                for slot in (seal.slots(self.data_dir) if self._is_initialised else ())
            ],
        }

    async def recent_checks(self) -> tuple[doctor.Check, ...]:
        """``checks``, at most half a minute old: they start short processes."""
        age_ns = clock.monotonic_ns() - self._checked_ns
        if not self._checked or age_ns > _CHECKS_AGE_NS or self.state != self._checked_state:
            self._checked_state = self.state
            self._checked = await self.checks()
            self._checked_ns = clock.monotonic_ns()
        return self._checked

    async def checks(self) -> tuple[doctor.Check, ...]:
        """The host's checks and, when unsealed, the state of ledger and sandboxes."""
        found = list(await asyncio.to_thread(doctor.checks, self.settings))
        services = self._services
        if services:
            state = services.store.ledger.state
            found.append(
                doctor.Check(
                    name="ledger",
                    status="ok" if state == "ok" else "fail",
                    detail=f"{services.store.ledger.head.size} entries, {state}",
                    fix="" if state == "ok" else "restart the appliance; it verifies and recovers",
                )
            )
            found.append(self._limits_check())
        return tuple(found)

    async def verify_audit(
        self, actor: str, progress: Callable[[int, int], None] | None = None
    ) -> Any:
        """Verify the whole ledger from disk.

        Returns:
            The store's ``VerifyReport``.
        Audit: audit.verified.
        """
        store = self.services.store
        report = await store.verify(progress)
        await store.ledger.append(AuditVerified(entries=report.entries, ok=report.ok), actor=actor)
        return report

    async def backup(self, path: Path, actor: str) -> Any:
        """Write a backup file; returns the store's ``BackupReport``. Audit: backup.made."""
        store = self.services.store
        report = await store.backup(path)
        await store.ledger.append(BackupMade(name=path.name, digest=report.digest), actor=actor)
        return report

    def _podman(self) -> Executor:
        return open_executor(
            self.settings.sandbox,
            run_dir=Path(self.settings.paths.run_dir),
            data_dir=self.data_dir,
        )

    async def _open(self, root: RootKey) -> None:
        try:
            store = await Store.open(self.data_dir, root, self.settings.store)
        except BaseException:
            root.close()
            raise
        try:
            if not store.ledger.head.size:
                slots = tuple(slot.name for slot in seal.slots(self.data_dir))
                await store.ledger.append(Initialised(slots=slots), actor=_ACTOR)
            await store.ledger.append(Unsealed(slot=root.slot, version=__version__), actor=_ACTOR)
            await self._sweep(store)
            services = self._make_services(store)
            await self._start_executor(store)
        except BaseException:
            if self._guard is not None:
                await self._guard.close()
            await store.close()
            root.close()
            raise
        self._services, self._root = services, root
        self._start_work(services)

    async def _sweep(self, store: Store) -> None:
        """Remove what a crash left; a start does not fail by it."""
        try:
            count = await store.sweep()
        except (ApplianceError, OSError) as error:
            _log.warning("blobs that nothing refers to could not be removed: %s", error)
            return
        if count:
            _log.info("%d blobs that nothing refers to were removed", count)

    def _start_work(self, services: Services) -> None:
        """Start what goes on beside requests, until the node is sealed again."""
        self._spawn(self._settle(services.invoker))
        self._spawn(services.jobs.run())
        self._spawn(services.intake.follow())
        self._spawn(services.batches.run())
        self._spawn(services.reservations.follow())
        self._spawn(services.canaries.follow())
        self._spawn(services.shadows.follow())
        self._spawn(services.watch.follow())
        self._spawn(services.webhooks.run())
        self._spawn(services.schedules.follow())
        self._spawn(services.samples.follow())
        self._spawn(services.comparisons.run())
        if self._sandbox_problem:
            self._spawn(self._retry_executor(services.store))

    def _make_services(self, store: Store) -> Services:
        """What an open store is used by; nothing of it runs yet."""
        settings = self.settings
        invoker = Invoker(store, self._require_pool, settings.sandbox, self.metrics)
        self._guard = EgressGuard(store, settings.egress, self.metrics, pool=self._require_pool)
        jobs = Jobs(
            store,
            invoker,
            self._require_pool,
            settings.jobs,
            free_bytes_min=settings.store.free_bytes_min,
        )
        routing = Routing(store)
        canaries = Canaries(store, routing)
        invoker.watches.append(canaries.observe)
        shadows = Shadows(store, invoker, self.metrics)
        watch, samples = Watch(store, settings, self.metrics), Samples(store)
        afterwards = Afterwards(watch, samples)
        jobs.answered = afterwards.done
        batches = Batches(store, invoker, jobs, self._require_pool, settings, self.metrics)
        batches.tell(afterwards.done_in_turn)
        parts = Parts(
            store=store,
            invoker=invoker,
            routing=routing,
            shadows=shadows,
            answered=afterwards.done,
            policy=self.policy,
            room=self.room,
            settings=settings.calls,
            body_bytes_max=settings.http.body_bytes_max,
        )
        invoker.opens = lambda opening: Outer(parts, opening)
        lifecycle = Lifecycle(store, self._require_pool, self._require_executor, settings)
        tracking = Tracking(store, settings)
        return Services(
            store=store,
            invoker=invoker,
            jobs=jobs,
            batches=batches,
            lifecycle=lifecycle,
            tracking=tracking,
            intake=Intake(store, lifecycle, tracking),
            artifacts=Artifacts(store),
            pool=self._require_pool,
            executor=self._require_executor,
            egress=self._guard,
            reservations=Reservations(store, self._require_pool, settings.sandbox),
            routing=routing,
            canaries=canaries,
            shadows=shadows,
            watch=watch,
            samples=samples,
            afterwards=afterwards,
            comparisons=Comparisons(store, invoker, samples, self._require_pool, settings),
            supply=Supply(store, self.data_dir),
            webhooks=Webhooks(store, settings.webhooks, hosts_file=settings.egress.hosts_file),
            schedules=Schedules(store, jobs, batches, routing, settings.schedules),
        )

    async def _settle(self, invoker: Invoker) -> None:
        """Conclude the calls a dead predecessor left open."""
        count = await invoker.close_open_intents()
        if count:
            _log.warning("%d calls of an earlier run had no outcome; recorded as unknown", count)

    async def _start_executor(self, store: Store) -> None:
        await asyncio.to_thread(dependencies.sweep, self.data_dir)
        executor = self._executor_factory()
        executor.guard = self._guard
        try:
            await executor.start()
        except ApplianceError as error:
            _log.warning("sandboxes cannot run: %s", error.detail)
            self._sandbox_problem = error
            with contextlib.suppress(Exception):
                await executor.close()
            return
        self._sandbox_problem = None
        self._executor = executor
        self._pool = Pool(executor, self.settings.sandbox)
        limits = executor.limits
        await store.ledger.append(
            LimitsProbed(
                level=limits.level,
                mechanism=limits.mechanism,
                accepted=self.settings.sandbox.accept_supervised_limits,
            ),
            actor=_ACTOR,
        )

    async def _retry_executor(self, store: Store) -> None:
        while self._sandbox_problem:
            await asyncio.sleep(_RETRY_S)
            async with self._change:
                if self._services is None or self._draining:
                    return
                await self._start_executor(store)

    def _require_pool(self) -> Pool:
        if self._pool is None:
            raise self._missing()
        return self._pool

    def _require_executor(self) -> Executor:
        if self._executor is None:
            raise self._missing()
        return self._executor

    def _missing(self) -> ApplianceError:
        known = self._sandbox_problem
        if known:
            return type(known)(known.detail, hint=known.hint)
        return PodmanUnavailable("No sandbox can run now.", hint="appliance doctor")

    def _limits_check(self) -> doctor.Check:
        if self._executor is None:
            problem = self._missing()
            return doctor.Check(
                name="sandboxes", status="fail", detail=problem.detail, fix=problem.hint
            )
        limits = self._executor.limits
        return doctor.Check(
            name="limits",
            status=_STATUS_OF_LEVEL[limits.level],
            detail=f"{limits.level} by {limits.mechanism}: {limits.detail}",
            fix="" if limits.level == "enforced" else "boot with cgroup version 2",
        )

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception():
            _log.error("background work failed", exc_info=task.exception())

    async def _close(self, reason: str) -> None:
        services, self._services = self._services, None
        if services is None:
            return
        await services.batches.close()
        await services.comparisons.close()
        await services.jobs.close(self.settings.http.drain_timeout_s)
        for task in tuple(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await services.watch.close()
        await services.webhooks.close()
        await services.supply.close()
        pool, self._pool = self._pool, None
        executor, self._executor = self._executor, None
        if pool:
            await pool.close(timeout_s=self.settings.http.drain_timeout_s)
        if executor:
            await executor.close()
        self._sandbox_problem = None
        await services.egress.close()
        with contextlib.suppress(ApplianceError):
            await services.store.ledger.append(SealedAgain(reason=reason), actor=_ACTOR)
        await services.store.close()
        if self._root:
            self._root.close()
            self._root = None


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _ledger_status(store: Store) -> dict[str, Any]:
    head = store.ledger.head
    return {
        "seq": head.size,
        "root": head.root_hex,
        "applied_seq": store.queries.applied_seq,
        "state": store.ledger.state,
    }
