"""Windows: when they close, and the figures of counts made by hand."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from faust.types import TP

from stream_scorer.errors import StateGap
from stream_scorer.monitor.app import (
    STUCK_S,
    AppSettings,
    Linked,
    MonitorApp,
    OutcomeCounter,
    Stuck,
    SummaryCounter,
    Tallier,
    require_kept,
    runs,
)
from stream_scorer.monitor.metrics import MONITOR_METRICS
from stream_scorer.monitor.service import ttl_s
from stream_scorer.monitor.tally import cell_label, count_outcome, count_summary, new_cells, parse_label
from stream_scorer.monitor.transport import Links
from stream_scorer.monitor.window_reports import (
    LABELS_LOST_BEFORE,
    LOST_BEFORE,
    OTHER_PANES_TO,
    REVISIONS_FROM,
    WindowReporter,
)
from stream_scorer.monitor.windows import Figure, WindowRules, drifts, figures, watermark
from stream_scorer.observability.metrics import Metrics
from stream_scorer.records import Outcome, PaneSummary, ScoreSummary
from stream_scorer.state.counters import Batch, Head
from tests.support.assumptions import FACE_VALUE
from tests.support.counters import MemoryCounterServer, MemoryCounterStore

HOUR = 3_600_000
RULES = WindowRules(HOUR, HOUR, 48 * HOUR, (1, 24), FACE_VALUE)
PANE = PaneSummary(
    pane=5 * HOUR, rows=10, duplicates=1, degraded=2, fallback=3,
    decisions={"approve": 6, "review": 3, "block": 1}, money={"approve": 600, "review": 300, "block": 100},
    features={"amount:log": [0, 4, 2, 6]}, members={"gbm": [1, 10]}, member_alerts={"gbm": 2},
    score=[0, 7, 1, 3], left_out={"gbm": [1, 2, 0, 7]},
)  # fmt: skip

SOURCES = frozenset({"analyst", "chargeback", "random_review"})


def summary(*panes: PaneSummary) -> ScoreSummary:
    return ScoreSummary("cards", "1", "champion", HOUR, "transactions", 0, 0, 10, 0, list(panes))


def outcome(label: str, previous: str | None = None, decision: str = "review", **more: object) -> Outcome:
    fields: dict[str, object] = {
        "event_id": "e", "event_time": 5 * HOUR, "pane": 5 * HOUR, "version": "1", "arm": "champion",
        "policy_version": "p", "decision": decision, "member_alerts": 0, "value": 50, "label": label,
        "previous_label": previous, "source": "analyst", "review_probability": None, "labelled_at": 6 * HOUR,
        "age": HOUR, "ensemble": "cards", "previous_source": "analyst" if previous else None,
    }  # fmt: skip
    return Outcome(**(fields | more))  # type: ignore[arg-type]


def one(found: list[Figure], metric: str, dimension: str = "") -> Figure:
    (figure,) = [f for f in found if (f.metric, f.dimension) == (metric, dimension)]
    return figure


def test_a_window_closes_when_the_slowest_partition_is_past_the_lateness() -> None:
    assert not RULES.closed(6 * HOUR, None)
    assert not RULES.closed(6 * HOUR, 7 * HOUR - 1)
    assert RULES.closed(6 * HOUR, 7 * HOUR)


def test_watermark() -> None:
    assert watermark({"0": 9, "1": 7}) == 7
    assert watermark({"0": 9, "1": 7}, idle=["1"]) == 9
    assert watermark({"0": 9, "1": None}) is None  # it has shown nothing yet, and is not idle
    assert watermark({"0": 9, "1": None}, idle=["1"]) == 9
    assert watermark({"0": 9, "1": 7}, idle=["0", "1"]) is None
    assert watermark({}) is None


def test_windows_are_aligned_and_tumble() -> None:
    assert RULES.start_of(29 * HOUR, 24) == 24 * HOUR
    assert list(RULES.panes_of(24 * HOUR, 2)) == [24 * HOUR, 25 * HOUR]


def test_figures_of_a_pane() -> None:
    cells = new_cells()
    count_summary(cells, summary(PANE))
    count_outcome(cells, outcome("genuine", source="analyst", review_probability=0.5), SOURCES, pane_ms=HOUR)
    count_outcome(
        cells,
        outcome("fraud", decision="approve", source="random_review", review_propensity=0.001),
        SOURCES,
        pane_ms=HOUR,
    )
    ((cell, counts),) = cells.items()
    assert parse_label(cell[1]) == ("cards", "1", "champion")
    profile = {"amount:log": ([1.0], [4, 0, 6]), "member:gbm": ([1.0], [5, 5, 0]), "score": ([1.0], [7, 3, 0])}
    found = figures(counts, profile, RULES)
    assert one(found, "transactions").value == 10
    assert one(found, "alert_rate", "review+block")[2:7] == (0.4, None, None, 4, 10)
    assert one(found, "alert_rate", "block").value == 0.1
    assert one(found, "alert_rate_money", "review+block").value == 0.4
    assert one(found, "duplicate_share").value == 0.1
    assert one(found, "member_alert_rate", "gbm").value == 0.2
    assert one(found, "drift_score", "amount:log").value == 0.0
    assert one(found, "drift_score", "member:gbm").value > 0.3  # type: ignore[operator]
    assert one(found, "drift_score", "score").statistics["sufficient"] == 0
    fpr = one(found, "fpr", "review+block")
    assert (fpr.numerator, fpr.denominator, fpr.low) == (1, 9, 1 / 9)
    # Two of the four positives are estimated to be genuine, so two of the ten rows are fraud beside the labelled one.
    assert fpr.value == pytest.approx(1 / 0.5 / 7)
    assert fpr.statistics["reviewed"] == 1
    assert fpr.statistics["reviewed_fraud"] == 1
    # Under {block} the review is a negative: the two silent ones held for review may be fraud, and so may the five
    # silent approvals, since the one that was reviewed was.
    assert one(found, "fpr", "block").statistics["unreported_at_most"] == 2 + 5
    assert counts["lo:gbm:1"] == 2


def test_rates_by_member_follow_the_order_of_the_manifest_and_not_of_the_profile() -> None:
    cells = new_cells()
    count_summary(cells, summary(msgspec.structs.replace(PANE, member_alerts={"xgb": 4, "gbm": 2})))
    # Bit 0 is that of the first member.
    count_outcome(cells, outcome("genuine", member_alerts=0b01), SOURCES, pane_ms=HOUR)
    (counts,) = cells.values()
    profile = {"member:gbm": ([1.0], [5, 5, 0]), "member:xgb": ([1.0], [5, 5, 0])}
    found = figures(counts, profile, RULES, ["xgb", "gbm"])
    assert one(found, "member_fpr", "xgb").numerator == 1
    assert one(found, "member_fpr", "gbm").numerator == 0


def test_a_changed_label_leaves_nothing_behind() -> None:
    cells = new_cells()
    first = outcome("genuine", review_probability=0.25)
    count_outcome(cells, first, SOURCES, pane_ms=HOUR)
    changed = outcome("fraud", "genuine", source="chargeback", previous_review_probability=0.25, labelled_at=9 * HOUR)
    count_outcome(cells, changed, SOURCES, pane_ms=HOUR)
    ((_, counts),) = cells.items()
    assert {name: n for name, n in counts.items() if n} == {
        "o:review:fraud": 1, "ov:review:fraud": 50, "os:review:fraud:chargeback": 1, "la:analyst:1": 1,
    }  # fmt: skip


def test_labels_add_a_bounded_number_of_fields() -> None:
    cells = new_cells()
    for at in range(20_000):
        probability = (at + 1) / 20_001 if at % 2 else 1e-9 * (at + 1)
        count_outcome(
            cells, outcome("genuine", source=f"agent-{at}", review_probability=probability), SOURCES, pane_ms=HOUR
        )
    ((_, counts),) = cells.items()
    assert counts["os:review:genuine:other"] == 20_000
    assert {name for name in counts if name.startswith("os:")} == {"os:review:genuine:other"}
    probabilities = [float(name.rpartition(":")[2]) for name in counts if name.startswith("op:")]
    assert min(probabilities) == 1e-6 and len(probabilities) < 4_000
    assert sum(n for name, n in counts.items() if name.startswith("op:")) == 20_000


def test_labels_of_cells_are_unambiguous() -> None:
    assert parse_label(cell_label('a","b', "|", "x:y")) == ('a","b', "|", "x:y")


def test_bins_beyond_the_profile_are_refused() -> None:
    with pytest.raises(ValueError, match="sc:1 is outside"):
        drifts({"sc:0": 3, "sc:1": 1}, {"score": ([], [5])})


def test_a_series_named_like_the_start_of_another_is_not_mixed_in() -> None:
    counts = {"f:amount:0": 1, "f:amount:log:1": 9}
    assert drifts(counts, {"amount": ([1.0], [1, 0, 0])})["amount"].rows == 1


def test_runs_break_where_a_record_does_not_follow() -> None:
    def at(previous: int, offset: int) -> Linked:
        return Linked(previous, offset, b"")

    found = runs([at(0, 0), at(1, 4), at(5, 5), at(8, 8), at(0, 2)])
    assert [[r.offset for r in run] for run in found] == [[0, 4, 5], [8], [2]]


def fetch(links: Links, before: int, after: int, *offsets: int) -> list[int]:
    """The predecessors of the records that one fetch returns."""
    place = TP("outcomes", 0)
    found = [SimpleNamespace(offset=offset) for offset in offsets]
    links.add({place: before}, {place: after}, {place: found} if found else {})
    return [record.previous for record in found]


def test_records_follow_each_other_across_markers_and_not_across_a_seek() -> None:
    links = Links()
    assert fetch(links, 3, 6, 3, 4) == [3, 4]  # a marker at 5
    assert fetch(links, 6, 9) == []  # an aborted transaction
    assert fetch(links, 9, 11, 10) == [5]
    assert fetch(links, 5, 11, 10) == [5]  # after a seek
    assert fetch(links, 20, 22, 21) == [20]


def test_a_record_that_was_lost_after_its_fetch_is_not_skipped() -> None:
    store, metrics = MemoryCounterStore(MemoryCounterServer()), Metrics(MONITOR_METRICS)
    store.open("e", {"outcomes:0": 0})
    count = OutcomeCounter("outcomes", metrics, frozenset(), pane_ms=HOUR)
    tallier = Tallier(store, metrics, "outcomes", count, ())  # type: ignore[arg-type]
    tallier.seek({0: 0}, {})
    value = msgspec.json.encode(outcome("fraud"))
    tallier.apply(0, [Linked(0, 0, value)])
    tallier.apply(0, [Linked(2, 2, value)])  # the one at 1 is lost
    assert store.head().applied == {"outcomes:0": 1} and tallier.counted(0) == 1
    stuck, place = Stuck(), TP("outcomes", 0)
    assert stuck.check({place: 3}, {place: 1}, 0.0) is None
    assert stuck.check({place: 3}, {place: 1}, STUCK_S) is None
    error = stuck.check({place: 3}, {place: 1}, STUCK_S + 1)
    assert error is not None and "up to 3 were fetched, and those after 1 are not" in str(error)


def test_a_partition_with_progress_is_not_stuck() -> None:
    stuck, place = Stuck(), TP("outcomes", 0)
    checks = [(3, 1, 0.0), (9, 2, 2 * STUCK_S), (9, 9, 4 * STUCK_S), (12, 9, 6 * STUCK_S), (12, 12, 7 * STUCK_S)]
    assert all(stuck.check({place: fetched}, {place: counted}, now) is None for fetched, counted, now in checks)
    assert stuck.check({}, {place: 12}, 9 * STUCK_S) is None


def test_counts_that_redis_lost_are_noticed_without_another_record() -> None:
    require_kept("outcomes:0", 7, 7)
    with pytest.raises(StateGap, match="outcomes:0 is 4, below 7"):
        require_kept("outcomes:0", 7, 4)


@pytest.mark.parametrize(
    "change",
    [{"rows": -1}, {"decisions": {"approve": -6}}, {"score": [0, -7]}, {"score": [0]}, {"left_out": {"gbm": [1]}}],
)
def test_a_summary_with_impossible_counts_is_ignored_and_counted(change: dict[str, object]) -> None:
    metrics, cells, maxima = Metrics(MONITOR_METRICS), new_cells(), dict[str, int]()
    count = SummaryCounter("score-summaries", metrics, pane_ms=HOUR)
    OutcomeCounter("outcomes", metrics, frozenset(), pane_ms=HOUR)
    unreadable = "stream_scorer_monitor_unreadable_total"
    for topic in ("score-summaries", "outcomes"):
        assert metrics.registry.get_sample_value(unreadable, {"topic": topic}) == 0
    bad = summary(msgspec.structs.replace(PANE, **change))
    count(cells, maxima, [msgspec.json.encode(bad), msgspec.json.encode(summary(PANE))])
    assert [counts["n"] for counts in cells.values()] == [10]
    assert metrics.registry.get_sample_value(unreadable, {"topic": "score-summaries"}) == 1


def test_summaries_with_panes_of_another_length_are_not_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Windows up to the end of their newest pane lack them. Event time goes on with them."""
    metrics, cells, maxima = Metrics(MONITOR_METRICS), new_cells(), dict[str, int]()
    count = SummaryCounter("score-summaries", metrics, pane_ms=HOUR)
    minute = [msgspec.structs.replace(PANE, pane=pane * HOUR) for pane in (9, 7)]
    others = [msgspec.structs.replace(summary(pane), pane_ms=HOUR // 60) for pane in minute]
    values = [msgspec.json.encode(s) for s in (summary(PANE), *others, msgspec.structs.replace(summary(), pane_ms=1))]
    count(cells, maxima, values)
    assert {pane: counts["n"] for (pane, _), counts in cells.items()} == {PANE.pane: 10}
    assert maxima == {"pane:0": 9 * HOUR, OTHER_PANES_TO: 9 * HOUR + HOUR // 60 - 1}
    assert metrics.registry.get_sample_value("stream_scorer_monitor_other_panes_total") == 2
    assert caplog.text.count("panes of 60000 ms") == 1


def test_outcomes_count_in_the_panes_of_the_spec_whatever_panes_the_joiner_had() -> None:
    count = OutcomeCounter("outcomes", Metrics(MONITOR_METRICS), frozenset(), pane_ms=HOUR)
    cells = new_cells()
    found = outcome("fraud", event_time=5 * HOUR + HOUR // 2, pane=5 * HOUR + HOUR // 2)
    count(cells, {}, [msgspec.json.encode(found)])
    assert [pane for pane, _ in cells] == [5 * HOUR]


@pytest.mark.parametrize(("cut", "lost"), [({}, None), ({0: 7}, PANE.pane), ({0: 6}, None), ({1: 7}, None)])
def test_the_first_record_after_deleted_ones_marks_what_is_lost(cut: dict[int, int], lost: int | None) -> None:
    metrics, store = Metrics(MONITOR_METRICS), MemoryCounterStore(MemoryCounterServer())
    store.open("e", {"score-summaries:0": 7})
    count = SummaryCounter("score-summaries", metrics, pane_ms=HOUR)
    tallier = Tallier(store, metrics, "score-summaries", count, ())  # type: ignore[arg-type]
    tallier.seek({0: 7}, cut)
    later = msgspec.structs.replace(PANE, pane=PANE.pane + 9 * HOUR)
    values = [msgspec.json.encode(summary(pane)) for pane in (PANE, later)]
    tallier.apply(0, [Linked(7, 7, values[0]), Linked(8, 8, values[1])])
    assert store.head().maxima.get(LOST_BEFORE) == lost
    assert store.head().applied == {"score-summaries:0": 9}


@pytest.mark.parametrize(("cut", "lost"), [({}, None), ({0: 7}, PANE.pane)])
def test_applied_offsets_pass_final_markers(cut: dict[int, int], lost: int | None) -> None:
    metrics, store, links = Metrics(MONITOR_METRICS), MemoryCounterStore(MemoryCounterServer()), Links()
    store.open("e", {"score-summaries:0": 7})
    count = SummaryCounter("score-summaries", metrics, pane_ms=HOUR)
    tallier = Tallier(store, metrics, "score-summaries", count, ())  # type: ignore[arg-type]
    tallier.seek({0: 7}, cut)
    assert fetch(links, 7, 9) == []
    place = TP("outcomes", 0)
    assert links.reached() == {place: (7, 9)}
    for _ in range(2):
        tallier.pass_markers(0, *links.reached()[place])
        assert store.head().applied == {"score-summaries:0": 9} and tallier.counted(0) == 9
    assert store.head().maxima == ({"cut:score-summaries:0": 9} if cut else {})
    (previous,) = fetch(links, 9, 12, 9)
    assert links.reached() == {place: (10, 12)}
    tallier.pass_markers(0, 10, 12)  # a record below is not counted yet
    assert store.head().applied == {"score-summaries:0": 9}
    tallier.apply(0, [Linked(previous, 9, msgspec.json.encode(summary(PANE)))])
    assert store.head().maxima.get(LOST_BEFORE) == lost
    tallier.pass_markers(0, 10, 12)
    assert store.head().applied == {"score-summaries:0": 12}
    assert sum(counts["n"] for counts in store.read([PANE.pane]).values()) == 10


class Running:
    """An app of one partition of outcomes; `start` is what Faust does after an assignment."""

    def __init__(self, store: MemoryCounterStore, tmp_path: Path, now_ms: int, **more: Any) -> None:
        settings = AppSettings("127.0.0.1:1", "g", "i", "score-summaries", "outcomes", "monitor-metrics", tmp_path)
        clock = SimpleNamespace(now_ms=lambda: now_ms)
        reporter: WindowReporter = None  # type: ignore[assignment]
        self.app = MonitorApp(settings, store, reporter, lambda: True, clock, Metrics(MONITOR_METRICS), **more)  # type: ignore[arg-type]

    async def start(self, first: int, end: int) -> int:
        """The position to read from."""
        place = TP("outcomes", 0)

        async def bound(offset: int) -> dict[TP, int]:
            return {place: offset}

        return (await self.app._positions([place], lambda *_: bound(first), lambda *_: bound(end)))[place]


def test_every_start_raises_the_revisions_and_no_applied_offset_decreases(tmp_path: Path) -> None:
    async def run() -> None:
        store = MemoryCounterStore(MemoryCounterServer())
        assert await Running(store, tmp_path, 5).start(first=3, end=9) == 3
        assert store.head().maxima == {REVISIONS_FROM: 5}
        running = Running(store, tmp_path, 8)
        head, store.head = store.head, lambda: Head("e", {"outcomes:0": 3}, {})  # type: ignore[method-assign]
        store.open = lambda *_: store.head()  # type: ignore[method-assign]
        store.apply(Batch("outcomes:0", 3, 7, {}, {}))  # by the former owner, after the new one has read the offset
        assert await running.start(first=6, end=9) == 7
        assert head().maxima == {REVISIONS_FROM: 8}

    asyncio.run(run())


def test_final_markers_are_passed_once_a_partition_is_silent(tmp_path: Path) -> None:
    async def run() -> None:
        store, place = MemoryCounterStore(MemoryCounterServer()), TP("outcomes", 0)
        running = Running(store, tmp_path, 5)
        await running.start(first=3, end=5)
        running.app.faust = SimpleNamespace(consumer=SimpleNamespace(reached={place: (3, 4)}), rebalancing=False)  # type: ignore[assignment]
        await running.app._pass_markers()
        assert store.head().applied == {"outcomes:0": 3}
        running.app.faust.consumer.reached = {place: (3, 5)}  # type: ignore[union-attr]
        await running.app._pass_markers()
        assert store.head().applied == {"outcomes:0": 3}
        await running.app._pass_markers()
        assert store.head().applied == {"outcomes:0": 5}
        again = Running(store, tmp_path, 5)
        assert await again.start(first=3, end=6) == 5
        again.app._talliers["outcomes"].apply(0, [Linked(5, 5, msgspec.json.encode(outcome("fraud")))])
        assert store.head().maxima[LABELS_LOST_BEFORE] == 6 * HOUR  # the records below offset 3 were deleted

    asyncio.run(run())


def test_labels_that_the_joiner_lost_are_marked_in_the_counters(tmp_path: Path) -> None:
    async def run() -> None:
        store, lost = MemoryCounterStore(MemoryCounterServer()), list[int]()
        running = Running(store, tmp_path, 5, labels_lost=lambda: lost[-1] if lost else None)
        await running.start(first=0, end=0)
        for before in (None, 6 * HOUR, 5 * HOUR):
            lost += [] if before is None else [before]
            running.app._raise_lost()
            assert store.head().maxima.get(LABELS_LOST_BEFORE) == (before and 6 * HOUR)

    asyncio.run(run())


def test_counts_stay_for_the_longest_window() -> None:
    rules = WindowRules(24 * HOUR, HOUR, 48 * HOUR, (1, 24), FACE_VALUE)
    assert ttl_s(rules, 3_600) == (24 * 24 + 2 * 48 + 1 + 1) * 3_600


def test_a_summary_without_transactions_does_not_hide_what_is_lost() -> None:
    store = MemoryCounterStore(MemoryCounterServer())
    store.open("e", {"score-summaries:0": 7})
    metrics = Metrics(MONITOR_METRICS)
    count = SummaryCounter("score-summaries", metrics, pane_ms=HOUR)
    tallier = Tallier(store, metrics, "score-summaries", count, ())  # type: ignore[arg-type]
    tallier.seek({0: 7}, {0: 7})
    tallier.apply(0, [Linked(7, 7, msgspec.json.encode(summary()))])
    tallier.apply(0, [Linked(8, 8, msgspec.json.encode(summary(PANE)))])
    assert store.head().maxima.get(LOST_BEFORE) == PANE.pane


def test_the_first_outcome_after_deleted_ones_marks_which_labels_are_lost() -> None:
    count = OutcomeCounter("outcomes", Metrics(MONITOR_METRICS), frozenset(), pane_ms=HOUR)
    assert count.lost_before(msgspec.json.encode(outcome("fraud"))) == {LABELS_LOST_BEFORE: 6 * HOUR}
    assert count.lost_before(b"{") == {}
