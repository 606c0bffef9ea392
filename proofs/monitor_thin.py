"""monitor-thin: windows equal a recomputation from the topics, and FPR bounds contain what the simulator hides.

A closed loop over days of event time: transactions (some twice) in, alerts back to analysts, labels in. The scorer and
the monitor are killed with `kill -9` while traffic flows, with a transaction open. Then every window is computed again from `scores`,
`contributions`, `labels` and the manifest as plain JSON; of the product only the records' names are used.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from proofs.kit import (
    CARDS_SPEC,
    ROOT,
    Context,
    Ends,
    Result,
    Scorer,
    TopicContent,
    cards,
    log_ends,
    read_topic,
    services,
    tethered,
    train_cards,
    wait_drained,
    wait_until,
)
from stream_scorer.clock import SystemClock
from stream_scorer.kafka.topics import Topics
from stream_scorer.records import MonitorMetric, Score
from stream_scorer.simulate.config import DAY_MS, SimulationConfig
from stream_scorer.simulate.files import read_truth
from stream_scorer.simulate.generate import generate
from stream_scorer.simulate.labeller import Labeller, LabellerConfig
from stream_scorer.simulate.live import LiveConfig, LiveReport, LiveTraffic
from stream_scorer.spec.model import duration_ms
from stream_scorer.stack import StackAddresses

N = 60_000
DAYS = 3
# Event time runs about an hour a second: an analyst's label is due 2 to 4 hours after its alert.
SECONDS = 70.0
# Scaled down for `make test`: fewer rows a pane, so wider bounds.
SMALL, SMALL_SECONDS = 20_000, 14.0
DUPLICATES = 0.03
KILLS = 4
# Twice the simulator's own, so that hours hold several alerts; the monitor assumes at most 2 % among the silent.
FRAUD_RATE = 0.015
WINDOWS = (1, 24)
TOLERANCE = 1e-9
# Bounds must say something: their mean width against the alert rate, which is their width if nothing is labelled. An
# hour has too few false positives to exclude much at one in a thousand, and scaled down it has next to none.
WIDEST, WIDEST_SMALL = {"panes": 0.75, "days": 0.5}, {"panes": 2.0, "days": 0.8}
POSITIVE = {"review+block": ("review", "block"), "block": ("block",)}
# The monitor speaks every half second: silent for this long, it has said what it has to say.
QUIET_S, GIVE_UP_S = 4.0, 25.0

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Key = tuple[int, int, str, str]  # start, length (ms), metric, dimension


class Monitor(Scorer):
    """`stream-scorer monitor` as a process of its own."""

    def __init__(self, folder: Path, addresses: StackAddresses, ensemble: Path) -> None:
        command = [sys.executable, "-m", "stream_scorer.cli.main", "monitor", "--metrics-port", "-1"]
        command += ["--bootstrap", str(addresses.kafka), "--redis", str(addresses.redis), "--spec", str(CARDS_SPEC)]
        command += ["--ensemble", str(ensemble), "--state-dir", str(folder / "monitor"), "--emit-every", "0.5"]
        self.instance = "monitor"
        self.log = folder / "monitor.log"
        self._command = tethered([*command, *(x for panes in WINDOWS for x in ("--window", str(panes)))])
        self._environment = dict(os.environ) | {"PYTHONPATH": str(ROOT)}
        self._process = None


def run(context: Context) -> Result:
    """See the module. `n` is the number of transactions before duplicates."""
    n = context.n or N
    few = n < SMALL
    result = Result()
    train_cards(context.folder, seed=context.seed, transactions=30_000)
    ensemble, truth = context.folder / "ensemble", context.folder / "truth.parquet"
    topics = Topics()
    with services("kafka", "redis") as (_stack, at), ThreadPoolExecutor(1) as pool:
        bootstrap = str(at.kafka)
        sabotage = "miscount-summaries" if context.broken else None
        scorer = Scorer(context.folder, at, instance="scorer", ensemble=ensemble, sabotage=sabotage)
        monitor = Monitor(context.folder, at, ensemble)
        live = _traffic(context.seed, n, SMALL_SECONDS if few else SECONDS, bootstrap, truth)
        scorer.start()
        monitor.start()
        _wait_said(scorer, "assigned", 1)
        _wait_said(monitor, "monitoring", 1)
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
        said = _converge(context, bootstrap, topics, monitor, expected)
        aborted = {
            topic: len(read_topic(bootstrap, topic, uncommitted=True)) - len(read_topic(bootstrap, topic))
            for topic in (topics.outcomes, topics.score_summaries)
        }
        result.check("the monitor ends with exit 0 in 10 s", monitor.stop(10) == 0)
        result.check("the scorer ends with exit 0 in 10 s", scorer.stop(10) == 0)
    _check_logs(result, logs, report)
    _check_windows(result, logs, expected, said)
    _check_bounds(result, logs, expected, said, truth, few=few)
    result.at_least("labels_joined", int((logs.verdict >= 0).sum()), 50 if few else 200)
    result.figures["aborted_records"] = aborted
    if not few:
        result.at_least("aborted_records_not_to_be_counted", sum(aborted.values()), 1)
        result.at_least("labels_too_late", logs.late, 1)
    result.at_least("alerts", int((logs.decision != "approve").sum()), 40 if few else 200)
    return result


def _traffic(seed: int, n: int, seconds: float, bootstrap: str, truth: Path) -> LiveTraffic:
    config = SimulationConfig(
        seed=seed,
        customers=int(n / DAYS / 1.5),
        terminals=max(n // 60, 50),
        days=None,
        transactions=n,
        fraud_rate=FRAUD_RATE,
    )
    config = config.starting(config.start_to_end_by(SystemClock().now_ms()))
    live = LiveConfig(
        bootstrap,
        rate=n / seconds,
        duplicates=DUPLICATES,
        seed=seed,
        truth=truth,
        alerts_s=5.0,
        # Until half of the chargebacks of the last hour have come, and every pane is older than the horizon.
        settle_ms=4 * DAY_MS,
    )
    return LiveTraffic(live, [generate(config)], Labeller(LabellerConfig(seed=seed)), clock=SystemClock())


def _wait_said(process: Scorer, word: str, times: int) -> None:
    def said() -> bool:
        process.require_running()
        return process.log.read_text(errors="replace").count(word) >= times

    wait_until(f"{process.instance} says {word!r}", said, 60, 0.1)


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
        result.at_least(f"transactions_after_{victim.instance}_was_killed", n - live.report.transactions, 500)
        for kill in range(1, kills + 1):
            left_open = _kill_in_transaction(victim, bootstrap, topic)
            context.say(f"{victim.instance} killed at {live.report.transactions}, a transaction open: {left_open}")
            victim.start()
            result.figures[f"{victim.instance}_kills"] = kill
            if left_open or traffic.done() or kill == kills:
                break
            _wait_said(victim, word, 1 + kill)
    for victim, word, _ in victims:
        _wait_said(victim, word, 1 + result.figures[f"{victim.instance}_kills"])
    context.say(f"both are back at {live.report.transactions}")


def _kill_in_transaction(victim: Scorer, bootstrap: str, topic: str) -> bool:
    """`kill -9` when records on `topic` are written and not committed; whether they stay so."""
    ends = Ends(bootstrap, topic)
    try:
        deadline = time.monotonic() + 3
        while not ends.transaction_open() and time.monotonic() < deadline:
            pass
        victim.kill()
        time.sleep(0.05)  # a commit that was on its way
        return ends.transaction_open()
    finally:
        ends.close()


class _MemberScore(msgspec.Struct):
    name: str
    score: float | None


class _Lineage(msgspec.Struct):
    """What is needed of a `Contribution`."""

    event_id: str
    score: float | None
    members: list[_MemberScore]
    features: list[float | None]
    source: dict[str, Any]


class _Label(msgspec.Struct):
    event_id: str
    label: str
    labelled_at: int
    source: str
    review_probability: float | None = None


@dataclass
class Logs:
    """What the topics hold, a row a scored record ``(n,)``, duplicates included.

    Attributes:
        series: columns by series of the reference profile.
        verdict: 1 fraud, 0 genuine, -1 silent; a duplicate is always silent. reviewed: the label's probability, or NaN.
        late: labels that came more than two horizons after their transaction, and so count nowhere.
    """

    manifest: dict[str, Any]
    pane_ms: int
    horizon_ms: int
    event_id: list[str]
    event_time: NDArray[np.int64]
    decision: NDArray[Any]
    value: NDArray[np.int64]
    duplicate: Bools
    degraded: Bools
    fallback: Bools
    member_alerts: NDArray[np.int64]
    series: dict[str, Floats]
    verdict: NDArray[np.int64]
    reviewed: Floats
    late: int
    sources: list[tuple[int, int]]
    same_order: bool
    who: set[tuple[str, str, str]]

    def alone(self, member: int) -> Bools:
        """Which rows this member alone would have alerted."""
        scores = self.series[f"member:{self.manifest['members'][member]['name']}"]
        return np.asarray(scores >= self.manifest["thresholds"]["review"])

    @classmethod
    def read(cls, bootstrap: str, topics: Topics, manifest: dict[str, Any]) -> Logs:
        spec = cards().spec
        scores = read_topic(bootstrap, topics.scores).decode(Score)
        lineage = read_topic(bootstrap, topics.contributions).decode(_Lineage)
        names = [member["name"] for member in manifest["members"]]
        features = np.array([r.features for r in lineage], dtype=np.float64)
        series = dict(zip(manifest["features"], features.T, strict=True))
        for m, name in enumerate(names):
            series[f"member:{name}"] = np.array([r.members[m].score for r in lineage], dtype=np.float64)
        series["score"] = np.array([r.score for r in lineage], dtype=np.float64)
        verdict, reviewed, late = _verdicts(
            scores,
            read_topic(bootstrap, topics.labels),
            spec.labels.source_rank,
            2 * duration_ms(spec.labels.horizon),
        )
        return cls(
            manifest,
            duration_ms(spec.monitor.pane),
            duration_ms(spec.labels.horizon),
            [s.event_id for s in scores],
            np.array([s.event_time for s in scores]),
            np.array([s.decision for s in scores]),
            np.array([s.value for s in scores]),
            np.array([s.duplicate for s in scores]),
            np.array([bool(s.degraded) or s.coverage < 1 - 1e-9 or s.score is None for s in scores]),
            np.array([s.score is None for s in scores]),
            np.array([s.member_alerts for s in scores]),
            series,
            verdict,
            reviewed,
            late,
            [(r.source["partition"], r.source["offset"]) for r in lineage],
            [s.event_id for s in scores] == [r.event_id for r in lineage]
            and all([m.name for m in r.members] == names for r in lineage),
            {(s.ensemble, s.version, s.arm) for s in scores},
        )


def _verdicts(
    scores: Sequence[Score], topic: TopicContent, rank: Mapping[str, int], keep_ms: int
) -> tuple[NDArray[np.int64], Floats, int]:
    """The label that holds of each row: the greatest by (source rank, labelled at, offset, partition)."""
    row_of = {s.event_id: row for row, s in reversed(list(enumerate(scores))) if not s.duplicate}
    holds: dict[int, tuple[tuple[int, int, int, int], _Label]] = {}
    late = 0
    for label, offset, partition in zip(topic.decode(_Label), topic.offset, topic.partition, strict=True):
        row = row_of[label.event_id]
        if label.labelled_at - scores[row].event_time > keep_ms:
            late += 1
            continue
        order = (rank.get(label.source, -1), label.labelled_at, offset, partition)
        if row not in holds or order > holds[row][0]:
            holds[row] = order, label
    verdict, reviewed = np.full(len(scores), -1), np.full(len(scores), np.nan)
    for row, (_, label) in holds.items():
        verdict[row] = label.label == "fraud"
        if label.review_probability is not None:
            reviewed[row] = label.review_probability
    return verdict, reviewed, late


def recompute(logs: Logs, length: int) -> dict[Key, tuple[float | None, int | None, int | None]]:
    """Value, numerator and denominator of every figure of every window of `length` milliseconds.

    A value of None stands where the monitor gives bounds.
    """
    starts, window = np.unique(logs.event_time // length * length, return_inverse=True)
    found: dict[Key, tuple[float | None, int | None, int | None]] = {}

    def count(rows: Bools, weight: NDArray[np.int64] | None = None) -> list[int]:
        out = np.zeros(len(starts), dtype=np.int64)
        np.add.at(out, window[rows], 1 if weight is None else weight[rows])
        return out.tolist()

    def put(metric: str, dimension: str, up: Sequence[int], down: Sequence[int], *, rate: bool = True) -> None:
        for start, a, b in zip(starts.tolist(), up, down, strict=True):
            found[start, length, metric, dimension] = (a / b if rate and b else None), a, b

    members = logs.manifest["members"]
    everything = np.ones(len(window), dtype=np.bool_)
    rows, money = count(everything), count(everything, logs.value)
    for start, number in zip(starts.tolist(), rows, strict=True):
        found[start, length, "transactions", ""] = number, number, None
    for metric, flags in (("duplicate", logs.duplicate), ("degraded", logs.degraded), ("fallback", logs.fallback)):
        put(f"{metric}_share", "", count(flags), rows)
    for m, member in enumerate(members):
        put("member_alert_rate", member["name"], count(logs.alone(m)), rows)
    for name, decisions in POSITIVE.items():
        positive = np.isin(logs.decision, decisions)
        put("alert_rate", name, count(positive), rows)
        put("alert_rate_money", name, count(positive, logs.value), money)
        tp, fp = count(positive & (logs.verdict == 1)), count(positive & (logs.verdict == 0))
        fraud, alerts = count(logs.verdict == 1), count(positive)
        put("fpr", name, fp, [n - f for n, f in zip(rows, fraud, strict=True)], rate=False)
        put("precision", name, tp, alerts, rate=False)
        put("false_discovery_rate", name, fp, alerts, rate=False)
        put("recall", name, tp, fraud, rate=False)
        put("false_positives_per_fraud", name, fp, tp, rate=False)
    for name, values in logs.series.items():
        for start, n, distance in zip(starts.tolist(), rows, _distances(logs, name, values, window), strict=True):
            found[start, length, "drift_score", name] = distance, None, n
    return found


def _distances(logs: Logs, name: str, values: Floats, window: NDArray[np.int64]) -> list[float]:
    """Jensen-Shannon distance (nats) of each window's histogram from the manifest's, half a count added to each bin."""
    reference = logs.manifest["reference_profile"][name]
    edges, counts = np.array(reference["edges"], dtype=np.float64), np.array(reference["counts"], dtype=np.float64)
    place = np.where(np.isnan(values), len(edges) + 1, (values[:, None] >= edges).sum(axis=1))
    histogram = np.full((int(window.max()) + 1, len(counts)), 0.5)
    np.add.at(histogram, (window, place), 1.0)
    p = histogram / histogram.sum(axis=1, keepdims=True)
    q = (counts + 0.5) / (counts + 0.5).sum()
    m = (p + q) / 2
    divergence = (p * np.log(p / m) + q * np.log(q / m)).sum(axis=1) / 2
    return [float(x) for x in np.sqrt(np.maximum(divergence, 0.0))]


@dataclass
class Said:
    """What `monitor-metrics` holds: every record, the last revision of each figure, and how often order is broken."""

    every: list[MonitorMetric]
    last: dict[Key, MonitorMetric]
    stale: int

    @classmethod
    def read(cls, bootstrap: str, topics: Topics) -> Said:
        content = read_topic(bootstrap, topics.monitor_metrics)
        every, last, stale = content.decode(MonitorMetric), dict[Key, MonitorMetric](), 0
        for metric in every:
            key = (metric.window_start, metric.window_end - metric.window_start, metric.metric, metric.dimension)
            # Who compacts the topic keeps the last record: it has to be the last revision.
            stale += key in last and metric.revision <= last[key].revision
            if key not in last or metric.revision > last[key].revision:
                last[key] = metric
        return cls(every, last, stale)


def _converge(context: Context, bootstrap: str, topics: Topics, monitor: Scorer, expected: Mapping[Key, Any]) -> Said:
    """What the monitor says once it has fallen silent; a while longer if that differs from `expected`."""
    began = time.monotonic()
    end, since = -1, began
    said: Said | None = None
    while True:
        monitor.require_running()
        now = sum(log_ends(bootstrap, [topics.monitor_metrics]).values())
        if now != end:
            end, since, said = now, time.monotonic(), None
        quiet = time.monotonic() - since
        if quiet > QUIET_S and said is None:
            said = Said.read(bootstrap, topics)
            if not differences(expected, said.last):
                break
        if quiet > GIVE_UP_S and said is not None:
            break
        time.sleep(0.5)
    context.say(f"the monitor fell silent {since - began:.1f} s after it was looked at")
    return said


def differences(expected: Mapping[Key, Any], last: Mapping[Key, MonitorMetric]) -> dict[str, int]:
    """How many figures differ, by metric; one that only one side has differs."""
    found: dict[str, int] = {}
    for key in expected.keys() | last.keys():
        told, wanted = last.get(key), expected.get(key)
        if told is None or wanted is None:
            same = False
        else:
            value, numerator, denominator = wanted
            same = (told.numerator, told.denominator) == (numerator, denominator)
            if value is not None:
                same = same and told.value is not None and abs(told.value - value) <= TOLERANCE
        if not same:
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
    result.check("every second copy is flagged", int(logs.duplicate.sum()) == report.duplicates)


def _check_windows(result: Result, logs: Logs, expected: Mapping[Key, Any], said: Said) -> None:
    wrong = differences(expected, said.last)
    drift = [
        abs((said.last[key].value or 0.0) - row[0])
        for key, row in expected.items()
        if key[2] == "drift_score" and key in said.last
    ]
    result.figures |= {
        "figures_compared": len(expected),
        "figures_different": wrong,
        "drift_scores_compared": len(drift),
        "worst_drift_difference": float(max(drift, default=np.inf)),
        "records_said": len(said.every),
        "most_revisions": max((m.revision for m in said.every), default=0),
    }
    counted = {"transactions", "duplicate_share", "degraded_share", "fallback_share", "alert_rate", "alert_rate_money"}
    result.check("counts and alert rates equal the recomputation", not counted & wrong.keys())
    result.check("member alerts equal the recomputation", "member_alert_rate" not in wrong)
    result.check("drift scores equal the recomputation to 1e-9", "drift_score" not in wrong)
    labelled = {"fpr", "precision", "recall", "false_discovery_rate", "false_positives_per_fraud"}
    result.check("labelled counts equal the recomputation", not labelled & wrong.keys())
    result.check("every figure of every window equals, and none is on one side only", not wrong)
    result.check("the last record of a figure is its last revision", said.stale == 0)
    result.check(
        "the figures are the serving version's", {(m.ensemble, m.version, m.arm) for m in said.every} == logs.who
    )


def _check_bounds(
    result: Result, logs: Logs, expected: Mapping[Key, Any], said: Said, truth: Path, *, few: bool
) -> None:
    """Every mature window of a closed pane, by the simulator's truth over distinct event ids."""
    facts = read_truth(truth)
    fraud = dict(zip(facts["event_id"].tolist(), (facts["fraud_kind"] > 0).tolist(), strict=True))
    first = ~logs.duplicate
    hidden = np.array([fraud[event_id] for event_id in logs.event_id])
    result.check("every transaction of the truth was scored", int(first.sum()) == len(fraud))

    def rate(start: int, length: int, name: str) -> float:
        inside = first & (logs.event_time >= start) & (logs.event_time < start + length)
        genuine = inside & ~hidden
        return float(np.isin(logs.decision[genuine], POSITIVE[name]).mean())

    rates: dict[tuple[int, int, str], float] = {}
    outside, told = 0, 0
    for m in said.every:
        # What was told of a closed window before its labels were in has to hold as well.
        if m.metric != "fpr" or not m.closed or m.low is None or m.high is None:
            continue
        key = (m.window_start, m.window_end - m.window_start, m.dimension)
        at = rates[key] if key in rates else rates.setdefault(key, rate(*key))
        told += 1
        outside += not m.low - 1e-12 <= at <= m.high + 1e-12
    result.figures |= {"bounds_told_of_closed_windows": told, "of_them_outside": outside}
    mature = {
        key: m
        for key, m in said.last.items()
        if key[2] == "fpr" and m.closed and m.label_age is not None and m.label_age >= logs.horizon_ms
    }
    for length, label in ((logs.pane_ms, "panes"), (24 * logs.pane_ms, "days")):
        for name in POSITIVE:
            windows = {key: m for key, m in mature.items() if key[1] == length and key[3] == name}
            relative = _check_set(result, windows, rates, expected, f"{label}_{name}")
            if name == "review+block":
                most = (WIDEST_SMALL if few else WIDEST)[label]
                result.figures[f"width_of_{label}_relative_to_no_labels"] = round(relative, 3)
                result.check(
                    f"bounds of {label} are at most {most:g} of what they are without labels", relative <= most
                )
    panes = {key: m for key, m in mature.items() if key[1] == logs.pane_ms and key[3] == "review+block"}
    result.at_least("panes", len(panes), 36 if few else 48)
    result.at_least("panes_with_false_positives", sum((m.numerator or 0) > 0 for m in panes.values()), 8 if few else 20)


def _check_set(
    result: Result,
    windows: Mapping[Key, MonitorMetric],
    rates: Mapping[tuple[int, int, str], float],
    alerts: Mapping[Key, Any],
    label: str,
) -> float:
    """Note whether the truth is within all bounds; answers their width relative to what is known without labels."""
    low = np.array([m.low for m in windows.values()], dtype=np.float64)
    high = np.array([m.high for m in windows.values()], dtype=np.float64)
    at = np.array([rates[start, length, name] for start, length, _, name in windows])
    held = (low <= at + 1e-12) & (at <= high + 1e-12)
    rows = np.array([m.rows for m in windows.values()])
    positives = np.array([alerts[start, length, "alert_rate", name][1] for start, length, _, name in windows])
    width = float(np.average(high - low, weights=rows))
    blind = float(positives.sum() / rows.sum())
    result.figures[label] = {
        "windows": len(windows),
        "inside": int(held.sum()),
        "low": round(float(np.average(low, weights=rows)), 6),
        "truth": round(float(np.average(at, weights=rows)), 6),
        "high": round(float(np.average(high, weights=rows)), 6),
        "width": round(width, 6),
        # Without any label the rate lies somewhere between 0 and the alert rate.
        "width_without_labels": round(blind, 6),
        "widest": round(float((high - low).max()), 6),
        "low_above_zero": int((low > 0).sum()),
    }
    result.check(f"{label}: the hidden truth lies within the bounds", bool(held.all()))
    return width / blind if blind else float("nan")
