"""Events of training runs, their files, notes on models, and versions that are on their way.

Owns: every change that is not one of a version itself.
Never: the content of a file.
Read next: ``events`` (the list of all), ``store.tracking`` (what they change).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from appliance.events.base import Event
from appliance.tracked import DataSet, Draft, KeptFile, Metric, Notes, Promise, Run, RunGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class RunGroupSet(Event):
    """A group of runs was made or changed."""

    KIND: ClassVar[str] = "group.set"
    SEALED: ClassVar[bool] = True
    group: RunGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    """A run was made."""

    KIND: ClassVar[str] = "run.started"
    SEALED: ClassVar[bool] = True
    run: Run


@dataclass(frozen=True, slots=True, kw_only=True)
class RunChanged(Event):
    """A run got parameters, tags, metrics, data sets, inputs or outputs, or its head changed.

    ``""`` and 0 leave the head as it was.

    ``removed`` is 1 when it was removed, -1 when it was brought back.
    """

    KIND: ClassVar[str] = "run.changed"
    SEALED: ClassVar[bool] = True
    run_id: str
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    untagged: tuple[str, ...] = ()
    metrics: tuple[Metric, ...] = ()
    outputs: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    data: tuple[DataSet, ...] = ()
    name: str = ""
    status: str = ""
    ended_ms: int = 0
    removed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftSet(Event):
    """A draft was made or changed."""

    KIND: ClassVar[str] = "draft.set"
    SEALED: ClassVar[bool] = True
    draft: Draft


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftRemoved(Event):
    """A draft was removed; its files were removed before."""

    KIND: ClassVar[str] = "draft.removed"
    SEALED: ClassVar[bool] = True
    draft_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileKept(Event):
    """A run or draft got a file, which takes the place of one of the same path."""

    KIND: ClassVar[str] = "file.kept"
    SEALED: ClassVar[bool] = True
    file: KeptFile


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesRemoved(Event):
    """Files of a run or draft were removed; their blobs are about to be."""

    KIND: ClassVar[str] = "file.removed"
    SEALED: ClassVar[bool] = True
    owner_id: str
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NotesSet(Event):
    """The description or tags of a model or version were changed; its manifest was not."""

    KIND: ClassVar[str] = "notes.set"
    SEALED: ClassVar[bool] = True
    notes: Notes


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionPromised(Event):
    """A version's number was given out before its registration, which may still fail."""

    KIND: ClassVar[str] = "version.promised"
    SEALED: ClassVar[bool] = True
    promise: Promise


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionFailed(Event):
    """A promised version could not be registered; its number is never given again."""

    KIND: ClassVar[str] = "version.failed"
    SEALED: ClassVar[bool] = True
    model_id: str
    number: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PromiseRemoved(Event):
    """A version that could not be registered is no longer listed."""

    KIND: ClassVar[str] = "version.dismissed"
    model_id: str
    number: int
