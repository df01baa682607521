"""Jobs: calls that outlive their request; the newest of every tenant, and the page of one.

Owns: the columns of the jobs table, how a job reads, cancel, and saving an output.
Never: shows an output in the list; a job's own page shows it where it is small and JSON.
Read next: ``document.DocumentPage``, ``screens/batches`` (the same for tables).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from textual import work
from textual.binding import Binding, BindingType

from tui import text
from tui.client import Row, path_of
from tui.dialogs import Confirm
from tui.document import ENDS, DocumentPage, pairs, problem_lines
from tui.files import save_output
from tui.frame import ListPage, Page
from tui.nav import Place
from tui.table import Column

_EXTENSIONS = {"application/json": "json", "text/plain": "txt", "text/csv": "csv"}


def took(row: Row) -> float | None:
    """Seconds from start to end, or until now; None for what has not started."""
    began, ended = text.moment(row["started_at"]), text.moment(row["completed_at"])
    if began is None:
        return None
    return ((ended or text.now()) - began).total_seconds()


def version_of(row: Row) -> str:
    """``risk/fraud v7``."""
    return f"{row['tenant']}/{row['model']} v{row['version']}"


def made_columns(kind: str) -> tuple[Column, ...]:
    """The columns that what was submitted has at its end: age, who, problem, id."""
    return (
        Column(
            name="age",
            title="AGE",
            text=lambda r: text.age(r["created_at"]),
            order=lambda r: r["created_at"],
            width=6,
            right=True,
        ),
        Column(name="code", title="PROBLEM", text=lambda r: r["code"] or "-", width=16, least=100),
        Column(name="id", title=kind, text=lambda r: r["id"], width=20, least=116),
        Column(name="by", title="BY", text=lambda r: r["created_by"], width=18, wide=True),
    )


class Jobs(ListPage):
    """One row per job, the newest first."""

    VIEW = "jobs"
    EMPTY = "No jobs.\nA call becomes one: appliance job submit TENANT/MODEL --data rows.json"
    VERBS = frozenset(("cancel",))
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "open"),
        Binding("x", "cancel", "cancel"),
    ]
    COLUMNS = (
        Column(name="state", title="STATE", text=lambda r: text.word(r["status"]), width=12),
        Column(name="version", title="VERSION", text=version_of, width=20, flex=3),
        Column(
            name="in",
            title="IN",
            text=lambda r: text.size(r["input_bytes"]),
            order=lambda r: r["input_bytes"],
            width=8,
            right=True,
        ),
        Column(
            name="out",
            title="OUT",
            text=lambda r: text.size(r["output_bytes"]),
            order=lambda r: r["output_bytes"],
            width=8,
            right=True,
        ),
        Column(
            name="took",
            title="TOOK",
            text=lambda r: text.spent(took(r)),
            order=took,
            width=7,
            right=True,
        ),
        *made_columns("JOB"),
        Column(
            name="schedule",
            title="SCHEDULE",
            text=lambda r: r["scheduled_by"] or "-",
            width=17,
            wide=True,
        ),
    )

    def key_of(self, row: Row) -> str:
        """Jobs are named by their id."""
        return str(row["id"])

    def open_row(self, row: Row) -> Place:
        """The job's page."""
        return Place("job", (str(row["tenant"]), str(row["id"])))

    @work(exclusive=True, group="dialog")
    async def action_cancel(self) -> None:
        """``x`` cancels the job under the cursor."""
        await cancel(self, self.row, "job", "Its sandbox is ended if it runs.")


class JobPage(DocumentPage):
    """One job: what it took, its problem, its output where that is small."""

    VERBS = frozenset(("cancel",))
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("o", "save", "save output"),
        Binding("x", "cancel", "cancel"),
    ]

    def where(self) -> str:
        """The job's own address."""
        return path_of("api", "v1", "jobs", *self.place.args)

    def lines_of(self, document: Mapping[str, Any]) -> Sequence[str]:
        """Members, problem, output."""
        metrics = document.get("metrics") or {}
        queue, run = metrics.get("queue_ms"), metrics.get("run_ms")
        lines = pairs(
            {
                "state": text.word(document["status"]),
                "version": version_of(document),
                "input": f"{text.size(document['input_bytes'])} of {document['input_type']}",
                "output": _output(document),
                "waited": None if queue is None else f"{text.millis(queue)} ms",
                "ran": None if run is None else f"{text.millis(run)} ms",
                "attempts": metrics.get("attempts"),
                "created": f"{text.stamp(document['created_at'])} by {document['created_by']}",
                "started": document["started_at"] and text.stamp(document["started_at"]),
                "ended": document["completed_at"] and text.stamp(document["completed_at"]),
                "schedule": document["scheduled_by"],
                "webhook": document["webhook"],
                "idempotency": document["idempotency_key"],
                "audit entry": document["audit_seq"],
            }
        )
        lines += problem_lines(document["error"])
        if document["output"] is not None:
            lines += ["", *text.pretty(document["output"]).splitlines()]
        return lines

    @work(exclusive=True, group="dialog")
    async def action_cancel(self) -> None:
        """``x`` cancels this job."""
        await cancel(self, self.document, "job", "Its sandbox is ended if it runs.")

    @work(exclusive=True, group="dialog")
    async def action_save(self) -> None:
        """``o`` saves the output to a file on the machine the console runs on."""
        document = self.document or {}
        if "output" not in (document.get("urls") or {}):
            self.console.say(f"There is no output: the job is {document.get('status', 'unknown')}.")
            return
        tenant, job = self.place.args
        kind = str(document.get("output_type") or "").partition(";")[0].strip()
        await save_output(
            self,
            f"{self.where()}/output",
            name=f"{job}.{_EXTENSIONS.get(kind, 'bin')}",
            what=f"the output of {job}",
            cli=f"appliance job output {tenant}/{job}",
        )


def _output(document: Mapping[str, Any]) -> str:
    if document["output_bytes"] is None:
        return ""
    return f"{text.size(document['output_bytes'])} of {document['output_type']}"


async def cancel(page: Page, row: Row | None, noun: str, effect: str) -> None:
    """Ask, then cancel a job, batch or comparison that has not ended."""
    if row is None or not page.console.may(f"Cancel {noun}"):
        return
    tenant, name = str(row["tenant"]), str(row["id"])
    if row["status"] in ENDS:
        page.console.say(f"This {noun} has ended: {row['status']}.")
        return
    consent = await page.app.push_screen_wait(
        Confirm(
            title=f"Cancel {noun} {name} of {tenant}",
            effect=f"It gets no result. {effect} What it did so far is not undone.",
            verb=f"Cancel {noun}",
        )
    )
    if consent is not None:
        many = {"batch": "batches"}.get(noun, f"{noun}s")
        await page.console.perform(
            "POST",
            path_of("api", "v1", many, tenant, name, "cancel"),
            doing=f"Cancel {noun} {name}",
            done=f"{noun.capitalize()} {name} canceled",
            cli=f"appliance {noun} cancel {tenant}/{name}",
        )
