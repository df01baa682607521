"""Registering a version: an archive streams in, progress may stream out.

Owns: the one upload operation and its two forms of answer.
Never: looks into the archive (``archive``) or keeps a piece of it.
Read next: ``lifecycle.register``.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import msgspec

from appliance import wire
from appliance.api import shapes
from appliance.api.dispatch import Context
from appliance.api.narrate import Tell, narrate
from appliance.api.native.models import sight_of, version_doc
from appliance.api.operation import Operation
from appliance.errors import (
    ArchiveRejected,
    BodyTimeout,
    BuildFailed,
    DiskFull,
    LoadFailed,
    ManifestInvalid,
    RuntimeMissing,
    TooLarge,
    UnsupportedMedia,
)
from appliance.lifecycle import Progress
from appliance.records import Version, require_name
from appliance.wire import NDJSON, UPLOAD_RATE_MIN, Reply, Write, json_reply

_log = logging.getLogger(__name__)
_MEDIA_TYPES = ("application/x-tar", "application/gzip", "application/x-gzip", "application/x-gtar")
_TAR_OVERHEAD = 4096
_encode = msgspec.json.Encoder().encode


async def register(context: Context) -> Reply:
    """Register a version from a tar or tar.gz archive with an ``appliance.toml`` at its root.

    The archive is checked, its dependencies are installed and the model is loaded once in a
    sandbox before anything is registered; on any problem nothing is kept. With
    ``Accept: application/x-ndjson`` the answer is 200 and one JSON document per line: steps with
    ``step``, ``detail`` and ``fraction``, and at the end ``version`` or ``problem``.
    """
    request = context.request
    require_name(request.params["model"], "model")
    media_type = wire.require_media(request.content_type, _MEDIA_TYPES)
    limit = _archive_bytes_max(context)
    wire.require_length(request.headers, limit)
    chunks = request.chunks(limit, rate_min=UPLOAD_RATE_MIN)
    if request.is_accepted(NDJSON):

        async def stream(write: Write) -> None:
            async def work(tell: Tell) -> dict[str, object]:
                version = await _register(context, media_type, chunks, tell)
                return {"version": _document(context, version)}

            await narrate(context.request.id, write, work)

        return Reply(content_type=NDJSON, stream=stream)
    version = await _register(context, media_type, chunks, lambda _step, _detail, _fraction: None)
    document = _document(context, version)
    where = f"/api/v1/models/{context.tenant.name}/{document.model}/versions/{document.version}"
    return json_reply(document, status=201, headers=(("location", where),))


async def _register(
    context: Context,
    media_type: str,
    chunks: AsyncIterator[bytes],
    progress: Progress,
) -> Version:
    return await context.services.lifecycle.register(
        principal_id=context.principal.id,
        tenant=context.tenant,
        model_name=context.request.params["model"],
        media_type=media_type,
        chunks=chunks,
        may_see=sight_of(context),
        progress=progress,
    )


def _document(context: Context, version: Version) -> shapes.VersionDoc:
    return version_doc(context, version, context.request.params["model"])


def _archive_bytes_max(context: Context) -> int:
    """The unpacked limit plus what tar adds around each file; ``archive`` counts exactly."""
    http = context.node.settings.http
    return http.upload_bytes_max + http.upload_files_max * _TAR_OVERHEAD


OPERATIONS = (
    Operation(
        method="POST",
        path="/api/v1/models/{tenant}/{model}/versions",
        permission="model:register",
        handler=register,
        summary="Register a version",
        body=("application/x-tar", "application/gzip"),
        reply=shapes.VersionDoc,
        status=201,
        problems=(
            UnsupportedMedia,
            TooLarge,
            BodyTimeout,
            ArchiveRejected,
            ManifestInvalid,
            BuildFailed,
            LoadFailed,
            RuntimeMissing,
            DiskFull,
        ),
    ),
)
