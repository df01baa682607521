"""``appliance tenant``: list, create, remove.

Owns: these commands.
Never: decides who may; the appliance does.
Read next: ``key``.
"""

from __future__ import annotations

import sys

import click

from appliance.cli.client import segment
from appliance.cli.context import Context, Group, pass_context
from appliance.errors import InputInvalid
from appliance.records import ISOLATIONS


@click.group(
    cls=Group,
    examples=("appliance tenant create demo", "appliance tenant list"),
)
def tenant() -> None:
    """Tenants: whose models, keys and data are kept apart."""


@tenant.command("list", examples=("appliance tenant list --json",))
@pass_context
def list_(context: Context) -> None:
    """List the tenants."""
    with context.client() as client:
        document = client.get("/api/v1/tenants")
    context.output.table(
        document,
        document["items"],
        (
            ("NAME", "name"),
            ("ISOLATION", "isolation"),
            ("CREATED", "created_at"),
            ("BY", "created_by"),
        ),
        empty="no tenants yet: appliance tenant create NAME",
    )


@tenant.command("create", examples=("appliance tenant create demo",))
@click.argument("name")
@pass_context
def create(context: Context, name: str) -> None:
    """Create a tenant."""
    with context.client() as client:
        document = client.send("POST", "/api/v1/tenants", {"name": name})
    context.output.data(document, f"created tenant {document['name']}")
    context.output.say(f"next: appliance key create {name} my-key --role owner")


@tenant.command("isolate", examples=("appliance tenant isolate demo gvisor",))
@click.argument("name")
@click.argument("isolation", type=click.Choice(ISOLATIONS))
@pass_context
def isolate(context: Context, name: str, isolation: str) -> None:
    """Say how strongly a tenant's sandboxes are kept apart; versions may ask for more.

    'gvisor' gives every sandbox a kernel of its own; it needs runsc on the appliance.
    """
    path = f"/api/v1/tenants/{segment(name)}/isolation"
    with context.client() as client:
        document = client.send("PUT", path, {"isolation": isolation})
    context.output.data(document, f"sandboxes of {name} are isolated by '{isolation}'")


@tenant.command("rm", examples=("appliance tenant rm demo", "appliance tenant rm demo --force"))
@click.argument("name")
@click.option("--force", is_flag=True, help="Do not ask for the name again.")
@pass_context
def remove(context: Context, name: str, force: bool) -> None:
    """Remove a tenant with its keys and models; its sealed data can never be read again."""
    confirm(name, force=force, what=f"tenant '{name}', its keys, models and data")
    with context.client() as client:
        client.send("DELETE", f"/api/v1/tenants/{segment(name)}")
    context.output.data({"removed": name}, f"removed tenant {name}")


def confirm(name: str, *, force: bool, what: str) -> None:
    """Ask for the name of what is about to be destroyed; ``--force`` answers for scripts.

    Raises:
        InputInvalid: another name was typed, or there is nobody to ask.
    """
    if force:
        return
    if not sys.stdin.isatty():
        raise InputInvalid(f"This removes {what}.", hint="add --force in a script")
    if click.prompt(f"This removes {what}. Type '{name}' to go on", err=True) != name:
        raise InputInvalid("The name does not match; nothing was removed.")
