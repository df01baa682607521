"""What outlives its request, as callers meet it: taken on once, waited for, followed, fetched.

Owns: who may see it and in what words, idempotency keys, webhooks of its own, ``wait_s``, lists,
server-sent events, and an output on its way to its caller.
Never: knows what a job, a batch or a comparison does; renders its document.
Read next: ``jobs``, ``batches`` and ``comparisons`` (which are followed).

An owner sees what its tenant has, a caller what it asked for itself. What one may not see answers
like what does not exist.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from appliance import clock, wire
from appliance.api.dispatch import Context
from appliance.api.operation import Query
from appliance.errors import (
    ApplianceError,
    Forbidden,
    GuestError,
    InputInvalid,
    Malformed,
    problem_classes,
)
from appliance.records import JOB_ENDS, JobStatus
from appliance.wire import Reply, Write

EVENTS = "text/event-stream"
BEAT_S = 15.0
STATUSES: tuple[str, ...] = ("starting", "processing", *JOB_ENDS)
_WAIT_S_MAX = 60
_LIMIT_MAX = 1000
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_TEXT = {"type": "string"}


class Followed(Protocol):
    """A job, a batch or a comparison, as far as it is followed."""

    @property
    def id(self) -> str:
        """Its id."""
        ...

    @property
    def status(self) -> JobStatus:
        """How it stands."""
        ...

    @property
    def created_by(self) -> str:
        """Who asked for it."""
        ...


class OfModel(Followed, Protocol):
    """One that is of a single model: a job or a batch."""

    @property
    def model_id(self) -> str:
        """The model it calls."""
        ...


_F = TypeVar("_F", bound=Followed)
_M = TypeVar("_M", bound=OfModel)


class Keeper(Protocol[_F]):
    """Who has them and knows when they change: ``Jobs``, ``Batches``, ``Comparisons``."""

    is_draining: bool

    def find(self, tenant_id: str, name: str, /) -> _F | None:
        """It as it is now."""
        ...

    async def changed(self, one: _F, timeout_s: float, /) -> _F | None:
        """It once it is other than given, or as it is after a time."""
        ...


# --- who may see it, and in what words ---------------------------------------------------------


def is_owner(context: Context) -> bool:
    """Whether the caller may see what belongs to others of its tenant."""
    return context.principal.kind == "peer" or context.principal.role == "owner"


def is_visible(context: Context, created_by: str) -> bool:
    """Whether the caller may see what somebody of its tenant made: an owner all, others theirs."""
    return is_owner(context) or created_by == context.principal.id


def required(context: Context, keeper: Keeper[_F], param: str) -> _F:
    """What the path names, if the caller may see it. Raises NotFound."""
    found = keeper.find(context.tenant.id, context.request.params[param])
    if found is None or not is_visible(context, found.created_by):
        raise wire.not_found()
    return found


def model_name(context: Context, model_id: str) -> str:
    """The name of a model; empty once it is gone."""
    model = context.snapshot.model_by_id(model_id)
    return model.name if model else ""


def shown_problem(
    context: Context, kept: dict[str, Any] | None, instance: str
) -> dict[str, Any] | None:
    """What went wrong, in the words this caller may see; ``instance`` is the id of what did."""
    if kept is None:
        return None
    classes = {cls.slug: cls for cls in problem_classes()}
    cls = classes.get(kept["code"], ApplianceError)
    more: dict[str, Any] = {"hint": kept["hint"], **kept.get("extensions", {})}
    if issubclass(cls, GuestError):
        more["stderr"] = tuple(kept["stderr"])
    error = cls(kept["detail"], **more)
    return wire.problem_document(error, instance, is_owner=is_owner(context))


# --- taken on ----------------------------------------------------------------------------------


def idempotency_key(context: Context) -> str:
    """The caller's Idempotency-Key, ``""`` for none. Raises Malformed."""
    key = context.request.header("idempotency-key").strip()
    if key and not _KEY.fullmatch(key):
        raise Malformed("An Idempotency-Key is 1 to 255 visible ASCII characters.")
    return key


def replayed(is_new: bool) -> tuple[tuple[str, str], ...]:
    """The header that says that an answer is about what was taken on before."""
    return () if is_new else (("idempotent-replayed", "true"),)


async def own_webhook(
    context: Context, known: tuple[str, ...], default: tuple[str, ...]
) -> tuple[str, tuple[str, ...]]:
    """Where the caller wants to be told of this one, and of which of the ``known``; checked.

    Raises:
        Malformed: there is a filter without an address.
        Forbidden: logs are for owners.
        InputInvalid, EgressDenied: see ``Webhooks.require_for_one``.
    """
    url = context.request.header("webhook").strip()
    asked = context.request.header("webhook-events-filter").lower()
    if not url:
        if asked.strip():
            raise Malformed("A Webhook-Events-Filter comes with a Webhook header.")
        return "", ()
    wanted = tuple(dict.fromkeys(part.strip() for part in asked.split(",") if part.strip()))
    if "logs" in wanted and not is_owner(context):
        raise Forbidden("What a model printed is told to an owner of its tenant only.")
    wanted = wanted or default
    await context.services.webhooks.require_for_one(context.tenant.id, url, wanted, known)
    return url, wanted


# --- waited for and followed -------------------------------------------------------------------

WAIT = Query(
    name="wait_s",
    doc="Seconds to wait for its end.",
    schema={"type": "integer", "minimum": 0, "maximum": _WAIT_S_MAX, "default": 0},
)


def wait_s(context: Context) -> int:
    """How long the caller waits. Raises InputInvalid."""
    return context.request.int_query("wait_s", default=0, low=0, high=_WAIT_S_MAX)


async def ended(context: Context, keeper: Keeper[_F], one: _F) -> _F:
    """It once it has ended, or as it is after ``wait_s``. Raises NotFound: it is forgotten."""
    deadline_ns = clock.monotonic_ns() + wait_s(context) * 1_000_000_000
    while one.status not in JOB_ENDS and not keeper.is_draining:
        left_s = (deadline_ns - clock.monotonic_ns()) / 1e9
        if left_s <= 0:
            break
        now = await keeper.changed(one, left_s)
        if now is None:
            raise wire.not_found()
        one = now
    return one


def wants_events(context: Context) -> bool:
    """Whether the answer is to be server-sent events."""
    return context.request.is_accepted(EVENTS)


def events(follow: Callable[[Write], Any]) -> Reply:
    """An answer of server-sent events; its head leaves at once."""

    async def stream(write: Write) -> None:
        await write(b": following\n\n")
        await follow(write)

    return Reply(content_type=EVENTS, stream=stream)


def event(name: str, event_id: str, data: Any) -> bytes:
    """One server-sent event."""
    text = msgspec.json.encode(data)
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (event_id.encode(), name.encode(), text)


async def moved(keeper: Keeper[_F], one: _F, write: Write) -> _F | None:
    """It once it is other than given, with a sign of life meanwhile; ``None`` at the very end."""
    while True:
        now = await keeper.changed(one, BEAT_S)
        if now is None or keeper.is_draining:
            return None
        if now != one:
            return now
        await write(b": waiting\n\n")


# --- fetched and listed ------------------------------------------------------------------------


def passed_on(first: bytes, rest: AsyncGenerator[bytes]) -> Callable[[Write], Any]:
    """What writes an output whose first piece is there; whoever makes it is told of the end."""

    async def stream(write: Write) -> None:
        try:
            if first:
                await write(first)
            async for piece in rest:
                await write(piece)
        finally:
            await rest.aclose()

    return stream


def listed(context: Context, every: Sequence[_M]) -> Iterable[_M]:
    """Those of ``every``, oldest first, that the query asks for and the caller may see.

    Newest first, and no more than ``limit``.

    Raises:
        InputInvalid: the query is none.
    """
    query = context.request.query
    status, model, before = query.get("status"), query.get("model"), query.get("before")
    if status is not None and status not in STATUSES:
        raise InputInvalid(f"'status' is one of {', '.join(STATUSES)}.")
    found = [
        one
        for one in reversed(every)
        if is_visible(context, one.created_by)
        and status in (None, one.status)
        and model in (None, model_name(context, one.model_id))
    ]
    if before is not None:
        at = next((at for at, one in enumerate(found) if one.id == before), len(found))
        found = found[at + 1 :]
    return found[: limit(context)]


def limit(context: Context) -> int:
    """How many the caller wants at most. Raises InputInvalid."""
    return context.request.int_query("limit", default=100, low=1, high=_LIMIT_MAX)


LIMIT = Query(
    name="limit",
    doc="Most to return.",
    schema={"type": "integer", "minimum": 1, "maximum": _LIMIT_MAX, "default": 100},
)
LISTED = (
    Query(name="status", doc="Only these.", schema={**_TEXT, "enum": [*STATUSES]}),
    Query(name="model", doc="Only those of this model.", schema=_TEXT),
    Query(name="before", doc="Only those submitted before this one.", schema=_TEXT),
    LIMIT,
)
"""The queries of ``listed``."""


def sampled(context: Context, model_id: str) -> tuple[tuple[str, str], ...]:
    """The header that says how many of a model's calls are kept; none where none are."""
    sampling = context.snapshot.sampling(model_id)
    return (("sampled-percent", f"{sampling.weight / 100:g}"),) if sampling else ()
