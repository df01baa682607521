"""Events of webhooks: where tenants are told of events, and each attempt to tell them.

Owns: the record of every webhook and of every connection a delivery made.
Never: what a delivery carried beyond ids, names and times.
Read next: ``events`` (the list of all), ``store.webhooks`` (what they do).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from appliance.events.base import Event
from appliance.standing import Delivery, Webhook, WebhookSecret


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookCreated(Event):
    """A webhook was created; its secret is sealed once more inside this event.

    ``origin`` is scheme, host and port; the rest of the address may itself be a secret.
    """

    KIND: ClassVar[str] = "webhook.created"
    SEALED: ClassVar[bool] = True
    HIDDEN: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("webhook", "secrets"),
        ("webhook", "url"),
    )
    webhook: Webhook
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookRotated(Event):
    """A webhook got a new secret; the one before is used beside it until ``until_ns``."""

    KIND: ClassVar[str] = "webhook.rotated"
    SEALED: ClassVar[bool] = True
    HIDDEN: ClassVar[tuple[tuple[str, ...], ...]] = (("secret", "box"),)
    webhook_id: str
    secret: WebhookSecret
    until_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookDisabled(Event):
    """Nothing more is sent to a webhook; what waited for it is given up.

    ``reason`` is ``command``, ``gone`` (it answered 410), ``failing`` (for too long) or ``backlog``
    (too much waited for it).
    """

    KIND: ClassVar[str] = "webhook.disabled"
    webhook_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookEnabled(Event):
    """A webhook is told of events again, from now on."""

    KIND: ClassVar[str] = "webhook.enabled"
    webhook_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookRemoved(Event):
    """A webhook was removed and its secrets destroyed."""

    KIND: ClassVar[str] = "webhook.removed"
    webhook_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryQueued(Event):
    """A webhook is to be told of an event; durable in one unit with that event."""

    KIND: ClassVar[str] = "delivery.queued"
    SEALED: ClassVar[bool] = True
    HIDDEN: ClassVar[tuple[tuple[str, ...], ...]] = (("delivery", "url"),)
    delivery: Delivery


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryOpened(Event):
    """An attempt goes to this destination; durable before the connection is made.

    ``addresses`` are what the name led to, each of them checked.
    """

    KIND: ClassVar[str] = "delivery.opened"
    SEALED: ClassVar[bool] = True
    delivery_id: str
    webhook_id: str
    attempt: int
    host: str
    port: int
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryAttempted(Event):
    """How an attempt ended: ``code`` is ``ok`` or what was wrong, ``status`` the HTTP answer or 0.

    ``next_ns`` is when the next one is due, 0 if there is none: it arrived or is given up.
    """

    KIND: ClassVar[str] = "delivery.attempted"
    delivery_id: str
    webhook_id: str
    attempt: int
    code: str
    status: int
    took_ms: int
    next_ns: int
