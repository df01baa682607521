"""What events do to a tenant's webhooks and to the deliveries on their way.

Owns: ``apply_webhook``, the one place where an event changes them.
Never: sends anything (``appliance.webhooks``), or appends to the ledger.
Read next: ``announce`` (which event queues a delivery), ``webhook_commands``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from appliance.events import (
    DeliveryAttempted,
    DeliveryOpened,
    DeliveryQueued,
    Event,
    WebhookCreated,
    WebhookDisabled,
    WebhookEnabled,
    WebhookRemoved,
    WebhookRotated,
)
from appliance.standing import Delivery, Webhook

WEBHOOK_EVENTS: dict[str, type[Event]] = {
    cls.KIND: cls
    for cls in (
        WebhookCreated,
        WebhookRotated,
        WebhookDisabled,
        WebhookEnabled,
        WebhookRemoved,
        DeliveryQueued,
        DeliveryOpened,
        DeliveryAttempted,
    )
}
KEPT_MAX = 100
"""Deliveries of a webhook that are over and still shown; the ledger has all of them."""

Webhooks = dict[str, Webhook]
Deliveries = dict[str, Delivery]


def apply_webhook(
    webhooks: Mapping[str, Webhook],
    deliveries: Mapping[str, Delivery],
    event: Event,
    time_ns: int,
) -> tuple[Webhooks, Deliveries]:
    """A tenant's webhooks and deliveries after a durable event; ``time_ns`` is its entry's.

    Raises:
        KeyError: the event is about a webhook there is none of.
    """
    found, ways = dict(webhooks), dict(deliveries)
    match event:
        case WebhookCreated(webhook=webhook):
            found[webhook.id] = webhook
        case WebhookRotated(webhook_id=hook_id, secret=secret, until_ns=until_ns):
            before = replace(found[hook_id].secrets[0], until_ns=until_ns)
            found[hook_id] = replace(found[hook_id], secrets=(secret, before))
        case WebhookDisabled(webhook_id=hook_id, reason=reason):
            found[hook_id] = replace(found[hook_id], disabled=reason)
            for one in [d for d in ways.values() if d.webhook_id == hook_id]:
                if one.state == "waiting":
                    _end(ways, replace(one, state="failed", code="disabled", ended_ns=time_ns))
        case WebhookEnabled(webhook_id=hook_id):
            found[hook_id] = replace(found[hook_id], disabled="", failing_ns=0)
        case WebhookRemoved(webhook_id=hook_id):
            del found[hook_id]
            ways = {key: one for key, one in ways.items() if one.webhook_id != hook_id}
        case _:
            _apply_delivery(found, ways, event, time_ns)
    return found, ways


def _apply_delivery(found: Webhooks, ways: Deliveries, event: Event, time_ns: int) -> None:
    match event:
        case DeliveryQueued(delivery=delivery):
            ways[delivery.id] = delivery
        case DeliveryOpened(delivery_id=delivery_id, attempt=attempt):
            if delivery_id in ways:  # its webhook may be gone meanwhile
                now = replace(ways[delivery_id], attempts=attempt, code="", status=0)
                ways[delivery_id] = now
        case DeliveryAttempted():
            _attempted(found, ways, event, time_ns)
        case _:
            raise KeyError(event.KIND)


def _attempted(found: Webhooks, ways: Deliveries, event: DeliveryAttempted, time_ns: int) -> None:
    webhook, delivery = found.get(event.webhook_id), ways.get(event.delivery_id)
    is_ok = event.code == "ok"
    if webhook is not None and webhook.url:
        since_ns = 0 if is_ok else webhook.failing_ns or time_ns
        found[webhook.id] = replace(webhook, failing_ns=since_ns)
    if delivery is None or delivery.state != "waiting":
        return
    now = replace(
        delivery,
        attempts=event.attempt,
        code=event.code,
        status=event.status,
        next_ns=event.next_ns,
    )
    if is_ok or not event.next_ns:
        _end(ways, replace(now, state="delivered" if is_ok else "failed", ended_ns=time_ns))
    else:
        ways[delivery.id] = now


def _end(ways: Deliveries, delivery: Delivery) -> None:
    """Keep a delivery that is over, as the newest, and forget the oldest of too many."""
    ways.pop(delivery.id, None)
    ways[delivery.id] = delivery
    over = [
        key
        for key, one in ways.items()
        if one.state != "waiting" and one.webhook_id == delivery.webhook_id
    ]
    for key in over[: max(len(over) - KEPT_MAX, 0)]:
        del ways[key]
