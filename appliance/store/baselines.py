"""Commands on versions' baselines: every change is a revision; a breach is told once.

Owns: the next revision, the check of the one the caller saw, and that nothing is told of a baseline
that is not in force any more.
Never: counts or judges (``appliance.watch``), or decides who may set one.
Read next: ``drift`` (what the events do), ``writer`` (how a command runs), ``appliance.watch``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from appliance import clock
from appliance.errors import Gone, NotFound, RevisionStale
from appliance.events import BaselineRemoved, BaselineSet, Event, ThresholdsSet
from appliance.records import Baseline, Breach
from appliance.store.writer import Writer


class DriftCommands:
    """The registry's commands on baselines."""

    def __init__(self, writer: Writer) -> None:
        """Give commands to ``writer``."""
        self._writer = writer

    async def change(
        self,
        *,
        model_id: str,
        number: int,
        make: Callable[[Baseline | None], BaselineSet | BaselineRemoved | ThresholdsSet],
        revision: int | None = None,
        reason: str = "",
        actor: str,
    ) -> tuple[Baseline, Baseline | None]:
        """Make the next revision of a version's baseline.

        Args:
            model_id: the model.
            number: a version in service.
            make: the event, from the baseline in force; called while nothing else changes. Ids,
                revision, reason and time of its baseline are filled in.
            revision: the revision the caller saw (0: none); ``None`` does not check.
            reason: kept with the revision.
            actor: who asks.

        Returns:
            The new revision and the one it replaced.

        Raises:
            NotFound: there is no such model or version.
            Gone: the version is retired.
            RevisionStale: somebody changed the baseline since; who and when is told.
        """

        async def command() -> tuple[Baseline, Baseline | None]:
            snapshot = self._writer.snapshot
            model = self._writer.model(model_id)
            version = snapshot.version(model_id, number)
            if version is None:
                raise NotFound("There is no such version.")
            if version.retired_ns:
                raise Gone(f"Version {number} is retired.")
            last = snapshot.last_baseline(model_id, number)
            current = last if last is not None and last.source != "removed" else None
            _require_fresh(last, current, revision)
            event = make(current)
            baseline = replace(
                event.baseline,
                model_id=model_id,
                tenant_id=model.tenant_id,
                number=number,
                revision=last.revision + 1 if last else 1,
                reason=reason,
                set_ns=clock.now_ns(),
                set_by=actor,
            )
            made = replace(event, baseline=baseline)
            await self._writer.commit(made, model.tenant_id, actor, model_id)
            return baseline, current

        return await self._writer.run(command())

    async def tell(
        self,
        *,
        model_id: str,
        number: int,
        plan_id: str,
        make: Callable[[tuple[Breach, ...]], list[Event]],
        actor: str,
    ) -> None:
        """Record what ``make`` finds from the open breaches, if the baseline is still of that plan.

        ``make`` returns breaches and recoveries.
        """

        async def command() -> None:
            snapshot = self._writer.snapshot
            current = snapshot.baseline(model_id, number)
            if current is None or current.plan_id != plan_id:
                return
            events = make(snapshot.breaches(model_id, number))
            if events:
                await self._writer.commit(events, current.tenant_id, actor, model_id)

        await self._writer.run(command())


def _require_fresh(last: Baseline | None, current: Baseline | None, revision: int | None) -> None:
    known = current.revision if current else 0
    if revision is None or revision == known:
        return
    if last is None:
        raise RevisionStale(
            f"The version has no baseline; yours was revision {revision}.", revision=0
        )
    at = clock.text_from_ns(last.set_ns)
    why = f" ({last.reason})" if last.reason else ""
    what = f"is at revision {last.revision}" if current else "was removed"
    raise RevisionStale(
        f"The baseline {what}, by {last.set_by} at {at}{why}; yours was revision {revision}.",
        hint="appliance drift show TENANT/MODEL@N",
        revision=known,
        set_by=last.set_by,
        set_at=at,
    )
