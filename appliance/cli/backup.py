"""``appliance backup``: make, verify, restore.

Owns: these commands.
Never: reads the data folder of a running appliance; the running one writes its backup itself.
Read next: ``store.backup``.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from appliance.cli.context import Context, Group, pass_context


@click.group(
    cls=Group,
    examples=(
        "appliance backup make /srv/backup/monday",
        "appliance backup verify /srv/backup/monday",
        "appliance backup restore /srv/backup/monday --data-dir /srv/appliance",
    ),
)
def backup() -> None:
    """Backups: sealed like the data itself, checked before they are trusted."""


@backup.command("make", examples=("appliance backup make /srv/backup/monday",))
@click.argument("path", type=click.Path(path_type=Path))
@pass_context
def make(context: Context, path: Path) -> None:
    """Let the running appliance write a backup to PATH (as its own user)."""
    with context.client(timeout_s=3600) as client:
        document = client.send("POST", "/admin/v1/backup", {"path": str(path.absolute())})
    context.output.data(document or {"path": str(path)}, f"backup written to {path}")
    context.output.say(f"next: appliance backup verify {path}")


@backup.command("verify", examples=("appliance backup verify /srv/backup/monday",))
@click.argument("path", type=click.Path(path_type=Path))
@pass_context
def verify(context: Context, path: Path) -> None:
    """Check every byte of a backup; ends with 74 and names the first bad object."""
    from appliance.store import backup as store_backup

    with context.output.progress("verify") as advance:
        advance(0.0, f"reading {path}")
        report = store_backup.verify(path)
        advance(1.0, "")
    context.output.data(_document(report), f"ok: {path}")


@backup.command(
    "restore",
    examples=("appliance backup restore /srv/backup/monday --data-dir /srv/appliance",),
)
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--data-dir", metavar="DIR", help="New data folder; default from the settings.")
@pass_context
def restore(context: Context, path: Path, data_dir: str | None) -> None:
    """Restore a backup into an empty data folder; an existing one is never overwritten."""
    if data_dir:
        context.flags["paths.data_dir"] = data_dir
    folder = Path(context.settings().paths.data_dir)
    from appliance.store import backup as store_backup

    report = store_backup.restore(path, folder)
    context.output.data(_document(report), f"restored {path} to {folder}")
    context.output.say("next: appliance serve")


def _document(report: Any) -> Any:
    if dataclasses.is_dataclass(report) and not isinstance(report, type):
        return dataclasses.asdict(report)
    return {"ok": True}
