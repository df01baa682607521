"""Any sequence of commands: memory, a replay of the ledger and the projection agree."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from storing import ACTOR, SETTINGS, Folder, artifact, intent, manifest

from appliance import clock
from appliance.batch_records import Batch, BatchPart, BatchPlan
from appliance.errors import ApplianceError, NotFound
from appliance.events import (
    BaselineRemoved,
    BaselineSet,
    BatchAdvanced,
    BatchEnded,
    BatchesRemoved,
    BatchQueued,
    BatchStarted,
    DeliveryAttempted,
    DriftBreached,
    DriftRecovered,
    ScheduleCreated,
    SchedulePaused,
    ScheduleRan,
    ScheduleRemoved,
    ScheduleResumed,
    ScheduleStopped,
    ThresholdsSet,
    WebhookDisabled,
    WebhookEnabled,
)
from appliance.records import (
    ApiKey,
    Baseline,
    Blob,
    Breach,
    EgressRule,
    Parent,
    Route,
)
from appliance.standing import Sampling, Schedule, ScheduledBatch, ScheduleRun, Webhook
from appliance.store import Store
from appliance.store.state import registry_view
from appliance.traffic import all_to

PLAN = BatchPlan(source="csv", into="csv", form="rows", chunk_rows=1)
NAMES = st.sampled_from(["a", "b", "c"])
NUMBERS = st.integers(1, 3)
PROJECTED = ("tenants", "keys", "models", "versions", "aliases", "routes", "secrets")
"""What the projection has tables for; the rest of the registry is asked in memory only."""


class RegistryMachine(RuleBasedStateMachine):
    """Commands against a model of what must be true, on a real data folder."""

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.base = Path(tempfile.mkdtemp(prefix="store-machine-"))
        self.folder = Folder(self.base).make()
        self.expected: dict[str, dict[str, int]] = {}  # tenant name -> model name -> versions
        self.secrets: dict[tuple[str, str, str], bytes] = {}  # tenant id, model id, name -> value
        self.store: Store | None = None

    def run(self, work):
        return self.loop.run_until_complete(work)

    def attempt(self, work):
        """The result, or ``None`` if the command was refused."""
        try:
            return self.run(work)
        except ApplianceError:
            return None

    @initialize()
    def open(self):
        self.store = self.run(Store.open(self.folder.path, self.folder.root(), SETTINGS))

    def teardown(self):
        if self.store is not None:
            self.run(self.store.close())
        self.run(self.loop.shutdown_default_executor())
        self.loop.close()
        shutil.rmtree(self.base)

    @property
    def registry(self):
        return self.store.registry

    def tenant_id(self, name):
        tenant = self.registry.snapshot.tenant(name)
        return tenant.id if tenant else "ten_none"

    def model_id(self, tenant, name):
        model = self.registry.snapshot.model(self.tenant_id(tenant), name)
        return model.id if model else "mod_none"

    @rule(name=NAMES)
    def create_tenant(self, name):
        made = self.attempt(self.registry.create_tenant(name=name, actor=ACTOR))
        assert (made is None) == (name in self.expected)
        self.expected.setdefault(name, {})

    @rule(name=NAMES)
    def remove_tenant(self, name):
        self.attempt(self.registry.remove_tenant(tenant_id=self.tenant_id(name), actor=ACTOR))
        self.expected.pop(name, None)

    @rule(tenant=NAMES, name=NAMES, verb=st.sampled_from(["queue", "advance", "end", "remove"]))
    def change_batch(self, tenant, name, verb):
        tenant_id = self.tenant_id(tenant)
        known = self.registry.snapshot.batches(tenant_id)
        blob = Blob(id="b", size_bytes=1, digest="d")
        batch = Batch(
            id=clock.new_id("batch"), tenant_id=tenant_id, model_id=self.model_id(tenant, name),
            number=1, plan=PLAN, input=blob, columns=(("a", "BIGINT"),), rows=2, created_ns=1,
            created_by=ACTOR,
        )  # fmt: skip
        part = BatchPart(row=0, rows=1, failed=0, names=("p",), blob=blob)
        events = [BatchQueued(batch=batch)]
        if verb != "queue":
            if not known:
                return
            last = known[-1].id
            events = {
                "advance": [
                    BatchStarted(batch_id=last), BatchAdvanced(batch_id=last, part=part)
                ],
                "end": [BatchEnded(batch_id=last, status="failed", problem={"code": "gone"})],
                "remove": [BatchesRemoved(batch_ids=(last,))],
            }[verb]  # fmt: skip
        self.attempt(
            self.registry.change(lambda: events, tenant_id=tenant_id, actor=ACTOR, obj="o")
        )
        after = self.registry.snapshot.batches(tenant_id)
        change = {"queue": 1, "remove": -1}.get(verb, 0)
        assert len(after) == len(known) + (change if tenant in self.expected else 0)

    @rule(tenant=NAMES, name=NAMES, parent=st.none() | NAMES)
    def register(self, tenant, name, parent):
        known = self.registry.snapshot.newest(self.model_id(tenant, parent)) if parent else None
        edge = Parent(model_id=known.model_id, number=known.number) if known else None
        made = self.attempt(
            self.registry.register_version(
                tenant_id=self.tenant_id(tenant),
                model_name=name,
                manifest=manifest(tags={"k": "v"}),
                artifact=artifact(),
                runtime_digest="d",
                parents=(edge,) if edge else (),
                actor=ACTOR,
            )
        )
        assert (made is None) == (tenant not in self.expected)
        if made:
            models = self.expected[tenant]
            models[name] = models.get(name, 0) + 1
            assert made.number == models[name]

    @rule(tenant=NAMES, name=NAMES)
    def remove_model(self, tenant, name):
        model_id = self.model_id(tenant, name)
        self.attempt(self.registry.remove_model(model_id=model_id, actor=ACTOR))
        self.expected.get(tenant, {}).pop(name, None)

    @rule(tenant=NAMES, name=NAMES, number=NUMBERS)
    def retire(self, tenant, name, number):
        model_id = self.model_id(tenant, name)
        done = self.attempt(
            self.registry.retire_version(model_id=model_id, number=number, actor=ACTOR)
        )
        exists = number <= self.expected.get(tenant, {}).get(name, 0)
        route = self.registry.snapshot.route(model_id)
        is_routed = route is not None and route.arms[0].number == number
        assert (done is not None) == (exists and not is_routed)

    @rule(tenant=NAMES, name=NAMES, alias=NAMES, number=NUMBERS, revision=st.none() | NUMBERS)
    def set_alias(self, tenant, name, alias, number, revision):
        self.attempt(
            self.registry.set_alias(
                model_id=self.model_id(tenant, name),
                name=alias,
                number=number,
                revision=revision,
                reason="r",
                actor=ACTOR,
            )
        )

    @rule(tenant=NAMES, name=NAMES, alias=NAMES)
    def remove_alias(self, tenant, name, alias):
        model_id = self.model_id(tenant, name)
        self.attempt(self.registry.remove_alias(model_id=model_id, name=alias, actor=ACTOR))

    @rule(
        tenant=NAMES,
        name=NAMES,
        number=NUMBERS,
        state=st.sampled_from(["active", "held", "promoted", "removed"]),
        revision=st.none() | NUMBERS,
    )
    def change_route(self, tenant, name, number, state, revision):
        def make(snapshot, _current):
            if snapshot.version(self.model_id(tenant, name), number) is None:
                raise NotFound("no version")
            return Route(
                model_id="", tenant_id="", arms=all_to(number), state=state, set_ns=0, set_by=""
            )

        self.attempt(
            self.registry.routes.change(
                model_id=self.model_id(tenant, name), make=make, revision=revision, actor=ACTOR
            )
        )

    @rule(
        tenant=NAMES,
        name=NAMES,
        number=NUMBERS,
        kind=st.sampled_from([BaselineSet, BaselineRemoved, ThresholdsSet]),
        revision=st.none() | NUMBERS,
    )
    def change_baseline(self, tenant, name, number, kind, revision):
        blob = Blob(id="b", size_bytes=1, digest="d") if kind is not BaselineRemoved else None

        def make(current):
            if kind is not BaselineSet and current is None:
                raise NotFound("no baseline")
            return kind(
                baseline=Baseline(
                    model_id="", tenant_id="", number=0, blob=blob, plan_id=f"p{number}",
                    source="data", rows=1, inputs=1, outputs=0, set_ns=0, set_by="",
                )
            )  # fmt: skip

        model_id = self.model_id(tenant, name)
        known = self.registry.snapshot.last_baseline(model_id, number)
        made = self.attempt(
            self.registry.drift.change(
                model_id=model_id, number=number, make=make, revision=revision, actor=ACTOR
            )
        )
        if made:
            assert made[0].revision == (known.revision if known else 0) + 1
            assert self.registry.snapshot.last_baseline(model_id, number) == made[0]

    @rule(tenant=NAMES, name=NAMES, number=NUMBERS, feature=NAMES, is_over=st.booleans())
    def tell_breach(self, tenant, name, number, feature, is_over):
        model_id = self.model_id(tenant, name)
        breach = Breach(
            feature=feature, is_output=False, statistic="psi", value=1.0, threshold=0.5, rows=1,
            window_s=60, since_ns=1,
        )  # fmt: skip
        kind = DriftRecovered if is_over else DriftBreached
        self.run(
            self.registry.drift.tell(
                model_id=model_id,
                number=number,
                plan_id=f"p{number}",
                make=lambda _known: [kind(model_id=model_id, number=number, breach=breach)],
                actor=ACTOR,
            )
        )
        found = [one.feature for one in self.registry.snapshot.breaches(model_id, number)]
        has_baseline = self.registry.snapshot.baseline(model_id, number) is not None
        assert found.count(feature) == (has_baseline and not is_over)

    @rule(tenant=NAMES, name=NAMES, number=NUMBERS, warm=NUMBERS)
    def set_reservation(self, tenant, name, number, warm):
        self.attempt(
            self.registry.set_reservation(
                model_id=self.model_id(tenant, name), number=number, warm=warm, actor=ACTOR
            )
        )

    @rule(tenant=NAMES, name=NAMES, number=NUMBERS)
    def remove_reservation(self, tenant, name, number):
        model_id = self.model_id(tenant, name)
        self.attempt(
            self.registry.remove_reservation(model_id=model_id, number=number, actor=ACTOR)
        )

    @rule(tenant=NAMES, name=NAMES, weight=st.none() | NUMBERS)
    def sample(self, tenant, name, weight):
        model_id = self.model_id(tenant, name)
        if weight is None:
            self.attempt(self.registry.samplings.remove(model_id=model_id, actor=ACTOR))
            return
        draft = Sampling(
            model_id=model_id, tenant_id="", weight=weight, count_max=1, bytes_max=1, kept_s=1,
            set_ns=0, set_by="",
        )  # fmt: skip
        self.attempt(self.registry.samplings.set(draft, actor=ACTOR))

    @rule(tenant=NAMES, name=NAMES, before=st.just("") | NAMES)
    def add_egress_rule(self, tenant, name, before):
        tenant_id = self.tenant_id(tenant)
        rule = EgressRule(
            id=name,
            tenant_id=tenant_id,
            action="allow",
            host="x.test",
            reason="r",
            created_ns=1,
            created_by=ACTOR,
        )
        self.attempt(self.registry.add_egress_rule(rule=rule, before=before, actor=ACTOR))

    @rule(tenant=NAMES, name=NAMES)
    def remove_egress_rule(self, tenant, name):
        tenant_id = self.tenant_id(tenant)
        self.attempt(
            self.registry.remove_egress_rule(
                tenant_id=tenant_id, rule_id=name, reason="r", actor=ACTOR
            )
        )

    @rule(tenant=NAMES, name=NAMES, secret=NAMES, value=st.binary(min_size=1, max_size=40))
    def put_secret(self, tenant, name, secret, value):
        made = self.attempt(
            self.registry.secrets.put(
                tenant_id=self.tenant_id(tenant),
                model_name=name,
                name=secret,
                value=value,
                actor=ACTOR,
            )
        )
        assert (made is None) == (tenant not in self.expected)
        if made:
            self.expected[tenant].setdefault(name, 0)
            self.secrets[made.tenant_id, made.model_id, secret] = value

    @rule(tenant=NAMES, name=NAMES, secret=NAMES)
    def remove_secret(self, tenant, name, secret):
        model_id = self.model_id(tenant, name)
        known = self.registry.snapshot.secret(model_id, secret)
        removing = self.registry.secrets.remove(model_id=model_id, name=secret, actor=ACTOR)
        if known is None:
            with pytest.raises(NotFound):
                self.run(removing)
            return
        self.run(removing)
        del self.secrets[known.tenant_id, model_id, secret]
        with pytest.raises(NotFound):
            self.registry.secrets.value(known)

    @rule(tenant=NAMES, hook=NAMES, events=st.sets(st.sampled_from(["alias.set", "key.created"])))
    def create_webhook(self, tenant, hook, events):
        webhook = Webhook(
            id=hook,
            tenant_id=self.tenant_id(tenant),
            url="https://x.test/",
            events=tuple(sorted(events)),
            secrets=(),
            created_ns=1,
            created_by=ACTOR,
        )
        known = self.registry.snapshot.webhook(webhook.tenant_id, hook)
        if known is None:
            self.attempt(self.registry.webhooks.create(webhook, origin="o", actor=ACTOR))

    @rule(tenant=NAMES, hook=NAMES, how=st.sampled_from(["rotate", "remove", "off", "on"]))
    def change_webhook(self, tenant, hook, how):
        tenant_id = self.tenant_id(tenant)
        known = self.registry.snapshot.webhook(tenant_id, hook)
        hooks = self.registry.webhooks
        if how == "rotate":
            self.attempt(hooks.rotate(tenant_id, hook, overlap_s=9, actor=ACTOR))
        elif how == "remove":
            self.attempt(hooks.remove(tenant_id, hook, actor=ACTOR))
        elif known is not None:
            off = WebhookDisabled(webhook_id=hook, reason="command")
            events = [off if how == "off" else WebhookEnabled(webhook_id=hook)]
            self.run(
                self.registry.change(lambda: events, tenant_id=tenant_id, actor=ACTOR, obj=hook)
            )

    @rule(tenant=NAMES, name=NAMES, how=st.integers(0, 4), due_ns=NUMBERS)
    def change_schedule(self, tenant, name, how, due_ns):
        tenant_id = self.tenant_id(tenant)
        blob = artifact().blob
        fresh = Schedule(
            id=name,
            tenant_id=tenant_id,
            model_id=self.model_id(tenant, name),
            cron="0 2 * * *",
            timezone="UTC",
            content_type="text/plain",
            body=blob if due_ns % 2 else None,
            batch=None if due_ns % 2 else ScheduledBatch(plan=PLAN, taken_from="lake/{date}.csv"),
            run_as=ACTOR,
            since_ns=0,
            created_ns=1,
            created_by=ACTOR,
        )
        changes = (
            ScheduleRan(
                schedule_id=name, run=ScheduleRun(due_ns=due_ns, code="started", batch_id="batch_1")
            ),
            SchedulePaused(schedule_id=name),
            ScheduleResumed(schedule_id=name, run_as="k", since_ns=due_ns),
            ScheduleStopped(schedule_id=name, reason="key-revoked"),
            ScheduleRemoved(schedule_id=name),
        )
        known = self.registry.snapshot.schedule(tenant_id, name)
        events = [changes[how] if known else ScheduleCreated(schedule=fresh)]
        self.attempt(
            self.registry.change(lambda: events, tenant_id=tenant_id, actor=ACTOR, obj=name)
        )

    @rule(tenant=NAMES, code=st.sampled_from(["ok", "http-500"]), next_ns=st.sampled_from([0, 5]))
    def attempt_deliveries(self, tenant, code, next_ns):
        tenant_id = self.tenant_id(tenant)
        events = [
            DeliveryAttempted(
                delivery_id=one.id,
                webhook_id=one.webhook_id,
                attempt=one.attempts + 1,
                code=code,
                status=0,
                took_ms=1,
                next_ns=next_ns,
            )
            for one in self.registry.snapshot.deliveries(tenant_id)
            if one.state == "waiting"
        ]
        self.attempt(
            self.registry.change(lambda: events, tenant_id=tenant_id, actor=ACTOR, obj=tenant_id)
        )

    @rule(tenant=st.none() | NAMES, key_id=NAMES)
    def create_key(self, tenant, key_id):
        key = ApiKey(
            id=key_id,
            tenant_id=self.tenant_id(tenant) if tenant else "",
            name="n",
            role="owner",
            mac="00",
            scopes=("model:invoke",),
            created_ns=1,
            created_by=ACTOR,
            expires_ns=2,
        )
        self.attempt(self.registry.create_key(key=key, actor=ACTOR))

    @rule(key_id=NAMES)
    def revoke_key(self, key_id):
        self.attempt(self.registry.revoke_key(key_id=key_id, actor=ACTOR))

    @rule(count=st.integers(1, 5))
    def call(self, count):
        for number in range(count):
            self.run(self.store.ledger.append(intent(number), actor=ACTOR))

    @rule(keep_snapshot=st.booleans(), keep_database=st.booleans())
    def restart(self, keep_snapshot, keep_database):
        before = registry_view(self.registry.snapshot)
        self.run(self.store.close())
        if not keep_snapshot:
            (self.folder.path / "registry.snap").unlink()
        if not keep_database:
            shutil.rmtree(self.folder.path / "db")
        self.open()
        assert registry_view(self.registry.snapshot) == before

    @rule()
    def crash(self):
        """The folder as it stands at this moment, opened elsewhere."""
        copy = self.folder.copy(self.base / "crash")

        async def check():
            async with copy.open() as store:
                assert registry_view(store.registry.snapshot) == registry_view(
                    self.registry.snapshot
                )

        self.run(check())

    @rule()
    def project(self):
        store = self.store
        assert self.run(store.queries.wait(store.ledger.head.size, 10))
        rows = store._projection._rows.snapshot(store._projection.query)
        found, wanted = registry_view(rows), registry_view(self.registry.snapshot)
        assert {k: found[k] for k in PROJECTED} == {k: wanted[k] for k in PROJECTED}

    @invariant()
    def memory_holds_what_was_accepted(self):
        if self.store is None:
            return
        snapshot = self.registry.snapshot
        found = {
            t.name: {m.name: len(snapshot.versions(m.id)) for m in snapshot.models(t.id)}
            for t in snapshot.tenants()
        }
        assert found == self.expected

    @invariant()
    def exactly_the_secrets_that_are_set_can_be_read(self):
        if self.store is None:
            return
        snapshot, keyring = self.registry.snapshot, self.store.keyring
        living = {(t.id, m.id) for t in snapshot.tenants() for m in snapshot.models(t.id)}
        self.secrets = {at: value for at, value in self.secrets.items() if at[:2] in living}
        found = {
            (tenant_id, model_id, secret.name): secret
            for tenant_id, model_id in living
            for secret in snapshot.secrets(model_id)
        }
        read = {at: self.registry.secrets.value(secret) for at, secret in found.items()}
        assert read == self.secrets
        for tenant_id in {tenant_id for tenant_id, _ in living}:
            kept = {one for one in keyring.object_ids(tenant_id) if one.startswith("sec_")}
            signing = {s.id for hook in snapshot.webhooks(tenant_id) for s in hook.secrets}
            models = {s.id for at, s in found.items() if at[0] == tenant_id}
            assert kept == models | signing


TestRegistryMachine = RegistryMachine.TestCase
TestRegistryMachine.settings = settings(
    max_examples=12,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
