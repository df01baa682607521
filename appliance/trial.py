"""What the first sandbox of a version shows besides that it loads: a description and a sample.

Owns: asking the appliance's own loaders to describe the model, and trying the sample body.
Never: calls code of a tenant's own entry: that may have effects; believes a claim unread.
Read next: ``lifecycle`` (the only user), ``sandbox/guest/python_sklearn.py`` (who answers).
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from appliance.errors import GuestError
from appliance.records import Manifest
from appliance.sandbox.lease import Lease
from appliance.sandbox.spec import Reply, Request

DESCRIBE = "application/vnd.appliance.describe+json"
_BYTES_MAX = 64 * 1024
_SAMPLE_BYTES_MAX = 16 * 1024
_ANSWER_BYTES_MAX = 16 * 1024 * 1024
_TIMEOUT_MS = 20_000


class _Description(msgspec.Struct):
    """What a loader says of its model; the guest may write anything into it."""

    summary: Annotated[str, Meta(max_length=500)] = ""
    sample: Any = None
    input_schema: dict[str, Any] | None = None


async def completed(lease: Lease, declared: Manifest) -> Manifest:
    """The manifest with a sample that was answered, and with the schema the model describes.

    Nothing here fails a registration: without a sample there is none.

    Args:
        lease: the loaded version.
        declared: its manifest; only entries of the form ``@convention`` are asked.
    """
    if not declared.entry.startswith("@"):
        return declared
    found = _Description()
    if lease.is_clean:
        reply = await _request(lease, declared, DESCRIBE, b"", _BYTES_MAX)
        found = _read(reply) if isinstance(reply, Reply) else found
    schema = declared.input_schema or found.input_schema
    sample = declared.sample.encode()
    if not sample and found.sample is not None:
        sample = msgspec.json.encode(found.sample)
    notes = list(declared.notes)
    if found.summary:
        notes.append(_line(found.summary))
    kept = ""
    if sample and len(sample) <= _SAMPLE_BYTES_MAX and lease.is_clean:
        answer = await _request(lease, declared, "application/json", sample, _ANSWER_BYTES_MAX)
        if isinstance(answer, Reply):
            kept = sample.decode()
        elif declared.sample:
            notes.append(_line(f"the example that came with it is not answered: {answer.detail}"))
    return dataclasses.replace(declared, input_schema=schema, notes=tuple(notes), sample=kept)


async def _request(
    lease: Lease, declared: Manifest, content_type: str, body: bytes, bytes_max: int
) -> Reply | GuestError:
    try:
        return await lease.request(
            Request(
                id="trial",
                content_type=content_type,
                body=body,
                timeout_ms=min(declared.limits.invoke_timeout_ms, _TIMEOUT_MS),
                reply_bytes_max=min(declared.limits.reply_bytes_max, bytes_max),
            )
        )
    except GuestError as error:
        return error


def _read(reply: Reply) -> _Description:
    try:
        return msgspec.json.decode(reply.body, type=_Description)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return _Description()


def _line(text: str) -> str:
    """A guest's text as one short line."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:500]
