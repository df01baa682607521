"""``appliance runtime``: build, import, export, verify, list, remove; dependency sets.

Owns: these commands, and whether a running appliance does the work or this process.
Never: pulls from a container registry; images are built from the distribution's packages, or are
files that IT brings.
Read next: ``sandbox.installing`` (does the work), ``api.supply_jobs`` (has it done).
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from appliance.cli.client import last_of, segment
from appliance.cli.context import Context, Group, pass_context
from appliance.cli.node import require_owner
from appliance.cli.tenant import confirm
from appliance.errors import Forbidden
from appliance.records import PROTOCOLS

if TYPE_CHECKING:
    from appliance.sandbox.installing import Order


@click.group(
    cls=Group,
    examples=(
        "appliance runtime build python3.11",
        "appliance runtime list",
        "appliance runtime verify",
    ),
)
def runtime() -> None:
    """Base images of the languages models are written in."""


@runtime.command("list", examples=("appliance runtime list --json",))
@click.option("--data-dir", metavar="DIR", help="Data folder; default from the settings.")
@pass_context
def list_(context: Context, data_dir: str | None) -> None:
    """List the runtimes installed in the data folder, and those that could be."""
    if data_dir:
        context.flags["paths.data_dir"] = data_dir
    from appliance.sandbox import images
    from appliance.sandbox.installing import row_of
    from appliance.sandbox.runtimes import names

    folder = Path(context.settings().paths.data_dir)
    asked = _asked(context)
    uses = {one["digest"]: one["uses"] for one in asked["runtimes"]} if asked else {}
    rows = [
        {**row_of(r), "uses": uses.get(r.digest) if asked else None}
        for r in images.installed(folder)
    ]
    there = {row["name"] for row in rows}
    shown = [
        {
            **row,
            "size": f"{row['size_bytes'] / 1e6:.0f} MB" if row["size_bytes"] else "-",
            "versions": "-" if row["uses"] is None else len(row["uses"]),
            "by": row["signer"][:19] or "built here",
        }
        for row in rows
    ]
    missing = [
        {"name": name, "by": f"not installed: appliance runtime build {name}"}
        for name in names()
        if name not in there
    ]
    context.output.table(
        {"items": rows, "available": names(), "signer": asked["signer"] if asked else None},
        [*shown, *missing],
        (
            ("RUNTIME", "name"),
            ("KIND", "kind"),
            ("DIGEST", "digest"),
            ("SIZE", "size"),
            ("VERSIONS", "versions"),
            ("BUILT", "built_at"),
            ("SIGNED BY", "by"),
        ),
        empty="none installed: appliance runtime build python3.11",
    )
    if asked and not context.output.is_json:
        context.output.say(f"this appliance signs what it exports as {asked['signer']}")


def _asked(context: Context) -> dict[str, Any] | None:
    """What a running appliance knows of runtimes; ``None`` if none runs, or not for this user."""
    from appliance.errors import ApplianceError

    try:
        with context.client(timeout_s=10.0) as client:
            found: dict[str, Any] = client.get("/admin/v1/runtimes")
            return found
    except ApplianceError:
        return None


@runtime.command(
    "build",
    examples=(
        "appliance runtime build python3.11",
        "appliance runtime build node18 --unless-current   # for scripts",
    ),
)
@click.argument("name", default="python3.11")
@click.option("--unless-current", is_flag=True, help="Keep one that holds every package asked for.")
@click.option("--data-dir", metavar="DIR", help="Data folder; default from the settings.")
@pass_context
def build(context: Context, name: str, data_dir: str | None, unless_current: bool) -> None:
    """Build a base image with mmdebstrap.

    A language that is compiled gets its compiler's image too. "appliance runtime list" names them.
    The running appliance builds it; where none runs, this process does, as the service user.
    """
    from appliance.sandbox.installing import Order

    order = Order(verb="build", data_dir=data_dir or "", name=name, keep_current=unless_current)
    body = {"name": name, "keep_current": unless_current}
    made = _carried_out(context, order, body, f"build {name}", f"appliance runtime build {name}")
    row = made[-1]
    said = f"kept {row['rootfs']}" if row.pop("kept") else f"{row['name']} is in {row['rootfs']}"
    context.output.data(row, said)


def _carried_out(
    context: Context, order: Order, body: dict[str, Any], label: str, command: str
) -> list[dict[str, Any]]:
    """One row per runtime, from the appliance that runs on this folder, or else from here.

    Args:
        context: the command's.
        order: what to do; a data folder in it was named on the command line: it is done here.
        body: the same as the admin contract has it.
        label: what the progress bar says.
        command: how to call it again as another user.
    """
    if order.data_dir:
        context.flags["paths.data_dir"] = order.data_dir
    signal.signal(signal.SIGTERM, _interrupted)  # so that ended work leaves nothing
    folder = context.settings().paths.data_dir
    asked = None if order.data_dir else _asked(context)
    if asked and Path(asked["data_dir"]) == Path(folder).absolute():
        headers = {"Content-Type": "application/json", "Accept": "application/x-ndjson"}
        content = iter([json.dumps(body).encode()])
        path = f"/admin/v1/runtimes/{order.verb}"
        with (
            context.client(timeout_s=3600) as client,
            context.output.progress(label) as advance,
            client.stream("POST", path, content, headers) as reply,
        ):
            return list(last_of(reply.iter_lines(), "work", advance)["runtimes"])
    if order.verb != "verify":
        _require_service_user(folder, command)
    from appliance.sandbox import installing

    with context.output.progress(label) as advance:
        return installing.carry_out(
            installing.placed(order, Path(folder)), lambda step, part: advance(part, step)
        ).rows


@runtime.command(
    "import",
    examples=(
        "appliance runtime import python3.11.bundle --trust sha256:4f1d...",
        "appliance runtime import tf.oci.tar --name acme-tf --protocol oip",
        "appliance runtime import churn.tar --name churn --protocol sagemaker --json",
        "appliance runtime import all.tar --name churn --image churn:7 --protocol http --port 9000",
    ),
)
@click.argument("archive", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", default="", help="An image: what a manifest's runtime will say.")
@click.option(
    "--trust",
    multiple=True,
    metavar="FINGERPRINT",
    help="A bundle: who may have signed it, besides build.trusted_signers. Repeatable.",
)
@click.option(
    "--protocol",
    type=click.Choice(PROTOCOLS),
    help="What the image speaks; without it, each version says so.",
)
@click.option("--port", type=click.IntRange(1, 65535), help="Where it listens.")
@click.option("--model-name", default="", help="What its server calls the model.")
@click.option("--model-path", default="", metavar="DIR", help="Where it looks for model files.")
@click.option("--image", default="", help="Which image, where the archive holds several.")
@click.option("--data-dir", metavar="DIR", help="Data folder; default from the settings.")
@pass_context
def import_(
    context: Context,
    archive: Path,
    name: str,
    trust: tuple[str, ...],
    protocol: str | None,
    port: int | None,
    model_name: str,
    model_path: str,
    image: str,
    data_dir: str | None,
) -> None:
    """Import a bundle or a container image as a runtime.

    A bundle ("appliance runtime export") is installed if somebody trusted signed it and it is what
    was signed. Its runtime keeps its name and digest.

    Else ARCHIVE is an image: an OCI image layout ("podman save --format oci-archive") or what
    "docker save" writes. It is read, checked against its own digests and flattened into a
    read-only root folder; nothing of it is run. A version then says runtime = "NAME".

    The image's content lies on this disk as it is, unsealed, like every runtime: it is not the
    place for secrets or for weights that have to stay sealed. Those come with the version.

    The running appliance imports it and has to be able to read the file; where none runs, this
    process does, as the service user.
    """
    from appliance.records import Container
    from appliance.sandbox import bundles, oci
    from appliance.sandbox.installing import Order

    is_bundle = bundles.is_bundle(archive)
    if not name and not is_bundle:
        raise click.UsageError("An image needs --name, which is what manifests will say.")
    named = f" --name {name}" if name else ""
    settings = {
        "protocol": protocol or "",
        "port": port or 0,
        "model_name": model_name,
        "model_path": oci.require_inside_path(model_path),
    }
    order = Order(
        verb="import",
        data_dir=data_dir or "",
        name=name,
        path=str(archive.absolute()),
        trusted=(*context.settings().build.trusted_signers, *trust),
        image=image,
        settings=Container(**settings),  # type: ignore[arg-type]
    )
    body = {"path": order.path, "trust": trust, "name": name, "image": image, **settings}
    (row,) = _carried_out(
        context,
        order,
        body,
        f"import {archive.name if is_bundle else name}",
        f"appliance runtime import {archive}{named}",
    )
    sets, notes = row.pop("sets"), row.pop("notes")
    said = f"{row['name']} is in {row['rootfs']}"
    if is_bundle:
        said += f" with {len(sets)} dependency sets" if sets else ""
        context.output.data({**row, "sets": sets}, f"{said}, signed by {row['signer']}")
        return
    context.output.data(row, said + "".join(f"\nnote: {note}" for note in notes))


@runtime.command(
    "export",
    examples=(
        "appliance runtime export python3.11 -o /srv/python3.11.bundle",
        "appliance runtime export python3.11 --with-deps 04dddd61 -o /srv/model.bundle",
    ),
)
@click.argument("name")
@click.option(
    "-o",
    "--output",
    "target",
    required=True,
    type=click.Path(path_type=Path),
    help="The new file; the appliance itself writes it.",
)
@click.option("--digest", default="", help="Which of that name; default the newest.")
@click.option(
    "--with-deps",
    "sets",
    multiple=True,
    metavar="KEY",
    help='A dependency set to take along ("appliance runtime sets"). Repeatable.',
)
@pass_context
def export(context: Context, name: str, target: Path, digest: str, sets: tuple[str, ...]) -> None:
    """Write a runtime to a signed file, for an appliance without an index.

    The running appliance signs it with a key of its own, which "appliance runtime list" names; the
    other appliance has to be told to trust it, once.
    """
    body = {"name": name, "digest": digest, "sets": sets, "path": str(target.absolute())}
    headers = {"Content-Type": "application/json", "Accept": "application/x-ndjson"}
    content = iter([json.dumps(body).encode()])
    with (
        context.client(timeout_s=3600) as client,
        context.output.progress(f"export {name}") as advance,
        client.stream("POST", "/admin/v1/runtimes/export", content, headers) as reply,
    ):
        done = last_of(reply.iter_lines(), "export", advance)
    context.output.data(
        done,
        f"{done['name']} is in {done['path']}\nthere: appliance runtime import "
        f"{target.name} --trust {done['signer']}",
    )


@runtime.command(
    "verify",
    examples=("appliance runtime verify", "appliance runtime verify python3.11 --json"),
)
@click.argument("name", default="")
@click.option("--data-dir", metavar="DIR", help="Data folder; default from the settings.")
@pass_context
def verify(context: Context, name: str, data_dir: str | None) -> None:
    """Read installed root folders back and compare each file with what was installed.

    Ends with an error if anything differs. Without NAME all are compared. "unrecorded" is one of
    which no list of files was kept when it was installed: build or import it again to have one.
    """
    from appliance.errors import StoreCorrupt
    from appliance.sandbox.installing import Order

    order = Order(verb="verify", data_dir=data_dir or "", name=name)
    label = f"verify {name}".strip()
    rows = _carried_out(context, order, {"name": name}, label, "appliance runtime verify")
    shown = [{**row, "differences": "; ".join(row["differences"][:3])} for row in rows]
    columns = (("RUNTIME", "name"), ("DIGEST", "digest"), ("STATE", "state"))
    context.output.table({"items": rows}, shown, (*columns, ("DIFFERENCES", "differences")))
    wrong = [row["name"] for row in rows if row["state"] == "different"]
    if wrong:
        raise StoreCorrupt(
            f"Not as installed: {', '.join(wrong)}.",
            hint="import it again from a bundle: versions need the same digest",
        )


@runtime.command("rm", examples=("appliance runtime rm node18 sha256:6fbb778d --force",))
@click.argument("name")
@click.argument("digest")
@click.option("--force", is_flag=True, help="Do not ask.")
@pass_context
def remove(context: Context, name: str, digest: str, force: bool) -> None:
    """Remove an installed runtime. Refused while versions use it.

    DIGEST is that of "appliance runtime list"; its first characters are enough.
    """
    from appliance.errors import NotFound

    with context.client() as client:
        items = client.get("/admin/v1/runtimes")["runtimes"]
        fitting = [r for r in items if r["name"] == name and r["digest"].startswith(digest)]
        if len(fitting) != 1:
            raise NotFound(
                f"There is no one runtime {name} {digest}.", hint="appliance runtime list"
            )
        full = fitting[0]["digest"]
        confirm(name, force=force, what=f"runtime '{name}' {full[:19]}")
        client.send("DELETE", f"/admin/v1/runtimes/{segment(name)}/{full.removeprefix('sha256:')}")
    context.output.data({"name": name, "digest": full}, f"removed {name} {full[:19]}")


@runtime.command("sets", examples=("appliance runtime sets", "appliance runtime sets --json"))
@pass_context
def sets(context: Context) -> None:
    """List dependency sets: the packages of versions, installed once each."""
    with context.client() as client:
        rows = client.get("/admin/v1/runtimes")["sets"]
    shown = [
        {
            **row,
            "count": len(row["packages"]),
            "size": f"{row['size_bytes'] / 1e6:.1f} MB",
            "versions": len(row["uses"]),
        }
        for row in rows
    ]
    context.output.table(
        {"items": rows},
        shown,
        (
            ("KEY", "key"),
            ("RUNTIME", "runtime"),
            ("PACKAGES", "count"),
            ("SIZE", "size"),
            ("VERSIONS", "versions"),
            ("BUILT", "built_at"),
        ),
        empty="none: they are built when a version with requirements is registered",
    )


@runtime.command("gc", examples=("appliance runtime gc", "appliance runtime gc --now --json"))
@click.option("--now", is_flag=True, help="Also those asked for within the hour.")
@pass_context
def gc(context: Context, now: bool) -> None:
    """Remove dependency sets that no version uses any more."""
    with context.client(timeout_s=600) as client:
        done = client.send("POST", "/admin/v1/dependencies/collect", {"now": now})
    number = len(done["removed"])
    said = f"removed {number} set{'' if number == 1 else 's'}, {done['size_bytes'] / 1e6:.1f} MB"
    context.output.data(done, said)


def _require_service_user(folder: str, command: str) -> None:
    """Refuse a data folder of another user, and to have root make one that locks that user out.

    Raises:
        Forbidden: it is one of these; the hint is the same command as the service user.
    """
    require_owner(folder, command)
    if os.geteuid() == 0 and not Path(folder).exists():
        raise Forbidden(
            f"There is no {folder}, and one that root made would lock the service user out.",
            hint=f"runuser -u appliance -- {command}; or name the settings file: --config FILE",
        )


def _interrupted(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt
