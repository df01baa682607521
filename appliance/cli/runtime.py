"""``appliance runtime``: build, list.

Owns: these commands.
Never: pulls from a container registry; images are built from the distribution's packages.
Read next: ``sandbox.images``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.context import Context, Group, pass_context
from appliance.cli.node import require_owner

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
        (("RUNTIME", "name"), ("DIGEST", "digest"), ("BUILT", "built_at"), ("FOLDER", "rootfs")),
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


def _row(found: images.Runtime) -> dict[str, str]:
    return {
        "name": found.name,
        "digest": found.digest,
        "built_at": found.built_at,
        "rootfs": str(found.rootfs),
    }
