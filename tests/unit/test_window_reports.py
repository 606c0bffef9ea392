"""The reporter of windows on counters in memory: which windows it reports, how often, and when they close."""

from __future__ import annotations

import logging
import math
from collections import Counter
from itertools import pairwise

import msgspec
import pytest

from stream_scorer.monitor.app import Linked, SummaryCounter, Tallier
from stream_scorer.monitor.metrics import MONITOR_METRICS
from stream_scorer.monitor.tally import cell_label, count_outcome, count_summary, new_cells
from stream_scorer.monitor.window_gauges import WindowGauges
from stream_scorer.monitor.window_reports import (
    CLOSE,
    LABELS_LOST_BEFORE,
    LOST_BEFORE,
    MATURE,
    MAX_WINDOWS_PER_TURN,
    NEWEST_PER_TURN,
    PANE,
    REVISIONS_FROM,
    Partitions,
    WaitingPanes,
    WindowReporter,
)
from stream_scorer.monitor.windows import WindowRules, negative_fields
from stream_scorer.observability.metrics import Metrics
from stream_scorer.records import MonitorMetric, Outcome, PaneSummary, ScoreSummary
from stream_scorer.state.counters import Batch
from tests.support.assumptions import FACE_VALUE
from tests.support.counters import MemoryCounterServer, MemoryCounterStore

HOUR = 3_600_000
RULES = WindowRules(HOUR, HOUR, 48 * HOUR, (1,), FACE_VALUE)


class Clock:
    at_s = 0.0

    def now_ms(self) -> int:
        return 0

    def monotonic(self) -> float:
        return self.at_s


class NoProfiles:
    def profile(self, ensemble: str, version: str) -> None:
        return None

    def members(self, ensemble: str, version: str) -> list[str]:
        return []


class Monitor:
    """Two reporters; `count` adds ten transactions of a pane. `ends` are the known ends of partitions."""

    def __init__(self, partitions: int = 1, rules: WindowRules = RULES) -> None:
        self.rules = rules
        self.now_ms = 0
        self.clock = Clock()
        self.server = MemoryCounterServer(lambda: self.now_ms)
        self.sources = {p: f"summaries:{p}" for p in range(partitions)}
        self.ends: dict[int, int] = {}
        self.store = self.open()
        self.metrics = Metrics(MONITOR_METRICS)
        self.reporter, self.other = self.make("one"), self.make("other")
        self.at = [0] * partitions

    def open(self) -> MemoryCounterStore:
        store = MemoryCounterStore(self.server)
        store.open("e", dict.fromkeys(self.sources.values(), 0))
        return store

    def make(self, name: str) -> WindowReporter:
        return WindowReporter(
            self.open(),  # type: ignore[arg-type]
            self.rules,
            NoProfiles(),  # type: ignore[arg-type]
            self.clock,
            self.metrics,
            name=name,
            partitions=Partitions(self.sources, lambda _: self.ends, idle_s=60.0),
            drift=None,
        )

    def count(self, hour: int, reached: int, partition: int = 0, reviews: int = 1, version: str = "1") -> None:
        """Ten transactions of `hour`; the partition's event time has come to hour `reached`."""
        pane = PaneSummary(
            pane=hour * HOUR, rows=10, duplicates=0, degraded=0, fallback=0,
            decisions={"approve": 10 - reviews, "review": reviews, "block": 0},
            money={"approve": 90, "review": 10, "block": 0},
            features={}, members={}, member_alerts={}, score=[0, 10], left_out={},
        )  # fmt: skip
        cells = new_cells()
        count_summary(cells, ScoreSummary("cards", version, "champion", HOUR, "transactions", 0, 0, 10, 0, [pane]))
        at, maxima = self.at[partition], {f"{PANE}{partition}": reached * HOUR}
        batch = Batch(self.sources[partition], at, at + 1, cells, maxima, (CLOSE, MATURE))
        assert self.store.apply(batch).status == "applied"
        self.at[partition] += 1

    def turn(self) -> list[tuple[int, float | None, int, bool]]:
        """Hour, transactions, revision and whether closed, of each report, which is then settled."""
        reports = self.reporter.turn()
        self.reporter.settle(reports)
        return [_figures(r) for r in reports.records if r.metric == "transactions"]


def _figures(record: MonitorMetric) -> tuple[int, float | None, int, bool]:
    return record.window_start // HOUR, record.value, record.revision, record.closed


def test_a_window_is_reported_once_for_each_change() -> None:
    monitor = Monitor()
    monitor.count(5, reached=5)
    assert monitor.turn() == [(5, 10, 1, False)]
    assert monitor.turn() == []
    monitor.count(5, reached=5)
    assert monitor.turn() == [(5, 20, 2, False)]


def test_what_was_not_acknowledged_is_reported_again() -> None:
    monitor = Monitor()
    monitor.count(5, reached=5)
    assert monitor.reporter.turn().records
    assert monitor.turn() == [(5, 10, 2, False)]


def test_a_change_while_a_report_is_sent_is_reported_next() -> None:
    monitor = Monitor()
    monitor.count(5, reached=5)
    reports = monitor.reporter.turn()
    monitor.count(5, reached=5)
    monitor.reporter.settle(reports)
    assert monitor.turn() == [(5, 20, 2, False)]


def test_a_window_closes_when_event_time_is_past_its_lateness() -> None:
    monitor = Monitor()
    monitor.count(5, reached=5)
    assert monitor.turn() == [(5, 10, 1, False)]
    monitor.count(7, reached=7)
    assert monitor.turn() == [(5, 10, 2, True), (7, 10, 1, False)]
    assert monitor.turn() == []


def test_days_close_and_become_final_though_their_last_hours_are_empty() -> None:
    """Traffic from 6 to 21 o'clock: after each hour, the last record of each window has the state of that hour."""
    monitor = Monitor(rules=WindowRules(HOUR, HOUR, 36 * HOUR, (1, 24), FACE_VALUE))
    last: dict[tuple[int, int], tuple[bool, bool | None]] = {}
    for hour in (24 * day + hour for day in range(4) for hour in range(6, 21)):
        monitor.count(hour, reached=hour)
        last |= dict.fromkeys(((hour, hour + 1), (hour - hour % 24, hour - hour % 24 + 24)), (False, False))
        reports = monitor.reporter.turn()
        monitor.reporter.settle(reports)
        for record in reports.records:
            if (record.metric, record.dimension) == ("fpr", "block"):
                last[record.window_start // HOUR, record.window_end // HOUR] = record.closed, record.final
        assert last == {(start, end): (hour >= end + 1, hour >= end + 36) for start, end in last}
        monitor.reporter = monitor.make("one")  # a restart
    assert last[24, 48] == (True, True) and last[48, 72] == (True, False)


def test_one_judge_reports_until_its_lead_ends() -> None:
    monitor = Monitor()
    monitor.count(5, reached=5)
    assert monitor.reporter.turn().records
    assert monitor.other.turn().records == []
    monitor.now_ms += 5_001
    assert monitor.other.turn().records
    assert monitor.turn() == []


def test_labels_of_old_windows_delay_no_window_for_good() -> None:
    waiting = WaitingPanes()
    hours, turns = 300, 60  # every pane changes in every turn, and only 50 are reported
    reported: dict[int, list[int]] = {hour: [] for hour in range(hours)}
    for turn in range(turns):
        chosen = waiting.choose(range(hours), [None, 290, 100])
        assert chosen == sorted(set(chosen)) and len(chosen) == MAX_WINDOWS_PER_TURN
        assert {*range(292, 300), *range(283, 291), *range(93, 101)} <= set(chosen)
        for hour in chosen:
            reported[hour].append(turn)
    longest = math.ceil(hours / (MAX_WINDOWS_PER_TURN - 3 * NEWEST_PER_TURN))
    for at in reported.values():
        assert max(after - before for before, after in pairwise([-1, *at, turns])) <= longest


def test_a_turn_reports_the_newest_windows_of_a_backlog_and_how_many_wait() -> None:
    def waits() -> float | None:
        return monitor.metrics.registry.get_sample_value("stream_scorer_monitor_waiting_windows")

    monitor = Monitor()
    for hour in range(70):
        monitor.count(hour, reached=hour)
    # Hour 21 is the newest with mature labels, hour 67 the newest that is closed.
    hours = {hour for hour, *_ in monitor.turn()}
    assert len(hours) == 50 and {0, 20, 67, 69} <= hours
    assert waits() == 20
    assert len(monitor.turn()) == 20
    assert waits() == 0


def test_a_silent_partition_delays_windows_only_while_it_may_have_a_backlog(caplog: pytest.LogCaptureFixture) -> None:
    monitor = Monitor(partitions=2)
    monitor.count(5, reached=5, partition=1)
    monitor.count(5, reached=9)
    assert monitor.turn() == [(5, 20, 1, False)]
    monitor.clock.at_s = 61
    monitor.count(5, reached=9)
    assert monitor.turn() == [(5, 30, 2, False)]
    assert "ends of partitions [1] of the summaries are not known" in caplog.text
    monitor.ends = {1: 2}
    monitor.count(5, reached=9)
    assert monitor.turn() == [(5, 40, 3, False)]
    monitor.ends = {1: 1}
    assert monitor.turn() == [(5, 40, 4, True)]


# A reviewed transaction of hour 5 that was genuine first.
CHANGE = Outcome(
    "e", 5 * HOUR, 5 * HOUR, "1", "champion", "p", "approve", 0, 10, "fraud", "genuine", "random_review", 0.01,
    6 * HOUR, HOUR, "cards", "random_review", 0.01,
)  # fmt: skip


def test_labels_whose_first_record_retention_deleted_do_not_end_the_reporter(caplog: pytest.LogCaptureFixture) -> None:
    monitor = Monitor()
    monitor.count(5, reached=9)
    cells = new_cells()
    # The record with the label "genuine" is gone: its count becomes -1 for each of them.
    for _ in range(3):
        count_outcome(cells, CHANGE, frozenset(), pane_ms=HOUR)
    monitor.store.open("e", {"outcomes:0": 0})
    monitor.store.apply(Batch("outcomes:0", 0, 1, cells, {}))
    with caplog.at_level(logging.ERROR):
        reports = monitor.reporter.turn()
        monitor.reporter.turn()
    by_metric = {(r.metric, r.dimension): r for r in reports.records}
    assert by_metric["transactions", ""].value == 10
    assert by_metric["alert_rate", "block"].value == 0.0
    refused = [r for r in reports.records if r.metric in ("fpr", "precision", "recall")]
    assert len(refused) == 6
    for record in refused:
        assert (record.value, record.low, record.high) == (None, None, None)
        assert record.statistics == {"incomplete_labels": 1}
    assert caplog.text.count("retention of the topic `outcomes` is shorter than the age of labels") == 1


def test_a_pane_with_negative_labels_is_not_hidden_by_another(caplog: pytest.LogCaptureFixture) -> None:
    assert negative_fields([{"o:approve:genuine": -1}, {"o:approve:genuine": 5}]) == ([], ["o:approve:genuine"])
    assert negative_fields([{"v:approve": -10, "ov:approve:fraud": -3, "d:approve": 1}]) == ([], [])


def test_a_window_with_negative_transactions_has_no_figures(caplog: pytest.LogCaptureFixture) -> None:
    monitor = Monitor()
    for figures in ("all", "labels", "lost"):
        name = "stream_scorer_monitor_refused_windows_total"
        assert monitor.metrics.registry.get_sample_value(name, {"figures": figures}) == 0
    monitor.count(5, reached=5)
    monitor.count(6, reached=6)
    cells = {(5 * HOUR, cell_label("cards", "1", "champion")): {"d:approve": -20}}
    monitor.store.apply(Batch("summaries:0", monitor.at[0], monitor.at[0] + 1, cells, {}))
    assert monitor.turn() == [(6, 10, 1, False)]
    assert "d:approve" in caplog.text
    assert monitor.turn() == []


def test_windows_whose_summaries_retention_deleted_are_not_reported() -> None:
    monitor = Monitor()
    monitor.store.raise_maximum(LOST_BEFORE, 5 * HOUR)
    monitor.count(5, reached=5)
    monitor.count(9, reached=9)
    assert monitor.turn() == [(9, 10, 1, False)]
    assert monitor.turn() == []


def test_windows_whose_labels_retention_deleted_have_no_figures_of_labels() -> None:
    monitor = Monitor()
    monitor.store.raise_maximum(LABELS_LOST_BEFORE, 5 * HOUR)
    monitor.count(5, reached=5)
    monitor.count(9, reached=9)
    found = [r for r in monitor.reporter.turn().records if r.metric == "fpr"]
    assert all(r.high is None for r in found)
    assert {(r.window_start // HOUR, *r.statistics) for r in found} == {(5, "incomplete_labels"), (9, "no_labels")}


def test_revisions_continue_above_those_published_before_the_counters_were_lost() -> None:
    monitor = Monitor()
    monitor.store.raise_maximum(REVISIONS_FROM, 1_700_000_000)
    monitor.count(5, reached=5)
    monitor.count(5, reached=5)
    assert monitor.turn() == [(5, 20, 1_700_000_001, False)]


def test_revisions_continue_above_those_published_before_redis_came_back_with_older_counters() -> None:
    monitor = Monitor()
    for started_ms in (1_000, 2_000):
        monitor.store.raise_maximum(REVISIONS_FROM, started_ms)
        for _ in range(3):
            monitor.count(5, reached=5)
            monitor.turn()
        before = monitor.server.epochs["e"].revisions
        monitor.server.epochs["e"].revisions = Counter()
    assert before == {f"{5 * HOUR}+1": 2_003}
    monitor.store.raise_maximum(REVISIONS_FROM, 3_000)
    monitor.count(5, reached=5)
    assert monitor.turn() == [(5, 70, 3_001, False)]


def _labelled(monitor: Monitor, hour: int) -> None:
    """An analyst labels the one alert of `hour` genuine, 6 hours later."""
    cells = new_cells()
    outcome = Outcome(
        "e", hour * HOUR, hour * HOUR, "1", "champion", "p", "review", 0, 10, "genuine", None, "analyst", 1.0,
        (hour + 6) * HOUR, 6 * HOUR, "cards", card_group=3,
    )  # fmt: skip
    count_outcome(cells, outcome, frozenset({"analyst"}), pane_ms=HOUR, horizon_ms=RULES.horizon_ms)
    start = monitor.store.open("e", {"outcomes:0": 0}).applied["outcomes:0"]
    assert monitor.store.apply(Batch("outcomes:0", start, start + 1, cells, {})).status == "applied"


def test_a_young_rate_is_not_final_and_states_its_labels() -> None:
    monitor = Monitor()
    monitor.count(5, reached=9)
    _labelled(monitor, 5)
    by_metric = {(r.metric, r.dimension): r for r in monitor.reporter.turn().records}
    young = by_metric["fpr", "review+block"]
    assert (young.final, young.maturity, young.label_age) == (False, None, 3 * HOUR)
    assert young.label_sources == {"analyst": 1}
    assert by_metric["alert_rate", "block"].final is None
    assert not any(metric == "label_maturity" for metric, _ in by_metric)


def test_the_gauges_show_no_rate_of_a_mature_window_without_labels() -> None:
    monitor = Monitor()

    def gauge() -> float | None:
        labels = {"ensemble": "cards", "version": "1", "arm": "champion", "positive": "review+block"}
        return monitor.reporter._metrics.registry.get_sample_value("stream_scorer_false_positive_rate", labels)

    monitor.count(5, reached=60)
    _labelled(monitor, 5)
    reports = monitor.reporter.turn()
    monitor.reporter.settle(reports)
    records = {(r.metric, r.dimension): r for r in reports.records}
    mature = records["fpr", "review+block"]
    assert (mature.final, mature.maturity, mature.numerator, mature.value) == (True, 1.0, 1, 0.1)
    assert records["label_maturity", "1/8"].value == 0.0
    assert records["label_maturity", "1/4"].value == 1.0
    assert gauge() == 0.1
    monitor.count(6, reached=61)
    assert {r.statistics["no_labels"] for r in monitor.reporter.turn().records if r.metric == "fpr"} == {1}
    assert math.isnan(gauge() or 0.0)


def test_only_the_leader_shows_windows_and_no_older_one_after_a_restart() -> None:
    monitor = Monitor()
    reporters = {name: monitor.make(name) for name in ("one", "two")}
    for reporter in reporters.values():
        reporter._metrics = Metrics(MONITOR_METRICS)
        reporter._gauges = WindowGauges(reporter._metrics)

    def turn(name: str) -> tuple[list[float], list[float]]:
        reports = reporters[name].turn()
        reporters[name].settle(reports)
        return shown(name)

    def shown(name: str) -> tuple[list[float], list[float]]:
        """The share of alerts, and the age of mature labels in hours."""
        samples = [s for family in reporters[name]._metrics.registry.collect() for s in family.samples]
        rates = [s for s in samples if s.name == "stream_scorer_alert_rate" and s.labels["positive"] == "review+block"]
        ages = [s.value / 3_600 for s in samples if s.name == "stream_scorer_label_age_seconds"]
        return [s.value for s in rates], ages

    monitor.count(5, reached=60, reviews=2)
    monitor.count(60, reached=60)
    assert (turn("one"), shown("two")) == (([0.2], [54]), ([], []))
    monitor.now_ms += 10_000
    # The second one shows the newest windows at once, although none has changed.
    assert (turn("two"), turn("one")) == (([0.2], [54]), ([], []))
    monitor.count(7, reached=62, reviews=1)
    assert turn("two") == ([0.1], [54])
    reporters["two"].end()
    assert shown("two") == ([], [])
    # After the restart, a change of an older window does not show it, even if its version no longer serves.
    monitor.count(5, reached=62, reviews=9)
    monitor.count(5, reached=62, version="0")
    assert turn("two") == ([0.1], [54])


def test_after_a_change_of_panes_no_window_is_reported_that_lacks_transactions() -> None:
    """Six panes of ten minutes in hour 100; then panes of an hour, in all scorers from hour 103 on."""
    source, minutes, log = "summaries:0", HOUR // 6, list[bytes]()

    def add(hour: int, start: int, pane_ms: int) -> None:
        pane = PaneSummary(
            pane=hour * HOUR + start, rows=10, duplicates=0, degraded=0, fallback=0,
            decisions={"approve": 9, "review": 1, "block": 0}, money={"approve": 90, "review": 10, "block": 0},
            features={}, members={}, member_alerts={}, score=[0, 10], left_out={},
        )  # fmt: skip
        found = ScoreSummary("cards", "1", "champion", pane_ms, "transactions", 0, 0, 10, 0, [pane])
        log.append(msgspec.json.encode(found))

    def run(monitor: Monitor, pane_ms: int) -> list[tuple[int, float | None, int, bool]]:
        """Start a monitor with panes of this length: it counts all that is not counted yet, and reports once."""
        monitor.rules = WindowRules(pane_ms, HOUR, 48 * HOUR, (1,), FACE_VALUE)
        store, now = monitor.open(), str(monitor.clock.at_s)
        store.bind({"summaries": "id", "monitor.pane": str(pane_ms)})
        at = store.open(f"{pane_ms} {now}", {source: 0}).applied[source]
        monitor.store, monitor.reporter = store, monitor.make("one")
        counter = SummaryCounter("summaries", monitor.metrics, pane_ms=pane_ms)
        tallier = Tallier(store, monitor.metrics, "summaries", counter, (CLOSE, MATURE))  # type: ignore[arg-type]
        tallier.seek({0: at}, {})
        tallier.apply(0, [Linked(at + i, at + i, value) for i, value in enumerate(log[at:])])
        return monitor.turn()

    monitor = Monitor()
    for pane in range(6):
        add(100, pane * minutes, minutes)
    assert len(run(monitor, minutes)) == 6
    # The monitor has the new spec before one of two scorers: the window lacks the transactions of that one.
    add(102, 0, HOUR)
    add(102, 0, minutes)
    assert run(monitor, HOUR) == []
    add(103, 0, HOUR)
    add(105, 0, HOUR)
    assert run(monitor, HOUR) == [(103, 10, 1, True), (105, 10, 1, False)]
    add(106, 0, HOUR)
    add(108, 0, HOUR)
    # The gauges show the newest closed window again.
    again = (103, 10, 2, True)
    assert run(monitor, HOUR) == [again, (105, 10, 2, True), (106, 10, 1, True), (108, 10, 1, False)]
