"""What models are run with: runtimes and dependency sets, who uses them, and getting rid of them.

Owns: which versions use a runtime or a set, exporting signed bundles, removing what nobody uses.
Never: builds or imports (the command line does, as the service user, where no keys are held).
Read next: ``sandbox.images``, ``sandbox.dependencies``, ``sandbox.bundles``.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from appliance import signing
from appliance.errors import InputInvalid, NotFound, RuntimeInUse
from appliance.events import DependenciesRemoved, RuntimeExported, RuntimeRemoved
from appliance.records import Version
from appliance.sandbox import bundles, dependencies, images
from appliance.sandbox.images import Progress
from appliance.store import Store

_SEED = "bundle-signing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """A version that uses something, by names a person knows."""

    tenant: str
    model: str
    version: int


class Supply:
    """Runtimes and dependency sets of one unsealed node."""

    def __init__(self, store: Store, data_dir: Path) -> None:
        self._store = store
        self._data_dir = data_dir
        self._change = asyncio.Lock()

    def fingerprint(self) -> str:
        """Whom other appliances have to trust to import what is exported here."""
        seed = self._store.secret(_SEED)
        return signing.fingerprint(signing.public_from_seed(seed))

    def uses(self) -> tuple[dict[str, tuple[Use, ...]], dict[str, tuple[Use, ...]]]:
        """The versions not retired by the digest of their runtime, and by the key of their set."""
        snapshot = self._store.registry.snapshot
        by_runtime: dict[str, list[Use]] = {}
        by_set: dict[str, list[Use]] = {}
        for model in snapshot.models():
            tenant = snapshot.tenant_by_id(model.tenant_id)
            for version in snapshot.versions(model.id):
                if not _is_in_service(version) or model.removed_ns or tenant is None:
                    continue
                use = Use(tenant=tenant.name, model=model.name, version=version.number)
                by_runtime.setdefault(version.runtime_digest, []).append(use)
                if version.deps_key:
                    by_set.setdefault(version.deps_key, []).append(use)
        return (
            {digest: tuple(uses) for digest, uses in by_runtime.items()},
            {key: tuple(uses) for key, uses in by_set.items()},
        )

    async def export(
        self,
        *,
        name: str,
        digest: str,
        sets: tuple[str, ...],
        target: Path,
        actor: str,
        progress: Progress,
    ) -> bundles.Contents:
        """Write a runtime, and sets of it, to a bundle that this appliance signs.

        Args:
            name: the runtime.
            digest: which of that name; empty for the newest.
            sets: keys; the first characters are enough where they fit one only.
            target: the file to make, on this machine.
            actor: who exports, for the audit.
            progress: told each step and the fraction done.

        Raises:
            RuntimeMissing, InputInvalid: there is no such runtime or set.
            BundleRejected, DiskFull: see ``bundles.export``.
        Audit: runtime.exported.
        """
        runtime = await asyncio.to_thread(images.require, self._data_dir, name, digest)
        known = await asyncio.to_thread(dependencies.described, self._data_dir)
        chosen = tuple(_chosen(known, key) for key in sets)
        seed = self._store.secret(_SEED)
        contents = await asyncio.to_thread(
            bundles.export,
            self._data_dir,
            runtime,
            chosen,
            target,
            lambda message: signing.sign(seed, bundles.PURPOSE, message),
            progress,
        )
        event = RuntimeExported(
            name=runtime.name, digest=runtime.digest, sets=tuple(one.key for one in chosen)
        )
        await self._store.ledger.append(event, actor=actor)
        return contents

    async def remove(self, *, name: str, digest: str, actor: str) -> images.Runtime:
        """Remove a runtime that no version uses.

        Raises:
            NotFound: there is none of this name and digest.
            RuntimeInUse: versions use it; the first are named.
        Audit: runtime.removed.
        """
        async with self._change:
            installed = await asyncio.to_thread(images.installed, self._data_dir)
            fitting = [one for one in installed if one.name == name and one.digest == digest]
            if not fitting:
                raise NotFound("There is no such runtime.")
            users = self.uses()[0].get(digest, ())
            if users:
                first = ", ".join(f"{u.tenant}/{u.model}:{u.version}" for u in users[:5])
                more = f" and {len(users) - 5} more" if len(users) > 5 else ""
                raise RuntimeInUse(
                    f"{len(users)} versions use this runtime: {first}{more}.",
                    hint="retire them first: appliance model rm TENANT/NAME:VERSION",
                )
            event = RuntimeRemoved(name=name, digest=digest)
            await self._store.ledger.append(event, actor=actor)
            await asyncio.to_thread(images.remove, fitting[0])
            return fitting[0]

    async def collect(self, actor: str, *, is_now: bool = False) -> dict[str, int]:
        """Remove every dependency set that no version uses; their keys and sizes in bytes.

        One that was asked for within the hour is left, unless ``is_now``: its version may not be
        registered yet. A folder of sets that is a link leads to somebody else's and is left alone.

        Audit: dependencies.removed, if there were any.
        """
        async with self._change:
            if (self._data_dir / "deps").is_symlink():
                return {}
            known = await asyncio.to_thread(dependencies.described, self._data_dir)
            old = await asyncio.to_thread(dependencies.undescribed, self._data_dir)
            used = self.uses()[1]
            sizes = {**dict.fromkeys(old, 0), **{one.key: one.size_bytes for one in known}}
            keys = tuple(
                key
                for key in sizes
                if key not in used and (is_now or dependencies.is_settled(self._data_dir, key))
            )
            if keys:
                await self._store.ledger.append(DependenciesRemoved(sets=keys), actor=actor)
            for key in keys:
                await asyncio.to_thread(dependencies.remove, self._data_dir, key)
            return {key: sizes[key] for key in keys}


def _is_in_service(version: Version) -> bool:
    return not version.retired_ns


def _chosen(known: tuple[dependencies.Description, ...], key: str) -> dependencies.Description:
    fitting = [one for one in known if one.key.startswith(key)] if key else []
    if len(fitting) != 1:
        raise InputInvalid(
            f"There is no one dependency set whose key begins with '{key[:40]}'.",
            hint="appliance runtime sets",
        )
    return fitting[0]
