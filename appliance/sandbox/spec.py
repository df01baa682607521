"""What a sandbox is asked to be, and what crosses its edge: plain frozen values.

Owns: ``SandboxSpec``, ``Outlets``, ``ZygoteKey``, ``Request``, ``Reply``, ``Batch``,
``LimitsReport``, ``SandboxInfo``.
Never: does I/O; knows Podman, tenants' names or HTTP.
Read next: ``executor`` (who makes sandboxes from these), ``PROTOCOL.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from appliance.errors import ApplianceError
from appliance.records import (
    Batching,
    CallLimits,
    Container,
    Isolation,
    Merged,
    Resources,
)

Level = Literal["enforced", "supervised", "none"]
State = Literal["starting", "zygote", "idle", "loading", "ready", "frozen", "busy", "killed"]

MIB = 1024 * 1024


PROXY_ADDRESS = ("127.0.0.1", 3128)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlet:
    """A name a sandbox knows, at a loopback address of its own, with the ports open there."""

    host: str
    address: str
    ports: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlets:
    """The ways out of a sandbox: the proxy, and names for clients that know no proxy.

    They lead to the guard, which decides about each connection by itself; ``model`` is for it.
    """

    model: str
    proxy: bool = True
    names: tuple[Outlet, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """One version's sandbox: who it belongs to, what is inside, what it may use.

    ``version_key`` is opaque and unique per version: sandboxes are reused for equal keys only.
    ``model_bytes`` is the unpacked artifact size, it decides the size of ``/model``.
    ``deps_key`` is empty when the version has no requirements. ``container`` is there for imported
    images only. ``gpu_units`` are the ids of the GPUs this very sandbox was given: empty in what a
    version asks for, set by the pool. Without ``outlets`` there is no way out of it at all.
    ``options`` is JSON for the code that serves an entry of the form ``@convention``. ``caution``
    is what stands in front of the model's own stderr wherever that is shown. ``batch`` says how its
    calls may be joined. Without ``makes_calls`` its runner is not told that there is a CALL, and
    one is a protocol error.
    """

    version_key: str
    tenant_id: str
    runtime: str
    runtime_digest: str
    deps_key: str = ""
    resources: Resources = field(default_factory=Resources)
    limits: CallLimits = field(default_factory=CallLimits)
    model_bytes: int = 0
    idle_timeout_s: int = 120
    entry: str = ""
    container: Container | None = None
    gpu_units: tuple[str, ...] = ()
    outlets: Outlets | None = None
    options: dict[str, Any] = field(default_factory=dict)
    isolation: Isolation = "standard"
    caution: str = ""
    batch: Batching | None = None
    makes_calls: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ZygoteKey:
    """What a sandbox that is started ahead is made for: it fits any version with the same.

    The resources, GPUs included, are part of it, so that every limit is in force from the first
    instruction and binding changes only what depends on the size of the artifact.
    """

    runtime: str
    runtime_digest: str
    deps_key: str
    resources: Resources
    modules: tuple[str, ...] = ()
    isolation: Isolation = "standard"

    @property
    def spec(self) -> SandboxSpec:
        """The sandbox of nobody and no version."""
        return SandboxSpec(
            version_key="",
            tenant_id="",
            runtime=self.runtime,
            runtime_digest=self.runtime_digest,
            deps_key=self.deps_key,
            resources=self.resources,
            isolation=self.isolation,
        )

    def is_fit_for(self, spec: SandboxSpec) -> bool:
        """Whether a version's sandbox can be made of this."""
        return (
            self.runtime == spec.runtime
            and self.runtime_digest == spec.runtime_digest
            and self.deps_key == spec.deps_key
            and self.resources == spec.resources
            and self.isolation == spec.isolation
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A call that a model asks for while it answers one; nothing in it is to be believed."""

    target: str
    content_type: str
    body: bytes


class Calls(Protocol):
    """Who makes the calls that a model asks for while it answers one call."""

    parallel_max: int
    """Calls open at once."""
    frames_max: int
    """CALL frames before the guest is taken for a flood."""
    body_bytes_max: int
    """The largest body of one."""
    deadline_ns: int
    """When the outer call is over (monotonic); set when it begins."""

    def hold(self, size: int) -> None:
        """Take room for so many bytes until the outer call ends.

        Raises:
            ApplianceError: there is none; what it asked for is refused.
        """
        ...

    async def call(self, asked: Asked) -> Reply:
        """The answer of another model.

        Raises:
            ApplianceError: there is none; ``told`` is what the asking model may hear of it.
        """
        ...

    def told(self, error: ApplianceError) -> str:
        """What a problem says to the model that asked, bounded by nothing yet."""
        ...


class Tail(Protocol):
    """Who is told what a sandbox prints."""

    def add(self, stream: str, data: bytes, dropped: int) -> None:
        """A piece of output; ``dropped`` bytes before it never arrived. Returns at once."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One call as the runner sees it; ``id`` is chosen by the host and never reused.

    ``calls`` makes the calls of a version that declares some, and is there for such versions only.
    ``tail`` is told what is printed meanwhile, where the sandbox has no other call.
    """

    id: str
    content_type: str
    body: bytes
    timeout_ms: int
    reply_bytes_max: int
    calls: Calls | None = field(default=None, compare=False)
    tail: Tail | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer; ``compute_us`` is the runner's own claim of the time in model code.

    ``merged`` is about the call of the model that gave it, where that may have answered several.
    """

    content_type: str
    body: bytes
    compute_us: int
    merged: Merged | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Calls that go to a runner in one frame: of one version, one content type, equal limits.

    ``answered`` is told of each as soon as there is an answer or a problem of its own, by its place
    in ``requests``; ``split`` that joined calls are run one by one after all, and why.
    """

    id: str
    requests: Sequence[Request]
    batching: Batching
    answered: Callable[[int, Reply | ApplianceError], object]
    split: Callable[[str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsReport:
    """What this host does about limits, as found by trying; texts are for people.

    ``memory``, ``pids`` and ``cpu`` each say how that limit is held, or ``"not held"``.
    """

    level: Level
    mechanism: str
    memory: str
    pids: str
    cpu: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxInfo:
    """One running sandbox, for lists. Sizes in bytes, ``cpu_ms`` since its start.

    In state ``zygote`` it has no version and no tenant yet: both are empty.
    """

    id: str
    version_key: str
    tenant_id: str
    state: State
    pid: int
    created_ns: int
    calls: int
    rss_bytes: int
    memory_bytes: int
    cpu_ms: int
    last_used_ns: int
    gpus: tuple[str, ...] = ()
    gpu_memory_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservationInfo:
    """How the reservation of a version goes: ``ready`` of ``warm`` sandboxes are loaded.

    ``problem`` says why not all of them are, for people; empty while they are being made. The next
    try is in ``retry_s`` seconds.
    """

    version_key: str
    warm: int
    ready: int = 0
    problem: str = ""
    retry_s: int = 0
    spec: SandboxSpec | None = None
