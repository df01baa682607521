"""``appliance route``: show, set, canary, promote, hold, abort, back, remove, history, stats.

Owns: these commands.
Never: chooses a version or judges a canary; the appliance does.
Read next: ``alias`` for what decides where there is no route.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

from appliance.cli.context import Context, Group, pass_context
from appliance.cli.model import Reference, reference
from appliance.errors import NotFound

_SHARE = re.compile(r"([1-9][0-9]{0,8})=([0-9]{1,3}(?:\.[0-9]{1,2})?)")
_ENDS = ("promoted", "removed")


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option(
        "--revision", type=click.IntRange(min=0), help="Only if the route is at this revision."
    )(command)
    return click.option("--reason", default="", help="Why; kept in the audit log.")(command)


def _if_match(revision: int | None) -> dict[str, str]:
    return {} if revision is None else {"If-Match": f'"{revision}"'}


@click.group(
    cls=Group,
    examples=(
        "appliance route set demo/x 3=90 4=10 --sticky header:x-user --reason 'A/B of recall'",
        "appliance route canary demo/x 4 --percent 5 --error-rate-max 0.01 --latency-ratio-max 1.5",
        "appliance route show demo/x",
        "appliance route promote demo/x --reason 'flat for two hours'",
    ),
)
def route() -> None:
    """How a model's calls are divided among its versions; without a route, 'live' decides."""


@route.command(
    "show", examples=("appliance route show demo/x", "appliance route show demo/x --json")
)
@click.argument("name", metavar="TENANT/NAME")
@pass_context
def show(context: Context, name: str) -> None:
    """Show the route in force."""
    target = reference(name, is_model=True)
    with context.client() as client:
        document = client.get(f"{target.path}/route")
    context.output.data(document, _described(document))


@route.command(
    "set",
    examples=(
        "appliance route set demo/x 3=90 4=10",
        "appliance route set demo/x 3=50 4=50 --sticky key --revision 7",
        "appliance route set demo/x 3=100 --shadow 4 --reason 'how does 4 answer?'",
    ),
)
@click.argument("name", metavar="TENANT/NAME")
@click.argument("shares", metavar="VERSION=PERCENT...", nargs=-1, required=True)
@click.option("--sticky", default="", metavar="key|header:NAME", help="Same key, same version.")
@click.option(
    "--shadow", "shadows", type=click.IntRange(min=1), multiple=True,
    help="Also call this version, and drop its reply.",
)  # fmt: skip
@_options
@pass_context
def set_(
    context: Context,
    name: str,
    shares: tuple[str, ...],
    sticky: str,
    shadows: tuple[int, ...],
    reason: str,
    revision: int | None,
) -> None:
    """Divide a model's calls; the shares sum to 100. Takes effect with the next call."""
    target = reference(name, is_model=True)
    body = {
        "arms": [_arm(share) for share in shares],
        "sticky": sticky,
        "shadows": list(shadows),
        "reason": reason,
    }
    _put(context, target, body, revision)


@route.command(
    "canary",
    examples=(
        "appliance route canary demo/x 4 --percent 5 --error-rate-max 0.01",
        "appliance route canary demo/x 4 --percent 1 --latency-ratio-max 1.5 --action hold",
        "appliance route canary demo/x 4 --percent 1 --error-rate-max 0.01 \\\n"
        "      --step 5 --step 25 --step 100 --step-every 1800",
    ),
)
@click.argument("name", metavar="TENANT/NAME")
@click.argument("version", type=click.IntRange(min=1))
@click.option("--percent", type=float, default=5.0, show_default=True, help="Its share now.")
@click.option("--against", type=click.IntRange(min=1), help="Compared with this; default: live.")
@click.option("--error-rate-max", type=float, default=0.0, help="Largest difference, 0.01 is 1 %.")
@click.option("--latency-ratio-max", type=float, default=0.0, help="Largest ratio of p95.")
@click.option("--calls-min", type=int, default=100, show_default=True, help="Before deciding.")
@click.option("--window", type=int, default=300, show_default=True, help="Seconds looked at.")
@click.option("--action", type=click.Choice(["abort", "hold", "none"]), default="abort")
@click.option("--step", "steps", type=float, multiple=True, help="A share to grow to, in order.")
@click.option("--step-every", type=int, default=600, show_default=True, help="Seconds per step.")
@click.option("--sticky", metavar="key|header:NAME", help="Same key, same version.")
@_options
@pass_context
def canary(
    context: Context, /, name: str, version: int, reason: str, revision: int | None, **options: Any
) -> None:
    """Give a candidate a small share, judged against the version it is to follow."""
    target = reference(name, is_model=True)
    with context.client() as client:
        try:
            known = client.get(f"{target.path}/route")
        except NotFound:
            known = {"sticky": "", "shadows": [], "canary": None, "arms": []}
        against = options["against"] or _baseline(known, version)
        if not against:
            against = client.get(f"{target.path}/aliases/live")["version"]
    rule = {
        "version": version,
        "against": against,
        "error_rate_max": options["error_rate_max"],
        "latency_ratio_max": options["latency_ratio_max"],
        "calls_min": options["calls_min"],
        "window_s": options["window"],
        "action": options["action"],
        "steps_percent": list(options["steps"]),
        "step_s": options["step_every"],
    }
    percent = options["percent"]
    sticky = options["sticky"]
    body = {
        "arms": [
            {"version": against, "percent": round(100 - percent, 2)},
            {"version": version, "percent": percent},
        ],
        "sticky": known["sticky"] if sticky is None else sticky,
        "shadows": [one for one in known["shadows"] if one not in (against, version)],
        "canary": rule,
        "reason": reason,
    }
    _put(context, target, body, revision)


@route.command(
    "promote",
    examples=("appliance route promote demo/x", "appliance route promote demo/x --version 4"),
)
@click.argument("name", metavar="TENANT/NAME")
@click.option("--version", type=click.IntRange(min=1), help="Which arm; default: the candidate.")
@_options
@pass_context
def promote(
    context: Context, name: str, version: int | None, reason: str, revision: int | None
) -> None:
    """Make the candidate live and end the route, in one step."""
    target = reference(name, is_model=True)
    body = {"version": version or 0, "reason": reason}
    with context.client() as client:
        document = client.send("POST", f"{target.path}/route/promote", body, **_if_match(revision))
    live = document["arms"][0]["version"]
    context.output.data(document, f"version {live} of {name} is live; its route ended")


def _verb(name: str, help_text: str) -> None:
    @route.command(name, help=help_text, examples=(f"appliance route {name} demo/x --reason why",))
    @click.argument("model", metavar="TENANT/NAME")
    @_options
    @pass_context
    def act(context: Context, model: str, reason: str, revision: int | None) -> None:
        target = reference(model, is_model=True)
        with context.client() as client:
            document = client.send(
                "POST", f"{target.path}/route/{name}", {"reason": reason}, **_if_match(revision)
            )
        context.output.data(document, _described(document))


_verb("hold", "Freeze the shares; a canary's schedule stops.")
_verb("abort", "Give every call back to the baseline; the other arms stay, with no calls.")
_verb("back", "Return to the revision before the last one; once more undoes that.")


@route.command("rm", examples=("appliance route rm demo/x",))
@click.argument("name", metavar="TENANT/NAME")
@click.option("--revision", type=click.IntRange(min=0), help="Only if it is at this revision.")
@pass_context
def remove(context: Context, name: str, revision: int | None) -> None:
    """End the route; the alias 'live' decides again."""
    target = reference(name, is_model=True)
    with context.client() as client:
        client.send("DELETE", f"{target.path}/route", **_if_match(revision))
    context.output.data({"removed": name}, f"removed the route of {name}")


@route.command("history", examples=("appliance route history demo/x",))
@click.argument("name", metavar="TENANT/NAME")
@pass_context
def history(context: Context, name: str) -> None:
    """List the revisions, newest first: who set what, when and why."""
    target = reference(name, is_model=True)
    with context.client() as client:
        document = client.get(f"{target.path}/route/history")
    rows = [row | {"shares": _shares(row)} for row in document["items"]]
    context.output.table(
        document,
        rows,
        (
            ("REVISION", "revision"),
            ("STATE", "state"),
            ("SHARES", "shares"),
            ("SET", "set_at"),
            ("BY", "set_by"),
            ("REASON", "reason"),
        ),
        empty=f"{name} never had a route",
    )


@route.command(
    "stats", examples=("appliance route stats demo/x", "appliance route stats demo/x --since 3")
)
@click.argument("name", metavar="TENANT/NAME")
@click.option("--since", type=click.IntRange(min=1), help="From this revision of the route on.")
@pass_context
def stats(context: Context, name: str, since: int | None) -> None:
    """Compare the versions of the route: calls, errors, latency, reported outcomes, shadows."""
    target = reference(name, is_model=True)
    with context.client() as client:
        document = client.get(f"{target.path}/route/stats", since=since)
    context.output.data(document, "\n".join(_compared(document)))


def _compared(document: dict[str, Any]) -> list[str]:
    lines = [f"since revision {document['since_revision']}; intervals at 95 %"]
    for arm in document["arms"]:
        line = (
            f"  version {arm['version']:<4} {arm['percent']:g} %  {arm['calls']} calls  errors "
            f"{arm['error_rate']:.2%} ({arm['error_low']:.2%} to {arm['error_high']:.2%})  "
            f"p50 {arm['p50_ms']:.1f} ms  p95 {arm['p95_ms']:.1f} ms"
        )
        if arm["metrics"]:
            line += f"  outcome {arm['metric_mean']:.4g} of {arm['metrics']}"
        lines.append(line)
    for one in document["comparisons"]:
        lines.append(f"  version {one['version']} minus version {one['against']}:")
        for key, label, scale, unit in (
            ("error_rate", "errors ", 100.0, " points"),
            ("latency_ms", "latency", 1.0, " ms"),
            ("metric", "outcome", 1.0, ""),
        ):
            if one[key] is not None:
                lines.append(f"    {label} {_effect(one[key], scale, unit)}")
    lines += [
        f"  shadow {one['version']}: {one['calls']} calls, {one['equal']} equal, {one['close']} "
        f"close, {one['different']} different, {one['failed']} failed, "
        f"{one['dropped']} dropped, p95 {one['p95_ms']:.1f} ms"
        for one in document["shadows"]
    ]
    if document["canary"] and document["canary"]["complaint"]:
        lines.append(f"  canary: {document['canary']['complaint']}")
    return lines


def _effect(one: dict[str, Any], scale: float, unit: str) -> str:
    low, middle, high = (one[key] * scale for key in ("low", "difference", "high"))
    seen = min(one["samples"], one["samples_against"])
    verdict = "clear" if one["clear"] else "may be nothing"
    text = f"{middle:+.3g}{unit} ({low:+.3g} to {high:+.3g}), {verdict}; {seen} of {one['needed']}"
    return f"{text} calls needed"


def _put(context: Context, target: Reference, body: Any, revision: int | None) -> None:
    with context.client() as client:
        document = client.send("PUT", f"{target.path}/route", body, **_if_match(revision))
    context.output.data(document, _described(document))


def _arm(share: str) -> dict[str, Any]:
    match = _SHARE.fullmatch(share)
    if match is None:
        raise click.UsageError(f"'{share}' is no share: write VERSION=PERCENT, such as 4=2.5")
    return {"version": int(match[1]), "percent": float(match[2])}


def _baseline(known: dict[str, Any], candidate: int) -> int:
    """The version a known route compares with, or gives most calls; 0 without one."""
    if known["canary"] and known["canary"]["against"] != candidate:
        return int(known["canary"]["against"])
    others = [arm for arm in known["arms"] if arm["version"] != candidate]
    return int(max(others, key=lambda arm: arm["percent"])["version"]) if others else 0


def _shares(document: dict[str, Any]) -> str:
    return "  ".join(f"{arm['version']}={arm['percent']:g}" for arm in document["arms"])


def _described(document: dict[str, Any]) -> str:
    name = f"{document['tenant']}/{document['model']}"
    lines = [f"{name}  revision {document['revision']}  {document['state']}"]
    if document["state"] in _ENDS:
        return f"{lines[0]}: the alias 'live' decides"
    lines += [f"  version {arm['version']:<5} {arm['percent']:g} %" for arm in document["arms"]]
    lines += [f"  version {number:<5} shadow" for number in document["shadows"]]
    lines.append(f"  sticky  {document['sticky'] or 'no, each call is drawn'}")
    rule = document["canary"]
    if rule:
        lines.append(
            f"  canary  version {rule['version']} against {rule['against']}: "
            f"{rule['action']} at {rule['error_rate_max'] * 100:g} points more errors or "
            f"{rule['latency_ratio_max']:g} times p95 (0: not looked at), "
            f"{rule['calls_min']} calls in {rule['window_s']} s"
        )
        if rule["steps_percent"]:
            steps = ", ".join(f"{step:g}" for step in rule["steps_percent"])
            lines.append(f"  steps   {steps} % every {rule['step_s']} s")
    lines.append(f"  set     {document['set_at']} by {document['set_by']}  {document['reason']}")
    return "\n".join(lines)
