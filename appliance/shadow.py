"""Shadows: versions that are called with the bodies of others' calls; their replies are dropped.

Owns: the queue of bodies still to be repeated, its bounds, and how two replies compare.
Never: delays or fails a caller: it begins after the reply left, takes only sandboxes nobody waits
for, and drops what is too much.
Read next: ``invoke`` (runs them, on record with the id of the call they repeat), ``canary``.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import msgspec

from appliance import clock
from appliance.errors import ApplianceError
from appliance.invoke import Invoker, Via
from appliance.metrics import Metrics
from appliance.sandbox.spec import Reply
from appliance.store import Store

ACTOR = "appliance"
QUEUE_MAX = 64
QUEUE_BYTES_MAX = 64 * 1024 * 1024
WORKERS = 2
_COMPARED_BYTES_MAX = 1024 * 1024
_RELATIVE, _ABSOLUTE = 1e-6, 1e-9
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A call whose reply has left: what was asked and what was answered."""

    call_id: str
    model_id: str
    revision: int
    content_type: str
    body: bytes
    reply: bytes
    caller_id: str = ""

    @property
    def size_bytes(self) -> int:
        """What keeping it takes."""
        return len(self.body) + len(self.reply)


class Shadows:
    """Repeats routed calls to the shadows of their route; one per unsealed node."""

    def __init__(self, store: Store, invoker: Invoker, metrics: Metrics) -> None:
        """Read routes from the store, run calls through ``invoker``."""
        self._store = store
        self._invoker = invoker
        self._metrics = metrics
        self._queue: asyncio.Queue[tuple[int, Answered]] = asyncio.Queue()
        self._held_bytes = 0
        self._dropped: Counter[tuple[str, int]] = Counter()

    def has_any(self, model_id: str) -> bool:
        """Whether a model's route has shadows now."""
        route = self._store.registry.snapshot.route(model_id)
        return bool(route and route.shadows)

    def offer(self, answered: Answered) -> None:
        """Have a call repeated, or dropped if too many wait; returns at once."""
        route = self._store.registry.snapshot.route(answered.model_id)
        for number in route.shadows if route else ():
            size = self._held_bytes + answered.size_bytes
            if self._queue.qsize() >= QUEUE_MAX or size > QUEUE_BYTES_MAX:
                self._dropped[answered.model_id, number] += 1
                self._metrics.shadow_ended("dropped")
                continue
            self._held_bytes = size
            self._queue.put_nowait((number, answered))

    def dropped(self, model_id: str, number: int) -> int:
        """How many calls a shadow did not get since the start because too many waited."""
        return self._dropped[model_id, number]

    async def follow(self) -> None:
        """Repeat what is offered, for ever."""
        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            number, answered = await self._queue.get()
            try:
                await self._repeat(number, answered)
            except Exception:  # noqa: BLE001 - it must go on; callers do not depend on it
                _log.exception("a shadow of %s could not be called", answered.model_id)
            finally:
                self._held_bytes -= answered.size_bytes
                self._queue.task_done()

    async def _repeat(self, number: int, answered: Answered) -> None:
        version = self._store.registry.snapshot.version(answered.model_id, number)
        if version is None or version.retired_ns:
            return
        verdict = "failed"

        def compare(reply: Reply) -> str:
            nonlocal verdict
            verdict = likeness(answered.reply, reply.body)
            return verdict

        try:
            await self._invoker.run(
                principal_id=ACTOR,
                request_id=clock.new_id("call"),
                version=version,
                content_type=answered.content_type,
                body=answered.body,
                via=Via(
                    route_revision=answered.revision,
                    shadow_of=answered.call_id,
                    compare=compare,
                    caller_id=answered.caller_id,
                ),
            )
        except ApplianceError as error:
            _log.debug("a shadow of %s: %s", answered.model_id, error.slug)
        self._metrics.shadow_ended(verdict)


def likeness(one: bytes, other: bytes) -> str:
    """How two replies compare: ``equal``, ``close`` or ``different``.

    JSON is compared by value, the order of members aside; ``close`` replies differ in numbers only,
    by less than a millionth of them. What is not JSON, or over 1 MiB, is equal or different.
    """
    if one == other:
        return "equal"
    if max(len(one), len(other)) > _COMPARED_BYTES_MAX:
        return "different"
    try:
        mine, theirs = msgspec.json.decode(one), msgspec.json.decode(other)
    except (ValueError, RecursionError):
        return "different"
    return _likeness(mine, theirs)


def _likeness(one: Any, other: Any) -> str:
    found = "equal"
    left = [(one, other)]
    while left:
        a, b = left.pop()
        if _is_number(a) and _is_number(b):
            if not _is_close(a, b):
                return "different"
            found = found if a == b else "close"
            continue
        pairs = _pairs(a, b)
        if pairs is None:
            return "different"
        left += pairs
    return found


def _pairs(a: Any, b: Any) -> list[tuple[Any, Any]] | None:
    """What is left to compare of two values that are no numbers; ``None`` if they differ."""
    if type(a) is not type(b):
        return None
    if isinstance(a, dict):
        return [(a[key], b[key]) for key in a] if a.keys() == b.keys() else None
    if isinstance(a, list):
        return list(zip(a, b, strict=True)) if len(a) == len(b) else None
    return [] if a == b else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_is_close = functools.partial(math.isclose, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)
