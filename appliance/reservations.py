"""Reservations: sandboxes of a version that are kept loaded, whether or not it is called.

Owns: whether a reservation fits beside the others, and that the pool keeps what the registry says.
Never: parses HTTP, decides who may reserve, or makes a sandbox itself.
Read next: ``store.registry`` (where they are recorded), ``sandbox.keeper`` (who meets them).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

from appliance import config, provision
from appliance.errors import ApplianceError, ReservationRefused
from appliance.records import Reservation, Version
from appliance.sandbox.pool import Pool
from appliance.sandbox.spec import MIB, ReservationInfo
from appliance.store import Snapshot, Store

_log = logging.getLogger(__name__)
_FOLLOW_S = 2.0
_MEMORY_SHARE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What reservations may take: sandboxes of one version, of all together, and their bytes."""

    per_version_max: int
    warm_max: int
    memory_bytes_max: int


class Reservations:
    """Sets, removes and restores reservations; one per unsealed node."""

    def __init__(self, store: Store, pool: Callable[[], Pool], settings: config.Sandbox) -> None:
        """Args: ``pool`` returns the pool, or raises the problem that keeps sandboxes away."""
        self._store = store
        self._pool = pool
        self._settings = settings

    async def set(self, *, version: Version, warm: int, principal_id: str) -> Reservation:
        """Have ``warm`` sandboxes of a version kept loaded; it begins at once.

        Raises:
            Gone: the version was retired.
            ReservationRefused: they do not fit; the detail says beside what.
            StateError, HostError: no sandbox can run now.
        Audit: reservation.set.
        """
        if version.manifest.steps:
            raise ReservationRefused("A pipeline has no sandbox; reserve those of its steps.")
        pool = self._pool()
        budget = budget_of(self._settings, pool)

        def fits(snapshot: Snapshot) -> None:
            require_fit(snapshot, version, warm, budget)

        made = await self._store.registry.set_reservation(
            model_id=version.model_id,
            number=version.number,
            warm=warm,
            fits=fits,
            actor=principal_id,
        )
        self._keep(pool, version, made.warm)
        return made

    async def remove(self, *, version: Version, principal_id: str) -> None:
        """Have a version's sandboxes made on demand again.

        Raises:
            NotFound: there is no reservation.
        Audit: reservation.removed.
        """
        await self._store.registry.remove_reservation(
            model_id=version.model_id, number=version.number, actor=principal_id
        )
        self.sync()

    def progress(self, one: Reservation) -> ReservationInfo:
        """How a reservation goes now."""
        key = _key(one)
        problem = ""
        try:
            for info in self._pool().reservations():
                if info.version_key == key:
                    return info
        except ApplianceError as error:
            problem = error.detail
        return ReservationInfo(version_key=key, warm=one.warm, problem=problem)

    def sync(self) -> None:
        """Have the pool keep what the registry says, and nothing else."""
        try:
            pool = self._pool()
        except ApplianceError:
            return  # called again once there is one
        snapshot = self._store.registry.snapshot
        wanted = {_key(one): one for one in snapshot.reservations()}
        known = {info.version_key: info for info in pool.reservations()}
        for key in known.keys() - wanted.keys():
            pool.unreserve(key)
        for key, one in wanted.items():
            version = snapshot.version(one.model_id, one.number)
            if version is None:
                continue
            kept = known.get(key)
            spec = provision.spec_in_force(self._store, version, self._settings)
            if kept is None or (kept.warm, kept.spec) != (one.warm, spec):
                self._keep(pool, version, one.warm)

    async def follow(self) -> None:
        """Do so for ever: after a start, a new engine, and whatever withdraws a version."""
        while True:
            try:
                self.sync()
            except Exception:  # noqa: BLE001 - it must go on; calls do not depend on it
                _log.exception("reservations could not be brought up to date")
            await asyncio.sleep(_FOLLOW_S)

    def _keep(self, pool: Pool, version: Version, warm: int) -> None:
        spec = provision.spec_in_force(self._store, version, self._settings)
        pool.reserve(spec, provision.files_of_version(self._store, version), warm)


def budget_of(settings: config.Sandbox, pool: Pool) -> Budget:
    """What reservations may take on this machine."""
    asked = settings.reserved_memory_bytes_max
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Budget(
        per_version_max=pool.per_version_max,
        warm_max=pool.reserved_max,
        memory_bytes_max=asked if asked >= 0 else total // _MEMORY_SHARE,
    )


def require_fit(snapshot: Snapshot, version: Version, warm: int, budget: Budget) -> None:
    """Return if so many of a version fit beside the other reservations.

    Raises:
        ReservationRefused: they do not; the detail says which bound is met, and what is left.
    """
    if warm > budget.per_version_max:
        raise ReservationRefused(
            f"{warm} sandboxes were asked for; one version has at most {budget.per_version_max}.",
            hint="Ask for less, or have IT raise sandbox.instances_per_version_max.",
            warm_left=budget.per_version_max,
        )
    others = [
        one
        for one in snapshot.reservations()
        if (one.model_id, one.number) != (version.model_id, version.number)
    ]
    left = max(0, budget.warm_max - sum(one.warm for one in others))
    if warm > left:
        raise ReservationRefused(
            f"{warm} sandboxes were asked for; of the {budget.warm_max} that may be reserved on "
            f"this appliance {left} are left.",
            hint="Ask for less, remove a reservation, or have IT raise sandbox.reserved_max.",
            warm_left=left,
        )
    taken = sum(
        one.warm * _bytes_of(found)
        for one in others
        if (found := snapshot.version(one.model_id, one.number)) is not None
    )
    free, each = max(0, budget.memory_bytes_max - taken), _bytes_of(version)
    if warm * each > free:
        raise ReservationRefused(
            f"{warm} sandboxes of this version may use {warm * each // MIB} MiB; of the "
            f"{budget.memory_bytes_max // MIB} MiB that may be reserved {free // MIB} are left.",
            hint="Ask for less, lower the version's memory_mb, or have IT raise "
            "sandbox.reserved_memory_bytes_max.",
            warm_left=free // each,
        )


def _bytes_of(version: Version) -> int:
    """What one sandbox of a version may come to hold: its memory, and its files beside it."""
    return version.manifest.resources.memory_bytes + version.artifact.blob.size_bytes


def _key(one: Reservation) -> str:
    return f"{one.model_id}/{one.number}"
