"""Drift: versions that have a baseline, and how far each is from it.

Owns: the columns of the drift table, the lines about the version under the cursor, and the text of
the version page's drift tab.
Never: computes a score; the server does.
Read next: ``screens/drift_verbs`` (baselines, thresholds), ``screens/versions`` (its tab).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import DataTable, Static

from tui import text
from tui.client import Row, Snapshot
from tui.frame import ListPage
from tui.nav import Place
from tui.screens.drift_verbs import change_thresholds, remove_baseline, set_baseline
from tui.table import Column

_RANK = {"warn": 0, "ok": 1, "off": 2}
_BAR = 10


def _score(row: Row) -> str:
    if row["value"] is None:
        return "-"
    return f"{row['statistic']} {row['value']:.2f} of {row['threshold']:g}"


class Drift(ListPage):
    """One row per version with a baseline, those with breaches first."""

    VIEW = "drift"
    EMPTY = "No version has a baseline.\nn compares one with data, or with its calls."
    VERBS = frozenset(("baseline", "thresholds", "remove"))
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "columns"),
        Binding("n", "baseline", "baseline"),
        Binding("e", "thresholds", "thresholds"),
        Binding("x", "remove", "remove"),
    ]
    COLUMNS = (
        Column(
            name="state",
            title="STATE",
            text=lambda r: text.word(r["state"]),
            order=lambda r: _RANK.get(r["state"], 3),
            width=7,
        ),
        Column(
            name="model",
            title="VERSION",
            text=lambda r: f"{r['tenant']}/{r['model']} v{r['version']}",
            width=16,
            flex=2,
        ),
        Column(
            name="breaches",
            title="OVER",
            text=lambda r: str(r["breaches"]),
            order=lambda r: r["breaches"],
            width=5,
            right=True,
        ),
        Column(
            name="score",
            title="WORST",
            text=_score,
            order=lambda r: (r["value"] or 0) / (r["threshold"] or 1),
            width=20,
        ),
        Column(name="feature", title="OF", text=lambda r: r["feature"] or "-", width=14, flex=1),
        Column(
            name="rows",
            title="RECORDS",
            text=lambda r: text.count(r["rows"]),
            order=lambda r: r["rows"],
            width=8,
            right=True,
        ),
        Column(
            name="since",
            title="SINCE",
            text=lambda r: text.stamp(r["since"]) if r["since"] else "-",
            width=19,
            least=110,
        ),
        Column(name="set_by", title="BASELINE BY", text=lambda r: r["set_by"], width=16, wide=True),
    )

    def body(self) -> ComposeResult:
        """The table, and what the baseline under the cursor is."""
        yield from super().body()
        yield Static(id="baseline", markup=False)

    def key_of(self, row: Row) -> str:
        """Versions are named tenant/model/number."""
        return f"{row['tenant']}/{row['model']}/{row['version']}"

    def open_row(self, row: Row) -> Place:
        """The version's page, whose drift tab has every column."""
        return Place("version", (str(row["tenant"]), str(row["model"]), str(row["version"])))

    def draw(self, snapshot: Snapshot) -> None:
        """Rows and the lines."""
        super().draw(snapshot)
        self._tell()

    @work(exclusive=True, group="dialog")
    async def action_baseline(self) -> None:
        """``n`` makes a version's baseline, the one under the cursor unless another is typed."""
        await set_baseline(self, self.row)

    @work(exclusive=True, group="dialog")
    async def action_thresholds(self) -> None:
        """``e`` changes the thresholds of the version under the cursor."""
        await change_thresholds(self, self.row)

    @work(exclusive=True, group="dialog")
    async def action_remove(self) -> None:
        """``x`` removes the baseline of the version under the cursor."""
        await remove_baseline(self, self.row)

    def on_data_table_row_highlighted(self, _event: DataTable.RowHighlighted) -> None:
        """The lines follow the cursor."""
        self._tell()

    def _tell(self) -> None:
        if not self.is_shown:
            return
        row = self.row
        lines = _about(row) if row is not None and "revision" in row else []
        width = max(20, self.size.width - 2)
        shown = "\n".join(text.clip(text.clean(line), width) for line in lines)
        self.query_one("#baseline", Static).update(Text(shown, no_wrap=True), layout=False)


def _about(row: Row) -> list[str]:
    few = "" if row["state"] != "off" else ", too few to judge"
    return [
        f"{row['columns']} columns, {row['rows']} records in the last {span(row['window_s'])}{few}",
        f"baseline revision {row['revision']}: {row['baseline_rows']} records of {row['source']}, "
        f"{text.stamp(row['set_at'])} by {row['set_by']}",
    ]


def span(seconds: int) -> str:
    """Seconds in words."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size and not seconds % size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def drift_lines(detail: Mapping[str, Any]) -> list[str]:
    """The text of a version's drift tab: its columns by their worst score, the worst first."""
    baseline = detail.get("baseline") or {}
    lines = [
        f"{detail.get('rows', 0)} records in {detail.get('calls', 0)} calls of the last "
        f"{span(int(detail.get('since_s') or 0))}; baseline of {baseline.get('rows', 0)} records",
    ]
    lost = [
        f"{detail[name]} {name}" for name in ("unread", "dropped", "skipped") if detail.get(name)
    ]
    if lost:
        lines.append("not counted: " + ", ".join(lost))
    lines += ["", f"{'':7} {'':{_BAR}}  {'SCORE':>8} {'LIMIT':>6}  STATISTIC  COLUMN"]
    worst: dict[tuple[bool, str], Mapping[str, Any]] = {}
    for score in sorted(detail.get("scores") or (), key=_badness):
        worst.setdefault((bool(score["output"]), str(score["feature"])), score)
    lines += [_line(score) for score in worst.values()]
    return lines


def _badness(score: Mapping[str, Any]) -> tuple[bool, float]:
    threshold = float(score["threshold"] or 0)
    return not threshold, -float(score["value"]) / (threshold or 1.0)


def _line(score: Mapping[str, Any]) -> str:
    threshold = float(score["threshold"] or 0)
    word = {"breach": "! OVER", "ok": "OK"}.get(str(score["verdict"]), "-")
    part = min(1.0, float(score["value"]) / threshold) if threshold else 0.0
    bar = "#" * round(part * _BAR)
    limit = f"{threshold:g}" if threshold else "-"
    name = f"{score['feature']}{' (output)' if score['output'] else ''}"
    return (
        f"{word:<7} {bar:<{_BAR}}  {float(score['value']):>8.3f} {limit:>6}  "
        f"{score['statistic']:<9}  {name}"
    )
