"""Counters, histograms and their text exposition.

Owns: every metric, each in one registry per process (never the library's global one).
Never: carries a tenant, model or key name: labels come from closed lists, so the size of a scrape
does not grow with the number of tenants.
Read next: ``api.health`` (serves the text), ``invoke`` and ``api.dispatch`` (report to it).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)

GAUGES: Mapping[str, str] = {
    "sandboxes": "Sandboxes that exist now.",
    "sandbox_memory_bytes": "Memory all sandboxes use now.",
    "calls_waiting": "Calls waiting for a sandbox now.",
    "jobs_waiting": "Jobs waiting for their turn now.",
    "jobs_running": "Jobs being run now.",
    "batches_waiting": "Tables waiting to be scored now.",
    "batches_running": "Tables being scored now.",
    "deliveries_waiting": "Deliveries to webhooks that have not arrived yet.",
    "webhooks_disabled": "Webhooks nothing is sent to now.",
    "gpus": "GPUs and partitions models may use.",
    "gpus_held": "GPUs and partitions that sandboxes hold now.",
    "gpu_memory_bytes": "Memory of all GPUs, as far as something tells it.",
    "gpu_memory_allocated_bytes": "GPU memory promised to sandboxes now.",
    "gpu_memory_used_bytes": "GPU memory used now, as the driver tells it.",
    "gpu_calls_waiting": "Calls waiting for a GPU now.",
    "ledger_seq": "Entries in the audit ledger.",
    "ledger_lag": "Entries the query engine has not taken over yet.",
    "ledger_dropped": "Refusals not recorded because the queue was full.",
    "ready": "1 while the appliance is unsealed and serving, else 0.",
    "disk_free_bytes": "Free bytes on the data folder's disk.",
    "egress_open": "Connections out of sandboxes that are open now.",
    "drift_baselines": "Versions whose calls are compared with a baseline.",
    "drift_breaches": "Scores that are beyond their threshold now.",
    "http_in_flight": "Requests being answered now.",
}
"""Gauge name to meaning; set at scrape time by whoever serves the text."""


class Metrics:
    """What the process counts; made by the composition root, handed to the parts that report."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=True)
        self._calls = _Count("appliance_calls", "Model calls by outcome code.", ("code",))
        self._cold = Counter(
            "appliance_cold_starts", "Calls that had to wait for a new sandbox.",
            registry=self._registry,
        )  # fmt: skip
        self._call_seconds = _Seconds(
            "appliance_call_seconds", "Duration of model calls, admission to recorded outcome.",
            ("start",),
        )  # fmt: skip
        self._requests = _Count(
            "appliance_requests", "HTTP requests by operation and status.",
            ("operation", "status"),
        )  # fmt: skip
        self._request_seconds = _Seconds(
            "appliance_request_seconds", "Duration of HTTP requests, first byte to last."
        )
        self._crashes = Counter(
            "appliance_incidents", "Requests that ended in an internal error.",
            registry=self._registry,
        )  # fmt: skip
        self._egress = Counter(
            "appliance_egress_decisions", "Connections out of sandboxes, allowed or denied.",
            ("decision",), registry=self._registry,
        )  # fmt: skip
        self._egress_bytes = Counter(
            "appliance_egress_bytes", "Bytes of models' connections, sent or received by them.",
            ("direction",), registry=self._registry,
        )  # fmt: skip
        self._shadows = Counter(
            "appliance_shadow_calls", "Calls repeated to shadow versions, by how replies compare.",
            ("match",), registry=self._registry,
        )  # fmt: skip
        self._drift = Counter(
            "appliance_drift_calls", "Calls of versions with a baseline, by what became of them.",
            ("result",), registry=self._registry,
        )  # fmt: skip
        self._count_batches()
        self._gauges = {
            name: Gauge(f"appliance_{name}", text, registry=self._registry)
            for name, text in GAUGES.items()
        }
        self._in_flight = 0
        for each in (
            self._calls, self._call_seconds, self._requests, self._request_seconds,
            self._queue_seconds,
        ):  # fmt: skip
            self._registry.register(each)

    def _count_batches(self) -> None:
        self._queue_seconds = _Seconds(
            "appliance_call_queue_seconds", "Time calls waited for a sandbox, without its start.",
            buckets=(0.0001, 0.00025, 0.0005, *_SECONDS),
        )  # fmt: skip
        self._batch_rows = Histogram(
            "appliance_batch_rows", "Rows in one call of a model that takes joined calls.",
            buckets=_ROWS, registry=self._registry,
        )  # fmt: skip
        self._batch_calls = Histogram(
            "appliance_batch_calls", "Calls answered by one call of a model that joins them.",
            buckets=_ROWS[:9], registry=self._registry,
        )  # fmt: skip
        self._batch_fallbacks = Counter(
            "appliance_batch_fallback", "Joined calls that were run one by one after all.",
            ("reason",), registry=self._registry,
        )  # fmt: skip

        self._tables = Counter(
            "appliance_batches_ended", "Scored tables by how they ended.",
            ("status",), registry=self._registry,
        )  # fmt: skip
        self._table_rows = Counter(
            "appliance_batches_rows", "Rows of tables that have their result, or an error instead.",
            ("result",), registry=self._registry,
        )  # fmt: skip

    def table_ended(self, status: str) -> None:
        """Count a scored table that ended: ``succeeded``, ``failed`` or ``canceled``."""
        self._tables.labels(status).inc()

    def table_scored(self, *, rows: int, failed: int) -> None:
        """Count rows of a table that are durable, ``failed`` of them with an error."""
        self._table_rows.labels("ok").inc(rows - failed)
        self._table_rows.labels("failed").inc(failed)

    def batch_ran(self, *, calls: int, rows: int) -> None:
        """Count a call of a model that takes joined calls."""
        self._batch_rows.observe(rows)
        self._batch_calls.observe(calls)

    def batch_split(self, reason: str) -> None:
        """Count joined calls that were run one by one: ``raised``, ``rows`` or ``lost``."""
        self._batch_fallbacks.labels(reason).inc()

    def call_ended(self, *, code: str, cold: bool, total_us: int, queue_us: int = 0) -> None:
        """Count a finished call.

        Args:
            code: ``ok`` or a problem slug (closed list).
            cold: whether it waited for a new sandbox.
            total_us: microseconds from admission to recorded outcome.
            queue_us: microseconds of it that it waited for a sandbox.
        """
        self._queue_seconds.observe(queue_us / 1e6)
        self._calls.inc(code)
        self._call_seconds.observe(total_us / 1e6, "cold" if cold else "warm")
        if cold:
            self._cold.inc()

    def request_ended(self, *, operation: str, status: int, total_us: int) -> None:
        """Count an answered HTTP request; ``operation`` is an operation id or ``unmatched``."""
        self._requests.inc(operation, str(status))
        self._request_seconds.observe(total_us / 1e6)

    def egress_decided(self, *, allowed: bool) -> None:
        """Count a decision about a connection out of a sandbox."""
        self._egress.labels("allowed" if allowed else "denied").inc()

    def egress_passed(self, sent_bytes: int, received_bytes: int) -> None:
        """Count the bytes of a connection that ended."""
        self._egress_bytes.labels("sent").inc(sent_bytes)
        self._egress_bytes.labels("received").inc(received_bytes)

    def shadow_ended(self, match: str) -> None:
        """Count a shadow call: ``equal``, ``close``, ``different``, ``failed`` or ``dropped``."""
        self._shadows.labels(match).inc()

    def drift_call(self, result: str) -> None:
        """Count a call of a version with a baseline: ``counted``, ``unread`` or ``dropped``."""
        self._drift.labels(result).inc()

    def incident(self) -> None:
        """Count an internal error."""
        self._crashes.inc()

    def set_gauge(self, name: str, value: float) -> None:
        """Set one of ``GAUGES``."""
        self._gauges[name].set(value)

    def add_in_flight(self, step: int) -> None:
        """Count a request in (+1) or out (-1)."""
        self._in_flight += step

    def text(self) -> bytes:
        """The exposition, in ``CONTENT_TYPE``."""
        self.set_gauge("http_in_flight", self._in_flight)
        return generate_latest(self._registry)


class _Count(Collector):
    """A counter for what happens with every call: the library's locks cost more than counting.

    For the event loop's thread; a scrape only reads.
    """

    def __init__(self, name: str, text: str, labels: tuple[str, ...]) -> None:
        self._about = (name, text)
        self._labels = labels
        self._counts: dict[tuple[str, ...], int] = {}

    def inc(self, *labels: str) -> None:
        self._counts[labels] = self._counts.get(labels, 0) + 1

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(*self._about, labels=self._labels)
        for labels, count in list(self._counts.items()):
            family.add_metric(labels, count)
        yield family


class _Seconds(Collector):
    """A histogram of durations, for the same reason and the same thread."""

    def __init__(
        self,
        name: str,
        text: str,
        labels: tuple[str, ...] = (),
        buckets: tuple[float, ...] = _SECONDS,
    ) -> None:
        self._about = (name, text)
        self._labels = labels
        self._bounds = buckets
        self._names = [*(str(float(bound)) for bound in buckets), "+Inf"]
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}
        if not labels:
            self._begin(())

    def _begin(self, labels: tuple[str, ...]) -> list[int]:
        self._sums[labels] = 0.0
        self._counts[labels] = [0] * len(self._names)
        return self._counts[labels]

    def observe(self, seconds: float, *labels: str) -> None:
        counts = self._counts.get(labels) or self._begin(labels)
        counts[bisect_left(self._bounds, seconds)] += 1
        self._sums[labels] += seconds

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(*self._about, labels=self._labels)
        for labels, counts in list(self._counts.items()):
            sums = zip(self._names, accumulate(counts), strict=True)
            family.add_metric(labels, list(sums), self._sums[labels])
        yield family
