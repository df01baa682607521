"""Calls that calls make, in the name of whoever made the first: what may be called, and how far.

Owns: the rights of such a call (the caller's own, asked of the policy anew each time), that the
manifest declares it, its depth, count, time and memory, and that nothing outlives the call above.
Never: reads frames (``sandbox.calling``), or runs a call itself (``invoke``).
Read next: ``invoke``, ``sandbox.nesting`` (sandboxes that wait for each other).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from appliance import clock, config, steps
from appliance.auth.recorded import principal_of
from appliance.errors import (
    ApplianceError,
    CallLimitReached,
    CallUndeclared,
    Forbidden,
    GuestError,
    InvokeTimeout,
    NotFound,
    ReplyTooLarge,
    StepFailed,
    words_of,
)
from appliance.invoke import Exchange, Invoker, Opening, Outcome, Tally, Under, Via
from appliance.policy import NOT_FOUND, Policy, Principal
from appliance.records import LIVE, Version
from appliance.room import Hold, Room
from appliance.routing import Routing
from appliance.sandbox.spec import Asked, Reply, Request
from appliance.shadow import Answered, Shadows
from appliance.store import Store
from appliance.targets import Step, Target, target_from_text

PARALLEL_MAX = 8
_REFUSED_MAX = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What calls below calls are made with; ``answered`` is told of each that is no trial."""

    store: Store
    invoker: Invoker
    routing: Routing
    shadows: Shadows
    answered: Callable[[Version, Exchange], None]
    policy: Policy
    room: Room
    settings: config.Calls
    body_bytes_max: int


class Outer:
    """One call that may make calls; ``invoke.Below``."""

    parallel_max = PARALLEL_MAX

    def __init__(self, parts: Parts, opening: Opening) -> None:
        """Begin it; ``end`` ends it."""
        limits, under = opening.version.manifest.limits, opening.via.under
        self.deadline_ns = 0
        self.frames_max = limits.calls_max + _REFUSED_MAX
        self.body_bytes_max = parts.body_bytes_max
        self._parts = parts
        self._opening = opening
        self._hold = Hold(parts.room, opening.version.tenant_id)
        self.steps: tuple[tuple[str, str, int], ...] = ()
        self._numbers: dict[str, int] = {}
        self._calls = 0
        self._depth = (under.depth if under else 0) + 1
        allowed = under.depth_max if under else parts.settings.depth_max
        self._depth_max = min(allowed, self._depth - 1 + limits.call_depth_max)
        self._tally = under.tally if under else Tally()
        self._root = under.root if under else opening.call_id
        self._running: set[asyncio.Task[Outcome]] = set()

    def hold(self, size: int) -> None:
        """See ``spec.Calls``."""
        self._hold.add(size)

    def told(self, error: ApplianceError) -> str:
        """See ``spec.Calls``: what a caller with these rights would be told."""
        caller = self._caller()
        is_owner = caller is not None and (caller.kind == "peer" or caller.role == "owner")
        return words_of(error, is_owner=is_owner)

    async def call(self, asked: Asked) -> Reply:
        """See ``spec.Calls``."""
        target = target_from_text(asked.target)
        if target is None or not self._is_declared(target):
            name = asked.target if target else "that"
            raise CallUndeclared(
                f"The manifest does not declare calls of '{name}'.",
                hint=f'calls = ["{name}"]' if target else "",
            )
        outcome = await self.make(target, content_type=asked.content_type, body=asked.body)
        return Reply(
            content_type=outcome.content_type, body=outcome.reply, compute_us=outcome.total_us
        )

    async def make(self, target: Target, *, content_type: str, body: bytes) -> Outcome:
        """Call a model below this call.

        Raises:
            Forbidden: whoever made the first call may not call that model.
            NotFound: there is no such model, version or alias.
            CallLimitReached: it would be one too many, or too deep.
            ApplianceError: what ``Invoker.run`` raises.
        Audit: call.intent and call.outcome with this call as parent.
        """
        self._count()
        model_id, version, revision = self._chosen(target)
        opening = self._opening
        is_shadow = bool(opening.via.shadow_of)
        call_id = clock.new_id("call")
        via = Via(
            # A shadow's calls are no part of what the route of another model did.
            route_revision=0 if is_shadow else revision,
            shadow_of=opening.via.shadow_of,
            caller_id=opening.via.caller_id,
            is_trial=is_shadow or opening.via.is_trial,
            under=Under(
                parent=opening.call_id,
                root=self._root,
                depth=self._depth,
                depth_max=self._depth_max,
                tally=self._tally,
                deadline_ns=self.deadline_ns,
                line=opening.line,
            ),
        )
        run = self._parts.invoker.run(
            principal_id=opening.principal_id,
            request_id=call_id,
            version=version,
            content_type=content_type,
            body=body,
            via=via,
        )
        task = asyncio.create_task(run)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            outcome = await task
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not via.is_trial:
            self._parts.answered(
                version,
                Exchange(
                    call_id=call_id,
                    content_type=content_type,
                    body=body,
                    outcome=outcome,
                    parent=opening.call_id,
                ),
            )
        if via.route_revision:
            self._repeat(call_id, model_id, revision, content_type, body, outcome)
        return outcome

    async def conduct(self, request: Request) -> Reply:
        """See ``invoke.Below``: every step as soon as what it takes is there.

        Raises:
            StepFailed: a step's model or a member is not there; a GuestError: a step's own.
            InvokeTimeout: the pipeline's time was over.
        """
        declared = self._opening.version.manifest
        known = {steps.INPUT: steps.Piece(content_type=request.content_type, body=request.body)}
        try:
            async with asyncio.timeout(request.timeout_ms / 1000):
                await self._walk(declared.steps, known)
                self.steps = tuple(
                    (one.name, one.target.model, self._numbers[one.name]) for one in declared.steps
                )
                piece = await asyncio.to_thread(steps.body_of, "answer", declared.answer, known)
        except TimeoutError as error:
            limit_ms = request.timeout_ms
            raise InvokeTimeout(
                f"The pipeline took longer than {limit_ms} ms.", limit_ms=limit_ms
            ) from error
        if len(piece.body) > request.reply_bytes_max:
            limit = request.reply_bytes_max
            raise ReplyTooLarge(f"The answer is over {limit} bytes.", limit_bytes=limit)
        return Reply(content_type=piece.content_type, body=piece.body, compute_us=0)

    async def _walk(self, parts: tuple[Step, ...], known: dict[str, steps.Piece]) -> None:
        """Make every step, those that do not wait for each other at once."""
        tasks: dict[str, asyncio.Task[None]] = {}

        async def make(step: Step) -> None:
            for name in steps.needs_of(step.take) - {steps.INPUT}:
                await asyncio.shield(tasks[name])
            known[step.name] = await self._made(step, known)

        for step in parts:
            tasks[step.name] = asyncio.create_task(make(step))
        try:
            await asyncio.gather(*tasks.values())
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)

    async def _made(self, step: Step, known: dict[str, steps.Piece]) -> steps.Piece:
        """What a step answers; its problem names it."""
        piece = await asyncio.to_thread(steps.body_of, step.name, step.take, known)
        try:
            outcome = await self.make(step.target, content_type=piece.content_type, body=piece.body)
            self.hold(len(outcome.reply))
        except ApplianceError as error:
            raise self._of_step(step, error) from error
        self._numbers[step.name] = outcome.number
        return steps.Piece(content_type=outcome.content_type, body=outcome.reply)

    @staticmethod
    def _of_step(step: Step, error: ApplianceError) -> ApplianceError:
        """A step's problem as the pipeline's: the same if its model failed."""
        if "step" in error.extensions:
            return error
        text = f"Step '{step.name}' ({step.target}): {error.detail}"
        if not isinstance(error, GuestError):
            return StepFailed(text, hint=error.hint, step=step.name, cause=error.slug)
        error.detail = text
        error.extensions["step"] = step.name
        # The pipeline's own entry is what its caller is told of.
        error.extensions["step_audit_seq"] = error.extensions.pop("audit_seq", 0)
        error.extensions.pop("model_version", None)
        return error

    async def end(self) -> None:
        """See ``invoke.Below``."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        self._hold.give_back()

    def _count(self) -> None:
        """Count a call, if there may be one more.

        Raises:
            CallLimitReached: there may not.
        """
        limits, settings = self._opening.version.manifest.limits, self._parts.settings
        if self._depth > self._depth_max:
            raise CallLimitReached(
                f"This call would be on level {self._depth} below the caller's own; "
                f"{self._depth_max} are allowed.",
                hint="limits.call_depth_max of the manifest; calls.depth_max of the appliance",
            )
        if self._calls >= limits.calls_max:
            raise CallLimitReached(
                f"One call of this version may make {limits.calls_max} calls.",
                hint="limits.calls_max of the manifest",
            )
        if self._tally.calls >= settings.count_max:
            raise CallLimitReached(
                f"There are {settings.count_max} calls below the caller's own, which is the most.",
                hint="calls.count_max of the appliance",
            )
        self._calls += 1
        self._tally.calls += 1

    def _is_declared(self, target: Target) -> bool:
        """Whether the manifest names this target, or its model with nothing more."""
        declared = self._opening.version.manifest.calls
        return str(target) in declared or target.model in declared

    def _chosen(self, target: Target) -> tuple[str, Version, int]:
        """Model, version and route revision of a target that the first caller may call."""
        opening, parts = self._opening, self._parts
        caller = self._caller()
        if caller is None:
            raise Forbidden("Whoever began this call has no rights any more.")
        tenant_id = opening.version.tenant_id
        parts.policy.require(caller, "model:invoke", tenant_id=tenant_id, model=target.model)
        snapshot = parts.store.registry.snapshot
        model = snapshot.model(tenant_id, target.model)
        if model is None:
            raise NotFound(NOT_FOUND)
        number, revision = target.number, 0
        if not number and not target.alias:
            choice = parts.routing.choose(model.id, caller.id, lambda _: "")
            if choice is not None:
                number, revision = choice[0], choice[1].route_revision
        if not number:
            alias = snapshot.alias(model.id, target.alias or LIVE)
            number = alias.number if alias else 0
        version = snapshot.version(model.id, number)
        if version is None:
            raise NotFound(NOT_FOUND)
        return model.id, version, revision

    def _caller(self) -> Principal | None:
        """Whose rights these calls have, as they are now."""
        opening = self._opening
        caller_id = opening.via.caller_id or opening.principal_id
        return principal_of(caller_id, self._parts.store.registry.snapshot)

    def _repeat(
        self,
        call_id: str,
        model_id: str,
        revision: int,
        content_type: str,
        body: bytes,
        outcome: Outcome,
    ) -> None:
        """Have the shadows of a route repeat a call it sent on."""
        if self._parts.shadows.has_any(model_id):
            self._parts.shadows.offer(
                Answered(
                    call_id=call_id,
                    model_id=model_id,
                    revision=revision,
                    content_type=content_type,
                    body=body,
                    reply=outcome.reply,
                    caller_id=self._opening.principal_id,
                )
            )
