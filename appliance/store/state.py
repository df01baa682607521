"""The registry's state while it changes: the one place where an event does that.

Owns: ``Tables.apply`` and the sealed file ``registry.snap``.
Never: validates commands (``registry``) or appends to the ledger.
Read next: ``registry``; ``FORMAT.md`` section 4.
"""

from __future__ import annotations

import base64
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from appliance.batch_records import Batch
from appliance.errors import NotFound, StoreCorrupt
from appliance.events import (
    AliasRemoved,
    AliasSet,
    EgressRuleAdded,
    EgressRuleRemoved,
    Event,
    KeyCreated,
    KeyRevoked,
    ModelCreated,
    ModelRemoved,
    ReservationRemoved,
    ReservationSet,
    RouteRemoved,
    RouteSet,
    SamplingRemoved,
    SamplingSet,
    SecretRemoved,
    SecretSet,
    TenantCreated,
    TenantIsolationSet,
    TenantRemoved,
    VersionRegistered,
    VersionRetired,
)
from appliance.records import (
    Alias,
    ApiKey,
    Baseline,
    Breach,
    EgressRule,
    Entry,
    Job,
    Model,
    Reservation,
    Route,
    Secret,
    Tenant,
    Version,
)
from appliance.standing import Delivery, Sampling, Schedule, Webhook
from appliance.store.batches import BATCH_EVENTS, apply_batch, by_tenant
from appliance.store.drift import DRIFT_EVENTS, DriftTables, apply_drift
from appliance.store.jobs import JOB_EVENTS, apply_job
from appliance.store.keyring import Keyring
from appliance.store.schedules import SCHEDULE_EVENTS, apply_schedule
from appliance.store.seal import RootKey, box_open, box_seal, replace_file
from appliance.store.snapshot import Snapshot
from appliance.store.tracking import (
    NOTHING,
    TRACKING_EVENTS,
    Tracking,
    apply_tracking,
)
from appliance.store.verify import State, root_of
from appliance.store.webhooks import WEBHOOK_EVENTS, apply_webhook

_LOG = logging.getLogger(__name__)
_MAGIC = b"MASNAP01"
ROUTES_KEPT = 200
"""Revisions of a model's route that are at hand; the ledger has all of them."""

REGISTRY_EVENTS: dict[str, type[Event]] = (
    {
        cls.KIND: cls
        for cls in (
            TenantCreated,
            TenantIsolationSet,
            TenantRemoved,
            KeyCreated,
            KeyRevoked,
            ModelCreated,
            ModelRemoved,
            VersionRegistered,
            VersionRetired,
            AliasSet,
            AliasRemoved,
            ReservationSet,
            ReservationRemoved,
            RouteSet,
            RouteRemoved,
            EgressRuleAdded,
            EgressRuleRemoved,
            SecretSet,
            SecretRemoved,
            SamplingSet,
            SamplingRemoved,
        )
    }
    | JOB_EVENTS
    | DRIFT_EVENTS
    | SCHEDULE_EVENTS
    | WEBHOOK_EVENTS
    | TRACKING_EVENTS
    | BATCH_EVENTS
)
_BOTH = (VersionRegistered.KIND, ModelRemoved.KIND)


class Tables:
    """The same state while it is being changed."""

    __slots__ = (
        "aliases",
        "batches",
        "deliveries",
        "drift",
        "egress",
        "jobs",
        "keys",
        "models",
        "names",
        "reservations",
        "routes",
        "samplings",
        "schedules",
        "secrets",
        "seq",
        "tenants",
        "tracking",
        "versions",
        "webhooks",
    )

    def __init__(self) -> None:
        """Start empty."""
        self.seq = 0
        self.tenants: dict[str, Tenant] = {}
        self.keys: dict[str, ApiKey] = {}
        self.models: dict[str, Model] = {}
        self.names: dict[tuple[str, str], str] = {}
        self.versions: dict[str, tuple[Version, ...]] = {}
        self.aliases: dict[str, dict[str, Alias]] = {}
        self.reservations: dict[tuple[str, int], Reservation] = {}
        self.routes: dict[str, tuple[Route, ...]] = {}
        self.egress: dict[str, tuple[EgressRule, ...]] = {}
        self.secrets: dict[str, dict[str, Secret]] = {}
        self.jobs: dict[str, dict[str, Job]] = {}
        self.drift = DriftTables()
        self.schedules: dict[str, dict[str, Schedule]] = {}
        self.webhooks: dict[str, dict[str, Webhook]] = {}
        self.deliveries: dict[str, dict[str, Delivery]] = {}
        self.tracking: dict[str, Tracking] = {}
        self.batches: dict[str, dict[str, Batch]] = {}
        self.samplings: dict[str, Sampling] = {}

    @classmethod
    def of(cls, snapshot: Snapshot) -> Tables:
        """A copy that may be changed."""
        tables = cls()
        tables.seq = snapshot.seq
        tables.tenants = dict(snapshot._tenants)
        tables.keys = dict(snapshot._keys)
        tables.models = dict(snapshot._models)
        tables.names = dict(snapshot._names)
        tables.versions = dict(snapshot._versions)
        tables.aliases = dict(snapshot._aliases)
        tables.reservations = dict(snapshot._reservations)
        tables.routes = dict(snapshot._routes)
        tables.egress = dict(snapshot._egress)
        tables.secrets = dict(snapshot._secrets)
        tables.jobs = dict(snapshot._jobs)
        tables.drift = snapshot._drift
        tables.schedules = dict(snapshot._schedules)
        tables.webhooks = dict(snapshot._webhooks)
        tables.deliveries = dict(snapshot._deliveries)
        tables.tracking = dict(snapshot._tracking)
        tables.batches = dict(snapshot._batches)
        tables.samplings = dict(snapshot._samplings)
        return tables

    def freeze(self) -> Snapshot:
        """The snapshot of these tables, which must not be changed any more."""
        return Snapshot(self)

    def replay(self, entry: Entry, missing: set[str]) -> None:
        """Apply a stored entry, if it is one of the registry's.

        ``missing`` collects tenants whose sealed entries cannot be read; they must turn out to be
        removed later on.
        """
        cls = REGISTRY_EVENTS.get(entry.kind)
        if cls is None:
            return
        if entry.event is None:
            missing.add(entry.tenant_id)
            return
        if entry.tenant_id in missing and cls is not TenantRemoved:
            return
        try:
            event = msgspec.convert(entry.event, cls)
            self.apply(event, entry.seq, entry.time_ns, entry.tenant_id)
        except (msgspec.ValidationError, KeyError) as error:
            raise StoreCorrupt(f"Entry {entry.seq} ({entry.kind}) makes no sense.") from error
        if isinstance(event, TenantRemoved):
            missing.discard(event.tenant_id)

    def apply(self, event: Event, seq: int, time_ns: int, tenant_id: str = "") -> None:
        """Change the tables as a durable event says; time and tenant are the entry's."""
        self.seq = seq
        if event.KIND in TRACKING_EVENTS or (event.KIND in _BOTH and tenant_id in self.tracking):
            tracking = self.tracking.get(tenant_id, NOTHING)
            self.tracking[tenant_id] = apply_tracking(tracking, event, time_ns)
        if event.KIND in JOB_EVENTS:
            self.jobs[tenant_id] = apply_job(self.jobs.get(tenant_id, {}), event, time_ns)
        elif event.KIND in DRIFT_EVENTS:
            self.drift = apply_drift(self.drift, event)
        elif event.KIND in SCHEDULE_EVENTS:
            self.schedules[tenant_id] = apply_schedule(self.schedules.get(tenant_id, {}), event)
        elif event.KIND in WEBHOOK_EVENTS:
            known = self.webhooks.get(tenant_id, {}), self.deliveries.get(tenant_id, {})
            found = apply_webhook(*known, event, time_ns)
            self.webhooks[tenant_id], self.deliveries[tenant_id] = found
        elif event.KIND in BATCH_EVENTS:
            batches = self.batches.get(tenant_id, {})
            self.batches[tenant_id] = apply_batch(batches, event, time_ns)
        elif event.KIND not in TRACKING_EVENTS:
            self._apply(event, time_ns)

    def _apply(self, event: Event, time_ns: int) -> None:
        """The events on tenants, keys, models and versions."""
        match event:
            case TenantCreated(tenant=tenant):
                self.tenants[tenant.id] = tenant
                self.names["", tenant.name] = tenant.id
            case TenantIsolationSet(tenant_id=tenant_id, isolation=isolation):
                self.tenants[tenant_id] = replace(self.tenants[tenant_id], isolation=isolation)
            case TenantRemoved(tenant_id=tenant_id):
                self._remove_tenant(tenant_id)
            case KeyCreated(key=key):
                self.keys[key.id] = key
            case KeyRevoked(key_id=key_id):
                self.keys[key_id] = replace(self.keys[key_id], revoked_ns=time_ns)
            case ModelCreated(model=model):
                self.models[model.id] = model
                self.names[model.tenant_id, model.name] = model.id
            case ModelRemoved(model_id=model_id):
                self._remove_model(model_id, time_ns)
            case VersionRegistered(version=version):
                before = self.versions.get(version.model_id, ())
                self.versions[version.model_id] = (*before, version)
            case VersionRetired(model_id=model_id, number=number):
                self.versions[model_id] = tuple(
                    replace(one, retired_ns=time_ns) if one.number == number else one
                    for one in self.versions[model_id]
                )
                self.reservations.pop((model_id, number), None)
            case _:
                self._apply_named(event)

    def _apply_named(self, event: Event) -> None:
        """The events on what a model has by name: aliases and secrets."""
        match event:
            case AliasSet(alias=alias):
                aliases = self.aliases.get(alias.model_id, {})
                self.aliases[alias.model_id] = {**aliases, alias.name: alias}
            case AliasRemoved(model_id=model_id, name=name):
                aliases = dict(self.aliases[model_id])
                del aliases[name]
                self.aliases[model_id] = aliases
            case ReservationSet(reservation=one):
                self.reservations[one.model_id, one.number] = one
            case ReservationRemoved(model_id=model_id, number=number):
                del self.reservations[model_id, number]
            case RouteSet(route=route) | RouteRemoved(route=route):
                kept = (*self.routes.get(route.model_id, ()), route)
                self.routes[route.model_id] = kept[-ROUTES_KEPT:]
            case EgressRuleAdded(rule=rule, before=before):
                self._add_egress_rule(rule, before)
            case EgressRuleRemoved(tenant_id=tenant_id, rule_id=rule_id):
                self.egress[tenant_id] = tuple(r for r in self.egress[tenant_id] if r.id != rule_id)
            case SecretSet(secret=secret):
                found = self.secrets.get(secret.model_id, {})
                self.secrets[secret.model_id] = {**found, secret.name: secret}
            case SecretRemoved(model_id=model_id, name=name):
                found = self.secrets[model_id]
                self.secrets[model_id] = {n: s for n, s in found.items() if n != name}
            case _:
                self._apply_sampling(event)

    def _apply_sampling(self, event: Event) -> None:
        """The events on which calls of a model are kept."""
        match event:
            case SamplingSet(sampling=sampling):
                self.samplings[sampling.model_id] = sampling
            case SamplingRemoved(model_id=model_id):
                del self.samplings[model_id]
            case _:
                raise KeyError(event.KIND)

    def _add_egress_rule(self, rule: EgressRule, before: str) -> None:
        rules = list(self.egress.get(rule.tenant_id, ()))
        places = [at for at, known in enumerate(rules) if known.id == before]
        rules.insert(places[0] if places else len(rules), rule)
        self.egress[rule.tenant_id] = tuple(rules)

    def _remove_model(self, model_id: str, time_ns: int) -> None:
        model = self.models[model_id]
        self.models[model_id] = replace(model, removed_ns=time_ns)
        del self.names[model.tenant_id, model.name]
        self._forget(model_id)

    def _remove_tenant(self, tenant_id: str) -> None:
        tenant = self.tenants.pop(tenant_id, None)  # none: its creation is unreadable already
        if tenant is not None:
            del self.names["", tenant.name]
        self.egress.pop(tenant_id, None)
        for of_tenant in (self.jobs, self.batches, self.schedules, self.webhooks, self.deliveries):
            of_tenant.pop(tenant_id, None)
        self.tracking.pop(tenant_id, None)
        self.keys = {k: v for k, v in self.keys.items() if v.tenant_id != tenant_id}
        for model in [m for m in self.models.values() if m.tenant_id == tenant_id]:
            del self.models[model.id]
            self.names.pop((tenant_id, model.name), None)
            self._forget(model.id)

    def _forget(self, model_id: str) -> None:
        """Drop what belongs to a model that is gone."""
        self.versions.pop(model_id, None)
        self.aliases.pop(model_id, None)
        self.secrets.pop(model_id, None)
        self.routes.pop(model_id, None)
        self.samplings.pop(model_id, None)
        self.reservations = {k: v for k, v in self.reservations.items() if k[0] != model_id}
        self.drift = self.drift.without(model_id)


class _Open(msgspec.Struct):
    """The open breaches of one version."""

    model_id: str
    number: int
    breaches: tuple[Breach, ...]


class _Section(msgspec.Struct):
    """What ``registry.snap`` keeps under a tenant's own key."""

    models: list[Model]
    versions: list[tuple[Version, ...]]
    aliases: list[Alias]
    reservations: list[Reservation] = []
    egress: tuple[EgressRule, ...] = ()
    secrets: list[Secret] = []
    routes: list[Route] = []
    jobs: list[Job] = []
    baselines: list[Baseline] = []
    breaches: list[_Open] = []
    schedules: list[Schedule] = []
    webhooks: list[Webhook] = []
    deliveries: list[Delivery] = []
    tracking: Tracking = Tracking()
    batches: list[Batch] = []
    samplings: list[Sampling] = []


class _File(msgspec.Struct):
    v: int
    seq: int
    registry_seq: int
    segment: int
    offset: int
    chain: str
    frontier: list[str]
    time_ns: int
    signature: str
    tenants: list[Tenant]
    keys: list[ApiKey]
    sections: dict[str, str]


def save(path: Path, root: RootKey, keyring: Keyring, snapshot: Snapshot, at: State) -> None:
    """Replace ``registry.snap`` with the snapshot as of the ledger position. Blocking."""
    sections = {}
    for tenant in snapshot.tenants():
        models = [m for m in snapshot._models.values() if m.tenant_id == tenant.id]
        section = _Section(
            models=models,
            versions=[v for m in models if (v := snapshot.versions(m.id))],
            aliases=[a for m in models for a in snapshot.aliases(m.id)],
            reservations=[r for r in snapshot.reservations() if r.tenant_id == tenant.id],
            egress=snapshot.egress_rules(tenant.id),
            secrets=[s for m in models for s in snapshot.secrets(m.id)],
            routes=[r for m in models for r in snapshot.route_history(m.id)],
            jobs=list(snapshot.jobs(tenant.id)),
            baselines=[b for b in snapshot._drift.baselines.values() if b.tenant_id == tenant.id],
            breaches=[
                _Open(model_id=place[0], number=place[1], breaches=some)
                for place, some in snapshot._drift.breaches.items()
                if snapshot._models[place[0]].tenant_id == tenant.id
            ],
            schedules=list(snapshot.schedules(tenant.id)),
            webhooks=list(snapshot.webhooks(tenant.id)),
            deliveries=list(snapshot.deliveries(tenant.id)),
            tracking=snapshot.tracking(tenant.id),
            batches=list(snapshot.batches(tenant.id)),
            samplings=[s for m in models if (s := snapshot.sampling(m.id))],
        )
        box = keyring.seal(tenant.id, "snap", b"", msgspec.json.encode(section))
        sections[tenant.id] = base64.b64encode(box).decode()
    file = _File(
        v=1,
        seq=at.size,
        registry_seq=snapshot.seq,
        segment=at.segment,
        offset=at.offset,
        chain=at.chain.hex(),
        frontier=[h.hex() for h in at.frontier],
        time_ns=at.time_ns,
        signature=at.signature.hex(),
        tenants=list(snapshot._tenants.values()),
        keys=list(snapshot._keys.values()),
        sections=sections,
    )
    key = root.derive("registry-snap")
    replace_file(path, _MAGIC + box_seal(key, "snap", _MAGIC, msgspec.json.encode(file)))


def load(path: Path, root: RootKey, keyring: Keyring) -> tuple[Tables, State] | None:
    """The tables and ledger place of ``registry.snap``; ``None`` if it is absent or unusable."""
    try:
        data = path.read_bytes()
        if data[:8] != _MAGIC:
            raise ValueError("magic")
        plain = box_open(root.derive("registry-snap"), "snap", _MAGIC, data[8:])
        file = msgspec.json.decode(plain, type=_File)
        tables = Tables()
        for tenant in file.tenants:
            tables.tenants[tenant.id] = tenant
            tables.names["", tenant.name] = tenant.id
            box = base64.b64decode(file.sections[tenant.id])
            section = msgspec.json.decode(keyring.open(tenant.id, "snap", b"", box), type=_Section)
            _add(tables, section)
            if section.tracking != NOTHING:
                tables.tracking[tenant.id] = section.tracking
        tables.keys = {k.id: k for k in file.keys}
        tables.seq = file.registry_seq
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, NotFound, StoreCorrupt, msgspec.MsgspecError) as error:
        _LOG.warning("registry.snap is not usable (%s); replaying the whole ledger", error)
        return None
    frontier = [bytes.fromhex(h) for h in file.frontier]
    state = State(
        segment=file.segment,
        offset=file.offset,
        size=file.seq,
        chain=bytes.fromhex(file.chain),
        frontier=tuple(frontier),
        root=root_of(frontier),
        time_ns=file.time_ns,
        signature=bytes.fromhex(file.signature),
    )
    return tables, state


def _add(tables: Tables, section: _Section) -> None:
    for model in section.models:
        tables.models[model.id] = model
        if not model.removed_ns:
            tables.names[model.tenant_id, model.name] = model.id
    for versions in section.versions:
        tables.versions[versions[0].model_id] = versions
    for alias in section.aliases:
        tables.aliases.setdefault(alias.model_id, {})[alias.name] = alias
    for one in section.reservations:
        tables.reservations[one.model_id, one.number] = one
    if section.egress:
        tables.egress[section.egress[0].tenant_id] = section.egress
    for route in section.routes:
        tables.routes[route.model_id] = (*tables.routes.get(route.model_id, ()), route)
    for secret in section.secrets:
        tables.secrets.setdefault(secret.model_id, {})[secret.name] = secret
    _add_work(tables, section)


def _add_work(tables: Tables, section: _Section) -> None:
    for job in section.jobs:
        tables.jobs.setdefault(job.tenant_id, {})[job.id] = job
    known = tables.drift
    tables.drift = DriftTables(
        {**known.baselines, **{(b.model_id, b.number): b for b in section.baselines}},
        {**known.breaches, **{(o.model_id, o.number): o.breaches for o in section.breaches}},
    )
    for schedule in section.schedules:
        tables.schedules.setdefault(schedule.tenant_id, {})[schedule.id] = schedule
    for hook in section.webhooks:
        tables.webhooks.setdefault(hook.tenant_id, {})[hook.id] = hook
    for delivery in section.deliveries:
        tables.deliveries.setdefault(delivery.tenant_id, {})[delivery.id] = delivery
    tables.batches |= by_tenant(section.batches)
    tables.samplings.update({one.model_id: one for one in section.samplings})


def registry_view(snapshot: Snapshot) -> dict[str, Any]:
    """The whole state as plain data, for comparing two snapshots."""
    models = snapshot._models.values()
    return {
        "tenants": msgspec.to_builtins(snapshot.tenants()),
        "keys": msgspec.to_builtins(sorted(snapshot.keys(), key=lambda k: k.id)),
        "models": msgspec.to_builtins(sorted(models, key=lambda m: m.id)),
        "versions": {m.id: msgspec.to_builtins(snapshot.versions(m.id)) for m in models},
        "aliases": {m.id: msgspec.to_builtins(snapshot.aliases(m.id)) for m in models},
        "reservations": msgspec.to_builtins(snapshot.reservations()),
        "routes": {m.id: msgspec.to_builtins(snapshot.route_history(m.id)) for m in models},
        "egress": {
            t.id: msgspec.to_builtins(rules)
            for t in snapshot.tenants()
            if (rules := snapshot.egress_rules(t.id))
        },
        "samplings": {m.id: msgspec.to_builtins(snapshot.sampling(m.id)) for m in models},
        "secrets": {m.id: msgspec.to_builtins(snapshot.secrets(m.id)) for m in models},
        "jobs": {
            t.id: msgspec.to_builtins(jobs)
            for t in snapshot.tenants()
            if (jobs := snapshot.jobs(t.id))
        },
        "baselines": [
            msgspec.to_builtins(one) for _at, one in sorted(snapshot._drift.baselines.items())
        ],
        "breaches": [
            msgspec.to_builtins(some) for _at, some in sorted(snapshot._drift.breaches.items())
        ],
        "schedules": {
            t.id: msgspec.to_builtins(schedules)
            for t in snapshot.tenants()
            if (schedules := snapshot.schedules(t.id))
        },
        "webhooks": {
            t.id: msgspec.to_builtins((hooks, snapshot.deliveries(t.id)))
            for t in snapshot.tenants()
            if (hooks := snapshot.webhooks(t.id))
        },
        "tracking": {
            t.id: msgspec.to_builtins(tracking)
            for t in snapshot.tenants()
            if (tracking := snapshot.tracking(t.id)) != NOTHING
        },
        "batches": {
            t.id: msgspec.to_builtins(batches)
            for t in snapshot.tenants()
            if (batches := snapshot.batches(t.id))
        },
    }
