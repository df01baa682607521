"""What models are run with: runtimes and dependency sets, who uses them, and getting rid of them.

Owns: which versions use a runtime or a set, exporting signed bundles, removing what nobody uses,
and the jobs that build, import and verify runtimes.
Never: builds or imports in this process, which holds keys: a child that holds none does.
Read next: ``sandbox.installing``, ``sandbox.dependencies``, ``sandbox.bundles``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from appliance import clock, signing
from appliance.errors import ApplianceError, InputInvalid, NotFound, RuntimeBusy, RuntimeInUse
from appliance.events import (
    DependenciesRemoved,
    RuntimeExported,
    RuntimeInstalled,
    RuntimeRemoved,
    RuntimeRequested,
    RuntimeVerified,
)
from appliance.records import Version
from appliance.sandbox import bundles, dependencies, images, installing
from appliance.sandbox.images import Progress
from appliance.sandbox.installing import Done, Order
from appliance.store import Store

_log = logging.getLogger(__name__)
_SEED = "bundle-signing"
_ENDED_SHOWN = 5
Carry = Callable[[Order, Progress], Awaitable[Done]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """A version that uses something, by names a person knows."""

    tenant: str
    model: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Work on runtimes: how far it is, or how it ended.

    ``detail`` is the last line the work said, or the problem it ended with; ``fraction`` is of the
    whole; ``ended_at`` is empty while it runs.
    """

    id: str
    verb: str
    name: str
    state: Literal["running", "done", "failed"]
    detail: str
    fraction: float
    started_at: str
    ended_at: str = ""


class Supply:
    """Runtimes and dependency sets of one unsealed node."""

    def __init__(self, store: Store, data_dir: Path, carry: Carry = installing.in_child) -> None:
        """Args: ``carry`` does the work that an order asks for."""
        self._store = store
        self._data_dir = data_dir
        self._carry = carry
        self._change = asyncio.Lock()
        self._jobs: dict[str, Job] = {}
        self._tasks: set[asyncio.Task[Done]] = set()

    def jobs(self) -> tuple[Job, ...]:
        """What is being built, imported and verified, oldest first, and the last that ended."""
        return tuple(self._jobs.values())

    def begin(self, order: Order, actor: str, progress: Progress) -> tuple[Job, asyncio.Task[Done]]:
        """Start a job; it ends with the node, or when its task is cancelled.

        Args:
            order: what to do; its data folder is replaced by this node's.
            actor: who asks, for the audit.
            progress: told each step and the fraction done.

        Raises:
            RuntimeBusy: the same is being done already.
        Audit: runtime.requested and runtime.installed, or runtime.verified, per runtime.
        """
        order = installing.placed(order, self._data_dir)
        name = order.name or Path(order.path).name or "all"
        for one in self._jobs.values():
            if one.state == "running" and (one.verb, one.name) == (order.verb, name):
                raise RuntimeBusy(
                    f"This is being done already ({order.verb} {name}), since {one.started_at}.",
                    hint="wait for it, or see the console: :runtimes",
                )
        job = Job(
            id=clock.new_id("job"),
            verb=order.verb,
            name=name,
            state="running",
            detail="starting",
            fraction=0.0,
            started_at=clock.text_from_ns(clock.now_ns()),
        )
        self._jobs[job.id] = job
        task = asyncio.get_running_loop().create_task(self._work(job, order, actor, progress))
        self._tasks.add(task)
        task.add_done_callback(self._left)
        return job, task

    def _left(self, task: asyncio.Task[Done]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # its job says it, whether or not somebody waits

    async def close(self) -> None:
        """End every job; what they were making is removed."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _work(self, job: Job, order: Order, actor: str, progress: Progress) -> Done:
        def tell(step: str, fraction: float) -> None:
            now = self._jobs[job.id]
            self._jobs[job.id] = replace(now, detail=step[:200], fraction=fraction)
            progress(step, fraction)

        try:
            done = await self._recorded(order, actor, tell)
        except ApplianceError as error:
            self._ended(job, "failed", error.detail)
            raise
        except BaseException as error:
            if not isinstance(error, asyncio.CancelledError):
                _log.exception("job %s failed", job.id)
            self._ended(job, "failed", "it was interrupted")
            raise
        self._ended(job, "done", _said(order, done))
        return done

    async def _recorded(self, order: Order, actor: str, tell: Progress) -> Done:
        append = self._store.ledger.append
        if order.verb != "verify":
            await append(RuntimeRequested(verb=order.verb, name=order.name), actor=actor)
        done = await self._carry(order, tell)
        for row in done.rows:
            if order.verb == "verify":
                event: Any = RuntimeVerified(
                    name=row["name"], digest=row["digest"], state=row["state"]
                )
            else:
                event = RuntimeInstalled(
                    verb=order.verb,
                    name=row["name"],
                    digest=row["digest"],
                    signer=row["signer"],
                    sets=tuple(row.get("sets", ())),
                )
            await append(event, actor=actor)
        return done

    def _ended(self, job: Job, state: Literal["done", "failed"], detail: str) -> None:
        now = self._jobs.pop(job.id)
        self._jobs[job.id] = replace(
            now,
            state=state,
            detail=detail,
            fraction=1.0 if state == "done" else now.fraction,
            ended_at=clock.text_from_ns(clock.now_ns()),
        )
        ended = [one.id for one in self._jobs.values() if one.ended_at]
        for name in ended[:-_ENDED_SHOWN]:
            del self._jobs[name]

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
                    f"Versions use this runtime: {first}{more}.",
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


def _said(order: Order, done: Done) -> str:
    """How a job ended, in a few words."""
    names = ", ".join(row["name"] for row in done.rows)
    if order.verb == "verify":
        wrong = [row["name"] for row in done.rows if row["state"] != "same"]
        if wrong:
            return f"not as installed, or not recorded: {', '.join(wrong)}"
        return f"{len(done.rows)} read back, all as installed"
    is_kept = all(row.get("kept") for row in done.rows)
    return f"{names}: {'kept, it is current' if is_kept else 'installed'}"


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
