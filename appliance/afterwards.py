"""What is done with a call once it was answered: counted for drift, and kept where an owner asked.

Owns: that every call that somebody makes is treated alike, whether a caller made it, a model that
was called, a step of a pipeline, a job or a batch.
Never: delays or fails a call, but for those of batches, which wait their turn; does anything with
the calls of shadows, comparisons and replays: what they are asked was asked before, or is no call.
Read next: ``watch`` (drift), ``samples``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from appliance import clock
from appliance.invoke import Exchange
from appliance.records import Version
from appliance.samples import Sample, Samples
from appliance.watch import Watch


class Afterwards:
    """Treats answered calls; one per unsealed node."""

    def __init__(self, watch: Watch, samples: Samples) -> None:
        """Have them counted by one and kept by the other."""
        self._watch = watch
        self._samples = samples

    def works(self, version: Version, exchange: Exchange) -> list[Callable[[], None]]:
        """What is to be done once the answer left; mostly nothing."""
        found: list[Callable[[], None]] = []
        body, reply = exchange.body, exchange.outcome.reply
        if self._watch.wants_calls(version.model_id, version.number):
            offer = self._watch.offer_call
            found.append(functools.partial(offer, version, exchange.content_type, body, reply))
        if self._samples.wants_call(version.model_id):
            found.append(functools.partial(self._samples.offer, _sample(version, exchange)))
        return found

    def done(self, version: Version, exchange: Exchange) -> None:
        """Do it now; nobody waits for it."""
        for work in self.works(version, exchange):
            work()

    async def done_in_turn(self, version: Version, exchange: Exchange) -> None:
        """Do it once what waits to be counted has become less, so that none of many is dropped."""
        if self._watch.wants_calls(version.model_id, version.number):
            await self._watch.eased()
        self.done(version, exchange)


def _sample(version: Version, exchange: Exchange) -> Sample:
    outcome = exchange.outcome
    return Sample(
        call_id=exchange.call_id,
        parent=exchange.parent,
        model_id=version.model_id,
        tenant_id=version.tenant_id,
        number=version.number,
        time_ns=clock.now_ns(),
        took_us=outcome.total_us - outcome.queue_us - outcome.load_us,
        content_type=exchange.content_type,
        body=exchange.body,
        reply_type=outcome.content_type,
        reply=outcome.reply,
    )
