"""PURE: what a delivery says and how it is signed, in the form of Standard Webhooks.

Owns: the body, the three headers, and when the next attempt is due.
Never: reads a secret's storage, a clock or a job.
Read next: ``post`` (sends it), ``appliance.webhooks`` (puts it together).

    webhook-id         the delivery's id, the same in every attempt
    webhook-timestamp  when this attempt was made, Unix seconds
    webhook-signature  v1,BASE64(HMAC-SHA256(secret, id.timestamp.body)), of each secret in force
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Sequence
from typing import Any

import msgspec

WAITS_S = (5, 300, 1_800, 7_200, 18_000, 36_000, 36_000)
"""Seconds from each failed attempt to the next; after the last there is none."""
RETRY_AFTER_S_MAX = 3_600
_NS = 1_000_000_000
_TYPE = "application/json"
_AGENT = "model-appliance-webhooks/1"


def body_of(kind: str, at: str, data: dict[str, Any]) -> bytes:
    """The body: what happened, when (RFC 3339), and to what."""
    return msgspec.json.encode({"type": kind, "timestamp": at, "data": data})


def headers_of(
    delivery_id: str, now_ns: int, body: bytes, secrets: Sequence[bytes]
) -> list[tuple[str, str]]:
    """The headers of one attempt.

    Args:
        delivery_id: the delivery's.
        now_ns: wall time of the attempt.
        body: as it will be sent, byte for byte.
        secrets: the keys in force, the newest first.
    """
    stamp = str(now_ns // _NS)
    signed = f"{delivery_id}.{stamp}.".encode() + body
    signatures = [
        "v1," + base64.b64encode(hmac.digest(secret, signed, "sha256")).decode("ascii")
        for secret in secrets
    ]
    return [
        ("content-type", _TYPE),
        ("user-agent", _AGENT),
        ("webhook-id", delivery_id),
        ("webhook-timestamp", stamp),
        ("webhook-signature", " ".join(signatures)),
    ]


def next_ns(attempt: int, now_ns: int, retry_after_s: int = 0) -> int:
    """When the attempt after a failed one is due, 0 if there is none.

    Args:
        attempt: the number of the failed one, from 1.
        now_ns: wall time.
        retry_after_s: what the receiver asked for; at most an hour of it is granted.
    """
    if attempt > len(WAITS_S):
        return 0
    wait_s = max(WAITS_S[attempt - 1], min(retry_after_s, RETRY_AFTER_S_MAX))
    return now_ns + wait_s * _NS
