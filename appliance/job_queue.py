"""Which job runs next: tenants in turn, each one's oldest first, none before its time.

Owns: the jobs that wait, and until when those that found no room are left alone.
Never: starts a job, or knows how much room there is.
Read next: ``jobs`` (who asks).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable

from appliance.records import Job

_RETRY_S_MAX = 30.0


class JobQueue:
    """The jobs that wait for their turn."""

    def __init__(self) -> None:
        self._by_tenant: OrderedDict[str, OrderedDict[str, Job]] = OrderedDict()
        self._held: dict[str, tuple[float, float]] = {}  # job: (until, the last wait)

    def __len__(self) -> int:
        return sum(len(jobs) for jobs in self._by_tenant.values())

    def add(self, job: Job) -> None:
        """Let a job wait behind the others of its tenant."""
        self._by_tenant.setdefault(job.tenant_id, OrderedDict())[job.id] = job

    def add_later(self, job: Job) -> None:
        """Let a job that found no room wait again, and longer each time."""
        wait_s = min(max(self._held.get(job.id, (0.0, 0.5))[1] * 2, 1.0), _RETRY_S_MAX)
        self._held[job.id] = (asyncio.get_running_loop().time() + wait_s, wait_s)
        self.add(job)

    def take(self, job: Job) -> None:
        """It is about to run: it waits no more, but how long it was left alone is known still."""
        jobs = self._by_tenant.get(job.tenant_id, OrderedDict())
        jobs.pop(job.id, None)
        if not jobs:
            self._by_tenant.pop(job.tenant_id, None)

    def forget(self, job: Job) -> None:
        """It ended, or will never run."""
        self.take(job)
        self._held.pop(job.id, None)

    def next(self, has_room: Callable[[Job], bool]) -> Job | None:
        """The job to start now, which still waits; ``None`` if there is room for none."""
        now = asyncio.get_running_loop().time()
        for tenant_id, jobs in self._by_tenant.items():
            for job in jobs.values():
                if self._held.get(job.id, (0.0, 0.0))[0] <= now and has_room(job):
                    self._by_tenant.move_to_end(tenant_id)
                    return job
        return None
