"""The admin contract for work on runtimes: build, import, verify.

Owns: these operations and how a job is shown.
Never: does the work: ``supply`` has it done in a process without keys.
Read next: ``supply``, ``appliance.supply``.

Each answers in one of three ways: when all is done; line by line as it goes (``Accept:
application/x-ndjson``), where leaving ends the work; or at once (``wait`` false), with the work
going on by itself and its job in the list of runtimes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from appliance.api.dispatch import Context
from appliance.api.narrate import Tell, narrate
from appliance.api.operation import Operation
from appliance.api.shapes import Body, Document
from appliance.errors import (
    BundleRejected,
    DiskFull,
    ImageRejected,
    InputInvalid,
    Malformed,
    ManifestInvalid,
    RuntimeBusy,
    RuntimeMissing,
)
from appliance.records import Container
from appliance.sandbox import oci
from appliance.sandbox.images import Progress
from appliance.sandbox.installing import Done, Order
from appliance.supply import Job
from appliance.wire import NDJSON, Reply, Write, json_reply

_Text = Annotated[str, Meta(max_length=128)]


class Build(Body):
    """Which language's base image to build; ``keep_current`` keeps one that has everything."""

    name: _Text
    keep_current: bool = False
    wait: bool = True


class Import(Body):
    """A bundle, or a container image, in a file that the appliance itself can read.

    ``trust`` is for a bundle; ``name`` and what follows it for an image.
    """

    path: Annotated[str, Meta(max_length=4096, pattern="^/", description="Absolute path.")]
    trust: Annotated[tuple[_Text, ...], Meta(max_length=100)] = ()
    name: _Text = ""
    image: Annotated[str, Meta(max_length=512)] = ""
    protocol: Literal["", "oip", "sagemaker", "cog", "mlflow", "vertex", "http", "runner"] = ""
    port: Annotated[int, Meta(ge=0, le=65535)] = 0
    model_name: _Text = ""
    model_path: Annotated[str, Meta(max_length=512)] = ""
    wait: bool = True


class Verify(Body):
    """Which runtime to read back; empty: every one."""

    name: _Text = ""
    wait: bool = True


class SupplyJobDoc(Document):
    """Work on runtimes; ``state`` is running, done or failed, ``detail`` the last that was said."""

    id: str
    verb: str
    name: str
    state: str
    detail: str
    fraction: float
    started_at: str
    ended_at: str


class WorkDoc(Document):
    """The job, and when it was waited for, what it came to: one object per runtime."""

    job: SupplyJobDoc
    runtimes: list[dict[str, Any]]


def job_doc(one: Job) -> SupplyJobDoc:
    """How a job is shown."""
    return SupplyJobDoc(
        id=one.id,
        verb=one.verb,
        name=one.name,
        state=one.state,
        detail=one.detail,
        fraction=round(one.fraction, 3),
        started_at=one.started_at,
        ended_at=one.ended_at,
    )


async def build(context: Context) -> Reply:
    """Build a language's base image from the distribution's packages; its compiler's first."""
    body = await context.request.json(Build)
    order = Order(verb="build", data_dir="", name=body.name, keep_current=body.keep_current)
    return await _answer(context, order, wait=body.wait)


async def import_(context: Context) -> Reply:
    """Install a runtime from a signed bundle or a container image on the appliance."""
    body = await context.request.json(Import)
    trusted = context.node.settings.build.trusted_signers
    order = Order(
        verb="import",
        data_dir="",
        name=body.name,
        path=body.path,
        trusted=(*trusted, *body.trust),
        image=body.image,
        settings=Container(
            protocol=body.protocol,
            port=body.port,
            model_name=body.model_name,
            model_path=oci.require_inside_path(body.model_path),
        ),
    )
    _require_readable(Path(body.path))
    return await _answer(context, order, wait=body.wait)


async def verify(context: Context) -> Reply:
    """Read installed root folders back and compare each file with what was installed.

    What differs is in the answer; it is no problem of the request.
    """
    body = await context.request.json(Verify)
    order = Order(verb="verify", data_dir="", name=body.name)
    return await _answer(context, order, wait=body.wait)


def _require_readable(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise InputInvalid(f"{path} is no file.", hint="name a bundle or an image's archive")
    try:
        with path.open("rb"):
            return
    except OSError as error:
        raise InputInvalid(
            f"The appliance cannot read {path}: {error.strerror}.",
            hint="put the file where the appliance's user may read it",
        ) from error


async def _answer(context: Context, order: Order, *, wait: bool) -> Reply:
    supply, actor = context.services.supply, context.principal.id
    if context.request.is_accepted(NDJSON):

        async def stream(write: Write) -> None:
            async def work(tell: Tell) -> dict[str, Any]:
                done = await _done(context, order, lambda step, part: tell(order.verb, step, part))
                return {"work": msgspec.to_builtins(done)}

            await narrate(context.request.id, write, work)

        return Reply(content_type=NDJSON, stream=stream)
    if not wait:
        job, _task = supply.begin(order, actor, _silent)
        return json_reply(WorkDoc(job=job_doc(job), runtimes=[]), status=202)
    return json_reply(await _done(context, order, _silent), status=202)


async def _done(context: Context, order: Order, progress: Progress) -> WorkDoc:
    supply = context.services.supply
    job, task = supply.begin(order, context.principal.id, progress)
    done: Done = await task
    now = next((one for one in supply.jobs() if one.id == job.id), job)
    return WorkDoc(job=job_doc(now), runtimes=done.rows)


def _silent(_step: str, _fraction: float) -> None:
    """Nobody listens."""


_COMMON = (Malformed, InputInvalid, RuntimeBusy, RuntimeMissing, DiskFull)
_WORK: dict[str, Any] = {
    "method": "POST",
    "permission": "node:control",
    "place": "appliance",
    "reply": WorkDoc,
    "status": 202,
    "admin_only": True,
}
OPERATIONS = (
    Operation(
        path="/admin/v1/runtimes/build",
        handler=build,
        summary="Build a runtime",
        body=Build,
        problems=_COMMON,
        **_WORK,
    ),
    Operation(
        path="/admin/v1/runtimes/import",
        handler=import_,
        summary="Import a bundle or a container image",
        body=Import,
        problems=(*_COMMON, BundleRejected, ImageRejected, ManifestInvalid),
        **_WORK,
    ),
    Operation(
        path="/admin/v1/runtimes/verify",
        handler=verify,
        summary="Read runtimes back and compare them",
        body=Verify,
        problems=_COMMON,
        **_WORK,
    ),
)
