"""``appliance egress``: list, allow, deny, remove, explain.

Owns: these commands.
Never: decides about a connection; the appliance does.
Read next: ``key`` for tenants' other things.
"""

from __future__ import annotations

import sys
from typing import Any

import click

from appliance.cli.client import segment
from appliance.cli.context import Context, Group, pass_context
from appliance.errors import InputInvalid, NotFound

_COLUMNS = (
    ("ID", "id"),
    ("ACTION", "action"),
    ("HOST", "host"),
    ("PORTS", "shown_ports"),
    ("PROTOCOL", "protocol"),
    ("MODEL", "model"),
    ("REASON", "reason"),
)


@click.group(
    cls=Group,
    examples=(
        "appliance egress allow demo db.example.com --port 5432 --reason 'feature store'",
        "appliance egress explain demo db.example.com --port 5432 --protocol tcp",
        "appliance egress list demo",
        "appliance audit list --tenant demo --kind 'egress.*'",
    ),
)
def egress() -> None:
    """Where a tenant's models may connect to; without a rule, nowhere."""


@egress.command(
    "list", examples=("appliance egress list demo", "appliance egress list demo --json")
)
@click.argument("tenant")
@pass_context
def list_(context: Context, tenant: str) -> None:
    """List the rules in the order they are tried; the first that matches decides."""
    with context.client() as client:
        document = client.get(_path(tenant))
    rows = [row | {"shown_ports": _ports(row)} for row in document["items"]]
    empty = f"no rules: models of {tenant} reach nothing"
    columns = (*_COLUMNS, ("NOTE", "note")) if any(row["note"] for row in rows) else _COLUMNS
    context.output.table(document, rows, columns, empty=empty)


def _added(context: Context, action: str, tenant: str, host: str, options: dict[str, Any]) -> None:
    body = {
        "action": action,
        "host": host,
        "ports": list(options["port"]),
        "protocol": options["protocol"],
        "model": options["model"],
        "reason": options["reason"],
        "before": options["before"],
    }
    with context.client() as client:
        document = client.send("POST", _path(tenant), body)
    model = "every model" if document["model"] == "*" else document["model"]
    said = (
        f"{document['id']}: {action} {document['host']} port {_ports(document)}, "
        f"for {model} of {tenant}"
    )
    context.output.data(document, f"{said}\n{document['note']}" if document["note"] else said)


def _rule_options(command: Any) -> Any:
    for option in (
        click.option("--before", default="", metavar="RULE", help="Put it before this rule."),
        click.option("--reason", required=True, help="Why; kept in the audit log."),
        click.option("--model", default="*", show_default=True, help="Only this model."),
        click.option(
            "--protocol",
            type=click.Choice(["any", "connect", "http", "tcp"]),
            default="any",
            show_default=True,
            help="connect: tunnels (https); http: in the clear; tcp: a name inside the sandbox.",
        ),
        click.option(
            "--port", multiple=True, metavar="PORT", help="A port or a range; every port if none."
        ),
    ):
        command = option(command)
    return command


@egress.command(
    "allow",
    examples=(
        "appliance egress allow demo api.example.com --port 443 --reason 'rates'",
        "appliance egress allow demo '*.example.com' --port 443 --reason 'our services'",
        "appliance egress allow demo db.example.com --port 5432 --model fraud --reason 'features'",
        "appliance egress allow demo 10.1.0.0/16 --port 8000-8100 --reason 'lab network'",
    ),
)
@click.argument("tenant")
@click.argument("host")
@_rule_options
@pass_context
def allow(context: Context, /, tenant: str, host: str, **options: Any) -> None:
    """Allow a tenant's models a destination.

    HOST is a name, '*.name', an address, a network or '*'. A plain name with its ports is also
    given to clients that know no proxy (databases): inside the sandbox it leads out by itself.
    Loopback, link-local and similar addresses, and the appliance's own, need a rule that names
    the address itself.
    """
    _added(context, "allow", tenant, host, options)


@egress.command(
    "deny",
    examples=("appliance egress deny demo 10.0.0.0/8 --before eg_1a2b3c --reason 'only outside'",),
)
@click.argument("tenant")
@click.argument("host")
@_rule_options
@pass_context
def deny(context: Context, /, tenant: str, host: str, **options: Any) -> None:
    """Deny a tenant's models a destination that a later rule would allow.

    An address or a network also denies names that lead there.
    """
    _added(context, "deny", tenant, host, options)


@egress.command("rm", examples=("appliance egress rm demo eg_1a2b3c --reason 'project ended'",))
@click.argument("tenant")
@click.argument("rule")
@click.option("--reason", required=True, help="Why; kept in the audit log.")
@click.option("--force", is_flag=True, help="Do not ask.")
@pass_context
def remove(context: Context, tenant: str, rule: str, reason: str, force: bool) -> None:
    """Remove a rule; what no rule allows any more is closed at once."""
    with context.client() as client:
        known = {row["id"]: row for row in client.get(_path(tenant))["items"]}
        if rule not in known:
            raise NotFound("There is no such egress rule.", hint=f"appliance egress list {tenant}")
        _confirm(known[rule], force=force)
        parameters = {"reason": reason}
        client.request("DELETE", f"{_path(tenant)}/{segment(rule)}", params=parameters)
    context.output.data({"removed": rule}, f"removed {rule}")


@egress.command(
    "explain",
    examples=(
        "appliance egress explain demo api.example.com",
        "appliance egress explain demo db.example.com --port 5432 --protocol tcp --model fraud",
    ),
)
@click.argument("tenant")
@click.argument("host")
@click.option("--port", type=click.IntRange(1, 65535), default=443, show_default=True)
@click.option("--model", default="*", help="As this model; else what is allowed to all.")
@click.option(
    "--protocol",
    type=click.Choice(["connect", "http", "tcp"]),
    default="connect",
    show_default=True,
    help="How the model connects.",
)
@pass_context
def explain(context: Context, tenant: str, host: str, port: int, model: str, protocol: str) -> int:
    """Say whether a connection would be let out, and by which rule. Exit code 77 if not."""
    with context.client() as client:
        document = client.get(
            f"{_path(tenant)}/explain", host=host, port=port, model=model, protocol=protocol
        )
    context.output.data(document, document["text"])
    return 0 if document["allowed"] else 77


def _path(tenant: str) -> str:
    return f"/api/v1/tenants/{segment(tenant)}/egress"


def _ports(rule: dict[str, Any]) -> str:
    return ",".join(rule["ports"]) or "every"


def _confirm(rule: dict[str, Any], *, force: bool) -> None:
    if force:
        return
    if not sys.stdin.isatty():
        raise InputInvalid("Nobody can be asked here.", hint="add --force")
    said = f"Remove '{rule['action']} {rule['host']} port {_ports(rule)}'?"
    click.confirm(said, abort=True, err=True)
