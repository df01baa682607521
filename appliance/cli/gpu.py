"""``appliance gpu``: list.

Owns: this command.
Never: changes a GPU; partitions are made with the vendor's own tools.
Read next: ``api.gpus``, ``sandbox.gpu``.
"""

from __future__ import annotations

from typing import Any

import click

from appliance.cli.context import Context, Group, pass_context

_MIB = 1024 * 1024
_COLUMNS = (
    ("GPU", "index"),
    ("NAME", "name"),
    ("MEMORY", "memory"),
    ("PROMISED", "promised"),
    ("USED", "used"),
    ("BUSY", "busy"),
    ("STATE", "state"),
    ("TENANT", "tenant"),
    ("ID", "id"),
)


@click.group(cls=Group, examples=("appliance gpu list", "appliance gpu list --local"))
def gpu() -> None:
    """The GPUs of this machine, and who has them."""


@gpu.command(
    "list",
    examples=("appliance gpu list", "appliance gpu list --json", "appliance gpu list --local"),
)
@click.option("--local", is_flag=True, help="Look at this machine, without a running appliance.")
@pass_context
def list_(context: Context, local: bool) -> None:
    """List every GPU and partition models may use: memory, state, and whose it is now."""
    document = _local(context) if local else _asked(context)
    context.output.table(
        document,
        [_row(item) for item in document["items"]],
        _COLUMNS,
        empty="no GPU: models run on the processor (appliance doctor says what was found)",
    )
    for problem in document.get("problems", ()):
        context.output.say(problem)
    if document.get("waiting"):
        context.output.say(f"{document['waiting']} calls wait for a GPU")


def _asked(context: Context) -> dict[str, Any]:
    with context.client() as client:
        document: dict[str, Any] = client.get("/admin/v1/gpus")
    return document


def _local(context: Context) -> dict[str, Any]:
    from appliance.sandbox import gpu as inventory

    found = inventory.find(context.settings().sandbox)
    items = [
        {
            "id": one.id,
            "index": one.index,
            "name": one.name,
            "vendor": one.vendor,
            "kind": one.kind,
            "parent": one.parent,
            "compute": one.compute,
            "driver": one.driver,
            "memory_bytes": one.memory_bytes or None,
            "nodes": [host for host, _ in one.nodes],
        }
        for one in found.gpus
    ]
    return {"items": items, "problems": list(found.problems)}


def _row(item: dict[str, Any]) -> dict[str, str]:
    busy = item.get("busy_percent")
    return {
        "index": item["index"],
        "name": item["name"] or item["vendor"],
        "memory": _size(item["memory_bytes"]),
        "promised": _size(item.get("allocated_bytes")),
        "used": _size(item.get("used_bytes")),
        "busy": "-" if busy is None else f"{busy} %",
        "state": item.get("state", "-"),
        "tenant": item.get("tenant") or "-",
        "id": item["id"],
    }


def _size(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else f"{size_bytes // _MIB} MiB"
