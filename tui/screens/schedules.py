"""Schedules: calls submitted as jobs by the clock, when each is due, what became of it.

Owns: the columns of the schedules table, how one reads, create, pause, resume, run now, remove.
Never: computes when something is due; the server does.
Read next: ``frame.ListPage``, ``document.DocumentPage``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from textual import work
from textual.binding import Binding, BindingType

from tui import text
from tui.client import Row, path_of
from tui.dialogs import Confirm, Field, Form, missing
from tui.document import DocumentPage, pairs
from tui.files import body_of
from tui.frame import ListPage, Page
from tui.nav import Place
from tui.table import Column

_NO = ("no", "yes")
_OPTIONS = ("cron", "timezone", "catch_up", "overlap", "repeatable")
_RUN_WORDS = {"started": "OK started", "overlap": "- overlap", "missed": "! missed"}


def target_of(row: Row) -> str:
    """``risk/fraud``, ``risk/fraud@champion``, ``risk/fraud:3``."""
    return f"{row['tenant']}/{row['model']}{row['target']}"


def state_of(row: Row) -> str:
    """The state with its mark: what stopped needs somebody."""
    state = str(row["state"])
    return f"X {state}" if state.startswith("stopped") else text.word(state)


def soon(value: object) -> str:
    """How long until a time, ``now`` once it is there; ``-`` for none."""
    at = text.moment(value)
    if at is None:
        return text.NONE
    left = (at - text.now()).total_seconds()
    return f"in {text.duration(left)}" if left > 0 else "now"


def run_word(run: Mapping[str, Any] | None) -> str:
    """What became of a time that was due: how its job is now, or why there was none."""
    if run is None:
        return text.NONE
    code = str(run["code"])
    if code == "started" and run.get("status"):
        return text.word(run["status"])
    return _RUN_WORDS.get(code, f"X {code}")


class Schedules(ListPage):
    """One row per schedule, the newest first."""

    VIEW = "schedules"
    EMPTY = "No schedules.\nn has a call submitted by the clock."
    VERBS = frozenset(("new", "hold", "run_now", "remove"))
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "open"),
        Binding("n", "new", "new"),
        Binding("t", "run_now", "run now"),
        Binding("h", "hold", "pause/resume"),
        Binding("x", "remove", "remove"),
    ]
    COLUMNS = (
        Column(name="state", title="STATE", text=state_of, width=9, flex=1),
        Column(name="model", title="CALLS", text=target_of, width=14, flex=3),
        Column(name="cron", title="CRON", text=lambda r: r["cron"], width=15),
        Column(
            name="next",
            title="NEXT",
            text=lambda r: soon(_next(r)),
            order=lambda r: _next(r),
            width=9,
            right=True,
        ),
        Column(name="last", title="LAST RUN", text=lambda r: run_word(r["last"]), width=16),
        Column(
            name="ago",
            title="AGO",
            text=lambda r: text.age((r["last"] or {}).get("due_at")),
            order=lambda r: (r["last"] or {}).get("due_at"),
            width=6,
            right=True,
            least=88,
        ),
        Column(name="zone", title="ZONE", text=lambda r: r["timezone"], width=16, least=100),
        Column(
            name="due",
            title="DUE (UTC)",
            text=lambda r: text.stamp(_next(r))[5:16] if _next(r) else text.NONE,
            width=11,
            least=118,
        ),
        Column(name="id", title="SCHEDULE", text=lambda r: r["id"], width=17, wide=True),
        Column(name="by", title="BY", text=lambda r: r["created_by"], width=18, wide=True),
    )

    def key_of(self, row: Row) -> str:
        """Schedules are named by their id."""
        return str(row["id"])

    def open_row(self, row: Row) -> Place:
        """The schedule's page."""
        return Place("schedule", (str(row["tenant"]), str(row["id"])))

    @work(exclusive=True, group="dialog")
    async def action_new(self) -> None:
        """``n`` creates a schedule."""
        row = self.row
        tenant = self.place.args[0] if self.place.args else str(row["tenant"]) if row else ""
        await create(self, tenant)

    @work(exclusive=True, group="dialog")
    async def action_run_now(self) -> None:
        """``t`` submits the job of the schedule under the cursor once more."""
        await run_now(self, self.row)

    @work(exclusive=True, group="dialog")
    async def action_hold(self) -> None:
        """``h`` pauses or resumes the schedule under the cursor."""
        await hold(self, self.row)

    @work(exclusive=True, group="dialog")
    async def action_remove(self) -> None:
        """``x`` removes the schedule under the cursor."""
        await remove(self, self.row)


class SchedulePage(DocumentPage):
    """One schedule: when it is due next, and what became of the last times."""

    VERBS = frozenset(("hold", "run_now", "remove"))
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("t", "run_now", "run now"),
        Binding("h", "hold", "pause/resume"),
        Binding("x", "remove", "remove"),
    ]

    def where(self) -> str:
        """The schedule's own address."""
        return path_of("api", "v1", "schedules", *self.place.args)

    def is_over(self, document: Mapping[str, Any]) -> bool:
        """It is always due again."""
        return False

    def lines_of(self, document: Mapping[str, Any]) -> Sequence[str]:
        """What it is, the next times, the last runs."""
        lines = pairs(
            {
                "state": state_of(document),
                "calls": target_of(document),
                "when": f"{document['cron']}  {document['timezone']}",
                "body": _body(document),
                "table from": (document["batch"] or {}).get("taken_from"),
                "output to": (document["batch"] or {}).get("put_into"),
                "after a gap": _CATCH_UP.get(str(document["catch_up"]), document["catch_up"]),
                "overlap": "also while the run before goes on" if document["overlap"] else "no",
                "repeatable": "what a restart cut off runs again"
                if document["repeatable"]
                else "no",
                "in whose name": document["run_as"],
                "created": f"{text.stamp(document['created_at'])} by {document['created_by']}",
            }
        )
        lines += ["", "next, UTC"]
        lines += [f"  {text.stamp(at)}  {soon(at)}" for at in document["next"]] or ["  never"]
        lines += ["", "last runs, UTC"]
        return lines + ([_run_line(run) for run in document["runs"]] or ["  none yet"])

    @work(exclusive=True, group="dialog")
    async def action_run_now(self) -> None:
        """``t`` submits its job once more."""
        await run_now(self, self.document)

    @work(exclusive=True, group="dialog")
    async def action_hold(self) -> None:
        """``h`` pauses or resumes it."""
        await hold(self, self.document)

    @work(exclusive=True, group="dialog")
    async def action_remove(self) -> None:
        """``x`` removes it and goes back to the list."""
        if await remove(self, self.document):
            self.console.back()


_CATCH_UP = {"one": "one run makes up for all that were missed", "none": "nothing is made up for"}


def _next(row: Row) -> str | None:
    upcoming = row["next"] or ()
    return str(upcoming[0]) if upcoming else None


def _body(document: Mapping[str, Any]) -> str:
    if document["batch"]:
        return ""
    return f"{text.size(document['input_bytes'])} of {document['input_type']}"


def _run_line(run: Mapping[str, Any]) -> str:
    many = f"  {run['count']} times" if int(run["count"] or 1) > 1 else ""
    by_hand = "  by hand" if run["manual"] else ""
    what = run["job"] or run.get("batch") or ""
    return f"  {text.stamp(run['due_at'])}  {run_word(run):<14} {what}{many}{by_hand}"


async def create(page: Page, tenant: str) -> None:
    """Ask for a schedule and create it; what the server refuses is shown as it says it."""
    if not page.console.may("New schedule"):
        return
    bodies: list[tuple[bytes, str]] = []

    def check(values: Mapping[str, str]) -> str:
        wrong = missing(
            values,
            tenant="Type the tenant's name.",
            model="Type a model's name.",
            cron="Type five fields: minute hour day month weekday.",
        )
        if wrong or values["from"]:
            return wrong or ("Type a body or a table, not both." if values["body"] else "")
        if not values["body"]:
            return "Type a body (a file's name, or JSON), or a table in a folder."
        body = body_of(values["body"])
        if isinstance(body, str):
            return body
        bodies.append(body)
        return ""

    values = await page.app.push_screen_wait(
        Form(
            title="New schedule",
            fields=[
                Field(name="tenant", label="Tenant", value=tenant),
                Field(name="model", label="Model", hint="churn, churn:3 or churn@champion"),
                Field(name="cron", label="Cron", hint="minute hour day month weekday"),
                Field(name="timezone", label="Time zone", value="UTC", hint="Europe/Berlin"),
                Field(name="body", label="Body", hint='a file, or JSON such as {"rows": [[1]]}'),
                Field(name="from", label="Or a table", hint="FOLDER/{date}/rows.parquet"),
                Field(name="to", label="Its output to", hint="FOLDER/{date}/scored.parquet"),
                Field(name="catch_up", label="After a gap", words=("one", "none")),
                Field(name="overlap", label="Overlap", words=_NO),
                Field(name="repeatable", label="Repeatable", words=_NO),
            ],
            verb="Create",
            check=check,
            describe=_effect,
        )
    )
    if values is None:
        return
    body, kind = (None, "") if values["from"] else bodies[-1]
    model, where = _target(values["model"])
    options = {name: values[name] for name in _OPTIONS}
    await page.console.perform(
        "POST",
        path_of("api", "v1", "models", values["tenant"], model, "schedules"),
        params={**options, **where, **_table(values)},
        data=body,
        headers={"Content-Type": kind} if kind else {},
        doing=f"Schedule {values['tenant']}/{values['model']}",
        done=f"Scheduled {values['tenant']}/{values['model']}",
        cli=(
            f"appliance schedule create {values['tenant']}/{values['model']}"
            f' --cron "{values["cron"]}" --timezone {values["timezone"]}{_source(values)}'
        ),
    )


def _table(values: Mapping[str, str]) -> dict[str, str]:
    """The table that is scored each time instead of a call, as parameters."""
    return {name: values[name] for name in ("from", "to") if values["from"] and values[name]}


def _source(values: Mapping[str, str]) -> str:
    table = _table(values)
    return "".join(f" --{name} {value}" for name, value in table.items()) or " --data FILE"


def _target(words: str) -> tuple[str, dict[str, str]]:
    """``churn:3`` as a name and what of it is called."""
    name, colon, version = words.partition(":")
    if colon:
        return name, {"version": version}
    name, at, alias = words.partition("@")
    return name, {"alias": alias} if at else {}


def _effect(values: Mapping[str, str]) -> str:
    gap = _CATCH_UP[values["catch_up"]]
    more = " A run starts while the one before goes on." if values["overlap"] == "yes" else ""
    if values["repeatable"] == "yes":
        more += " A run that a restart cut off starts again."
    what = "The table is scored each time." if values["from"] else "The body is kept sealed."
    return f"{what} After a gap {gap}.{more}"


async def run_now(page: Page, row: Row | None) -> None:
    """Ask, then submit a schedule's job once more, now."""
    if row is None or not page.console.may("Run now"):
        return
    tenant, name = str(row["tenant"]), str(row["id"])
    consent = await page.app.push_screen_wait(
        Confirm(
            title=f"Run schedule {name} now",
            effect=f"{target_of(row)} gets one job more, in your name; what is due stays due.",
            verb="Run now",
        )
    )
    if consent is None:
        return
    reply = await page.console.perform(
        "POST",
        path_of("api", "v1", "schedules", tenant, name, "run"),
        doing=f"Run schedule {name} now",
    )
    if reply is not None:
        job = reply.data.get("id", "") if isinstance(reply.data, dict) else ""
        page.console.say(
            f"Submitted {job}: :job {tenant} {job}\n{reply.request_id}"
            f"\n$ appliance schedule run-now {tenant}/{name}"
        )


async def hold(page: Page, row: Row | None) -> None:
    """Ask, then pause a schedule that is active, or resume one that is not."""
    if row is None or not page.console.may("Pause or resume"):
        return
    tenant, name = str(row["tenant"]), str(row["id"])
    is_active = row["state"] == "active"
    verb = "pause" if is_active else "resume"
    consent = await page.app.push_screen_wait(
        Confirm(
            title=f"{verb.capitalize()} schedule {name}",
            effect=(
                f"{target_of(row)} is not called by it until it is resumed."
                if is_active
                else f"{target_of(row)} is called by it again, in your name;"
                " what was due meanwhile is not made up for."
            ),
            verb=verb.capitalize(),
        )
    )
    if consent is not None:
        await page.console.perform(
            "POST",
            path_of("api", "v1", "schedules", tenant, name, verb),
            doing=f"{verb.capitalize()} schedule {name}",
            done=f"Schedule {name} {verb}d",
            cli=f"appliance schedule {verb} {tenant}/{name}",
        )


async def remove(page: Page, row: Row | None) -> bool:
    """Ask, then remove a schedule; whether it was."""
    if row is None or not page.console.may("Remove schedule"):
        return False
    tenant, name = str(row["tenant"]), str(row["id"])
    consent = await page.app.push_screen_wait(
        Confirm(
            title=f"Remove schedule {name} of {tenant}",
            effect=f"{target_of(row)} is not called by it any more, and its body is deleted."
            " Jobs it submitted go on.",
            verb="Remove schedule",
        )
    )
    if consent is None:
        return False
    reply = await page.console.perform(
        "DELETE",
        path_of("api", "v1", "schedules", tenant, name),
        doing=f"Remove schedule {name}",
        done=f"Schedule {name} removed",
        cli=f"appliance schedule rm {tenant}/{name}",
    )
    return reply is not None
