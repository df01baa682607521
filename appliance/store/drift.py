"""What events do to versions' baselines and breaches.

Owns: ``apply_drift``, the one place where an event changes a baseline or a breach.
Never: counts or judges (``appliance.watch``), appends to the ledger, or reads a baseline's blob.
Read next: ``state`` (keeps them), ``baselines`` (the commands), ``sketches`` (what was counted).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from appliance.events import (
    BaselineRemoved,
    BaselineSet,
    DriftBreached,
    DriftRecovered,
    Event,
    ThresholdsSet,
)
from appliance.records import Baseline, Breach

DRIFT_EVENTS: dict[str, type[Event]] = {
    cls.KIND: cls
    for cls in (BaselineSet, BaselineRemoved, ThresholdsSet, DriftBreached, DriftRecovered)
}
Place = tuple[str, int]
"""A version: its model's id and its number."""


@dataclass(frozen=True, slots=True)
class DriftTables:
    """Every version's last baseline, and its open breaches."""

    baselines: Mapping[Place, Baseline] = field(default_factory=dict)
    breaches: Mapping[Place, tuple[Breach, ...]] = field(default_factory=dict)

    def without(self, model_id: str) -> DriftTables:
        """What is left once a model is gone."""
        return DriftTables(
            {place: one for place, one in self.baselines.items() if place[0] != model_id},
            {place: some for place, some in self.breaches.items() if place[0] != model_id},
        )


def apply_drift(tables: DriftTables, event: Event) -> DriftTables:
    """Baselines and breaches after a durable event.

    Raises:
        KeyError: it is none of ``DRIFT_EVENTS``.
    """
    match event:
        case BaselineSet(baseline=one) | BaselineRemoved(baseline=one):
            place = (one.model_id, one.number)
            open_still = {k: v for k, v in tables.breaches.items() if k != place}
            return DriftTables({**tables.baselines, place: one}, open_still)
        case ThresholdsSet(baseline=one):
            place = (one.model_id, one.number)
            return DriftTables({**tables.baselines, place: one}, tables.breaches)
        case DriftBreached(model_id=model_id, number=number, breach=breach):
            place = (model_id, number)
            known = [one for one in tables.breaches.get(place, ()) if one.key != breach.key]
            return DriftTables(tables.baselines, {**tables.breaches, place: (*known, breach)})
        case DriftRecovered(model_id=model_id, number=number, breach=breach):
            place = (model_id, number)
            left = tuple(b for b in tables.breaches.get(place, ()) if b.key != breach.key)
            others = {k: v for k, v in tables.breaches.items() if k != place}
            return DriftTables(tables.baselines, {**others, place: left} if left else others)
        case _:
            raise KeyError(event.KIND)
