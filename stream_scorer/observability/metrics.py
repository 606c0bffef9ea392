"""The typed catalogue of all Prometheus metrics of the scorer. docs/metrics.md is generated from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector

from stream_scorer.observability.histogram import Histogram

# From the best case of a stage to the whole latency budget, in steps of about a factor of two.
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
# From one micro-batch to a backlog. 0.2 is the budget of the 95th percentile: its share of slower ones is exact.
_END_TO_END = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0, 300.0)
_RECORDS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: kind, full name, help text, label names and, for a histogram, bucket bounds."""

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


TRANSACTIONS = Metric(
    "counter", "stream_scorer_transactions_total", "Transactions scored and committed, by decision.", ("decision",)
)
FALLBACKS = Metric(
    "counter",
    "stream_scorer_fallbacks_total",
    "Transactions that the fallback decided, because too few members returned a score.",
)
END_TO_END = Metric(
    "histogram",
    "stream_scorer_end_to_end_seconds",
    "Time from the record timestamp of a transaction to the commit of its score. Records without a timestamp "
    "are not counted. Depends on the clocks of broker and producers: a timestamp in the future counts as 0.",
    (),
    _END_TO_END,
)
DEAD_LETTERS = Metric(
    "counter", "stream_scorer_dead_letters_total", "Records sent to the dead-letter topic, by error code.", ("code",)
)
DUPLICATES = Metric("counter", "stream_scorer_duplicates_total", "Transactions with an event id that was seen before.")
WRONG_KEYS = Metric(
    "counter",
    "stream_scorer_wrong_keys_total",
    "Transactions whose record key is not the id of the partition entity: its features may lack or double events.",
)
LABELS_WITHOUT_ENTITY = Metric(
    "counter",
    "stream_scorer_labels_without_entity_total",
    "Labels that lack the id of an entity with features of labels, and so do not change these features. If the field "
    "is optional, only from the hundredth such label in a row on.",
    ("entity",),
)
DEGRADED = Metric(
    "counter", "stream_scorer_degraded_total", "Transactions scored with degraded inputs, by reason.", ("reason",)
)
FEATURE_AGE = Metric(
    "gauge",
    "stream_scorer_feature_age_seconds",
    "Lag in event time of the sources of features behind the last batch: the slowest other partition, and labels.",
    ("of",),
)
COMMITS = Metric("counter", "stream_scorer_kafka_transactions_total", "Kafka transactions, by outcome.", ("outcome",))
RESYNCS = Metric(
    "counter", "stream_scorer_resyncs_total", "Returns to the committed and applied offsets, by cause.", ("cause",)
)
CAUGHT_UP = Metric(
    "counter", "stream_scorer_catch_up_records_total", "Records read again to update features, without scoring."
)
REBUILD_REMAINING = Metric(
    "gauge", "stream_scorer_rebuild_remaining_records", "Records that remain to be read to rebuild lost features."
)
FEATURE_STATE = Metric(
    "gauge", "stream_scorer_feature_state", "1 for the state of the features, see docs/features.md.", ("state",)
)
EXPIRED = Metric(
    "counter", "stream_scorer_expired_keys_total", "Keys deleted from Redis because no scorer will read them again."
)
EXPIRE_REFUSED = Metric(
    "gauge",
    "stream_scorer_expire_refused",
    "1 if the last pass of the group deleted nothing because it would have deleted most rows.",
)
REDIS_EVICTS = Metric(
    "gauge",
    "stream_scorer_redis_evicts",
    "1 if the maxmemory-policy of Redis lets it evict features; 0 also if Redis does not reveal the policy.",
)
LAG = Metric(
    "gauge",
    "stream_scorer_lag_records",
    "Unread input records of the owned partitions; markers of transactions count for half a minute.",
)
PARTITIONS = Metric("gauge", "stream_scorer_partitions", "Owned input partitions.")
BATCH_RECORDS = Metric("histogram", "stream_scorer_batch_records", "Records in a micro-batch.", (), _RECORDS)
STAGE_SECONDS = Metric(
    "histogram", "stream_scorer_stage_seconds", "Wall time of one stage of one micro-batch.", ("stage",), _SECONDS
)
MEMBER_SECONDS = Metric(
    "counter", "stream_scorer_member_seconds_total", "Time spent in one member's prediction.", ("member",)
)
MEMBER_FAILURES = Metric(
    "counter",
    "stream_scorer_member_failures_total",
    "Micro-batches in which a member of a version that decides (champion, canary) returned no usable score.",
    ("member",),
)
MEMBER_SHADOW_FAILURES = Metric(
    "counter",
    "stream_scorer_member_shadow_failures_total",
    "Micro-batches in which a member that only shadow or withdrawn versions use returned no usable score.",
    ("member",),
)
MEMBER_BATCHES = Metric(
    "counter",
    "stream_scorer_member_batches_total",
    "Micro-batches that a member had to score: all in which it was not disabled.",
    ("member",),
)
MEMBER_BREAKER = Metric(
    "gauge",
    "stream_scorer_member_breaker",
    "State of the member's circuit breaker: 0 closed, 1 half open (on trial), 2 open (not called).",
    ("member",),
)
SERVING = Metric(
    "gauge", "stream_scorer_serving_info", "1 for the ensemble version that serves.", ("ensemble", "version")
)
IN_PLAY = Metric(
    "gauge",
    "stream_scorer_in_play_info",
    "1 for every version in play: champion, canary, shadows, the last good version during a probation, and a withdrawn "
    "version whose cards are collected.",
    ("ensemble", "version"),
)
ENSEMBLE_AGE = Metric(
    "gauge",
    "stream_scorer_ensemble_age_seconds",
    "Newest scored event time minus the last event time of the training data of the members of a version; NaN if it is "
    "unknown.",
    ("ensemble", "version"),
)
CONTROL_OFFSET = Metric(
    "gauge", "stream_scorer_control_offset", "Control offset of the newest command that this scorer applied."
)
CONTROL_PROBLEM = Metric(
    "gauge",
    "stream_scorer_control_problem",
    "1 while this scorer refuses a version that a command names, or cannot read control.",
)
CONTROL_REFUSED = Metric("counter", "stream_scorer_control_refused_total", "Refused commands on control.")
CONTROL_UNPUBLISHED = Metric(
    "gauge",
    "stream_scorer_control_unpublished_records",
    "Records of this scorer for serving-state, scorer-status and audit that the broker has not confirmed yet.",
)

SCORER_METRICS: tuple[Metric, ...] = (
    TRANSACTIONS,
    FALLBACKS,
    END_TO_END,
    DEAD_LETTERS,
    DUPLICATES,
    WRONG_KEYS,
    LABELS_WITHOUT_ENTITY,
    DEGRADED,
    FEATURE_AGE,
    COMMITS,
    RESYNCS,
    CAUGHT_UP,
    REBUILD_REMAINING,
    FEATURE_STATE,
    EXPIRED,
    EXPIRE_REFUSED,
    REDIS_EVICTS,
    LAG,
    PARTITIONS,
    BATCH_RECORDS,
    STAGE_SECONDS,
    MEMBER_SECONDS,
    MEMBER_BATCHES,
    MEMBER_FAILURES,
    MEMBER_SHADOW_FAILURES,
    MEMBER_BREAKER,
    SERVING,
    IN_PLAY,
    ENSEMBLE_AGE,
    CONTROL_OFFSET,
    CONTROL_PROBLEM,
    CONTROL_REFUSED,
    CONTROL_UNPUBLISHED,
)


# Of every process; the client library reads them from /proc (Linux).
PROCESS_METRICS: tuple[Metric, ...] = (
    Metric("counter", "process_cpu_seconds_total", "CPU time of the process, user and system."),
    Metric("gauge", "process_resident_memory_bytes", "Resident memory."),
    Metric("gauge", "process_virtual_memory_bytes", "Virtual memory."),
    Metric("gauge", "process_open_fds", "Open file descriptors."),
    Metric("gauge", "process_max_fds", "Limit of open file descriptors."),
    Metric("gauge", "process_start_time_seconds", "Start of the process, as Unix time: a change is a restart."),
)


class Metrics:
    """The metrics of a catalogue, and those of the process, in their own registry."""

    def __init__(self, catalogue: tuple[Metric, ...] = SCORER_METRICS) -> None:
        self.registry = CollectorRegistry()
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        self._children: dict[tuple[str, tuple[str, ...]], Any] = {}
        ProcessCollector(registry=self.registry)
        for metric in catalogue:
            if metric.kind == "counter":
                self._counters[metric.name] = Counter(metric.name, metric.help, metric.labels, registry=self.registry)
            elif metric.kind == "gauge":
                self._gauges[metric.name] = Gauge(metric.name, metric.help, metric.labels, registry=self.registry)
            else:
                self._histograms[metric.name] = Histogram(
                    metric.name, metric.help, metric.labels, metric.buckets, registry=self.registry
                )

    def begin(self, metric: Metric, values: Iterable[str], *before: str) -> None:
        """Begin a counter at 0 for each of the `values` of its last label, after the values `before` of the others.

        Otherwise `increase()` in Prometheus hides the first events: it is 0 for a series that begins above 0.
        """
        for value in values:
            self.count(metric, 0, *before, value)

    def count(self, metric: Metric, amount: float = 1, *labels: str) -> None:
        """Add `amount` to a counter."""
        self._child(self._counters, metric, labels).inc(amount)

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """Set a gauge."""
        self._child(self._gauges, metric, labels).set(value)

    def remove(self, metric: Metric, *labels: str) -> None:
        """Remove the series of a gauge with these labels, if there is one."""
        if self._children.pop((metric.name, labels), None) is not None:
            self._gauges[metric.name].remove(*labels)

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """Add one observation to a histogram."""
        self._child(self._histograms, metric, labels).observe(value)

    def observe_all(self, metric: Metric, values: NDArray[np.float64], *labels: str) -> None:
        """Add the observations `values` (n,) to a histogram."""
        self._child(self._histograms, metric, labels).observe_all(values)

    def _child(self, family: Mapping[str, Any], metric: Metric, labels: tuple[str, ...]) -> Any:
        """The series with these labels, cached: the look-up in the library takes a lock and most of the time."""
        found = self._children.get((metric.name, labels))
        if found is None:
            whole = family[metric.name]
            found = self._children[metric.name, labels] = whole.labels(*labels) if labels else whole
        return found
