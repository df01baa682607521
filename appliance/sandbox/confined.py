"""Whether a container is confined as it must be, by what the kernel says of it.

Owns: turning the kernel's facts about a container into a refusal to use it.
Never: trusts what was asked of Podman or what Podman reports.
Read next: ``kernel`` (the facts), ``hardening`` (what was asked for).
"""

from __future__ import annotations

import os

from appliance.errors import OutOfMemory, PodmanUnavailable, RunnerCrashed
from appliance.sandbox import kernel
from appliance.sandbox.gpu_place import Part
from appliance.sandbox.hardening import Slot
from appliance.sandbox.spec import SandboxSpec


def require_confined(pid: int, slot: Slot) -> None:
    """Return if a container's first process is confined.

    Raises:
        PodmanUnavailable: it is not.
        RunnerCrashed: it is gone.
    """
    try:
        found = kernel.confinement(pid)
    except OSError as error:
        raise RunnerCrashed("The sandbox ended while it was started.") from error
    wrong = kernel.faults(found, user_uid=slot.user_uid, user_gid=slot.user_gid)
    if wrong:
        raise PodmanUnavailable(f"A container was not confined as it must be: {'; '.join(wrong)}.")


def require_nodes(pid: int, part: Part) -> None:
    """Return if a container with GPUs has its own nodes, and none of another GPU.

    Raises:
        PodmanUnavailable: it has not.
    """
    wanted = {path: os.stat(host).st_rdev for host, path in part.nodes}
    if wanted and (wrong := kernel.wrong_nodes(pid, wanted)):
        raise PodmanUnavailable(
            f"A container's device nodes are not what they must be: {', '.join(wrong)}."
        )


def out_of_memory(spec: SandboxSpec, tail: tuple[str, ...]) -> OutOfMemory:
    """The problem of a model that needed more than its memory; ``tail`` is what it printed last."""
    size = spec.resources.memory_bytes
    return OutOfMemory(
        f"The model needed more than its {size // (1024 * 1024)} MiB of memory.",
        stderr=tail,
        hint="raise [resources] memory_mb in appliance.toml",
        limit_bytes=size,
    )
