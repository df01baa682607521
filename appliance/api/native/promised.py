"""Numbers that were given to what is no version: it waits to be registered, or could not be.

Owns: what they look like beside the versions of a model, and why one cannot be had.
Never: registers anything, or gives a number out.
Read next: ``models`` (who lists them), ``appliance.intake`` (who gives and keeps promises).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from appliance import clock
from appliance.api.shapes import Document, VersionDoc
from appliance.errors import NotFound
from appliance.tracked import Promise


class PromisedDoc(Document):
    """A number that was given to a version which is not registered: on its way, or failed."""

    tenant: str
    model: str
    version: int
    state: Literal["pending", "failed"]
    reason: Annotated[str, Meta(description="Why it could not be registered.")]
    source: Annotated[str, Meta(description="Where its files are, as whoever asked said it.")]
    run: Annotated[str, Meta(description="The training run it comes from; empty for none.")]
    created_at: str
    created_by: str
    changed_at: str


class VersionList(Document):
    """Versions of a model, oldest first, and those that are no versions yet or could not be."""

    items: list[VersionDoc]
    promised: list[PromisedDoc]


def doc_from_promise(promise: Promise, tenant: str, model: str) -> PromisedDoc:
    """A version that is not registered; ``promise`` is pending or failed."""
    return PromisedDoc(
        tenant=tenant,
        model=model,
        version=promise.number,
        state="failed" if promise.state == "failed" else "pending",
        reason=promise.reason,
        source=promise.source,
        run=promise.run_id,
        created_at=clock.text_from_ns(promise.created_ns),
        created_by=promise.created_by,
        changed_at=clock.text_from_ns(promise.changed_ns),
    )


def row_from_promise(promise: Promise, tenant: str, model: str) -> dict[str, Any]:
    """The same among the console's rows of versions."""
    return {
        "tenant": tenant,
        "model": model,
        "version": promise.number,
        "state": promise.state,
        "reason": promise.reason,
        "runtime": "",
        "entry": "",
        "digest": "",
        "size_bytes": 0,
        "aliases": [],
        "warm": 0,
        "warm_ready": 0,
        "created_at": clock.text_from_ns(promise.created_ns),
        "created_by": promise.created_by,
    }


def why_not(promise: Promise) -> NotFound:
    """Why a number that was given out is no version."""
    if promise.state == "failed":
        return NotFound(f"Version {promise.number} could not be registered: {promise.reason}")
    return NotFound(f"Version {promise.number} is not registered yet: that waits, or runs.")
