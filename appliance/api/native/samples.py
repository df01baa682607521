"""Which calls of a model are kept for replays, deleting them, and replays.

Owns: the operations on samples and their JSON documents.
Never: shows a kept call by itself: what a replay finds is shown to owners (``comparisons``).
Read next: ``appliance.samples`` (what is kept), ``appliance.comparison.replay``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from msgspec import Meta

from appliance import clock
from appliance.api.dispatch import Context
from appliance.api.native.comparisons import ComparisonDoc, accepted
from appliance.api.native.models import model_of
from appliance.api.operation import Operation, Query
from appliance.api.shapes import Body, Document, Time
from appliance.comparison.record import Comparison, Target
from appliance.comparison.replay import chosen
from appliance.errors import DiskFull, Gone, InputInvalid, QuotaExceeded
from appliance.records import Model
from appliance.standing import Sampling
from appliance.wire import Reply, json_reply

_DAY_S = 86_400
_MIB = 1024 * 1024
DAYS_MAX, COUNT_MAX, BYTES_MAX = 90, 100_000, 4096 * _MIB


class SamplingNew(Body):
    """Which calls of a model are kept; 0 percent keeps no more."""

    percent: Annotated[float, Meta(ge=0, le=100, description="Of the calls, in steps of 0.01.")]
    days: Annotated[int, Meta(ge=1, le=DAYS_MAX)] = 7
    count_max: Annotated[int, Meta(ge=1, le=COUNT_MAX, description="The newest stay.")] = 1000
    bytes_max: Annotated[int, Meta(ge=1024, le=BYTES_MAX)] = 64 * _MIB


class SamplesDoc(Document):
    """Which calls of a model are kept, and what is kept now."""

    tenant: str
    model: str
    percent: float
    days: int | None
    count_max: int | None
    bytes_max: int | None
    set_at: Time | None
    set_by: str | None
    kept: int
    kept_bytes: int
    oldest_at: Time | None
    dropped: Annotated[
        int, Meta(description="Since the start: too large, too many at once, or no disk.")
    ]


class KeptCallDoc(Document):
    """A call that is kept: its id in the audit log, when it was, and until when it is kept."""

    call_id: str
    at: Time
    until: Time
    kept_bytes: int


class KeptCallList(Document):
    """Kept calls of a model, newest first, without what was asked and answered."""

    items: list[KeptCallDoc]


class SamplesRemovedDoc(Document):
    """How many kept calls were deleted."""

    removed: int


class ReplayNew(Body):
    """Kept calls to repeat, the newest first."""

    against: Annotated[int, Meta(ge=1, le=999_999_999, description="The version they go to.")]
    since_s: Annotated[int, Meta(ge=0, description="Of the last so many seconds; 0: of all.")] = 0
    limit: Annotated[int, Meta(ge=1, le=COUNT_MAX)] = 1000
    worst: Annotated[int, Meta(ge=0, le=100, description="Most differences to show.")] = 10


async def show_samples(context: Context) -> Reply:
    """Whether calls of a model are kept, how many, for how long, and how many there are."""
    return json_reply(await samples_doc(context, model_of(context)))


async def list_samples(context: Context) -> Reply:
    """Which calls of a model are kept, newest first; what was asked and answered is not shown."""
    limit = context.request.int_query("limit", default=100, low=1, high=COUNT_MAX)
    kept = await context.services.samples.kept(model_of(context).id)
    items = [
        KeptCallDoc(
            call_id=one.call_id,
            at=clock.text_from_ns(one.time_ns),
            until=clock.text_from_ns(one.until_ns),
            kept_bytes=one.size_bytes,
        )
        for one in reversed(kept[-limit:])
    ]
    return json_reply(KeptCallList(items=items))


async def set_sampling(context: Context) -> Reply:
    """Have a share of a model's calls kept, sealed, to be repeated to other versions later.

    Off by default. Of calls that succeed that share is drawn; what was asked and answered is kept
    after the answer left. Callers see it: answers carry the header `Sampled-Percent`. With 0
    percent no more are kept, and those that are stay until their days are over, or are deleted.
    """
    model = model_of(context)
    body = await context.request.json(SamplingNew)
    weight = round(body.percent * 100)
    if abs(body.percent * 100 - weight) > 1e-6:
        raise InputInvalid("'percent' is a multiple of 0.01.")
    commands, actor = context.services.store.registry.samplings, context.principal.id
    if weight:
        draft = Sampling(
            model_id=model.id,
            tenant_id=model.tenant_id,
            weight=weight,
            count_max=body.count_max,
            bytes_max=body.bytes_max,
            kept_s=body.days * _DAY_S,
            set_ns=0,
            set_by="",
        )
        await commands.set(draft, actor=actor)
    elif context.snapshot.sampling(model.id) is not None:
        await commands.remove(model_id=model.id, actor=actor)
    await context.services.samples.sweep()
    return json_reply(await samples_doc(context, model))


async def remove_samples(context: Context) -> Reply:
    """Delete every kept call of a model now; whether more are kept stays as it is."""
    model = model_of(context)
    count = await context.services.samples.remove(
        model.id, tenant_id=model.tenant_id, actor=context.principal.id
    )
    return json_reply(SamplesRemovedDoc(removed=count))


async def replay_samples(context: Context) -> Reply:
    """Repeat kept calls to another version; the answer is 202 and a comparison to follow.

    Every call is on record, in the caller's name, with the id of the call it repeats.
    """
    model = model_of(context)
    body = await context.request.json(ReplayNew)
    version = context.snapshot.version(model.id, body.against)
    if version is None:
        raise InputInvalid(f"This model has no version {body.against}.")
    if version.retired_ns:
        raise Gone(f"Version {body.against} is retired.", number=body.against)
    now_ns = clock.now_ns()
    asked = Comparison(
        id=clock.new_id("cmp"),
        tenant_id=model.tenant_id,
        source="replay",
        targets=(Target(model_id=model.id, model=model.name, number=version.number, form=""),),
        limit=body.limit,
        since_ns=now_ns - body.since_s * 1_000_000_000 if body.since_s else 0,
        worst=body.worst,
        created_ns=now_ns,
        created_by=context.principal.id,
    )
    found = chosen(await context.services.samples.kept(model.id), asked)
    if not found:
        raise InputInvalid(
            "No calls of that time are kept.",
            hint=f"appliance sample set {context.tenant.name}/{model.name} --percent 5",
        )
    return accepted(
        context, await context.services.comparisons.submit(replace(asked, rows=len(found)))
    )


async def samples_doc(context: Context, model: Model) -> SamplesDoc:
    """Which calls of a model of the request's tenant are kept, and what is kept now."""
    sampling = context.snapshot.sampling(model.id)
    kept = await context.services.samples.kept(model.id)
    return SamplesDoc(
        tenant=context.tenant.name,
        model=model.name,
        percent=sampling.weight / 100 if sampling else 0.0,
        days=sampling.kept_s // _DAY_S if sampling else None,
        count_max=sampling.count_max if sampling else None,
        bytes_max=sampling.bytes_max if sampling else None,
        set_at=clock.text_from_ns(sampling.set_ns) if sampling else None,
        set_by=sampling.set_by if sampling else None,
        kept=len(kept),
        kept_bytes=sum(one.size_bytes for one in kept),
        oldest_at=clock.text_from_ns(kept[0].time_ns) if kept else None,
        dropped=context.services.samples.dropped(model.id),
    )


_SAMPLES = "/api/v1/models/{tenant}/{model}/samples"

OPERATIONS = (
    Operation(
        method="GET",
        path=_SAMPLES,
        permission="model:read",
        handler=show_samples,
        summary="Show which calls of a model are kept",
        reply=SamplesDoc,
    ),
    Operation(
        method="GET",
        path=_SAMPLES + "/calls",
        permission="model:read",
        handler=list_samples,
        summary="List the kept calls of a model",
        reply=KeptCallList,
        query=(
            Query(
                name="limit",
                doc="Most to return.",
                schema={"type": "integer", "minimum": 1, "maximum": COUNT_MAX, "default": 100},
            ),
        ),
        problems=(InputInvalid,),
    ),
    Operation(
        method="PUT",
        path=_SAMPLES,
        permission="sample:set",
        handler=set_sampling,
        summary="Have calls of a model kept",
        body=SamplingNew,
        reply=SamplesDoc,
        problems=(InputInvalid, DiskFull),
    ),
    Operation(
        method="DELETE",
        path=_SAMPLES,
        permission="sample:remove",
        handler=remove_samples,
        summary="Delete the kept calls of a model",
        reply=SamplesRemovedDoc,
        problems=(DiskFull,),
    ),
    Operation(
        method="POST",
        path="/api/v1/models/{tenant}/{model}/replay",
        permission="sample:replay",
        handler=replay_samples,
        summary="Repeat kept calls to another version",
        body=ReplayNew,
        reply=ComparisonDoc,
        status=202,
        problems=(InputInvalid, Gone, QuotaExceeded, DiskFull),
    ),
)
