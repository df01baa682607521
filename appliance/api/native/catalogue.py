"""What is registered already: models found by name, text, tag, owner, columns and lineage.

Owns: the operations of the catalogue and their JSON documents.
Never: matches or ranks (``appliance.catalogue``).
Read next: ``appliance.catalogue.search``, ``models``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import islice
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from appliance import clock
from appliance.api.dispatch import Context
from appliance.api.operation import Operation, Query
from appliance.api.shapes import Document, Time
from appliance.catalogue import Hit, Page, Question, search
from appliance.errors import FieldError, InputInvalid
from appliance.policy import Decision
from appliance.records import Tenant
from appliance.store import Snapshot
from appliance.wire import Reply, json_reply

_LIMIT, _LIMIT_MAX, _OFFSET_MAX = 20, 200, 1_000_000
_TEXT_MAX, _LIST_MAX, _COLUMNS_SHOWN = 1000, 64, 64


class ReasonDoc(Document):
    """Why a version was found: a text of its own, and where in it the match is."""

    field: Annotated[
        str,
        Meta(
            description="name, text, tag, takes, gives, owner, runtime, convention, data, code, "
            "run or parents."
        ),
    ]
    text: str
    spans: Annotated[
        list[tuple[int, int]], Meta(description="Half-open, in characters of the text.")
    ]


class FoundDoc(Document):
    """A model that was found, with its best version."""

    tenant: str
    model: str
    version: Annotated[int, Meta(description="Of those that match as well, live or the newest.")]
    state: Literal["ready", "retired"]
    live: Annotated[int | None, Meta(description="The version the alias 'live' points at.")]
    description: str
    runtime: str
    tags: dict[str, str]
    takes: Annotated[
        dict[str, str], Meta(description="The first 64 input columns with their types.")
    ]
    gives: Annotated[
        dict[str, str], Meta(description="The first 64 output columns with their types.")
    ]
    takes_total: int
    gives_total: int
    created_at: Time
    created_by: str
    owner: Annotated[str, Meta(description="What people call that key; empty if one may not know.")]
    reasons: list[ReasonDoc]
    score: float
    matching: Annotated[int, Meta(description="How many of its versions match.")]
    versions: Annotated[list[int], Meta(description="The newest 20 of them.")]
    url: str


class FoundPage(Document):
    """Models that were found, best first."""

    items: list[FoundDoc]
    total: int
    next_offset: Annotated[int | None, Meta(description="For the next page; null on the last.")]


async def search_all(context: Context) -> Reply:
    """Search the models of every tenant one may see: all of them, or one's own.

    Everything asked for must hold. Lists are separated by commas, or JSON lists where a name has a
    comma in it. Without anything asked for every model is found.
    """
    own = context.principal.tenant_id
    tenants = [t for t in context.snapshot.tenants() if own in ("", t.id)]
    return await _search(context, tenants)


async def search_tenant(context: Context) -> Reply:
    """Search one tenant's models; the questions are those of `/api/v1/catalogue`."""
    return await _search(context, [context.tenant])


async def _search(context: Context, tenants: list[Tenant]) -> Reply:
    question = _question(context)
    offset = context.request.int_query("offset", default=0, low=0, high=_OFFSET_MAX)
    limit = context.request.int_query("limit", default=_LIMIT, low=1, high=_LIMIT_MAX)
    snapshot, catalogue = context.snapshot, context.services.lifecycle.catalogue
    names = _key_names(context, snapshot, tenants)

    def find() -> Page:
        shelves = (s for t in tenants for s in catalogue.shelves(snapshot, t.id))
        return search(
            shelves, question, name_of=lambda by: names.get(by, ""), offset=offset, limit=limit
        )

    page = await asyncio.to_thread(find)
    by_id = {tenant.id: tenant.name for tenant in tenants}
    end = offset + len(page.hits)
    return json_reply(
        FoundPage(
            items=[
                _found_doc(hit, by_id[hit.shelf.model.tenant_id], names, context.front.url)
                for hit in page.hits
            ],
            total=page.total,
            next_offset=end if page.hits and end < page.total else None,
        )
    )


def _key_names(context: Context, snapshot: Snapshot, tenants: Iterable[Tenant]) -> dict[str, str]:
    """Names of the keys by id, as far as the caller may list them."""
    may_list = [
        tenant_id
        for tenant_id in ("", *(tenant.id for tenant in tenants))
        if context.policy.decide(context.principal, "key:read", tenant_id=tenant_id)
        is Decision.ALLOW
    ]
    return {key.id: key.name for tenant_id in may_list for key in snapshot.keys(tenant_id)}


def _question(context: Context) -> Question:
    """The question in the address.

    Raises:
        InputInvalid: a part of it is too long, or a list is none.
    """
    query = context.request.query
    for name, value in query.items():
        if len(value) > _TEXT_MAX:
            raise _wrong(name, f"longer than {_TEXT_MAX} characters")
    plain = {
        name: query[name].strip()
        for name in ("text", "owner", "runtime", "convention", "data", "code", "run")
        if name in query
    }
    tags = []
    for pair in _list("tag", query.get("tag", "")):
        key, has_value, value = pair.partition("=")
        tags.append((key.strip(), value.strip() if has_value else None))
    retired = query.get("retired", "false")
    if retired not in ("true", "false"):
        raise _wrong("retired", "true or false")
    return Question(
        **plain,
        tags=tuple(tags),
        takes=_list("takes", query.get("takes", "")),
        gives=_list("gives", query.get("gives", "")),
        retired=retired == "true",
    )


def _list(name: str, text: str) -> tuple[str, ...]:
    """Names separated by commas, or a JSON list of them."""
    if text.lstrip().startswith("["):
        try:
            found = msgspec.json.decode(text, type=list[str])
        except (msgspec.MsgspecError, RecursionError):
            raise _wrong(name, "not a JSON list of texts") from None
    else:
        found = text.split(",")
    names = tuple(stripped for one in found if (stripped := one.strip()))
    if len(names) > _LIST_MAX:
        raise _wrong(name, f"more than {_LIST_MAX} names")
    return names


def _wrong(name: str, reason: str) -> InputInvalid:
    return InputInvalid(
        f"'{name}': {reason}.", fields=(FieldError(pointer=f"?{name}", detail=reason),)
    )


def _found_doc(hit: Hit, tenant: str, names: dict[str, str], url: str) -> FoundDoc:
    version, manifest = hit.card.version, hit.card.manifest
    model = hit.shelf.model.name
    return FoundDoc(
        tenant=tenant,
        model=model,
        version=version.number,
        state="retired" if version.retired_ns else "ready",
        live=hit.shelf.live or None,
        description=manifest.description or hit.shelf.model.description,
        runtime=manifest.runtime,
        tags=dict(manifest.tags),
        takes=dict(islice(hit.card.takes.items(), _COLUMNS_SHOWN)),
        gives=dict(islice(hit.card.gives.items(), _COLUMNS_SHOWN)),
        takes_total=len(hit.card.takes),
        gives_total=len(hit.card.gives),
        created_at=clock.text_from_ns(version.created_ns),
        created_by=version.created_by,
        owner=names.get(version.created_by, ""),
        reasons=[
            ReasonDoc(field=one.field, text=one.text, spans=list(one.spans)) for one in hit.reasons
        ],
        score=round(hit.score, 3),
        matching=hit.matching,
        versions=list(hit.numbers),
        url=f"{url}/api/v1/models/{tenant}/{model}/versions/{version.number}",
    )


def _text(name: str, doc: str) -> Query:
    schema: dict[str, Any] = {"type": "string", "maxLength": _TEXT_MAX}
    return Query(name=name, doc=doc, schema=schema)


_QUERY = (
    _text("text", "Words; each must be in the name, description, tags, columns or lineage."),
    _text("tag", "Tags, as key=value or only key."),
    _text("owner", "Who registered it: a key's id, or its name where one may list keys."),
    _text("runtime", "How the runtime's name begins."),
    _text("convention", "What was recognised, for example mlflow or onnx."),
    _text("takes", "Input columns it must have."),
    _text("gives", "Output columns it must have."),
    _text("data", "A data reference of its lineage; a digest by its first digits."),
    _text("code", "A code reference of its lineage; a commit by its first digits."),
    _text("run", "A training run of its lineage."),
    Query(
        name="retired",
        doc="Whether retired versions are found too.",
        schema={"type": "boolean", "default": False},
    ),
    Query(
        name="limit",
        doc="How many models to return.",
        schema={"type": "integer", "minimum": 1, "maximum": _LIMIT_MAX, "default": _LIMIT},
    ),
    Query(
        name="offset",
        doc="How many of the best to leave out: `next_offset` of the page before.",
        schema={"type": "integer", "minimum": 0, "maximum": _OFFSET_MAX, "default": 0},
    ),
)

OPERATIONS = (
    Operation(
        method="GET",
        path="/api/v1/catalogue",
        permission="model:read",
        place="own",
        handler=search_all,
        summary="Search models",
        reply=FoundPage,
        query=_QUERY,
        problems=(InputInvalid,),
    ),
    Operation(
        method="GET",
        path="/api/v1/catalogue/{tenant}",
        permission="model:read",
        handler=search_tenant,
        summary="Search a tenant's models",
        reply=FoundPage,
        query=_QUERY,
        problems=(InputInvalid,),
    ),
)
