"""PURE: the container description. Everything that confines a sandbox is on this page.

Owns: the SpecGenerator JSON, the masked paths, sizes of the writable mounts, the seccomp profile
in force.
Never: does I/O beyond reading its own ``seccomp.json``; talks to Podman.
Read next: ``podman`` (who sends it and verifies the effect), ``kernel.faults``.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from importlib import resources
from typing import Any

from appliance.sandbox.gpu_place import Part
from appliance.sandbox.protocols import Serving
from appliance.sandbox.runtimes import RUNTIMES
from appliance.sandbox.spec import MIB, PROXY_ADDRESS, Level, SandboxSpec

SHM_BYTES = 64 * MIB
PROXY_URL = "http://{}:{}".format(*PROXY_ADDRESS)
NO_PROXY = "localhost,127.0.0.1,::1"
NOFILE = 1024
FSIZE_AHEAD = 1 << 44
_PAGE = 4096
_FIRST_FREE_PORT = 1024
_IMAGE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # where it has none
_TMP, _SHM = "/tmp", "/dev/shm"  # noqa: S108 - paths inside the container

MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/buddyinfo", "/proc/bus", "/proc/cmdline",
    "/proc/config.gz", "/proc/consoles", "/proc/crypto", "/proc/devices", "/proc/diskstats",
    "/proc/dma", "/proc/driver", "/proc/execdomains", "/proc/fb", "/proc/interrupts",
    "/proc/iomem", "/proc/ioports", "/proc/irq", "/proc/kallsyms", "/proc/kcore",
    "/proc/key-users", "/proc/keys", "/proc/kmsg", "/proc/kpagecgroup", "/proc/kpagecount",
    "/proc/kpageflags", "/proc/latency_stats", "/proc/locks", "/proc/mdstat", "/proc/misc",
    "/proc/modules", "/proc/mtrr", "/proc/pagetypeinfo", "/proc/partitions",
    "/proc/sched_debug", "/proc/schedstat", "/proc/scsi", "/proc/slabinfo", "/proc/softirqs",
    "/proc/swaps", "/proc/sysrq-trigger", "/proc/timer_list", "/proc/timer_stats",
    "/proc/vmallocinfo", "/proc/vmstat", "/proc/zoneinfo", "/sys/bus", "/sys/class",
    "/sys/dev", "/sys/firmware", "/sys/fs", "/sys/hypervisor", "/sys/kernel", "/sys/module",
    "/sys/power",
)  # fmt: skip

_DRIVER_FACTS = ("/proc/driver", "/proc/devices")

# What every container is, whatever it is made for.
_ISOLATION: dict[str, Any] = {
    "userns": {"nsmode": "private"},
    "netns": {"nsmode": "none"},
    "pidns": {"nsmode": "private"},
    "ipcns": {"nsmode": "private"},
    "utsns": {"nsmode": "private"},
    "cgroupns": {"nsmode": "private"},
    "read_only_filesystem": True,
    "cap_drop": ["all"],
    "no_new_privileges": True,
    "log_configuration": {"driver": "none"},
    "stop_timeout": 0,
    "oom_score_adj": 900,
    "r_limits": [{"type": "core", "hard": 0, "soft": 0}],
    "use_image_hosts": True,
    "use_image_resolve_conf": True,
    "image_volume_mode": "ignore",
}

# Ways to hold memory that no process maps and no sized tmpfs counts: harmless under a cgroup's
# limit, a hole where only the watchdog counts.
_UNCOUNTED = (
    "memfd_create", "shmget", "shmat", "shmctl", "shmdt", "msgget", "msgsnd", "msgrcv", "msgctl",
    "semget", "semop", "semctl", "semtimedop", "semtimedop_time64", "sched_setaffinity",
)  # fmt: skip
_MAP_SHARED_ANONYMOUS = 0x21


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """The two ids of one container. ``first`` counts from 0 in the service user's sub-id range.

    ``root_uid`` and ``user_uid`` are what its uids 0 and 1000 are on the host, ``user_gid`` what
    its gid 1000 is there.
    """

    first: int
    root_uid: int
    user_uid: int
    user_gid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TmpfsSizes:
    """Bytes and inodes of each writable mount."""

    bytes: dict[str, int]
    inodes: dict[str, int]


def model_path(spec: SandboxSpec) -> str:
    """Where a version's files are inside: an imported image may want them at its own place."""
    return (spec.container.model_path if spec.container else "") or "/model"


def tmpfs_sizes(spec: SandboxSpec, *, build: bool = False) -> TmpfsSizes:
    """How large each writable mount may grow; a file takes whole pages and one inode."""
    tmp, at = spec.resources.tmp_bytes, model_path(spec)
    model = spec.model_bytes + spec.model_bytes // 8 + 80 * MIB
    return TmpfsSizes(
        bytes={
            _TMP: tmp,
            _SHM: min(SHM_BYTES, spec.resources.memory_bytes),
            at: _PAGE * 16 if build else model,
        },
        inodes={
            _TMP: 400_000 if build else 8_192,
            _SHM: 1_024,
            at: 64 if build else 32_768,
        },
    )


def process_limits(
    spec: SandboxSpec, level: Level, *, build: bool = False, ahead: bool = False
) -> dict[str, int]:
    """The rlimits of the first process, inherited by all; ``data`` only where no cgroup counts.

    Made ``ahead``, files may be as large as their mounts allow: a limit can only be lowered later.
    The monitor and the language's own threads are more than the version asked for.
    """
    sizes = tmpfs_sizes(spec, build=build).bytes
    found = {
        "nproc": _tasks(spec),
        "fsize": FSIZE_AHEAD if ahead else max(sizes.values()),
        "nofile": NOFILE,
        "core": 0,
        "msgqueue": 0,
        "memlock": 0,
    }
    if level != "enforced":
        found["data"] = spec.resources.memory_bytes
    return found


def _tasks(spec: SandboxSpec) -> int:
    """How many processes and threads a sandbox may have."""
    language = RUNTIMES.get(spec.runtime)
    return spec.resources.pids + 1 + (language.own_threads if language else 0)


def seccomp_profile(level: Level, *, gpu: bool = False) -> dict[str, Any]:
    """The allow-list in force: ``seccomp.json``, narrowed where the watchdog counts memory.

    With a ``gpu`` shared anonymous mappings stay allowed: CUDA's page-locked buffers are such, and
    the watchdog counts them by the size of the mapping.
    """
    text = resources.files("appliance.sandbox").joinpath("seccomp.json").read_text("utf-8")
    profile: dict[str, Any] = json.loads(text)
    if level == "enforced":
        return profile
    allowed = profile["syscalls"][0]
    gone = {*_UNCOUNTED, "mmap"}
    allowed["names"] = [name for name in allowed["names"] if name not in gone]
    for wanted in (0x00, 0x01, 0x20, *((0x21,) if gpu else ())):  # not shared and anonymous
        rule = {
            "names": ["mmap"],
            "action": "SCMP_ACT_ALLOW",
            "args": [
                {
                    "index": 3,
                    "value": _MAP_SHARED_ANONYMOUS,
                    "valueTwo": wanted,
                    "op": "SCMP_CMP_MASKED_EQ",
                }
            ],
        }
        profile["syscalls"].append(rule)
    refusal = {"names": list(_UNCOUNTED), "action": "SCMP_ACT_ERRNO", "errnoRet": 1}
    profile["syscalls"].append(refusal)
    return profile


def seccomp_name(level: Level, spec: SandboxSpec) -> str:
    """The file that holds the profile in force for a sandbox."""
    return f"seccomp-{level}{'-gpu' if spec.resources.gpus else ''}.json"


def environment(spec: SandboxSpec) -> dict[str, str]:
    """The container's whole environment: nothing of the host's."""
    threads = str(max(1, math.ceil(spec.resources.cpus)))
    names = ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB_MAXIMUM", "BLIS", "RAYON", "POLARS_MAX")
    found = {f"{name}_NUM_THREADS": threads for name in names}
    found["VECLIB_MAXIMUM_THREADS"] = found.pop("VECLIB_MAXIMUM_NUM_THREADS")
    found["POLARS_MAX_THREADS"] = found.pop("POLARS_MAX_NUM_THREADS")
    if spec.outlets is not None and spec.outlets.proxy:
        for name in ("http_proxy", "https_proxy"):
            found[name] = found[name.upper()] = PROXY_URL
        found["no_proxy"] = found["NO_PROXY"] = NO_PROXY
    language = RUNTIMES.get(spec.runtime)
    return {
        **found,
        **(language.environment if language else {}),
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": "/tmp",  # noqa: S108
        "TMPDIR": "/tmp",  # noqa: S108
        "LANG": "C.UTF-8",
        "MALLOC_ARENA_MAX": "2",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TZ": "UTC",
    }


def container_json(
    spec: SandboxSpec,
    *,
    name: str,
    labels: dict[str, str],
    command: tuple[str, ...],
    slot: Slot,
    rootfs: str,
    box: str,
    binds: dict[str, str],
    seccomp_path: str,
    level: Level,
    cgroup_parent: str = "",
    build: bool = False,
) -> dict[str, Any]:
    """The body of ``POST /containers/create``.

    Args:
        spec: what the version asks for.
        name: container name.
        labels: container labels.
        command: argv of the first process.
        slot: its two ids.
        rootfs: read-only root folder, as Podman's mount namespace sees it.
        box: folder with the socket and the runner, bound at ``/run/app``.
        binds: further read-only binds, destination to source.
        seccomp_path: file with the profile in force.
        level: what holds the limits.
        cgroup_parent: delegated cgroup; empty without one.
        build: a dependency build: more inodes in ``/tmp``, which may execute.
    """
    sizes = tmpfs_sizes(spec, build=build)
    ids = [
        {"container_id": 0, "host_id": slot.first + 1, "size": 1},
        {"container_id": 1000, "host_id": slot.first + 2, "size": 1},
    ]
    body: dict[str, Any] = {
        "name": name,
        "labels": labels,
        "command": list(command),
        "env": environment(spec),
        "rootfs": rootfs,
        "rootfs_overlay": False,
        "user": "1000:1000",
        "work_dir": "/",
        "hostname": "sandbox",
        "idmappings": {
            "UIDMap": ids,
            "GIDMap": ids,
            "HostUIDMapping": False,
            "HostGIDMapping": False,
        },
        **_ISOLATION,
        "seccomp_profile_path": seccomp_path,
        "mask": list(MASKED) + (["/dev/zero"] if level != "enforced" else []),
        "mounts": _mounts(sizes, box=box, binds=binds, build=build),
    }
    if level == "enforced":
        body["resource_limits"] = cgroup_limits(spec)
        if cgroup_parent:
            body["cgroup_parent"] = cgroup_parent
    return body


def add_serving(body: dict[str, Any], serving: Serving) -> None:
    """Have a container run what its image says, where and with what variables it says.

    Args:
        body: what ``container_json`` made; it is changed.
        serving: how the image serves.
    """
    body["command"] = list(serving.argv)
    body["env"] = {**body["env"], "PATH": _IMAGE_PATH, **serving.environment}
    body["work_dir"] = serving.work_dir
    if 0 < serving.port < _FIRST_FREE_PORT:  # of its own network, where nobody else is
        body["sysctl"] = {"net.ipv4.ip_unprivileged_port_start": str(serving.port)}


def add_gpus(body: dict[str, Any], part: Part, *, bundle: str) -> None:
    """Give a container its GPUs: its nodes and nothing else of ``/dev``, libraries, variables.

    Nodes are plain binds, which is what rootless Podman makes of a device; no hook runs. What the
    driver tells of itself below ``/proc`` is shown: a partition cannot be opened without.

    Args:
        body: what ``container_json`` made; it is changed.
        part: what this sandbox was given.
        bundle: the driver bundle as Podman's mount namespace sees it; empty without one.
    """
    for host, path in part.nodes:
        body["mounts"].append(
            {
                "destination": path,
                "type": "bind",
                "source": host,
                "options": ["rw", "nosuid", "noexec", "bind", "private"],
            }
        )
    body["env"].update(part.environment)
    if bundle:
        body["mounts"].append(_read_only("/gpu", bundle))
        others = body["env"].get("LD_LIBRARY_PATH", "")
        body["env"]["LD_LIBRARY_PATH"] = f"/gpu/lib:{others}" if others else "/gpu/lib"
    if part.cdi:
        body["devices"] = [{"path": name} for name in part.cdi]
    if part.keeps_groups:
        body["annotations"] = {"run.oci.keep_original_groups": "1"}
    if part.reads_driver:
        body["mask"] = [path for path in body["mask"] if path not in _DRIVER_FACTS]


def cgroup_limits(spec: SandboxSpec) -> dict[str, Any]:
    """The kernel limits; the model's own files in ``/model`` are not charged to its memory.

    Those of an image that serves HTTP are written from outside and charged to nobody inside.
    """
    is_placed = spec.container is not None and spec.container.protocol != "runner"
    memory = spec.resources.memory_bytes + (0 if is_placed else spec.model_bytes)
    return {
        "memory": {"limit": memory, "swap": memory},
        "pids": {"limit": _tasks(spec)},
        "cpu": {"quota": int(spec.resources.cpus * 100_000), "period": 100_000},
    }


def _mounts(
    sizes: TmpfsSizes, *, box: str, binds: dict[str, str], build: bool
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for destination, size_bytes in sizes.bytes.items():
        size = f"size={size_bytes}"
        options = [*_flags(destination, build=build), "mode=1777", size]
        found.append(
            {
                "destination": destination,
                "type": "tmpfs",
                "source": "tmpfs",
                "options": options,
            }
        )
    for destination, source in {"/run/app": box, **binds}.items():
        found.append(_read_only(destination, source))
    return found


def _read_only(destination: str, source: str) -> dict[str, Any]:
    return {
        "destination": destination,
        "type": "bind",
        "source": source,
        "options": ["ro", "nosuid", "nodev", "bind", "private"],
    }


def _flags(destination: str, *, build: bool) -> tuple[str, ...]:
    may_execute = destination not in (_TMP, _SHM) or (build and destination == _TMP)
    return ("rw", "nosuid", "nodev", "exec" if may_execute else "noexec")
