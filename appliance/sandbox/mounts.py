"""Quotas of containers' writable mounts, set from outside.

Owns: the remounter process (``remount.py``) in Podman's namespaces, which also ends the containers
when the appliance is gone.
Never: decides a size; enters a container.
Read next: ``remount``, ``hardening.tmpfs_sizes``.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from pathlib import Path

from appliance import config
from appliance.errors import PodmanUnavailable
from appliance.sandbox.hardening import TmpfsSizes

_NSENTER = "/usr/bin/nsenter"


def namespace_command(pid: int, script: Path) -> list[str]:
    """The command that runs a script of this folder in a process's user and mount namespace."""
    command = [_NSENTER, f"--target={pid}", "--user", "--mount", "--preserve-credentials"]
    return [*command, sys.executable, "-I", "-S", "-B", str(script)]


class Remounter:
    """One helper process; started at the first use, and anew if it ended."""

    def __init__(self, namespace_pid: int) -> None:
        """Describe it.

        Args:
            namespace_pid: a process in the user and mount namespace of Podman.
        """
        self._namespace_pid = namespace_pid
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def set_quotas(self, pid: int, sizes: TmpfsSizes) -> None:
        """Give each writable mount of a container its bytes and inodes. Blocking.

        Args:
            pid: the container's first process.
            sizes: per mount.

        Raises:
            PodmanUnavailable: the kernel refused, or the helper does not run.
        """
        mounts = {at: (size, sizes.inodes[at]) for at, size in sizes.bytes.items()}
        line = json.dumps({"pid": pid, "mounts": mounts})
        with self._lock:
            answer = self._ask(line)
        if answer:
            raise PodmanUnavailable(f"A sandbox's quotas cannot be set: {answer}")

    def memory_file_bytes(self, pid: int, name: str) -> int:
        """What a process's file in memory of this name holds; 0 once it is gone. Blocking."""
        with self._lock:
            answer = self._ask(json.dumps({"pid": pid, "mounts": {}, "memory_file": name}))
        return int(answer[1:]) if answer.startswith("=") else 0

    def stop(self) -> None:
        """End the helper; idempotent."""
        with self._lock:
            process, self._process = self._process, None
        _end(process)

    def _ask(self, line: str) -> str:
        for attempt in (1, 2):
            try:
                process = self._running()
                if process.stdin is None or process.stdout is None:
                    raise OSError("no pipe")
                process.stdin.write(line + "\n")
                process.stdin.flush()
                answer = process.stdout.readline()
                if not answer.endswith("\n"):
                    raise OSError("it ended")
                return answer.strip()
            except (OSError, ValueError) as error:
                broken, self._process = self._process, None
                _end(broken)
                if attempt == 2:
                    return f"the helper does not run: {error}"
        raise AssertionError

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            _end(self._process)
            script = Path(__file__).with_name("remount.py")
            command = namespace_command(self._namespace_pid, script)
            self._process = subprocess.Popen(  # noqa: S603 - fixed program, own arguments
                command,
                env=config.child_environment(),
                cwd="/",
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
        return self._process


def _end(process: subprocess.Popen[str] | None) -> None:
    """Kill a helper, if there is one, and close its pipes."""
    if process is None:
        return
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
