"""The machine's GPUs: what the driver, CDI specs and the device tree say, as units to give out.

Owns: the inventory, and what a sandbox with some units gets (a ``Part``).
Never: decides who gets which (``gpu_place``); loads a driver, or changes one.
Read next: ``gpu_place``, ``gpu_cdi``, ``gpu_nvml``, ``gpu_bundle``, ``gpu_watch``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import subprocess
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from appliance import config
from appliance.errors import GpuLost
from appliance.sandbox import gpu_bundle, gpu_cdi, gpu_nvml
from appliance.sandbox.gpu_cdi import Libraries
from appliance.sandbox.gpu_nvml import Driver, Use
from appliance.sandbox.gpu_place import Fill, Gpu, Part

_LOG = logging.getLogger(__name__)
NVIDIA, AMD = "nvidia.com", "amd.com"
_CONTROL = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")
_AMD_VENDOR = "0x1002"
# What CUDA and NVML need of the driver where no CDI spec lists it.
_DRIVER_FILES = re.compile(
    r"lib(cuda|cudadebugger|nvidia-(ml|ptxjitcompiler|nvvm(70)?|gpucomp|opencl|cfg|allocator"
    r"|pkcs11(-openssl3)?|sandboxutils))\.so\.\d+\.[\d.]+$"
)
_PLACES = ("/usr/local/nvidia/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu",
           "/usr/lib64", "/usr/local/cuda/compat")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """Every unit, the libraries per vendor, and what is wrong, for people."""

    gpus: tuple[Gpu, ...] = ()
    libraries: dict[str, Libraries] = field(default_factory=dict)
    driver: str = ""
    problems: tuple[str, ...] = ()


def find(settings: config.Sandbox) -> Inventory:
    """What this machine has; none where nothing is, without a word. Blocking."""
    if settings.gpu_mode == "off":
        return Inventory()
    specs = gpu_cdi.find(settings.cdi_dirs)
    driver = gpu_nvml.find()
    libraries = dict(specs.libraries)
    gpus = [unit for unit in specs.gpus if unit.vendor != NVIDIA or not driver.version]
    gpus += joined(driver, [unit for unit in specs.gpus if unit.vendor == NVIDIA])
    if driver.version and not libraries.get(NVIDIA, Libraries()).files:
        libraries[NVIDIA] = _libraries_of_host(driver.version)
    if not any(unit.vendor == AMD for unit in gpus):
        gpus += amd_units()
    problems = (*specs.problems, *((driver.problem,) if driver.problem else ()))
    problems += tuple(
        f"{unit.text} has no device node that can be opened: {', '.join(_unusable(unit))}"
        for unit in gpus
        if _unusable(unit)
    )
    if driver.version and not _is_there("/dev/nvidia-uvm"):
        problems += ("/dev/nvidia-uvm is not there, so no CUDA program runs",)
    usable = tuple(unit for unit in gpus if unit.nodes and not _unusable(unit))
    return Inventory(
        gpus=usable, libraries=libraries, driver=driver.version, problems=tuple(problems)
    )


def fix_of(problem: str) -> str:
    """What to do about one of ``Inventory.problems``."""
    if "NVML" in problem:
        return "nvidia-smi says more; the driver may need to be loaded again, or the machine booted"
    if "nvidia-uvm" in problem:
        return "run at each boot: nvidia-modprobe -u -c 0"
    if "opened" in problem:
        return "let the service user open the nodes: usermod -aG render,video USER"
    return "generate the spec again, readable for all: nvidia-ctk cdi generate --output=FILE"


def joined(driver: Driver, listed: Iterable[Gpu]) -> list[Gpu]:
    """The driver's units, with the names and nodes of the specs where these know them."""
    by_name = {name: unit for unit in listed for name in (unit.id, unit.index)}
    found = []
    for fact in driver.facts:
        known = by_name.get(fact.uuid) or by_name.get(fact.index)
        nodes = known.nodes if known else ()
        if not set(fact.nodes) <= {host for host, _ in nodes}:
            nodes = tuple((node, node) for node in (*_CONTROL, *fact.nodes) if _is_there(node))
        found.append(
            Gpu(
                id=fact.uuid,
                vendor=NVIDIA,
                name=fact.name,
                kind=fact.kind,
                index=fact.index,
                parent=fact.parent,
                memory_bytes=fact.memory_bytes,
                compute=fact.compute,
                driver=driver.version,
                cdi=known.cdi if known else "",
                nodes=nodes,
                environment=known.environment if known else (),
            )
        )
    return found


def amd_units(*, drm: Path = Path("/sys/class/drm"), dev: str = "/dev") -> list[Gpu]:
    """AMD GPUs by their render nodes; none without ``/dev/kfd``."""
    found: list[Gpu] = []
    if not _is_there(f"{dev}/kfd"):
        return found
    for node in sorted(drm.glob("renderD*")):
        device = node / "device"
        if _text(device / "vendor") != _AMD_VENDOR:
            continue
        unique = _text(device / "unique_id") or node.name
        size = _text(device / "mem_info_vram_total")
        found.append(
            Gpu(
                id=f"{AMD}/gpu={unique}",
                vendor=AMD,
                name=_text(device / "product_name") or f"AMD GPU {_text(device / 'device')}",
                index=str(len(found)),
                memory_bytes=int(size) if size.isdigit() else 0,
                nodes=((f"{dev}/kfd", "/dev/kfd"),
                       (f"{dev}/dri/{node.name}", f"/dev/dri/{node.name}")),
            )
        )  # fmt: skip
    return found


class Gpus:
    """The inventory in use, and its driver bundles."""

    def __init__(self, settings: config.Sandbox, folder: Path) -> None:
        """Find nothing yet.

        Args:
            settings: the ``[sandbox]`` section.
            folder: where bundles are kept.
        """
        self._settings = settings
        self._folder = folder
        self._lock = threading.Lock()
        self.inventory = Inventory()
        self.driver = gpu_nvml.Session()

    def start(self) -> Inventory:
        """Look at the machine, and remove bundles nothing uses; before anything runs. Blocking."""
        self._folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        self._folder.chmod(0o711)
        self.inventory = find(self._settings)
        keep = set()
        for vendor, libraries in self.inventory.libraries.items():
            with contextlib.suppress(GpuLost):
                keep.add(gpu_bundle.name_of(vendor, self._driver(vendor), libraries))
        gpu_bundle.sweep(self._folder, frozenset(keep))
        return self.inventory

    def part(self, units: tuple[str, ...]) -> Part:
        """What a sandbox with these units gets. Blocking: the first time libraries are copied.

        Raises:
            GpuLost: a unit or its driver is gone.
        """
        known = {unit.id: unit for unit in self.inventory.gpus}
        gone = [unit for unit in units if unit not in known or _unusable(known[unit])]
        if gone:
            raise GpuLost(f"{', '.join(gone)} is not there any more.", hint="appliance doctor")
        gpus = [known[unit] for unit in units]
        if not gpus:
            return Part()
        vendor = gpus[0].vendor
        environment = tuple(environment_of(gpus).items())
        if self._settings.gpu_mode == "cdi":
            if not all(gpu.cdi for gpu in gpus):
                raise GpuLost(
                    "A GPU has no CDI name, and sandbox.gpu_mode is 'cdi'.",
                    hint="nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml",
                )
            return Part(
                cdi=tuple(gpu.cdi for gpu in gpus),
                environment=environment,
                reads_driver=vendor == NVIDIA,
            )
        libraries = self.inventory.libraries.get(vendor, Libraries())
        with self._lock:
            bundle = gpu_bundle.ensure(self._folder, vendor, self._driver(vendor), libraries)
        nodes = {path: host for gpu in gpus for host, path in gpu.nodes}
        return Part(
            nodes=tuple((host, path) for path, host in nodes.items()),
            environment=environment,
            bundle=bundle,
            keeps_groups=vendor == AMD,
            reads_driver=vendor == NVIDIA,
        )

    def usage(self, units: frozenset[str]) -> tuple[list[Use], list[Fill]]:
        """What the driver tells of these units; nothing of those it does not know. Blocking.

        Raises:
            OSError: it does not answer, or lost a GPU.
        """
        told = units & self._told
        return self.driver.usage(told) if told else ([], [])

    def fills(self) -> dict[str, Fill]:
        """How full each NVIDIA unit is; nothing where no driver tells. Blocking."""
        try:
            return {fill.unit: fill for fill in self.usage(self._told)[1]}
        except OSError as error:
            _LOG.warning("%s", error)
            return {}

    @property
    def _told(self) -> frozenset[str]:
        """Units whose use a driver tells."""
        if not self.inventory.driver:
            return frozenset()
        return frozenset(gpu.id for gpu in self.inventory.gpus if gpu.vendor == NVIDIA)

    def _driver(self, vendor: str) -> str:
        return next((g.driver for g in self.inventory.gpus if g.vendor == vendor and g.driver), "")


def environment_of(gpus: list[Gpu]) -> dict[str, str]:
    """The variables that tell programs which GPUs they have."""
    found = {name: value for gpu in gpus for name, value in gpu.environment}
    if gpus[0].vendor == NVIDIA:
        ids = ",".join(gpu.id for gpu in gpus)
        found |= {
            "NVIDIA_VISIBLE_DEVICES": ids,
            "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
            "CUDA_VISIBLE_DEVICES": ids,
            "CUDA_CACHE_DISABLE": "1",  # it would fill /tmp, which ends with the sandbox
        }
    return found


def _libraries_of_host(version: str) -> Libraries:
    """The driver's libraries of this version, as the loader's cache and the usual folders know."""
    found: dict[str, Path] = {}
    for folder in dict.fromkeys((*_PLACES, *_loader_folders())):
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):
                path = Path(folder) / name
                if name.endswith(f".{version}") and _DRIVER_FILES.match(name):
                    found.setdefault(name, path)
    links = tuple((f"{name.split('.so.')[0]}.so", name) for name in found)
    return Libraries(files=tuple(found.values()), links=links)


def _loader_folders() -> list[str]:
    try:
        done = subprocess.run(
            ["/sbin/ldconfig", "-p"], capture_output=True, text=True, timeout=10, check=False,
            env=config.child_environment(),
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return []
    return re.findall(r"=> (/\S+)/libcuda\.so", done.stdout)


def _unusable(unit: Gpu) -> list[str]:
    """The nodes of a unit this user cannot open."""
    return [host for host, _ in unit.nodes if not os.access(host, os.R_OK | os.W_OK)]


def _is_there(path: str) -> bool:
    return Path(path).exists()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
