"""Which problem each kind of end becomes: whose fault it was, and what to do about it.

Owns: the words and the class of what a caller is told when a model failed, or ended.
Never: ends anything, waits, or looks at a process; it judges what was found out.
Read next: ``container`` (finds it out), ``lacking`` (what a runtime does not have).
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.errors import (
    ApplianceError,
    GpuOutOfMemory,
    InvokeTimeout,
    LoadFailed,
    LoadTimeout,
    ModelRaised,
    ReplyTooLarge,
    RunnerCrashed,
    RunnerProtocol,
)
from appliance.sandbox import lacking
from appliance.sandbox.confined import out_of_memory
from appliance.sandbox.frames import GuestFault
from appliance.sandbox.spec import MIB, SandboxSpec

_OF_THE_MODEL = frozenset({"raised", "import", "entry", "unsupported", "input"})


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """What was found out about a sandbox whose link ended while something was waited for."""

    is_over: bool  # its first process ended
    was_stopped: bool  # by the appliance
    over_memory: bool
    over_gpu_memory: bool
    exit_code: int | None  # below zero: minus the number of a signal
    was_loading: bool


def late_load(limit_ms: int, waiting: str, stderr: tuple[str, ...]) -> LoadTimeout:
    """The problem of a model that was not ready in time; ``waiting`` says what for, if known."""
    return LoadTimeout(
        f"The model was not ready after {limit_ms} ms{waiting}.",
        hint="what it printed last is in 'stderr'; if it only needs longer, raise [limits] "
        "load_timeout_ms in appliance.toml",
        stderr=stderr,
        limit_ms=limit_ms,
    )


def late_call(limit_ms: int, stderr: tuple[str, ...]) -> InvokeTimeout:
    """The problem of a call that was not answered in time."""
    return InvokeTimeout(
        f"The model did not answer within {limit_ms} ms.", stderr=stderr, limit_ms=limit_ms
    )


def too_large(limit_bytes: int, stderr: tuple[str, ...]) -> ReplyTooLarge:
    """The problem of an answer over its cap, announced or sent."""
    return ReplyTooLarge(
        f"The model's answer is larger than {limit_bytes} bytes.",
        stderr=stderr,
        limit_bytes=limit_bytes,
    )


def is_fatal(fault: GuestFault) -> bool:
    """Whether a sandbox cannot be used again after a call failed like this."""
    return fault.kind not in _OF_THE_MODEL


def of_load_fault(spec: SandboxSpec, fault: GuestFault, stderr: tuple[str, ...]) -> ApplianceError:
    """The problem of a model whose runner said why it does not load."""
    tail = (*stderr, *fault.trace)
    if fault.kind == "memory":
        return out_of_memory(spec, tail)
    lack = lacking.in_fault(
        spec.runtime, kind=fault.kind, missing=fault.missing, detail=fault.detail
    )
    if lack:
        return lack.problem(tail)
    return LoadFailed(f"The model does not load: {fault.detail}", stderr=list(tail))


def of_call_fault(spec: SandboxSpec, fault: GuestFault, stderr: tuple[str, ...]) -> ApplianceError:
    """The problem of a call whose runner said why it failed."""
    tail = (*stderr, *fault.trace)
    if fault.kind == "memory":
        return out_of_memory(spec, tail)
    if is_fatal(fault):
        return RunnerProtocol("The model sent an unknown kind of failure.", stderr=tail)
    return ModelRaised(fault.detail or "The model raised an exception.", stderr=tail)


def of_end(spec: SandboxSpec, end: End, stderr: tuple[str, ...]) -> ApplianceError:
    """The problem of a sandbox that ended without a word."""
    if end.over_gpu_memory:
        size = spec.resources.gpu_memory_bytes
        return GpuOutOfMemory(
            f"The model used more than its {size // MIB} MiB of GPU memory.",
            stderr=stderr,
            hint="raise [resources] gpu_memory_mb in appliance.toml",
            limit_bytes=size,
        )
    if end.over_memory:
        return out_of_memory(spec, stderr)
    if not end.is_over:
        return RunnerProtocol("The model closed its connection.", stderr=stderr)
    code = end.exit_code
    if code is not None and code < 0:
        code = 128 - code
    lack = lacking.in_last_words(code, stderr) if end.was_loading else None
    if lack:
        return lack.problem(stderr)
    said = "was stopped" if end.was_stopped else f"ended with exit code {code}"
    return RunnerCrashed(
        f"The model's process {said} while it was working.", stderr=stderr, exit_code=code
    )
