"""What is aimed at, and what a run of the benchmark says about it.

Ratios are within one run, to the bare server over the same transport; servers of others speak plain
HTTP here while the appliance is behind TLS. What was not measured is said to be so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

BARE, BARE_TLS = "bare Starlette on Hypercorn", "the same, TLS"
PLAIN, JOINED = "appliance", "appliance, batch"
OVERLAP, JOINED_OVERLAP = "appliance, overlap", "appliance, batch, overlap"


class Measured(Protocol):
    """What is known of one server."""

    name: str
    start_s: float
    runs: list[dict[str, Any]]


Found = Callable[[str, int, str], float]
"""A figure of a server with so many connections; KeyError if it was not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One goal: ``value`` is held against ``bar``, from above or below."""

    name: str
    value: Callable[[Found], float]
    bar: float
    is_most: bool = False
    unit: str = "x"
    models: tuple[str, ...] = ("linear",)

    def line(self, found: Found) -> str:
        """Its line of the table."""
        bar = f"{'at most' if self.is_most else 'at least'} {self.bar:g} {self.unit}"
        try:
            value = self.value(found)
        except KeyError as missing:
            return f"| {self.name} | {bar} | not measured: {missing.args[0]} | |"
        is_met = value <= self.bar if self.is_most else value >= self.bar
        return (
            f"| {self.name} | {bar} | {value:.2f} {self.unit} | {'met' if is_met else 'missed'} |"
        )


def _rate(server: str, base: str, clients: int) -> Callable[[Found], float]:
    return lambda at: at(server, clients, "per_s") / at(base, clients, "per_s")


def _time(name: str, clients: int, base: str) -> Callable[[Found], float]:
    return lambda at: at(PLAIN, clients, name) / at(base, clients, name)


GOALS = (
    Goal(name="G1 throughput, c16", value=_rate(PLAIN, BARE_TLS, 16), bar=2.0),
    Goal(name="G2 joined, c16", value=_rate(JOINED, BARE_TLS, 16), bar=4.0),
    Goal(name="G2 joined, c64", value=_rate(JOINED, BARE_TLS, 64), bar=5.0),
    Goal(name="G3 p50, c1", value=_time("p50_ms", 1, BARE_TLS), bar=1.0, is_most=True),
    Goal(name="G3 p99, c16", value=_time("p99_ms", 16, BARE_TLS), bar=1.0, is_most=True),
    Goal(name="G4 MLServer in process, c16", value=_rate(PLAIN, "MLServer, in process", 16), bar=3),
    Goal(name="G4 MLServer, c16", value=_rate(PLAIN, "MLServer, one worker", 16), bar=7),
    Goal(name="G4 mlflow, c16", value=_rate(PLAIN, "mlflow models serve", 16), bar=4),
    Goal(name="G4 BentoML, c16", value=_rate(PLAIN, "BentoML", 16), bar=5),
    Goal(
        name="G5 the appliance's own processor time, c16",
        value=lambda at: at(PLAIN, 16, "front_us"),
        bar=60, is_most=True, unit="us",
    ),
    Goal(
        name="G6 heavy model joined, c64",
        value=lambda at: at(JOINED, 64, "per_s") / at(PLAIN, 64, "per_s"),
        bar=15, models=("forest",),
    ),
    Goal(
        name="G7 a lone caller, joined or not: p50, c1",
        value=lambda at: at(JOINED, 1, "p50_ms") / at(PLAIN, 1, "p50_ms"),
        bar=1.1, is_most=True,
    ),
    Goal(
        name="G8 start of the process to its first answer",
        value=lambda at: at(PLAIN, 0, "start_s"),
        bar=1.5, is_most=True, unit="s",
    ),
)  # fmt: skip


def table(results: list[Any], model: str) -> str:
    """The goals that this model is for, as Markdown."""
    by_name: dict[str, Measured] = {result.name: result for result in results}

    def found(server: str, clients: int, figure: str) -> float:
        result = by_name.get(server)
        if result is None:
            raise KeyError(server)
        if figure == "start_s":
            return result.start_s
        for run in result.runs:
            if run["clients"] == clients:
                return float(run[figure])
        raise KeyError(f"{clients} connections")

    lines = ["| goal | bar | measured | |", "|---|---|---|---|"]
    lines += [goal.line(found) for goal in GOALS if model in goal.models]
    return "\n".join(lines)
