"""Pipelines: what ``pipeline.toml`` says, and what each of its steps is given.

Owns: the file's keys and bounds, references to the caller's input and to earlier answers, and the
making of one body from parts of others: members are looked up, nothing is evaluated.
Never: calls a model (``nested``) or reads a file.
Read next: ``nested``, ``records.Step``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from appliance import manifest
from appliance.errors import FieldError, ManifestInvalid, StepFailed
from appliance.records import NAME_PATTERN, CallLimits, Lineage, Manifest
from appliance.targets import PIPELINE, Step, Target

FILE = "pipeline.toml"
INPUT = "input"
_JSON = "application/json"
_REFERENCE = re.compile(r"([a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)((?:/[^/]{1,200}){0,16})")
Name = Annotated[str, Meta(pattern=NAME_PATTERN)]
Reference = Annotated[str, Meta(max_length=1000)]
Member = Annotated[str, Meta(min_length=1, max_length=200)]
Take = Reference | Annotated[dict[Member, Reference], Meta(min_length=1, max_length=64)]


class _Step(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"put": "as"}):
    model: Name
    version: Annotated[int, Meta(ge=1)] | None = None
    alias: Name | None = None
    name: Name | None = None
    take: Take | None = None
    put: Member | None = None


class _Pipeline(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    steps: Annotated[tuple[_Step, ...], Meta(min_length=1, max_length=32)]
    answer: Take | None = None
    description: manifest.Text = ""
    limits: manifest.Limits = manifest.Limits()
    tags: dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=256)]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A body on its way through a pipeline."""

    content_type: str
    body: bytes


def parse(captured: Mapping[str, bytes]) -> Manifest:
    """The manifest of a pipeline.

    Raises:
        ManifestInvalid: not TOML, an unknown or missing key, a value out of bounds, two steps of
            one name, or a reference to what comes later or is not there.
    """
    try:
        _text, tree = manifest.tree_from_toml(captured.get(FILE, b""))
        file = msgspec.convert(tree, _Pipeline)
    except ManifestInvalid as error:
        raise _invalid(error.detail.removeprefix(manifest.FILE + ":")) from error
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from error
    made: list[Step] = []
    for one in file.steps:
        name, known = one.name or one.model, [step.name for step in made]
        if name == INPUT:
            raise _invalid(f"'{name}' stands for the caller's input; give the step another name")
        if name in known:
            raise _invalid(f"two things are called '{name}'; give the step another name")
        if one.version and one.alias:
            raise _invalid(f"step '{name}' has a version and an alias; one of them decides")
        take = _taken(one.take or (known[-1] if known else INPUT), one.put)
        _require_known(f"step '{name}'", take, known)
        target = Target(model=one.model, number=one.version or 0, alias=one.alias or "")
        made.append(Step(name=name, target=target, take=take))
    names = [step.name for step in made]
    answer = _taken(file.answer or names[-1], None)
    _require_known("answer", answer, names)
    return Manifest(
        runtime=PIPELINE,
        entry="",
        description=file.description,
        limits=CallLimits(**msgspec.structs.asdict(file.limits)),
        lineage=Lineage(),
        tags=file.tags,
        steps=tuple(made),
        answer=answer,
    )


def needs_of(take: Mapping[str, str]) -> set[str]:
    """The names of what a body is made of."""
    return {reference.partition("/")[0] for reference in take.values()}


def body_of(step: str, take: Mapping[str, str], known: Mapping[str, Piece]) -> Piece:
    """What a step is given, or the pipeline answers. Blocking where bodies are large.

    Raises:
        StepFailed: a member is not there, or what it is looked for in is not JSON.
    """
    if list(take) == [""] and "/" not in take[""]:
        return known[take[""]]
    trees: dict[str, Any] = {}
    for name in needs_of(take):
        try:
            trees[name] = msgspec.json.decode(known[name].body)
        except (ValueError, RecursionError) as error:
            raise _missing(step, f"'{name}' is not JSON, so nothing of it can be taken") from error
    found = {member: _member(step, reference, trees) for member, reference in take.items()}
    value = found[""] if list(found) == [""] else found
    return Piece(content_type=_JSON, body=msgspec.json.encode(value))


def _member(step: str, reference: str, trees: Mapping[str, Any]) -> Any:
    name, *path = reference.split("/")
    value = trees[name]
    for part in path:
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise _missing(step, f"there is no '{reference}'")
    return value


def _missing(step: str, reason: str) -> StepFailed:
    return StepFailed(f"Step '{step}': {reason}.", step=step)


def _taken(take: str | dict[str, str], put: str | None) -> dict[str, str]:
    if isinstance(take, str):
        return {put or "": take}
    if put:
        raise _invalid("'as' goes with a 'take' that is one reference")
    return dict(take)


def _require_known(who: str, take: Mapping[str, str], names: list[str]) -> None:
    for reference in take.values():
        match = _REFERENCE.fullmatch(reference)
        if match is None or match[1] not in (INPUT, *names):
            there = ", ".join((INPUT, *names))
            raise _invalid(f"{who} takes '{reference[:80]}'; there is {there} (and /members)")


def _invalid(reason: str) -> ManifestInvalid:
    return ManifestInvalid(
        f"{FILE}: {reason}.".replace("..", "."),
        hint='One that works, for example:\nsteps = [{ model = "features", version = 3 }, '
        '{ model = "scorer", alias = "live" }]',
        fields=(FieldError(pointer=FILE, detail=reason),),
    )
