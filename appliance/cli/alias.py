"""``appliance alias``: list, set, rm.

Owns: these commands.
Never: chooses a version by itself.
Read next: ``model`` for the notation of names.
"""

from __future__ import annotations

import click

from appliance.cli.client import segment
from appliance.cli.context import Context, Group, pass_context
from appliance.cli.model import reference


@click.group(
    cls=Group,
    examples=(
        "appliance alias set demo/x live 3 --reason 'passed the night run'",
        "appliance alias list demo/x",
    ),
)
def alias() -> None:
    """Movable names of versions; calls that name none get 'live'."""


@alias.command("list", examples=("appliance alias list demo/x",))
@click.argument("name", metavar="TENANT/NAME")
@pass_context
def list_(context: Context, name: str) -> None:
    """List the aliases of a model."""
    target = reference(name, is_model=True)
    with context.client() as client:
        document = client.get(f"{target.path}/aliases")
    context.output.table(
        document,
        document["items"],
        (
            ("ALIAS", "name"),
            ("VERSION", "version"),
            ("REVISION", "revision"),
            ("SET", "set_at"),
            ("BY", "set_by"),
            ("REASON", "reason"),
        ),
    )


@alias.command("set", examples=("appliance alias set demo/x live 3 --reason 'better recall'",))
@click.argument("name", metavar="TENANT/NAME")
@click.argument("alias_name", metavar="ALIAS")
@click.argument("version", type=click.IntRange(min=1))
@click.option("--reason", default="", help="Why; kept in the audit log.")
@click.option("--revision", type=int, help="Only if the alias is still at this revision.")
@pass_context
def set_(
    context: Context, name: str, alias_name: str, version: int, reason: str, revision: int | None
) -> None:
    """Point an alias at a version; takes effect with the next call."""
    target = reference(name, is_model=True)
    headers = {} if revision is None else {"If-Match": f'"{revision}"'}
    with context.client() as client:
        document = client.send(
            "PUT",
            f"{target.path}/aliases/{segment(alias_name)}",
            {"version": version, "reason": reason},
            **headers,
        )
    context.output.data(document, f"{name}@{alias_name} is version {version}")


@alias.command("rm", examples=("appliance alias rm demo/x champion",))
@click.argument("name", metavar="TENANT/NAME")
@click.argument("alias_name", metavar="ALIAS")
@pass_context
def remove(context: Context, name: str, alias_name: str) -> None:
    """Remove an alias; the version stays."""
    target = reference(name, is_model=True)
    with context.client() as client:
        client.send("DELETE", f"{target.path}/aliases/{segment(alias_name)}")
    context.output.data({"removed": alias_name}, f"removed alias {alias_name} of {name}")
