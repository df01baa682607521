"""The node's own life: ``init``, ``serve``, ``status``, ``unseal``, ``seal``.

Owns: these five commands.
Never: opens the store; ``init`` and ``serve`` go through ``app``, the rest over the admin socket.
Read next: ``app`` and ``node`` of the appliance itself.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from appliance import config
from appliance.cli.context import Command, Context, pass_context
from appliance.cli.secret_input import read_passphrase
from appliance.errors import EX_TEMPFAIL, Forbidden, NotRunning


def require_owner(data_dir: str, command: str) -> None:
    """Refuse to touch a data folder that belongs to another user.

    Raises:
        Forbidden: it does; the hint is the same command as that user.
    """
    try:
        owner = Path(data_dir).stat().st_uid
    except OSError:
        return
    if owner == os.geteuid():
        return
    import pwd

    try:
        name = pwd.getpwuid(owner).pw_name
    except KeyError:
        name = str(owner)
    raise Forbidden(
        f"{data_dir} belongs to user '{name}'; files made by another user would lock it out.",
        hint=f"runuser -u {name} -- {command}",
    )


@click.command(
    cls=Command,
    examples=(
        "appliance init                                  # asks for a passphrase",
        "appliance init --key-file /etc/appliance/unseal.key   # starts without a person",
        "appliance init --passphrase-file - < secret.txt",
    ),
)
@click.option("--passphrase-file", metavar="FILE", help="Read the passphrase here; - is stdin.")
@click.option("--key-file", metavar="FILE", help="Make (or use) this unseal key file.")
@click.option("--data-dir", metavar="DIR", help="Data folder; default from the settings.")
@pass_context
def init(
    context: Context, passphrase_file: str | None, key_file: str | None, data_dir: str | None
) -> None:
    """Make a new data folder, its root key and the slots that open it.

    Nothing existing is ever overwritten. Without --key-file a passphrase is asked for; with it the
    passphrase is optional.
    """
    if data_dir:
        context.flags["paths.data_dir"] = data_dir
    settings = context.settings()
    require_owner(settings.paths.data_dir, "appliance init ...")
    passphrase = None
    if passphrase_file or not key_file:
        passphrase = read_passphrase(passphrase_file, is_new=True)
    from appliance import app

    app.initialise(
        settings, passphrase=passphrase, key_file=Path(key_file).absolute() if key_file else None
    )
    slots = ["passphrase"] * bool(passphrase) + ["key-file"] * bool(key_file)
    context.output.data(
        {"data_dir": settings.paths.data_dir, "slots": slots},
        f"initialised {settings.paths.data_dir} (opens by {' or '.join(slots)})",
    )
    context.output.say("next: appliance serve")


@click.command(
    cls=Command,
    examples=(
        "appliance serve",
        "appliance --config /etc/appliance/appliance.toml serve",
        "appliance serve --port 9443 --data-dir /srv/appliance",
    ),
)
@click.option("--host", help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), help="TCP port; 0 takes a free one.")
@click.option("--data-dir", metavar="DIR", help="Data folder.")
@click.option("--run-dir", metavar="DIR", help="Folder of sockets and container state.")
@pass_context
def serve(
    context: Context, host: str | None, port: int | None, data_dir: str | None, run_dir: str | None
) -> int:
    """Run the appliance in the foreground until SIGTERM or Ctrl-C, then drain and stop."""
    given = {
        "http.host": host,
        "http.port": port,
        "paths.data_dir": data_dir,
        "paths.run_dir": run_dir,
    }
    context.flags.update({k: v for k, v in given.items() if v is not None})
    settings, explained = context.explained()
    require_owner(settings.paths.data_dir, "appliance serve")
    from appliance import app

    return app.run(settings, explained)


@click.command(cls=Command, examples=("appliance status", "appliance status --json | jq .state"))
@pass_context
def status(context: Context) -> int:
    """Show the state of the running appliance: limits in force, ledger, sandboxes, disk.

    Ends with 0 when it is ready, 75 when it is sealed, starting or draining, 69 when not running.
    """
    with context.client() as client:
        document = client.get("/admin/v1/status")
    context.output.data(document, status_text(document))
    return 0 if document.get("state") == "ready" else EX_TEMPFAIL


def status_text(document: dict[str, Any]) -> str:
    """The status as aligned lines; unknown members are left out, missing ones show a dash."""
    limits = document.get("limits") or {}
    ledger = document.get("ledger") or {}
    disk = document.get("disk") or {}
    tls = document.get("tls") or {}
    podman = document.get("podman") or {}
    runtimes = document.get("runtimes") or []
    rows = [
        ("state", document.get("state", "-")),
        ("version", document.get("version", "-")),
        ("address", document.get("url") or "-"),
        ("data folder", document.get("data_dir", "-")),
        ("process", f"{document.get('pid', '-')}, up {document.get('uptime_s', 0):.0f} s"),
        ("certificate", f"{tls.get('fingerprint', '-')} until {tls.get('not_after', '-')}"),
        ("limits", f"{limits.get('level', '-')} ({limits.get('mechanism', '-')})"),
        ("", str(limits.get("detail", ""))),
        ("sandboxes", document.get("sandbox_problem", "")),
        ("podman", f"{podman.get('version', '-')} with {podman.get('oci_runtime', '-')}"),
        ("runtimes", ", ".join(_runtime_name(r) for r in runtimes) or "none"),
        ("ledger", f"{ledger.get('state', '-')}, {ledger.get('seq', '-')} entries"),
        ("running", f"{document.get('sandboxes', 0)} sandboxes"),
        ("disk free", f"{disk.get('free_bytes', 0) / 1e9:.1f} GB"),
    ]
    return "\n".join(f"{name:<12} {value}" for name, value in rows if value)


def _runtime_name(runtime: Any) -> str:
    return f"{runtime['name']} ({runtime['digest'][7:19]})"


@click.command(
    cls=Command,
    examples=(
        "appliance unseal                       # asks for the passphrase",
        "appliance unseal --passphrase-file - < secret.txt",
        "appliance unseal --key-file /media/usb/unseal.key",
    ),
)
@click.option("--passphrase-file", metavar="FILE", help="Read the passphrase here; - is stdin.")
@click.option("--key-file", metavar="FILE", help="Open with this key file (read by the appliance).")
@pass_context
def unseal(context: Context, passphrase_file: str | None, key_file: str | None) -> None:
    """Open a sealed appliance with a passphrase or a key file."""
    with context.client() as client:
        client.get("/admin/v1/status")  # Ask nobody for a passphrase nothing would take.
        if key_file:
            body = {"key_file": str(Path(key_file).absolute())}
        else:
            body = {"passphrase": read_passphrase(passphrase_file, is_new=False)}
        document = client.send("POST", "/admin/v1/unseal", body)
    context.output.data(document or {"state": "ready"}, "unsealed")


@click.command(cls=Command, examples=("appliance seal",))
@pass_context
def seal(context: Context) -> None:
    """Finish the calls in flight, drop all keys and answer only health and unseal."""
    with context.client(timeout_s=config.Http().drain_timeout_s + 30) as client:
        document = client.send("POST", "/admin/v1/seal")
    context.output.data(document or {"state": "sealed"}, "sealed")


def is_running(context: Context) -> bool:
    """Whether an appliance answers where this command line looks for one."""
    try:
        with context.client(timeout_s=5) as client:
            client.text("/livez")
    except NotRunning:
        return False
    return True
