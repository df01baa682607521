"""``appliance model``: push, list, show, search, lineage, call, reserve, rm.

Owns: these commands; ``search``, ``lineage``, ``compare`` and ``replay`` have modules of their own.
Never: loads a model or reads anything of it but its files' bytes.
Read next: ``pack`` (what is uploaded), ``reference`` (how one is named), ``api.native``.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from appliance.cli import catalogue, lineage, pack
from appliance.cli import comparison as comparisons
from appliance.cli import sample as samples
from appliance.cli.client import Client, last_of, segment
from appliance.cli.context import Context, Group, pass_context
from appliance.cli.output import Advance
from appliance.cli.reference import Reference as Reference
from appliance.cli.reference import body_of as body_of
from appliance.cli.reference import reference as reference
from appliance.cli.tenant import confirm
from appliance.errors import Gone, NotFound

_SAMPLE_CHARACTERS_MAX = 4096
_SAMPLES = ("rows.json", "sample.json", "example.json")


@click.group(
    cls=Group,
    examples=(
        "appliance model push ./my-model demo/my-model",
        "appliance model call demo/my-model --data rows.json",
        "appliance model show demo/my-model",
    ),
)
def model() -> None:
    """Models and their versions."""


model.add_command(catalogue.search)
model.add_command(lineage.show)
model.add_command(comparisons.compare)
model.add_command(samples.replay)


@model.command(
    "push",
    examples=(
        "appliance model push build/model demo/breast-cancer",
        "appliance model push iris.onnx demo/iris",
        "appliance model push mlruns/1/models/m-1/artifacts demo/churn --dry-run",
        "appliance --url https://localhost:8443 --api-key-file k model push . demo/x",
    ),
)
@click.argument("path", metavar="FILE_OR_FOLDER", type=click.Path(path_type=Path))
@click.argument("name", metavar="TENANT/NAME")
@click.option("--if-changed", is_flag=True, help="Do nothing if the newest version is the same.")
@click.option("--dry-run", is_flag=True, help="Send nothing; print the manifest it would have.")
@pass_context
def push(context: Context, path: Path, name: str, if_changed: bool, dry_run: bool) -> None:
    """Register a folder or a single model file as the next version of a model.

    A folder may hold appliance.toml, which names the runtime and the entry point. Without one the
    appliance recognises MLflow folders and .onnx, .skops, .joblib, .pkl and .rds files; versions
    come from requirements.txt beside them or from the file's own record. Regular files only;
    __pycache__ and .git stay behind; symbolic links are refused.
    """
    target = reference(name, is_model=True)
    members = pack.scan(path)
    output = context.output
    if dry_run:
        _show_manifest(context, members)
        return
    if not any(member.name == "appliance.toml" for member in members):
        pack.manifest_of(members)  # what is not recognised is said before it is sent
    with context.client(timeout_s=1800) as client:
        version = _unchanged(client, target, members) if if_changed else None
        if version is not None:
            output.say("unchanged: the newest version has the same files")
        else:
            with output.progress("push") as advance:
                version = _upload(client, target, members, advance)
        curl = curl_line(context, version.get("url", ""), _sample(path, version))
    for note in (*version.get("notes", ()), *(one["text"] for one in version.get("alike", ()))):
        output.say(note)
    number = version["version"]
    output.data(
        {**version, "curl": curl}, f"{name} version {number}\n{version.get('url', '')}\n{curl}"
    )


def _show_manifest(context: Context, members: tuple[pack.Member, ...]) -> None:
    """Print the manifest these files have or would get."""
    from appliance.conventions.toml import text_of

    manifest = pack.manifest_of(members)
    text = text_of(manifest)
    context.output.data(
        {
            "runtime": manifest.runtime,
            "entry": manifest.entry,
            "requirements": list(manifest.requirements),
            "convention": manifest.convention,
            "options": manifest.options,
            "notes": list(manifest.notes),
            "files": [member.name for member in members],
            "appliance_toml": text,
        },
        text.rstrip("\n"),
    )


def _unchanged(
    client: Client, target: Reference, members: tuple[pack.Member, ...]
) -> dict[str, Any] | None:
    """The newest ready version, if its files are the same."""
    try:
        items = client.get(f"{target.path}/versions")["items"]
    except (NotFound, Gone):
        return None
    ready = [v for v in items if v["state"] == "ready"]
    if not ready:
        return None
    newest: dict[str, Any] = max(ready, key=lambda v: int(v["version"]))
    stored = {f["path"]: f["digest"] for f in newest["files"]}
    return newest if stored == pack.digests(members) else None


def _upload(
    client: Client, target: Reference, members: tuple[pack.Member, ...], advance: Advance
) -> dict[str, Any]:
    total = pack.packed_bytes(members)
    done = 0

    def sent(count: int) -> None:
        nonlocal done
        done += count
        advance(0.5 * done / total, f"uploading {total / 1e6:.1f} MB")

    headers = {
        "Content-Type": "application/x-tar",
        "Content-Length": str(total),
        "Accept": "application/x-ndjson",
    }
    content = pack.pack(members, sent)
    with client.stream("POST", f"{target.path}/versions", content, headers) as reply:
        return _registered(reply.iter_lines(), advance)


def _registered(lines: Iterator[str], advance: Advance) -> dict[str, Any]:
    """Follow the appliance's steps to the version it made, or raise the problem it met."""
    return last_of(lines, "version", lambda done, text: advance(0.5 + 0.5 * done, text))


def _sample(path: Path, version: dict[str, Any]) -> str:
    """The ``--data`` of a first call: rows beside the model, else a body known to fit."""
    for place in (path, path.parent) if path.is_dir() else (path.parent,):
        for name in _SAMPLES:
            if (place / name).is_file():
                return shlex.quote(f"@{place / name}")
    text = version.get("sample") or ""
    if not text and version.get("input_schema"):
        from appliance.conventions.samples import sample_of

        text = json.dumps(sample_of(version["input_schema"]))
    return shlex.quote(text if 0 < len(text) <= _SAMPLE_CHARACTERS_MAX else "{}")


def curl_line(context: Context, url: str, data: str) -> str:
    """The curl line that calls a version; the key stays in its file."""
    where = context.where()
    key = context.api_key_file or "KEY_FILE"
    call = url if url.endswith("/invoke") else f"{url.rstrip('/')}/invoke"
    return (
        f"curl --cacert {where.ca_file or 'CA_FILE'} "
        f'-H "Authorization: Bearer $(cat {key})" '
        f"-H 'Content-Type: application/json' --data {data} {call}"
    )


@model.command("list", examples=("appliance model list", "appliance model list demo --json"))
@click.argument("tenant", default="")
@pass_context
def list_(context: Context, tenant: str) -> None:
    """List the models this key may see, of one tenant or of all."""
    path = f"/api/v1/models/{segment(tenant)}" if tenant else "/api/v1/models"
    with context.client() as client:
        document = client.get(path)
    context.output.table(
        document,
        document["items"],
        (
            ("TENANT", "tenant"),
            ("NAME", "name"),
            ("VERSIONS", "versions"),
            ("LIVE", "live"),
            ("DESCRIPTION", "description"),
        ),
        empty="no models yet: appliance model push FOLDER TENANT/NAME",
    )


@model.command("show", examples=("appliance model show demo/x", "appliance model show demo/x:2"))
@click.argument("name", metavar="TENANT/NAME[:VERSION]")
@pass_context
def show(context: Context, name: str) -> None:
    """Show a model with its versions and aliases, or one version with its files."""
    target = reference(name)
    with context.client() as client:
        if target.version or target.alias:
            number = target.version or client.get(target.target)["version"]
            version = client.get(f"{target.path}/versions/{number}")
            context.output.data(version, _lines(version))
            return
        document = client.get(target.path)
        found = client.get(f"{target.path}/versions")
        versions, promised = found["items"], found.get("promised", [])
        aliases = client.get(f"{target.path}/aliases")["items"]
    if context.output.is_json:
        whole = {"model": document, "versions": versions, "promised": promised, "aliases": aliases}
        context.output.data(whole)
        return
    context.output.data(document, _lines(document) + "\n")
    names: dict[int, list[str]] = {}
    for alias in aliases:
        names.setdefault(alias["version"], []).append(alias["name"])
    rows = [{**v, "aliases": names.get(v["version"], [])} for v in versions]
    rows = sorted([*rows, *promised], key=lambda row: int(row["version"]))
    context.output.table(
        rows,
        rows,
        (
            ("VERSION", "version"),
            ("STATE", "state"),
            ("ALIASES", "aliases"),
            ("RUNTIME", "runtime"),
            ("BYTES", "size_bytes"),
            ("CREATED", "created_at"),
            ("BY", "created_by"),
        ),
    )
    for one in promised:
        if one["reason"]:
            context.output.say(f"version {one['version']} could not be registered: {one['reason']}")


def _lines(document: dict[str, Any]) -> str:
    lines = []
    for name, value in document.items():
        if name == "files":
            lines.append(f"{name:<14} {len(value)}")
            lines += [
                f"{'':<14} {f['path']}  {f['size_bytes']} bytes  {f['digest']}" for f in value
            ]
        elif name == "lock" and value:
            lines.append(f"{name:<14} {len(value)} packages")
            lines += [f"{'':<14} {p['name']} {p['version']} {p['digest']}" for p in value]
        elif name == "alike" and value:
            lines += [f"{name:<14} {one['text']}" for one in value]
        elif name == "parents" and value:
            lines += [f"{name:<14} {one['model']}@{one['version']}" for one in value]
        elif name == "steps" and value:
            lines.append(f"{name:<14} {len(value)}")
            lines += [
                f"{'':<14} {s['name']}: {s['target']} takes {json.dumps(s['take'])}" for s in value
            ]
        elif value not in (None, "", [], {}):
            text = (
                json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else value
            )
            lines.append(f"{name:<14} {text}")
    return "\n".join(lines)


@model.command(
    "call",
    examples=(
        "appliance model call demo/x --data '[[1, 2, 3]]'",
        "appliance model call demo/x@live --data rows.json",
        "cat photo.png | appliance model call demo/x:3 --data - --content-type image/png",
    ),
)
@click.argument("name", metavar="TENANT/NAME[:VERSION|@ALIAS]")
@click.option("--data", default="-", show_default=True, help="A file, - for stdin, or JSON itself.")
@click.option("--content-type", default="application/json", show_default=True)
@pass_context
def call(context: Context, name: str, data: str, content_type: str) -> None:
    """Call a model once and print its answer."""
    target = reference(name)
    with context.client(timeout_s=900) as client:
        reply = client.request(
            "POST",
            f"{target.target}/invoke",
            content=body_of(data),
            headers={"Content-Type": content_type},
        )
    context.output.raw(reply.content)
    context.output.say(
        f"version {reply.headers.get('Model-Version', '?')}, "
        f"audit entry {reply.headers.get('Audit-Seq', '?')}, "
        f"request id {reply.headers.get('Request-Id', '?')}"
    )


@model.command(
    "reserve",
    examples=(
        "appliance model reserve demo/x:3 --warm 2   # keep two sandboxes loaded",
        "appliance model reserve demo/x:3            # how that goes",
        "appliance model reserve demo/x:3 --warm 0   # on demand again",
    ),
)
@click.argument("name", metavar="TENANT/NAME:VERSION")
@click.option("--version", "number", type=click.IntRange(min=1), help="The same, written apart.")
@click.option("--warm", type=click.IntRange(min=0), help="How many; 0 ends the reservation.")
@pass_context
def reserve(context: Context, name: str, number: int | None, warm: int | None) -> None:
    """Keep sandboxes of a version loaded, or show whether they are.

    Kept sandboxes answer without a start, end neither when idle nor for other models, and are made
    again after a restart or a crash. They take memory all the time.
    """
    target = reference(name)
    said = {str(one) for one in (target.version, number) if one is not None}
    if target.alias or len(said) != 1:
        raise click.UsageError("Name one version: TENANT/NAME:VERSION")
    name, number = f"{target.tenant}/{target.name}", int(said.pop())
    path = f"{target.path}/versions/{number}/reservation"
    with context.client() as client:
        if warm == 0:
            client.send("DELETE", path)
            text = f"{name} version {number}: sandboxes are made on demand"
            context.output.data({"removed": f"{name}:{number}"}, text)
            return
        document = client.get(path) if warm is None else client.send("PUT", path, {"warm": warm})
    text = f"{name} version {number}: {document['ready']} of {document['warm']} loaded"
    if document["problem"]:
        text += f"; {document['problem']}"
    if document["retry_s"]:
        text += f" Next try in {document['retry_s']} s."
    context.output.data(document, text)


@model.command(
    "rm",
    examples=("appliance model rm demo/x:2      # retire one version", "appliance model rm demo/x"),
)
@click.argument("name", metavar="TENANT/NAME[:VERSION]")
@click.option("--force", is_flag=True, help="Do not ask for the name again.")
@pass_context
def remove(context: Context, name: str, force: bool) -> None:
    """Retire one version, or remove a model with all its versions."""
    target = reference(name)
    if target.alias:
        raise click.UsageError("aliases are removed with: appliance alias rm TENANT/NAME ALIAS")
    what = f"version {target.version} of {target.path[15:]}" if target.version else f"model {name}"
    confirm(name, force=force, what=what)
    with context.client() as client:
        client.send("DELETE", target.target)
    context.output.data({"removed": name}, f"removed {name}")
