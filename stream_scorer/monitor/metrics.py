"""The catalogue of the monitor's Prometheus metrics."""

from __future__ import annotations

from stream_scorer.observability.metrics import Metric

_WHO = ("ensemble", "version", "arm")

COUNTED = Metric(
    "counter", "stream_scorer_monitor_records_total", "Records counted into windows, by topic.", ("topic",)
)
UNREADABLE = Metric(
    "counter",
    "stream_scorer_monitor_unreadable_total",
    "Unreadable records that the monitor ignored, by topic.",
    ("topic",),
)
SUMMARY_GAPS = Metric(
    "counter",
    "stream_scorer_monitor_summary_gaps_total",
    "Summaries that do not start at the end of the previous summary.",
)
OTHER_PANES = Metric(
    "counter",
    "stream_scorer_monitor_other_panes_total",
    "Summaries that are not counted into windows, because their scorer has another `monitor.pane` than the monitor.",
)
MISMATCHED = Metric(
    "counter",
    "stream_scorer_monitor_profile_mismatches_total",
    "Windows whose bins differ from those of the reference profile.",
)
PART_RUNNING = Metric(
    "gauge",
    "stream_scorer_monitor_part_running",
    "1 while a part of the monitor (watch, windows, joiner, signals, webhook) does its work, 0 while it starts or "
    "waits after a failure.",
    ("part",),
)
PART_FAILURES = Metric(
    "counter",
    "stream_scorer_monitor_part_failures_total",
    "Failures of a part of the monitor; the part restarts after a pause, the other parts go on.",
    ("part",),
)
REFUSED = Metric(
    "counter",
    "stream_scorer_monitor_refused_windows_total",
    "Reports of a window without some figures: `all` or `labels` because counts are negative, `lost` because "
    "summaries were not counted: retention deleted them before, or their panes have another length.",
    ("figures",),
)
APPLIED_LAG = Metric(
    "gauge",
    "stream_scorer_monitor_lag_records",
    "Offsets between the applied offsets in Redis and the end of the topic; new transaction markers count at first. "
    "Use this metric and not the committed offsets of the consumer group.",
    ("topic",),
)
WAITING = Metric(
    "gauge",
    "stream_scorer_monitor_waiting_windows",
    "Panes that changed and whose windows are not reported yet. The newest are reported first.",
)
WATERMARK = Metric(
    "gauge", "stream_scorer_monitor_watermark_seconds", "Event time up to which every active partition is read."
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
    "Jensen-Shannon distance from the training profile in the newest closed window: a state, not an event.",
    (*_WHO, "series"),
)
DRIFT_EVENT = Metric(
    "gauge",
    "stream_scorer_drift_event",
    "1 while a drift event is open, 0 after it, by the kind of change and the series that changed most.",
    ("ensemble", "kind", "series"),
)
DRIFT_EVIDENCE = Metric(
    "gauge",
    "stream_scorer_drift_evidence",
    "Logarithm of the evidence for a drift event in the newest closed window.",
    ("ensemble",),
)
DRIFT_THRESHOLD = Metric(
    "gauge",
    "stream_scorer_drift_threshold",
    "Logarithm of the evidence that opens a drift event, from monitor.false_alarms_per_year and the past four weeks.",
    ("ensemble",),
)
DRIFT_LEARNING = Metric(
    "gauge",
    "stream_scorer_drift_learning",
    "1 while the drift detector has too little history to open events, 0 once it watches.",
    ("ensemble",),
)
FPR_LOW = Metric(
    "gauge",
    "stream_scorer_false_positive_rate_low",
    "Lower bound of the false-positive rate in the newest window older than the label horizon; NaN without labels.",
    (*_WHO, "positive"),
)
FPR_HIGH = Metric(
    "gauge",
    "stream_scorer_false_positive_rate_high",
    "Upper bound of the false-positive rate in the newest window older than the label horizon; NaN without labels.",
    (*_WHO, "positive"),
)
FPR = Metric(
    "gauge",
    "stream_scorer_false_positive_rate",
    "Point estimate of the false-positive rate in the newest window older than the label horizon; NaN without one.",
    (*_WHO, "positive"),
)
FPR_INTERVAL_LOW = Metric(
    "gauge",
    "stream_scorer_false_positive_rate_interval_low",
    "Lower limit of the 95 % interval of the point estimate, clustered by card; NaN without one.",
    (*_WHO, "positive"),
)
FPR_INTERVAL_HIGH = Metric(
    "gauge",
    "stream_scorer_false_positive_rate_interval_high",
    "Upper limit of the 95 % interval of the point estimate, clustered by card; NaN without one.",
    (*_WHO, "positive"),
)
LABEL_AGE = Metric(
    "gauge", "stream_scorer_label_age_seconds", "Label age of the window of the false-positive bounds.", _WHO
)
JOINED = Metric(
    "gauge", "stream_scorer_joiner_records", "Records of the label joiner since its start, by kind.", ("what",)
)

MONITOR_METRICS: tuple[Metric, ...] = (
    PART_RUNNING,
    PART_FAILURES,
    COUNTED,
    UNREADABLE,
    SUMMARY_GAPS,
    OTHER_PANES,
    MISMATCHED,
    REFUSED,
    APPLIED_LAG,
    WAITING,
    WATERMARK,
    ALERT_RATE,
    DRIFT_SCORE,
    DRIFT_EVENT,
    DRIFT_EVIDENCE,
    DRIFT_THRESHOLD,
    DRIFT_LEARNING,
    FPR_LOW,
    FPR_HIGH,
    FPR,
    FPR_INTERVAL_LOW,
    FPR_INTERVAL_HIGH,
    LABEL_AGE,
    JOINED,
)
