"""Comparisons: data sets and kept calls through several versions, and what that showed.

Owns: the columns of the comparisons table, how a report reads, start, cancel.
Never: computes anything of a report.
Read next: ``screens/samples`` (the calls that a replay repeats), ``document.DocumentPage``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from rich.cells import cell_len
from textual import work
from textual.binding import Binding, BindingType

from tui import text
from tui.client import Row, path_of
from tui.dialogs import Field, Form, missing
from tui.document import DocumentPage, pairs, problem_lines
from tui.files import media_of, read_data
from tui.frame import ListPage, Page
from tui.nav import Place
from tui.screens.jobs import cancel, made_columns, took
from tui.table import Column

TASKS = ("as the data looks", "classification", "regression", "ranking", "other")
_KINDS = {"data": "data set", "replay": "replay"}
_BAR = 40
_ANSWER = 32
_INPUT = 56
_CANCELED = "Calls that are made now are given up, and the data set is deleted."


def targets_of(row: Row) -> str:
    """``fraud:3 fraud:4``."""
    return " ".join(f"{one['model']}:{one['version']}" for one in row["targets"])


class Comparisons(ListPage):
    """One row per comparison or replay, the newest first."""

    VIEW = "comparisons"
    EMPTY = "No comparisons.\nn sends a data set through versions; :samples repeats kept calls."
    VERBS = frozenset(("new", "cancel"))
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "report"),
        Binding("n", "new", "new"),
        Binding("x", "cancel", "cancel"),
    ]
    COLUMNS = (
        Column(name="state", title="STATE", text=lambda r: text.word(r["status"]), width=12),
        Column(name="tenant", title="TENANT", text=lambda r: r["tenant"], width=9, flex=1),
        Column(name="targets", title="VERSIONS", text=targets_of, width=14, flex=4),
        Column(
            name="of", title="OF", text=lambda r: _KINDS.get(r["source"]) or r["source"], width=8
        ),
        Column(
            name="rows",
            title="ROWS",
            text=lambda r: text.count(r["rows"]),
            order=lambda r: r["rows"],
            width=5,
            right=True,
        ),
        Column(
            name="progress",
            title="PROGRESS",
            text=lambda r: text.bar(r["done"], r["total"]),
            order=lambda r: r["done"] / max(1, r["total"]),
            width=13,
        ),
        *made_columns("COMPARISON"),
    )

    def key_of(self, row: Row) -> str:
        """Comparisons are named by their id."""
        return str(row["id"])

    def open_row(self, row: Row) -> Place:
        """The report."""
        return Place("comparison", (str(row["tenant"]), str(row["id"])))

    @work(exclusive=True, group="dialog")
    async def action_new(self) -> None:
        """``n`` sends a data set through versions."""
        row = self.row
        tenant = self.place.args[0] if self.place.args else str(row["tenant"]) if row else ""
        await compare(self, tenant)

    @work(exclusive=True, group="dialog")
    async def action_cancel(self) -> None:
        """``x`` cancels the comparison under the cursor."""
        await cancel(self, self.row, "comparison", _CANCELED)


class ComparisonPage(DocumentPage):
    """One comparison or replay: how far it is, then its report."""

    VERBS = frozenset(("cancel",))
    BINDINGS: ClassVar[list[BindingType]] = [Binding("x", "cancel", "cancel")]

    def where(self) -> str:
        """The comparison's own address."""
        return path_of("api", "v1", "comparisons", *self.place.args)

    def lines_of(self, document: Mapping[str, Any]) -> Sequence[str]:
        """Progress or report."""
        lines = pairs(
            {
                "state": text.word(document["status"]),
                "versions": targets_of(document),
                "of": _KINDS.get(document["source"], document["source"]),
                "rows": document["rows"],
                "took": text.spent(took(document)),
                "created": f"{text.stamp(document['created_at'])} by {document['created_by']}",
            }
        )
        lines += problem_lines(document["error"])
        if document["report"] is not None:
            return [*lines, "", *report_lines(document["report"])]
        if document["replay"] is not None:
            return [*lines, "", *replay_lines(document["replay"])]
        if document["status"] in ("starting", "processing"):
            done, total = document["done"], document["total"]
            lines += ["", text.bar(done, total, _BAR), f"{done} of {total} rows asked"]
        return lines

    @work(exclusive=True, group="dialog")
    async def action_cancel(self) -> None:
        """``x`` cancels it."""
        await cancel(self, self.document, "comparison", _CANCELED)


# -- how a report reads ----------------------------------------------------------------------------


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """Figures by version, how the versions agree, and the rows that differ most."""
    names = [f"{one['model']}:{one['version']}" for one in report["targets"]]
    told = "told from the data" if report["is_task_inferred"] else "as asked"
    label = f", true is '{report['label']}'" if report["label"] else ""
    lines = [f"{report['rows']} rows, {report['task']} ({told}){label}", ""]
    lines += grid(["", *names], _figures(report["targets"]))
    failed = [one for one in report["targets"] if one["failed_rows"]]
    for one in failed:
        why = ", ".join(f"{code} {count}" for code, count in one["problems"].items())
        lines.append(f"! {one['model']}:{one['version']}: {one['failed_rows']} rows failed: {why}")
    if report["agreement"]:
        rows = [_agreement(one, names) for one in report["agreement"]]
        lines += ["", *grid(["AGREE", "SHARE", "ROWS", "MEAN DIFFERENCE"], rows)]
    if report["worst"]:
        lines += ["", "differ most" if len(names) > 1 else "most wrong"]
        for one in report["worst"]:
            lines += _worst(one, names)
    elif len(names) > 1:
        lines += ["", "no rows to show that differ"]
    return lines


def replay_lines(report: Mapping[str, Any]) -> list[str]:
    """How often what was answered, how long it took then and now, and what differs most."""
    calls, then, now = report["calls"], report["latency_then"], report["latency_now"]
    versions = ", ".join(f"{count} of v{one}" for one, count in report["versions"].items())
    lines = [f"{calls} calls ({versions}) to {report['model']}:{report['against']}", ""]
    lines += [
        f"{name:<10} {text.bar(report[name], calls, 20)}  {report[name]}"
        for name in ("equal", "close", "different", "failed")
    ]
    if report["gone"]:
        lines.append(f"{report['gone']} were deleted meanwhile")
    if report["problems"]:
        failed = ", ".join(f"{code} {count}" for code, count in report["problems"].items())
        lines.append(f"! failed with {failed}")
    rows = [
        ["p50 ms", number(then["p50_ms"]), number(now["p50_ms"])],
        ["p95 ms", number(then["p95_ms"]), number(now["p95_ms"])],
    ]
    lines += ["", *grid(["", "THEN", "NOW"], rows)]
    lines.append(f"a call now takes {number(report['latency_ratio'])} times its time then (median)")
    if report["worst"]:
        lines += ["", "differ most"]
    for one in report["worst"]:
        far = "" if one["distance"] is None else f"  by {number(one['distance'])}"
        lines += [
            f"  {one['call_id']}  {text.stamp(one['at'])}  v{one['version']}{far}",
            f"    then {_short(one['then'])}",
            f"    now  {_short(one['now'])}",
        ]
    return lines


def _figures(targets: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    measures = list(dict.fromkeys(name for one in targets for name in one["metrics"]))
    rows = [
        [name.replace("_", " "), *(number(one["metrics"].get(name)) for one in targets)]
        for name in measures
    ]
    for title, part, key in (
        ("p50 ms", "latency", "p50_ms"),
        ("p95 ms", "latency", "p95_ms"),
        ("ms a row", "latency", "row_ms"),
        ("calls", "latency", "calls"),
        ("compute s", "cost", "compute_s"),
        ("sandbox s", "cost", "sandbox_s"),
        ("cold starts", "cost", "cold_starts"),
    ):
        rows.append([title, *(number(one[part][key]) for one in targets)])
    return rows


def _agreement(one: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    share = "-" if one["share"] is None else f"{100 * one['share']:.2f} %"
    pair = f"{names[one['a']]} and {names[one['b']]}"
    return [pair, share, str(one["rows"]), number(one["mean_difference"])]


def _worst(one: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    true = f"  true {_short(one['label'])}" if one["label"] is not None else ""
    lines = [f"  row {one['row']}  apart by {number(one['spread'])}{true}"]
    lines += [
        f"    {name:<14} {_said(said)}" for name, said in zip(names, one["answers"], strict=False)
    ]
    if one["input"] is not None:
        lines.append(f"    {'was asked':<14} {_asked(one['input'])}")
    return lines


def _asked(row: Any) -> str:
    """What the versions were shown, on one line; raw JSON has all of it."""
    if isinstance(row, dict):
        row = ", ".join(f"{name} {_short(value)}" for name, value in row.items())
    return text.clip(row if isinstance(row, str) else text.canonical(row), _INPUT)


def _said(answer: Any) -> str:
    """An answer; of probabilities the value and how sure it was."""
    if isinstance(answer, dict) and isinstance(answer.get("probabilities"), list):
        sure = max((float(p) for p in answer["probabilities"]), default=0.0)
        return f"{_short(answer.get('value'))} ({sure:.3f})"
    return "-" if answer is None else _short(answer)


def _short(value: Any) -> str:
    return text.clip(value if isinstance(value, str) else text.canonical(value), 120)


def number(value: float | None) -> str:
    """A figure with four digits; ``-`` for none."""
    if value is None:
        return text.NONE
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table as lines: the first column to the left, the others to the right."""
    cells = [[text.clip(cell, _ANSWER) for cell in line] for line in (head, *rows)]
    widths = [max(cell_len(line[at]) for line in cells) for at in range(len(head))]
    return [
        "  ".join(
            text.fit(cell, width, right=at > 0)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]


# -- asking for one --------------------------------------------------------------------------------


async def compare(page: Page, tenant: str) -> None:
    """Ask for versions and a data set, send it, and open what became of it."""
    if not page.console.may("New comparison"):
        return
    sent: list[bytes] = []

    def check(values: Mapping[str, str]) -> str:
        wrong = missing(
            values,
            tenant="Type the tenant's name.",
            models="Type versions, such as churn:3 churn:4.",
            data="Type the name of a file with the data set.",
        )
        if wrong:
            return wrong
        data = read_data(values["data"])
        if isinstance(data, str):
            return data
        sent.append(data)
        return ""

    values = await page.app.push_screen_wait(
        Form(
            title="New comparison",
            fields=[
                Field(name="tenant", label="Tenant", value=tenant),
                Field(name="models", label="Versions", hint="churn:3 churn:4 other@live"),
                Field(name="data", label="Data set", hint="a file: .csv .ndjson .json .parquet"),
                Field(name="label", label="True column", hint="empty: compared, not measured"),
                Field(name="group", label="Group column", hint="for rankings"),
                Field(name="task", label="Task", words=TASKS),
                Field(name="tolerance", label="Tolerance", value="0.000001"),
            ],
            verb="Compare",
            effect="Every row goes to every version, each call on record; answers change nothing.",
            check=check,
        )
    )
    if values is None:
        return
    models = values["models"].replace(",", " ").split()
    kept = {name: values[name] for name in ("label", "group", "tolerance") if values[name]}
    if values["task"] in TASKS[1:]:
        kept["task"] = values["task"]
    label = f" --label {values['label']}" if values["label"] else ""
    names = " ".join(f"{values['tenant']}/{name}" for name in models)
    reply = await page.console.perform(
        "POST",
        path_of("api", "v1", "comparisons", values["tenant"]),
        params={"models": ",".join(models), **kept},
        data=sent[-1],
        headers={"Content-Type": media_of(values["data"])},
        doing=f"Compare {' and '.join(models)}",
        done=f"Comparing {' and '.join(models)}",
        cli=f"appliance model compare {names} --data {values['data']}{label}",
    )
    open_comparison(page, reply.data if reply is not None else None)


def open_comparison(page: Page, document: Any) -> None:
    """Go to a comparison that was taken on."""
    if isinstance(document, dict) and document.get("id"):
        page.console.go(Place("comparison", (str(document["tenant"]), str(document["id"]))))
