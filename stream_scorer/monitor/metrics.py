"""The monitor's Prometheus metrics, in the form of the product's catalogue."""

from __future__ import annotations

from stream_scorer.observability.metrics import Metric

_WHO = ("ensemble", "version", "arm")

COUNTED = Metric(
    "counter", "stream_scorer_monitor_records_total", "Records counted into windows, by topic.", ("topic",)
)
UNREADABLE = Metric(
    "counter",
    "stream_scorer_monitor_unreadable_total",
    "Records that could not be read and were left out, by topic.",
    ("topic",),
)
SUMMARY_GAPS = Metric(
    "counter", "stream_scorer_monitor_summary_gaps_total", "Summaries that do not begin where the one before ended."
)
MISMATCHED = Metric(
    "counter", "stream_scorer_monitor_profile_mismatches_total", "Windows whose bins are not the reference profile's."
)
MARK_LAG = Metric(
    "gauge",
    "stream_scorer_monitor_lag_records",
    "Offsets between the marks in Redis and the topic's ends (a partition's last transaction marker counts). "
    "The group's committed offsets say nothing here.",
    ("topic",),
)
WATERMARK = Metric(
    "gauge", "stream_scorer_monitor_watermark_seconds", "Event time up to which every active partition was read."
)
ALERT_RATE = Metric(
    "gauge",
    "stream_scorer_alert_rate",
    "Share of alerted transactions in the newest closed window.",
    (*_WHO, "positive"),
)
DRIFT_SCORE = Metric(
    "gauge",
    "stream_scorer_drift_score",
    "Jensen-Shannon distance from the reference in the newest closed window.",
    (*_WHO, "series"),
)
FPR_LOW = Metric(
    "gauge",
    "stream_scorer_false_positive_rate_low",
    "Lower bound of the false-positive rate in the newest window older than the label horizon.",
    (*_WHO, "positive"),
)
FPR_HIGH = Metric(
    "gauge",
    "stream_scorer_false_positive_rate_high",
    "Upper bound of the false-positive rate in the newest window older than the label horizon.",
    (*_WHO, "positive"),
)
LABEL_AGE = Metric(
    "gauge", "stream_scorer_label_age_seconds", "Label age of the window the false-positive bounds are of.", _WHO
)
JOINED = Metric("gauge", "stream_scorer_joiner_records", "What the label joiner has done since its start.", ("what",))

MONITOR_METRICS: tuple[Metric, ...] = (
    COUNTED,
    UNREADABLE,
    SUMMARY_GAPS,
    MISMATCHED,
    MARK_LAG,
    WATERMARK,
    ALERT_RATE,
    DRIFT_SCORE,
    FPR_LOW,
    FPR_HIGH,
    LABEL_AGE,
    JOINED,
)
