"""Pages for people: the problem catalogue, the API description and its reading form.

Owns: ``/problems``, ``/problems/<slug>``, ``/openapi.json``, ``/docs``.
Never: loads anything from anywhere else: no script, no external font, style or image.
Read next: ``errors`` (a class docstring is its page), ``openapi``.
"""

from __future__ import annotations

import base64
import hashlib
import html
import inspect
from typing import Any

from appliance import wire
from appliance.api import openapi
from appliance.api.dispatch import Context
from appliance.api.operation import PUBLIC, Operation
from appliance.api.shapes import Document
from appliance.errors import ApplianceError, problem_classes
from appliance.wire import Reply, json_reply

_STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
h2{margin-top:2.5rem;border-bottom:1px solid #8888}
code,pre{font-family:ui-monospace,monospace;font-size:.9em}
pre{overflow-x:auto;padding:.7rem;background:#8881}
section{margin:1.5rem 0}
.m{display:inline-block;min-width:4.5rem;font-weight:700}
table{border-collapse:collapse}td,th{padding:.2rem .8rem .2rem 0;text-align:left;vertical-align:top}
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_CSP = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


class ProblemDoc(Document):
    """One problem type."""

    type: str
    code: str
    title: str
    status: int
    detail: str


class ProblemList(Document):
    """Every problem type."""

    items: list[ProblemDoc]


def catalogue() -> list[ProblemDoc]:
    """Every problem the appliance can answer with, by slug; the most general class of each."""
    found: dict[str, ProblemDoc] = {}
    for cls in problem_classes():
        if cls is not ApplianceError and cls.slug not in found:
            found[cls.slug] = ProblemDoc(
                type=f"/problems/{cls.slug}",
                code=cls.slug,
                title=cls.title,
                status=cls.status,
                detail=inspect.cleandoc(cls.__doc__ or ""),
            )
    return sorted(found.values(), key=lambda doc: (doc.status, doc.code))


async def list_problems(context: Context) -> Reply:
    """Every problem type; as a page for people with ``Accept: text/html``."""
    items = catalogue()
    if not context.request.is_accepted("text/html"):
        return json_reply(ProblemList(items=items))
    rows = "".join(
        f'<tr><td>{doc.status}<td><a href="{doc.type}"><code>{doc.code}</code></a>'
        f"<td>{html.escape(doc.title)}"
        for doc in items
    )
    return _page("Problems", f"<h1>Problems</h1><table>{rows}</table>")


async def show_problem(context: Context) -> Reply:
    """What one problem means; as a page for people with ``Accept: text/html``."""
    slug = context.request.params["slug"]
    for doc in catalogue():
        if doc.code == slug:
            break
    else:
        raise wire.not_found()
    if not context.request.is_accepted("text/html"):
        return json_reply(doc)
    return _page(
        doc.title,
        f"<h1>{html.escape(doc.title)}</h1><p>Status {doc.status}, code "
        f"<code>{doc.code}</code></p><p>{html.escape(doc.detail)}</p>"
        '<p><a href="/problems">All problems</a></p>',
    )


async def show_openapi(context: Context) -> Reply:
    """The OpenAPI 3.1 description of everything this listener serves."""
    document = openapi.document(context.table, is_admin=context.is_admin, url=context.front.url)
    return json_reply(document)


async def show_docs(context: Context) -> Reply:
    """The API in a form for reading; needs nothing but this one page."""
    parts = ["<h1>Model Appliance API</h1>"]
    parts.append('<p>Machine-readable: <a href="/openapi.json">OpenAPI 3.1</a>. ')
    parts.append('What can go wrong: <a href="/problems">problems</a>.</p>')
    parts.append(
        "<p>Every request but those marked <em>open</em> carries "
        "<code>Authorization: Bearer mak_...</code></p>"
    )
    tag = ""
    for operation in context.table:
        if operation.admin_only:
            continue
        if openapi.tag_of(operation) != tag:
            tag = openapi.tag_of(operation)
            parts.append(f"<h2>{html.escape(tag)}</h2>")
        parts.append(_section(operation))
    return _page("Model Appliance API", "".join(parts))


def _section(operation: Operation) -> str:
    text = inspect.getdoc(operation.handler) or ""
    right = (
        "<em>open</em>"
        if operation.permission == PUBLIC
        else f"<code>{html.escape(operation.permission)}</code>"
    )
    query = "".join(
        f"<br><code>?{html.escape(q.name)}=</code> {html.escape(q.doc)}" for q in operation.query
    )
    return (
        f'<section><span class="m">{operation.method}</span>'
        f"<code>{html.escape(operation.path)}</code><br>"
        f"<strong>{html.escape(operation.summary)}</strong> &middot; right: {right}{query}"
        f"<p>{html.escape(text)}</p></section>"
    )


def _page(title: str, body: str) -> Reply:
    text = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body>{body}</body></html>"
    )
    return Reply(
        body=text.encode(),
        content_type="text/html; charset=utf-8",
        headers=(("content-security-policy", _CSP),),
    )


def _open(path: str, handler: object, summary: str, reply: object) -> Operation:
    return Operation(
        method="GET",
        path=path,
        permission=PUBLIC,
        place="appliance",
        handler=handler,  # type: ignore[arg-type]
        summary=summary,
        reply=reply,
        needs_store=False,
    )


OPERATIONS = (
    _open("/openapi.json", show_openapi, "OpenAPI description", dict[str, Any]),
    _open("/docs", show_docs, "Documentation", ("text/html",)),
    _open("/problems", list_problems, "List problem types", ProblemList),
    _open("/problems/{slug}", show_problem, "Show a problem type", ProblemDoc),
)
