"""What sandboxes leave on a machine, counted: for tests that find out whether it is nothing."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, fields
from pathlib import Path

from appliance.sandbox import kernel
from appliance.sandbox.podman import PodmanExecutor


@dataclass(frozen=True, kw_only=True)
class Traces:
    """Counts of everything a sandbox has while it lives."""

    containers: int
    processes: int  # of the containers' own ids
    monitors: int  # conmon and the OCI runtime
    boxes: int  # folders with a socket
    sockets: int
    mounts: int  # in Podman's namespace
    slots: int  # pairs of ids in use
    watched: int
    run_entries: int  # files and folders below the run folder
    handles: int  # open descriptors of this process

    def more_than(self, before: Traces, slack: dict[str, int]) -> dict[str, tuple[int, int]]:
        """What is more than before by more than the slack: name to (before, now)."""
        found = {}
        for field in fields(self):
            old, new = getattr(before, field.name), getattr(self, field.name)
            if new > old + slack.get(field.name, 0):
                found[field.name] = (old, new)
        return found


async def traces(executor: PodmanExecutor) -> Traces:
    """Count now."""
    listed = await executor.run(executor.api.must, "get", "/containers/json?all=true")
    return await asyncio.to_thread(_count, executor, len(listed or []))


def _count(executor: PodmanExecutor, containers: int) -> Traces:
    service = executor.service
    assert service is not None
    ids = kernel.own_sub_ids()
    uids = set(range(ids.uid_base, ids.uid_base + ids.count))
    boxes = [path for path in executor.boxes.iterdir() if path.is_dir()]
    needle = str(executor.run_dir).encode()
    monitors = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        monitors += needle in words and b"conmon" in words.split(b"\0")[0]
    mounts = Path(f"/proc/{service.keeper_pid}/mountinfo").read_text().count("\n")
    return Traces(
        containers=containers,
        processes=sum(len(pids) for pids in kernel.pids_by_uid(uids).values()),
        monitors=monitors,
        boxes=len(boxes),
        sockets=sum(1 for box in boxes for path in box.iterdir() if path.is_socket()),
        mounts=mounts,
        slots=len(executor._sandboxes),
        watched=len(executor.watchdog._watched) + len(executor.watchdog._samples),
        run_entries=len(entries(executor)),
        handles=len(os.listdir("/proc/self/fd")),
    )


def entries(executor: PodmanExecutor) -> set[str]:
    """Every path below the run folder."""
    return {
        os.path.join(at, name)
        for at, names, files in os.walk(executor.run_dir)
        for name in (*names, *files)
    }


async def settled(
    executor: PodmanExecutor, before: Traces, slack: dict[str, int], seconds: float = 20.0
) -> tuple[Traces, dict[str, tuple[int, int]]]:
    """The counts once nothing is more than before, or when the time is over; what is more."""
    end = asyncio.get_running_loop().time() + seconds
    while True:
        now = await traces(executor)
        more = now.more_than(before, slack)
        if not more or asyncio.get_running_loop().time() > end:
            return now, more
        await asyncio.sleep(0.2)
