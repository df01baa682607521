"""``appliance secret``: set, list, rm.

Owns: these commands, and reading a value from standard input, a file or a hidden prompt.
Never: takes a value from the command line, prints one, or keeps one.
Read next: ``api.native.secrets``.
"""

from __future__ import annotations

import base64
import sys
from pathlib import Path

import click

from appliance.cli.client import segment
from appliance.cli.context import Context, Group, pass_context
from appliance.cli.model import reference
from appliance.errors import ConfigInvalid, InputInvalid


@click.group(
    cls=Group,
    examples=(
        "appliance secret set demo/x db-password < password.txt",
        "appliance secret list demo/x",
    ),
)
def secret() -> None:
    """Values only a model's own sandboxes see, as files in /model/.secrets."""


@secret.command(
    "set",
    examples=(
        "appliance secret set demo/x db-password                  # asks for it",
        "appliance secret set demo/x db-password < password.txt",
        "appliance secret set demo/x client-cert --from-file client.pem",
    ),
)
@click.argument("name", metavar="TENANT/NAME")
@click.argument("secret_name", metavar="SECRET")
@click.option("--from-file", "file", metavar="FILE", help="Read the value here, all of it.")
@pass_context
def set_(context: Context, name: str, secret_name: str, file: str | None) -> None:
    """Set or replace a secret; versions that name it get it with their next start.

    The value comes from a file, standard input or a hidden prompt, never from the command line. One
    line break at the end of standard input is not part of it.
    """
    target = reference(name, is_model=True)
    body = {"value_base64": base64.b64encode(_value(file)).decode("ascii")}
    with context.client() as client:
        document = client.send("PUT", f"{target.path}/secrets/{segment(secret_name)}", body)
    context.output.data(document, f"set secret {secret_name} of {name}")


def _value(file: str | None) -> bytes:
    if file:
        try:
            value = Path(file).read_bytes()
        except OSError as error:
            raise ConfigInvalid(f"{file}: the secret cannot be read: {error.strerror}.") from error
    elif sys.stdin.isatty():
        value = str(click.prompt("Value", hide_input=True, err=True)).encode()
    else:
        value = sys.stdin.buffer.read().removesuffix(b"\n").removesuffix(b"\r")
    if not value:
        raise InputInvalid("The secret is empty.")
    return value


@secret.command("list", examples=("appliance secret list demo/x",))
@click.argument("name", metavar="TENANT/NAME")
@pass_context
def list_(context: Context, name: str) -> None:
    """List the names of a model's secrets, and those that its versions need but nobody set."""
    target = reference(name, is_model=True)
    with context.client() as client:
        document = client.get(f"{target.path}/secrets")
    rows = [
        *document["items"],
        *({"name": missing, "set_at": "NOT SET"} for missing in document["missing"]),
    ]
    context.output.table(
        document,
        rows,
        (("SECRET", "name"), ("NEEDED BY", "needed_by"), ("SET", "set_at"), ("BY", "set_by")),
        empty=f"no secrets yet: appliance secret set {name} SECRET",
    )


@secret.command("rm", examples=("appliance secret rm demo/x db-password",))
@click.argument("name", metavar="TENANT/NAME")
@click.argument("secret_name", metavar="SECRET")
@pass_context
def remove(context: Context, name: str, secret_name: str) -> None:
    """Remove a secret: its value is unreadable from now on, in the ledger too."""
    target = reference(name, is_model=True)
    with context.client() as client:
        client.send("DELETE", f"{target.path}/secrets/{segment(secret_name)}")
    context.output.data({"removed": secret_name}, f"removed secret {secret_name} of {name}")
