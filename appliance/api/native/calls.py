"""Calling a model: by its route or live alias, by a version, or by any alias.

Owns: the three ways to address a call, and the headers of its answer.
Never: parses a body; it goes to the model as it came.
Read next: ``invoke`` (one call, end to end).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from appliance import wire
from appliance.api.dispatch import Context
from appliance.api.native import following, jobs
from appliance.api.native.models import alias_of, model_of, version_of
from appliance.api.operation import Operation
from appliance.errors import (
    BodyTimeout,
    CapacityExhausted,
    DeadlinePassed,
    DiskFull,
    Gone,
    InputInvalid,
    InvokeTimeout,
    LimitsUnenforced,
    LoadTimeout,
    Malformed,
    ModelRaised,
    OutOfMemory,
    PodmanUnavailable,
    ReplyTooLarge,
    RunnerCrashed,
    RunnerProtocol,
    TooLarge,
    UnsupportedMedia,
)
from appliance.invoke import DIRECT, Exchange, Outcome, Via
from appliance.records import LIVE, Model, Version
from appliance.shadow import Answered
from appliance.wire import Reply

_FORM = "application/x-www-form-urlencoded"


async def invoke(context: Context) -> Reply:
    """Call the version the model's route chooses, or without one that of the alias 'live'.

    The body goes to the model as it came; the model's answer comes back as it left the model. The
    headers Model-Version and Audit-Seq say which version answered and where it is recorded. Where
    the model's owner has some calls kept for replays, Sampled-Percent says how many.

    With `Prefer: wait=10` a call that could not be handed to its model for 10 seconds is given up
    with 504; the model was not called then.

    With `Prefer: respond-async` the answer is 202 and a job (see `/api/v1/jobs`) that does the
    same; with an `Idempotency-Key` the same request again gives the same job. A `Webhook` header
    names an https address that is told of the job, `Webhook-Events-Filter` of what: some of
    `start`, `output`, `logs`, `completed`.
    """
    version, via = chosen(context, model_of(context))
    return await _invoke(context, version, via)


async def invoke_version(context: Context) -> Reply:
    """Call one version by its number."""
    return await _invoke(context, version_of(context, model_of(context)))


async def invoke_alias(context: Context) -> Reply:
    """Call the version an alias points at."""
    model = model_of(context)
    alias = alias_of(context, model, context.request.params["alias"])
    return await _invoke(context, context.snapshot.version(model.id, alias.number))


def chosen(context: Context, model: Model) -> tuple[Version, Via]:
    """The version that answers a call which names none, and how it was chosen.

    Raises:
        NotFound: the model has neither a route nor a live version.
    """
    request = context.request
    choice = context.services.routing.choose(model.id, context.principal.id, request.header)
    number, via = choice or (alias_of(context, model, LIVE).number, DIRECT)
    version = context.snapshot.version(model.id, number)
    if version is None:
        raise wire.not_found()
    return version, via


async def _invoke(context: Context, version: Version | None, via: Via = DIRECT) -> Reply:
    if version is None:
        raise wire.not_found()
    require_callable(context, version)
    request = context.request
    content_type = request.content_type or "application/octet-stream"
    if content_type.split(";")[0].strip().lower() == _FORM:
        raise UnsupportedMedia(
            "Form bodies are not model input; say what the body is.",
            hint="Content-Type: application/json",
        )
    body = await request.body(body_limit(context, version))
    if jobs.wants_job(request):
        return await jobs.accept(
            context, version, content_type=content_type, body=body, revision=via.route_revision
        )
    outcome = await call(context, version, content_type=content_type, body=body, via=via)
    return Reply(
        body=outcome.reply,
        content_type=wire.safe_media_type(outcome.content_type),
        headers=headers_of(context, outcome),
        after=afterwards(context, via, content_type=content_type, body=body, outcome=outcome),
    )


def afterwards(
    context: Context, via: Via, *, content_type: str, body: bytes, outcome: Outcome
) -> Callable[[], None] | None:
    """What is done with an answered call once the answer left; mostly nothing."""
    services = context.services
    found: list[Callable[[], None]] = []
    shadow = _shadowing(context, via, content_type=content_type, body=body, outcome=outcome)
    if shadow is not None:
        found.append(shadow)
    version = context.snapshot.version(outcome.model_id, outcome.number)
    if version is not None:
        exchange = Exchange(
            call_id=context.request.id, content_type=content_type, body=body, outcome=outcome
        )
        found += services.afterwards.works(version, exchange)
    return functools.partial(_all_of, found) if found else None


def _shadowing(
    context: Context, via: Via, *, content_type: str, body: bytes, outcome: Outcome
) -> Callable[[], None] | None:
    """What has an answered call repeated to the shadows of its route, once the answer left."""
    shadows = context.services.shadows
    if not via.route_revision or not shadows.has_any(outcome.model_id):
        return None
    answered = Answered(
        call_id=context.request.id,
        model_id=outcome.model_id,
        revision=via.route_revision,
        content_type=content_type,
        body=body,
        reply=outcome.reply,
        caller_id=context.principal.id,
    )
    return functools.partial(shadows.offer, answered)


def _all_of(works: Sequence[Callable[[], None]]) -> None:
    for work in works:
        work()


def require_callable(context: Context, version: Version) -> None:
    """Return if the version is in service.

    Raises:
        Gone: it is retired; the version to call instead is named.
    """
    if not version.retired_ns:
        return
    live = context.snapshot.alias(version.model_id, LIVE)
    numbers = [v.number for v in context.snapshot.versions(version.model_id) if not v.retired_ns]
    if not numbers:
        raise Gone(f"Version {version.number} is retired.", number=version.number)
    successor = live.number if live and live.number in numbers else numbers[-1]
    where = f"/api/v1/models/{context.tenant.name}/{context.request.params['model']}"
    raise Gone(
        f"Version {version.number} is retired; call version {successor} instead.",
        number=version.number,
        successor=successor,
        successor_url=f"{context.front.url}{where}/versions/{successor}/invoke",
    )


def body_limit(context: Context, version: Version) -> int:
    """The largest body a call of this version may have, in bytes."""
    return min(context.node.settings.http.body_bytes_max, version.manifest.limits.body_bytes_max)


def require_fitting(body: bytes, limit_bytes: int) -> None:
    """Return if a body that was made from the caller's is within the limit.

    Raises:
        TooLarge: it is not.
    """
    if len(body) > limit_bytes:
        raise wire.too_large(limit_bytes)


async def call(
    context: Context,
    version: Version,
    *,
    content_type: str,
    body: bytes,
    via: Via = DIRECT,
    wait_s: float | None = None,
) -> Outcome:
    """Run the call; every contract that calls a model ends up here. See ``Invoker.run``.

    Without ``wait_s`` the caller's patience is what its ``Prefer: wait`` says.
    """
    require_callable(context, version)
    preferred = context.request.header("prefer")
    if wait_s is None and preferred:
        wait_s = wait_from_header(preferred)
    return await context.services.invoker.run(
        principal_id=context.principal.id,
        request_id=context.request.id,
        version=version,
        content_type=content_type,
        body=body,
        on_hangup=context.request.on_hangup,
        via=via,
        wait_s=wait_s,
    )


def wait_from_header(preferred: str) -> float | None:
    """Seconds of ``wait`` in a Prefer header (RFC 7240 section 4.3); ``None`` where it has none.

    Raises:
        Malformed: they are no number of seconds.
    """
    for part in preferred.split(","):
        name, _, value = part.split(";")[0].partition("=")
        if name.strip().lower() == "wait":
            value = value.strip().strip('"')
            if not value.isascii() or not value.isdigit() or len(value) > 9:
                raise Malformed(
                    "Prefer: wait takes a number of whole seconds.", hint="Prefer: wait=10"
                )
            return float(value)
    return None


def headers_of(context: Context, outcome: Outcome) -> tuple[tuple[str, str], ...]:
    """Which versions answered, where that is recorded, and whether such calls may be kept."""
    found = [("model-version", str(outcome.number)), ("audit-seq", str(outcome.audit_seq))]
    if outcome.steps:
        text = ", ".join(f"{name}={model}:{number}" for name, model, number in outcome.steps)
        found.append(("model-steps", text))
    return (*found, *following.sampled(context, outcome.model_id))


_MODEL = "/api/v1/models/{tenant}/{model}"
PROBLEMS = (
    Gone,
    TooLarge,
    InputInvalid,
    UnsupportedMedia,
    BodyTimeout,
    ModelRaised,
    RunnerCrashed,
    RunnerProtocol,
    ReplyTooLarge,
    LoadTimeout,
    InvokeTimeout,
    OutOfMemory,
    CapacityExhausted,
    DeadlinePassed,
    LimitsUnenforced,
    PodmanUnavailable,
    DiskFull,
)
_ANY = ("application/json", "text/plain", "application/octet-stream")

OPERATIONS = (
    Operation(
        method="POST",
        path=_MODEL + "/invoke",
        permission="model:invoke",
        handler=invoke,
        summary="Call a model by its route or live version",
        body=_ANY,
        reply=_ANY,
        deferred=jobs.JobDoc,
        problems=(*PROBLEMS, *jobs.PROBLEMS),
    ),
    Operation(
        method="POST",
        path=_MODEL + "/versions/{version}/invoke",
        permission="model:invoke",
        handler=invoke_version,
        summary="Call one version",
        body=_ANY,
        reply=_ANY,
        deferred=jobs.JobDoc,
        problems=(*PROBLEMS, *jobs.PROBLEMS),
    ),
    Operation(
        method="POST",
        path=_MODEL + "/aliases/{alias}/invoke",
        permission="model:invoke",
        handler=invoke_alias,
        summary="Call the version an alias points at",
        body=_ANY,
        reply=_ANY,
        deferred=jobs.JobDoc,
        problems=(*PROBLEMS, *jobs.PROBLEMS),
    ),
)
