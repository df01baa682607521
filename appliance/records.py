"""The nouns: frozen records and the grammar of their names.

Owns: what a tenant, key, model, version, alias, blob and audit entry is, and which names are legal.
Never: does I/O, knows HTTP, or decides who may see a record.
Read next: ``events`` (what may happen to them), ``store.registry`` (where they live).

Every ``*_id`` is opaque and random; names are unique within their tenant and appear in URLs.
Times are wall-clock nanoseconds (``*_ns``); sizes are bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from appliance.errors import FieldError, InputInvalid
from appliance.targets import Step

NAME_PATTERN = r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$"
_NAME = re.compile(NAME_PATTERN)

LIVE = "live"
"""The alias an invoke without a version or alias resolves to; the first version gets it."""

Isolation = Literal["standard", "gvisor"]
ISOLATIONS: tuple[Isolation, ...] = ("standard", "gvisor")
"""How a sandbox is kept apart, weakest first: containers of the host's kernel, or a kernel each."""

Role = Literal["admin", "operator", "auditor", "owner", "caller"]
ROLES: tuple[Role, ...] = ("admin", "operator", "auditor", "owner", "caller")


def stronger(one: Isolation, other: Isolation) -> Isolation:
    """The stronger of two tiers."""
    return max(one, other, key=ISOLATIONS.index)


def require_name(name: str, noun: str) -> str:
    """The name itself, if it is a legal DNS-label-like name (RFC 1123, at most 63 characters).

    Raises:
        InputInvalid: it is not; the message names the noun and the grammar.
    """
    if not _NAME.match(name):
        raise InputInvalid(
            f"{noun} names are 1 to 63 of a-z, 0-9 and '-', not starting or ending with '-'.",
            fields=(FieldError(pointer=f"/{noun}", detail=f"not a legal {noun} name"),),
        )
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """The isolation unit: keys, models, blobs and sandboxes belong to exactly one.

    ``isolation`` is the least its sandboxes get; a version may ask for more.
    """

    id: str
    name: str
    created_ns: int
    created_by: str
    isolation: Isolation = "standard"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A bearer secret, kept as HMAC-SHA-256 only; ``tenant_id`` is empty if appliance-wide."""

    id: str
    tenant_id: str
    name: str
    role: Role
    mac: str
    scopes: tuple[str, ...] = ()
    created_ns: int
    created_by: str
    expires_ns: int
    revoked_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A sealed stored object: its id, plaintext size and plaintext ``sha256:`` digest."""

    id: str
    size_bytes: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactFile:
    """One file of an artifact, as it will appear under ``/model`` in the sandbox."""

    path: str
    size_bytes: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """The files of a version: one canonical tar stored as one blob, and its listing."""

    blob: Blob
    files: tuple[ArtifactFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one sandbox of a version may use.

    ``gpus`` are whole GPUs or partitions of one (MIG instances); ``gpu_memory_bytes`` is of each
    of them, 0 for all of it and shared with nobody.
    """

    memory_bytes: int = 512 * 1024 * 1024
    cpus: float = 1.0
    pids: int = 64
    tmp_bytes: int = 64 * 1024 * 1024
    gpus: int = 0
    gpu_memory_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CallLimits:
    """Deadlines and sizes of loading and calling a version.

    ``calls_max`` is how many calls of other models one call may make, ``call_depth_max`` how many
    levels of calls may be below it.
    """

    load_timeout_ms: int = 60_000
    invoke_timeout_ms: int = 30_000
    body_bytes_max: int = 16 * 1024 * 1024
    reply_bytes_max: int = 16 * 1024 * 1024
    calls_max: int = 32
    call_depth_max: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """Where a version came from, in its owner's words; ``Version.parents`` is what they name."""

    parents: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    code: str = ""
    run: str = ""


Protocol = Literal["oip", "sagemaker", "cog", "mlflow", "vertex", "http", "runner"]
PROTOCOLS: tuple[Protocol, ...] = ("oip", "sagemaker", "cog", "mlflow", "vertex", "http", "runner")


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """How a container of an imported image is started and spoken to (``[container]``).

    What is empty or 0 is as the image's import, or else its protocol, says. ``path`` is where calls
    go, ``health_path`` what answers when it is ready, ``model_path`` where the version's files are,
    ``model_name`` what the server inside calls its model.
    """

    protocol: str = ""
    port: int = 0
    command: tuple[str, ...] = ()
    path: str = ""
    health_path: str = ""
    model_path: str = ""
    model_name: str = ""
    environment: dict[str, str] = field(default_factory=dict)


AuditMode = Literal["strict", "overlap"]
"""Whether a call waits until its intent is durable, or its outcome waits for both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """How calls of a version may be joined (``[batch]``): its model takes rows of several at once.

    ``axis`` is the level of the nested lists that rows are (0 or 1); ``inputs`` and ``outputs``
    name the members of an object that hold rows, all of them where empty. No call of the model gets
    more than ``max_rows`` rows or ``max_bytes`` of bodies, but for one caller's own.
    ``max_queue_delay_us`` is how long a first call waits for others; ``None``: as little as pays.
    """

    axis: int = 0
    max_rows: int = 64
    max_bytes: int = 4 * 1024 * 1024
    max_queue_delay_us: int | None = None
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """The call of the model that answered a caller's call: how many it answered, with which rows.

    ``own_rows`` are the caller's own, 0 where its body has none. But for ``id``, what the runner
    claims.
    """

    id: str
    calls: int
    rows: int
    own_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a version declares about itself (``appliance.toml``), defaults filled in.

    ``container`` is there for versions of imported images, whose ``entry`` is empty.
    ``options`` are for the code that serves an entry of the form ``@convention``. Where nothing
    was declared, ``convention`` is what the appliance recognised and ``notes`` what it assumed.
    ``sample`` is the text of a body the model answered when it was registered. With ``check_input``
    a JSON body that breaks ``input_schema`` is refused before anything of the version runs.
    ``calls`` are the models it may call: whoever is not named there, it cannot. A version with
    ``steps`` is a pipeline, which answers with ``answer`` of what they answered.
    """

    runtime: str
    entry: str
    description: str = ""
    requirements: tuple[str, ...] = ()
    resources: Resources = field(default_factory=Resources)
    limits: CallLimits = field(default_factory=CallLimits)
    idle_timeout_s: int | None = None
    lineage: Lineage = field(default_factory=Lineage)
    input_schema: dict[str, Any] | None = None
    output_schema: dict[str, Any] | None = None
    check_input: bool = False
    tags: dict[str, str] = field(default_factory=dict)
    container: Container | None = None
    options: dict[str, Any] = field(default_factory=dict)
    convention: str = ""
    notes: tuple[str, ...] = ()
    sample: str = ""
    secrets: tuple[str, ...] = ()
    isolation: Isolation = "standard"
    batch: Batching | None = None
    audit: AuditMode = "strict"
    calls: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    answer: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One package a version was built with, asked for or drawn in by another.

    ``name`` is as its language writes it (``numpy``, ``@scope/name``, ``group:artifact``);
    ``digest`` is ``sha256:`` or ``sha512:`` with the hex of the file it was installed from.
    """

    name: str
    version: str
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A named thing that gets versions."""

    id: str
    tenant_id: str
    name: str
    description: str = ""
    created_ns: int
    created_by: str
    removed_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """An edge of the lineage: a version of the same tenant that another one was made from."""

    model_id: str
    number: int


Likeness = Literal["files", "most-files", "columns"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alike:
    """A version that was there already and is much like the one that keeps this note.

    ``share`` is how much of the larger one's bytes both have, in (0, 1]; 1 for the same columns.
    """

    model_id: str
    number: int
    kind: Likeness
    share: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """Immutable version ``number`` (1, 2, ...); ``deps_key`` is empty without requirements.

    ``lock`` is every package of its dependencies, exactly as they were when it was built.
    ``parents`` are those its manifest names, found; ``alike`` what was like it when it came.
    """

    model_id: str
    tenant_id: str
    number: int
    manifest: Manifest
    artifact: Artifact
    runtime_digest: str
    deps_key: str = ""
    lock: tuple[Package, ...] = ()
    parents: tuple[Parent, ...] = ()
    alike: tuple[Alike, ...] = ()
    created_ns: int
    created_by: str
    retired_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Alias:
    """A movable name for a version; ``revision`` counts its moves, for If-Match."""

    model_id: str
    tenant_id: str
    name: str
    number: int
    revision: int
    reason: str = ""
    set_ns: int
    set_by: str


WEIGHT_ALL = 10_000
"""All of a model's calls, in hundredths of a percent: what the weights of a route's arms sum to."""

RouteState = Literal["active", "held", "aborted", "promoted", "removed"]
CanaryAction = Literal["hold", "abort", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A version that gets a share of a model's calls.

    ``weight`` is in hundredths of a percent. ``spans`` are the half-open intervals of [0, 10000)
    whose sticky keys are this arm's; together they are as long as the weight.
    """

    number: int
    weight: int
    spans: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """When a candidate is worse than the version it is compared with, and what happens then.

    ``error_rate_max`` is the largest difference of error rates (0.01: one in a hundred calls more),
    ``latency_ratio_max`` the largest ratio of the 95th percentiles; 0 does not look. Nothing is
    decided before both have ``calls_min`` calls within ``window_s``. ``steps`` are the weights the
    candidate is given one after the other, each after ``step_s`` without a complaint.
    """

    number: int
    against: int
    error_rate_max: float = 0.0
    latency_ratio_max: float = 0.0
    calls_min: int = 100
    window_s: int = 300
    action: CanaryAction = "abort"
    steps: tuple[int, ...] = ()
    step_s: int = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How the calls of a model are divided among its versions; one revision of it.

    ``sticky`` is empty (each call is drawn), ``key`` (the caller's API key decides) or
    ``header:NAME``. ``shadows`` are versions that are called with the same bodies after the reply
    left. ``state`` of the last revision is ``promoted`` or ``removed`` when there is none any more.
    """

    model_id: str
    tenant_id: str
    arms: tuple[Arm, ...]
    sticky: str = ""
    shadows: tuple[int, ...] = ()
    canary: Canary | None = None
    state: RouteState = "active"
    revision: int = 1
    reason: str = ""
    set_ns: int
    set_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """From which score on a column of a version has drifted, and over which window.

    ``limits`` are by statistic (``drift.scores`` has the defaults; 0: not judged), ``features`` by
    column and statistic for those that differ. Nothing is judged on fewer than ``rows_min`` records
    in the last ``window_s`` seconds.
    """

    limits: dict[str, float] = field(default_factory=dict)
    features: dict[str, dict[str, float]] = field(default_factory=dict)
    rows_min: int = 200
    window_s: int = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What a version's inputs and answers are compared with; one revision of it.

    ``blob`` is the sealed plan and sketch, ``None`` where there is none. ``plan_id`` names the
    bins: what was counted in others cannot be compared. ``source`` is ``data``, ``window`` or
    ``calls``; ``learning`` for one to be made of the next ``rows`` records; ``removed`` for none.
    """

    model_id: str
    tenant_id: str
    number: int
    blob: Blob | None
    plan_id: str
    source: str
    rows: int
    inputs: int
    outputs: int
    thresholds: Thresholds = field(default_factory=Thresholds)
    revision: int = 1
    reason: str = ""
    set_ns: int
    set_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Breach:
    """A score beyond its threshold: of which column, by how much, on how many records."""

    feature: str
    is_output: bool
    statistic: str
    value: float
    threshold: float
    rows: int
    window_s: int
    since_ns: int

    @property
    def key(self) -> tuple[bool, str, str]:
        """What is told once: the column and the statistic."""
        return self.is_output, self.feature, self.statistic


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """How many sandboxes of a version are kept loaded, whether or not it is called."""

    model_id: str
    tenant_id: str
    number: int
    warm: int
    set_ns: int
    set_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A value only a model's own sandboxes see; ``box`` is sealed under a key of its own.

    ``id`` names that key, which is destroyed when the secret is replaced or removed.
    """

    id: str
    model_id: str
    tenant_id: str
    name: str
    box: str
    set_ns: int
    set_by: str


JobStatus = Literal["starting", "processing", "succeeded", "failed", "canceled"]
JOB_ENDS: tuple[JobStatus, ...] = ("succeeded", "failed", "canceled")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnd:
    """How a job ended: its answer, or the problem as a document (RFC 9457) for its owner."""

    status: Literal["succeeded", "failed", "canceled"]
    output: Blob | None = None
    content_type: str = ""
    problem: dict[str, Any] | None = None
    audit_seq: int = 0
    cold: bool = False
    run_us: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Printed:
    """Lines a job's model printed, a sealed blob; ``first`` of them is counted from 0."""

    first: int
    lines: int
    blob: Blob


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A call that outlives its request; its payloads are sealed blobs that begin with ``id``.

    ``starting`` waits for its turn, ``processing`` was handed to the model. ``idempotency_key`` is
    the caller's, ``""`` for none, ``request_digest`` keyed (HMAC) over all that was asked.
    ``route_revision`` is of the route that chose the version, 0 for none. ``webhook`` is where its
    caller wants to be told of it, ``webhook_events`` of what. ``scheduled_by`` is the schedule that
    submitted it, ``""`` for none. ``printed`` is there where its webhook is told of logs.
    """

    id: str
    tenant_id: str
    model_id: str
    number: int
    content_type: str
    input: Blob
    request_digest: str
    route_revision: int = 0
    idempotency_key: str = ""
    webhook: str = ""
    webhook_events: tuple[str, ...] = ()
    scheduled_by: str = ""
    created_ns: int
    created_by: str
    status: JobStatus = "starting"
    attempts: int = 0
    started_ns: int = 0
    ended_ns: int = 0
    end: JobEnd | None = None
    printed: tuple[Printed, ...] = ()


EgressProtocol = Literal["any", "connect", "http", "tcp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressRule:
    """Whether models may reach a destination; a tenant's rules are an ordered list.

    ``model`` is a name or ``*``. ``host`` is in the grammar of ``egress.rules``. ``ports`` are
    inclusive ranges, none for every port. ``protocol`` is ``connect`` (a tunnel through the
    proxy), ``http`` (a request in the clear through it), ``tcp`` (a name of its own inside the
    sandbox, for clients that know no proxy) or ``any``.
    """

    id: str
    tenant_id: str
    model: str = "*"
    action: Literal["allow", "deny"]
    host: str
    ports: tuple[tuple[int, int], ...] = ()
    protocol: EgressProtocol = "any"
    reason: str
    created_ns: int
    created_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One audit entry: an event as it stands in the ledger.

    ``leaf`` is the RFC 6962 leaf hash (hex) of the stored record bytes; ``event`` is the event's
    own fields. ``event`` is ``None`` when the tenant's key was destroyed and the fields with it.
    """

    seq: int
    time_ns: int
    monotonic_ns: int
    boot: str
    kind: str
    tenant_id: str
    actor: str
    object: str
    event: dict[str, Any] | None
    leaf: str
