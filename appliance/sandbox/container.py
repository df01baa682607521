"""One container: made, verified, limited, used, killed and removed.

Owns: the life of a sandbox under Podman.
Never: imports ``podman`` (its executor calls for it); decides when a sandbox is made or reused.
Read next: ``hardening`` (what a container is), ``link`` (how one talks to it), ``endings`` (which
problem each kind of end becomes), ``PROTOCOL.md``.

    create -> init -> verify, limit, pin, remount -> start -> HELLO -> verify -> LOAD -> REQ ...

Made ahead (a zygote), IMPORT and ``bind`` come before LOAD: bound to one version, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, NoReturn

from appliance import clock
from appliance.errors import (
    ApplianceError,
    BuildFailed,
    PodmanUnavailable,
    RunnerCrashed,
    RunnerProtocol,
)
from appliance.sandbox import egress, endings, hardening, kernel, limits, scripts
from appliance.sandbox.confined import require_confined, require_nodes
from appliance.sandbox.faults import Faults
from appliance.sandbox.frames import GuestFault, LinkLost, ReplyOverCap
from appliance.sandbox.freezer import Brake
from appliance.sandbox.gpu_watch import GpuWatched
from appliance.sandbox.hardening import Slot
from appliance.sandbox.link import Link, Sink
from appliance.sandbox.runtimes.language import Language
from appliance.sandbox.spec import (
    Batch,
    Level,
    Reply,
    Request,
    SandboxInfo,
    SandboxSpec,
    State,
    ZygoteKey,
)

if TYPE_CHECKING:
    from appliance.sandbox.podman import Api, PodmanExecutor
    from appliance.sandbox.service import PodmanService

_LOG = logging.getLogger(__name__)
HELLO_TIMEOUT_S = 20.0
IMPORT_TIMEOUT_S = 300.0  # it may be held back for a while
_END_TIMEOUT_S = 2.0
_NICENESS = 5


class PodmanSandbox:
    """``Sandbox`` in one container."""

    def __init__(
        self,
        executor: PodmanExecutor,
        spec: SandboxSpec,
        *,
        level: Level,
        slot: Slot,
        key: ZygoteKey | None = None,
    ) -> None:
        self.id = clock.new_id("sb")
        self.spec = spec
        self.level = level
        self.slot = slot
        self.cores: tuple[int, ...] = ()
        self.link = Link()
        self.pid = 0
        self.modules: tuple[str, ...] = ()
        self._key = key
        self._executor = executor
        self._box = executor.boxes / self.id
        self._ways: egress.WaysOut | None = None
        self._pidfd = -1
        self._ended = asyncio.Event()
        self._destroying: asyncio.Task[None] | None = None
        self._state: State = "starting"
        self._created_ns = clock.now_ns()
        self._last_used_ns = self._created_ns
        self._calls = 0
        self._open_batches = 0
        self._made = False
        self._container_id = ""
        self._making: asyncio.Future[None] | None = None
        self._brake = Brake(self._uids, executor.run)

    @property
    def alive(self) -> bool:
        """See ``Sandbox.alive``."""
        return not self._ended.is_set() and self._destroying is None and not self.link.lost.is_set()

    def stderr_tail(self) -> tuple[str, ...]:
        """See ``Sandbox.stderr_tail``."""
        lines = self.link.logs.lines()
        return (self.spec.caution, *lines) if self.spec.caution else lines

    def info(self) -> SandboxInfo:
        """See ``Sandbox.info``."""
        sample = self._executor.watchdog.sample(self.id)
        return SandboxInfo(
            id=self.id,
            version_key=self.spec.version_key,
            tenant_id=self.spec.tenant_id,
            state=self._state,
            pid=self.pid,
            created_ns=self._created_ns,
            calls=self._calls,
            rss_bytes=kernel.resident_bytes(sample.pids),
            memory_bytes=sample.memory_bytes,
            cpu_ms=kernel.cpu_ms(sample.pids),
            last_used_ns=self._last_used_ns,
            gpus=self.spec.gpu_units,
            gpu_memory_bytes=self._executor.gpu_watch.sample(self.id).used_bytes,
        )

    async def start(self, runtime_folder: str, language: Language, wheels: str) -> None:
        """Make, verify and start the container and wait for its HELLO.

        Raises:
            PodmanUnavailable: it could not be made, or was not confined as it must be.
            RunnerCrashed: its runner did not come up.
        """
        names = (
            (language.builder, *language.build_helpers)
            if wheels
            else (language.runner, *language.helpers)
        )
        found = tuple(filter(None, names))
        await asyncio.to_thread(scripts.lay_out, self._box, found, language.name, self._uids)
        await self.link.listen(self._box / "a.sock", uid=self._link_uid)
        making = self._executor.run(self._create_and_init, runtime_folder, language, wheels)
        self._making = asyncio.ensure_future(making)
        await asyncio.shield(self._making)
        if self._ways is not None:
            await self._ways.serve()
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_exit)
        self._watch()
        await self.begin()
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                await self.link.hello()
        except (TimeoutError, LinkLost) as error:
            raise RunnerCrashed(
                "The runtime's runner did not start.", stderr=self.stderr_tail()
            ) from error
        # Again: now it is the runner itself, not the OCI runtime's first stage.
        self._verify()
        self._state = "idle"

    async def begin(self) -> None:
        """Start the container's first process.

        Raises:
            PodmanUnavailable: it cannot be started.
        """
        await self._executor.run(self._api.must, "post", f"/containers/{self.id}/start")

    async def import_ahead(self) -> None:
        """Have the runner import the key's modules, before there is a version.

        Raises:
            OutOfMemory, RunnerCrashed, RunnerProtocol: it is destroyed.
        """
        if self._key is None:
            raise ValueError("this sandbox was not made ahead")
        deps = "/deps" if self.spec.deps_key else ""
        try:
            async with asyncio.timeout(IMPORT_TIMEOUT_S):
                await self.link.import_ahead({"deps": deps}, self._key.modules)
        except (TimeoutError, GuestFault) as error:
            await self._killed()
            raise RunnerCrashed(
                "The imports of a sandbox made ahead did not end well.", stderr=self.stderr_tail()
            ) from error
        except LinkLost as lost:
            await self._raise_lost(lost)
        except BaseException:
            await asyncio.shield(self.destroy())
            raise

    def ready_ahead(self) -> None:
        """It waits for its version now."""
        self._state = "zygote"

    def hold_back(self, held: bool) -> None:
        """Stop the runner, or let it go on."""
        if self._key is not None and self.pid and self.alive:
            kernel.signal_all(
                kernel.descendants(self.pid), signal.SIGSTOP if held else signal.SIGCONT
            )

    async def freeze(self) -> None:
        """See ``Sandbox.freeze``."""
        if self._state not in ("ready", "zygote") or not self.alive:
            return
        if self._state == "ready":
            self._state = "frozen"
        if not await self._brake.freeze(self.pid, by_cgroup=self._has_cgroup):
            _LOG.warning("sandbox %s could not be stopped; it is ended", self.id)
            await self.destroy()

    async def has_moved(self) -> bool:
        """See ``Sandbox.has_moved``."""
        return self.alive and await self._brake.has_moved()

    async def bind(self, spec: SandboxSpec) -> None:
        """See ``Sandbox.bind``."""
        if self._state != "zygote" or self._key is None or not self._key.is_fit_for(spec):
            raise ValueError("this sandbox is not free, or not made for such a version")
        self._state = "loading"  # from here on it is this version's or nobody's
        try:
            await self._executor.run(self._fit, spec)
            await self._brake.thaw()
            if self._ways is not None:
                await self._ways.serve()
        except (OSError, ApplianceError) as error:
            await asyncio.shield(self.destroy())
            raise RunnerCrashed(f"A sandbox made ahead cannot be used: {error}") from error
        except BaseException:
            await asyncio.shield(self.destroy())
            raise
        self.spec = spec
        self._watch()
        self._last_used_ns = clock.now_ns()

    def _fit(self, spec: SandboxSpec) -> None:
        """Blocking: put every limit of the version in force, and look whether it is."""
        self._verify()
        family = kernel.descendants(self.pid)
        if len(family) != 1:
            raise RunnerCrashed(f"its imports left {len(family) - 1} processes behind")
        sizes = hardening.tmpfs_sizes(spec)
        self._executor.remounter.set_quotas(self.pid, sizes)
        wanted = hardening.process_limits(spec, self.level)
        for pid in (self.pid, *family):
            kernel.set_limits(pid, wanted)
            found = kernel.limits_of(pid)
            if any(found[name] != value for name, value in wanted.items()):
                raise RunnerCrashed("its limits did not change")
        if kernel.descendants(self.pid) != family:
            raise RunnerCrashed("its processes changed while it was bound")
        if self.level == "enforced":
            limit = hardening.cgroup_limits(spec)["memory"]["limit"]
            kernel.set_memory_max(self.pid, limit)
        self._open_ways(spec)

    async def load(self, tar: AsyncIterator[bytes]) -> float:
        """See ``Sandbox.load``."""
        started = clock.monotonic_ns()
        self._state = "loading"
        limit_ms, deps = self.spec.limits.load_timeout_ms, "/deps" if self.spec.deps_key else ""
        header: dict[str, Any] = {"entry": self.spec.entry, "path": "/model", "deps": deps}
        header |= {"calls": True} if self.spec.makes_calls else {}
        if self.spec.options:
            header["options"] = self.spec.options
        if self.spec.outlets is not None and self.spec.outlets.proxy:
            header["proxy"] = hardening.PROXY_URL
        try:
            async with asyncio.timeout(limit_ms / 1000):
                _, self.modules = await self.link.load(header, tar)
        except TimeoutError as error:
            await self._killed()
            raise endings.late_load(limit_ms, self.link.waiting, self.stderr_tail()) from error
        except GuestFault as fault:
            await self._raise_load_fault(fault)
        except LinkLost as lost:
            await self._raise_lost(lost, is_loading=True)
        except BaseException:
            await asyncio.shield(self.destroy())
            raise
        self._state = "ready"
        self._last_used_ns = clock.now_ns()
        return (clock.monotonic_ns() - started) / 1e6

    async def request(self, request: Request) -> Reply:
        """See ``Sandbox.request``."""
        self._state = "busy"
        self._calls += 1
        try:
            await self._brake.thaw()
            reply = await self.link.request(request)
        except TimeoutError as error:
            await self._killed()
            raise endings.late_call(request.timeout_ms, self.stderr_tail()) from error
        except ReplyOverCap as error:
            await self._killed()
            raise endings.too_large(request.reply_bytes_max, self.stderr_tail()) from error
        except GuestFault as fault:
            await self._raise_call_fault(fault)
        except LinkLost as lost:
            await self._raise_lost(lost)
        except BaseException:
            await asyncio.shield(self.destroy())
            raise
        self._state = "ready"
        self._last_used_ns = clock.now_ns()
        return reply

    @property
    def can_batch(self) -> bool:
        """See ``Sandbox.can_batch``."""
        return self.link.can_batch

    async def batch(self, batch: Batch) -> None:
        """See ``Sandbox.batch``."""
        self._state, self._open_batches = "busy", self._open_batches + 1
        self._calls += len(batch.requests)
        faults = Faults(self.link, self.spec, batch, self.stderr_tail)
        try:
            await self._brake.thaw()
            await self.link.batch(batch, faults.add)
            await faults.told()
            if faults.is_fatal:
                await asyncio.shield(self.destroy())
        except TimeoutError as error:
            await self._killed()
            limit_ms = batch.requests[0].timeout_ms
            raise endings.late_call(limit_ms, self.stderr_tail()) from error
        except LinkLost as lost:
            await faults.told()
            await self._raise_lost(lost)
        except BaseException:
            await asyncio.shield(self.destroy())
            raise
        finally:
            self._open_batches -= 1
        self._last_used_ns = clock.now_ns()
        if not self._open_batches and self._state == "busy":
            self._state = "ready"

    async def build(self, sink: Sink, log: Callable[[str], None]) -> None:
        """Run a BUILD to its end.

        Raises:
            BuildFailed: the installer failed, ran out of room or time.
        """
        self._state = "busy"
        limit_ms = self.spec.limits.load_timeout_ms
        try:
            async with asyncio.timeout(limit_ms / 1000):
                await self.link.build({"wheels": "/data"}, sink, log)
        except TimeoutError as error:
            raise BuildFailed(f"The build took longer than {limit_ms // 1000} s.") from error
        except GuestFault as fault:
            raise BuildFailed(fault.detail, lines=list(fault.trace)) from fault
        except LinkLost as lost:
            over = self._executor.watchdog.sample(self.id).over
            reason = "ran out of memory" if over else lost.protocol or "ended"
            raise BuildFailed(f"The build {reason} before it was done.") from lost

    async def destroy(self) -> None:
        """See ``Sandbox.destroy``."""
        if self._destroying is None:
            self._state = "killed"
            self._destroying = asyncio.create_task(self._destroy(), name=f"destroy-{self.id}")
        await asyncio.shield(self._destroying)

    # What another tier does in another way (``gvisor``).

    @property
    def _service(self) -> PodmanService:
        service = self._executor.service
        if service is None:
            raise PodmanUnavailable("Podman's service is not running.")
        return service

    @property
    def _api(self) -> Api:
        return self._executor.api

    @property
    def _link_uid(self) -> int:
        return self.slot.user_uid

    @property
    def _uids(self) -> tuple[int, ...]:
        """The host ids its processes run as."""
        return (self.slot.root_uid, self.slot.user_uid)

    @property
    def _has_cgroup(self) -> bool:
        """Whether a cgroup v2 holds this container and nothing else."""
        return self.level == "enforced"

    def _adapt(self, body: dict[str, Any]) -> None:
        """Change the description of the container before it is made."""

    def _created(self, container_id: str) -> None:
        """Blocking: it is made, and not initialised yet."""

    def _create_and_init(self, runtime_folder: str, language: Language, wheels: str) -> None:
        """Blocking: make the container up to the point before its first own instruction."""
        executor, spec, api, service = self._executor, self.spec, self._api, self._service
        inside = service.inside
        binds = {"/deps": inside("deps", spec.deps_key)} if spec.deps_key else {}
        if wheels:
            binds["/data"] = inside("wheels", wheels)
        labels = {"appliance.instance": executor.instance, "appliance.version": spec.version_key}
        memory = spec.resources.memory_bytes
        body = hardening.container_json(
            spec,
            name=self.id,
            labels=labels,
            command=language.build_command if wheels else language.argv(memory),
            slot=self.slot,
            rootfs=inside("runtimes", runtime_folder, "rootfs"),
            box=inside("box", self.id),
            binds=binds,
            seccomp_path=str(executor.boxes / hardening.seccomp_name(self.level, spec)),
            level=self.level,
            cgroup_parent=executor.cgroup_parent,
            build=bool(wheels),
        )
        part = executor.gpus.part(spec.gpu_units)
        bundle = inside("gpu", part.bundle) if part.bundle else ""
        self._adapt(body)
        hardening.add_gpus(body, part, bundle=bundle)
        self._made = True
        made = api.must("post", "/containers/create", data=json.dumps(body))
        self._created(str(made["Id"]))
        api.must("post", f"/containers/{self.id}/init")
        self._container_id = str(made["Id"])
        self.pid = service.pid_of(self._container_id)
        if not self.pid:
            about = api.must("get", f"/containers/{self.id}/json")
            self.pid = int(about["State"]["Pid"])
        self._pidfd = os.pidfd_open(self.pid)
        self._verify()
        require_nodes(self.pid, part)
        self._limit(build=bool(wheels))
        self._open_ways(spec)

    def _verify(self) -> None:
        """Return if its first process is confined. Raises PodmanUnavailable, RunnerCrashed."""
        require_confined(self.pid, self.slot)

    def _limit(self, *, build: bool) -> None:
        """Blocking: put the limits in force, before the first own instruction."""
        spec, ahead = self.spec, self._key is not None
        wanted = hardening.process_limits(spec, self.level, build=build, ahead=ahead)
        kernel.set_limits(self.pid, wanted)
        if self.level != "enforced":
            kernel.pin(self.pid, self.cores, _NICENESS)
        # Podman takes no inode quota.
        sizes = hardening.tmpfs_sizes(spec, build=build)
        self._executor.remounter.set_quotas(self.pid, sizes)

    def _open_ways(self, spec: SandboxSpec) -> None:
        self._ways = egress.ways_out(self._executor, spec, self.id, self.pid, self._box)

    def _watch(self) -> None:
        spec = self.spec
        self._executor.watchdog.watch(
            self.id,
            limits.Watched(
                pid=self.pid,
                pidfd=self._pidfd,
                uids=(self.slot.root_uid, self.slot.user_uid),
                limit_bytes=spec.resources.memory_bytes,
                allowance_bytes=spec.model_bytes + spec.model_bytes // 8 + limits.SLACK_BYTES,
                mounts=tuple(hardening.tmpfs_sizes(spec).bytes),
                kills=self.level != "enforced",
                counts_shared=bool(spec.resources.gpus),
            ),
        )

        if spec.gpu_units:
            self._executor.gpu_watch.watch(
                self.id,
                GpuWatched(
                    units=spec.gpu_units,
                    uids=(self.slot.root_uid, self.slot.user_uid),
                    pidfd=self._pidfd,
                    share_bytes=spec.resources.gpu_memory_bytes,
                ),
            )

    def _on_exit(self) -> None:
        """The first process ended (its pidfd became readable)."""
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self._executor.watchdog.unwatch(self.id)
        self._executor.gpu_watch.unwatch(self.id)
        self._ended.set()
        self._state = "killed"
        asyncio.get_running_loop().call_later(0.2, self.link.end)

    async def _killed(self) -> None:
        """Kill the container now; what it printed last may still be read."""
        self._kill()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.link.monitor_lost.wait(), 0.2)
        await asyncio.shield(self.destroy())

    def remove(self) -> bool:
        """Remove the container and whatever runs under its ids; False: try again. Blocking."""
        try:
            removed = self._api.remove(self.id)
            self._service.forget(self._container_id)
            # Podman may have died before it knew of what it had started.
            return kernel.ensure_none_of((self.slot.root_uid, self.slot.user_uid)) and removed
        except (OSError, ApplianceError) as error:  # no descriptor is free, say
            _LOG.warning("sandbox %s is not removed yet: %s", self.id, error)
            return False

    def _kill(self) -> None:
        if self._pidfd >= 0 and not self._ended.is_set():
            kernel.kill(self._pidfd)

    async def _raise_load_fault(self, fault: GuestFault) -> NoReturn:
        await self.link.settle_logs()
        tail = self.stderr_tail()
        await asyncio.shield(self.destroy())
        raise endings.of_load_fault(self.spec, fault, tail)

    async def _raise_call_fault(self, fault: GuestFault) -> NoReturn:
        await self.link.settle_logs()
        tail = self.stderr_tail()
        if endings.is_fatal(fault):
            await asyncio.shield(self.destroy())
        else:
            self._state = "ready"
            self._last_used_ns = clock.now_ns()
        raise endings.of_call_fault(self.spec, fault, tail)

    async def _raise_lost(self, lost: LinkLost, *, is_loading: bool = False) -> NoReturn:
        """The link ended while something was waited for: find out why, end the rest, say it."""
        if lost.protocol:
            await self._killed()
            raise RunnerProtocol(
                f"The model broke the runner protocol: {lost.protocol}.", stderr=self.stderr_tail()
            )
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), 1.0)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.link.monitor_lost.wait(), 0.5)
        ended = self._ended.is_set()
        destroyed = self._destroying is not None
        over = self._executor.watchdog.sample(self.id).over
        over_gpu = self._executor.gpu_watch.sample(self.id).over
        code, kernel_killed = self.link.exit_code, False
        if ended and not destroyed and (code is None or self.level == "enforced"):
            code, kernel_killed = await self._executor.run(self._api.exit_of, self.id, code)
        end = endings.End(
            is_over=ended,
            was_stopped=destroyed,
            over_memory=over or kernel_killed or self.link.exit_kind == "memory",
            over_gpu_memory=over_gpu,
            exit_code=code,
            was_loading=is_loading,
        )
        tail = self.stderr_tail()
        await asyncio.shield(self.destroy())
        raise endings.of_end(self.spec, end, tail)

    async def _destroy(self) -> None:
        executor = self._executor
        if self._making is not None:  # a thread cannot be cancelled: what it makes would stay
            await asyncio.wait({self._making})
            _ = self._making.cancelled() or self._making.exception()
        self._kill()
        if self._pidfd >= 0:
            if not self._ended.is_set():  # it may have been cancelled before anybody listened
                asyncio.get_running_loop().add_reader(self._pidfd, self._on_exit)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), _END_TIMEOUT_S)
            asyncio.get_running_loop().remove_reader(self._pidfd)
        executor.watchdog.unwatch(self.id)
        executor.gpu_watch.unwatch(self.id)
        if self._ways is not None:
            await self._ways.close()
        await self.link.close()
        removed = True
        if self._made:
            removed = await executor.run(self.remove)
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        executor.watchdog.forget(self.id)
        executor.gpu_watch.forget(self.id)
        await asyncio.to_thread(shutil.rmtree, self._box, ignore_errors=True)
        self._ended.set()
        if removed:
            executor.gone(self)
        else:
            executor.remove_later(self)
