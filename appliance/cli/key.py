"""``appliance key``: list, create, revoke.

Owns: these commands, and writing a new key's secret to a file nobody else can read.
Never: prints a secret on stderr or keeps it anywhere else.
Read next: ``auth.api_key`` for what a key is.
"""

from __future__ import annotations

import os
from pathlib import Path

import click

from appliance.cli.client import segment
from appliance.cli.context import Context, Group, pass_context
from appliance.cli.output import Output
from appliance.errors import ConfigInvalid
from appliance.records import ROLES

APPLIANCE_WIDE = ("admin", "operator", "auditor")


@click.group(
    cls=Group,
    examples=(
        "appliance key create demo ci --role owner --out ci.key",
        "appliance key create --role auditor revision",
        "appliance key list demo",
    ),
)
def key() -> None:
    """API keys: id, secret and checksum in one word; the secret is shown once."""


def _path(tenant: str) -> str:
    return f"/api/v1/tenants/{segment(tenant)}/keys" if tenant else "/api/v1/keys"


@key.command("list", examples=("appliance key list demo", "appliance key list"))
@click.argument("tenant", default="")
@pass_context
def list_(context: Context, tenant: str) -> None:
    """List the keys of a tenant, or the appliance-wide ones."""
    with context.client() as client:
        document = client.get(_path(tenant))
    context.output.table(
        document,
        document["items"],
        (
            ("ID", "id"),
            ("NAME", "name"),
            ("ROLE", "role"),
            ("SCOPES", "scopes"),
            ("STATE", "state"),
            ("EXPIRES", "expires_at"),
        ),
        empty="no keys yet: appliance key create TENANT NAME --role owner",
    )


@key.command(
    "create",
    examples=(
        "appliance key create demo ci --role owner --out ci.key",
        "appliance key create demo app --role caller --scope model:invoke:my-model",
        "appliance key create --role operator night-shift",
    ),
)
@click.argument("names", nargs=-1, required=True, metavar="[TENANT] NAME")
@click.option("--role", type=click.Choice(ROLES), default="caller", show_default=True)
@click.option("--expires-in-days", type=click.IntRange(1, 366), default=90, show_default=True)
@click.option("--scope", "scopes", multiple=True, metavar="RIGHT", help="Only this right.")
@click.option("--out", metavar="FILE", help="Write the secret to this new file, mode 0600.")
@pass_context
def create(
    context: Context,
    names: tuple[str, ...],
    role: str,
    expires_in_days: int,
    scopes: tuple[str, ...],
    out: str | None,
) -> None:
    """Create a key; its secret is printed once, or written to a file with --out."""
    if len(names) > 2:
        raise click.UsageError("give TENANT NAME, or NAME alone for an appliance-wide key")
    tenant = names[0] if len(names) == 2 else ""
    if not tenant and role not in APPLIANCE_WIDE:
        raise click.UsageError(f"a key with role '{role}' belongs to a tenant: TENANT NAME")
    body = {
        "name": names[-1],
        "role": role,
        "expires_in_days": expires_in_days,
        "scopes": list(scopes),
    }
    handle = _open_new(out) if out else None
    try:
        with context.client() as client:
            document = client.send("POST", _path(tenant), body)
    except BaseException:
        if out and handle is not None:
            os.close(handle)
            Path(out).unlink(missing_ok=True)
        raise
    _hand_over(context.output, document, out, handle)


def _hand_over(
    output: Output, document: dict[str, object], out: str | None, handle: int | None
) -> None:
    if handle is None:
        output.data(document, str(document["secret"]))
        output.say("This is the only time the secret is shown.")
        return
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(f"{document['secret']}\n")
    shown = {k: v for k, v in document.items() if k != "secret"} | {"secret_file": out}
    output.data(shown, f"created key {document['id']}; its secret is in {out}")


def _open_new(out: str) -> int:
    try:
        return os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ConfigInvalid(f"{out}: cannot be created: {error.strerror}.") from error


@key.command(
    "revoke",
    examples=("appliance key revoke demo KEY_ID", "appliance key revoke demo KEY_ID --keep-issued"),
)
@click.argument("names", nargs=-1, required=True, metavar="[TENANT] KEY_ID")
@click.option("--keep-issued", is_flag=True, help="Leave the keys it issued in force.")
@pass_context
def revoke(context: Context, names: tuple[str, ...], keep_issued: bool) -> None:
    """Revoke a key, and every key that was issued with it, from the next request on."""
    if len(names) > 2:
        raise click.UsageError("give TENANT KEY_ID, or KEY_ID alone for an appliance-wide key")
    tenant = names[0] if len(names) == 2 else ""
    with context.client() as client:
        query = "?issued=keep" if keep_issued else ""
        document = client.send("DELETE", f"{_path(tenant)}/{segment(names[-1])}{query}")
    also = document["also_revoked"]
    more = f", and {len(also)} issued with it: {', '.join(also)}" if also else ""
    context.output.data({"revoked": names[-1], "also_revoked": also}, f"revoked {names[-1]}{more}")
