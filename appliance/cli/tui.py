"""``appliance tui``: open the console.

Owns: this command; hands the console the address it is to talk to.
Never: imports textual before the command is asked for.
Read next: the ``tui`` package, which imports nothing of this one.
"""

from __future__ import annotations

import sys
from importlib import import_module

import click

from appliance.cli.context import Command, Context, pass_context
from appliance.errors import ConfigInvalid


@click.command(
    cls=Command,
    examples=("appliance tui", "appliance tui --socket /run/appliance/admin.sock"),
)
@click.option("--readonly", is_flag=True, help="Look, but change nothing.")
@pass_context
def tui(context: Context, readonly: bool) -> int:
    """Open the console on this terminal; it survives a restart of the appliance."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigInvalid("The console needs a terminal.", hint="appliance status --json")
    where = context.where()
    console = import_module("tui.app")  # By name: the console is beside the layers, not below.
    code = console.run(
        socket=where.socket,
        url=where.url or None,
        api_key=where.api_key or None,
        ca_file=where.ca_file or None,
        readonly=readonly,
    )
    return int(code or 0)
