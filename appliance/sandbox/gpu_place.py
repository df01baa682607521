"""PURE: which GPUs a sandbox gets, and who holds which.

Owns: ``Gpu``, ``Hold``, ``Fill``, ``Part``, and the placement rules below.
Never: does I/O; finds GPUs (``gpu``) or puts them into a container (``hardening``).
Read next: ``gpu`` (the machine's inventory), ``pool`` (who takes and gives back).

A unit is what is given out: a whole GPU, or one partition (MIG instance) of a GPU that is divided.
A unit belongs to at most one tenant at a time. Within it, sandboxes that declared how much GPU
memory they need share a unit while their sum fits; one that declared nothing has it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from appliance.records import Resources

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One unit of this machine.

    ``memory_bytes`` is 0 where nothing tells it; ``compute`` is the CUDA compute capability, empty
    for other vendors. ``nodes`` are (path on the host, path in the container). ``cdi`` is its
    qualified CDI name, empty without a spec; ``parent`` the uuid of the GPU a partition is of.
    """

    id: str
    vendor: str
    name: str
    kind: Literal["gpu", "mig"] = "gpu"
    index: str = ""
    parent: str = ""
    memory_bytes: int = 0
    compute: str = ""
    driver: str = ""
    cdi: str = ""
    nodes: tuple[tuple[str, str], ...] = ()
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def text(self) -> str:
        """Name and memory, for people."""
        size = f" ({self.memory_bytes // _MIB} MiB)" if self.memory_bytes else ""
        return f"{self.name or self.id}{size}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Hold:
    """Units one sandbox holds; ``share_bytes`` of each, 0 for all of it."""

    tenant_id: str
    units: tuple[str, ...]
    share_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """How full a unit is: memory in bytes, compute in percent (-1: not told)."""

    unit: str
    used_bytes: int
    busy_percent: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one sandbox gets: nodes (host path, container path), variables, a bundle's name.

    With ``cdi`` Podman injects these names itself, and the rest is empty.
    """

    nodes: tuple[tuple[str, str], ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    bundle: str = ""
    cdi: tuple[str, ...] = ()
    keeps_groups: bool = False
    reads_driver: bool = False


class Places:
    """The units of a machine and who holds them; used from one event loop."""

    def __init__(self, gpus: Iterable[Gpu] = ()) -> None:
        self._gpus = {gpu.id: gpu for gpu in gpus}
        self._holds: list[Hold] = []

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """Every unit."""
        return tuple(self._gpus.values())

    def gpu(self, unit: str) -> Gpu | None:
        """The unit of this id, if the machine has it."""
        return self._gpus.get(unit)

    def holds_of(self, unit: str) -> tuple[Hold, ...]:
        """Who holds a unit now."""
        return tuple(hold for hold in self._holds if unit in hold.units)

    def allocated_bytes(self, unit: str) -> int:
        """How much of a unit is promised to sandboxes; all of it if one has it alone."""
        holds = self.holds_of(unit)
        if any(not hold.share_bytes for hold in holds):
            return self._gpus[unit].memory_bytes
        return sum(hold.share_bytes for hold in holds)

    def refusal(self, resources: Resources) -> str:
        """Why this machine can never give what is asked for, with what it has; "" if it can."""
        wanted, share = resources.gpus, resources.gpu_memory_bytes
        if not wanted:
            return ""
        units = self._candidates(wanted)
        if not self._gpus:
            return f"resources.gpus asks for {wanted}; this machine has no GPU to give."
        if len(units) < wanted:
            rule = " (partitions are given one at a time)" if len(self._gpus) >= wanted else ""
            return f"resources.gpus asks for {wanted}; this machine has {self._there()}{rule}."
        if sum(_is_large_enough(unit, share) for unit in units) < wanted:
            return (
                f"resources.gpu_memory_mb asks for {share // _MIB} MiB on each of {wanted}; "
                f"this machine has {self._there()}."
            )
        return ""

    def take(self, tenant_id: str, resources: Resources) -> Hold | None:
        """The units for one more sandbox, now held; ``None`` while there are not enough free.

        A sandbox without GPUs holds none, and always gets them.
        """
        wanted, share = resources.gpus, resources.gpu_memory_bytes
        free = [
            unit
            for unit in self._candidates(wanted)
            if _is_large_enough(unit, share) and self._is_free(unit, tenant_id, share)
        ]
        if len(free) < wanted:
            return None
        chosen = sorted(free, key=self._preference(share))[:wanted]
        hold = Hold(tenant_id=tenant_id, units=tuple(unit.id for unit in chosen), share_bytes=share)
        if wanted:
            self._holds.append(hold)
        return hold

    def can_use(self, hold: Hold, resources: Resources) -> bool:
        """Whether what a hold has would serve such a request, were it free."""
        useful = {
            unit.id
            for unit in self._candidates(resources.gpus)
            if _is_large_enough(unit, resources.gpu_memory_bytes)
        }
        return not useful.isdisjoint(hold.units)

    def give(self, hold: Hold) -> None:
        """Return what ``take`` gave; giving it back twice does nothing."""
        self._holds = [one for one in self._holds if one is not hold]

    def _candidates(self, wanted: int) -> list[Gpu]:
        """The units such a request may have: a program can use one partition, never several."""
        return [unit for unit in self._gpus.values() if wanted == 1 or unit.kind == "gpu"]

    def _is_free(self, unit: Gpu, tenant_id: str, share: int) -> bool:
        holds = self.holds_of(unit.id)
        if not holds:
            return True
        if any(hold.tenant_id != tenant_id or not hold.share_bytes for hold in holds) or not share:
            return False
        return self.allocated_bytes(unit.id) + share <= unit.memory_bytes

    def _preference(self, share: int) -> Callable[[Gpu], tuple[bool, bool, int, str]]:
        """Best first: a unit the tenant uses already, the tightest fit; alone: whole GPUs."""

        def order(unit: Gpu) -> tuple[bool, bool, int, str]:
            size = unit.memory_bytes
            is_whole = unit.kind == "gpu"
            if share:
                return not self.holds_of(unit.id), is_whole, size, unit.index
            return False, not is_whole, -size, unit.index

        return order

    def _there(self) -> str:
        counts: dict[str, int] = {}
        for unit in self._gpus.values():
            counts[unit.text] = counts.get(unit.text, 0) + 1
        return ", ".join(f"{number} x {text}" for text, number in counts.items())


def _is_large_enough(unit: Gpu, share: int) -> bool:
    """Whether a share fits into an empty unit; a size nobody tells refuses nothing."""
    return not unit.memory_bytes or share <= unit.memory_bytes
