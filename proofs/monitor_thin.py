"""monitor-thin: windows equal a recomputation from the topics, and FPR bounds contain what the simulator hides.

A closed loop over days of event time: transactions (some twice) in, alerts back to analysts, labels in. Scorer and
monitor are killed with `kill -9` while traffic flows, with a transaction open. Then every window is computed again from
`scores`, `contributions`, `lineage`, `labels` and the manifest as plain JSON; of the product only the records' names
are used.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from proofs.kit import (
    Context,
    Ends,
    Monitor,
    Result,
    Scorer,
    log_ends,
    read_topic,
    services,
    train_cards,
    wait_drained,
    wait_until,
)
from proofs.monitor_labels import POSITIVE, Recomputed
from proofs.monitor_recompute import LABEL_METRICS, NOT_RECOMPUTED, Key, Logs, differs, recompute
from stream_scorer.arrays import Bools
from stream_scorer.bench.material import CARDS_SPEC
from stream_scorer.clock import SystemClock
from stream_scorer.kafka.topics import Topics
from stream_scorer.records import MonitorMetric
from stream_scorer.simulate.config import DAY_MS, SimulationConfig
from stream_scorer.simulate.files import read_truth
from stream_scorer.simulate.generate import generate
from stream_scorer.simulate.labeller import Labeller, LabellerConfig
from stream_scorer.simulate.live import LiveConfig, LiveReport, LiveTraffic

N = 60_000
DAYS = 3
# Event time runs about an hour a second: an analyst's label is due 2 to 4 hours after its alert.
SECONDS = 70.0
# Scaled down for `make test`: fewer rows a pane, so wider bounds.
SMALL, SMALL_SECONDS = 20_000, 40.0
DUPLICATES = 0.03
KILLS = 4
# Twice the simulator's own, so that hours hold several alerts; the monitor assumes at most 2 % among the silent.
FRAUD_RATE = 0.015
WINDOWS = (1, 24)
# Bounds must say something: their mean width against the alert rate, which is their width if nothing is labelled. How
# many alerts are labelled depends on how long alerts took to come (the wall clock), so hours are judged where most are.
WIDEST_PANES, WIDEST_DAYS = 0.75, 0.8
WELL_LABELLED = 0.8
# Twice the default: analysts can still review what comes in a burst after the scorer's outage.
ANALYSTS_PER_HOUR = 60
# The allowances of the bounds are exceeded in at most one window in a thousand, by the monitor's own statement. A run
# judges about 130 panes (two positive sets), so more than two misses come by chance in one run of three thousand.
MISSES = 2
# Until half of the chargebacks of the last hour have come, and every pane is older than the horizon.
SETTLE_MS = 4 * DAY_MS
# The monitor publishes every half second: after this time without a record, it has published everything.
QUIET_S, GIVE_UP_S = 3.0, 25.0


def run(context: Context) -> Result:
    """See the module. `n` is the number of transactions before duplicates."""
    n = context.n or N
    few = n < SMALL
    result = Result()
    train_cards(context.folder, seed=context.seed, transactions=30_000)
    ensemble, truth = context.folder / "ensemble", context.folder / "truth.parquet"
    spec = _spec_with_a_segment(context.folder)
    topics = Topics()
    with services("kafka", "redis") as (_stack, at), ThreadPoolExecutor(1) as pool, ExitStack() as lifetime:
        bootstrap = str(at.kafka)
        sabotage = "miscount-summaries" if context.broken else None
        scorer = Scorer(context.folder, at, instance="scorer", ensemble=ensemble, spec=spec, sabotage=sabotage)
        windows = [word for panes in WINDOWS for word in ("--window", str(panes))]
        monitor = Monitor(context.folder, at, ensemble, spec=spec, arguments=["--emit-every", "0.5", *windows])
        for process in (scorer, monitor):
            lifetime.callback(process.close)
        live = loop_traffic(context.seed, n, SMALL_SECONDS if few else SECONDS, bootstrap, truth)
        scorer.start()
        monitor.start()
        wait_logged(scorer, "assigned", 1)
        wait_logged(monitor, "monitoring", 1)
        traffic = pool.submit(live.run)
        try:
            _kill_both(context, result, bootstrap, scorer, monitor, live, traffic, n)
            report = traffic.result(timeout=300)
        finally:
            live.stop()
        context.say(f"sent {report.records} records; labels {dict(report.labels)}, alerts {dict(report.alerts)}")
        wait_drained(bootstrap, [scorer], timeout_s=120)
        logs = Logs.read(bootstrap, topics, json.loads((ensemble / "manifest.json").read_text()))
        expected = {key: row for panes in WINDOWS for key, row in recompute(logs, panes * logs.pane_ms).items()}
        published = _converge(context, bootstrap, topics, monitor, expected, logs.horizon_ms)
        aborted = {
            topic: len(read_topic(bootstrap, topic, uncommitted=True)) - len(read_topic(bootstrap, topic))
            for topic in (topics.outcomes, topics.score_summaries)
        }
        result.check("the monitor ends with exit 0 in 10 s", monitor.stop(10) == 0)
        result.check("the scorer ends with exit 0 in 10 s", scorer.stop(10) == 0)
    _check_logs(result, logs, report)
    _check_windows(result, logs, expected, published)
    _check_bounds(result, logs, expected, published, truth, few=few)
    result.at_least("labels_joined", int((logs.verdict >= 0).sum()), 50 if few else 200)
    result.figures["aborted_records"] = aborted
    if not few:
        result.at_least("aborted_records_not_to_be_counted", sum(aborted.values()), 1)
        result.at_least("labels_too_late", logs.late, 1)
    result.at_least("alerts", int((logs.decision != "approve").sum()), 40 if few else 200)
    return result


def _spec_with_a_segment(folder: Path) -> Path:
    """The spec of the cards with a segment, so that there are rates by segment. Its thresholds are the policy's."""
    text, policy = CARDS_SPEC.read_text(encoding="utf-8"), "quorum: 0.5}"
    assert policy in text
    where = "{name: online, where: {channel: {in: [online]}}, review: 0.30, block: 0.80}"
    spec = folder / "segments.yaml"
    spec.write_text(text.replace(policy, f"quorum: 0.5, segments: [{where}]}}"), encoding="utf-8")
    return spec


def loop_traffic(seed: int, n: int, seconds: float, bootstrap: str, truth: Path) -> LiveTraffic:
    """`n` transactions, days of event time in `seconds`, with analysts and chargebacks; see the module."""
    config = SimulationConfig(
        seed=seed,
        customers=int(n / DAYS / 1.5),
        terminals=max(n // 60, 50),
        days=None,
        transactions=n,
        fraud_rate=FRAUD_RATE,
    )
    # Labels come until then, and a label from the future is refused.
    config = config.starting(config.start_to_end_by(SystemClock().now_ms()) - SETTLE_MS)
    live = LiveConfig(
        bootstrap,
        rate=n / seconds,
        duplicates=DUPLICATES,
        seed=seed,
        truth=truth,
        alerts_s=3.0 if n < SMALL else 6.0,
        settle_ms=SETTLE_MS,
    )
    labeller = Labeller(LabellerConfig(seed=seed, capacity_per_hour=ANALYSTS_PER_HOUR))
    return LiveTraffic(live, [generate(config)], labeller, clock=SystemClock())


def wait_logged(process: Scorer, word: str, times: int) -> None:
    """Wait until the log of `process` has `word` so many times."""

    def logged() -> bool:
        process.require_running()
        return process.log.read_text(errors="replace").count(word) >= times

    wait_until(f"{process.instance} logs {word!r}", logged, 60, 0.1)


def _kill_both(
    context: Context,
    result: Result,
    bootstrap: str,
    scorer: Scorer,
    monitor: Scorer,
    live: LiveTraffic,
    traffic: Future[LiveReport],
    n: int,
) -> None:
    """Each at a seeded point of progress, started again at once.

    What dies with a transaction open leaves records that nobody may count. The moment cannot be hit every time, so
    each is killed up to `KILLS` times until it is.
    """
    rng = np.random.default_rng(context.seed)
    kills = 1 if n < SMALL else KILLS
    victims: list[tuple[Scorer, str, str]] = [
        (monitor, "monitoring", Topics().outcomes),
        (scorer, "assigned", Topics().score_summaries),
    ]
    if rng.random() < 0.5:
        victims.reverse()
    for (victim, word, topic), low in zip(victims, (0.2, 0.55), strict=True):
        point = rng.uniform(low, low + 0.15) * n
        wait_until(f"traffic reaches {point:.0f}", lambda: live.report.transactions >= point or traffic.done(), 200)  # noqa: B023
        for kill in range(1, kills + 1):
            left_open = kill_in_transaction(victim, bootstrap, topic, patience_s=1.0 if kills == 1 else 3.0)
            after = n - live.report.transactions
            if kill == 1:
                result.at_least(f"transactions_after_{victim.instance}_was_killed", after, n // 100)
            context.say(f"{victim.instance} killed at {n - after}, a transaction open: {left_open}")
            victim.start()
            result.figures[f"{victim.instance}_kills"] = kill
            if left_open or traffic.done() or kill == kills:
                break
            wait_logged(victim, word, 1 + kill)
    for victim, word, _ in victims:
        wait_logged(victim, word, 1 + result.figures[f"{victim.instance}_kills"])
    context.say(f"both are back at {live.report.transactions}")


def kill_in_transaction(victim: Scorer, bootstrap: str, topic: str, *, patience_s: float) -> bool:
    """`kill -9` when records on `topic` are written and not committed, or after a while; whether they stay so."""
    ends = Ends(bootstrap, topic)
    try:
        deadline = time.monotonic() + patience_s
        while not ends.transaction_open() and time.monotonic() < deadline:
            pass
        victim.kill()
        time.sleep(0.05)  # a commit that was on its way
        return ends.transaction_open()
    finally:
        ends.close()


@dataclass
class PublishedMetrics:
    """What `monitor-metrics` holds: every record, the last revision of each figure, and how often order is broken."""

    every: list[MonitorMetric]
    last: dict[Key, MonitorMetric]
    stale: int

    @classmethod
    def read(cls, bootstrap: str, topics: Topics) -> PublishedMetrics:
        content = read_topic(bootstrap, topics.monitor_metrics)
        every, last, stale = content.decode(MonitorMetric), dict[Key, MonitorMetric](), 0
        every = [metric for metric in every if metric.metric not in NOT_RECOMPUTED]
        for metric in every:
            key = (metric.window_start, metric.window_end - metric.window_start, metric.metric, metric.dimension)
            # Compaction of the topic keeps the last record, which must be the last revision.
            stale += key in last and metric.revision <= last[key].revision
            if key not in last or metric.revision > last[key].revision:
                last[key] = metric
        return cls(every, last, stale)


def _converge(
    context: Context,
    bootstrap: str,
    topics: Topics,
    monitor: Scorer,
    expected: Mapping[Key, Recomputed],
    horizon_ms: int,
) -> PublishedMetrics:
    """What the monitor has published once no record follows; waits longer if that differs from `expected`."""
    began = time.monotonic()
    end, since = -1, began
    published: PublishedMetrics | None = None
    while True:
        monitor.require_running()
        now = sum(log_ends(bootstrap, [topics.monitor_metrics]).values())
        if now != end:
            end, since, published = now, time.monotonic(), None
        quiet = time.monotonic() - since
        if quiet > QUIET_S and published is None:
            published = PublishedMetrics.read(bootstrap, topics)
            if not differences(expected, published.last, horizon_ms):
                break
        if quiet > GIVE_UP_S and published is not None:
            break
        time.sleep(0.5)
    context.say(f"the last record of the monitor came after {since - began:.1f} s")
    return published


def differences(
    expected: Mapping[Key, Recomputed], last: Mapping[Key, MonitorMetric], horizon_ms: int
) -> dict[str, int]:
    """How many figures differ, by metric; one that only one side has differs."""
    found: dict[str, int] = {}
    for key in expected.keys() | last.keys():
        if differs(last.get(key), expected.get(key), horizon_ms):
            found[key[2]] = found.get(key[2], 0) + 1
    return found


def _check_logs(result: Result, logs: Logs, report: LiveReport) -> None:
    result.figures |= {
        "scores": len(logs.event_id),
        "labels_by_source": dict(report.labels),
        "late_alerts": report.late_alerts,
    }
    result.check("every record was scored once", len(logs.sources) == len(set(logs.sources)) == report.records)
    result.check("scores and contributions name the same events in the same order", logs.same_order)
    result.check("one version served", len(logs.who) == 1)
    masks = sum(logs.alone(m).astype(np.int64) << m for m in range(len(logs.manifest["members"])))
    result.check("the scores' member alerts follow from the contributions", bool((logs.member_alerts == masks).all()))
    result.at_least("duplicates", int(logs.duplicate.sum()), 1)
    excused = _unflagged_copies(logs)
    result.figures["second_copies_scored_without_features"] = excused
    flagged = int(logs.duplicate.sum())
    result.check("every second copy is flagged, or degraded", flagged + excused == report.duplicates)


def _unflagged_copies(logs: Logs) -> int:
    """Second copies that are not flagged because their features were missing, as on a machine that is too busy."""
    seen: set[str] = set()
    found = 0
    for event_id, duplicate, degraded in zip(
        logs.event_id, logs.duplicate.tolist(), logs.degraded.tolist(), strict=True
    ):
        found += event_id in seen and not duplicate and degraded
        seen.add(event_id)
    return found


def _check_windows(result: Result, logs: Logs, expected: Mapping[Key, Recomputed], published: PublishedMetrics) -> None:
    wrong = differences(expected, published.last, logs.horizon_ms)
    examples = [key for key in expected if differs(published.last.get(key), expected[key], logs.horizon_ms)][:3]
    drift = [
        abs((published.last[key].value or 0.0) - (row.value or 0.0))
        for key, row in expected.items()
        if key[2] == "drift_score" and key in published.last
    ]
    result.figures |= {
        "figures_compared": len(expected),
        "figures_different": wrong,
        "examples": [f"{published.last.get(key)}, by the log {expected[key]}" for key in examples],
        "drift_scores_compared": len(drift),
        "worst_drift_difference": float(max(drift, default=np.inf)),
        "records_published": len(published.every),
        "most_revisions": max((m.revision for m in published.every), default=0),
    }
    counted = {"transactions", "duplicate_share", "degraded_share", "fallback_share", "alert_rate", "alert_rate_money"}
    result.check("counts and alert rates equal the recomputation", not counted & wrong.keys())
    result.check("member alerts equal the recomputation", "member_alert_rate" not in wrong)
    result.check("drift scores equal the recomputation to 1e-9", "drift_score" not in wrong)
    result.check(
        "figures of labels equal the recomputation, with bounds and intervals", not {*LABEL_METRICS} & wrong.keys()
    )
    by_segment = sum(key[2] == "segment_fpr" for key in expected)
    result.at_least("rates_of_a_segment", by_segment, 20)
    result.figures["intervals_compared"] = sum(row.interval is not None for row in expected.values())
    result.check("every figure of every window equals, and none is on one side only", not wrong)
    result.check("the last record of a figure is its last revision", published.stale == 0)
    newest = max([int(logs.event_time.max()), *(m.window_end + m.label_age for m in published.every if m.label_age)])
    due = newest // logs.pane_ms * logs.pane_ms - logs.horizon_ms
    open_rates = [m for m in published.last.values() if m.metric == "fpr" and m.window_end <= due and not m.final]
    result.check("the rates of every window are final once its labels are mature", not open_rates)
    result.check(
        "the figures are the serving version's", {(m.ensemble, m.version, m.arm) for m in published.every} == logs.who
    )


class Truth:
    """What the simulator hid, against what was decided and labelled."""

    def __init__(self, logs: Logs, path: Path) -> None:
        facts = read_truth(path)
        fraud = dict(zip(facts["event_id"].tolist(), (facts["fraud_kind"] > 0).tolist(), strict=True))
        self._logs = logs
        self._fraud = np.array([fraud[event_id] for event_id in logs.event_id])
        self._rates: dict[tuple[int, int, str], float | None] = {}
        self.complete = len(set(logs.event_id)) == len(fraud)

    def rate(self, start: int, length: int, name: str) -> float | None:
        """The false-positive rate of a window over distinct event ids; None without a genuine transaction."""
        key = (start, length, name)
        if key not in self._rates:
            genuine = self._inside(start, length) & ~self._fraud
            positive = np.isin(self._logs.decision[genuine], POSITIVE[name])
            self._rates[key] = float(positive.mean()) if len(positive) else None
        return self._rates[key]

    def misled(self, metric: MonitorMetric) -> bool:
        """Whether a pane's labels were wrong in a way that its bounds need not cover.

        They allow for so much unreported fraud and for as many wrong verdicts as one window in a thousand exceeds,
        which is never fewer than one.
        """
        inside = self._inside(metric.window_start, metric.window_end - metric.window_start)
        verdict = self._logs.verdict
        wrong = inside & (verdict >= 0) & ((verdict == 1) != self._fraud)
        silent = inside & (verdict < 0) & self._fraud & (self._logs.decision == "approve")
        return int(wrong.sum()) >= 2 or int(silent.sum()) > (metric.statistics["unreported_at_most"] or 0)

    def _inside(self, start: int, length: int) -> Bools:
        times = self._logs.event_time
        return ~self._logs.duplicate & (times >= start) & (times < start + length)


def _check_bounds(
    result: Result,
    logs: Logs,
    expected: Mapping[Key, Recomputed],
    published: PublishedMetrics,
    path: Path,
    *,
    few: bool,
) -> None:
    """Every mature window of a closed pane, by the simulator's truth."""
    truth = Truth(logs, path)
    result.check("every transaction of the truth was scored", truth.complete)
    bounded = [m for m in published.every if m.metric == "fpr" and m.closed and m.low is not None]
    result.figures |= {
        "bounds_of_closed_windows": len(bounded),
        "of_them_outside": sum(not _holds(m, truth) for m in bounded),
    }
    mature = [
        m
        for key, m in published.last.items()
        if key[2] == "fpr" and m.closed and (m.label_age or 0) >= logs.horizon_ms and m.low is not None
    ]
    outside: list[MonitorMetric] = []
    for length, label in ((logs.pane_ms, "panes"), (24 * logs.pane_ms, "days")):
        for name in POSITIVE:
            windows = [m for m in mature if m.window_end - m.window_start == length and m.dimension == name]
            missed = _measure(result, windows, truth, expected, f"{label}_{name}")
            if label == "panes":
                outside += missed
            else:
                result.check(f"{label}_{name}: the hidden truth lies within the bounds", not missed)
    panes, days = (
        [m for m in mature if m.window_end - m.window_start == length and m.dimension == "review+block"]
        for length in (logs.pane_ms, 24 * logs.pane_ms)
    )
    well = [m for m in panes if (m.statistics["unknown"] or 0) <= (1 - WELL_LABELLED) * _alerts(m, expected)]
    result.figures |= {
        "width_of_days_relative_to_no_labels": round(_relative_width(days, expected), 3),
        "width_of_well_labelled_panes_relative_to_no_labels": round(_relative_width(well, expected), 3),
    }
    result.check(
        f"days have bounds at most {WIDEST_DAYS:g} as wide as without labels",
        _relative_width(days, expected) <= WIDEST_DAYS,
    )
    if not few:  # scaled down, an hour has next to no alerts
        result.at_least("well_labelled_panes", len(well), 20)
        result.check(
            f"well labelled panes have bounds at most {WIDEST_PANES:g} as wide as without labels",
            _relative_width(well, expected) <= WIDEST_PANES,
        )
    excused = sum(truth.misled(m) for m in outside)
    result.figures |= {"panes_outside": len(outside), "of_them_misled": excused}
    result.check(
        "the hidden truth lies within the bounds of every pane whose labels were not wrong beyond the allowance",
        len(outside) == excused,
    )
    result.check(f"no more than {MISSES} panes were misled", len(outside) <= MISSES)
    result.at_least("panes", len(panes), 36 if few else 48)
    result.at_least("panes_with_false_positives", sum((m.numerator or 0) > 0 for m in panes), 8 if few else 20)


def _holds(metric: MonitorMetric, truth: Truth) -> bool:
    at = truth.rate(metric.window_start, metric.window_end - metric.window_start, metric.dimension)
    assert metric.low is not None and metric.high is not None
    return at is None or metric.low - 1e-12 <= at <= metric.high + 1e-12


def _alerts(metric: MonitorMetric, expected: Mapping[Key, Recomputed]) -> int:
    length = metric.window_end - metric.window_start
    return expected[metric.window_start, length, "alert_rate", metric.dimension].numerator or 0


def _relative_width(windows: Sequence[MonitorMetric], expected: Mapping[Key, Recomputed]) -> float:
    """Mean width of bounds, by rows, against the alert rate: without any label the rate lies between 0 and that."""
    width = sum(((m.high or 0.0) - (m.low or 0.0)) * m.rows for m in windows)
    return width / max(sum(_alerts(m, expected) for m in windows), 1)


def _measure(
    result: Result, windows: Sequence[MonitorMetric], truth: Truth, expected: Mapping[Key, Recomputed], label: str
) -> list[MonitorMetric]:
    """Compare bounds with the truth; returns those that miss it."""
    missed = [m for m in windows if not _holds(m, truth)]
    low = np.array([m.low for m in windows], dtype=np.float64)
    high = np.array([m.high for m in windows], dtype=np.float64)
    at = np.array([truth.rate(m.window_start, m.window_end - m.window_start, m.dimension) or 0.0 for m in windows])
    rows = np.array([m.rows for m in windows])
    alerts = sum(_alerts(m, expected) for m in windows)
    result.figures[label] = {
        "windows": len(windows),
        "inside": len(windows) - len(missed),
        "low": round(float(np.average(low, weights=rows)), 6),
        "truth": round(float(np.average(at, weights=rows)), 6),
        "high": round(float(np.average(high, weights=rows)), 6),
        "width": round(float(np.average(high - low, weights=rows)), 6),
        "alert_rate": round(float(alerts / rows.sum()), 6),
        "unknown_share_of_alerts": round(sum(m.statistics["unknown"] or 0 for m in windows) / max(alerts, 1), 3),
        "widest": round(float((high - low).max()), 6),
        "low_above_zero": int((low > 0).sum()),
    }
    return missed
