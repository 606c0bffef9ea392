"""The demo's parts that need no service: sizes, steps, what is shown while traffic runs, children."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from stream_scorer.console import Steps
from stream_scorer.demo.children import Child
from stream_scorer.demo.incident import SecondAct, possible
from stream_scorer.demo.plan import SETTLE_DAYS, DemoPlan
from stream_scorer.demo.run import SPEC
from stream_scorer.demo.view import Rates, View, calendar_columns, newest_bounds, newest_drifts
from stream_scorer.demo.watch import Glance, _recording, _Seen
from stream_scorer.errors import StreamScorerError, UsageError
from stream_scorer.kafka.follower import FollowedRecord
from stream_scorer.kafka.topics import Topics
from stream_scorer.records import DECISIONS, Alert, Command, Incident, Reason, ServedVersion
from stream_scorer.reports.recording import ControlRecord
from stream_scorer.reports.story import Update
from stream_scorer.simulate.config import DAY_MS
from stream_scorer.spec import load_spec
from tests.support.stories import HOUR, START, make_story, metric


class SteppedClock:
    """Time that moves only when `seconds` is set."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def now_ms(self) -> int:
        return int(self.seconds * 1_000)

    def monotonic(self) -> float:
        return self.seconds


def alert(event_id: str) -> Alert:
    return Alert(
        event_id, START, START, 0.91, "block", "model", "cards", "1", "champion", "p", 1.0, False, [], 3, 12_345,
        base=-3.0, z=2.0, reasons=[Reason("gbdt", 1.5, "x"), Reason("neural", -0.25, "y")],
    )  # fmt: skip


def glance(**more: object) -> Glance:
    facts: dict[str, object] = {
        "records_in": 100, "records_out": 90, "dead": 2, "latencies": [10, 20, 30], "event_time": START,
        "alerts": [alert("e-[bold]1")], "metrics": make_story().recording.metrics,
    }  # fmt: skip
    return Glance(**(facts | more))  # type: ignore[arg-type]


def test_event_time_ends_before_labels_would_be_of_the_future() -> None:
    now = 1_790_000_000_000
    config = DemoPlan().simulation(now)
    assert config.start_ms % DAY_MS == 0
    assert config.start_ms + config.expected_days * DAY_MS <= now - SETTLE_DAYS * DAY_MS
    assert config.transactions == 210_000


def test_a_demo_is_the_same_on_every_day() -> None:
    """The members, and so the update that the monitor finds, depend on the weekdays of the history."""
    starts = [DemoPlan().simulation(1_790_000_000_000 + day * DAY_MS).start_ms for day in range(14)]
    assert {datetime.fromtimestamp(start / 1_000, UTC).weekday() for start in starts} == {0}


@pytest.mark.parametrize("sizes", [{"transactions": 10}, {"history": 100}, {"rate": 0.0}])
def test_sizes_that_make_no_demo_are_refused(sizes: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        DemoPlan(**sizes)  # type: ignore[arg-type]


def test_steps_say_how_long_they_took_also_when_they_fail() -> None:
    clock, lines = SteppedClock(), []
    steps = Steps(clock, lines.append)
    clock.seconds += 2
    with steps.step("first"):
        clock.seconds += 3

    def fail() -> None:
        with steps.step("second"):
            clock.seconds += 1
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert steps.seconds == {"first": 3.0, "second": 1.0}
    assert lines == ["   2.0 s  first ...", "   5.0 s  first: done in 3.0 s", "   5.0 s  second ..."]


def test_calendar_columns_come_from_the_spec() -> None:
    assert calendar_columns(load_spec(SPEC)) == {"hour", "is_weekend", "is_night"}


def test_drift_is_of_the_newest_window_with_rows_enough() -> None:
    old = metric("drift_score", "amount", START - 24 * HOUR, 24, value=0.7, statistics={"sufficient": 1})
    found = newest_drifts([old, *make_story().recording.metrics], frozenset({"hour"}))
    assert [(m.dimension, m.value) for m in found] == [("amount", 0.2), ("score", 0.05)]


def test_bounds_with_ripe_labels_are_preferred_to_newer_ones() -> None:
    young = metric("fpr", "review+block", START + 24 * HOUR, 24, low=0.0, high=0.9, label_age=HOUR)
    found = newest_bounds([*make_story().recording.metrics, young], HOUR, 48 * HOUR)
    assert found is not None
    assert (found.low, found.high) == (0.0, 0.1)
    assert newest_bounds([young], HOUR, 48 * HOUR) == young
    assert newest_bounds([], HOUR, 48 * HOUR) is None


class TestView:
    def make(self, *, terminal: bool) -> tuple[View, Console, SteppedClock]:
        clock = SteppedClock()
        console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
        return View(console, clock, load_spec(SPEC)), console, clock

    def test_the_table_shows_what_the_issue_is_about(self) -> None:
        view, console, _ = self.make(terminal=True)
        console.print(view.table(glance(), Rates(800.0, 790.0), 12.0))
        shown = console.file.getvalue()  # type: ignore[attr-defined]
        for text in ("800/s", "790/s", "20 ms", "30 ms", "gbdt +1.50", "neural -0.25", "amount 0.200", "123.45"):
            assert text in shown
        assert "FPR 0.00% to 10.00% (labels 50 h old)" in shown
        assert "e-[bold]1" in shown  # an id is text, not markup

    def test_before_anything_is_known_it_says_so(self) -> None:
        view, console, _ = self.make(terminal=True)
        nothing = glance(records_in=0, records_out=0, dead=0, latencies=[], event_time=0, alerts=[], metrics=[])
        console.print(view.table(nothing, Rates(0.0, 0.0), 0.0))
        assert "waiting for a day of traffic" in console.file.getvalue()  # type: ignore[attr-defined]

    def test_without_a_terminal_there_is_a_line_every_five_seconds(self) -> None:
        view, console, clock = self.make(terminal=False)
        with view:
            for _ in range(23):
                clock.seconds += 0.5
                view.show(glance(), 1.0)
        lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        assert len(lines) == 2
        assert "latency p50 20 ms p99 30 ms, 1 alerts, furthest from training: amount 0.200" in lines[0]


class TestSecondAct:
    UPDATE = Update("2", "gbdt", "amount_log", 1.5, 0.5, 0.67, 0.31)
    INCIDENT = Incident(
        id="cards-1", ensemble="cards", opened=1_000, why="counted", version="2", member="gbdt", input="amount_log",
        closed=2_000,
    )  # fmt: skip

    def given(self, *actions: str) -> list[ControlRecord]:
        found = []
        for offset, action in enumerate(actions):
            by_monitor = action in ("rollback", "stop")
            command = Command(
                ensemble="cards", action=action, who="w", at=0, expected_offset=offset,  # type: ignore[arg-type]
                why="counted; member gbdt makes 9 more" if by_monitor else "better",
                author="monitor" if by_monitor else "person",
                version=None if action == "rollback" else ServedVersion("2", "0" * 64),
            )  # fmt: skip
            found.append(ControlRecord(offset, 1_000 * offset, command))
        return found

    def test_it_promotes_once_and_prints_each_command_once(self) -> None:
        promotions: list[int] = []
        lines: list[str] = []
        act = SecondAct(self.UPDATE, 100, lambda: promotions.append(1), lines.append)
        act.follow(99, [])
        assert promotions == []
        for commands in (
            [],
            self.given("promote"),
            self.given("promote", "rollback"),
            self.given("promote", "rollback"),
        ):
            act.follow(100, commands)
        assert promotions == [1]
        assert lines == ["w: promote cards 2: better", "the monitor: rollback cards: counted; member gbdt makes 9 more"]

    def test_only_one_rollback_by_the_monitor_that_names_the_member_will_do(self) -> None:
        act = SecondAct(self.UPDATE, 100, lambda: pytest.fail("not due"), lambda _line: None)
        good, record = self.given("promote", "rollback"), [self.INCIDENT]
        assert [check.holds for check in act.checks(good, record)] == [True, True, True]
        assert act.checks(good, record)[0].found == "1.0 s after its promotion"
        # The monitor may end the time in shadow of the version before the demo ends.
        assert act.checks(self.given("promote", "rollback", "stop"), record) == act.checks(good, record)
        assert [check.holds for check in act.checks(self.given("promote"), record)] == [False, False, True]
        again = self.given("promote", "rollback", "promote")
        assert [check.holds for check in act.checks(again, record)] == [False, False, True]
        assert [check.holds for check in act.checks([], [])] == [False, False, False]
        other = SecondAct(replace(self.UPDATE, member="xgb"), 100, lambda: pytest.fail("not due"), lambda _line: None)
        assert [check.holds for check in other.checks(good, record)] == [True, False, False]

    @pytest.mark.parametrize("change", [{"closed": None}, {"input": "hour"}, {"input": None}, {"version": "3"}])
    def test_the_incident_must_name_the_input_and_be_closed(self, change: dict[str, object]) -> None:
        act = SecondAct(self.UPDATE, 100, lambda: pytest.fail("not due"), lambda _line: None)
        record = msgspec.structs.replace(self.INCIDENT, **change)
        assert [check.holds for check in act.checks(self.given("promote", "rollback"), [record])] == [True, True, False]

    def test_there_is_none_where_too_few_alerts_come(self) -> None:
        assert possible(DemoPlan())
        assert not possible(DemoPlan(transactions=3_000))


def test_the_error_of_an_ended_child_has_the_end_of_its_log(tmp_path: Path) -> None:
    child = Child("scorer", ["run", "--no-such-flag"], tmp_path)
    with pytest.raises(StreamScorerError, match="no-such-flag"):
        child.wait(lambda _line: None)
    with pytest.raises(StreamScorerError, match="the scorer ended unexpectedly with exit code 2"):
        child.require_running()
    assert child.stop() == 2


def test_children_do_not_see_the_callers_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "STREAM_SCORER_METRICS_PORT", "not a number")
    monkeypatch.chdir(tmp_path)
    # It would end with 2: the port is not a number.
    Child("doctor", ["doctor"], tmp_path).wait(lambda _line: None)
    with pytest.raises(StreamScorerError, match="not a number"):
        Child("doctor", ["doctor", "--metrics-port", "not a number"], tmp_path).wait(lambda _line: None)


def test_what_is_seen_of_a_transaction_becomes_a_row_of_the_recording() -> None:
    seen, topic = _Seen(), Topics()
    seen.transaction(FollowedRecord(0, 7, b"k", b"{}", 1_000), 1_001)
    source = {"topic": topic.transactions, "partition": 0, "offset": 7, "place": 0}
    contribution = {
        "event_id": "e", "version": "2", "base": -1.0, "z": 0.5, "score": 0.6, "source": source,
        "members": {"name": ["gbdt"], "score": [0.6], "weight": [1.0], "contribution": [1.5]},
        "alternatives": [{"decision": "review"}],
    }  # fmt: skip
    seen.contribution(FollowedRecord(0, 3, b"k", msgspec.json.encode(contribution), 1_010), 1_015)
    score = {
        "event_id": "e", "event_time": 900, "scored_at": 1_009, "decision": "block", "member_alerts": 1,
        "duplicate": False, "degraded": [], "value": 5, "ensemble": "cards", "version": "2",
    }  # fmt: skip
    seen.score(FollowedRecord(0, 3, b"k", msgspec.json.encode(score), 1_010), 1_015)
    for origin in (topic.transactions, topic.labels):
        headers = [("source.topic", origin.encode()), ("source.partition", b"0"), ("source.offset", b"8")]
        seen.dead_letter(FollowedRecord(0, 0, None, b"?", 1_000, [*headers, ("error.code", b"not_json")]), 1_015)
    found = _recording(seen)
    assert seen.latencies() == [15]
    assert (seen.records_in, seen.records_out, seen.event_time) == (1, 1, 900)
    assert found.contributions.contribution.tolist() == [[1.5]]
    assert found.contributions.other.tolist() == [DECISIONS.index("review")]
    assert found.scores.decision.tolist() == [DECISIONS.index("block")]
    assert found.dead.code == ["not_json"]
