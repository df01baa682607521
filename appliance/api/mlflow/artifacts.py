"""MLflow's artifact proxy: files go into sealed storage as they arrive, and out as they are read.

Owns: the operations on artifacts. Multipart uploads are refused in the words that have clients
send the file whole, which is streamed anyway.
Never: keeps a file in memory, writes plaintext, or takes a path an archive could not hold.
Read next: ``places`` (what a path names), ``appliance.tracking`` (keeps), ``appliance.artifacts``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from appliance import archive
from appliance.api.dispatch import Context
from appliance.api.mlflow.forms import ARTIFACTS, operation, query
from appliance.api.mlflow.places import Place, place_of
from appliance.errors import ArchiveRejected, InputInvalid, NotFound
from appliance.records import Version
from appliance.wire import UPLOAD_RATE_MIN, Reply, Write, json_reply

_OCTETS = "application/octet-stream"
_ANY = (_OCTETS, "text/plain", "application/json")


async def put_artifact(context: Context) -> Reply:
    """Keep a file of a run or logged model; one of the same path is replaced."""
    place = place_of(context, context.request.params["path"])
    if not place.owner_id:
        raise InputInvalid("The files of a version never change.")
    limit = context.node.settings.http.upload_bytes_max
    chunks = context.request.chunks(limit, rate_min=UPLOAD_RATE_MIN)
    await context.services.tracking.keep(
        context.tenant.id, place.owner_id, place.path, chunks, actor=context.principal.id
    )
    return json_reply({})


async def get_artifact(context: Context) -> Reply:
    """A file of a run, a logged model or a version."""
    place = place_of(context, context.request.params["path"])
    pieces = _content(context, place)
    try:
        first = await anext(pieces)  # so that a damaged file is a problem, not a short answer
    except StopAsyncIteration:
        first = b""

    async def stream(write: Write) -> None:
        if first:
            await write(first)
        async for piece in pieces:
            await write(piece)

    disposition = ("content-disposition", "attachment")
    return Reply(content_type=_OCTETS, stream=stream, headers=(disposition,))


async def delete_artifact(context: Context) -> Reply:
    """Delete a file or folder of a run or logged model."""
    place = place_of(context, context.request.params["path"])
    if not place.owner_id:
        raise InputInvalid("The files of a version never change.")
    count = await context.services.tracking.remove_files(
        context.tenant.id, place.owner_id, place.path, actor=context.principal.id
    )
    if not count:
        raise NotFound("There is no such artifact.")
    return json_reply({})


async def list_artifacts(context: Context) -> Reply:
    """The files and folders right below a folder; none for what is a file itself."""
    path = context.request.query.get("path", "").strip("/")
    if not path:
        raise InputInvalid("'path' is the folder of a run, logged model or version.")
    place = place_of(context, path)
    prefix = f"{archive.clean_path(place.path, is_directory=True)}/" if place.path else ""
    found: dict[str, dict[str, Any]] = {}
    for name, size in _sizes(context, place).items():
        if name.startswith(prefix):
            child, is_folder, _ = name.removeprefix(prefix).partition("/")
            entry = {"path": child, "is_dir": bool(is_folder)}
            found[child] = entry if is_folder else {**entry, "file_size": size}
    return json_reply({"files": [found[name] for name in sorted(found)]})


async def refuse_multipart(context: Context) -> Reply:
    """Refuse a multipart upload; a client that reads this sends the file whole instead."""
    raise InputInvalid(
        "Multipart upload is not supported for the current artifact repository.",
        hint=f"PUT it whole, up to {context.node.settings.http.upload_bytes_max} bytes",
    )


def _sizes(context: Context, place: Place) -> Mapping[str, int]:
    if place.owner_id:
        files = context.services.tracking.files(context.tenant.id, place.owner_id)
        return {path: file.size_bytes for path, file in files.items()}
    return {file.path: file.size_bytes for file in _version(context, place).artifact.files}


def _content(context: Context, place: Place) -> AsyncIterator[bytes]:
    if not place.owner_id:
        return context.services.artifacts.content(_version(context, place), place.path)
    try:
        path = archive.clean_path(place.path)
    except ArchiveRejected:
        raise NotFound("There is no such artifact.") from None
    file = context.services.tracking.files(context.tenant.id, place.owner_id).get(path)
    if file is None:
        raise NotFound("There is no such artifact.")
    return context.services.tracking.content(context.tenant.id, file)


def _version(context: Context, place: Place) -> Version:
    model = context.snapshot.model(context.tenant.id, place.model)
    version = context.snapshot.version(model.id, place.number) if model else None
    if version is None or version.retired_ns:
        raise NotFound("There is no such version.")
    return version


_ONE = "/{path}"
_RAW: dict[str, Any] = {"root": ARTIFACTS, "reply": (_OCTETS,)}

OPERATIONS = (
    operation(
        "GET", "", "artifact:read", list_artifacts, "List artifacts", root=ARTIFACTS,
        query=query("path"),
    ),
    operation("GET", _ONE, "artifact:read", get_artifact, "Get an artifact", **_RAW),
    operation(
        "PUT", _ONE, "run:write", put_artifact, "Keep an artifact", root=ARTIFACTS, body=_ANY
    ),
    operation(
        "DELETE", _ONE, "run:write", delete_artifact, "Delete an artifact", root=ARTIFACTS,
        body=None,
    ),
    operation(
        "POST", "/mpu/create/{path}", "run:write", refuse_multipart, "Refuse a multipart upload",
        root=ARTIFACTS.removesuffix("/artifacts"),
    ),
)  # fmt: skip
