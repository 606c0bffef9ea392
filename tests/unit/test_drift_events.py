"""The detector of drift events on synthetic windows: healthy streams, and each kind of change."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from stream_scorer.monitor.drift_events import DriftDetector
from stream_scorer.monitor.drift_evidence import (
    Extremes,
    Tail,
    divergences,
    log_e_values,
    moved_by_scale,
    return_level,
    sampling_noise,
)
from stream_scorer.monitor.drift_types import (
    DAY_MS,
    HOUR_MS,
    DriftEvent,
    DriftReport,
    DriftRules,
    DriftWindow,
    SeriesInfo,
)
from tests.support.drift_worlds import BINS, Change, World

LEARNT = 14 * 24
CHANGE = LEARNT + 10  # mid-morning of a Monday


class Rewound:
    """The state of a detector and of its world after two weeks, from which many tests continue."""

    def __init__(self) -> None:
        self.world = World(7)
        detector = DriftDetector(DriftRules(series=self.world.series))
        self.reports = [detector.update(window) for window in self.world.windows(CHANGE)]
        self.state = detector.dump()
        self.generator = self.world.state()

    def with_changes(self, *changes: Change, windows: int = 12) -> list[DriftReport]:
        """The reports of the windows after the change."""
        detector = DriftDetector.restored(self.state, 4.0)
        world = World(7, changes=changes)
        world.restore(self.generator)
        return [detector.update(world.window(hour)) for hour in range(CHANGE, CHANGE + windows)]


@functools.cache
def rewound() -> Rewound:
    return Rewound()


def opened(reports: list[DriftReport]) -> DriftEvent:
    """The only event that the reports open."""
    found = [event for report in reports for event in report.events if event.status == "open"]
    assert len(found) == 1, found
    return found[0]


def test_learning_never_alarms_and_states_what_is_missing() -> None:
    reports = rewound().reports
    learning = [report for report in reports if report.state == "learning"]
    assert not any(report.events for report in reports)
    assert len(learning) >= 7 * 24 + 4 * 24
    assert learning[0].missing_windows > learning[-1].missing_windows >= 1
    assert reports[-1].state == "watching"
    assert reports[-1].missing_windows == 0


def test_no_alarm_without_a_change() -> None:
    assert not any(report.events for report in rewound().with_changes(windows=48))


@pytest.mark.parametrize(
    ("change", "series", "kind", "delay"),
    [
        (Change("amount", CHANGE, shift=4.6), "amount_log", "scale", 2),  # euros to cents
        (Change("amount", CHANGE, shift=0.3), "amount_log", "scale", 5),
        (Change("amount", CHANGE, missing=1.0), "amount_log", "missing", 2),
        (Change("device_id", CHANGE, missing=0.3), "device.count_1h", "missing", 3),
        (Change("channel", CHANGE, swap=True), "channel_code", "mapping", 5),
    ],
)
def test_a_change_is_found_with_its_series_kind_and_field(change: Change, series: str, kind: str, delay: int) -> None:
    event = opened(rewound().with_changes(change))
    assert event.first_window // HOUR_MS == CHANGE
    assert event.windows <= delay
    assert series in [shift.info.name for shift in event.series[:2]]
    shift = next(shift for shift in event.series if shift.info.name == series)
    assert shift.kind == kind
    assert event.fields[0] == change.field
    readers = {member for shift in event.series for member in shift.info.members}
    assert {effect.member for effect in event.members} == readers
    assert event.rows > 0
    assert event.log_evidence >= math.log(event.run_length)


def test_the_factor_of_a_scale_is_estimated() -> None:
    event = opened(rewound().with_changes(Change("amount", CHANGE, shift=0.5)))
    shift = next(shift for shift in event.series if shift.info.name == "amount_log")
    assert shift.factor == pytest.approx(math.exp(0.5), rel=0.05)


def test_an_event_ends_when_the_traffic_is_as_before() -> None:
    reports = rewound().with_changes(Change("channel", CHANGE, swap=True, stop=CHANGE + 12), windows=30)
    event = opened(reports)
    ended = [event for report in reports for event in report.events if event.status != "open"]
    assert [(end.id, end.status) for end in ended] == [(event.id, "recovered")]
    assert ended[0].ended is not None
    assert CHANGE + 12 < ended[0].ended // HOUR_MS <= CHANGE + 24
    assert reports[-1].state == "watching"


def test_windows_without_complete_features_are_no_evidence() -> None:
    detector = DriftDetector.restored(rewound().state, 4.0)
    world = World(7, changes=(Change("amount", CHANGE, missing=1.0),))
    for hour in range(CHANGE, CHANGE + 12):
        window = world.window(hour)
        incomplete = DriftWindow(window.start, window.rows, window.counts, "cards", "1", window.rows // 2)
        assert not detector.update(incomplete).events


def test_missing_windows_and_empty_ones_never_alarm() -> None:
    detector = DriftDetector.restored(rewound().state, 4.0)
    world = World(7)
    world.restore(rewound().generator)
    for hour in range(CHANGE, CHANGE + 40):
        window = world.window(hour)
        if hour % 3:
            assert not detector.update(DriftWindow(window.start, 0, {})).events
        elif hour % 2:
            assert not detector.update(window).events


def test_windows_must_come_in_order() -> None:
    detector = DriftDetector.restored(rewound().state, 4.0)
    with pytest.raises(ValueError, match="not later"):
        detector.update(DriftWindow((CHANGE - 1) * HOUR_MS, 0, {}))


def test_a_restored_detector_continues_as_if_it_had_not_stopped() -> None:
    change = (Change("amount", CHANGE + 3, shift=0.3),)
    world = World(7, changes=change)
    world.restore(rewound().generator)
    windows = [world.window(hour) for hour in range(CHANGE, CHANGE + 30)]
    steady = DriftDetector.restored(rewound().state, 4.0)
    expected = [steady.update(window) for window in windows]
    restarted, found = DriftDetector.restored(rewound().state, 4.0), []
    for number, window in enumerate(windows):
        found.append(restarted.update(window))
        if number % 7 == 0:
            restarted = DriftDetector.restored(restarted.dump(), 4.0)
    assert opened(expected).id == opened(found).id
    assert [r.log_evidence for r in found[:20]] == pytest.approx([r.log_evidence for r in expected[:20]])


def test_a_damaged_state_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        DriftDetector.restored(rewound().state[:200], 4.0)


def test_series_with_the_same_key_keep_their_history_and_others_learn() -> None:
    from dataclasses import replace

    series = dict(rewound().world.series)
    series["member:history"] = replace(series["member:history"], key="another file")
    detector = DriftDetector.restored(rewound().state, 4.0).with_series(series)
    world = World(7, changes=(Change("amount", CHANGE, shift=4.6),))
    world.restore(rewound().generator)
    reports = [detector.update(world.window(hour)) for hour in range(CHANGE, CHANGE + 6)]
    assert "member:history" not in [shift.info.name for shift in opened(reports).series]
    assert all(report.evidence["member:history"] == 0.0 for report in reports)


def test_divergences_agree_with_scipy() -> None:
    from scipy.spatial.distance import jensenshannon

    rng = np.random.default_rng(3)
    counts, references = rng.integers(0, 50, (4, BINS)), rng.integers(0, 50, (2, 4, BINS))
    used = np.ones((4, BINS), dtype=bool)
    found = divergences(counts, references, used)
    for r in range(2):
        for s in range(4):
            expected = jensenshannon(counts[s] + 0.5, references[r, s] + 0.5) ** 2
            assert found[r, s] == pytest.approx(expected, abs=1e-12)


def test_sampling_noise_is_the_mean_divergence_of_two_samples() -> None:
    rng = np.random.default_rng(4)
    p = np.full(BINS, 1 / BINS)
    counts = rng.multinomial(2_000, p, 500)
    references = rng.multinomial(5_000, p, (1, 500))
    found = divergences(counts, references, np.ones((500, BINS), dtype=bool))
    assert found.mean() == pytest.approx(sampling_noise(counts, references).mean(), rel=0.05)


def test_p_values_are_uniform_and_e_values_have_mean_one() -> None:
    rng = np.random.default_rng(5)
    past, new = rng.chisquare(5, (1_000, 40)), rng.chisquare(5, (400, 40))
    log_p = Tail.fit(past).log_p(new)
    assert stats.kstest(np.exp(log_p).ravel(), "uniform").statistic < 0.02
    # Beyond the past windows the tail must not be too light.
    assert np.mean(log_p < math.log(1e-4)) <= 2e-4
    strongest = (-log_p).max(axis=1)
    extremes = Extremes.fit(strongest[:200]).log_p(strongest[200:])
    assert np.mean(np.exp(log_e_values(np.log(rng.random(100_000))))) == pytest.approx(1.0, abs=0.15)
    assert np.mean(np.exp(extremes) < 0.1) == pytest.approx(0.1, abs=0.06)


def test_the_return_level_is_exceeded_as_often_as_stated() -> None:
    rng = np.random.default_rng(6)
    exceeded = [float(rng.gumbel(3, 2)) > return_level(rng.gumbel(3, 2, 28), 0.02) for _ in range(4_000)]
    assert 0.004 < np.mean(exceeded) < 0.022


def test_a_histogram_moved_by_a_scale_is_that_of_scaled_values() -> None:
    rng = np.random.default_rng(3)
    values, edges = rng.lognormal(3, 0.7, 400_000), np.exp(np.linspace(0.5, 5.5, 18))

    def histogram(of: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.append(np.bincount(np.searchsorted(edges, of), minlength=len(edges) + 1), 7).astype(np.float64)

    moved = moved_by_scale(histogram(values), edges.tolist(), 0.1, logarithmic=False)
    assert moved.sum() == pytest.approx(400_007)
    assert moved == pytest.approx(histogram(values * np.exp(0.1)), abs=1_500)
    assert moved == pytest.approx(moved_by_scale(histogram(values), np.log(edges).tolist(), 0.1, logarithmic=True))
    codes = np.array([5.0, 6.0, 7.0, 1.0])
    assert moved_by_scale(codes, [-1.0, 0.0], 0.1, logarithmic=False).tolist() == codes.tolist()


@pytest.mark.parametrize(("volume", "found"), [(1.15, False), (1.0, True)])
def test_counts_that_change_as_much_as_the_volume_are_no_event(volume: float, found: bool) -> None:
    """On the last day all counts of a day grow to 1.15 times: with 15 % more transactions, or without."""
    rng, last = np.random.default_rng(1), 18
    edges = tuple(np.exp(np.linspace(2.0, 4.0, 18)).tolist())
    info = SeriesInfo("network.count_1d", "rate", ("network",), "count", "network", DAY_MS, edges=edges)
    detector = DriftDetector(DriftRules(HOUR_MS, 4, {info.name: info}))
    events: list[DriftEvent] = []
    for hour in range((last + 1) * 24):
        share = max(hour - last * 24 + 1, 0) / 24
        n = int(rng.poisson(5_000 * (volume if share else 1.0)))
        values = rng.lognormal(3.0 + rng.normal(0, 0.01), 0.4, n) * (1 + 0.15 * share)
        counts = np.append(np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1), 0)
        events += detector.update(DriftWindow(hour * HOUR_MS, n, {info.name: counts}, "cards")).events
    assert bool(events) == found
