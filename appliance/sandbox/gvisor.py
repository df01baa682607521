"""Sandboxes with a kernel of their own: gVisor under a second Podman service.

Owns: that service, and what is different in a sandbox of this tier.
Never: falls back to a container of the host's kernel.
Read next: ``container`` (the life of a sandbox), ``tiers``.

The model's system calls end in the Sentry, a kernel in user space that is itself confined: seccomp,
an empty root, no capability. Its host uid is of no use to anything else: it is the last one of the
service user's range, and the files are opened by another process, the Gofer, that runs as this
container's own two ids. What the tier costs is in ``SECURITY-PROMISES.md``.

While it waits it is frozen as a whole, the Sentry first: its timers stop with it, and it makes no
more of the stubs in which the model's instructions run. A stub is traced by the Sentry, which takes
a SIGSTOP that it finds there for the one of a group stop, and lets the stub go on.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.errors import PodmanUnavailable, RunnerCrashed
from appliance.sandbox import hardening, kernel, limits, tiers
from appliance.sandbox.container import PodmanSandbox
from appliance.sandbox.mounts import Remounter
from appliance.sandbox.service import PodmanService

if TYPE_CHECKING:
    from appliance.sandbox.podman import Api, PodmanExecutor

SOCKET = "gv/api.sock"
NAME = "gv"  # short: Podman takes no long run folder
SENTRY_ID = 65534
"""What the Sentry runs as, counted in Podman's user namespace: nobody."""
GUEST_MEMORY = "runsc-memory"
KERNEL_BYTES = 32 * 1024 * 1024
"""What the Sentry takes for itself; not charged to the model."""
TASKS_EACH = 2
TASKS_OWN = 96
"""Host tasks behind one guest task, and those of the Sentry itself."""
_SENTRY_CAPABILITIES = 1 << 18 | 1 << 21  # SYS_CHROOT, SYS_PTRACE, in a namespace of one id
_NICENESS = 5
FLAGS = ("ignore-cgroups", "network=none", "platform=ptrace", "fsgofer-host-uds", "oci-seccomp")


class Gvisor:
    """The second service; started at the first sandbox of this tier."""

    def __init__(
        self, executor: PodmanExecutor, api: Api, binds: dict[str, Path], *, sentry_uid: int
    ) -> None:
        """Describe it.

        Args:
            executor: whose sandboxes these are.
            api: speaks to the socket ``executor.run_dir / SOCKET``.
            binds: as of the first service.
            sentry_uid: what ``SENTRY_ID`` is on the host.
        """
        self.api = api
        self.service = PodmanService(
            executor.run_dir,
            runtime=tiers.runsc_path(),
            binds=binds,
            runtime_flags=FLAGS,
            name=NAME,
            uncovered=True,
        )
        self.service.also_uids = (sentry_uid,)
        self._starting = asyncio.Lock()
        self._is_started = False
        self._reader: Remounter | None = None

    def sweep(self) -> None:
        """End what a dead predecessor left. Blocking."""
        self.service.sweep()

    async def ensure(self) -> None:
        """Start the service if it does not run yet.

        Raises:
            PodmanUnavailable: it does not start.
        """
        async with self._starting:
            if not self._is_started:
                try:
                    await self.service.start()
                except BaseException:
                    await self.service.stop()
                    raise
                self._reader = Remounter(self.service.keeper_pid)
                self._is_started = True

    def guest_bytes(self, pid: int) -> int:
        """All that the guest of a Sentry holds: its one file in memory. Blocking."""
        return self._reader.memory_file_bytes(pid, GUEST_MEMORY) if self._reader else 0

    async def stop(self) -> None:
        """Stop it; idempotent."""
        async with self._starting:
            if self._reader is not None:
                await asyncio.to_thread(self._reader.stop)
                self._reader = None
            if self._is_started:
                await self.service.stop()
                self._is_started = False


class GvisorSandbox(PodmanSandbox):
    """``Sandbox`` in one container with a kernel of its own."""

    @property
    def _gvisor(self) -> Gvisor:
        gvisor = self._executor.gvisor
        if gvisor is None:
            raise PodmanUnavailable("gVisor's service is not running.")
        return gvisor

    @property
    def _service(self) -> PodmanService:
        return self._gvisor.service

    @property
    def _api(self) -> Api:
        return self._gvisor.api

    @property
    def _link_uid(self) -> int:
        return self.slot.root_uid  # the Gofer connects for the model

    @property
    def _uids(self) -> tuple[int, ...]:
        return self._service.also_uids  # the Sentry and its stubs; the Gofer has nothing to do

    @property
    def _has_cgroup(self) -> bool:
        return False  # it is told to leave cgroups alone: the one it is in holds its service

    def _adapt(self, body: dict[str, Any]) -> None:
        """The same filter of system calls, in front of the Sentry, which counts all memory."""
        profile = self._service.base / "seccomp.json"
        if not profile.exists():
            profile.write_text(json.dumps(_seccomp_profile()), encoding="ascii")
        body["seccomp_profile_path"] = str(profile)

    def _created(self, container_id: str) -> None:
        """Let the Gofer, who has this container's ids only, reach the files Podman binds for it."""
        for folder in ("root", "runroot"):
            top = self._service.base / folder
            for path in (top, top / "vfs-containers", top / "vfs-containers" / container_id):
                for each in (path, path / "userdata"):
                    if each.is_dir():
                        each.chmod(0o711)

    def _limit(self, *, build: bool) -> None:
        """Blocking: cores and a number of host tasks; the Sentry keeps the sizes of the mounts."""
        tasks = hardening.process_limits(self.spec, self.level, build=build)["nproc"]
        wanted = {"nproc": TASKS_EACH * tasks + TASKS_OWN, "core": 0, "memlock": 0}
        kernel.set_limits(self.pid, wanted)
        for task in os.listdir(f"/proc/{self.pid}/task"):
            kernel.pin(int(task), self.cores, _NICENESS)

    def _verify(self) -> None:
        """Check what the kernel says about the Sentry; it confines itself when it starts.

        Raises:
            PodmanUnavailable: it is not confined as it must be.
        """
        try:
            found = kernel.confinement(self.pid)
        except OSError as error:
            raise RunnerCrashed("The sandbox ended while it was started.") from error
        wrong = faults(found, is_running=self.link.is_greeted)
        if wrong:
            raise PodmanUnavailable(f"A Sentry was not confined as it must be: {'; '.join(wrong)}.")

    def _guest_bytes(self) -> int:
        return self._gvisor.guest_bytes(self.pid)

    def _watch(self) -> None:
        spec = self.spec
        allowance = spec.model_bytes + spec.model_bytes // 8 + limits.SLACK_BYTES
        self._executor.watchdog.watch(
            self.id,
            limits.Watched(
                pid=self.pid,
                pidfd=self._pidfd,
                uids=(),
                limit_bytes=spec.resources.memory_bytes + allowance + KERNEL_BYTES,
                allowance_bytes=0,
                mounts=(),
                kills=True,
                guest_bytes=self._guest_bytes,
            ),
        )


def _seccomp_profile() -> dict[str, Any]:
    """The profile where memory is counted, said so that ``runsc`` understands it.

    It answers EPERM wherever a rule names an error. What has to look unknown (clone3, so that a C
    library falls back to clone) is traced instead: without a tracer that is ENOSYS, seccomp(2).
    """
    profile = hardening.seccomp_profile("enforced")
    for rule in (profile, *profile["syscalls"]):
        if errno.ENOSYS in (rule.get("errnoRet"), rule.get("defaultErrnoRet")):
            key = "action" if "action" in rule else "defaultAction"
            rule[key] = "SCMP_ACT_TRACE"
    return profile


def faults(found: kernel.Confinement, *, is_running: bool) -> list[str]:
    """What is wrong with a Sentry's confinement; empty when everything holds.

    Args:
        found: what ``kernel.confinement`` returned.
        is_running: whether the model's first instruction ran, and so the Sentry's own filter must
            be in force.
    """
    wrong = []
    if os.getuid() in (*found.uids, *(at for _, at, _ in found.uid_map)):
        wrong.append("it has the service user's own uid")
    if [size for _, _, size in found.uid_map] != [1]:
        wrong.append(f"its uid map is {found.uid_map}")
    if found.effective & ~_SENTRY_CAPABILITIES:
        wrong.append(f"it has capabilities {found.effective:x}")
    if is_running and not found.no_new_privileges:
        wrong.append("NoNewPrivs is 0")
    if is_running and found.seccomp != 2:
        wrong.append(f"Seccomp is {found.seccomp}")
    return wrong
