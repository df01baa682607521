"""``appliance model search``: models found by what one remembers of them, with the reasons.

Owns: this command and how what was found is printed.
Never: matches or ranks; the appliance does.
Read next: ``api.native.catalogue`` (who answers).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import click

from appliance import config
from appliance.cli.client import segment
from appliance.cli.context import Command, Context, pass_context
from appliance.cli.output import clean

_FIELD_WIDTH = 10


@click.command(
    "search",
    cls=Command,
    examples=(
        "appliance model search churn",
        "appliance model search --takes age --takes income     # who takes these columns already?",
        "appliance model search --gives score --tag team=risk --tenant demo",
        "appliance model search --data sha256:77d2e4c          # what was trained on this?",
        "appliance model search --code 1a2b3c4 --json",
    ),
)
@click.argument("words", metavar="[TEXT]...", nargs=-1)
@click.option("--tenant", help="Only this tenant's models.")
@click.option("--tag", "tags", multiple=True, metavar="KEY[=VALUE]", help="Has this tag.")
@click.option("--owner", help="Registered with this key: its id or name.")
@click.option("--runtime", help="Its runtime begins like this.")
@click.option("--convention", help="Recognised as this: mlflow, onnx, skops ...")
@click.option("--takes", multiple=True, metavar="COLUMN", help="Has this input column.")
@click.option("--gives", multiple=True, metavar="COLUMN", help="Has this output column.")
@click.option("--data", metavar="REF", help="Made from this data; a digest's first 7 digits do.")
@click.option("--code", metavar="REF", help="Made by this code; a commit's first 7 digits do.")
@click.option("--run", "run_", metavar="REF", help="Came out of this training run.")
@click.option("--retired", is_flag=True, help="Retired versions too.")
@click.option("--limit", type=click.IntRange(min=1, max=200), default=20, show_default=True)
@click.option("--offset", type=click.IntRange(min=0), default=0, help="Leave out the best so many.")
@pass_context
def search(context: Context, /, words: tuple[str, ...], **asked: Any) -> None:
    """Find models by words and by what they are; everything asked for must hold.

    The words are looked for in names, descriptions, tags, columns and lineage. The best come first,
    each with the reasons it was found.
    """
    tenant = asked["tenant"]
    path = f"/api/v1/catalogue/{segment(tenant)}" if tenant else "/api/v1/catalogue"
    lists = {"tag": asked["tags"], "takes": asked["takes"], "gives": asked["gives"]}
    plain = ("owner", "runtime", "convention", "data", "code", "limit", "offset")
    params = {
        "text": " ".join(words) or None,
        "run": asked["run_"],
        "retired": "true" if asked["retired"] else None,
        **{name: asked[name] for name in plain},
        **{name: json.dumps(names) for name, names in lists.items() if names},
    }
    with context.client() as client:
        page = client.get(path, **params)
    if context.json:
        context.output.data(page)
        return
    if not page["items"]:
        context.output.say("nothing found" if not asked["offset"] else "nothing more")
        return
    _print(page["items"])
    shown = asked["offset"] + len(page["items"])
    more = f"; next: --offset {page['next_offset']}" if page["next_offset"] else ""
    context.output.say(f"{shown} of {page['total']} models{more}")


def _print(items: list[dict[str, Any]]) -> None:
    """What was found, a paragraph each; on a terminal with the matches in bold."""
    from rich.console import Console
    from rich.text import Text

    console = Console(
        file=sys.stdout,
        no_color=not (sys.stdout.isatty() and config.wants_colour()),
        highlight=False,
        soft_wrap=True,
    )
    for item in items:
        head = Text(f"{item['tenant']}/{item['model']}@{item['version']}", style="bold")
        head += Text("".join(f"  {word}" for word in _states(item)), style="green")
        if item["description"]:
            head += Text("  " + clean(" ".join(item["description"].split()))[:80], style="not bold")
        console.print(head)
        for reason in item["reasons"]:
            if reason["field"] != "name":
                console.print(Text(f"    {reason['field']:<{_FIELD_WIDTH}}") + _marked(reason))


def _states(item: Mapping[str, Any]) -> list[str]:
    found = []
    if item["live"] == item["version"]:
        found.append("live")
    if item["state"] != "ready":
        found.append(item["state"])
    if item["matching"] > 1:
        found.append(f"and {item['matching'] - 1} more of its versions")
    return found


def _marked(reason: Mapping[str, Any]) -> Any:
    """A reason's text with its matches in bold; no character of it is taken for markup."""
    from rich.text import Text

    told = reason["text"]
    text, at = Text(), 0
    for start, end in reason["spans"]:
        text += Text(clean(told[at:start])) + Text(clean(told[start:end]), style="bold yellow")
        at = end
    return text + Text(clean(told[at:]).replace("\n", " "))
