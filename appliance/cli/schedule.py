"""``appliance schedule``: create, list, show, pause, resume, run-now, rm.

Owns: these commands, and the notation ``TENANT/SCHEDULE``.
Never: decides what is due.
Read next: ``api.native.schedules`` (who answers), ``job`` for what a schedule submits.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

from appliance.cli import batch, following
from appliance.cli.client import segment
from appliance.cli.context import Context, Group, pass_context
from appliance.cli.model import body_of, reference

_REFERENCE = re.compile(r"^([a-z0-9-]+)/(sch_[0-9a-z]+)$")


@click.group(
    cls=Group,
    examples=(
        'appliance schedule create demo/churn --cron "0 2 * * *" --timezone Europe/Berlin '
        "--data body.json",
        "appliance schedule list demo",
        "appliance schedule run-now demo/sch_0123456789abc",
    ),
)
def schedule() -> None:
    """Calls that are submitted as jobs again and again."""


def _batch_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(batch.PLAN):
        command = option(command)
    return command


@schedule.command(
    "create",
    examples=(
        'appliance schedule create demo/churn --cron "0 2 * * *" --timezone Europe/Berlin '
        "--data body.json",
        'appliance schedule create demo/churn:3 --cron "*/15 * * * mon-fri" --data \'{"n": 1}\'',
        'appliance schedule create demo/churn@champion --cron "30 6 1 * *" --data body.json '
        "--catch-up none",
        'appliance schedule create demo/churn --cron "0 2 * * *" --from lake/{date}.parquet '
        "--to lake/scored-{date}.parquet",
    ),
)
@click.argument("name", metavar="TENANT/NAME[:VERSION|@ALIAS]")
@click.option("--cron", required=True, help="Minute, hour, day of month, month, day of week.")
@click.option("--timezone", default="UTC", show_default=True, help="IANA name of the time zone.")
@click.option("--data", default="-", show_default=True, help="A file, - for stdin, or JSON itself.")
@click.option("--content-type", default="application/json", show_default=True)
@_batch_options
@click.option(
    "--catch-up",
    type=click.Choice(["one", "none"]),
    default="one",
    show_default=True,
    help="After downtime: one run for all that was missed, or none.",
)
@click.option("--overlap", is_flag=True, help="Also while the run before goes on.")
@click.option("--repeatable", is_flag=True, help="A run that a restart cut off runs again.")
@pass_context
def create(
    context: Context,
    /,
    name: str,
    cron: str,
    timezone: str,
    data: str,
    content_type: str,
    catch_up: str,
    overlap: bool,
    repeatable: bool,
    **plan: Any,
) -> None:
    """Have a call submitted as a job whenever the cron fields say, or with --from a batch.

    In --from and --to, {date} and {time} stand for when it was due: 2026-01-31 and 0200.
    """
    target = reference(name)
    query = {
        "cron": cron,
        "timezone": timezone,
        "catch_up": catch_up,
        "overlap": "yes" if overlap else "no",
        "repeatable": "yes" if repeatable else "no",
    }
    if target.version:
        query["version"] = target.version
    if target.alias:
        query["alias"] = target.alias
    if plan["taken_from"]:
        named = plan["put_into"]
        plan["into"] = batch.format_of(named) if named else "parquet"
        query |= batch.query_of(plan)
        sent: dict[str, Any] = {}
    elif plan["put_into"]:
        raise click.UsageError("--to is for the output of a table, which --from names.")
    else:
        sent = {"content": body_of(data), "headers": {"Content-Type": content_type}}
    with context.client(timeout_s=900) as client:
        path = f"{target.path}/schedules"
        document = client.request("POST", path, params=query, **sent).json()
    place = f"{document['tenant']}/{document['id']}"
    context.output.data(document, f"{place}  next {', '.join(document['next']) or '-'}")


@schedule.command("list", examples=("appliance schedule list demo",))
@click.argument("tenant")
@pass_context
def list_(context: Context, tenant: str) -> None:
    """List a tenant's schedules, each with the next three times it is due."""
    with context.client() as client:
        document = client.get(f"/api/v1/schedules/{segment(tenant)}")
    rows = [
        {
            **row,
            "model": f"{row['model']}{row['target']}",
            "last": row["last"] and f"{row['last']['code']} {row['last']['due_at']}",
        }
        for row in document["items"]
    ]
    context.output.table(
        document,
        rows,
        (
            ("SCHEDULE", "id"),
            ("MODEL", "model"),
            ("STATE", "state"),
            ("CRON", "cron"),
            ("TIMEZONE", "timezone"),
            ("LAST", "last"),
            ("NEXT", "next"),
        ),
        empty=f'no schedules: appliance schedule create {tenant}/NAME --cron "0 2 * * *"',
    )


@schedule.command("show", examples=("appliance schedule show demo/sch_0123456789abc",))
@click.argument("name", metavar="TENANT/SCHEDULE")
@pass_context
def show(context: Context, name: str) -> None:
    """Show a schedule's last runs, newest first."""
    with context.client() as client:
        document = client.get(_path(name))
    context.output.table(
        document,
        [{**run, "made": run["job"] or run["batch"]} for run in document["runs"]],
        (
            ("DUE", "due_at"),
            ("WHAT", "code"),
            ("TIMES", "count"),
            ("BY HAND", "manual"),
            ("JOB OR BATCH", "made"),
            ("STATUS", "status"),
        ),
        empty="nothing was due yet",
    )
    upcoming = ", ".join(document["next"]) or "-"
    context.output.say(f"{document['cron']} {document['timezone']}: {document['state']}")
    context.output.say(f"next {upcoming}")


@schedule.command("pause", examples=("appliance schedule pause demo/sch_0123456789abc",))
@click.argument("name", metavar="TENANT/SCHEDULE")
@pass_context
def pause(context: Context, name: str) -> None:
    """Let nothing be due until it is resumed."""
    with context.client() as client:
        document = client.send("POST", f"{_path(name)}/pause")
    context.output.data(document, f"{name}  {document['state']}")


@schedule.command("resume", examples=("appliance schedule resume demo/sch_0123456789abc",))
@click.argument("name", metavar="TENANT/SCHEDULE")
@pass_context
def resume(context: Context, name: str) -> None:
    """Go on, in your name; what was due meanwhile is not made up for."""
    with context.client() as client:
        document = client.send("POST", f"{_path(name)}/resume")
    upcoming = ", ".join(document["next"]) or "-"
    context.output.data(document, f"{name}  {document['state']}  next {upcoming}")


@schedule.command("run-now", examples=("appliance schedule run-now demo/sch_0123456789abc",))
@click.argument("name", metavar="TENANT/SCHEDULE")
@pass_context
def run_now(context: Context, name: str) -> None:
    """Submit its job or batch once more, now, in your name."""
    with context.client(timeout_s=following.TIMEOUT_S) as client:
        document = client.send("POST", f"{_path(name)}/run")
    place = f"{document['tenant']}/{document['id']}"
    context.output.data(document, f"{place}  {document['status']}")
    noun = "batch" if "rows" in document else "job"
    context.output.say(f"appliance {noun} wait {place}")


@schedule.command("rm", examples=("appliance schedule rm demo/sch_0123456789abc",))
@click.argument("name", metavar="TENANT/SCHEDULE")
@pass_context
def remove(context: Context, name: str) -> None:
    """Remove a schedule and its body; jobs that it submitted go on."""
    with context.client() as client:
        client.send("DELETE", _path(name))
    context.output.data({"removed": name}, f"removed {name}")


def _path(name: str) -> str:
    match = _REFERENCE.match(name)
    if match is None:
        raise click.UsageError(f"'{name}' is not TENANT/SCHEDULE, such as demo/sch_0123456789abc.")
    return f"/api/v1/schedules/{segment(match[1])}/{segment(match[2])}"
