"""The nouns of batches: a table that is scored, how, and the results there are of it.

Owns: these record types.
Never: does input or output.
Read next: ``records`` (all other nouns), ``store.batches`` (what events do to a batch).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from appliance.records import Blob, JobStatus, Version

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
class BatchWish:
    """What a caller asks for; what else there is of it is said at ``Batch``.

    ``version`` scores the rows, ``target`` is how the caller named it. ``plan.source`` is empty
    where the table's ``media_type``, the name of its file or its first bytes say it.
    """

    principal_id: str
    version: Version
    plan: BatchPlan
    target: str = ""
    media_type: str = ""
    idempotency_key: str = ""
    webhook: str = ""
    webhook_events: tuple[str, ...] = ()
    taken_from: str = ""
    put_into: str = ""
    scheduled_by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A table that a version scores row by row; ``input`` begins with ``id``.

    ``columns`` are name and type of the input's, ``rows`` how many it has. ``parts`` are in no
    order. ``problem`` is why it failed, as a job keeps it.

    ``idempotency_key`` is the caller's, and ``request_digest`` tells requests with one key apart.
    ``webhook`` and ``webhook_events`` are where its caller is told of it, and of what.
    ``taken_from`` and ``put_into`` are files in folders that IT declared, ``NAME/path``: where the
    table was read, and where the output is written once every row has its result.
    ``scheduled_by`` is the schedule that submitted it.
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
    idempotency_key: str = ""
    request_digest: str = ""
    webhook: str = ""
    webhook_events: tuple[str, ...] = ()
    taken_from: str = ""
    put_into: str = ""
    scheduled_by: str = ""

    @property
    def has_output(self) -> bool:
        """Whether every row has its result: a batch may fail after that, while it is put down."""
        is_whole = self.status == "failed" and self.rows_done == self.rows
        return self.status == "succeeded" or is_whole

    @property
    def rows_done(self) -> int:
        """Rows that have a result."""
        return sum(part.rows for part in self.parts)

    @property
    def rows_failed(self) -> int:
        """Rows that have an error instead of a result."""
        return sum(part.failed for part in self.parts)
