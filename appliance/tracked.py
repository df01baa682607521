"""The nouns of training runs and of what they leave behind: frozen records.

Owns: what a run, a draft, a kept file, a promised version and notes are.
Never: does I/O, or knows the contract they came through.
Read next: ``events.tracking`` (what happens to them), ``store.tracking`` (where they live),
``tracking`` (who changes them).

A draft is a model's files before they are a version; a run is what made them. Notes are what may
still be written on a model or version, whose manifest never changes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from appliance.records import Blob

DEFAULT_GROUP = "0"
"""The group of runs that every tenant has."""

PromiseState = Literal["pending", "kept", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunGroup:
    """Runs that belong together; ``id`` is a decimal number, unique within the tenant."""

    id: str
    name: str
    tags: dict[str, str] = field(default_factory=dict)
    created_ns: int
    created_by: str
    changed_ns: int
    removed_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One measured value; ``value`` is the text of a float, so that nan and inf survive JSON."""

    key: str
    value: str
    step: int = 0
    time_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """Data that a run used, in the words of whoever ran it: nothing of it is fetched or kept.

    ``kind`` says how ``source`` is read; ``schema`` and ``profile`` are texts of the client's own.
    """

    name: str
    digest: str
    kind: str = ""
    source: str = ""
    schema: str = ""
    profile: str = ""
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A training run; ``metrics`` in the order they came, ``outputs`` are ids of drafts.

    ``inputs`` are ids of drafts that it used, ``data`` the data sets, each name and digest once.
    """

    id: str
    group_id: str
    name: str
    status: str
    started_ms: int
    ended_ms: int = 0
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: tuple[Metric, ...] = ()
    outputs: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    data: tuple[DataSet, ...] = ()
    created_by: str
    removed_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A model somebody saved and has not necessarily registered; its files lie under its id."""

    id: str
    group_id: str
    run_id: str = ""
    name: str = ""
    kind: str = ""
    status: str
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: tuple[Metric, ...] = ()
    created_ns: int
    created_by: str
    changed_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFile:
    """A file of a run or draft (``owner_id``); its blob begins with the file's own id."""

    id: str
    owner_id: str
    path: str
    size_bytes: int
    blob: Blob
    created_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """What is written on a version, or with ``number`` 0 on its model, and may change.

    ``description`` is ``None`` where nobody wrote one since the manifest.
    """

    model_id: str
    number: int
    description: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    changed_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """A number given to a version before its registration: it waits, was kept, or failed.

    ``reason`` says why it failed. ``source`` is where its files are, as whoever asked said it;
    ``draft_id`` (a draft's or run's) with ``folder``, or ``of_model`` with ``of_number``, is what
    that means here.
    """

    model_id: str
    number: int
    source: str
    run_id: str = ""
    draft_id: str = ""
    folder: str = ""
    of_model: str = ""
    of_number: int = 0
    state: PromiseState = "pending"
    reason: str = ""
    created_ns: int
    created_by: str
    changed_ns: int
