"""What NVIDIA's driver says: its GPUs and partitions, and who uses how much of their memory.

Owns: the only import of ``pynvml`` (loaded when first asked).
Never: changes anything on a GPU; fails where there is no driver, which is no GPUs.
Read next: ``gpu``.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from appliance.sandbox.gpu_place import Fill

_LOG = logging.getLogger(__name__)
_CAPABILITIES = "/proc/driver/nvidia/capabilities"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One GPU that is not divided, or one partition. ``index`` is ``0``, of a partition ``0:1``."""

    uuid: str
    index: str
    kind: Literal["gpu", "mig"]
    name: str
    parent: str
    memory_bytes: int
    compute: str
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """GPU memory one process has on one unit, bytes; ``pid`` as this machine's processes count."""

    unit: str
    pid: int
    used_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """The driver's version and what it drives; an empty version where there is none."""

    version: str = ""
    facts: tuple[Fact, ...] = ()
    problem: str = ""


def find() -> Driver:
    """The driver and its GPUs; nothing where there is none. Blocking."""
    import pynvml

    try:
        pynvml.nvmlInit()
        try:
            version = str(pynvml.nvmlSystemGetDriverVersion())
            count = int(pynvml.nvmlDeviceGetCount())
            facts = [fact for number in range(count) for fact in _facts(pynvml, number)]
        finally:
            pynvml.nvmlShutdown()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        return Driver()
    except pynvml.NVMLError as error:
        _LOG.warning("NVML does not answer: %s", error)
        return Driver(problem=f"NVML does not answer: {error}")
    return Driver(version=version, facts=tuple(facts))


class Session:
    """NVML kept open between questions, because opening it takes long; used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: ModuleType | None = None

    def usage(self, units: frozenset[str]) -> tuple[list[Use], list[Fill]]:
        """Who uses how much of these units, and how full they are; blocking.

        Raises:
            OSError: the driver does not answer, or lost a GPU. The next call opens it anew.
        """
        import pynvml

        with self._lock:
            try:
                if self._open is None:
                    pynvml.nvmlInit()
                    self._open = pynvml
                return _usage(pynvml, units)
            except pynvml.NVMLError as error:
                self._end()
                raise OSError(f"NVML does not answer: {error}") from error

    def close(self) -> None:
        """Let go of the driver; idempotent."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        nvml, self._open = self._open, None
        if nvml is not None:
            with contextlib.suppress(nvml.NVMLError):
                nvml.nvmlShutdown()


def _usage(nvml: Any, units: frozenset[str]) -> tuple[list[Use], list[Fill]]:
    uses: list[Use] = []
    fills: list[Fill] = []
    for unit in sorted(units):
        handle = nvml.nvmlDeviceGetHandleByUUID(unit)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        busy = -1
        with contextlib.suppress(nvml.NVMLError):  # a partition does not tell
            busy = int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        fills.append(Fill(unit=unit, used_bytes=int(memory.used), busy_percent=busy))
        for one in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
            if one.usedGpuMemory is not None:
                use = Use(unit=unit, pid=int(one.pid), used_bytes=int(one.usedGpuMemory))
                uses.append(use)
    return uses, fills


def _facts(nvml: Any, number: int) -> list[Fact]:
    handle = nvml.nvmlDeviceGetHandleByIndex(number)
    uuid = str(nvml.nvmlDeviceGetUUID(handle))
    minor = int(nvml.nvmlDeviceGetMinorNumber(handle))
    major_minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    compute = ".".join(str(part) for part in major_minor)
    node = f"/dev/nvidia{minor}"
    if _is_divided(nvml, handle):
        return _partitions(nvml, handle, number, minor, uuid, compute)
    return [
        Fact(
            uuid=uuid,
            index=str(number),
            kind="gpu",
            name=str(nvml.nvmlDeviceGetName(handle)),
            parent="",
            memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
            compute=compute,
            nodes=(node,),
        )
    ]


def _is_divided(nvml: Any, handle: Any) -> bool:
    try:
        return bool(nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE)
    except nvml.NVMLError:
        return False  # this GPU cannot be divided


def _partitions(
    nvml: Any, handle: Any, number: int, minor: int, parent: str, compute: str
) -> list[Fact]:
    found = []
    for at in range(int(nvml.nvmlDeviceGetMaxMigDeviceCount(handle))):
        try:
            part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, at)
        except nvml.NVMLError_NotFound:
            continue
        gi, ci = (int(nvml.nvmlDeviceGetGpuInstanceId(part)),
                  int(nvml.nvmlDeviceGetComputeInstanceId(part)))  # fmt: skip
        found.append(
            Fact(
                uuid=str(nvml.nvmlDeviceGetUUID(part)),
                index=f"{number}:{at}",
                kind="mig",
                name=str(nvml.nvmlDeviceGetName(part)),
                parent=parent,
                memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(part).total),
                compute=compute,
                nodes=(f"/dev/nvidia{minor}", *capability_nodes(minor, gi, ci)),
            )
        )
    return found


def capability_nodes(minor: int, gi: int, ci: int, *, root: str = _CAPABILITIES) -> list[str]:
    """The two nodes that open a partition: of its GPU instance and of its compute instance."""
    base = Path(root) / f"gpu{minor}" / "mig" / f"gi{gi}"
    found = []
    for file in (base / "access", base / f"ci{ci}" / "access"):
        with contextlib.suppress(OSError, ValueError, StopIteration):
            lines = file.read_text(encoding="ascii").splitlines()
            number = next(
                line.split(":")[1] for line in lines if line.startswith("DeviceFileMinor")
            )
            found.append(f"/dev/nvidia-caps/nvidia-cap{int(number)}")
    return found
