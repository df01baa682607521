"""The problem classes: everything that can go wrong, split by whose fault it is.

Owns: the tree below; each class is one RFC 9457 problem type with its status, slug and exit code.
Never: formats an HTTP reply (``wire``), prints (``cli``) or logs.
Read next: ``wire.problem_response`` turns an instance into ``application/problem+json``.

    ApplianceError
    ├── CallerError          4xx  the caller can fix it
    ├── GuestError           50x  the model's code failed; never pages IT
    ├── StateError           503  the appliance is not ready for this now
    └── HostError            50x  the machine or the appliance failed; IT must look

A class docstring is the text of its ``/problems/<slug>`` page. An instance says what to change
(``detail``) and, where one exists, the command to type (``hint``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

# sysexits.h, the codes the command line ends with (BSD sysexits(3)).
EX_USAGE = 64
EX_DATAERR = 65
EX_NOINPUT = 66
EX_UNAVAILABLE = 69
EX_SOFTWARE = 70
EX_CANTCREAT = 73
EX_IOERR = 74
EX_TEMPFAIL = 75
EX_NOPERM = 77
EX_CONFIG = 78


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldError:
    """One bad field of an input: an RFC 6901 pointer (or ``file:line``) and what is wrong there."""

    pointer: str
    detail: str


class ApplianceError(Exception):
    """Root of every problem the appliance reports on purpose."""

    slug: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    exit_code: ClassVar[int] = EX_SOFTWARE
    retry_after_s: ClassVar[int | None] = None

    def __init__(
        self,
        detail: str,
        *,
        hint: str = "",
        fields: tuple[FieldError, ...] = (),
        **extensions: Any,
    ) -> None:
        """Make a problem.

        Args:
            detail: what is wrong and what to change, one sentence, safe to show the caller.
            hint: the command or setting that fixes it, empty when there is none.
            fields: the fields at fault, for inputs that were understood but not accepted.
            extensions: extra JSON members of the problem document (RFC 9457 section 3.2).
        """
        super().__init__(detail)
        self.detail = detail
        self.hint = hint
        self.fields = fields
        self.extensions = extensions


class CallerError(ApplianceError):
    """The request cannot be served as it is; changing the request helps."""

    status = 400
    slug = "malformed"
    title = "Malformed request"
    exit_code = EX_DATAERR


class Malformed(CallerError):
    """The request could not be parsed: bad JSON, a bad header, or a bad parameter."""

    slug, status, title = "malformed", 400, "Malformed request"


class Unauthenticated(CallerError):
    """No valid API key came with the request, or the key is expired, revoked or mistyped."""

    slug, status, title = "unauthenticated", 401, "Authentication required"
    exit_code = EX_NOPERM


class Forbidden(CallerError):
    """The key is valid but does not carry the right this operation needs."""

    slug, status, title = "forbidden", 403, "Not allowed"
    exit_code = EX_NOPERM


class EgressDenied(CallerError):
    """A model asked for a destination that no egress rule of its tenant allows.

    Or for a name that leads to an address which only a rule naming it literally would open. IT
    adds rules; each refusal is in the audit log. Webhooks go to https addresses that are no
    loopback, link-local, metadata, multicast or wrapped ones nor the appliance's own machine's,
    and to what IT allows in `webhooks.allow`.
    """

    slug, status, title = "egress-denied", 403, "Destination not allowed"
    exit_code = EX_NOPERM


class UnsealFailed(CallerError):
    """None of the unseal slots opens with what was given: a wrong passphrase or key file."""

    slug, status, title = "unseal-failed", 403, "The appliance stays sealed"
    exit_code = EX_NOPERM


class NotFound(CallerError):
    """No such resource, or it belongs to a tenant this key cannot see."""

    slug, status, title = "not-found", 404, "Not found"


class MethodNotAllowed(CallerError):
    """The address exists but does not answer this HTTP method."""

    slug, status, title = "method-not-allowed", 405, "Method not allowed"


class BodyTimeout(CallerError):
    """The request's body did not arrive within the time it may take."""

    slug, status, title = "body-timeout", 408, "Body came too slowly"
    exit_code = EX_TEMPFAIL


class NameTaken(CallerError):
    """The name is already in use."""

    slug, status, title = "name-taken", 409, "Name already taken"
    exit_code = EX_CANTCREAT


class AlreadyInitialised(CallerError):
    """The data folder already holds an initialised appliance; it is never overwritten."""

    slug, status, title = "already-initialised", 409, "Already initialised"
    exit_code = EX_CANTCREAT


class VersionImmutable(CallerError):
    """A version never changes once registered; register a new one instead."""

    slug, status, title = "version-immutable", 409, "Versions are immutable"


class Gone(CallerError):
    """The resource existed and was removed on purpose."""

    slug, status, title = "gone", 410, "Gone"


class ReservationRefused(CallerError):
    """So many sandboxes cannot be kept loaded, beside what is reserved already."""

    slug, status, title = "reservation-refused", 409, "Reservation refused"
    exit_code = EX_UNAVAILABLE


class RouteInvalid(CallerError):
    """The route cannot be: its weights do not sum, or it names a version that cannot be called."""

    slug, status, title = "route-invalid", 422, "Route invalid"


class VersionRouted(CallerError):
    """The model's route still sends calls to this version; change the route first."""

    slug, status, title = "version-routed", 409, "Version in a route"
    exit_code = EX_UNAVAILABLE


class RevisionStale(CallerError):
    """Somebody changed the document since it was read; read it again and retry."""

    slug, status, title = "revision-stale", 412, "Revision is stale"
    exit_code = EX_TEMPFAIL


class TooLarge(CallerError):
    """The body is larger than the limit that applies to it."""

    slug, status, title = "too-large", 413, "Body too large"


class UnsupportedMedia(CallerError):
    """The content type or content coding is not accepted here."""

    slug, status, title = "unsupported-media", 415, "Unsupported media type"


class HeadTooLarge(CallerError):
    """The request's line and headers are larger than a head may be."""

    slug, status, title = "head-too-large", 431, "Request head too large"


class InputInvalid(CallerError):
    """The request was understood but a field of it is not acceptable."""

    slug, status, title = "input-invalid", 422, "Invalid input"


class IdempotencyKeyReused(CallerError):
    """This Idempotency-Key came with another request before, so it does not name this one.

    Send a new key with a new request; the same key only repeats the same one.
    """

    slug, status, title = "idempotency-key-reused", 422, "Idempotency key used before"


class JobUnfinished(CallerError):
    """The job has no output: it waits, runs, failed or was cancelled. Its document says which."""

    slug, status, title = "job-unfinished", 409, "The job has no output"


class ArchiveRejected(CallerError):
    """A member of the uploaded archive is not allowed; nothing was stored."""

    slug, status, title = "archive-rejected", 422, "Archive rejected"


class ImageRejected(CallerError):
    """The image archive is damaged, hostile or for another machine; layer and member are named."""

    slug, status, title = "image-rejected", 422, "Image refused"


class ManifestInvalid(CallerError):
    """The model's manifest has an unknown key, a missing key or a value out of bounds."""

    slug, status, title = "manifest-invalid", 422, "Manifest invalid"


class BuildFailed(CallerError):
    """A package the model needs cannot be installed, or its source does not compile."""

    slug, status, title = "build-failed", 422, "Build failed"


class LoadFailed(CallerError):
    """The model did not load when it was checked at registration; nothing was registered."""

    slug, status, title = "load-failed", 422, "Model does not load"


class BundleRejected(CallerError):
    """The bundle is damaged, was changed, or nobody trusted here signed it; nothing was kept."""

    slug, status, title = "bundle-rejected", 422, "Bundle rejected"


class RuntimeInUse(CallerError):
    """Versions still run on this runtime; retire or move them first."""

    slug, status, title = "runtime-in-use", 409, "Runtime in use"


class RuntimeBusy(CallerError):
    """The same build, import or check of a runtime is still running; wait until it has ended."""

    slug, status, title = "runtime-busy", 409, "Already being done"


class SecretMissing(CallerError):
    """The version needs a secret that is not set for its model; set it and try again."""

    slug, status, title = "secret-missing", 409, "A secret is not set"


class QuotaExceeded(CallerError):
    """The tenant's or key's quota is used up for now."""

    slug, status, title = "quota-exceeded", 429, "Quota exceeded"
    exit_code = EX_TEMPFAIL
    retry_after_s = 60


class GuestError(ApplianceError):
    """The model's own code failed; the appliance and its other models are unaffected.

    ``stderr`` holds the last lines the model printed; they are shown to the model's owner only.
    """

    slug, status, title = "guest-failed", 502, "The model failed"
    exit_code = EX_UNAVAILABLE

    def __init__(self, detail: str, *, stderr: tuple[str, ...] = (), **rest: Any) -> None:
        """Make a guest problem; ``stderr`` is the tail of the model's output, oldest line first."""
        super().__init__(detail, **rest)
        self.stderr = stderr


class ModelRaised(GuestError):
    """The model's code raised an exception on this input."""

    slug, status, title = "model-raised", 502, "The model raised an exception"


class RunnerCrashed(GuestError):
    """The model's process ended in the middle of its work."""

    slug, status, title = "runner-crashed", 502, "The model's process ended"


class ResultsDiffer(GuestError):
    """The model's answer to rows of a batch is not exactly one result for each row, in order.

    A batch asks with an object that has the rows, and takes a list of as many results, an object
    of such lists by column, or either of them under one name.
    """

    slug, status, title = "results-differ", 502, "Results and rows differ"


class RunnerProtocol(GuestError):
    """The model's process sent something the runner protocol does not allow."""

    slug, status, title = "runner-protocol", 502, "The model broke the runner protocol"


class CallUndeclared(GuestError):
    """The model asked for a call of a model that its manifest does not declare (``calls``)."""

    slug, status, title = "call-undeclared", 502, "The model may not call that model"


class CallLimitReached(GuestError):
    """Calls made calls that made more calls than the model's manifest or the appliance allows.

    ``limits.calls_max`` and ``limits.call_depth_max`` of the manifest are the model's own limits,
    ``calls.depth_max`` and ``calls.count_max`` those of the appliance. A model that leads back to
    itself ends here.
    """

    slug, status, title = "call-limit-reached", 502, "Too many calls below one call"


class StepFailed(GuestError):
    """A step of a pipeline could not be made: its model, or what it takes, is not there.

    ``step`` names it. A step whose model fails has the problem of that model, and ``step`` too.
    """

    slug, status, title = "step-failed", 502, "A step of the pipeline failed"


class ReplyTooLarge(GuestError):
    """The model's answer is larger than the version's reply limit; it was cut off."""

    slug, status, title = "reply-too-large", 502, "The model's answer is too large"


class LoadTimeout(GuestError):
    """The model did not become ready within its load deadline."""

    slug, status, title = "load-timeout", 504, "The model did not load in time"


class InvokeTimeout(GuestError):
    """The model did not answer within its invoke deadline; its sandbox was destroyed."""

    slug, status, title = "invoke-timeout", 504, "The model did not answer in time"


class OutOfMemory(GuestError):
    """The model needed more memory than its version may use; its sandbox was destroyed."""

    slug, status, title = "out-of-memory", 507, "The model ran out of memory"


class GpuOutOfMemory(GuestError):
    """The model used more GPU memory than its version may; its sandbox was destroyed."""

    slug, status, title = "gpu-out-of-memory", 507, "The model ran out of GPU memory"


class StateError(ApplianceError):
    """The appliance cannot do this in its present state; trying again later may help."""

    slug, status, title = "unavailable", 503, "Not available now"
    exit_code = EX_TEMPFAIL
    retry_after_s: ClassVar[int | None] = 5


class FolderUnavailable(StateError):
    """A folder that IT lets batches use is not there, or cannot be read or written now."""

    slug, title = "folder-unavailable", "Folder not available"


class Uninitialised(StateError):
    """The data folder was never initialised."""

    slug, title = "uninitialised", "Not initialised"
    exit_code = EX_CONFIG


class Interrupted(StateError):
    """The appliance ended while a job was with its model; whether the model acted is not known.

    It is not run again by itself, because it may have had effects. Submit it again if it may run
    twice; a job submitted with an Idempotency-Key is run again without asking.
    """

    slug, title = "interrupted", "Interrupted by a restart"


class Sealed(StateError):
    """The appliance is sealed: it holds no key and can read none of its data."""

    slug, title = "sealed", "Sealed"


class Draining(StateError):
    """The appliance is shutting down and takes no new work."""

    slug, title = "draining", "Shutting down"
    retry_after_s = 2


class CapacityExhausted(StateError):
    """Every sandbox is busy and the queue is full."""

    slug, title = "capacity-exhausted", "No capacity left"
    retry_after_s = 1


class DeadlinePassed(StateError):
    """The caller's own deadline passed while the call waited; the model was not called."""

    slug, status, title = "deadline-passed", 504, "The deadline passed"
    retry_after_s = 1


class NotRunning(StateError):
    """No appliance answers at this address."""

    slug, title = "not-running", "The appliance is not running"
    exit_code = EX_UNAVAILABLE


class LimitsUnenforced(StateError):
    """This host enforces no resource limits, so no model runs until that is fixed or accepted."""

    slug, title = "limits-unenforced", "Resource limits are not enforced"
    exit_code = EX_CONFIG
    retry_after_s = None


class IsolationUnavailable(StateError):
    """The model must run under gVisor, which this appliance does not have; nothing weaker is used.

    Install ``runsc`` and restart, or have an administrator lower the tenant's isolation.
    """

    slug, title = "isolation-unavailable", "Isolation not available"
    exit_code = EX_CONFIG
    retry_after_s = None


class HostError(ApplianceError):
    """The appliance or the machine under it failed."""

    slug, status, title = "internal", 500, "Internal error"


class StoreCorrupt(HostError):
    """Stored data fails its integrity check; the object is named and nothing wrong is returned."""

    slug, title = "store-corrupt", "Stored data is damaged"
    exit_code = EX_IOERR


class AuditUnavailable(HostError):
    """The audit ledger cannot be written, so no work is accepted."""

    slug, status, title = "audit-unavailable", 503, "Audit ledger unavailable"
    exit_code = EX_IOERR
    retry_after_s = 30


class DiskFull(HostError):
    """The data folder's disk has no room left."""

    slug, status, title = "disk-full", 507, "Disk full"
    exit_code = EX_IOERR


class DataDirBusy(HostError):
    """Another process already serves this data folder."""

    slug, status, title = "data-dir-busy", 500, "Data folder in use"
    exit_code = EX_TEMPFAIL


class AddressInUse(HostError):
    """Another process already listens on this address."""

    slug, status, title = "address-in-use", 500, "Address in use"
    exit_code = EX_UNAVAILABLE


class ConfigInvalid(HostError):
    """The configuration has an unknown key or a value out of bounds; file and line are named."""

    slug, status, title = "config-invalid", 500, "Configuration invalid"
    exit_code = EX_CONFIG


class PodmanUnavailable(HostError):
    """Rootless Podman cannot be used on this host; the detail names what is missing."""

    slug, status, title = "podman-unavailable", 500, "Podman unavailable"
    exit_code = EX_UNAVAILABLE


class GpuLost(HostError):
    """A GPU this version needs is not there any more, or its driver does not answer."""

    slug, status, title = "gpu-lost", 500, "GPU not there"
    exit_code = EX_UNAVAILABLE


class RuntimeMissing(HostError):
    """The base image of this runtime is not installed on the appliance."""

    slug, status, title = "runtime-missing", 500, "Runtime not installed"
    exit_code = EX_UNAVAILABLE


_QUOTING = (ModelRaised, RunnerCrashed, RunnerProtocol, LoadFailed)


def kept_problem(error: ApplianceError) -> dict[str, Any]:
    """A problem as it is kept: whole, for who may see what of it is decided later.

    ``stderr`` and the words of an exception are in it; whoever keeps it seals it.
    """
    return {
        "code": error.slug,
        "detail": error.detail,
        "hint": error.hint,
        "stderr": list(error.stderr) if isinstance(error, GuestError) else [],
        "extensions": {k: v for k, v in error.extensions.items() if isinstance(v, (int, str))},
    }


def words_of(error: ApplianceError, *, is_owner: bool) -> str:
    """The detail of a problem; of one that may quote the tenant's code and data, for owners only.

    Args:
        error: what went wrong.
        is_owner: whether whoever reads it may see the model's own words.
    """
    if is_owner or not isinstance(error, _QUOTING):
        return error.detail
    return f"{error.title}; what it said is shown to its owner only."


def problem_classes() -> Iterator[type[ApplianceError]]:
    """Every concrete problem class (those that can be raised), parents before children."""
    seen: set[type[ApplianceError]] = set()
    queue: list[type[ApplianceError]] = [ApplianceError]
    while queue:
        cls = queue.pop(0)
        if cls in seen:
            continue
        seen.add(cls)
        yield cls
        queue.extend(cls.__subclasses__())
