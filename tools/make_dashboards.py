"""Write the Grafana dashboards in deploy/grafana/dashboards; `--check` compares them.

A dashboard is a list of rows of panels, below. tests/unit/test_dashboards.py checks metrics and labels of every query
against the metric catalogue and the recording rules.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "deploy" / "grafana" / "dashboards"
# The uid in deploy/grafana/provisioning/datasources/prometheus.yml.
DATASOURCE = {"type": "prometheus", "uid": "prometheus"}
COLUMNS, HEIGHT = 24, 8
GREEN, ORANGE, RED = "green", "orange", "red"

Query = tuple[str, str]
"""A PromQL expression and the legend of its series."""


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        unit: a unit of Grafana, such as `s` or `percentunit`. kind: `timeseries`, `stat` or `table`.
        limit: a threshold: values above it are red. width: in columns of `COLUMNS`.
        texts: what is shown instead of a value.
    """

    title: str
    description: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: str = "timeseries"
    limit: float | None = None
    width: int = 8
    stacked: bool = False
    texts: dict[int, tuple[str, str]] | None = None

    def document(self, number: int, x: int, y: int) -> dict[str, Any]:
        """The panel as Grafana reads it, at column `x` and line `y`."""
        defaults: dict[str, Any] = {"unit": self.unit, "thresholds": self._thresholds(), "mappings": self._mappings()}
        options: dict[str, Any] = {}
        if self.kind == "timeseries":
            defaults["color"] = {"mode": "palette-classic"}
            defaults["custom"] = {
                "lineWidth": 1,
                "fillOpacity": 20 if self.stacked else 0,
                "stacking": {"mode": "normal" if self.stacked else "none"},
                "thresholdsStyle": {"mode": "off" if self.limit is None else "dashed"},
            }
            options = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
        elif self.kind == "stat":
            defaults["color"] = {"mode": "thresholds"}
            options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "textMode": "value_and_name"}
        targets = [self._target(chr(ord("A") + k), query) for k, query in enumerate(self.queries)]
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "datasource": DATASOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": HEIGHT},
            "fieldConfig": {"defaults": defaults, "overrides": []},
            "options": options,
            "targets": targets,
        }

    def _thresholds(self) -> dict[str, Any]:
        steps: list[dict[str, Any]] = [{"color": GREEN, "value": None}]
        if self.limit is not None:
            steps.append({"color": RED, "value": self.limit})
        return {"mode": "absolute", "steps": steps}

    def _mappings(self) -> list[dict[str, Any]]:
        if not self.texts:
            return []
        values = {str(value): {"text": text, "color": color} for value, (text, color) in self.texts.items()}
        return [{"type": "value", "options": values}]

    def _target(self, letter: str, query: Query) -> dict[str, Any]:
        expression, legend = query
        table = {"format": "table", "instant": True} if self.kind == "table" else {}
        return {"refId": letter, "datasource": DATASOURCE, "expr": expression, "legendFormat": legend, **table}


@dataclass(frozen=True)
class Row:
    """Panels below one heading, from left to right."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Dashboard:
    """One dashboard, whose file and uid have its name; `variables` are (name, query of label values)."""

    name: str
    title: str
    rows: tuple[Row, ...]
    variables: tuple[Query, ...] = ()
    since: str = "now-1h"

    def document(self) -> dict[str, Any]:
        """The dashboard as Grafana reads it."""
        return {
            "uid": f"stream-scorer-{self.name}",
            "title": f"stream_scorer: {self.title}",
            "tags": ["stream_scorer"],
            "schemaVersion": 41,
            "editable": False,
            "timezone": "utc",
            "refresh": "15s",
            "time": {"from": self.since, "to": "now"},
            "links": [
                {"type": "dashboards", "title": "stream_scorer", "tags": ["stream_scorer"], "asDropdown": False,
                 "keepTime": True}
            ],
            "templating": {"list": [_variable(name, query) for name, query in self.variables]},
            "panels": list(self._panels()),
        }  # fmt: skip

    def _panels(self) -> Iterator[dict[str, Any]]:
        number = y = 0
        for row in self.rows:
            number += 1
            yield {
                "id": number, "type": "row", "title": row.title, "collapsed": False, "panels": [],
                "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
            }  # fmt: skip
            x, y = 0, y + 1
            for panel in row.panels:
                if x + panel.width > COLUMNS:
                    x, y = 0, y + HEIGHT
                number += 1
                yield panel.document(number, x, y)
                x += panel.width
            y += HEIGHT


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name, "type": "query", "datasource": DATASOURCE, "query": query, "definition": query, "refresh": 2,
        "includeAll": True, "allValue": ".*", "multi": False, "current": {"text": "All", "value": "$__all"},
    }  # fmt: skip


BREAKER = {0: ("closed", GREEN), 1: ("on trial", ORANGE), 2: ("open", RED)}
LEARNS = {0: ("watches", GREEN), 1: ("learns", ORANGE)}
RUNS = {0: ("down", RED), 1: ("runs", GREEN)}

SERVING = Dashboard(
    "serving",
    "serving",
    (
        Row(
            "Throughput and latency",
            (
                Panel("Transactions", "Scored and committed, by decision.",
                      (("sum by (decision) (rate(stream_scorer_transactions_total[$__rate_interval]))",
                        "{{decision}}"),),
                      "reqps", stacked=True),
                Panel("End-to-end latency", "From the record timestamp of a transaction to the commit of its score. "
                      "During a backlog it includes the wait.",
                      (("job:stream_scorer_end_to_end_seconds:p50_5m", "p50"),
                       ("job:stream_scorer_end_to_end_seconds:p95_5m", "p95"),
                       ("job:stream_scorer_end_to_end_seconds:p99_5m", "p99")), "s", limit=0.2),
                Panel("Slower than 200 ms", "Share of transactions; the 95th percentile is above 200 ms from 5 %.",
                      (("job:stream_scorer_end_to_end_over_200ms:ratio_rate5m", "slower than 200 ms"),),
                      "percentunit", limit=0.05),
                Panel("Lag", "Unread input records of the owned partitions.",
                      (("sum by (instance) (stream_scorer_lag_records)", "{{instance}}"),)),
                Panel("Time per stage, p99", "Wall time of one stage of one micro-batch.",
                      (("job_stage:stream_scorer_stage_seconds:p99_5m", "{{stage}}"),), "s"),
                Panel("Records per micro-batch", "Mean; `scorer.batch` is the maximum.",
                      (("sum by (instance) (rate(stream_scorer_batch_records_sum[$__rate_interval])) "
                        "/ sum by (instance) (rate(stream_scorer_batch_records_count[$__rate_interval]))",
                        "{{instance}}"),)),
            ),
        ),
        Row(
            "Exactly once",
            (
                Panel("Kafka transactions", "One per micro-batch, by outcome.",
                      (("sum by (outcome) (rate(stream_scorer_kafka_transactions_total[$__rate_interval]))",
                        "{{outcome}}"),), "ops"),
                Panel("Resyncs", "Returns to the committed and applied offsets in the last hour, by cause.",
                      (("sum by (cause) (increase(stream_scorer_resyncs_total[1h]))", "{{cause}}"),)),
                Panel("Partitions", "Owned input partitions.",
                      (("sum by (instance) (stream_scorer_partitions)", "{{instance}}"),)),
            ),
        ),
        Row(
            "Errors and degraded scores",
            (
                Panel("Error rate", "Share of records without a score of a model: dead letters and fallbacks.",
                      (("job:stream_scorer_errors:ratio_rate5m", "errors"),), "percentunit", limit=0.01),
                Panel("Dead letters", "In the last hour, by error code.",
                      (("sum by (code) (increase(stream_scorer_dead_letters_total[1h]))", "{{code}}"),)),
                Panel("Degraded", "Share of transactions that are scored with degraded inputs, by reason.",
                      (("job_reason:stream_scorer_degraded:ratio_rate5m", "{{reason}}"),), "percentunit", limit=0.01),
            ),
        ),
        Row(
            "Features",
            (
                Panel("State", "State of the features per scorer (docs/features.md).",
                      (("sum by (state) (stream_scorer_feature_state == 1)", "{{state}}"),), stacked=True),
                Panel("Lag of sources", "In event time: the slowest other partition, and labels.",
                      (("max by (of) (stream_scorer_feature_age_seconds)", "{{of}}"),), "s"),
                Panel("Rebuild", "Records that remain to be read, and records read again per second.",
                      (("sum by (instance) (stream_scorer_rebuild_remaining_records)", "remaining, {{instance}}"),
                       ("sum by (instance) (rate(stream_scorer_catch_up_records_total[$__rate_interval]))",
                        "per second, {{instance}}"))),
                Panel("Expired keys", "Keys deleted per hour because no scorer will read them again.",
                      (("sum by (instance) (increase(stream_scorer_expired_keys_total[1h]))", "{{instance}}"),)),
                Panel("Duplicates and wrong keys",
                      "Transactions per second with an event id that was seen before, and with a record key that is "
                      "not the id of the partition entity.",
                      (("sum by (instance) (rate(stream_scorer_duplicates_total[$__rate_interval]))",
                        "duplicates, {{instance}}"),
                       ("sum by (instance) (rate(stream_scorer_wrong_keys_total[$__rate_interval]))",
                        "wrong keys, {{instance}}"))),
                Panel("Labels without an id",
                      "In the last hour, by the entity whose features they should change.",
                      (("sum by (entity) (increase(stream_scorer_labels_without_entity_total[1h]))", "{{entity}}"),)),
            ),
        ),
        Row(
            "Members",
            (
                Panel("Failures", "Share of the micro-batches in which a member returned no usable score.",
                      (("job_member:stream_scorer_member_failures:ratio_rate5m", "{{member}}"),), "percentunit",
                      limit=0.01),
                Panel("Circuit breakers", "The worst state over all scorers.",
                      (("max by (member) (stream_scorer_member_breaker)", "{{member}}"),), kind="stat", texts=BREAKER),
                Panel("Time per micro-batch", "Mean time of one member's prediction.",
                      (("job_member:stream_scorer_member_seconds:per_batch5m", "{{member}}"),), "s"),
            ),
        ),
    ),
)  # fmt: skip

MODELS = Dashboard(
    "models",
    "models and verdicts",
    (
        Row(
            "Versions",
            (
                Panel("Serving", "1 per scorer that serves the version.",
                      (("sum by (ensemble, version) (stream_scorer_serving_info{ensemble=~\"$ensemble\"} == 1)",
                        "{{ensemble}} {{version}}"),), stacked=True),
                Panel("In play", "Champion, canary, shadows, a withdrawn version, and the last good one on probation.",
                      (("max by (ensemble, version) (stream_scorer_in_play_info{ensemble=~\"$ensemble\"} == 1)",
                        "{{ensemble}} {{version}}"),)),
                Panel("Age of the training data", "Newest scored event time minus the end of the training data.",
                      (("max by (ensemble, version) (stream_scorer_ensemble_age_seconds{ensemble=~\"$ensemble\"})",
                        "{{ensemble}} {{version}}"),), "s"),
            ),
        ),
        Row(
            "Alerts",
            (
                Panel("Alert rate", "Share of alerted transactions in the newest closed window, by version and arm.",
                      (("max by (ensemble, version, arm, positive) "
                        "(stream_scorer_alert_rate{ensemble=~\"$ensemble\"})",
                        "{{ensemble}} {{version}} {{arm}}, {{positive}}"),), "percentunit", width=12),
                Panel("Change of alerted cards", "A version on probation, or a canary, compared with the other version "
                      "that scores the same transactions; no value while that alerts no card.",
                      (("max by (ensemble, version, baseline) "
                        "(stream_scorer_paired_alert_rise{ensemble=~\"$ensemble\"})",
                        "{{ensemble}} {{version}} against {{baseline}}"),), "percentunit", width=12),
            ),
        ),
        Row(
            "Verdict",
            (
                Panel("Evidence", "Natural logarithm of the evidence that alerted cards rise or fall; the monitor acts "
                      "at 6.9.",
                      (("max by (ensemble, version, baseline, direction) "
                        "(stream_scorer_paired_evidence{ensemble=~\"$ensemble\"})",
                        "{{ensemble}} {{version}} against {{baseline}}, {{direction}}"),), limit=6.9),
                Panel("Evidence is based on", "Cards that either version alerts, and transactions that count.",
                      (("max by (ensemble, version, baseline) (stream_scorer_paired_cards{ensemble=~\"$ensemble\"})",
                        "cards, {{ensemble}} {{version}} against {{baseline}}"),
                       (("max by (ensemble, version, baseline) "
                         "(stream_scorer_paired_transactions{ensemble=~\"$ensemble\"})"),
                        "transactions, {{ensemble}} {{version}} against {{baseline}}"))),
                Panel("Commands of the monitor", "In the last day, by action.",
                      (("sum by (ensemble, action) "
                        "(increase(stream_scorer_watch_commands_total{ensemble=~\"$ensemble\"}[1d]))",
                        "{{ensemble}} {{action}}"),)),
            ),
        ),
        Row(
            "Control",
            (
                Panel("Applied control offset", "Scorers that differ for long do not follow the same history.",
                      (("max by (instance) (stream_scorer_control_offset)", "{{instance}}"),)),
                Panel("Refused", "Scorers that refuse a version, and refused commands in the last hour.",
                      (("sum by (instance) (stream_scorer_control_problem)", "version, {{instance}}"),
                       ("sum by (instance) (increase(stream_scorer_control_refused_total[1h]))",
                        "commands, {{instance}}"))),
                Panel("Unpublished records", "Records on serving-state, scorer-status and audit that the broker has "
                      "not confirmed yet.",
                      (("sum by (instance) (stream_scorer_control_unpublished_records)", "{{instance}}"),)),
            ),
        ),
        Row(
            "Drift",
            (
                Panel("Open events", "Changes that happen now, by kind and the series that changed most.",
                      (("max by (ensemble, kind, series) (stream_scorer_drift_event{ensemble=~\"$ensemble\"})",
                        "{{ensemble}} {{kind}} {{series}}"),)),
                Panel("Evidence for an event", "Logarithm; an event opens at the threshold, which follows from "
                      "monitor.false_alarms_per_year.",
                      (("max by (ensemble) (stream_scorer_drift_evidence{ensemble=~\"$ensemble\"})",
                        "evidence, {{ensemble}}"),
                       ("max by (ensemble) (stream_scorer_drift_threshold{ensemble=~\"$ensemble\"})",
                        "threshold, {{ensemble}}"))),
                Panel("Detector", "It learns while it has too little history to open events.",
                      (("max by (ensemble) (stream_scorer_drift_learning{ensemble=~\"$ensemble\"})",
                        "{{ensemble}}"),), kind="stat", texts=LEARNS),
                Panel("Difference from training", "Jensen-Shannon distance from the training profile in the newest "
                      "closed window: a state, which may be permanent, and no event.",
                      (("max by (ensemble, version, series) (stream_scorer_drift_score{ensemble=~\"$ensemble\"})",
                        "{{ensemble}} {{version}} {{series}}"),), width=24),
            ),
        ),
    ),
    (("ensemble", "label_values(stream_scorer_serving_info, ensemble)"),),
    since="now-24h",
)  # fmt: skip

RATES = Dashboard(
    "rates",
    "false positives",
    (
        Row(
            "False-positive rate",
            (
                Panel("Bounds", "Of the newest window older than the label horizon. An alerted transaction without a "
                      "label is unknown: the bounds count it as fraud, or as genuine (ADR 0006).",
                      (("max by (ensemble, version, arm, positive) "
                        "(stream_scorer_false_positive_rate_low{ensemble=~\"$ensemble\"})",
                        "low, {{ensemble}} {{version}} {{arm}}, {{positive}}"),
                       ("max by (ensemble, version, arm, positive) "
                        "(stream_scorer_false_positive_rate_high{ensemble=~\"$ensemble\"})",
                        "high, {{ensemble}} {{version}} {{arm}}, {{positive}}")), "percentunit", width=12),
                Panel("Point estimate", "With its 95 % interval, clustered by card. It needs the review propensity, so "
                      "it is absent without a review sample (ADR 0032).",
                      (("max by (ensemble, version, arm, positive) "
                        "(stream_scorer_false_positive_rate{ensemble=~\"$ensemble\"})",
                        "estimate, {{ensemble}} {{version}} {{arm}}, {{positive}}"),
                       ("max by (ensemble, version, arm, positive) "
                        "(stream_scorer_false_positive_rate_interval_low{ensemble=~\"$ensemble\"})",
                        "low, {{ensemble}} {{version}} {{arm}}, {{positive}}"),
                       ("max by (ensemble, version, arm, positive) "
                        "(stream_scorer_false_positive_rate_interval_high{ensemble=~\"$ensemble\"})",
                        "high, {{ensemble}} {{version}} {{arm}}, {{positive}}")), "percentunit", width=12),
                Panel("Label age", "Of the window of these bounds.",
                      (("max by (ensemble, version, arm) (stream_scorer_label_age_seconds{ensemble=~\"$ensemble\"})",
                        "{{ensemble}} {{version}} {{arm}}"),), "s", width=24),
            ),
        ),
        Row(
            "Labels",
            (
                Panel("Records of the label joiner", "Per hour, by kind.",
                      (("sum by (what) (increase(stream_scorer_joiner_records{what!~\"rows|waiting\"}[1h]))",
                        "{{what}}"),), width=12),
                Panel("Stored by the label joiner", "Transactions that wait for labels, and labels that wait for "
                      "their transaction.",
                      (("sum by (what) (stream_scorer_joiner_records{what=~\"rows|waiting\"})", "{{what}}"),),
                      width=12),
            ),
        ),
    ),
    (("ensemble", "label_values(stream_scorer_serving_info, ensemble)"),),
    since="now-7d",
)  # fmt: skip

PROCESS = Dashboard(
    "process",
    "incidents and processes",
    (
        Row(
            "Incidents",
            (
                Panel("Open incidents", "By kind; `stream-scorer incident list` shows them.",
                      (("max by (kind) (stream_scorer_open_incidents)", "{{kind}}"),), width=16, stacked=True),
                Panel("Webhook", "Notifications in the last hour, by result.",
                      (("sum by (result) (increase(stream_scorer_webhook_notifications_total[1h]))", "{{result}}"),)),
            ),
        ),
        Row(
            "Alerts",
            (
                Panel("Firing alerts", "Rules of deploy/prometheus/alerts.yml whose condition holds.",
                      (("ALERTS{alertstate=\"firing\"}", ""),), kind="table", width=16),
                Panel("Processes", "Whether Prometheus can read the metrics of each process.",
                      (("up{job=~\".*(scorer|monitor).*\"}", "{{job}} {{instance}}"),), kind="stat", texts=RUNS),
            ),
        ),
        Row(
            "Process",
            (
                Panel("Memory", "Resident memory.",
                      (("process_resident_memory_bytes", "{{job}} {{instance}}"),), "bytes"),
                Panel("CPU", "Cores in use.",
                      (("rate(process_cpu_seconds_total[$__rate_interval])", "{{job}} {{instance}}"),)),
                Panel("File descriptors", "Share of the limit.",
                      (("process_open_fds / process_max_fds", "{{job}} {{instance}}"),), "percentunit", limit=0.8),
                Panel("Restarts", "In the last hour.",
                      (("changes(process_start_time_seconds[1h])", "{{job}} {{instance}}"),), width=12),
                Panel("Age", "Time since the start of the process.",
                      (("time() - process_start_time_seconds", "{{job}} {{instance}}"),), "s", width=12),
            ),
        ),
        Row(
            "Monitor",
            (
                Panel("Parts", "Each part restarts on its own.",
                      (("min by (part) (stream_scorer_monitor_part_running)", "{{part}}"),), kind="stat", texts=RUNS),
                Panel("Failures of parts", "In the last hour.",
                      (("sum by (part) (increase(stream_scorer_monitor_part_failures_total[1h]))", "{{part}}"),)),
                Panel("Lag", "Offsets between the applied offsets and the end of the topic.",
                      (("max by (topic) (stream_scorer_monitor_lag_records)", "{{topic}}"),)),
                Panel("Records", "Counted into windows, per second.",
                      (("sum by (topic) (rate(stream_scorer_monitor_records_total[$__rate_interval]))",
                        "{{topic}}"),)),
                Panel("Waiting panes", "Changed, and not yet reported. The newest are reported first.",
                      (("max(stream_scorer_monitor_waiting_windows)", "panes"),)),
                Panel("Event time behind the clock", "Windows close when event time passes their end.",
                      (("time() - max(stream_scorer_monitor_watermark_seconds)", "behind"),), "s"),
                Panel("Not counted", "In the last hour: unreadable records, gaps between summaries, windows whose bins "
                      "differ from the profile, and reports without some figures.",
                      (("sum by (topic) (increase(stream_scorer_monitor_unreadable_total[1h]))",
                        "unreadable, {{topic}}"),
                       ("sum(increase(stream_scorer_monitor_summary_gaps_total[1h]))", "gaps"),
                       ("sum(increase(stream_scorer_monitor_profile_mismatches_total[1h]))", "other bins"),
                       ("sum by (figures) (increase(stream_scorer_monitor_refused_windows_total[1h]))",
                        "without {{figures}}"))),
            ),
        ),
    ),
)  # fmt: skip

DASHBOARDS = (SERVING, MODELS, RATES, PROCESS)


def documents() -> dict[str, str]:
    """The text of each dashboard by file name."""
    return {f"{each.name}.json": json.dumps(each.document(), indent=1) + "\n" for each in DASHBOARDS}


def main(arguments: list[str]) -> int:
    """Write the files, or with ``--check`` print those that differ or must not exist, and return 3."""
    wanted = documents()
    if "--check" not in arguments:
        FOLDER.mkdir(parents=True, exist_ok=True)
        for name, text in wanted.items():
            (FOLDER / name).write_text(text, encoding="utf-8")
        return 0
    present = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
    stale = sorted(name for name in wanted.keys() | present.keys() if wanted.get(name) != present.get(name))
    for name in stale:
        sys.stderr.write(f"{name} in {FOLDER} differs from tools/make_dashboards.py: run 'make schemas'\n")
    return 3 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
