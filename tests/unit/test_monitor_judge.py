"""The judge on counters in memory: which windows it reports, how often, and when they close."""

from __future__ import annotations

from stream_scorer.monitor.judge import CLOSE, MATURE, PANE, Judge
from stream_scorer.monitor.metrics import MONITOR_METRICS
from stream_scorer.monitor.rates import FACE_VALUE
from stream_scorer.monitor.tally import count_summary, new_cells
from stream_scorer.monitor.windows import WindowRules
from stream_scorer.observability.metrics import Metrics
from stream_scorer.records import MonitorMetric, PaneSummary, ScoreSummary
from stream_scorer.state.counters import Batch
from tests.support.counters import MemoryCounterServer, MemoryCounterStore

HOUR = 3_600_000
RULES = WindowRules(HOUR, HOUR, 48 * HOUR, (1,), FACE_VALUE)


class Clock:
    def now_ms(self) -> int:
        return 0

    def monotonic(self) -> float:
        return 0.0


class NoProfiles:
    def profile(self, ensemble: str, version: str) -> None:
        return None


class Monitor:
    """Two judges of one partition; `count` adds ten transactions of a pane."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.server = MemoryCounterServer(lambda: self.now_ms)
        self.store = self.open()
        self.judge, self.other = self.make("one"), self.make("other")
        self.at = 0

    def open(self) -> MemoryCounterStore:
        store = MemoryCounterStore(self.server)
        store.open("e", {"summaries:0": 0})
        return store

    def make(self, name: str) -> Judge:
        return Judge(
            self.open(),  # type: ignore[arg-type]
            RULES,
            NoProfiles(),  # type: ignore[arg-type]
            Clock(),
            Metrics(MONITOR_METRICS),
            name=name,
            sources={0: "summaries:0"},
            idle_s=60.0,
        )

    def count(self, hour: int, reached: int) -> None:
        """Ten transactions of `hour`; the partition's event time has come to hour `reached`."""
        pane = PaneSummary(
            pane=hour * HOUR, rows=10, duplicates=0, degraded=0, fallback=0,
            decisions={"approve": 9, "review": 1, "block": 0}, money={"approve": 90, "review": 10, "block": 0},
            features={}, members={}, member_alerts={}, score=[0, 10], left_out={},
        )  # fmt: skip
        cells = new_cells()
        count_summary(cells, ScoreSummary("cards", "1", "champion", HOUR, "transactions", 0, 0, 10, 0, [pane]))
        batch = Batch("summaries:0", self.at, self.at + 1, cells, {f"{PANE}0": reached * HOUR}, (CLOSE, MATURE))
        assert self.store.apply(batch).status == "applied"
        self.at += 1

    def turn(self) -> list[tuple[int, float | None, int, bool]]:
        """Hour, transactions, revision and whether closed, of what the judge reports; it is settled then."""
        reports = self.judge.turn()
        self.judge.settle(reports)
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
    assert monitor.judge.turn().records
    assert monitor.turn() == [(5, 10, 2, False)]


def test_a_change_while_a_report_is_sent_is_reported_next() -> None:
    monitor = Monitor()
    monitor.count(5, reached=5)
    reports = monitor.judge.turn()
    monitor.count(5, reached=5)
    monitor.judge.settle(reports)
    assert monitor.turn() == [(5, 20, 2, False)]


def test_a_window_closes_when_event_time_is_past_its_lateness() -> None:
    monitor = Monitor()
    monitor.count(5, reached=5)
    assert monitor.turn() == [(5, 10, 1, False)]
    monitor.count(7, reached=7)
    assert monitor.turn() == [(5, 10, 2, True), (7, 10, 1, False)]
    assert monitor.turn() == []


def test_one_judge_reports_until_its_lead_ends() -> None:
    monitor = Monitor()
    monitor.count(5, reached=5)
    assert monitor.judge.turn().records
    assert monitor.other.turn().records == []
    monitor.now_ms += 5_001
    assert monitor.other.turn().records
    assert monitor.turn() == []
