"""``appliance doctor``: show the checks of this machine and say what to fix.

Owns: this command; asks the running appliance, or makes the checks itself when there is none.
Never: decides what is checked or changes anything.
Read next: ``appliance.doctor``, the list of checks.
"""

from __future__ import annotations

import socket
from dataclasses import asdict
from typing import Any

import click

from appliance import config
from appliance.cli.context import Command, Context, pass_context
from appliance.errors import EX_CONFIG, ApplianceError


@click.command(cls=Command, examples=("appliance doctor", "appliance doctor --json"))
@pass_context
def doctor(context: Context) -> int:
    """Check this machine, as the running appliance sees it if there is one.

    Ends with 0 if nothing is red and 78 otherwise.
    """
    items = _of_running(context)
    if items is None:
        items = _of_this_machine(context.settings())
    is_red = any(item["status"] == "fail" for item in items)
    lines = []
    for item in items:
        lines.append(f"{item['status']:<5} {item['name']:<16} {item['detail']}")
        if item.get("fix") and item["status"] != "ok":
            lines.append(f"{'':<22} fix: {item['fix']}")
    context.output.data({"ok": not is_red, "items": items}, "\n".join(lines))
    return EX_CONFIG if is_red else 0


def _of_running(context: Context) -> list[dict[str, Any]] | None:
    """The running appliance's checks, made as the service user; ``None`` when it cannot say."""
    try:
        with context.client(timeout_s=60) as client:
            document = client.get("/admin/v1/checks")
    except ApplianceError as error:
        context.output.say(f"{error.detail} Checking this machine without it.")
        return None
    return [dict(item) for item in document["items"]]


def _of_this_machine(settings: config.Settings) -> list[dict[str, Any]]:
    from appliance.doctor import checks

    return [*(asdict(check) for check in checks(settings)), _port(settings)]


def _port(settings: config.Settings) -> dict[str, Any]:
    """Whether the port is free; only meaningful while the appliance is not running."""
    address = (settings.http.host, settings.http.port)
    with socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            return {
                "name": "port",
                "status": "fail",
                "detail": f"{address[0]}:{address[1]}: {error.strerror}",
                "fix": "end the other process, or set http.port (0 takes a free one)",
            }
    return {"name": "port", "status": "ok", "detail": f"{address[0]}:{address[1]} is free"}
