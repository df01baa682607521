"""The Podman service: its process, its folders, its mount namespace, and what it left behind.

Owns: starting, supervising and stopping ``podman system service``; sweeping a dead predecessor.
Never: speaks Podman's API (``podman`` does) or touches containers' limits.
Read next: ``podman``.

Everything lies below the run folder, which should be a tmpfs. Folders that containers bind from
are mounted once at a fixed place inside Podman's own mount namespace, so that the service user's
folders may stay mode 0700.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from appliance import config
from appliance.errors import PodmanUnavailable
from appliance.sandbox import kernel

_LOG = logging.getLogger(__name__)
_PLACES = ("/mnt", "/media", "/srv", "/opt")
_FOLDERS = ("", "home", "xdg", "tmp", "root", "runroot")
_WITH_UMASK = ("/bin/sh", "-c", 'umask 022 && exec "$@"', "sh")
_START_TIMEOUT_S = 20.0
_LATE_S = 20.0  # how long after its removal a container's monitor may still write
_CONF = """\
[containers]
default_ulimits = []
default_sysctls = []
log_driver = "none"
volumes = []
env = []
[engine]
events_logger = "none"
lock_type = "file"
num_locks = 4096
image_parallel_copies = 1
"""


def find_runtime(wanted: str) -> str:
    """The OCI runtime to use: the one asked for, else runc, else crun.

    Raises:
        PodmanUnavailable: there is none.
    """
    names = (wanted,) if wanted else ("runc", "crun")
    for name in names:
        found = shutil.which(name, path="/usr/local/bin:/usr/bin:/usr/sbin:/sbin:/bin")
        if found:
            return found
    raise PodmanUnavailable(
        f"No OCI runtime found ({' or '.join(names)}).", hint="apt-get install runc"
    )


class PodmanService:
    """One ``podman system service`` child and the namespace it works in."""

    def __init__(
        self,
        run_dir: Path,
        *,
        runtime: str,
        binds: Mapping[str, Path],
        runtime_flags: tuple[str, ...] = (),
        name: str = "podman",
        uncovered: bool = False,
    ) -> None:
        """Describe it; nothing happens before ``start``.

        Args:
            run_dir: folder for everything it keeps.
            runtime: path of the OCI runtime.
            binds: name to host folder, to appear as ``place/name`` inside its namespace.
            runtime_flags: global flags of the OCI runtime, without their dashes.
            name: of its folder; only ``podman`` sweeps the sandboxes' own folders.
            uncovered: its folder is reached by every user inside its namespace, whatever the
                modes of the folders above: for runtimes that open files as the container's user.
        """
        self.also_uids: tuple[int, ...] = ()
        self._runtime_flags = tuple(f"--runtime-flag={flag}" for flag in runtime_flags)
        self.run_dir = run_dir
        self.base = run_dir / name
        self.socket = self.base / "api.sock" if uncovered else run_dir / f"{name}.sock"
        self._uncovered = uncovered
        self._name = name
        self.runtime = runtime
        self.restarts = 0
        self._binds = binds
        taken = [str(path.resolve()) for path in (run_dir, *binds.values())]
        self.place = next(p for p in _PLACES if not any(t.startswith(p + "/") for t in taken))
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._lock_fd = -1
        self._forgotten: deque[tuple[float, str]] = deque()
        self._forgotten_lock = threading.Lock()
        self._on_restart: Callable[[], None] | None = None

    def inside(self, name: str, *parts: str) -> str:
        """The path of something under a bind, as containers' mounts must name it."""
        return "/".join((self.place, name, *parts))

    async def start(self) -> None:
        """Sweep what a predecessor left, prepare the namespace, start and watch the service.

        Raises:
            PodmanUnavailable: Podman is missing, broken, or the run folder is in use.
        """
        if shutil.which("podman", path=self._environment()["PATH"]) is None:
            raise PodmanUnavailable("Podman is not installed.", hint="apt-get install podman")
        await asyncio.to_thread(self._prepare)
        await self._spawn()
        self._supervisor = asyncio.create_task(self._supervise(), name="podman-supervisor")

    async def stop(self) -> None:
        """End the service and its namespace, remove its folders; idempotent."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
            self._supervisor = None
        await self._end_process()
        if self._lock_fd >= 0:
            await asyncio.to_thread(self._sweep)
            os.close(self._lock_fd)
            self._lock_fd = -1

    @property
    def pid(self) -> int:
        """The service's process id; 0 while it is down."""
        alive = self._process is not None and self._process.returncode is None
        return self._process.pid if alive and self._process else 0

    def pid_of(self, container_id: str) -> int:
        """A container's first process by the file its monitor wrote; 0 if it is not there.

        Asking Podman takes milliseconds. Whoever uses it verifies what it is.
        """
        folder = self.base / "runroot" / "vfs-containers" / container_id / "userdata"
        try:
            return int((folder / "pidfile").read_text(encoding="ascii"))
        except (OSError, ValueError):
            return 0

    def attach_path_of(self, container_id: str) -> Path:
        """The socket at which a container's monitor offers what the container prints."""
        return self.base / "root" / "vfs-containers" / container_id / "userdata" / "attach"

    def forget(self, container_id: str) -> None:
        """Remove what Podman leaves of a container that is removed. Blocking.

        Its monitor may write how it ended after Podman looked for that: those of the last moments
        are looked at again.
        """
        now = time.monotonic()
        with self._forgotten_lock:
            self._forgotten.append((now, container_id))
            while self._forgotten[0][0] < now - _LATE_S:
                self._forgotten.popleft()
            names = [name for _, name in self._forgotten]
        tmp = self.base / "xdg" / "libpod" / "tmp"
        for name in names:
            with contextlib.suppress(OSError):
                os.unlink(tmp / "exits" / name)
            shutil.rmtree(tmp / "persist" / name, ignore_errors=True)

    @property
    def keeper_pid(self) -> int:
        """The process that keeps Podman's user and mount namespace.

        Raises:
            PodmanUnavailable: there is none.
        """
        try:
            return int(self._keeper_file.read_text(encoding="ascii"))
        except (OSError, ValueError) as error:
            raise PodmanUnavailable("Podman keeps no namespace.") from error

    @property
    def _keeper_file(self) -> Path:
        return self.base / "xdg" / "libpod" / "tmp" / "pause.pid"

    def on_restart(self, call: Callable[[], None]) -> None:
        """Call this after the service was started anew."""
        self._on_restart = call

    def _environment(self) -> dict[str, str]:
        base = str(self.base)
        return config.child_environment(
            HOME=f"{base}/home",
            XDG_RUNTIME_DIR=f"{base}/xdg",
            XDG_CONFIG_HOME=f"{base}/home",
            CONTAINERS_CONF=f"{base}/containers.conf",
            TMPDIR=str(self.base / "tmp"),
        )

    def _command(self, *arguments: str) -> list[str]:
        base = str(self.base)
        return [
            *_WITH_UMASK,
            "podman",
            "--root", f"{base}/root",
            "--runroot", f"{base}/runroot",
            "--storage-driver", "vfs",
            "--events-backend=none",
            "--cgroup-manager=cgroupfs",
            "--runtime", self.runtime,
            *self._runtime_flags,
            "--log-level=error",
            *arguments,
        ]  # fmt: skip

    def _call(self, *arguments: str, timeout_s: float = 30.0) -> None:
        done = subprocess.run(  # noqa: S603 - fixed program, own arguments
            self._command(*arguments),
            env=self._environment(),
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
            raise PodmanUnavailable(f"Podman does not start: {lines[-1]}", hint="appliance doctor")

    def _prepare(self) -> None:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._lock_fd = os.open(self.run_dir / f"{self._name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock_fd)
            self._lock_fd = -1
            raise PodmanUnavailable(f"{self.run_dir} is used by another appliance.") from error
        self._sweep()
        for name in _FOLDERS:
            (self.base / name).mkdir(exist_ok=True)
            (self.base / name).chmod(0o711)
        for path in self._binds.values():
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(0o711)
        (self.base / "containers.conf").write_text(_CONF, encoding="ascii")
        self._call("unshare", "true")  # makes the namespace and the process that keeps it
        place = self.place
        script = [f"mount -t tmpfs -o size=64k,nr_inodes=64,mode=0711 appliance {place}"]
        arguments = []
        for number, (name, path) in enumerate(self._binds.items(), start=1):
            script.append(f'mkdir {place}/{name} && mount --rbind "${number}" {place}/{name}')
            arguments.append(str(path.resolve()))
        covers = [path for path in reversed(self.base.parents) if not path.stat().st_mode & 0o001]
        if self._uncovered and covers:
            base, top = f"${{{len(arguments) + 1}}}", f"${{{len(arguments) + 2}}}"
            script.append(f'mkdir {place}/base && mount --rbind "{base}" {place}/base')
            script.append(f'mount -t tmpfs -o size=64k,nr_inodes=64,mode=0711 appliance "{top}"')
            script.append(f'mkdir -p "{base}" && mount --rbind {place}/base "{base}"')
            arguments += [str(self.base), str(covers[0])]
        self._call("unshare", "sh", "-ec", "\n".join(script), "sh", *arguments)

    async def _spawn(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.socket)
        self._process = await asyncio.create_subprocess_exec(
            *self._command("system", "service", "--time=0", f"unix://{self.socket}"),
            env=self._environment(),
            cwd="/",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # uvloop knows no process_group
        )
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                while not os.access(self.socket, os.F_OK):
                    if self._process.returncode is not None:
                        raise PodmanUnavailable("Podman's service ended while starting.")
                    await asyncio.sleep(0.02)
        except TimeoutError as error:
            raise PodmanUnavailable("Podman's service did not start in time.") from error
        os.chmod(self.socket, 0o600)

    async def _supervise(self) -> None:
        """Log what the service says and start it again when it ends; containers live on."""
        pause_s = 0.1
        while True:
            process = self._process
            if process is not None and process.stderr is not None:
                started = time.monotonic()
                async for line in process.stderr:
                    _LOG.info("podman: %s", line.decode("utf-8", "replace").strip()[:500])
                await process.wait()
                pause_s = 0.1 if time.monotonic() - started > 10 else min(pause_s * 2, 10.0)
            _LOG.error("Podman's service ended; starting it again")
            await asyncio.sleep(pause_s)
            try:
                await self._spawn()
            except PodmanUnavailable as error:
                _LOG.error("Podman's service does not start: %s", error.detail)
                continue
            self.restarts += 1
            if self._on_restart is not None:
                self._on_restart()

    async def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(5):
                if process.stderr is not None:
                    await process.stderr.read()
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def sweep(self) -> None:
        """Clear up after a predecessor without starting anything; only while not started."""
        if self.base.exists() and self._lock_fd < 0:
            self._sweep()

    def _sweep(self) -> None:
        """Kill every process and remove every folder of a service that used this run folder."""
        owns_boxes = self._name == "podman"
        for box in (self.run_dir / "box").glob("*/record") if owns_boxes else ():
            self._kill_recorded(box)
        _kill_all(self._strays(), "of an earlier sandbox service")
        if self.base.exists():
            shutil.rmtree(self.base, ignore_errors=True)
        if self.base.exists():  # a folder left with a container's own id
            with contextlib.suppress(PodmanUnavailable, OSError, subprocess.TimeoutExpired):
                self._call("unshare", "rm", "-rf", str(self.base / "root"))
            _kill_all(self._strays(), "that removed old folders")
            shutil.rmtree(self.base, ignore_errors=True)
        if owns_boxes:
            shutil.rmtree(self.run_dir / "box", ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.socket)

    def _kill_recorded(self, record: Path) -> None:
        """Kill what runs under the two ids a container's record names."""
        with contextlib.suppress(OSError, ValueError):
            uids = {int(word) for word in record.read_text(encoding="ascii").split()}
            uids.discard(os.getuid())
            pids = [pid for found in kernel.pids_by_uid(uids).values() for pid in found]
            _kill_all(pids, "of an earlier sandbox")

    def _strays(self) -> list[int]:
        """Own processes that work in this run folder: service, conmon, the namespace's keeper."""
        found = []
        needle = str(self.base).encode() + b"/"
        with contextlib.suppress(OSError, PodmanUnavailable):
            pid = self.keeper_pid
            if b"podman" in Path(f"/proc/{pid}/comm").read_bytes():
                found.append(pid)
        by_uid = kernel.pids_by_uid({os.getuid(), *self.also_uids})
        for pid in (pid for pids in by_uid.values() for pid in pids):
            with contextlib.suppress(OSError):
                if pid != os.getpid() and needle in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found


def _kill_all(pids: list[int], what: str) -> None:
    """SIGKILL and wait until they are gone, at most two seconds."""
    for pid in pids:
        _LOG.info("ending process %d %s", pid, what)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 2
    while pids and time.monotonic() < deadline:
        pids = [pid for pid in pids if _is_running(pid)]
        time.sleep(0.01)


def _is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")
