"""What events do to a tenant's jobs, and how the payloads of a job are told from all others.

Owns: ``apply_job``, the one place where an event changes a job; the head of a payload.
Never: runs a job (``appliance.jobs``), appends to the ledger, or reads a blob.
Read next: ``state`` (keeps the jobs), ``appliance.jobs`` (runs them).

Equal blobs of a tenant are stored once, so a payload begins with its job's id: no two are equal,
none can be told from another job's, and one is deleted without asking who else has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from appliance.events import (
    Event,
    JobEnded,
    JobPrinted,
    JobQueued,
    JobRequeued,
    JobsRemoved,
    JobStarted,
)
from appliance.records import Blob, Job

JOB_EVENTS: dict[str, type[Event]] = {
    cls.KIND: cls for cls in (JobQueued, JobStarted, JobPrinted, JobRequeued, JobEnded, JobsRemoved)
}
_INPUT, _OUTPUT = b"i", b"o"


def head_of(job_id: str, *, is_output: bool = False) -> bytes:
    """What a payload of this job begins with."""
    return job_id.encode() + (_OUTPUT if is_output else _INPUT)


def head_of_printed(job_id: str, first: int) -> bytes:
    """What the lines that a job printed, from this one on, begin with."""
    return f"{job_id}l{first:012d}".encode()


def apply_job(jobs: Mapping[str, Job], event: Event, time_ns: int) -> dict[str, Job]:
    """A tenant's jobs after a durable event; ``time_ns`` is its entry's.

    Raises:
        KeyError: the event is about a job there is none of.
    """
    found = dict(jobs)
    match event:
        case JobQueued(job=job):
            found[job.id] = job
        case JobStarted(job_id=job_id):
            job = found[job_id]
            found[job_id] = replace(
                job, status="processing", attempts=job.attempts + 1, started_ns=time_ns
            )
        case JobPrinted(job_id=job_id, printed=printed):
            job = found[job_id]
            found[job_id] = replace(job, printed=(*job.printed, printed))
        case JobRequeued(job_id=job_id):
            found[job_id] = replace(found[job_id], status="starting", started_ns=0)
        case JobEnded(job_id=job_id, end=end):
            found[job_id] = replace(found[job_id], status=end.status, ended_ns=time_ns, end=end)
        case JobsRemoved(job_ids=job_ids):
            for job_id in job_ids:
                del found[job_id]
        case _:
            raise KeyError(event.KIND)
    return found


def blobs_of(job: Job) -> tuple[Blob, ...]:
    """The payloads a job has: its input, what it printed and, when it has one, its output."""
    output = (job.end.output,) if job.end and job.end.output else ()
    return (job.input, *(one.blob for one in job.printed), *output)
