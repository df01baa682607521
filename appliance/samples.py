"""Samples: calls that are kept, sealed, because the model's owner wants to repeat them later.

Owns: which calls are kept, the queue of those still to be written, caps and times.
Never: delays or fails a caller: it begins after the reply left, and drops what is too much. Keeps
nothing of a model whose owner did not ask for it.
Read next: ``comparison.replay`` (who repeats them), ``store.shelf`` (where they lie), ``shadow``.

A sample's file is named by its model, time and call; everything else of it is inside, sealed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict
from dataclasses import dataclass

import msgspec

from appliance import clock
from appliance.errors import ApplianceError
from appliance.events import SamplesRemoved
from appliance.records import WEIGHT_ALL
from appliance.standing import Sampling
from appliance.store import Store

QUEUE_MAX = 64
QUEUE_BYTES_MAX = 32 * 1024 * 1024
SAMPLE_BYTES_MAX = 4 * 1024 * 1024
_SWEEP_S = 10.0
_NS = 1_000_000_000
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A call as it was: what was asked, what version ``number`` answered, and what it took.

    ``took_us`` is without waiting for a sandbox and making it. ``parent`` is the call that made it,
    if a call did.
    """

    call_id: str
    model_id: str
    tenant_id: str
    number: int
    time_ns: int
    took_us: int
    content_type: str
    body: bytes
    reply_type: str
    reply: bytes
    parent: str = ""

    @property
    def size_bytes(self) -> int:
        """What keeping it takes, about."""
        return len(self.body) + len(self.reply)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A sample that is kept: its file, how large that is, when the call was and until when."""

    tenant_id: str
    name: str
    size_bytes: int

    @property
    def call_id(self) -> str:
        """The call's id, by which the audit log knows it."""
        return self.name.split(".", 3)[3]

    @property
    def time_ns(self) -> int:
        """When the call was."""
        return _times_of(self.name)[0]

    @property
    def until_ns(self) -> int:
        """When its time is over."""
        time_ns, kept_s = _times_of(self.name)
        return time_ns + kept_s * _NS


class Samples:
    """Keeps samples and forgets them; one per unsealed node."""

    def __init__(self, store: Store) -> None:
        """Read what is to be kept from the store's registry, keep it on its shelf."""
        self._store = store
        self._shelf = store.samples
        self._queue: asyncio.Queue[Sample] = asyncio.Queue()
        self._held_bytes = 0
        self._kept: dict[str, OrderedDict[str, Kept]] = {}
        self._dropped: Counter[str] = Counter()
        self._ready = asyncio.Event()

    def wants_call(self, model_id: str) -> bool:
        """Whether this call of a model is one to keep; another call may be answered otherwise."""
        sampling = self._store.registry.snapshot.sampling(model_id)
        return sampling is not None and clock.draw(WEIGHT_ALL) < sampling.weight

    def offer(self, sample: Sample) -> None:
        """Have a call kept, or dropped if it is too large or too many wait; returns at once."""
        size = sample.size_bytes
        is_full = self._queue.qsize() >= QUEUE_MAX or self._held_bytes + size > QUEUE_BYTES_MAX
        if size > SAMPLE_BYTES_MAX or is_full:
            self._dropped[sample.model_id] += 1
            return
        self._held_bytes += size
        self._queue.put_nowait(sample)

    def dropped(self, model_id: str) -> int:
        """How many calls that were to be kept were not, since the start."""
        return self._dropped[model_id]

    async def kept(self, model_id: str) -> tuple[Kept, ...]:
        """The samples of a model that are kept, oldest first."""
        await self._ready.wait()
        return tuple(self._kept.get(model_id, {}).values())

    async def read(self, kept: Kept) -> Sample:
        """A sample. Raises NotFound where it was deleted meanwhile, StoreCorrupt."""
        data = await self._shelf.get(kept.tenant_id, kept.name)
        return msgspec.msgpack.decode(data, type=Sample)

    async def remove(self, model_id: str, *, tenant_id: str, actor: str) -> int:
        """Delete every sample of a model; returns how many. Audit: samples.removed."""
        await self._ready.wait()
        await self._queue.join()  # what was answered before this is deleted too
        found = self._kept.pop(model_id, OrderedDict())
        await self._shelf.remove(tenant_id, found)
        event = SamplesRemoved(model_id=model_id, count=len(found))
        await self._store.ledger.append(event, tenant_id=tenant_id, actor=actor, object=model_id)
        return len(found)

    # --- the life of the whole ---------------------------------------------------------------

    async def follow(self) -> None:
        """Keep what is offered and forget what is over, for ever."""
        await self._take_up()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._write())
            group.create_task(self._forget())

    async def _take_up(self) -> None:
        listing = await asyncio.to_thread(self._shelf.listing)
        for tenant_id, names in listing.items():
            for name in sorted(names, key=_times_of):
                model_id, _, _ = name.partition(".")
                one = Kept(tenant_id=tenant_id, name=name, size_bytes=names[name])
                self._kept.setdefault(model_id, OrderedDict())[name] = one
        await self.sweep()
        self._ready.set()

    async def _write(self) -> None:
        while True:
            sample = await self._queue.get()
            try:
                await self._keep(sample)
            except (ApplianceError, OSError) as error:
                self._dropped[sample.model_id] += 1
                _log.info("a call of %s was not kept: %s", sample.model_id, error)
            except Exception:  # noqa: BLE001 - it must go on; callers do not depend on it
                _log.exception("a call of %s was not kept", sample.model_id)
            finally:
                self._held_bytes -= sample.size_bytes
                self._queue.task_done()

    async def _keep(self, sample: Sample) -> None:
        sampling = self._store.registry.snapshot.sampling(sample.model_id)
        if sampling is None:
            return  # its owner ended it since
        name = f"{sample.model_id}.{sample.time_ns}.{sampling.kept_s}.{sample.call_id}"
        data = msgspec.msgpack.encode(sample)
        size = await self._shelf.put(sample.tenant_id, name, data, is_durable=False)
        one = Kept(tenant_id=sample.tenant_id, name=name, size_bytes=size)
        self._kept.setdefault(sample.model_id, OrderedDict())[name] = one
        await self._drop(sample.model_id, self._over(sample.model_id, sampling))
        if self._store.registry.snapshot.model_by_id(sample.model_id) is None:
            await self.sweep()

    async def _forget(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            try:
                await self.sweep()
            except (ApplianceError, OSError) as error:
                _log.warning("old samples could not be removed: %s", error)

    async def sweep(self) -> None:
        """Delete samples whose time is over, and those of models and tenants that are gone."""
        await self._shelf.sweep(lambda one: self._store.registry.snapshot.tenant_by_id(one))
        snapshot = self._store.registry.snapshot
        for model_id, by_name in list(self._kept.items()):
            model = snapshot.model_by_id(model_id)
            if model is None or model.removed_ns:
                await self._drop(model_id, list(by_name.values()))
                continue
            await self._drop(model_id, self._over(model_id, snapshot.sampling(model_id)))

    def _over(self, model_id: str, sampling: Sampling | None) -> list[Kept]:
        """What is to go: the oldest beyond the caps, and what was kept for its time.

        The time is that of when it was kept, or of now if that is shorter.
        """
        found = list(self._kept.get(model_id, {}).values())
        now_ns = clock.now_ns()
        oldest_ns = now_ns - sampling.kept_s * _NS if sampling else 0
        surplus = len(found) - (sampling.count_max if sampling else len(found))
        size = sum(one.size_bytes for one in found)
        over = []
        for at, one in enumerate(found):
            is_large = sampling is not None and size > sampling.bytes_max
            is_old = one.time_ns < oldest_ns or one.until_ns < now_ns
            if at < surplus or is_large or is_old:
                over.append(one)
                size -= one.size_bytes
        return over

    async def _drop(self, model_id: str, over: list[Kept]) -> None:
        if not over:
            return
        by_name = self._kept.get(model_id, OrderedDict())
        for one in over:
            by_name.pop(one.name, None)
        if not by_name:
            self._kept.pop(model_id, None)
        for tenant_id in {one.tenant_id for one in over}:
            await self._shelf.remove(tenant_id, [o.name for o in over if o.tenant_id == tenant_id])


def _times_of(name: str) -> tuple[int, int]:
    """When a file's call was (ns) and how long it is kept (s); what is named otherwise is over."""
    parts = name.split(".", 3)  # the id of a batch's call has a dot in it
    is_known = len(parts) == 4 and parts[1].isdigit() and parts[2].isdigit()
    return (int(parts[1]), int(parts[2])) if is_known else (0, 0)
