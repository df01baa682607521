"""Commands on which calls of a model are kept: on record before they are in force.

Owns: setting and ending a model's sampling.
Never: keeps a call (``appliance.samples``) or decides who may have calls kept.
Read next: ``writer`` (how a command runs).
"""

from __future__ import annotations

from dataclasses import replace

from appliance import clock
from appliance.errors import NotFound
from appliance.events import SamplingRemoved, SamplingSet
from appliance.standing import Sampling
from appliance.store.writer import Writer


class SamplingCommands:
    """The registry's commands on sampling."""

    def __init__(self, writer: Writer) -> None:
        """Give commands to ``writer``."""
        self._writer = writer

    async def set(self, draft: Sampling, *, actor: str) -> Sampling:
        """Have calls of a model kept; tenant and time are filled in. Raises NotFound."""

        async def command() -> Sampling:
            model = self._writer.model(draft.model_id)
            sampling = replace(
                draft, tenant_id=model.tenant_id, set_ns=clock.now_ns(), set_by=actor
            )
            event = SamplingSet(sampling=sampling)
            await self._writer.commit(event, model.tenant_id, actor, model.id)
            return sampling

        return await self._writer.run(command())

    async def remove(self, *, model_id: str, actor: str) -> None:
        """Have no more calls of a model kept. Raises NotFound."""

        async def command() -> None:
            model = self._writer.model(model_id)
            if self._writer.snapshot.sampling(model_id) is None:
                raise NotFound("No calls of this model are kept.")
            event = SamplingRemoved(model_id=model_id)
            await self._writer.commit(event, model.tenant_id, actor, model_id)

        await self._writer.run(command())
