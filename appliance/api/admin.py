"""The admin contract, ``/admin/v1``: the node itself, on the unix socket only.

Owns: status, init, unseal, seal, sandboxes, checks, config, backup and the console's snapshot.
Never: is reachable over TCP; the table refuses to serve it there.
Read next: ``snapshot`` (the console's views), ``node``.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from appliance import clock, wire
from appliance.api import snapshot
from appliance.api.dispatch import Context
from appliance.api.operation import Operation, Query
from appliance.api.shapes import Body, Document
from appliance.errors import (
    AlreadyInitialised,
    FieldError,
    InputInvalid,
    Malformed,
    StoreCorrupt,
    UnsealFailed,
)
from appliance.events import SandboxStopped
from appliance.sandbox.spec import SandboxInfo
from appliance.wire import Reply, json_reply

_HTTPS_TRIES, _HTTPS_PAUSE_S = 20, 0.05
Path_ = Annotated[str, Meta(max_length=4096, pattern="^/", description="Absolute path.")]


class Secret(Body):
    """What opens the appliance: a passphrase, or the path of a key file on the appliance."""

    passphrase: Annotated[str, Meta(max_length=1024)] | None = None
    key_file: Path_ | None = None


class BackupTo(Body):
    """Where the backup goes."""

    path: Path_


class Status(Document):
    """The node's own facts; no tenant's data."""

    version: str
    state: str
    pid: int
    uptime_s: int
    data_dir: str
    url: str
    tls: dict[str, Any]
    limits: dict[str, Any] | None
    podman: dict[str, Any] | None
    runtimes: list[dict[str, Any]]
    ledger: dict[str, Any] | None
    sandboxes: int
    disk: dict[str, int]
    slots: list[dict[str, str]]


class SandboxDoc(Document):
    """One sandbox."""

    id: str
    tenant: str
    model: str
    version: int
    state: str
    pid: int
    created_at: str
    last_used_at: str | None
    calls: int
    rss_bytes: int
    memory_bytes: int
    cpu_ms: int
    gpus: list[str]
    gpu_memory_bytes: int


class SandboxList(Document):
    """Every sandbox there is."""

    items: list[SandboxDoc]


class CheckDoc(Document):
    """One finding about the host; ``fix`` turns it green."""

    name: str
    status: str
    detail: str
    fix: str


class CheckList(Document):
    """Every finding about the host."""

    items: list[CheckDoc]


class SettingDoc(Document):
    """One setting in force and where it comes from."""

    key: str
    value: Any
    default: Any
    origin: str
    doc: str


class SettingList(Document):
    """Every setting."""

    items: list[SettingDoc]


async def status(context: Context) -> Reply:
    """The state of the node: limits in force, ledger, sandboxes, disk, address, certificate."""
    return json_reply(await snapshot.status_document(context))


async def initialise(context: Context) -> Reply:
    """Create the data folder with its root key, and open it. Never overwrites anything."""
    body = await _secret(context)
    await context.node.initialise(**body)
    await _await_https(context)
    return json_reply(await snapshot.status_document(context), status=201)


async def unseal(context: Context) -> Reply:
    """Open the root key, verify the ledger and start serving."""
    body = await _secret(context)
    await context.node.unseal(**body)
    await _await_https(context)
    return json_reply(await snapshot.status_document(context))


async def seal(context: Context) -> Reply:
    """Finish running calls, then drop every key from memory."""
    await context.node.seal("command")
    return json_reply(await snapshot.status_document(context))


async def list_sandboxes(context: Context) -> Reply:
    """Every sandbox with its state, use and owner."""
    items = [msgspec.convert(row, SandboxDoc) for row in snapshot.sandbox_rows(context)]
    return json_reply(SandboxList(items=items))


async def stop_sandbox(context: Context) -> Reply:
    """Destroy a sandbox now; a call in it fails, the next call gets a new one."""
    sandbox_id = context.request.params["sandbox_id"]
    pool = context.services.pool()
    known: tuple[SandboxInfo, ...] = pool.list()
    if not any(box.id == sandbox_id for box in known) or not await pool.stop(sandbox_id):
        raise wire.not_found()
    await context.services.store.ledger.append(
        SandboxStopped(sandbox_id=sandbox_id), actor=context.principal.id
    )
    return Reply(status=204)


async def checks(context: Context) -> Reply:
    """What the host lacks and what to do about it."""
    found = await context.node.checks()
    items = [CheckDoc(name=c.name, status=c.status, detail=c.detail, fix=c.fix) for c in found]
    return json_reply(CheckList(items=items))


async def show_config(context: Context) -> Reply:
    """Every setting in force, its default and where it was set."""
    items = [
        SettingDoc(key=e.key, value=e.value, default=e.default, origin=e.origin, doc=e.doc)
        for e in context.node.explain()
    ]
    return json_reply(SettingList(items=items))


async def backup(context: Context) -> Reply:
    """Write a consistent backup to a new file on the appliance."""
    body = await context.request.json(BackupTo)
    started_ns = clock.monotonic_ns()
    report = await context.node.backup(Path(body.path), context.principal.id)
    document = msgspec.to_builtins(report, enc_hook=str)
    elapsed_ms = (clock.monotonic_ns() - started_ns) // 1_000_000
    return json_reply({**document, "path": body.path, "elapsed_ms": elapsed_ms}, status=201)


async def show_snapshot(context: Context) -> Reply:
    """What one screen of the console shows; with If-None-Match, 304 while nothing changed."""
    document = await snapshot.view_document(context)
    material = dict(document)
    material["node"] = {
        key: value for key, value in document["node"].items() if key not in snapshot.VOLATILE
    }
    tag = wire.etag(msgspec.json.encode(material))
    if wire.is_match(context.request.header("if-none-match"), tag):
        return Reply(status=304, headers=(("etag", tag),))
    return json_reply(document, headers=(("etag", tag),))


async def _await_https(context: Context) -> None:
    """Give the HTTPS listener the moment it needs for its certificate, so the answer names it."""
    for _ in range(_HTTPS_TRIES):
        if context.front.url:
            return
        await asyncio.sleep(_HTTPS_PAUSE_S)


async def _secret(context: Context) -> dict[str, Any]:
    body = await context.request.json(Secret)
    if not body.passphrase and not body.key_file:
        raise InputInvalid(
            "Give a passphrase or the path of a key file.",
            fields=(FieldError(pointer="", detail="neither 'passphrase' nor 'key_file'"),),
        )
    return {
        "passphrase": body.passphrase or None,
        "key_file": Path(body.key_file) if body.key_file else None,
    }


_TEXT = {"type": "string"}

OPERATIONS = (
    Operation(
        method="GET",
        path="/admin/v1/status",
        permission="node:read",
        place="appliance",
        handler=status,
        summary="Status of the node",
        reply=Status,
        needs_store=False,
        admin_only=True,
    ),
    Operation(
        method="POST",
        path="/admin/v1/init",
        permission="node:control",
        place="appliance",
        handler=initialise,
        summary="Initialise the data folder",
        body=Secret,
        reply=Status,
        status=201,
        problems=(Malformed, InputInvalid, AlreadyInitialised),
        needs_store=False,
        admin_only=True,
    ),
    Operation(
        method="POST",
        path="/admin/v1/unseal",
        permission="node:control",
        place="appliance",
        handler=unseal,
        summary="Unseal",
        body=Secret,
        reply=Status,
        problems=(Malformed, InputInvalid, UnsealFailed, StoreCorrupt),
        needs_store=False,
        admin_only=True,
    ),
    Operation(
        method="POST",
        path="/admin/v1/seal",
        permission="node:control",
        place="appliance",
        handler=seal,
        summary="Seal",
        reply=Status,
        admin_only=True,
    ),
    Operation(
        method="GET",
        path="/admin/v1/sandboxes",
        permission="sandbox:read",
        place="appliance",
        handler=list_sandboxes,
        summary="List sandboxes",
        reply=SandboxList,
        admin_only=True,
    ),
    Operation(
        method="DELETE",
        path="/admin/v1/sandboxes/{sandbox_id}",
        permission="sandbox:stop",
        place="appliance",
        handler=stop_sandbox,
        summary="Stop a sandbox",
        status=204,
        admin_only=True,
    ),
    Operation(
        method="GET",
        path="/admin/v1/checks",
        permission="node:read",
        place="appliance",
        handler=checks,
        summary="Check the host",
        reply=CheckList,
        needs_store=False,
        admin_only=True,
    ),
    Operation(
        method="GET",
        path="/admin/v1/config",
        permission="config:read",
        place="appliance",
        handler=show_config,
        summary="Settings in force",
        reply=SettingList,
        needs_store=False,
        admin_only=True,
    ),
    Operation(
        method="POST",
        path="/admin/v1/backup",
        permission="backup:create",
        place="appliance",
        handler=backup,
        summary="Write a backup",
        body=BackupTo,
        reply=dict[str, Any],
        status=201,
        problems=(Malformed, InputInvalid),
        admin_only=True,
    ),
    Operation(
        method="GET",
        path="/admin/v1/snapshot",
        permission="node:read",
        place="appliance",
        handler=show_snapshot,
        summary="A view of the console",
        reply=dict[str, Any],
        query=(
            Query(
                name="view",
                doc="Which screen.",
                schema={"type": "string", "enum": sorted(snapshot.VIEWS)},
            ),
            Query(name="tenant", doc="Only this tenant.", schema=_TEXT),
            Query(name="model", doc="Only this model of the tenant.", schema=_TEXT),
            Query(name="webhook", doc="Deliveries: of this webhook of the tenant.", schema=_TEXT),
            Query(name="kind", doc="Audit: only this kind.", schema=_TEXT),
            Query(name="actor", doc="Audit: only this actor.", schema=_TEXT),
            Query(name="after", doc="Audit: entries after this one.", schema=_TEXT),
            Query(name="before", doc="Audit: entries before this one.", schema=_TEXT),
            Query(name="limit", doc="Most rows.", schema=_TEXT),
        ),
        problems=(Malformed, InputInvalid),
        needs_store=False,
        admin_only=True,
    ),
)
