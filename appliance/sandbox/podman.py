"""The Podman engine: the transport to its service, slots, cores, and the probe of limits.

Owns: the only import of ``podman``; which sandboxes there are; what is free for the next one.
Never: decides when a sandbox is made or reused (``pool``); trusts what Podman reports.
Read next: ``container`` (the life of one), ``hardening`` (what a container is), ``limits``.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import podman
import requests

from appliance import clock, config
from appliance.errors import (
    ApplianceError,
    GuestError,
    IsolationUnavailable,
    LimitsUnenforced,
    OutOfMemory,
    PodmanUnavailable,
    RuntimeMissing,
)
from appliance.records import Container, Isolation
from appliance.sandbox import gvisor, hardening, images, kernel, limits, oci, tiers
from appliance.sandbox.container import PodmanSandbox
from appliance.sandbox.egress import Guard
from appliance.sandbox.gpu import Gpus
from appliance.sandbox.gpu_place import Fill, Places
from appliance.sandbox.gpu_watch import GpuWatch
from appliance.sandbox.gvisor import Gvisor, GvisorSandbox
from appliance.sandbox.image_sandbox import ImageSandbox, image_language
from appliance.sandbox.link import Sink
from appliance.sandbox.mounts import Remounter
from appliance.sandbox.netns import Netns
from appliance.sandbox.protocols import serving
from appliance.sandbox.runtimes import RUNTIMES
from appliance.sandbox.runtimes.language import Language
from appliance.sandbox.service import PodmanService, find_runtime
from appliance.sandbox.slots import Slots
from appliance.sandbox.spec import Level, LimitsReport, Request, SandboxSpec, ZygoteKey

_LOG = logging.getLogger(__name__)
_API_TIMEOUT_S = 30.0
_REMOVE_AGAIN_S = 2.0
_RESTART_S = 5.0


class Api:
    """Raw calls to the Podman service, one client per thread; blocking."""

    def __init__(self, address: Path) -> None:
        self._address = address
        self._url = f"unix://{address}"
        self._local = threading.local()

    def call(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        """HTTP status and decoded body of one call; tried anew once if the service went away.

        It is started again within moments, which are waited for.

        Raises:
            PodmanUnavailable: the service does not answer.
        """
        for attempt in (1, 2):
            client = getattr(self._local, "client", None)
            if client is None:
                client = podman.PodmanClient(base_url=self._url, timeout=_API_TIMEOUT_S)
                self._local.client = client
            try:
                reply = getattr(client.api, method)(path, **options)
                return reply.status_code, reply.json() if reply.content else None
            except (requests.RequestException, OSError, ValueError) as error:
                self._local.client = None
                client.close()
                if attempt == 2:
                    raise PodmanUnavailable(
                        "Podman's service does not answer.", hint="appliance doctor"
                    ) from error
                if isinstance(error, requests.ConnectionError):
                    self._wait_for_service()
        raise AssertionError

    def _wait_for_service(self) -> None:
        """Return once somebody listens on the socket, or after a while."""
        deadline = time.monotonic() + _RESTART_S
        while time.monotonic() < deadline:
            with socket.socket(socket.AF_UNIX) as link, contextlib.suppress(OSError):
                link.connect(str(self._address))
                return
            time.sleep(0.05)

    def must(self, method: str, path: str, **options: Any) -> Any:
        """The body of a call that has to succeed.

        Raises:
            PodmanUnavailable: it did not; the detail is Podman's own message.
        """
        status, body = self.call(method, path, **options)
        if status >= 300:
            reason = str(body.get("message", body) if isinstance(body, dict) else body)[:500]
            raise PodmanUnavailable(f"Podman refused: {reason}", hint="appliance doctor")
        return body

    def exit_of(self, name: str, code: int | None) -> tuple[int | None, bool]:
        """Exit code, if not known, and whether the kernel killed it for memory, as Podman knows."""
        with contextlib.suppress(ApplianceError, KeyError, TypeError, ValueError):
            for _ in range(10):
                state = self.must("get", f"/containers/{name}/json")["State"]
                if not state.get("Running", False):
                    known = code if code is not None else int(state["ExitCode"])
                    return known, bool(state.get("OOMKilled"))
                threading.Event().wait(0.05)
        return code, False

    def remove(self, name: str) -> bool:
        """Remove a container by force; a life that is just ending makes Podman say 500: retried."""
        for _ in range(8):
            with contextlib.suppress(PodmanUnavailable):
                parameters = {"force": "true", "timeout": "0", "v": "true"}
                status, _body = self.call("delete", f"/containers/{name}", params=parameters)
                if status < 300 or status == 404:
                    return True
            threading.Event().wait(0.05)
        return False


class PodmanExecutor:
    """``Executor`` on this machine's rootless Podman."""

    def __init__(
        self,
        settings: config.Sandbox,
        *,
        run_dir: Path,
        data_dir: Path,
        ids: kernel.SubIds | None = None,
    ) -> None:
        """Describe it; nothing happens before ``start``.

        Args:
            settings: the ``[sandbox]`` section.
            run_dir: folder on a tmpfs.
            data_dir: folder with ``runtimes/`` and ``deps/``.
            ids: the sub-ids to use; ``None`` for all this user has.
        """
        self.settings = settings
        self.run_dir = run_dir
        self.data_dir = data_dir
        self.boxes = run_dir / "box"
        self.instance = clock.new_id("in", 8)
        self.cores = sorted(os.sched_getaffinity(0))
        self.watchdog = limits.Watchdog()
        self.service: PodmanService | None = None
        self.guard: Guard | None = None
        self.gvisor: Gvisor | None = None
        self._ids = ids
        self.slots = Slots(kernel.SubIds(uid_base=0, gid_base=0, count=0))
        self.api = Api(run_dir / "podman.sock")
        self._threads = ThreadPoolExecutor(2 * len(self.cores) + 4, "podman")
        self._sandboxes: dict[str, PodmanSandbox] = {}
        self._pinned: dict[int, int] = dict.fromkeys(self.cores, 0)
        self._importing: set[PodmanSandbox] = set()
        self._removing: set[asyncio.Task[None]] = set()
        self._held = False
        self._remounter: Remounter | None = None
        self._netns: Netns | None = None
        self._limits = limits.unprobed("Not started.")
        self._probing = asyncio.Lock()
        self._version = ""
        self.cgroup_parent = ""
        self.gpus = Gpus(settings, data_dir / "gpu")
        self.gpu_watch = GpuWatch(self.gpus.usage)
        self.places = Places()

    @property
    def limits(self) -> LimitsReport:
        """What the probe found."""
        return self._limits

    @property
    def remounter(self) -> Remounter:
        """Who sets the quotas of containers' mounts."""
        if self._remounter is None:
            raise PodmanUnavailable("Podman's service is not running.")
        return self._remounter

    @property
    def netns(self) -> Netns:
        """Who makes sockets inside containers."""
        if self._netns is None:
            raise PodmanUnavailable("Podman's service is not running.")
        return self._netns

    async def gpu_fills(self) -> dict[str, Fill]:
        """See ``Executor.gpu_fills``."""
        found: dict[str, Fill] = await self.run(self.gpus.fills)
        return found

    async def start(self) -> None:
        """See ``Executor.start``."""
        try:
            await self._start()
        except BaseException:
            await self.close()
            raise

    async def _start(self) -> None:
        ids = self._ids or kernel.own_sub_ids()
        if ids.count < 2:
            raise PodmanUnavailable(
                "The service user has no subordinate user and group ids.",
                hint="usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER",
            )
        start = int.from_bytes(hashlib.sha256(str(self.run_dir).encode()).digest()[:4], "big")
        self.slots = Slots(ids, start=start, without=gvisor.SENTRY_ID - 1)
        self.places = Places((await asyncio.to_thread(self.gpus.start)).gpus)
        binds = {
            "runtimes": self.data_dir / "runtimes",
            "deps": self.data_dir / "deps",
            "wheels": self.data_dir / "wheels",
            "box": self.boxes,
            "gpu": self.data_dir / "gpu",
        }
        self.service = PodmanService(
            self.run_dir, runtime=find_runtime(self.settings.oci_runtime), binds=binds
        )
        await self.service.start()
        await asyncio.to_thread(oci.sweep, self.data_dir)
        if tiers.runsc_path():
            api = Api(self.run_dir / gvisor.SOCKET)
            self.gvisor = Gvisor(self, api, binds, sentry_uid=ids.uid_base + gvisor.SENTRY_ID - 1)
            await asyncio.to_thread(self.gvisor.sweep)
        self._remounter = Remounter(self.service.keeper_pid)
        self._netns = Netns(self.service.keeper_pid)
        self.watchdog.start()
        self.gpu_watch.start()
        for level in ("enforced", "supervised"):
            for tail, gpu in (("", False), ("-gpu", True)):
                profile = json.dumps(hardening.seccomp_profile(level, gpu=gpu))
                file = self.boxes / f"seccomp-{level}{tail}.json"
                file.write_text(profile, encoding="ascii")
        about = await self.run(self.api.must, "get", "/version")
        self._version = str(about.get("Version", ""))
        self._limits = limits.unprobed("No runtime is installed, so nothing could be tried.")
        await self._probe_if_possible()

    async def close(self) -> None:
        """See ``Executor.close``."""
        await asyncio.gather(*(box.destroy() for box in list(self._sandboxes.values())))
        for task in self._removing:
            task.cancel()
        await asyncio.gather(*self._removing, return_exceptions=True)
        self.watchdog.stop()
        await asyncio.to_thread(self.gpu_watch.stop)
        self.gpus.driver.close()
        if self._remounter is not None:
            await asyncio.to_thread(self._remounter.stop)
        if self._netns is not None:
            await asyncio.to_thread(self._netns.stop)
        if self.gvisor is not None:
            await self.gvisor.stop()
        if self.service is not None:
            await self.service.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._limits = limits.unprobed("Stopped.")

    async def create(self, spec: SandboxSpec) -> PodmanSandbox:
        """See ``Executor.create``."""
        self.require_isolation(spec.isolation)
        return await self._make(spec, await self._accepted_level())

    async def create_ahead(self, key: ZygoteKey) -> PodmanSandbox:
        """See ``Executor.create_ahead``."""
        self.require_isolation(key.isolation)
        sandbox = await self._make(key.spec, await self._accepted_level(), key=key)
        self._importing.add(sandbox)
        try:
            if self._held:
                sandbox.hold_back(True)
            if RUNTIMES[key.runtime].imports_ahead and key.modules:
                await sandbox.import_ahead()
        except BaseException:
            await asyncio.shield(sandbox.destroy())
            raise
        finally:
            self._importing.discard(sandbox)
        sandbox.ready_ahead()
        await sandbox.freeze()
        return sandbox

    def require_isolation(self, isolation: Isolation) -> None:
        """See ``Executor.require_isolation``."""
        tiers.require(isolation)

    def has_installed(self, key: ZygoteKey) -> bool:
        """See ``Executor.has_installed``."""
        try:
            images.require(self.data_dir, key.runtime, key.runtime_digest)
        except RuntimeMissing:
            return False
        return not key.deps_key or (self.data_dir / "deps" / key.deps_key).is_dir()

    def hold_back(self, held: bool) -> None:
        """See ``Executor.hold_back``."""
        self._held = held
        for sandbox in self._importing:
            sandbox.hold_back(held)

    async def _accepted_level(self) -> Level:
        """What holds the limits here.

        Raises:
            LimitsUnenforced: nothing does, or nothing that was accepted.
        """
        if not self._limits.mechanism:
            await self._probe_if_possible()
        report = self._limits
        if report.level == "none":
            raise LimitsUnenforced(
                f"No model may run: {report.detail}", hint="appliance doctor limits"
            )
        if report.level == "supervised" and not self.settings.accept_supervised_limits:
            raise LimitsUnenforced(
                "Limits on this host are supervised by the appliance, not enforced by the kernel, "
                "and that was not accepted.",
                hint="set sandbox.accept_supervised_limits = true, or delegate a cgroup v2",
            )
        return report.level

    async def build(
        self, spec: SandboxSpec, wheels: str, sink: Sink, log: Callable[[str], None]
    ) -> None:
        """See ``Executor.build``."""
        await self._probe_if_possible()
        if self._limits.level == "none":
            raise LimitsUnenforced(f"Nothing may run: {self._limits.detail}")
        sandbox = await self._make(spec, self._limits.level, wheels=wheels)
        try:
            await sandbox.build(sink, log)
        finally:
            await sandbox.destroy()

    def info(self) -> dict[str, Any]:
        """See ``Executor.info``."""
        service = self.service
        return {
            "engine": "podman",
            "version": self._version,
            "oci_runtime": Path(service.runtime).name if service else "",
            "socket": str(self.run_dir / "podman.sock"),
            "service_pid": service.pid if service else 0,
            "service_restarts": service.restarts if service else 0,
            "isolation": "rootless, own user ids, no network, read-only root, no capabilities",
            "tiers": ["standard", *(["gvisor"] if self.gvisor is not None else [])],
            "sandboxes": len(self._sandboxes),
        }

    async def run(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """A blocking call in one of the transport's threads."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: call(*arguments, **named))

    def place(self, cpus: float) -> tuple[int, ...]:
        """The cores a new container is bound to: the least used ones; all if it asks for all."""
        wanted = min(len(self.cores), max(1, int(cpus + 0.999)))
        chosen = tuple(sorted(self.cores, key=lambda core: (self._pinned[core], core))[:wanted])
        for core in chosen:
            self._pinned[core] += 1
        return chosen

    def gone(self, sandbox: PodmanSandbox) -> None:
        """A sandbox was removed: its ids and cores are free."""
        if self._sandboxes.pop(sandbox.id, None) is not None:
            self.slots.give(sandbox.slot)
            for core in sandbox.cores:
                self._pinned[core] -= 1

    def remove_later(self, sandbox: PodmanSandbox) -> None:
        """A sandbox ended but Podman did not remove it: try again until it does.

        Its ids stay reserved meanwhile.
        """
        _LOG.warning("container %s could not be removed; tried again later", sandbox.id)
        task = asyncio.create_task(self._remove_at_last(sandbox), name=f"remove-{sandbox.id}")
        self._removing.add(task)
        task.add_done_callback(self._removing.discard)

    async def _remove_at_last(self, sandbox: PodmanSandbox) -> None:
        while True:
            await asyncio.sleep(_REMOVE_AGAIN_S)
            if await self.run(sandbox.remove):
                break
        self.gone(sandbox)

    async def _make(
        self,
        spec: SandboxSpec,
        level: Level,
        *,
        wheels: str = "",
        key: ZygoteKey | None = None,
    ) -> PodmanSandbox:
        if len(spec.gpu_units) != spec.resources.gpus:
            raise ValueError("a sandbox with GPUs is made for the units it was given")
        runtime = await asyncio.to_thread(
            images.require, self.data_dir, spec.runtime, spec.runtime_digest
        )
        sandbox, language = await self._described(runtime, spec, level, key)
        sandbox.cores = self.place(spec.resources.cpus)
        self._sandboxes[sandbox.id] = sandbox
        try:
            await sandbox.start(runtime.rootfs.parent.name, language, wheels)
        except BaseException:
            await asyncio.shield(sandbox.destroy())
            raise
        return sandbox

    async def _described(
        self, runtime: images.Runtime, spec: SandboxSpec, level: Level, key: ZygoteKey | None
    ) -> tuple[PodmanSandbox, Language]:
        """A sandbox that nothing was made for yet: of a language, or of an imported image."""
        if spec.isolation == "gvisor":
            tiers.require(spec.isolation, of_image=runtime.image is not None, spec=spec)
            return await self._described_gvisor(spec, key), RUNTIMES[spec.runtime]
        if runtime.image is None:
            one = PodmanSandbox(self, spec, level=level, slot=self.slots.take(), key=key)
            return one, RUNTIMES[spec.runtime]
        served = serving(runtime.image, spec.container or Container())
        of_image = ImageSandbox(self, spec, served, level=level, slot=self.slots.take())
        return of_image, image_language(served)

    async def _described_gvisor(self, spec: SandboxSpec, key: ZygoteKey | None) -> PodmanSandbox:
        if self.gvisor is None:  # installed since the start
            raise IsolationUnavailable("gVisor was installed meanwhile.", hint="restart appliance")
        await self.gvisor.ensure()
        # It is in no cgroup, so its memory is supervised whatever holds on this host.
        return GvisorSandbox(self, spec, level="supervised", slot=self.slots.take(), key=key)

    async def _probe_if_possible(self) -> None:
        """Try the limits, strongest mechanism first, unless they were tried already."""
        async with self._probing:
            if self._limits.mechanism:
                return
            installed = await asyncio.to_thread(images.installed, self.data_dir)
            found = [runtime for runtime in installed if runtime.name == limits.PROBE_RUNTIME]
            if not found:
                return
            parent = limits.delegated_parent(self.settings.cgroup_parent)
            tries: list[tuple[Level, str, str]] = [("supervised", "rlimits and watchdog", "")]
            if parent:
                tries.insert(0, ("enforced", f"delegated cgroup v2 {parent}", parent))
            for level, mechanism, self.cgroup_parent in tries:
                self._limits = await self._probe(level, mechanism, found[-1])
                if self._limits.level != "none":
                    break

    async def _probe(self, level: Level, mechanism: str, runtime: images.Runtime) -> LimitsReport:
        spec = limits.probe_spec(runtime.name, runtime.digest)
        one, many, made = await asyncio.gather(
            self._attempt(spec, level, "one", spec.resources.memory_bytes * 4),
            self._attempt(spec, level, "many", int(spec.resources.memory_bytes * 0.6)),
            self._attempt(spec, level, "pids", spec.resources.pids * 3),
        )
        result = limits.ProbeResult(one_process=one < 0, many_processes=many < 0, made=made)
        return limits.report_from_probe(level, mechanism, result)

    async def _attempt(self, spec: SandboxSpec, level: Level, what: str, size: int) -> int:
        """What the probe model answered; -1 when it was stopped for memory.

        Raises:
            PodmanUnavailable: it could not even run; the detail says why.
        """

        async def tar() -> AsyncIterator[bytes]:
            yield limits.probe_tar()

        sandbox = await self._make(spec, level)
        try:
            await sandbox.load(tar())
            body = json.dumps({"what": what, "size": size}).encode()
            request = Request(
                id="probe",
                content_type="application/json",
                body=body,
                timeout_ms=spec.limits.invoke_timeout_ms,
                reply_bytes_max=1024,
            )
            return int((await sandbox.request(request)).body)
        except OutOfMemory:
            return -1
        except GuestError as error:
            _LOG.warning("the limits probe ended otherwise than planned: %s", error.detail)
            return 1 << 20
        finally:
            await sandbox.destroy()
