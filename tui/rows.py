"""Rows of the views as the server sends them, one shape for each screen.

Owns: their shapes.
Never: reads or draws one.
Read next: ``client`` (carries them), ``tests/tui/test_contract.py`` (holds them to the server).
"""

from __future__ import annotations

from typing import Any, TypedDict


class TenantRow(TypedDict):
    """One row of view ``tenants``."""

    id: str
    name: str
    isolation: str
    models: int
    keys: int
    calls_15m: int
    storage_bytes: int
    created_at: str
    created_by: str


class KeyRow(TypedDict):
    """One row of view ``keys``; ``tenant`` is empty for appliance-wide keys."""

    id: str
    tenant: str
    name: str
    role: str
    scopes: list[str]
    state: str
    created_at: str
    created_by: str
    expires_at: str
    last_used_at: str | None


class EgressRow(TypedDict):
    """One row of view ``egress``: a rule; ``position`` counts from 1 within its tenant."""

    id: str
    tenant: str
    position: int
    model: str
    action: str
    host: str
    ports: list[str]
    protocol: str
    reason: str
    note: str
    created_at: str
    created_by: str


class RouteRow(TypedDict):
    """One row of view ``routes``: a version of a route; what is not the version's is the route's.

    ``percent`` is None for a shadow, ``against`` the version the others are compared with.
    """

    tenant: str
    model: str
    version: int
    role: str
    percent: float | None
    calls: int
    error_percent: float
    p95_ms: float | None
    detail: str
    arms: list[dict[str, Any]]
    sticky: str
    shadows: list[int]
    canary: dict[str, Any] | None
    against: int
    complaint: str
    state: str
    revision: int
    reason: str
    set_at: str
    set_by: str


class ModelRow(TypedDict):
    """One row of view ``models``."""

    tenant: str
    model: str
    description: str
    versions: int
    newest: int | None
    live: int | None
    runtime: str
    size_bytes: int
    takes: list[str]
    gives: list[str]
    tags: dict[str, str]
    calls_15m: int
    errors_15m: int
    p95_ms: float | None
    created_at: str
    created_by: str


class VersionRow(TypedDict):
    """One row of view ``versions``."""

    tenant: str
    model: str
    version: int
    state: str
    runtime: str
    entry: str
    digest: str
    size_bytes: int
    aliases: list[str]
    warm: int
    warm_ready: int
    calls_15m: int
    errors_15m: int
    p95_ms: float | None
    created_at: str
    created_by: str


class AliasRow(TypedDict):
    """One member of ``aliases`` of view ``versions``; ``revision`` goes into If-Match."""

    name: str
    version: int
    revision: int
    reason: str
    set_at: str
    set_by: str


class SandboxRow(TypedDict):
    """One row of view ``sandboxes``."""

    id: str
    tenant: str
    model: str
    version: int
    state: str
    pid: int
    created_at: str
    last_used_at: str | None
    calls: int
    rss_bytes: int
    memory_bytes: int
    cpu_ms: int
    gpus: list[str]
    gpu_memory_bytes: int


class GpuRow(TypedDict):
    """One row of view ``gpus``; ``None`` is what nothing tells."""

    id: str
    index: str
    name: str
    vendor: str
    state: str
    tenant: str
    driver: str
    memory_bytes: int | None
    allocated_bytes: int
    used_bytes: int | None
    busy_percent: int | None


class RuntimeRow(TypedDict):
    """One row of view ``runtimes``; ``signer`` is empty for one built here.

    Beside the rows are ``sets``, ``builds`` (registrations), ``jobs`` and ``available``.
    """

    name: str
    kind: str
    digest: str
    built_at: str
    size_bytes: int
    tree: str
    signer: str
    uses: list[dict[str, Any]]


class AuditRow(TypedDict):
    """One row of view ``audit``; ``leaf`` is the RFC 6962 leaf hash in hex."""

    seq: int
    time: str
    kind: str
    tenant: str
    actor: str
    object: str
    outcome: str
    leaf: str


class BusyRow(TypedDict):
    """One row of view ``dashboard``: a model by calls."""

    tenant: str
    model: str
    live: int | None
    calls: int
    errors: int
    p95_ms: float | None
    runtime: str


class DriftRow(TypedDict):
    """One row of view ``drift``: a version with a baseline; ``state`` is warn, ok or off (few).

    ``feature``, ``statistic``, ``value`` and ``threshold`` are of its worst score.
    """

    tenant: str
    model: str
    version: int
    state: str
    rows: int
    window_s: int
    columns: int
    breaches: int
    since: str | None
    feature: str
    statistic: str
    value: float | None
    threshold: float | None
    source: str
    baseline_rows: int
    revision: int
    set_at: str
    set_by: str


class JobRow(TypedDict):
    """One row of view ``jobs``; ``code`` is of the problem that ended it, empty for none."""

    id: str
    status: str
    tenant: str
    model: str
    version: int
    created_at: str
    created_by: str
    started_at: str | None
    completed_at: str | None
    input_bytes: int
    output_bytes: int | None
    metrics: dict[str, Any]
    webhook: str | None
    scheduled_by: str | None
    code: str


class BatchRow(TypedDict):
    """One row of view ``batches``; ``eta_s`` is None while nothing is known of its speed."""

    id: str
    status: str
    tenant: str
    model: str
    version: int
    source: str
    into: str
    rows: int
    rows_done: int
    rows_failed: int
    rows_per_s: float
    eta_s: float | None
    created_at: str
    created_by: str
    started_at: str | None
    completed_at: str | None
    input_bytes: int
    code: str


class ScheduleRow(TypedDict):
    """One row of view ``schedules``; ``next`` are times, ``last`` a run or None.

    A run has the ``status`` of its job or batch while that is kept; ``batch`` is the table that is
    scored each time, or None.
    """

    id: str
    tenant: str
    model: str
    target: str
    cron: str
    timezone: str
    state: str
    next: list[str]
    last: dict[str, Any] | None
    batch: dict[str, Any] | None
    catch_up: str
    overlap: bool
    repeatable: bool
    run_as: str
    created_at: str
    created_by: str


class WebhookRow(TypedDict):
    """One row of view ``webhooks``; an empty ``url`` is the secret of single jobs' webhooks."""

    id: str
    tenant: str
    url: str
    events: list[str]
    with_output: bool
    state: str
    failing_since: str | None
    waiting: int
    secrets: int
    created_at: str
    created_by: str


class DeliveryRow(TypedDict):
    """One row of view ``deliveries``; ``code`` is how the last attempt ended, None for none yet.

    Beside the rows is ``webhook``, whose they are.
    """

    id: str
    type: str
    state: str
    attempts: int
    code: str | None
    status: int | None
    to: str
    job: str | None
    queued_at: str
    next_at: str | None
    ended_at: str | None


class ComparisonRow(TypedDict):
    """One row of view ``comparisons``; ``done`` of ``total`` counts rows times targets."""

    id: str
    status: str
    source: str
    tenant: str
    targets: list[dict[str, Any]]
    rows: int
    done: int
    total: int
    created_at: str
    created_by: str
    started_at: str | None
    completed_at: str | None
    code: str


class SampleRow(TypedDict):
    """One row of view ``samples``: a model of which calls are kept."""

    tenant: str
    model: str
    percent: float
    days: int | None
    count_max: int | None
    bytes_max: int | None
    set_at: str | None
    set_by: str | None
    kept: int
    kept_bytes: int
    oldest_at: str | None
    dropped: int
