"""``appliance webhook``: create, list, show, test, rotate, enable, disable, rm.

Owns: these commands, and the notation ``TENANT WEBHOOK``.
Never: sends anything, or prints a secret that was not made by this very command.
Read next: ``api.native.webhooks`` (who answers), ``job`` for the webhook of a single job.
"""

from __future__ import annotations

from typing import Any

import click

from appliance.cli.client import segment
from appliance.cli.context import Context, Group, pass_context

_ONCE = "This is the only time the secret is shown."


@click.group(
    cls=Group,
    examples=(
        "appliance webhook create demo https://ci.example.com/hook --event job.completed",
        "appliance webhook test demo wh_0123456789abc",
        "appliance webhook show demo wh_0123456789abc",
    ),
)
def webhook() -> None:
    """Addresses that are told of a tenant's events, signed and until they have them."""


@webhook.command("list", examples=("appliance webhook list demo",))
@click.argument("tenant")
@pass_context
def list_(context: Context, tenant: str) -> None:
    """List a tenant's webhooks."""
    with context.client() as client:
        document = client.get(_path(tenant))
    rows = [{**row, "url": row["url"] or "(the webhooks of jobs)"} for row in document["items"]]
    context.output.table(
        document,
        rows,
        (
            ("WEBHOOK", "id"),
            ("STATE", "state"),
            ("WAITING", "waiting"),
            ("EVENTS", "events"),
            ("URL", "url"),
        ),
        empty=f"no webhooks: appliance webhook create {tenant} https://... --event job.completed",
    )


@webhook.command(
    "create",
    examples=(
        "appliance webhook create demo https://ci.example.com/hook --event job.completed",
        "appliance webhook create demo https://ci.example.com/hook --event route.aborted "
        "--event alias.set",
        "appliance webhook create demo https://etl.example.com/in --event job.completed "
        "--with-output",
        "appliance webhook create demo --for-jobs",
    ),
)
@click.argument("tenant")
@click.argument("url", default="")
@click.option("--event", "events", multiple=True, metavar="EVENT", help="Tell it of this.")
@click.option("--with-output", is_flag=True, help="With job.completed, what the model answered.")
@click.option(
    "--for-jobs", is_flag=True, help="No address: the secret for webhooks of single jobs."
)
@pass_context
def create(
    context: Context,
    tenant: str,
    url: str,
    events: tuple[str, ...],
    with_output: bool,
    for_jobs: bool,
) -> None:
    """Have an address told of events; the secret it checks signatures with is printed once.

    Events: job.completed, batch.started, batch.progress, batch.completed, version.registered,
    version.retired, route.changed, route.held, route.aborted, route.promoted, route.removed,
    alias.set, drift.breach, drift.recovered, schedule.skipped, schedule.stopped, key.created,
    key.revoked.
    """
    if bool(url) == for_jobs:
        raise click.UsageError("give an https URL, or --for-jobs for the secret of jobs' webhooks")
    body = {"url": url, "events": list(events), "with_output": with_output}
    with context.client() as client:
        document = client.send("POST", _path(tenant), body)
    _show_made(context, document)


@webhook.command("show", examples=("appliance webhook show demo wh_0123456789abc",))
@click.argument("tenant")
@click.argument("name", metavar="WEBHOOK")
@pass_context
def show(context: Context, tenant: str, name: str) -> None:
    """Show a webhook and what became of its last deliveries."""
    with context.client() as client:
        document = client.get(_path(tenant, name))
    context.output.table(
        document,
        document["deliveries"],
        (
            ("DELIVERY", "id"),
            ("EVENT", "type"),
            ("STATE", "state"),
            ("ATTEMPTS", "attempts"),
            ("LAST", "code"),
            ("QUEUED", "queued_at"),
            ("NEXT", "next_at"),
            ("TO", "to"),
        ),
        empty="no deliveries yet: appliance webhook test TENANT WEBHOOK",
    )
    context.output.say(f"{document['id']}  {document['state']}  {document['url']}")


@webhook.command("test", examples=("appliance webhook test demo wh_0123456789abc",))
@click.argument("tenant")
@click.argument("name", metavar="WEBHOOK")
@pass_context
def test(context: Context, tenant: str, name: str) -> int:
    """Send a webhook a webhook.test. Exit code 75 if it did not arrive at once."""
    with context.client() as client:
        document = client.send("POST", f"{_path(tenant, name)}/test")
    code = document["code"] or "still under way"
    context.output.data(document, f"{document['id']}  {document['state']}  {code}")
    return 0 if document["state"] == "delivered" else 75


@webhook.command(
    "rotate",
    examples=(
        "appliance webhook rotate demo wh_0123456789abc",
        "appliance webhook rotate demo wh_0123456789abc --overlap-hours 0",
    ),
)
@click.argument("tenant")
@click.argument("name", metavar="WEBHOOK")
@click.option(
    "--overlap-hours",
    type=click.IntRange(0, 720),
    default=24,
    show_default=True,
    help="How long deliveries are signed with the secret before, too.",
)
@pass_context
def rotate(context: Context, tenant: str, name: str, overlap_hours: int) -> None:
    """Give a webhook a new secret, which is printed once."""
    body = {"overlap_s": overlap_hours * 3600}
    with context.client() as client:
        document = client.send("POST", f"{_path(tenant, name)}/rotate", body)
    _show_made(context, document)


@webhook.command(
    "redeliver",
    examples=("appliance webhook redeliver demo wh_0123456789abc msg_5k2v9c0m7q1x8t4d6h3n0w2r5y",),
)
@click.argument("tenant")
@click.argument("name", metavar="WEBHOOK")
@click.argument("delivery", metavar="DELIVERY")
@pass_context
def redeliver(context: Context, tenant: str, name: str, delivery: str) -> None:
    """Send a delivery once more, with the same webhook-id; 'show' says what became of it."""
    with context.client() as client:
        path = f"{_path(tenant, name)}/deliveries/{segment(delivery)}/redeliver"
        document = client.send("POST", path)
    context.output.data(document, f"{delivery}  {document['state']}")


@webhook.command("enable", examples=("appliance webhook enable demo wh_0123456789abc",))
@click.argument("tenant")
@click.argument("name", metavar="WEBHOOK")
@pass_context
def enable(context: Context, tenant: str, name: str) -> None:
    """Tell a webhook of events again, from now on."""
    _switch(context, tenant, name, "enable")


@webhook.command("disable", examples=("appliance webhook disable demo wh_0123456789abc",))
@click.argument("tenant")
@click.argument("name", metavar="WEBHOOK")
@pass_context
def disable(context: Context, tenant: str, name: str) -> None:
    """Tell a webhook nothing more; what waits for it is given up."""
    _switch(context, tenant, name, "disable")


@webhook.command("rm", examples=("appliance webhook rm demo wh_0123456789abc",))
@click.argument("tenant")
@click.argument("name", metavar="WEBHOOK")
@pass_context
def remove(context: Context, tenant: str, name: str) -> None:
    """Remove a webhook with what waits for it."""
    with context.client() as client:
        client.send("DELETE", _path(tenant, name))
    context.output.data({"removed": name}, f"removed {name}")


def _switch(context: Context, tenant: str, name: str, verb: str) -> None:
    with context.client() as client:
        document = client.send("POST", f"{_path(tenant, name)}/{verb}")
    context.output.data(document, f"{name}  {document['state']}")


def _show_made(context: Context, document: dict[str, Any]) -> None:
    made = document["webhook"]
    context.output.data(document, f"{made['id']}\n{document['secret']}")
    context.output.say(_ONCE)


def _path(tenant: str, name: str = "") -> str:
    path = f"/api/v1/tenants/{segment(tenant)}/webhooks"
    return f"{path}/{segment(name)}" if name else path
