"""The nouns of batches: a table that is scored, how, and the results there are of it.

Owns: these record types.
Never: does input or output.
Read next: ``records`` (all other nouns), ``store.batches`` (what events do to a batch).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from appliance.records import Blob, JobStatus

BatchForm = Literal["records", "rows", "columns", "list"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPart:
    """The results of some rows of a batch that follow each other: a sealed blob, a line per row.

    ``row`` is the first of them, counted from 0; ``failed`` is how many have an error instead;
    ``names`` are the columns of the results, as they first appear.
    """

    row: int
    rows: int
    failed: int
    names: tuple[str, ...]
    blob: Blob


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """How a batch is scored, as its caller asked.

    ``source`` and ``into`` are formats of tables, ``form`` how rows are put into a body and
    ``chunk_rows`` how many of them at most. With ``carry`` the input's columns are in the output.
    ``on_error`` says what a chunk that fails does: end the batch, or leave its failing rows null.
    """

    source: str
    into: str
    form: BatchForm
    chunk_rows: int
    carry: bool = True
    on_error: Literal["fail", "null"] = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A table that a version scores row by row; ``input`` begins with ``id``.

    ``columns`` are name and type of the input's, ``rows`` how many it has. ``parts`` are in no
    order. ``problem`` is why it failed, as a job keeps it.
    """

    id: str
    tenant_id: str
    model_id: str
    number: int
    plan: BatchPlan
    input: Blob
    columns: tuple[tuple[str, str], ...]
    rows: int
    created_ns: int
    created_by: str
    status: JobStatus = "starting"
    started_ns: int = 0
    ended_ns: int = 0
    parts: tuple[BatchPart, ...] = ()
    problem: dict[str, Any] | None = None
