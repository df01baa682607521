"""The registry at one moment, as every reader sees it.

Owns: ``Snapshot``, the questions that can be asked of it.
Never: changes; ``state`` makes the next one.
Read next: ``state`` (how events make snapshots).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from appliance.batch_records import Batch
from appliance.records import (
    Alias,
    ApiKey,
    Baseline,
    Breach,
    EgressRule,
    Job,
    Model,
    Reservation,
    Route,
    Secret,
    Tenant,
    Version,
)
from appliance.standing import Delivery, Sampling, Schedule, Webhook
from appliance.store.batches import blobs_of_batch
from appliance.store.jobs import blobs_of
from appliance.store.tracking import NOTHING, Tracking

if TYPE_CHECKING:
    from appliance.store.state import Tables

ROUTE_ENDS = ("promoted", "removed")
"""States of the revision that ends a route."""


class Snapshot:
    """The registry at one moment; never changes. A missing thing is ``None``."""

    __slots__ = (
        "_aliases",
        "_batches",
        "_deliveries",
        "_drift",
        "_egress",
        "_jobs",
        "_keys",
        "_models",
        "_names",
        "_reservations",
        "_routes",
        "_samplings",
        "_schedules",
        "_secrets",
        "_tenants",
        "_tracking",
        "_versions",
        "_webhooks",
        "seq",
    )

    def __init__(self, tables: Tables) -> None:
        """Freeze the tables; they must not be changed afterwards."""
        self.seq = tables.seq
        self._tenants = tables.tenants
        self._keys = tables.keys
        self._models = tables.models
        self._names = tables.names
        self._versions = tables.versions
        self._aliases = tables.aliases
        self._reservations = tables.reservations
        self._routes = tables.routes
        self._egress = tables.egress
        self._secrets = tables.secrets
        self._jobs = tables.jobs
        self._drift = tables.drift
        self._schedules = tables.schedules
        self._webhooks = tables.webhooks
        self._deliveries = tables.deliveries
        self._tracking = tables.tracking
        self._batches = tables.batches
        self._samplings = tables.samplings

    def tenants(self) -> tuple[Tenant, ...]:
        """Every tenant, by name."""
        return tuple(sorted(self._tenants.values(), key=lambda t: t.name))

    def tenant(self, name: str) -> Tenant | None:
        """The tenant of a name."""
        found = self._names.get(("", name))
        return self._tenants.get(found) if found else None

    def tenant_by_id(self, tenant_id: str) -> Tenant | None:
        """The tenant of an id."""
        return self._tenants.get(tenant_id)

    def keys(self, tenant_id: str | None = None) -> tuple[ApiKey, ...]:
        """Keys of a tenant (``""``: appliance-wide ones, ``None``: all), oldest first."""
        return tuple(
            k for k in self._keys.values() if tenant_id is None or k.tenant_id == tenant_id
        )

    def key(self, key_id: str) -> ApiKey | None:
        """The key of an id, revoked or not."""
        return self._keys.get(key_id)

    def models(self, tenant_id: str | None = None) -> tuple[Model, ...]:
        """Models in service of a tenant (``None``: all), by name."""
        found = (
            m
            for m in self._models.values()
            if not m.removed_ns and (tenant_id is None or m.tenant_id == tenant_id)
        )
        return tuple(sorted(found, key=lambda m: (m.tenant_id, m.name)))

    def model(self, tenant_id: str, name: str) -> Model | None:
        """The model of a name."""
        found = self._names.get((tenant_id, name)) if tenant_id else None
        return self._models.get(found) if found else None

    def model_by_id(self, model_id: str) -> Model | None:
        """The model of an id; a removed one has ``removed_ns`` set."""
        return self._models.get(model_id)

    def versions(self, model_id: str) -> tuple[Version, ...]:
        """Versions of a model, oldest first, retired ones included."""
        return self._versions.get(model_id, ())

    def version(self, model_id: str, number: int) -> Version | None:
        """One version, retired or not."""
        versions = self._versions.get(model_id, ())
        if 1 <= number <= len(versions) and versions[number - 1].number == number:
            return versions[number - 1]  # no number was promised in vain
        return next((one for one in versions if one.number == number), None)

    def newest(self, model_id: str) -> Version | None:
        """The newest version, retired or not."""
        versions = self._versions.get(model_id, ())
        return versions[-1] if versions else None

    def next_number(self, model: Model) -> int:
        """The number of the model's next version: no number is ever given out twice."""
        newest = self._versions.get(model.id, ())
        promised = self.tracking(model.tenant_id).numbers.get(model.id, 0)
        return max(newest[-1].number if newest else 0, promised) + 1

    def aliases(self, model_id: str) -> tuple[Alias, ...]:
        """Aliases of a model, by name."""
        found = self._aliases.get(model_id, {})
        return tuple(found[name] for name in sorted(found))

    def alias(self, model_id: str, name: str) -> Alias | None:
        """One alias."""
        return self._aliases.get(model_id, {}).get(name)

    def route(self, model_id: str) -> Route | None:
        """The route of a model, as it is now; ``None`` where ``live`` decides."""
        found = self._routes.get(model_id)
        is_over = not found or found[-1].state in ROUTE_ENDS
        return None if found is None or is_over else found[-1]

    def routes(self) -> tuple[Route, ...]:
        """Every route there is now."""
        return tuple(one for model_id in self._routes if (one := self.route(model_id)))

    def route_history(self, model_id: str) -> tuple[Route, ...]:
        """The last revisions of a model's route, oldest first, those that ended it included."""
        return self._routes.get(model_id, ())

    def reservations(self) -> tuple[Reservation, ...]:
        """Every reservation, oldest first."""
        return tuple(sorted(self._reservations.values(), key=lambda one: one.set_ns))

    def reservation(self, model_id: str, number: int) -> Reservation | None:
        """The reservation of a version."""
        return self._reservations.get((model_id, number))

    def egress_rules(self, tenant_id: str) -> tuple[EgressRule, ...]:
        """A tenant's egress rules in the order they are tried."""
        return self._egress.get(tenant_id, ())

    def secrets(self, model_id: str) -> tuple[Secret, ...]:
        """Secrets of a model, by name; their values stay sealed."""
        found = self._secrets.get(model_id, {})
        return tuple(found[name] for name in sorted(found))

    def secret(self, model_id: str, name: str) -> Secret | None:
        """One secret."""
        return self._secrets.get(model_id, {}).get(name)

    def secret_ids(self, tenant_id: str) -> set[str]:
        """The ids of every secret of a tenant, of its models and of its webhooks."""
        found = (s for by_name in self._secrets.values() for s in by_name.values())
        signing = {s.id for hook in self.webhooks(tenant_id) for s in hook.secrets}
        return {s.id for s in found if s.tenant_id == tenant_id} | signing

    def sampling(self, model_id: str) -> Sampling | None:
        """Which calls of a model are kept; ``None`` for none, as by default."""
        return self._samplings.get(model_id)

    def jobs(self, tenant_id: str) -> tuple[Job, ...]:
        """A tenant's jobs, oldest first."""
        return tuple(self._jobs.get(tenant_id, {}).values())

    def job(self, tenant_id: str, job_id: str) -> Job | None:
        """One job."""
        return self._jobs.get(tenant_id, {}).get(job_id)

    def baseline(self, model_id: str, number: int) -> Baseline | None:
        """What a version's calls are compared with."""
        found = self._drift.baselines.get((model_id, number))
        return found if found is not None and found.blob is not None else None

    def last_baseline(self, model_id: str, number: int) -> Baseline | None:
        """The last revision of a version's baseline, a removed one included."""
        return self._drift.baselines.get((model_id, number))

    def baselines(self) -> tuple[Baseline, ...]:
        """Every baseline there is now."""
        return tuple(one for one in self._drift.baselines.values() if one.blob is not None)

    def learning(self, model_id: str, number: int) -> Baseline | None:
        """The baseline of a version that is still to be learned from its calls."""
        found = self._drift.baselines.get((model_id, number))
        return found if found is not None and found.source == "learning" else None

    def baselines_in(self, tenant_id: str) -> int:
        """How many versions of a tenant have a baseline, or are to get one."""
        known = self._drift.baselines.values()
        return sum(one.tenant_id == tenant_id and one.source != "removed" for one in known)

    def breaches(self, model_id: str, number: int) -> tuple[Breach, ...]:
        """A version's open breaches, oldest first."""
        return self._drift.breaches.get((model_id, number), ())

    def schedules(self, tenant_id: str) -> tuple[Schedule, ...]:
        """A tenant's schedules, oldest first."""
        return tuple(self._schedules.get(tenant_id, {}).values())

    def schedule(self, tenant_id: str, schedule_id: str) -> Schedule | None:
        """One schedule."""
        return self._schedules.get(tenant_id, {}).get(schedule_id)

    def webhooks(self, tenant_id: str) -> tuple[Webhook, ...]:
        """A tenant's webhooks, oldest first."""
        return tuple(self._webhooks.get(tenant_id, {}).values())

    def webhook(self, tenant_id: str, webhook_id: str) -> Webhook | None:
        """One webhook."""
        return self._webhooks.get(tenant_id, {}).get(webhook_id)

    def deliveries(self, tenant_id: str) -> tuple[Delivery, ...]:
        """What a tenant's webhooks are or were told, as far as it is kept; oldest first."""
        return tuple(self._deliveries.get(tenant_id, {}).values())

    def delivery(self, tenant_id: str, delivery_id: str) -> Delivery | None:
        """One delivery."""
        return self._deliveries.get(tenant_id, {}).get(delivery_id)

    def tracking(self, tenant_id: str) -> Tracking:
        """A tenant's runs, drafts, files, notes and promised versions."""
        return self._tracking.get(tenant_id, NOTHING)

    def batches(self, tenant_id: str) -> tuple[Batch, ...]:
        """A tenant's batches, oldest first."""
        return tuple(self._batches.get(tenant_id, {}).values())

    def batch(self, tenant_id: str, batch_id: str) -> Batch | None:
        """One batch."""
        return self._batches.get(tenant_id, {}).get(batch_id)

    def blob_ids(self) -> set[str]:
        """Blobs that a version (retired too), job, batch, baseline or schedule refers to."""
        found = {v.artifact.blob.id for vs in self._versions.values() for v in vs}
        for job in (job for by_id in self._jobs.values() for job in by_id.values()):
            found.update(blob.id for blob in blobs_of(job))
        for batch in (batch for by_id in self._batches.values() for batch in by_id.values()):
            found.update(blob.id for blob in blobs_of_batch(batch))
        found.update(one.blob.id for one in self._drift.baselines.values() if one.blob)
        for by_id in self._schedules.values():
            found.update(schedule.body.id for schedule in by_id.values() if schedule.body)
        for tracking in self._tracking.values():
            found |= tracking.blob_ids()
        return found
