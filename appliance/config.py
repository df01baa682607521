"""Settings: one frozen tree, read from TOML, then the environment, then flags.

Owns: every setting with its type, unit, default, bounds and one-line meaning; the only reader of
``os.environ``.
Never: opens anything but the configuration file, or changes after start.
Read next: ``appliance config explain`` prints this tree with the origin of each value.

A variable ``APPLIANCE__SECTION__FIELD`` overrides the file; a flag overrides both. An unknown key
or a value out of bounds is an error that names the file, the key and the line.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta

from appliance.errors import ConfigInvalid, FieldError

ENV_PREFIX = "APPLIANCE__"
DEFAULT_FILE = Path("/etc/appliance/appliance.toml")

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
    drift: Drift = field(default_factory=Drift)
    schedules: Schedules = field(default_factory=Schedules)
    webhooks: Webhooks = field(default_factory=Webhooks)
    calls: Calls = field(default_factory=Calls)
    tracking: Tracking = field(default_factory=Tracking)
    comparisons: Comparisons = field(default_factory=Comparisons)


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """One setting as ``config explain`` shows it; ``origin`` is default, file:line, env or flag."""

    key: str
    value: Any
    default: Any
    origin: str
    doc: str


def load(
    file: Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> tuple[Settings, tuple[Explained, ...]]:
    """The settings in force and where each came from.

    Args:
        file: TOML file; ``None`` reads ``/etc/appliance/appliance.toml`` if it exists.
        environ: variables, ``None`` for the process environment.
        flags: dotted key to value, e.g. ``{"http.port": 9443}``; strongest.

    Raises:
        ConfigInvalid: the file cannot be read or parsed, a key is unknown, or a value is out of
            bounds; the message names file, key and line.
    """
    environ = os.environ if environ is None else environ
    origins: dict[str, str] = {}
    tree: dict[str, dict[str, Any]] = {}
    path = file or DEFAULT_FILE
    if file is not None or path.exists():
        _merge_file(path, tree, origins)
    for name, text in environ.items():
        if name.startswith(ENV_PREFIX):
            key = name.removeprefix(ENV_PREFIX).lower().replace("__", ".")
            _put(tree, origins, key, _value_from_text(key, text, name), f"env {name}")
    for key, value in (flags or {}).items():
        _put(tree, origins, key, value, "flag")
    try:
        settings = msgspec.convert(tree, Settings, str_keys=True)
    except msgspec.ValidationError as error:
        raise _invalid(error, origins) from error
    return settings, tuple(_explain(settings, origins))


def _fields() -> dict[str, tuple[Any, str]]:
    """Dotted key to (annotated type, doc) of every setting."""
    found: dict[str, tuple[Any, str]] = {}
    for section, cls in get_type_hints(Settings).items():
        for name, hint in get_type_hints(cls, include_extras=True).items():
            doc = next((m.description or "" for m in hint.__metadata__ if m.description), "")
            found[f"{section}.{name}"] = (hint, doc)
    return found


def _put(
    tree: dict[str, dict[str, Any]], origins: dict[str, str], key: str, value: Any, origin: str
) -> None:
    if key not in _fields():
        raise ConfigInvalid(
            f"{origin}: unknown setting '{key}'.",
            hint="appliance config explain",
            fields=(FieldError(pointer=origin, detail=f"unknown setting '{key}'"),),
        )
    section, name = key.split(".", 1)
    tree.setdefault(section, {})[name] = value
    origins[key] = origin


def _merge_file(path: Path, tree: dict[str, dict[str, Any]], origins: dict[str, str]) -> None:
    try:
        text = path.read_text(encoding="utf-8")
        parsed = tomllib.loads(text)
    except OSError as error:
        raise ConfigInvalid(f"{path}: cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"{path}: not valid TOML: {error}.") from error
    for section, values in parsed.items():
        if not isinstance(values, dict):
            origin = f"{path}:{line_of_key(text, '', section)}"
            raise ConfigInvalid(f"{origin}: unknown setting '{section}'.")
        for name, value in values.items():
            origin = f"{path}:{line_of_key(text, section, name)}"
            _put(tree, origins, f"{section}.{name}", value, origin)


def line_of_key(text: str, section: str, name: str) -> int:
    """The 1-based line of ``name`` inside ``[section]`` of a TOML text; 1 if it is not found."""
    current = ""
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line)
        if header:
            current = header.group(1).strip("\"'")
            if current == f"{section}.{name}" or (not section and current.split(".")[0] == name):
                return number
        elif current == section and re.match(rf"""\s*["']?{re.escape(name)}["']?\s*[=.]""", line):
            return number
    return 1


def _value_from_text(key: str, text: str, name: str) -> Any:
    """An environment variable's text as the setting's own type; lists are comma separated."""
    hint = _fields().get(key, (str, ""))[0]
    inner = getattr(hint, "__origin__", hint)
    if getattr(inner, "__origin__", None) is tuple:
        members = [part.strip() for part in text.split(",") if part.strip()]
        return [int(m) for m in members] if inner.__args__[0] is int else members
    try:
        return msgspec.convert(text, inner, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigInvalid(f"env {name}: {error}.") from error


def _invalid(error: msgspec.ValidationError, origins: Mapping[str, str]) -> ConfigInvalid:
    text = str(error)
    match = re.search(r"at `\$\.([\w.]+)", text)
    key = match.group(1) if match else ""
    reason = text.split(" - at")[0]
    origin = origins.get(key, "settings")
    return ConfigInvalid(
        f"{origin}: {key}: {reason}.",
        fields=(FieldError(pointer=origin, detail=f"{key}: {reason}"),),
    )


def _explain(settings: Settings, origins: Mapping[str, str]) -> list[Explained]:
    defaults = Settings()
    rows = []
    for key, (_hint, doc) in _fields().items():
        section, name = key.split(".", 1)
        rows.append(
            Explained(
                key=key,
                value=getattr(getattr(settings, section), name),
                default=getattr(getattr(defaults, section), name),
                origin=origins.get(key, "default"),
                doc=doc,
            )
        )
    return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Where the command line finds an appliance: its own socket, or a URL with a key."""

    socket: str
    url: str
    api_key: str
    ca_file: str


def client(
    *,
    socket: str = "",
    url: str = "",
    api_key_file: str = "",
    ca_file: str = "",
    run_dir: str = "",
    environ: Mapping[str, str] | None = None,
) -> Client:
    """The client settings: flags first, then APPLIANCE_SOCKET/URL/API_KEY/CA, then ``run_dir``."""
    environ = os.environ if environ is None else environ
    key = environ.get("APPLIANCE_API_KEY", "")
    if api_key_file:
        try:
            key = Path(api_key_file).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigInvalid(f"{api_key_file}: the API key cannot be read: {error}.") from error
    run_dir = run_dir or environ.get(f"{ENV_PREFIX}PATHS__RUN_DIR", Paths().run_dir)
    return Client(
        socket=socket or environ.get("APPLIANCE_SOCKET", f"{run_dir}/admin.sock"),
        url=url or environ.get("APPLIANCE_URL", ""),
        api_key=key,
        ca_file=ca_file or environ.get("APPLIANCE_CA", ""),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Npm:
    """Where npm packages come from; ``index`` is empty where nothing says it."""

    index: str
    ca_file: str
    proxy: str


def npm(build: Build, *, files: tuple[Path, ...] | None = None) -> Npm:
    """The npm index of ``build.npm_index`` or else of npm's own configuration on this machine.

    Args:
        build: the ``[build]`` section.
        files: npm's files, the strongest last; ``None`` for the machine's and the user's.
    """
    if files is None:
        home = os.environ.get("HOME", "/")
        files = (Path("/etc/npmrc"), Path("/usr/etc/npmrc"), Path(home) / ".npmrc")
    found: dict[str, str] = {}
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        for line in text.splitlines():
            key, equals, value = line.partition("=")
            if equals and not line.lstrip().startswith(("#", ";")):
                found[key.strip()] = value.strip().strip("\"'")
    return Npm(
        index=build.npm_index or found.get("registry", ""),
        ca_file=found.get("cafile", ""),
        proxy=found.get("https-proxy", found.get("proxy", "")),
    )


def wants_colour(environ: Mapping[str, str] | None = None) -> bool:
    """Whether a terminal may be coloured: neither ``NO_COLOR`` nor ``TERM=dumb`` is set."""
    environ = os.environ if environ is None else environ
    return not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


def child_environment(**extra: str) -> dict[str, str]:
    """A minimal environment for child processes: PATH, HOME, locale and what is given."""
    kept = {k: os.environ[k] for k in ("PATH", "HOME", "LANG") if k in os.environ}
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **kept, **extra}


def replace(settings: Settings, section: str, **changes: Any) -> Settings:
    """A copy of the settings with fields of one section changed; for tests and the demo."""
    part = dataclasses.replace(getattr(settings, section), **changes)
    return dataclasses.replace(settings, **{section: part})
