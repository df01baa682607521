"""``appliance job``: submit, list, show, wait, cancel, output.

Owns: these commands, and the notation ``TENANT/JOB``.
Never: keeps anything of a job on this side.
Read next: ``api.native.jobs`` (who answers), ``model`` for the notation of models.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from appliance.cli import following
from appliance.cli.client import require_succeeded, segment
from appliance.cli.context import Context, Group, pass_context
from appliance.cli.model import body_of, reference

_REFERENCE = re.compile(r"^([a-z0-9-]+)/(job_[0-9a-z]+)$")


@click.group(
    cls=Group,
    examples=(
        "appliance job submit demo/x --data rows.json",
        "appliance job wait demo/job_0123456789abc",
        "appliance job output demo/job_0123456789abc --out answer.json",
    ),
)
def job() -> None:
    """Calls that outlive their request; each is run once, restarts or not."""


@job.command(
    "submit",
    examples=(
        "appliance job submit demo/x --data '[[1, 2, 3]]'",
        "appliance job submit demo/x:3 --data rows.json --wait",
        "appliance job submit demo/x --data rows.json --idempotency-key night-2026-01-31",
        "appliance job submit demo/x --data rows.json --webhook https://etl.example.com/in",
    ),
)
@click.argument("name", metavar="TENANT/NAME[:VERSION|@ALIAS]")
@click.option("--data", default="-", show_default=True, help="A file, - for stdin, or JSON itself.")
@click.option("--content-type", default="application/json", show_default=True)
@click.option(
    "--idempotency-key",
    default="",
    help="The same key and request give the same job; may run twice if a restart cuts it off.",
)
@click.option("--webhook", default="", metavar="URL", help="Tell this https address of the job.")
@click.option(
    "--webhook-event",
    "webhook_events",
    multiple=True,
    type=click.Choice(["start", "output", "logs", "completed"]),
    help="Of this; start and completed if none is given.",
)
@click.option("--wait", "is_waiting", is_flag=True, help="Wait for its end and show it.")
@pass_context
def submit(
    context: Context,
    name: str,
    data: str,
    content_type: str,
    idempotency_key: str,
    webhook: str,
    webhook_events: tuple[str, ...],
    is_waiting: bool,
) -> None:
    """Call a model without waiting for the answer.

    A webhook is signed with the tenant's secret for jobs ('webhook create TENANT --for-jobs').
    """
    target = reference(name)
    headers = {"Content-Type": content_type, "Prefer": "respond-async"}
    if idempotency_key:
        headers["Idempotency-Key"] = idempotency_key
    if webhook:
        headers["Webhook"] = webhook
    if webhook_events:
        headers["Webhook-Events-Filter"] = ",".join(webhook_events)
    with context.client(timeout_s=900) as client:
        document = client.request(
            "POST", f"{target.target}/invoke", content=body_of(data), headers=headers
        ).json()
        if is_waiting:
            document = following.ended(client, document)
    if is_waiting:
        _show_end(context, document)
        return
    place = f"{document['tenant']}/{document['id']}"
    context.output.data(document, f"{place}  {document['status']}")
    context.output.say(f"appliance job wait {place}")


@job.command(
    "list",
    examples=("appliance job list demo", "appliance job list demo --status failed --model x"),
)
@click.argument("tenant")
@click.option(
    "--status", type=click.Choice(["starting", "processing", *following.ENDS]), help="Only these."
)
@click.option("--model", help="Only jobs of this model.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
@pass_context
def list_(context: Context, tenant: str, status: str | None, model: str | None, limit: int) -> None:
    """List jobs, newest first."""
    with context.client() as client:
        document = client.get(
            f"/api/v1/jobs/{segment(tenant)}", status=status, model=model, limit=limit
        )
    rows = [{**item, "code": (item["error"] or {}).get("code")} for item in document["items"]]
    context.output.table(
        document,
        rows,
        (
            ("JOB", "id"),
            ("STATUS", "status"),
            ("MODEL", "model"),
            ("VERSION", "version"),
            ("CREATED", "created_at"),
            ("COMPLETED", "completed_at"),
            ("ERROR", "code"),
        ),
        empty="no jobs: appliance job submit TENANT/NAME --data ...",
    )


@job.command("show", examples=("appliance job show demo/job_0123456789abc",))
@click.argument("name", metavar="TENANT/JOB")
@pass_context
def show(context: Context, name: str) -> None:
    """Show a job."""
    with context.client() as client:
        document = client.get(_path(name))
    context.output.data(document, _lines(document))


@job.command("wait", examples=("appliance job wait demo/job_0123456789abc --timeout 600",))
@click.argument("name", metavar="TENANT/JOB")
@click.option("--timeout", type=click.IntRange(min=1), help="Give up after so many seconds.")
@pass_context
def wait(context: Context, name: str, timeout: int | None) -> None:
    """Wait for a job's end; ends with an error if the job failed or was cancelled."""
    with context.client(timeout_s=120) as client:
        document = following.ended(client, client.get(_path(name)), timeout_s=timeout)
    _show_end(context, document)


@job.command("cancel", examples=("appliance job cancel demo/job_0123456789abc",))
@click.argument("name", metavar="TENANT/JOB")
@pass_context
def cancel(context: Context, name: str) -> None:
    """Cancel a job; one that has ended stays as it is."""
    with context.client() as client:
        document = client.send("POST", f"{_path(name)}/cancel")
    context.output.data(document, f"{name}  {document['status']}")


@job.command(
    "output",
    examples=(
        "appliance job output demo/job_0123456789abc",
        "appliance job output demo/job_0123456789abc --out answer.json",
    ),
)
@click.argument("name", metavar="TENANT/JOB")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write it here.")
@pass_context
def output(context: Context, name: str, out: Path | None) -> None:
    """Print what the model answered, as it answered it."""
    with context.client(timeout_s=following.TIMEOUT_S) as client:
        following.fetch(client, f"{_path(name)}/output", out)
    if out is not None:
        context.output.say(f"wrote {out}")


def _path(name: str) -> str:
    match = _REFERENCE.match(name)
    if match is None:
        raise click.UsageError(f"'{name}' is not TENANT/JOB, such as demo/job_0123456789abc.")
    return f"/api/v1/jobs/{segment(match[1])}/{segment(match[2])}"


def _show_end(context: Context, document: dict[str, Any]) -> None:
    """Print how the job stands; a problem of the job is a problem of the command."""
    place = f"{document['tenant']}/{document['id']}"
    context.output.data(document, _lines(document))
    require_succeeded(document, "job")
    if document["status"] == "succeeded":
        context.output.say(f"appliance job output {place}")


def _lines(document: dict[str, Any]) -> str:
    metrics = document["metrics"]
    shown = {
        "job": f"{document['tenant']}/{document['id']}",
        "status": document["status"],
        "model": f"{document['tenant']}/{document['model']}:{document['version']}",
        "created": f"{document['created_at']} by {document['created_by']}",
        "started": document["started_at"],
        "completed": document["completed_at"],
        "input": f"{document['input_bytes']} bytes of {document['input_type']}",
        "waited": metrics["queue_ms"] is not None and f"{metrics['queue_ms']} ms",
        "ran": metrics["run_ms"] is not None and f"{metrics['run_ms']} ms",
        "attempts": metrics["attempts"] if metrics["attempts"] > 1 else None,
        "output": document["output_type"]
        and f"{document['output_bytes']} bytes of {document['output_type']}",
        "error": document["error"]
        and f"{document['error']['code']}: {document['error']['detail']}",
        "audit entry": document["audit_seq"],
    }
    return "\n".join(f"{name:<12} {value}" for name, value in shown.items() if value)
