"""``appliance runtime``: build, import, export, verify, list, remove; dependency sets.

Owns: these commands.
Never: pulls from a container registry; images are built from the distribution's packages, or are
files that IT brings.
Read next: ``sandbox.images``, ``sandbox.oci``, ``sandbox.bundles``.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
import msgspec

from appliance.cli.client import last_of, segment
from appliance.cli.context import Context, Group, pass_context
from appliance.cli.node import require_owner
from appliance.cli.tenant import confirm
from appliance.records import PROTOCOLS

if TYPE_CHECKING:
    from appliance.cli.output import Advance
    from appliance.sandbox import images


@click.group(
    cls=Group,
    examples=("appliance runtime build python3.11", "appliance runtime list"),
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
    from appliance.sandbox.runtimes import names

    folder = Path(context.settings().paths.data_dir)
    asked = _asked(context)
    uses = {one["digest"]: one["uses"] for one in asked["runtimes"]} if asked else {}
    rows = [
        {**_row(r), "uses": uses.get(r.digest) if asked else None} for r in images.installed(folder)
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
        "runuser -u appliance -- appliance runtime build python3.11",
        "appliance runtime build node18 --unless-current   # for scripts",
    ),
)
@click.argument("name", default="python3.11")
@click.option("--unless-current", is_flag=True, help="Keep one that holds every package asked for.")
@click.option("--data-dir", metavar="DIR", help="Data folder; default from the settings.")
@pass_context
def build(context: Context, name: str, data_dir: str | None, unless_current: bool) -> None:
    """Build a base image with mmdebstrap; run it as the service user.

    A language that is compiled gets its compiler's image too. "appliance runtime list" names them.
    """
    if data_dir:
        context.flags["paths.data_dir"] = data_dir
    folder = context.settings().paths.data_dir
    require_owner(folder, f"appliance runtime build {name}")
    from appliance.sandbox import images
    from appliance.sandbox.runtimes import with_compiler

    for one in with_compiler(name):
        kept = images.current(Path(folder), one) if unless_current else None
        made = kept or _built(context, Path(folder), one)
    said = f"kept {made.rootfs}" if kept else f"{made.name} is in {made.rootfs}"
    context.output.data(_row(made), said)


def _built(context: Context, folder: Path, name: str) -> images.Runtime:
    from appliance.sandbox import images

    with context.output.progress(f"build {name}") as advance:
        return images.build(folder, name, lambda step, fraction: advance(fraction, step))


@runtime.command(
    "import",
    examples=(
        "runuser -u appliance -- appliance runtime import python3.11.bundle --trust sha256:4f1d...",
        "runuser -u appliance -- appliance runtime import tf.oci.tar --name acme-tf --protocol oip",
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
    """Import a bundle or a container image as a runtime; run it as the service user.

    A bundle ("appliance runtime export") is installed if somebody trusted signed it and it is what
    was signed. Its runtime keeps its name and digest.

    Else ARCHIVE is an image: an OCI image layout ("podman save --format oci-archive") or what
    "docker save" writes. It is read, checked against its own digests and flattened into a
    read-only root folder; nothing of it is run. A version then says runtime = "NAME".

    The image's content lies on this disk as it is, unsealed, like every runtime: it is not the
    place for secrets or for weights that have to stay sealed. Those come with the version.
    """
    if data_dir:
        context.flags["paths.data_dir"] = data_dir
    folder = context.settings().paths.data_dir
    named = f" --name {name}" if name else ""
    require_owner(folder, f"appliance runtime import {archive}{named}")
    signal.signal(signal.SIGTERM, _interrupted)  # so that an ended import leaves nothing
    from appliance.records import Container
    from appliance.sandbox import bundles, oci

    if bundles.is_bundle(archive):
        _import_bundle(context, Path(folder), archive, trust)
        return
    if not name:
        raise click.UsageError("An image needs --name, which is what manifests will say.")

    wanted = oci.Wanted(
        name=name,
        image=image,
        settings=Container(
            protocol=protocol or "",
            port=port or 0,
            model_name=model_name,
            model_path=oci.require_inside_path(model_path),
        ),
    )
    with context.output.progress(f"import {name}") as advance:
        made = oci.import_image(
            Path(folder), archive, wanted, lambda step, fraction: advance(fraction, step)
        )
    notes = "".join(f"\nnote: {note}" for note in (made.image.notes if made.image else ()))
    context.output.data(_row(made), f"{made.name} is in {made.rootfs}{notes}")


def _import_bundle(context: Context, folder: Path, file: Path, trust: tuple[str, ...]) -> None:
    from appliance.sandbox import bundles

    trusted = frozenset((*context.settings().build.trusted_signers, *trust))
    with context.output.progress(f"import {file.name}") as advance:
        made = bundles.import_bundle(
            folder, file, trusted, lambda step, fraction: advance(fraction, step)
        )
    sets = f" with {len(made.sets)} dependency sets" if made.sets else ""
    context.output.data(
        {**_row(made.runtime), "sets": list(made.sets)},
        f"{made.runtime.name} is in {made.runtime.rootfs}{sets}, signed by {made.signer}",
    )


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

    Ends with an error if anything differs. Without NAME all are compared.
    """
    if data_dir:
        context.flags["paths.data_dir"] = data_dir
    from appliance.errors import RuntimeMissing, StoreCorrupt
    from appliance.sandbox import images

    folder = Path(context.settings().paths.data_dir)
    found = [one for one in images.installed(folder) if name in ("", one.name)]
    if not found:
        raise RuntimeMissing(f"No runtime '{name}' is installed." if name else "None is installed.")
    rows = []
    for one in found:
        with context.output.progress(f"verify {one.name}") as advance:
            told = images.verify(one, _advancing(advance))
        rows.append({**_row(one), "state": told.state, "differences": list(told.differences)})
    shown = [{**row, "differences": "; ".join(row["differences"][:3])} for row in rows]
    columns = (("RUNTIME", "name"), ("DIGEST", "digest"), ("STATE", "state"))
    context.output.table({"items": rows}, shown, (*columns, ("DIFFERENCES", "differences")))
    wrong = [row["name"] for row in rows if row["state"] == "different"]
    if wrong:
        raise StoreCorrupt(
            f"Not as installed: {', '.join(wrong)}.",
            hint="import it again from a bundle: versions need the same digest",
        )


def _advancing(advance: Advance) -> Callable[[str, float], None]:
    return lambda step, fraction: advance(fraction, step)


@runtime.command("remove", examples=("appliance runtime remove node18 sha256:6fbb778d --force",))
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
    said = f"removed {len(done['removed'])} sets, {done['size_bytes'] / 1e6:.1f} MB"
    context.output.data(done, said)


def _interrupted(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _row(found: images.Runtime) -> dict[str, Any]:
    image = found.image
    told = image.settings.protocol if image else ""
    more = {} if image is None else {"image": msgspec.to_builtins(image)}
    return {
        **more,
        "name": found.name,
        "kind": "language" if image is None else f"image {told}".strip(),
        "digest": found.digest,
        "built_at": found.built_at,
        "rootfs": str(found.rootfs),
        "size_bytes": found.size_bytes,
        "tree": found.tree,
        "signer": found.signer,
    }
