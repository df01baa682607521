"""The dashboard: calls, latency, errors, sandboxes, what needs attention, who is busy.

Owns: the numbers with their lines of bars, the problems, the busiest models, the last actions.
Never: computes a statistic; the server does.
Read next: ``screens/health`` (where a problem leads).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.widgets import Static

from tui import text
from tui.client import Query, Row, Snapshot
from tui.frame import ListPage
from tui.nav import Place
from tui.screens.gpus import numbers
from tui.screens.models import number
from tui.table import Column

STATS = ("calls", "p95", "errors", "sandboxes")


class Dashboard(ListPage):
    """The first screen; Enter opens the model under the cursor."""

    VIEW = "dashboard"
    EMPTY = "No calls in the last 15 minutes.\n:t tenants   :m models   :a audit   :h health"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "open", "open")]
    COLUMNS = (
        Column(name="tenant", title="TENANT", text=lambda r: r["tenant"], width=12, flex=1),
        Column(name="model", title="BUSIEST MODELS", text=lambda r: r["model"], width=16, flex=2),
        Column(
            name="live",
            title="LIVE",
            text=lambda r: number(r["live"]),
            order=lambda r: r["live"],
            width=5,
        ),
        Column(
            name="calls",
            title="CALLS",
            text=lambda r: text.count(r["calls"]),
            order=lambda r: r["calls"],
            width=6,
            right=True,
        ),
        Column(
            name="err",
            title="ERR %",
            text=lambda r: text.percent(r["errors"], r["calls"]),
            order=lambda r: r["errors"] / max(1, r["calls"]),
            width=6,
            right=True,
        ),
        Column(
            name="p95",
            title="P95 ms",
            text=lambda r: text.millis(r["p95_ms"]),
            order=lambda r: r["p95_ms"],
            width=7,
            right=True,
        ),
        Column(name="runtime", title="RUNTIME", text=lambda r: r["runtime"] or "-", width=10),
    )

    def query_now(self) -> Query:
        """The dashboard's own view."""
        return Query(view="dashboard")

    def body(self) -> ComposeResult:
        """Numbers, problems, busiest models, last actions."""
        with Horizontal(id="stats"):
            for name in STATS:
                yield Static(id=f"stat-{name}", classes="stat", markup=False)
        yield Static(id="problems", markup=False)
        yield from super().body()
        yield Static(id="recent", markup=False)

    def key_of(self, row: Row) -> str:
        """Models are named tenant/model."""
        return f"{row['tenant']}/{row['model']}"

    def open_row(self, row: Row) -> Place:
        """The model's page."""
        return Place("model", (str(row["tenant"]), str(row["model"])))

    def resized(self) -> None:
        """Redraw the lines of bars at their new width."""
        super().resized()
        if self._drawn is not None and self.is_shown:
            self._texts(self._drawn)

    def draw(self, snapshot: Snapshot) -> None:
        """Everything."""
        super().draw(snapshot)
        self._texts(snapshot)

    def _texts(self, snapshot: Snapshot) -> None:
        width = max(8, (self.size.width - 2) // len(STATS) - 2)
        for name, lines in zip(STATS, _stats(snapshot, width), strict=True):
            shown = Text("\n".join(text.clip(line, width) for line in lines), no_wrap=True)
            self.query_one(f"#stat-{name}", Static).update(shown, layout=False)
        wide = max(20, self.size.width - 2)
        problems = snapshot.extras.get("problems") or []
        self._block("#problems", [_problem(p, wide) for p in problems[:3]], "bold")
        recent = snapshot.extras.get("recent") or []
        room = 5 if self.size.height >= 30 else 3
        self._block("#recent", [_recent(r, wide) for r in recent[:room]], "")

    def _block(self, selector: str, lines: Sequence[str], style: str) -> None:
        widget = self.query_one(selector, Static)
        widget.display = bool(lines)
        widget.update(Text("\n".join(lines), style=style, no_wrap=True))


def _stats(snapshot: Snapshot, width: int) -> list[tuple[str, str, str]]:
    extras = snapshot.extras
    calls: dict[str, Any] = extras.get("calls") or {}
    totals: dict[str, Any] = extras.get("totals") or calls
    series = extras.get("series") or []

    def bars(name: str) -> str:
        values = [float(point.get(name) or 0) for point in series]
        return text.spark(values, width) if any(name in point for point in series) else ""

    minutes = calls.get("minutes", 15)
    most = totals.get("sandboxes_max")
    boxes = totals.get("sandboxes", snapshot.node.get("sandboxes", 0))
    gpus = numbers(totals)
    count = totals.get("models", 0)
    models = f"{count} model" if count == 1 else f"{count} models"
    return [
        (f"calls {minutes}m", text.count(calls.get("calls")), bars("calls")),
        ("p95 ms", text.millis(calls.get("p95_ms")), bars("p95_ms")),
        (
            "errors %",
            text.percent(calls.get("errors") or 0, calls.get("calls") or 0),
            bars("errors"),
        ),
        (
            "sandboxes",
            f"{boxes} of {most}{', ' if gpus else ''}{gpus}" if most else str(boxes),
            bars("sandboxes") or models,
        ),
    ]


def _problem(row: Row, width: int) -> str:
    line = f"{text.word(row['state'])}  {row.get('title') or row['name']}: {row['detail']}"
    return f"{text.clip(line, width - 12):<{width - 12}}  :h details"


def _recent(row: Row, width: int) -> str:
    line = f"{text.clock(row['time'])}  {row['actor']}  {row['kind']}  {row['object']}"
    return text.clip(line, width)
