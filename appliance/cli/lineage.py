"""``appliance model lineage``: where a version came from and what came of it, as a tree.

Owns: this command and the tree's form.
Never: asks more than once for the graph.
Read next: ``api.native.lineage`` (who answers), ``appliance.lineage`` (what the graph is).

A version with two parents is in the tree twice; what hangs on it is drawn only once. The
tree is built level by level, so that a thousand generations are no deeper call than one.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping
from typing import Any

import click

from appliance import config
from appliance.cli.client import Client
from appliance.cli.context import Command, Context, pass_context
from appliance.cli.output import clean
from appliance.cli.reference import Reference, reference
from appliance.errors import NotFound

_TEXT_MAX = 60
_PLAIN_WIDTH = 240
_TITLES = {"ancestors": "made from", "descendants": "became"}
_CALL_TITLES = {"ancestors": "made from, and calls", "descendants": "became, and called by"}
_CALLS = {"ancestors": "calls ", "descendants": "called by "}


@click.command(
    "lineage",
    cls=Command,
    examples=(
        "appliance model lineage demo/churn@4",
        "appliance model lineage demo/churn@live --direction ancestors --depth 3",
        "appliance model lineage demo/churn --json",
    ),
)
@click.argument("name", metavar="TENANT/NAME[@N|@ALIAS]")
@click.option(
    "--direction",
    type=click.Choice(["both", "ancestors", "descendants"]),
    default="both",
    show_default=True,
)
@click.option("--depth", type=click.IntRange(min=0, max=10_000), default=10, show_default=True)
@click.option("--limit", type=click.IntRange(min=1, max=10_000), default=1000, show_default=True)
@pass_context
def show(context: Context, name: str, direction: str, depth: int, limit: int) -> None:
    """Show what a version was made from and calls, and what was made from it or calls it.

    Without a version the one that 'live' points at is shown, or else the newest.
    """
    target = reference(name)
    with context.client() as client:
        number = _number(client, target)
        path = f"{target.path}/versions/{number}/lineage"
        document = client.get(path, direction=direction, depth=depth, limit=limit)
    if context.json:
        context.output.data(document)
        return
    _print(target, document)
    if document["left_off"]:
        context.output.say(f"{document['left_off']} more beyond here: --depth, --limit")
    if document["hidden"]:
        context.output.say(f"{document['hidden']} of models this key may not see")


def _number(client: Client, target: Reference) -> str:
    if target.version:
        return target.version
    if target.alias:
        return str(client.get(target.target)["version"])
    document = client.get(target.path)
    number = document["live"] or document["newest"]
    if number is None:
        raise NotFound("This model has no version yet.", hint="appliance model push --help")
    return str(number)


def _print(target: Reference, document: Mapping[str, Any]) -> None:
    """The graph as trees on stdout: what the version was made from, then what it became."""
    from rich.console import Console
    from rich.text import Text

    nodes = {node["id"]: node for node in document["nodes"]}
    start = document["nodes"][0]
    is_terminal = sys.stdout.isatty()
    console = Console(
        file=sys.stdout,
        no_color=not (is_terminal and config.wants_colour()),
        highlight=False,
        soft_wrap=True,
        width=None if is_terminal else _PLAIN_WIDTH,
    )
    console.print(Text(f"{target.tenant}/") + _label(start))
    for text in _details(start):
        console.print(Text(f"    {clean(text)}", style="dim"))
    for way, (near, far) in {
        "ancestors": ("child", "parent"),
        "descendants": ("parent", "child"),
    }.items():
        if document["direction"] not in ("both", way):
            continue
        below = _neighbours(document, near, far, sign=-1 if way == "ancestors" else 1)
        if below.get(start["id"]):
            console.print(_tree(way, start["id"], below, nodes))
        else:
            said = "no version of this tenant" if way == "ancestors" else "nothing yet"
            console.print(Text(f"{_TITLES[way]}: {said}"))


def _neighbours(
    document: Mapping[str, Any], near: str, far: str, *, sign: int
) -> dict[str, list[tuple[str, str]]]:
    """For each version those one edge further on, on this side of the version asked for.

    With each comes how it is called, empty where one was made from the other.
    """
    side = {n["id"] for n in document["nodes"] if n["distance"] * sign >= 0}
    found: dict[str, list[tuple[str, str]]] = {}
    for edge in document["edges"]:
        if edge[near] in side and edge[far] in side:
            found.setdefault(edge[near], []).append((edge[far], edge["call"]))
    return found


def _tree(
    way: str,
    start: str,
    below: Mapping[str, list[tuple[str, str]]],
    nodes: Mapping[str, Any],
) -> Any:
    from rich.text import Text
    from rich.tree import Tree

    has_calls = any(call for some in below.values() for _, call in some)
    tree = Tree(Text((_CALL_TITLES if has_calls else _TITLES)[way]))
    drawn = {start}
    waiting = deque([(start, tree)])
    while waiting:
        key, branch = waiting.popleft()
        for other, call in below.get(key, ()):
            label = Text(_called(way, call, nodes[other])) + _label(nodes[other])
            if other in drawn:
                branch.add(
                    label + (Text("  (drawn elsewhere)", style="dim") if below.get(other) else "")
                )
                continue
            drawn.add(other)
            for text in _details(nodes[other]):
                label += Text(f"\n{clean(text)}", style="dim")
            waiting.append((other, branch.add(label)))
    return tree


def _called(way: str, call: str, node: Mapping[str, Any]) -> str:
    """That and how one calls the other; an alias or a name alone stands for a version of now."""
    if not call:
        return ""
    if way == "ancestors" and call != f"{node['model']}:{node['version']}":
        return f"calls {call}, now "
    return _CALLS[way]


def _label(node: Mapping[str, Any]) -> Any:
    from rich.text import Text

    label = Text(f"{node['model']}@{node['version']}", style="bold")
    if node["aliases"]:
        label += Text(f"  {', '.join(node['aliases'])}", style="green")
    if node["state"] != "ready":
        label += Text(f"  {node['state']}", style="red")
    if node["description"]:
        label += Text(f"  {_short(node['description'])}")
    return label


def _details(node: Mapping[str, Any]) -> list[str]:
    """What a version was made from besides versions, a line each."""
    found = [f"from {_short(text)}" for text in node["outside"]]
    found += [f"data {_short(text)}" for text in node["data"]]
    found += [f"{name} {_short(node[name])}" for name in ("code", "run") if node[name]]
    return found


def _short(text: str) -> str:
    line = clean(" ".join(text.split()))
    return line if len(line) <= _TEXT_MAX else line[: _TEXT_MAX - 1] + "…"
