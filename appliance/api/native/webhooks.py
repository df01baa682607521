"""Webhooks of a tenant: where it is told of events, with which secret, and how that goes.

Owns: the operations on webhooks and their JSON documents.
Never: sends anything (``appliance.webhooks``), or shows a secret a second time.
Read next: ``appliance.webhooks``; ``jobs`` for the webhook of a single job.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, field

from appliance import clock, wire
from appliance.api.dispatch import Context
from appliance.api.operation import Operation
from appliance.api.shapes import Body, Document, Time
from appliance.egress.outbound import URL_CHARACTERS_MAX, place_from_url
from appliance.errors import DiskFull, EgressDenied, InputInvalid, Malformed, QuotaExceeded
from appliance.standing import Delivery, Webhook
from appliance.wire import Reply, json_reply

_OVERLAP_S = 86_400
_OVERLAP_S_MAX = 30 * 86_400
_TEST_S = 20.0


class WebhookNew(Body):
    """A webhook to create."""

    url: Annotated[
        str,
        Meta(
            max_length=URL_CHARACTERS_MAX,
            description="Where to, https; empty for the secret the webhooks of single jobs have.",
        ),
    ] = ""
    events: Annotated[
        list[Annotated[str, Meta(max_length=40)]],
        Meta(max_length=64, description="What it is told of."),
    ] = field(default_factory=list)
    with_output: Annotated[
        bool, Meta(description="What a model answered goes along with 'job.completed'.")
    ] = False


class WebhookRotation(Body):
    """How long the secret before is used beside the new one."""

    overlap_s: Annotated[int, Meta(ge=0, le=_OVERLAP_S_MAX)] = _OVERLAP_S


class WebhookDoc(Document):
    """A webhook; its secret is told once, when it is made."""

    id: str
    tenant: str
    url: Annotated[
        str, Meta(description="To whom is no owner: scheme, host and port; the rest may be secret.")
    ]
    events: list[str]
    with_output: bool
    state: Annotated[
        str, Meta(description="'on', or 'off: ' and why: command, gone, failing, backlog.")
    ]
    failing_since: Time | None
    waiting: Annotated[int, Meta(description="Deliveries that have not arrived yet.")]
    secrets: Annotated[int, Meta(description="Secrets that deliveries are signed with now.")]
    created_at: Time
    created_by: str


class WebhookMade(Document):
    """A webhook with its new secret, which nobody can see again."""

    webhook: WebhookDoc
    secret: str


class DeliveryDoc(Document):
    """One event on its way to a webhook; ``code`` is how the last attempt ended."""

    id: Annotated[str, Meta(description="The webhook-id of every attempt.")]
    type: str
    state: str
    attempts: int
    code: str | None
    status: Annotated[int | None, Meta(description="HTTP status of the last answer.")]
    to: Annotated[str, Meta(description="Scheme, host and port.")]
    job: str | None
    queued_at: Time
    next_at: Time | None
    ended_at: Time | None


class WebhookShown(WebhookDoc):
    """A webhook and its deliveries, newest first."""

    deliveries: list[DeliveryDoc]


class WebhookList(Document):
    """A tenant's webhooks, oldest first."""

    items: list[WebhookDoc]


async def list_webhooks(context: Context) -> Reply:
    """A tenant's webhooks and how they fare."""
    found = context.snapshot.webhooks(context.tenant.id)
    return json_reply(WebhookList(items=[webhook_doc(context, one) for one in found]))


async def create_webhook(context: Context) -> Reply:
    """Have an address told of events, in the form of Standard Webhooks.

    The answer is the only time its secret (`whsec_...`) is told. The address is https and leads to
    no loopback, link-local, metadata, multicast or wrapped address nor to the appliance's own
    machine, unless IT allowed it; that is checked again at every delivery.
    """
    body = await context.request.json(WebhookNew)
    webhook, secret = await context.services.webhooks.create(
        context.tenant.id,
        url=body.url,
        events=tuple(body.events),
        has_output=body.with_output,
        actor=context.principal.id,
    )
    where = (("location", f"/api/v1/tenants/{context.tenant.name}/webhooks/{webhook.id}"),)
    made = WebhookMade(webhook=webhook_doc(context, webhook), secret=secret)
    return json_reply(made, status=201, headers=where)


async def show_webhook(context: Context) -> Reply:
    """A webhook with what waits for it and its last deliveries."""
    webhook = _webhook(context)
    mine = [d for d in context.snapshot.deliveries(webhook.tenant_id) if d.webhook_id == webhook.id]
    mine.sort(key=lambda one: one.queued_ns, reverse=True)
    found = [delivery_doc(one, webhook) for one in mine]
    return json_reply(WebhookShown(**_members(context, webhook), deliveries=found))


async def rotate_webhook(context: Context) -> Reply:
    """Give a webhook a new secret. For `overlap_s` deliveries carry a signature of each."""
    body = await context.request.json(WebhookRotation)
    webhook, secret = await context.services.webhooks.rotate(
        _webhook(context), overlap_s=body.overlap_s, actor=context.principal.id
    )
    return json_reply(WebhookMade(webhook=webhook_doc(context, webhook), secret=secret))


async def test_webhook(context: Context) -> Reply:
    """Send a webhook a `webhook.test`; the answer comes after the first attempt."""
    webhook = _webhook(context)
    delivery = await context.services.webhooks.test(
        webhook, actor=context.principal.id, timeout_s=_TEST_S
    )
    return json_reply(delivery_doc(delivery, webhook))


async def redeliver(context: Context) -> Reply:
    """Send a webhook a delivery once more, with the same `webhook-id`, as long as it is shown."""
    webhook = _webhook(context)
    delivery = await context.services.webhooks.redeliver(
        webhook, context.request.params["delivery"], actor=context.principal.id
    )
    return json_reply(delivery_doc(delivery, webhook), status=202)


async def enable_webhook(context: Context) -> Reply:
    """Tell a webhook of events again, from now on."""
    return await _switched(context, is_on=True)


async def disable_webhook(context: Context) -> Reply:
    """Tell a webhook nothing more; what waits for it is given up."""
    return await _switched(context, is_on=False)


async def remove_webhook(context: Context) -> Reply:
    """Remove a webhook with what waits for it; its secrets cannot be read any more."""
    await context.services.webhooks.remove(_webhook(context), actor=context.principal.id)
    return Reply(status=204)


async def _switched(context: Context, *, is_on: bool) -> Reply:
    webhook = await context.services.webhooks.switch(
        _webhook(context), is_on=is_on, actor=context.principal.id
    )
    return json_reply(webhook_doc(context, webhook))


def delivery_doc(one: Delivery, webhook: Webhook) -> DeliveryDoc:
    """A delivery as callers see it."""
    return DeliveryDoc(
        id=one.id,
        type=one.type,
        state=one.state,
        attempts=one.attempts,
        code=one.code or None,
        status=one.status or None,
        to=place_from_url(one.url or webhook.url).origin,
        job=one.job_id or None,
        queued_at=clock.text_from_ns(one.queued_ns),
        next_at=clock.text_from_ns(one.next_ns or one.queued_ns)
        if one.state == "waiting"
        else None,
        ended_at=clock.text_from_ns(one.ended_ns) if one.ended_ns else None,
    )


def _webhook(context: Context) -> Webhook:
    webhook = context.snapshot.webhook(context.tenant.id, context.request.params["webhook"])
    if webhook is None:
        raise wire.not_found()
    return webhook


def webhook_doc(context: Context, webhook: Webhook) -> WebhookDoc:
    """A webhook of the request's tenant as callers see it."""
    return WebhookDoc(**_members(context, webhook))


def _members(context: Context, webhook: Webhook) -> dict[str, Any]:
    now_ns = clock.now_ns()
    is_whole = context.principal.kind == "peer" or context.principal.role == "owner"
    waiting = [
        one
        for one in context.snapshot.deliveries(webhook.tenant_id)
        if one.webhook_id == webhook.id and one.state == "waiting"
    ]
    return {
        "id": webhook.id,
        "tenant": context.tenant.name,
        "url": webhook.url if is_whole or not webhook.url else place_from_url(webhook.url).origin,
        "events": list(webhook.events),
        "with_output": webhook.has_output,
        "state": f"off: {webhook.disabled}" if webhook.disabled else "on",
        "failing_since": clock.text_from_ns(webhook.failing_ns) if webhook.failing_ns else None,
        "waiting": len(waiting),
        "secrets": sum(not s.until_ns or s.until_ns > now_ns for s in webhook.secrets),
        "created_at": clock.text_from_ns(webhook.created_ns),
        "created_by": webhook.created_by,
    }


_ALL = "/api/v1/tenants/{tenant}/webhooks"
_ONE = _ALL + "/{webhook}"

OPERATIONS = (
    Operation(
        method="GET",
        path=_ALL,
        permission="webhook:read",
        handler=list_webhooks,
        summary="List a tenant's webhooks",
        reply=WebhookList,
    ),
    Operation(
        method="POST",
        path=_ALL,
        permission="webhook:set",
        handler=create_webhook,
        summary="Create a webhook",
        body=WebhookNew,
        reply=WebhookMade,
        status=201,
        problems=(Malformed, InputInvalid, EgressDenied, QuotaExceeded, DiskFull),
    ),
    Operation(
        method="GET",
        path=_ONE,
        permission="webhook:read",
        handler=show_webhook,
        summary="Show a webhook and its deliveries",
        reply=WebhookShown,
    ),
    Operation(
        method="POST",
        path=_ONE + "/rotate",
        permission="webhook:set",
        handler=rotate_webhook,
        summary="Give a webhook a new secret",
        body=WebhookRotation,
        reply=WebhookMade,
        problems=(Malformed, InputInvalid, DiskFull),
    ),
    Operation(
        method="POST",
        path=_ONE + "/test",
        permission="webhook:set",
        handler=test_webhook,
        summary="Send a webhook a test",
        reply=DeliveryDoc,
        problems=(InputInvalid, DiskFull),
    ),
    Operation(
        method="POST",
        path=_ONE + "/deliveries/{delivery}/redeliver",
        permission="webhook:set",
        handler=redeliver,
        summary="Send a delivery again",
        reply=DeliveryDoc,
        status=202,
        problems=(InputInvalid, DiskFull),
    ),
    Operation(
        method="POST",
        path=_ONE + "/enable",
        permission="webhook:set",
        handler=enable_webhook,
        summary="Enable a webhook",
        reply=WebhookDoc,
    ),
    Operation(
        method="POST",
        path=_ONE + "/disable",
        permission="webhook:set",
        handler=disable_webhook,
        summary="Disable a webhook",
        reply=WebhookDoc,
    ),
    Operation(
        method="DELETE",
        path=_ONE,
        permission="webhook:set",
        handler=remove_webhook,
        summary="Remove a webhook",
        status=204,
    ),
)
