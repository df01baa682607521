"""``appliance config``: explain, check.

Owns: these commands.
Never: changes a setting.
Read next: ``config``, where every setting is defined.
"""

from __future__ import annotations

import click

from appliance.cli.context import Context, Group, pass_context


@click.group(
    cls=Group,
    examples=("appliance config explain", "appliance --config new.toml config check"),
)
def config() -> None:
    """Settings: what they mean and where each value comes from."""


@config.command("explain", examples=("appliance config explain", "appliance config explain http"))
@click.argument("section", default="")
@pass_context
def explain(context: Context, section: str) -> None:
    """Print every setting with its value, its origin and what it means."""
    _, explained = context.explained()
    rows = [
        {"key": e.key, "value": e.value, "default": e.default, "origin": e.origin, "doc": e.doc}
        for e in explained
        if e.key.startswith(section)
    ]
    context.output.table(
        {"items": rows},
        [{**r, "value": '""' if r["value"] == "" else r["value"]} for r in rows],
        (("SETTING", "key"), ("VALUE", "value"), ("FROM", "origin"), ("MEANING", "doc")),
        empty=f"no setting starts with '{section}'",
    )


@config.command("check", examples=("appliance --config new.toml config check",))
@pass_context
def check(context: Context) -> None:
    """Read the settings; ends with 78 and names file, key and line if one is wrong."""
    _, explained = context.explained()
    changed = [e.key for e in explained if e.origin != "default"]
    context.output.data(
        {"ok": True, "changed": changed},
        f"ok: {len(changed)} set, all others as they are by default",
    )
