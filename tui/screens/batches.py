"""Batches: tables scored row by row; how far each is, the page of one, and its output.

Owns: the columns of the batches table, how a batch reads, submit, cancel, saving what came out.
Never: looks into a table.
Read next: ``screens/jobs`` (cancel, and the same for single calls).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from textual import work
from textual.binding import Binding, BindingType

from tui import text
from tui.client import Row, path_of
from tui.dialogs import Field, Form, missing
from tui.document import DocumentPage, pairs, problem_lines
from tui.files import media_of, read_data, save_output
from tui.frame import ListPage, Page
from tui.nav import Place
from tui.screens.jobs import cancel, made_columns, took, version_of
from tui.table import Column

_CANCELED = "The calls it makes now are given up."
_BAR = 40
WHERE = ("a file here", "on the appliance")


def rate(row: Row) -> str:
    """Rows per second while it runs, else over its whole time; ``-`` for neither."""
    speed = float(row["rows_per_s"] or 0)
    seconds = took(row)
    if not speed and row["completed_at"] and seconds:
        speed = row["rows_done"] / seconds
    if not speed:
        return text.NONE
    return f"{speed:.2g}/s" if speed < 10 else f"{text.count(speed)}/s"


class Batches(ListPage):
    """One row per batch, the newest first."""

    VIEW = "batches"
    EMPTY = (
        "No batches.\nn has a table scored, or: appliance batch run TENANT/MODEL --data rows.csv"
    )
    VERBS = frozenset(("submit", "cancel"))
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "open"),
        Binding("n", "submit", "new"),
        Binding("o", "save", "save output"),
        Binding("x", "cancel", "cancel"),
    ]
    COLUMNS = (
        Column(name="state", title="STATE", text=lambda r: text.word(r["status"]), width=12),
        Column(name="version", title="VERSION", text=version_of, width=14, flex=3),
        Column(
            name="progress",
            title="PROGRESS",
            text=lambda r: text.bar(r["rows_done"], r["rows"]),
            order=lambda r: r["rows_done"] / max(1, r["rows"]),
            width=13,
        ),
        Column(
            name="rows",
            title="ROWS",
            text=lambda r: f"{text.count(r['rows_done'])}/{text.count(r['rows'])}",
            order=lambda r: r["rows"],
            width=11,
            right=True,
        ),
        Column(
            name="rate",
            title="RATE",
            text=rate,
            order=lambda r: r["rows_per_s"],
            width=7,
            right=True,
        ),
        Column(
            name="left",
            title="LEFT",
            text=lambda r: text.duration(r["eta_s"]),
            order=lambda r: r["eta_s"],
            width=6,
            right=True,
        ),
        Column(
            name="failed",
            title="FAILED",
            text=lambda r: text.count(r["rows_failed"]),
            order=lambda r: r["rows_failed"],
            width=6,
            right=True,
            least=92,
        ),
        *made_columns("BATCH"),
    )

    def key_of(self, row: Row) -> str:
        """Batches are named by their id."""
        return str(row["id"])

    def open_row(self, row: Row) -> Place:
        """The batch's page."""
        return Place("batch", (str(row["tenant"]), str(row["id"])))

    @work(exclusive=True, group="dialog")
    async def action_submit(self) -> None:
        """``n`` has a table scored: a file here, or one of a folder the appliance may read."""
        await submit(self, self.place.args[0] if self.place.args else "")

    @work(exclusive=True, group="dialog")
    async def action_cancel(self) -> None:
        """``x`` cancels the batch under the cursor."""
        await cancel(self, self.row, "batch", _CANCELED)

    @work(exclusive=True, group="dialog")
    async def action_save(self) -> None:
        """``o`` saves the output of the batch under the cursor."""
        await _save(self, self.row)


class BatchPage(DocumentPage):
    """One batch: how far, how fast, how it is asked, and where its output is."""

    VERBS = frozenset(("cancel",))
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("o", "save", "save output"),
        Binding("x", "cancel", "cancel"),
    ]

    def where(self) -> str:
        """The batch's own address."""
        return path_of("api", "v1", "batches", *self.place.args)

    def lines_of(self, document: Mapping[str, Any]) -> Sequence[str]:
        """Progress, then what it is."""
        done, rows = document["rows_done"], document["rows"]
        columns = [f"{one['name']} {one['type']}" for one in document["columns"]]
        lines = [
            text.bar(done, rows, _BAR),
            f"{done} of {rows} rows, {document['rows_failed']} without a result",
            "",
        ]
        lines += pairs(
            {
                "state": text.word(document["status"]),
                "version": version_of(document),
                "rate": rate(document),
                "left": document["eta_s"] and text.duration(document["eta_s"]),
                "took": text.spent(took(document)),
                "input": f"{text.size(document['input_bytes'])} of {document['source']}",
                "asked in": f"{document['form']}, at most {document['chunk_rows']} rows a call",
                "a row fails": _on_error(document),
                "output": _output(document),
                "saved by": _saved_by(document),
                "taken from": document["taken_from"],
                "put into": document["put_into"],
                "schedule": document["scheduled_by"],
                "webhook": document["webhook"],
                "created": f"{text.stamp(document['created_at'])} by {document['created_by']}",
                "started": document["started_at"] and text.stamp(document["started_at"]),
                "ended": document["completed_at"] and text.stamp(document["completed_at"]),
            }
        )
        lines += problem_lines(document["error"])
        return [*lines, "", f"{len(columns)} columns", *(f"  {name}" for name in columns)]

    @work(exclusive=True, group="dialog")
    async def action_cancel(self) -> None:
        """``x`` cancels this batch."""
        await cancel(self, self.document, "batch", _CANCELED)

    @work(exclusive=True, group="dialog")
    async def action_save(self) -> None:
        """``o`` saves the output to a file on the machine the console runs on."""
        await _save(self, self.document)


def _on_error(document: Mapping[str, Any]) -> str:
    if document["on_error"] == "null":
        return "it has no result, and its reason in the column 'error'"
    return "the batch ends"


def _output(document: Mapping[str, Any]) -> str:
    carried = "the table's columns and the results" if document["carry"] else "the results"
    return f"{document['into']}: {carried}"


def _saved_by(document: Mapping[str, Any]) -> str:
    if document["status"] != "succeeded":
        return ""
    name = f"{document['tenant']}/{document['id']}"
    return f"o, or appliance batch output {name}"


async def submit(page: Page, tenant: str) -> None:
    """Ask for a version and a table, send it, and open what became of it."""
    if not page.console.may("New batch"):
        return
    sent: list[bytes] = []

    def check(values: Mapping[str, str]) -> str:
        wrong = missing(
            values,
            model="Type tenant/model, tenant/model:3 or tenant/model@alias.",
            table="Type the name of a file with the table.",
        )
        if wrong or values["where"] != WHERE[0]:
            return wrong
        data = read_data(values["table"])
        if isinstance(data, str):
            return data
        sent.append(data)
        return ""

    fields = [
        Field(name="model", label="Version", value=tenant and f"{tenant}/", hint="demo/churn:3"),
        Field(name="where", label="Table is", words=WHERE),
        Field(name="table", label="File", hint="rows.parquet .csv .ndjson .json"),
        Field(name="into", label="Output as", words=("parquet", "csv", "ndjson")),
        Field(name="to", label="Output to", hint="FOLDER/file; empty: kept sealed"),
        Field(name="on_error", label="A row fails", words=("fail", "null")),
    ]
    values = await page.app.push_screen_wait(
        Form(title="New batch", fields=fields, verb="Score", check=check, describe=_effect)
    )
    if values is None:
        return
    is_sent = values["where"] == WHERE[0]
    params = {"into": values["into"], "on_error": values["on_error"]}
    params |= {"to": values["to"]} if values["to"] else {}
    params |= {} if is_sent else {"from": values["table"]}
    source = f"{'--data' if is_sent else '--from'} {values['table']}"
    target = f" --to {values['to']}" if values["to"] else ""
    reply = await page.console.perform(
        "POST",
        _scored_by(values["model"]),
        params=params,
        data=sent[-1] if is_sent else None,
        headers={"Content-Type": media_of(values["table"])} if is_sent else {},
        doing=f"Score {values['table']} with {values['model']}",
        done=f"{values['model']} scores {values['table']}",
        cli=f"appliance batch submit {values['model']} {source}{target} --into {values['into']}"
        f" --on-error {values['on_error']}",
    )
    if reply is not None and isinstance(reply.data, dict) and reply.data.get("id"):
        page.console.go(Place("batch", (str(reply.data["tenant"]), str(reply.data["id"]))))


def _scored_by(words: str) -> str:
    """The address that takes a table for ``tenant/model``, with ``:3`` or ``@alias`` or neither."""
    tenant, _, rest = words.partition("/")
    model, colon, version = rest.partition(":")
    if colon:
        return path_of("api", "v1", "models", tenant, model, "versions", version, "batch")
    model, at, alias = rest.partition("@")
    more = ("aliases", alias) if at else ()
    return path_of("api", "v1", "models", tenant, model, *more, "batch")


def _effect(values: Mapping[str, str]) -> str:
    where = "sent from here" if values["where"] == WHERE[0] else "read where the appliance is"
    fails = "ends the batch" if values["on_error"] == "fail" else "has no result, and its reason"
    return f"The table is {where} and kept sealed. A row that fails {fails}."


async def _save(page: ListPage | DocumentPage, row: Row | None) -> None:
    if row is None:
        return
    if row["status"] != "succeeded":
        page.console.say(f"There is no output: the batch is {row['status']}.")
        return
    tenant, name = str(row["tenant"]), str(row["id"])
    await save_output(
        page,
        path_of("api", "v1", "batches", tenant, name, "output"),
        name=f"{name}.{row['into']}",
        what=f"the output of {name}",
        cli=f"appliance batch output {tenant}/{name}",
    )
