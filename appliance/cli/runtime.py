"""``appliance runtime``: build, import, list.

Owns: these commands.
Never: pulls from a container registry; images are built from the distribution's packages, or are
files that IT brings.
Read next: ``sandbox.images``, ``sandbox.oci``.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
import msgspec

from appliance.cli.context import Context, Group, pass_context
from appliance.cli.node import require_owner
from appliance.records import PROTOCOLS

if TYPE_CHECKING:
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
    rows = [_row(r) for r in images.installed(folder)]
    there = {row["name"] for row in rows}
    missing = [
        {"name": name, "rootfs": f"not installed: appliance runtime build {name}"}
        for name in names()
        if name not in there
    ]
    context.output.table(
        {"items": rows, "available": names()},
        [*rows, *missing],
        (
            ("RUNTIME", "name"),
            ("KIND", "kind"),
            ("DIGEST", "digest"),
            ("BUILT", "built_at"),
            ("FOLDER", "rootfs"),
        ),
        empty="none installed: appliance runtime build python3.11",
    )


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
        "runuser -u appliance -- appliance runtime import tf.oci.tar --name acme-tf --protocol oip",
        "appliance runtime import churn.tar --name churn --protocol sagemaker --json",
        "appliance runtime import all.tar --name churn --image churn:7 --protocol http --port 9000",
    ),
)
@click.argument("archive", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", required=True, help="What a manifest's runtime will say.")
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
    protocol: str | None,
    port: int | None,
    model_name: str,
    model_path: str,
    image: str,
    data_dir: str | None,
) -> None:
    """Import a container image as a runtime; run it as the service user.

    ARCHIVE is a file: an OCI image layout ("podman save --format oci-archive") or what
    "docker save" writes. It is read, checked against its own digests and flattened into a
    read-only root folder; nothing of it is run. A version then says runtime = "NAME".

    The image's content lies on this disk as it is, unsealed, like every runtime: it is not the
    place for secrets or for weights that have to stay sealed. Those come with the version.
    """
    if data_dir:
        context.flags["paths.data_dir"] = data_dir
    folder = context.settings().paths.data_dir
    require_owner(folder, f"appliance runtime import {archive} --name {name}")
    from appliance.records import Container
    from appliance.sandbox import oci

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
    signal.signal(signal.SIGTERM, _interrupted)  # so that an ended import leaves nothing
    with context.output.progress(f"import {name}") as advance:
        made = oci.import_image(
            Path(folder), archive, wanted, lambda step, fraction: advance(fraction, step)
        )
    notes = "".join(f"\nnote: {note}" for note in (made.image.notes if made.image else ()))
    context.output.data(_row(made), f"{made.name} is in {made.rootfs}{notes}")


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
    }
