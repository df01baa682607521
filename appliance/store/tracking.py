"""What events do to a tenant's runs, drafts, files, notes and promised versions.

Owns: ``Tracking``, one tenant's state of all of these, and ``apply_tracking``, the one place where
an event changes it; the head of a kept file's blob.
Never: appends to the ledger, reads a blob, or decides whether a change is allowed.
Read next: ``state`` (keeps it), ``appliance.tracking`` (makes the events).

Equal blobs of a tenant are stored once, so a kept file begins with its own id: one is deleted
without asking who else has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from appliance.events import (
    DraftRemoved,
    DraftSet,
    Event,
    FileKept,
    FilesRemoved,
    ModelRemoved,
    NotesSet,
    PromiseRemoved,
    RunChanged,
    RunGroupSet,
    RunStarted,
    VersionFailed,
    VersionPromised,
    VersionRegistered,
)
from appliance.tracked import Draft, KeptFile, Notes, Promise, Run, RunGroup

T = TypeVar("T")

TRACKING_EVENTS: dict[str, type[Event]] = {
    cls.KIND: cls
    for cls in (
        RunGroupSet,
        RunStarted,
        RunChanged,
        DraftSet,
        DraftRemoved,
        FileKept,
        FilesRemoved,
        NotesSet,
        VersionPromised,
        VersionFailed,
        PromiseRemoved,
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracking:
    """One tenant's; the maps are replaced, never changed.

    ``notes`` and ``promises`` are by ``at``; ``numbers`` is the highest number each model has
    given out by a promise.
    """

    groups: dict[str, RunGroup] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    drafts: dict[str, Draft] = field(default_factory=dict)
    files: dict[str, dict[str, KeptFile]] = field(default_factory=dict)
    notes: dict[str, Notes] = field(default_factory=dict)
    promises: dict[str, Promise] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)

    def note(self, model_id: str, number: int = 0) -> Notes | None:
        """The notes on a version, or with 0 on its model."""
        return self.notes.get(at(model_id, number))

    def promise(self, model_id: str, number: int) -> Promise | None:
        """The promise a version came from, or should have."""
        return self.promises.get(at(model_id, number))

    def promises_of(self, model_id: str) -> tuple[Promise, ...]:
        """The promised versions of a model, in the order of their numbers."""
        found = (one for one in self.promises.values() if one.model_id == model_id)
        return tuple(sorted(found, key=lambda one: one.number))

    def unkept_of(self, model_id: str) -> tuple[Promise, ...]:
        """Those that are no versions: they wait, are on their way, or failed."""
        return tuple(one for one in self.promises_of(model_id) if one.state != "kept")

    def blob_ids(self) -> set[str]:
        """The blobs of every kept file."""
        return {file.blob.id for files in self.files.values() for file in files.values()}


NOTHING = Tracking()


def at(model_id: str, number: int) -> str:
    """The key of a version's notes or promise."""
    return f"{model_id}/{number}"


def head_of(file_id: str) -> bytes:
    """What the blob of a kept file begins with."""
    return f"{file_id}\0".encode()


def apply_tracking(found: Tracking, event: Event, time_ns: int) -> Tracking:
    """A tenant's tracking after a durable event; ``time_ns`` is its entry's.

    Raises:
        KeyError: the event is about something there is none of.
    """
    match event:
        case RunGroupSet(group=group):
            return replace(found, groups={**found.groups, group.id: group})
        case RunStarted(run=run):
            return replace(found, runs={**found.runs, run.id: run})
        case RunChanged(run_id=run_id):
            run = changed_run(found.runs[run_id], event, time_ns)
            return replace(found, runs={**found.runs, run_id: run})
        case DraftSet(draft=draft):
            return replace(found, drafts={**found.drafts, draft.id: draft})
        case DraftRemoved(draft_id=draft_id):
            return replace(found, drafts=_without(found.drafts, draft_id))
        case FileKept(file=file):
            files = {**found.files.get(file.owner_id, {}), file.path: file}
            return replace(found, files={**found.files, file.owner_id: files})
        case FilesRemoved(owner_id=owner_id, paths=paths):
            left = {p: f for p, f in found.files[owner_id].items() if p not in set(paths)}
            others = _without(found.files, owner_id)
            return replace(found, files={**others, owner_id: left} if left else others)
        case NotesSet(notes=notes):
            return replace(found, notes={**found.notes, at(notes.model_id, notes.number): notes})
        case _:
            return _apply_version(found, event, time_ns)


def _apply_version(found: Tracking, event: Event, time_ns: int) -> Tracking:
    """The events on promised versions, and those of the registry that end something here."""
    match event:
        case VersionPromised(promise=one):
            return replace(
                found,
                promises={**found.promises, at(one.model_id, one.number): one},
                numbers={**found.numbers, one.model_id: one.number},
            )
        case VersionFailed(model_id=model_id, number=number, reason=reason):
            key = at(model_id, number)
            ended = replace(found.promises[key], state="failed", reason=reason, changed_ns=time_ns)
            return replace(found, promises={**found.promises, key: ended})
        case PromiseRemoved(model_id=model_id, number=number):
            return replace(found, promises=_without(found.promises, at(model_id, number)))
        case VersionRegistered(version=version):
            key = at(version.model_id, version.number)
            if key not in found.promises:
                return found
            kept = replace(found.promises[key], state="kept", changed_ns=time_ns)
            return replace(found, promises={**found.promises, key: kept})
        case ModelRemoved(model_id=model_id):
            return replace(
                found,
                notes={k: one for k, one in found.notes.items() if one.model_id != model_id},
                promises={k: one for k, one in found.promises.items() if one.model_id != model_id},
                numbers=_without(found.numbers, model_id),
            )
        case _:
            raise KeyError(event.KIND)


def changed_run(run: Run, event: RunChanged, time_ns: int) -> Run:
    """A run after an event about it."""
    tags = {key: value for key, value in run.tags.items() if key not in event.untagged}
    removed_ns = {1: time_ns, -1: 0}.get(event.removed, run.removed_ns)
    return replace(
        run,
        name=event.name or run.name,
        status=event.status or run.status,
        ended_ms=event.ended_ms or run.ended_ms,
        params={**run.params, **event.params},
        tags={**tags, **event.tags},
        metrics=tuple(dict.fromkeys((*run.metrics, *event.metrics))),  # clients send some twice
        outputs=tuple(dict.fromkeys((*run.outputs, *event.outputs))),
        inputs=tuple(dict.fromkeys((*run.inputs, *event.inputs))),
        data=tuple({(one.name, one.digest): one for one in (*run.data, *event.data)}.values()),
        removed_ns=removed_ns,
    )


def _without(items: Mapping[str, T], key: str) -> dict[str, T]:
    return {k: item for k, item in items.items() if k != key}
