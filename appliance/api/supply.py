"""The admin contract for runtimes and dependency sets: what there is, who uses it, carrying it on.

Owns: list, export, remove, collect, and what is being built now.
Never: builds or imports a runtime: see ``supply_jobs``.
Read next: ``appliance.supply``.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from appliance.api.dispatch import Context
from appliance.api.narrate import Tell, narrate
from appliance.api.operation import Operation
from appliance.api.shapes import Body, Document
from appliance.api.supply_jobs import SupplyJobDoc, job_doc
from appliance.errors import (
    BundleRejected,
    DiskFull,
    InputInvalid,
    Malformed,
    NotFound,
    RuntimeInUse,
    RuntimeMissing,
)
from appliance.sandbox import dependencies, images
from appliance.sandbox.runtimes import names
from appliance.supply import Use
from appliance.wire import NDJSON, Reply, Write, json_reply

_Text = Annotated[str, Meta(max_length=128)]


class ExportTo(Body):
    """What to export, and the new file on the appliance it goes to."""

    name: _Text
    path: Annotated[str, Meta(max_length=4096, pattern="^/", description="Absolute path.")]
    digest: _Text = ""
    sets: Annotated[tuple[_Text, ...], Meta(max_length=1000)] = ()


class Collect(Body):
    """How eager to be."""

    now: bool = False


class UseDoc(Document):
    """A version that uses something."""

    tenant: str
    model: str
    version: int


class RuntimeDoc(Document):
    """An installed runtime; ``signer`` is empty for one built here, ``tree`` for an old one."""

    name: str
    kind: str
    digest: str
    built_at: str
    size_bytes: int
    tree: str
    signer: str
    uses: list[UseDoc]


class SetDoc(Document):
    """An installed dependency set; ``packages`` are ``name version``."""

    key: str
    runtime: str
    runtime_digest: str
    built_at: str
    size_bytes: int
    files: int
    packages: list[str]
    uses: list[UseDoc]


class BuildDoc(Document):
    """A registration that is on its way."""

    tenant: str
    model: str
    step: str
    detail: str
    fraction: float
    started_at: str


class SupplyDoc(Document):
    """Runtimes, dependency sets, and what is being built; ``signer`` is this appliance's.

    ``builds`` are registrations, ``jobs`` work on runtimes, ``available`` what can be built.
    """

    signer: str
    data_dir: str
    runtimes: list[RuntimeDoc]
    sets: list[SetDoc]
    builds: list[BuildDoc]
    jobs: list[SupplyJobDoc]
    available: list[str]


class ExportDoc(Document):
    """What was exported."""

    name: str
    digest: str
    path: str
    signer: str
    sets: list[str]


class CollectDoc(Document):
    """What was removed."""

    removed: list[str]
    size_bytes: int


async def document(context: Context) -> SupplyDoc:
    """Everything there is, from the disk and the registry."""
    folder = context.node.data_dir
    supply = context.services.supply
    runtimes = await asyncio.to_thread(images.installed, folder)
    sets = await asyncio.to_thread(dependencies.described, folder)
    by_runtime, by_set = supply.uses()
    return SupplyDoc(
        signer=supply.fingerprint(),
        data_dir=str(folder),
        runtimes=[
            RuntimeDoc(
                name=one.name,
                kind="language" if one.image is None else "image",
                digest=one.digest,
                built_at=one.built_at,
                size_bytes=one.size_bytes,
                tree=one.tree,
                signer=one.signer,
                uses=_uses(by_runtime.get(one.digest, ())),
            )
            for one in runtimes
        ],
        sets=[
            SetDoc(
                key=one.key,
                runtime=one.runtime,
                runtime_digest=one.runtime_digest,
                built_at=one.built_at,
                size_bytes=one.size_bytes,
                files=one.files,
                packages=[f"{package.name} {package.version}" for package in one.lock],
                uses=_uses(by_set.get(one.key, ())),
            )
            for one in sets
        ],
        builds=[
            BuildDoc(
                tenant=one.tenant,
                model=one.model,
                step=one.step,
                detail=one.detail,
                fraction=round(one.fraction, 3),
                started_at=one.started_at,
            )
            for one in context.services.lifecycle.registrations()
        ],
        jobs=[job_doc(one) for one in supply.jobs()],
        available=names(),
    )


def _uses(found: tuple[Use, ...]) -> list[UseDoc]:
    return [UseDoc(tenant=u.tenant, model=u.model, version=u.version) for u in found]


async def runtime_view(context: Context) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The console's view: the runtimes as rows, all else beside them."""
    told: dict[str, Any] = msgspec.to_builtins(await document(context))
    return told.pop("runtimes"), told


async def show(context: Context) -> Reply:
    """Runtimes and dependency sets with the versions that use them, and what is being built."""
    return json_reply(await document(context))


async def export(context: Context) -> Reply:
    """Write a runtime, with dependency sets if asked, to a signed bundle on the appliance.

    With ``Accept: application/x-ndjson`` the answer is 200 and one JSON document per line: steps,
    and at the end ``export`` or ``problem``.
    """
    body = await context.request.json(ExportTo)
    if context.request.is_accepted(NDJSON):

        async def stream(write: Write) -> None:
            async def work(tell: Tell) -> dict[str, Any]:
                return {"export": msgspec.to_builtins(await _export(context, body, tell))}

            await narrate(context.request.id, write, work)

        return Reply(content_type=NDJSON, stream=stream)
    done = await _export(context, body, lambda _step, _detail, _fraction: None)
    return json_reply(done, status=201)


async def _export(context: Context, body: ExportTo, tell: Tell) -> ExportDoc:
    supply = context.services.supply
    contents = await supply.export(
        name=body.name,
        digest=body.digest,
        sets=body.sets,
        target=Path(body.path),
        actor=context.principal.id,
        progress=lambda detail, fraction: tell("export", detail, fraction),
    )
    return ExportDoc(
        name=contents.runtime.name,
        digest=contents.runtime.digest,
        path=body.path,
        signer=supply.fingerprint(),
        sets=[one.key for one in contents.sets],
    )


async def remove(context: Context) -> Reply:
    """Remove a runtime that no version uses; the address has its digest's hex, without sha256."""
    params = context.request.params
    await context.services.supply.remove(
        name=params["name"], digest=f"sha256:{params['digest']}", actor=context.principal.id
    )
    return Reply(status=204)


async def collect(context: Context) -> Reply:
    """Remove every dependency set that no version uses and that nobody asked for lately."""
    body = await context.request.json(Collect)
    gone = await context.services.supply.collect(context.principal.id, is_now=body.now)
    return json_reply(CollectDoc(removed=sorted(gone), size_bytes=sum(gone.values())))


OPERATIONS = (
    Operation(
        method="GET",
        path="/admin/v1/runtimes",
        permission="node:read",
        place="appliance",
        handler=show,
        summary="Runtimes and dependency sets",
        reply=SupplyDoc,
        admin_only=True,
    ),
    Operation(
        method="POST",
        path="/admin/v1/runtimes/export",
        permission="node:control",
        place="appliance",
        handler=export,
        summary="Export a runtime to a signed bundle",
        body=ExportTo,
        reply=ExportDoc,
        status=201,
        problems=(Malformed, InputInvalid, RuntimeMissing, BundleRejected, DiskFull),
        admin_only=True,
    ),
    Operation(
        method="DELETE",
        path="/admin/v1/runtimes/{name}/{digest}",
        permission="node:control",
        place="appliance",
        handler=remove,
        summary="Remove a runtime",
        status=204,
        problems=(NotFound, RuntimeInUse),
        admin_only=True,
    ),
    Operation(
        method="POST",
        path="/admin/v1/dependencies/collect",
        permission="node:control",
        place="appliance",
        handler=collect,
        summary="Remove unused dependency sets",
        body=Collect,
        reply=CollectDoc,
        problems=(Malformed, InputInvalid),
        admin_only=True,
    ),
)
