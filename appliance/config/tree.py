"""The tree of settings: every one with its type, unit, default, bounds and one-line meaning.

Owns: the sections, and nothing else of settings.
Never: reads a file or the environment (``config``).
Read next: ``config``, which fills the tree; ``appliance config explain`` prints it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]


def _doc(text: str, **bounds: Any) -> Meta:
    return Meta(description=text, **bounds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """Where things are on this machine."""

    data_dir: Annotated[str, _doc("Durable state; owned by the service user, mode 0700.")] = (
        "/var/lib/appliance"
    )
    run_dir: Annotated[str, _doc("Sockets and container state; should be a tmpfs.")] = (
        "/run/appliance"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Http:
    """The HTTPS listener for callers."""

    host: Annotated[str, _doc("Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, _doc("TCP port; 0 takes a free one.", ge=0, le=65535)] = 8443
    names: Annotated[
        tuple[str, ...], _doc("Names and addresses the TLS certificate is made for.")
    ] = ("localhost", "127.0.0.1")
    drain_timeout_s: Annotated[
        int, _doc("How long SIGTERM waits for calls in flight.", ge=1, le=3600)
    ] = 60
    body_timeout_s: Annotated[
        int, _doc("Longest time a caller may take to send a call's body.", ge=1, le=3600)
    ] = 60
    body_bytes_max: Annotated[
        int, _doc("Largest call body; a version may ask for less.", ge=1024)
    ] = 16 * 1024 * 1024
    memory_bytes_max: Annotated[
        int,
        _doc(
            "Memory for bodies and answers on their way, half of it for one tenant; -1: an eighth.",
            ge=-1,
        ),
    ] = -1
    upload_bytes_max: Annotated[int, _doc("Largest artifact upload, unpacked.", ge=1024)] = (
        8 * 1024**3
    )
    engine: Annotated[
        Literal["direct", "hypercorn"],
        _doc("What reads HTTP/1.1: direct (llhttp on the event loop), or Hypercorn's own."),
    ] = "direct"
    upload_files_max: Annotated[int, _doc("Most files in an artifact.", ge=1)] = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Admin:
    """The administrator's unix socket (``run_dir/admin.sock``, mode 0600)."""

    uids: Annotated[
        tuple[int, ...], _doc("User ids allowed besides root and the service user.")
    ] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Unseal:
    """How the root key is opened at start."""

    key_file: Annotated[
        str, _doc("Key file that opens the appliance without a person; empty: ask.")
    ] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """The ledger, the projection and the blobs."""

    segment_bytes: Annotated[int, _doc("Size at which a ledger segment is closed.", ge=65536)] = (
        64 * 1024 * 1024
    )
    queue_max: Annotated[int, _doc("Entries waiting for the ledger before 503.", ge=16)] = 20_000
    free_bytes_min: Annotated[
        int, _doc("Free disk below which new calls and uploads are refused.", ge=0)
    ] = 256 * 1024 * 1024
    query_memory_bytes: Annotated[int, _doc("Memory DuckDB may use.", ge=64 * 1024 * 1024)] = (
        512 * 1024 * 1024
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """Where and how models run."""

    accept_supervised_limits: Annotated[
        bool, _doc("Run models although limits are supervised, not kernel-enforced; audited.")
    ] = False
    oci_runtime: Annotated[str, _doc("OCI runtime binary: runc or crun; empty: best found.")] = ""
    instances_max: Annotated[int, _doc("Sandboxes at once; 0: four per core.", ge=0)] = 0
    instances_per_version_max: Annotated[
        int, _doc("Sandboxes of one version at once; 0: one per core.", ge=0)
    ] = 0
    queue_max: Annotated[int, _doc("Calls waiting for a sandbox, per version.", ge=1)] = 256
    queue_timeout_s: Annotated[int, _doc("Longest wait for a sandbox.", ge=1)] = 60
    idle_timeout_s: Annotated[
        int, _doc("Idle time before a sandbox is destroyed; 0: after each call.", ge=0)
    ] = 120
    idle_timeout_s_max: Annotated[
        int, _doc("Longest idle_timeout_s a version may ask for.", ge=0)
    ] = 3600
    load_timeout_ms_max: Annotated[
        int, _doc("Longest load_timeout_ms a version may ask for.", ge=100)
    ] = 600_000
    invoke_timeout_ms_max: Annotated[
        int, _doc("Longest invoke_timeout_ms a version may ask for.", ge=100)
    ] = 600_000
    reserved_max: Annotated[
        int,
        _doc(
            "Sandboxes all reservations together may keep; -1: half of those there may be.", ge=-1
        ),
    ] = -1
    reserved_memory_bytes_max: Annotated[
        int, _doc("Memory reservations may ask for together; -1: half of the machine's.", ge=-1)
    ] = -1
    free_memory_bytes_min: Annotated[
        int, _doc("Free memory below which idle sandboxes end early; -1: a twentieth.", ge=-1)
    ] = -1
    memory_bytes_max: Annotated[
        int, _doc("Most memory a version may ask for.", ge=64 * 1024 * 1024)
    ] = 4 * 1024**3
    reply_bytes_max: Annotated[
        int, _doc("Largest answer of a version; it may ask for less.", ge=1024)
    ] = 64 * 1024 * 1024
    zygote_memory_bytes_max: Annotated[
        int,
        _doc(
            "Memory for sandboxes started ahead of calls; 0: none; -1: a tenth, at most 2 GiB.",
            ge=-1,
        ),
    ] = -1
    zygote_idle_s: Annotated[
        int, _doc("Time without a cold start after which none is kept ahead.", ge=1)
    ] = 300
    cgroup_parent: Annotated[
        str, _doc("Delegated cgroup v2 parent for containers; empty: find it.")
    ] = ""
    gpu_mode: Annotated[
        Literal["bundle", "cdi", "off"],
        _doc("How a GPU gets into a sandbox: own driver bundle, Podman's CDI, or not at all."),
    ] = "bundle"
    cdi_dirs: Annotated[tuple[str, ...], _doc("Folders with CDI specs of this machine's GPUs.")] = (
        "/etc/cdi",
        "/var/run/cdi",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Egress:
    """How models that egress rules let out reach the network."""

    hosts_file: Annotated[
        str, _doc("File of names and addresses asked before the system's resolver; empty: none.")
    ] = ""
    connections_max: Annotated[int, _doc("Connections of one sandbox at once.", ge=1)] = 64
    connect_timeout_s: Annotated[
        int, _doc("Longest wait for a name or a connection.", ge=1, le=120)
    ] = 10
    idle_timeout_s: Annotated[
        int, _doc("Time without a byte after which a connection is ended.", ge=1)
    ] = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """Calls that calls make: models that call models, and the steps of pipelines."""

    depth_max: Annotated[
        int, _doc("Levels of calls below a caller's own; a manifest may ask for less.", ge=0, le=16)
    ] = 4
    count_max: Annotated[int, _doc("Calls below one caller's call, all levels together.", ge=1)] = (
        256
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Jobs:
    """Calls that outlive their request."""

    running_max: Annotated[
        int, _doc("Jobs run at once; 0: half of the sandboxes there may be.", ge=0)
    ] = 0
    queued_max: Annotated[int, _doc("Jobs of one tenant that wait or run at once.", ge=1)] = 1000
    kept_s: Annotated[
        int, _doc("Time an ended job and its payloads are kept.", ge=1, le=31_536_000)
    ] = 86_400
    kept_max: Annotated[int, _doc("Ended jobs kept per tenant; the oldest go first.", ge=1)] = 2000
    wait_s_max: Annotated[
        int, _doc("Longest wait for a sandbox before a job fails.", ge=1, le=31_536_000)
    ] = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """Counting what versions that have a baseline are called with."""

    period_s: Annotated[
        int,
        _doc("Seconds counted together; a crash loses what is counted of the last.", ge=1, le=3600),
    ] = 60
    kept_days: Annotated[
        int, _doc("Days counts are kept; after a day by the hour.", ge=1, le=3650)
    ] = 90
    baselines_max: Annotated[int, _doc("Versions of one tenant that have a baseline.", ge=1)] = 100
    data_bytes_max: Annotated[
        int, _doc("Largest data a baseline is made from.", ge=1024, le=1024**3)
    ] = 64 * 1024 * 1024


class Folder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A folder of this machine that batches may read tables from, and write them to.

    Nobody but the ``tenants`` named here may use it; ``*`` is all there are.
    """

    path: str
    tenants: tuple[str, ...] = ()
    writable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """Tables that are scored row by row; the limits of jobs hold for them too."""

    folders: Annotated[
        dict[str, Folder],
        _doc("Folders tables may come from: name = {path, tenants, writable}; none by default."),
    ] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedules:
    """Calls that are submitted as jobs again and again."""

    schedules_max: Annotated[int, _doc("Schedules of one tenant.", ge=0)] = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhooks:
    """Where tenants may have themselves told of events, and how."""

    destinations: Annotated[
        tuple[str, ...],
        _doc("Hosts webhooks may go to: names, '*.name', addresses, networks, '*'; empty: none."),
    ] = ()
    allow: Annotated[
        tuple[str, ...],
        _doc("Origins allowed although in the clear or at a special address: http://127.0.0.1:80."),
    ] = ()
    ca_file: Annotated[str, _doc("PEM file of CAs trusted besides the system's; empty: none.")] = ""
    timeout_s: Annotated[
        int, _doc("Longest time for one attempt, its look-up included.", ge=1, le=120)
    ] = 15
    running_max: Annotated[int, _doc("Attempts of one tenant at once.", ge=1, le=64)] = 8
    disable_after_s: Annotated[
        int, _doc("Time without any success after which a webhook is disabled.", ge=60)
    ] = 432_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracking:
    """Training runs and the files they leave, of one tenant."""

    groups_max: Annotated[int, _doc("Groups of runs (MLflow: experiments).", ge=1)] = 1000
    runs_max: Annotated[int, _doc("Runs, and as many drafts (MLflow: logged models).", ge=1)] = (
        10_000
    )
    metrics_max: Annotated[int, _doc("Metric values of one run or draft.", ge=1)] = 10_000
    files_max: Annotated[int, _doc("Files kept of runs and drafts together.", ge=1)] = 50_000
    files_bytes_max: Annotated[int, _doc("Size of these files together.", ge=1024)] = 64 * 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparisons:
    """Data sets and recorded calls through several versions."""

    running_max: Annotated[int, _doc("Comparisons run at once.", ge=1)] = 2
    calls_max: Annotated[
        int, _doc("Their calls at once; 0: a quarter of the sandboxes there may be.", ge=0)
    ] = 0
    queued_max: Annotated[
        int, _doc("Comparisons of one tenant that wait or run at once.", ge=1)
    ] = 20
    data_bytes_max: Annotated[int, _doc("Largest data set.", ge=1024)] = 64 * 1024 * 1024
    rows_max: Annotated[int, _doc("Most rows of a data set.", ge=1)] = 200_000
    kept_s: Annotated[
        int, _doc("Time a report is kept after its comparison ended.", ge=1, le=31_536_000)
    ] = 86_400
    kept_max: Annotated[int, _doc("Reports kept per tenant; the oldest go first.", ge=1)] = 200
    wait_s_max: Annotated[
        int, _doc("Longest wait for a sandbox before a comparison fails.", ge=1, le=31_536_000)
    ] = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """How a model's dependencies are fetched."""

    wheelhouse: Annotated[
        str, _doc("Folder of wheels to install from, for hosts without an index; empty: index.")
    ] = ""
    npm_index: Annotated[
        str, _doc("Address npm packages are fetched from; empty: as npm is set up, if it is.")
    ] = ""
    npm_packages: Annotated[
        str, _doc("Folder of npm packages (.tgz) to install from instead of an index.")
    ] = ""
    gems: Annotated[str, _doc("Folder of Ruby gems to install from.")] = ""
    r_packages: Annotated[
        str, _doc("Folder of R packages to install from: CRAN .tar.gz or Debian's r-cran-*.deb.")
    ] = ""
    maven: Annotated[
        str, _doc("Folder of jars to install from, laid out as a Maven repository.")
    ] = ""
    trusted_signers: Annotated[
        tuple[str, ...], _doc("Fingerprints (sha256:...) whose runtime bundles may be imported.")
    ] = ()
    timeout_s: Annotated[int, _doc("Longest dependency build.", ge=10)] = 900
    size_bytes_max: Annotated[int, _doc("Largest installed dependency set.", ge=1024)] = 8 * 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The whole tree."""

    paths: Paths = field(default_factory=Paths)
    http: Http = field(default_factory=Http)
    admin: Admin = field(default_factory=Admin)
    unseal: Unseal = field(default_factory=Unseal)
    store: Store = field(default_factory=Store)
    sandbox: Sandbox = field(default_factory=Sandbox)
    egress: Egress = field(default_factory=Egress)
    build: Build = field(default_factory=Build)
    jobs: Jobs = field(default_factory=Jobs)
    batches: Batches = field(default_factory=Batches)
    drift: Drift = field(default_factory=Drift)
    schedules: Schedules = field(default_factory=Schedules)
    webhooks: Webhooks = field(default_factory=Webhooks)
    calls: Calls = field(default_factory=Calls)
    tracking: Tracking = field(default_factory=Tracking)
    comparisons: Comparisons = field(default_factory=Comparisons)
