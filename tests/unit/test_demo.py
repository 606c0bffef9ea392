"""The demo's parts that need no service: sizes, steps, what is shown while traffic runs, children."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from stream_scorer.demo.children import Child
from stream_scorer.demo.plan import SETTLE_DAYS, DemoPlan
from stream_scorer.demo.run import SPEC
from stream_scorer.demo.steps import Steps
from stream_scorer.demo.view import Rates, View, calendar_columns, newest_bounds, newest_drifts
from stream_scorer.demo.watch import Glance
from stream_scorer.errors import StreamScorerError, UsageError
from stream_scorer.records import Alert, Reason
from stream_scorer.simulate.config import DAY_MS
from stream_scorer.spec import load_spec
from tests.unit.test_reports import HOUR, START, make_story, metric


class SteppedClock:
    """Time that moves when told."""

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
        assert "latency p50 20 ms p99 30 ms, 1 alerts, most drift amount 0.200" in lines[0]


def test_a_child_that_ends_by_itself_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    child = Child("scorer", ["run", "--no-such-flag"], tmp_path)
    with pytest.raises(StreamScorerError, match="no-such-flag"):
        child.wait(lambda _line: None)
    with pytest.raises(StreamScorerError, match="the scorer ended by itself with exit code 2"):
        child.require_running()
    assert child.stop() == 2


def test_children_do_not_see_the_callers_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "STREAM_SCORER_METRICS_PORT", "not a number")
    monkeypatch.chdir(tmp_path)
    # It would end with 2: the port is not a number.
    Child("doctor", ["doctor"], tmp_path).wait(lambda _line: None)
    with pytest.raises(StreamScorerError, match="not a number"):
        Child("doctor", ["doctor", "--metrics-port", "not a number"], tmp_path).wait(lambda _line: None)
