"""CDI specs as inventory: which GPUs they describe, with which device nodes and libraries.

Owns: reading ``*.json`` and ``*.yaml`` of the CDI folders; one unit per set of device nodes.
Never: runs a hook, edits a container, or asks a driver (``gpu_nvml``).
Read next: ``gpu`` (who joins this with what the driver says).

A spec names a GPU several times (``0``, ``GPU-<uuid>``, ``all``): names with the same nodes are one
unit. A GPU whose node also belongs to a partition is divided, and is not given out whole.
Source: the CDI specification 0.3 to 1.0, https://github.com/cncf-tags/container-device-interface.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from appliance.sandbox.gpu_place import Gpu
from appliance.sandbox.spec import MIB

_LOG = logging.getLogger(__name__)
_BYTES_MAX = 4 * MIB
_LINK = re.compile(r"[^:]+::[^:]+")
MEMORY_ANNOTATION = "appliance/memory-mb"
# Of no use for computing: displays. A program gets no node it does not need.
_NOT_NEEDED = re.compile(r"/dev/(nvidia-modeset|dri/card\d+)$")
_NOT_NEEDED_NVIDIA = re.compile(r"/dev/(nvidia-modeset|dri/.+|nvidia-fs\d*|gdrdrv)$")


class _Node(msgspec.Struct, frozen=True, rename="camel"):
    path: str
    host_path: str = ""


class _Mount(msgspec.Struct, frozen=True, rename="camel"):
    host_path: str
    container_path: str


class _Hook(msgspec.Struct, frozen=True, rename="camel"):
    args: tuple[str, ...] = ()


class _Edits(msgspec.Struct, frozen=True, rename="camel"):
    env: tuple[str, ...] = ()
    device_nodes: tuple[_Node, ...] = ()
    mounts: tuple[_Mount, ...] = ()
    hooks: tuple[_Hook, ...] = ()


class _Device(msgspec.Struct, frozen=True, rename="camel"):
    name: str | int
    annotations: dict[str, str] = {}
    container_edits: _Edits = _Edits()


class _Spec(msgspec.Struct, frozen=True, rename="camel"):
    kind: str
    devices: tuple[_Device, ...] = ()
    container_edits: _Edits = _Edits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Libraries:
    """The driver's files one vendor's spec lists: host paths, and links (name, target name)."""

    files: tuple[Path, ...] = ()
    links: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the folders describe; ``libraries`` by vendor; ``problems`` are for the doctor."""

    gpus: tuple[Gpu, ...] = ()
    libraries: dict[str, Libraries]
    problems: tuple[str, ...] = ()


def find(folders: Iterable[str]) -> Found:
    """Every GPU that the specs in these folders describe; a later folder wins. Blocking."""
    gpus: dict[str, Gpu] = {}
    libraries: dict[str, Libraries] = {}
    problems: list[str] = []
    for path in _files(folders):
        try:
            spec = _read(path)
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a CDI spec"
            problems.append(f"{path}: {reason}")
            _LOG.warning("%s is left out: %s", path, str(error)[:300])
            continue
        vendor, _, kind = spec.kind.partition("/")
        if kind != "gpu":
            continue
        gpus.update((unit.id, unit) for unit in _units(spec, vendor))
        libraries[vendor] = _libraries(spec)
    return Found(gpus=tuple(gpus.values()), libraries=libraries, problems=tuple(problems))


def _files(folders: Iterable[str]) -> list[Path]:
    found: list[Path] = []
    for folder in folders:
        try:
            listed = sorted(Path(folder).iterdir())
        except OSError:
            continue
        found += [path for path in listed if path.suffix in (".json", ".yaml", ".yml")]
    return found


def _read(path: Path) -> _Spec:
    """One spec.

    Raises:
        OSError, ValueError, yaml.YAMLError: it cannot be read or is none.
    """
    if path.stat().st_size > _BYTES_MAX:
        raise ValueError("larger than any spec")
    text = path.read_text(encoding="utf-8")
    tree: Any = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    return msgspec.convert(tree, _Spec)


def _units(spec: _Spec, vendor: str) -> list[Gpu]:
    common = spec.container_edits
    by_nodes: dict[frozenset[str], list[_Device]] = {}
    for device in spec.devices:
        own = frozenset(node.path for node in device.container_edits.device_nodes)
        if str(device.name) != "all" and own:
            by_nodes.setdefault(own, []).append(device)
    divided = {one for one in by_nodes for other in by_nodes if one < other}
    found = []
    for own, devices in by_nodes.items():
        if own in divided:
            continue
        names = sorted((str(device.name) for device in devices), key=_how_unique)
        chosen = devices[0]
        kind: Literal["gpu", "mig"] = "mig" if any(parent < own for parent in divided) else "gpu"
        edits = (common, chosen.container_edits)
        found.append(
            Gpu(
                id=names[0] if _is_uuid(names[0]) else f"{spec.kind}={names[0]}",
                vendor=vendor,
                name=chosen.annotations.get("appliance/name", ""),
                kind="mig" if names[0].startswith("MIG-") else kind,
                index=next((name for name in names if not _is_uuid(name)), names[0]),
                memory_bytes=_memory(devices),
                driver=driver_of(mount.host_path for mount in common.mounts),
                cdi=f"{spec.kind}={names[0]}",
                nodes=_nodes(edits, vendor),
                environment=_environment(edits),
            )
        )
    return found


def _how_unique(name: str) -> tuple[bool, int, str]:
    return not _is_uuid(name), len(name), name


def _is_uuid(name: str) -> bool:
    return name.startswith(("GPU-", "MIG-"))


def _memory(devices: Iterable[_Device]) -> int:
    """What an administrator wrote into the spec, where no driver tells."""
    for device in devices:
        text = device.annotations.get(MEMORY_ANNOTATION, "")
        if text.isdigit():
            return int(text) * MIB
    return 0


def _nodes(edits: Iterable[_Edits], vendor: str) -> tuple[tuple[str, str], ...]:
    """(host path, container path) of each node that computing needs and that is there."""
    not_needed = _NOT_NEEDED_NVIDIA if vendor == "nvidia.com" else _NOT_NEEDED
    found = {}
    for one in edits:
        for node in one.device_nodes:
            if node.path.startswith("/dev/") and ".." not in node.path:
                found[node.path] = node.host_path or node.path
    return tuple(
        (host, path)
        for path, host in found.items()
        if not not_needed.match(path) and Path(host).exists()
    )


def _environment(edits: Iterable[_Edits]) -> tuple[tuple[str, str], ...]:
    pairs = [text.partition("=") for one in edits for text in one.env]
    return tuple((name, value) for name, _, value in pairs if name != "NVIDIA_VISIBLE_DEVICES")


def _libraries(spec: _Spec) -> Libraries:
    """Shared objects among the mounts, and the links its hooks would make."""
    edits = (spec.container_edits, *(device.container_edits for device in spec.devices))
    files = {
        mount.host_path: Path(mount.host_path)
        for one in edits
        for mount in one.mounts
        if ".so" in Path(mount.host_path).name and "/firmware/" not in mount.host_path
    }
    links = {}
    for one in edits:
        for hook in one.hooks:
            for argument in hook.args:
                if _LINK.fullmatch(argument):
                    target, _, link = argument.partition("::")
                    links[Path(link).name] = Path(target).name
    return Libraries(files=tuple(files.values()), links=tuple(links.items()))


def driver_of(paths: Iterable[str]) -> str:
    """The driver's version as the name of its CUDA library has it, "" if it is not there."""
    for path in paths:
        match = re.search(r"/libcuda\.so\.(\d+\.[\d.]+)$", path)
        if match:
            return match.group(1)
    return ""
