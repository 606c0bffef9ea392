"""The monitor's windows as series, with the hidden truth per window."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream_scorer.records import MonitorMetric
from stream_scorer.reports.quality import Judged
from stream_scorer.reports.story import Story

POSITIVE = "review+block"
DRIFT_SHOWN = 4


@dataclass(frozen=True)
class Bound:
    """False-positive bounds of one window; `truth` is None if the window has no genuine transaction.

    `value` is the point estimate and `interval` its 95 % interval, clustered by card; None without one.
    """

    start: int
    end: int
    low: float
    high: float
    truth: float | None
    ripe: bool
    label_age: int
    value: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def contains_truth(self) -> bool | None:
        """Whether the bounds contain the truth; None without truth."""
        return None if self.truth is None else self.low <= self.truth <= self.high


def final(story: Story) -> list[MonitorMetric]:
    """The last revision of every metric of the story's version, in order of window."""
    newest: dict[tuple[str, str, int, int], MonitorMetric] = {}
    for m in story.recording.metrics:
        if m.version != story.version:
            continue
        key = (m.metric, m.dimension, m.window_start, m.window_end)
        if key not in newest or m.revision >= newest[key].revision:
            newest[key] = m
    return sorted(newest.values(), key=lambda m: (m.window_start, m.window_end))


def windows_seen(metrics: list[MonitorMetric]) -> int:
    """Number of distinct windows."""
    return len({(m.window_start, m.window_end) for m in metrics})


def long_ms(story: Story) -> int:
    """Length of the longest windows with rates (drift events have lengths of their own); a pane if there are none."""
    lengths = (m.window_end - m.window_start for m in story.recording.metrics if m.metric in ("alert_rate", "fpr"))
    return max(lengths, default=story.pane_ms)


def alert_rates(story: Story, length_ms: int) -> list[MonitorMetric]:
    """Alert rates of windows of one length, in order."""
    return [
        m for m in final(story)
        if m.metric == "alert_rate" and m.dimension == POSITIVE and m.window_end - m.window_start == length_ms
    ]  # fmt: skip


def bounds(story: Story, events: Judged) -> list[Bound]:
    """False-positive bounds of the longest windows, in order, with the truth of the events in each."""
    length = long_ms(story)
    time = story.recording.scores.event_time[events.row]
    mine = story.recording.contributions.by(story.version)[events.row]
    found = []
    for m in final(story):
        if m.metric != "fpr" or m.dimension != POSITIVE or m.window_end - m.window_start != length:
            continue
        if m.low is None or m.high is None:
            continue
        genuine = mine & (time >= m.window_start) & (time < m.window_end) & ~events.fraud
        truth = float(events.alert[genuine].mean()) if genuine.any() else None
        age = m.label_age or 0
        interval = None if m.interval_low is None or m.interval_high is None else (m.interval_low, m.interval_high)
        found.append(
            Bound(
                m.window_start, m.window_end, m.low, m.high, truth, age >= story.horizon_ms, age, m.value, interval
            )
        )  # fmt: skip
    return found


def drifts(story: Story) -> dict[str, list[MonitorMetric]]:
    """Drift scores of the longest windows with enough rows, by series: the score, then the largest others.

    Calendar columns are left out: a day never has the mix of weekdays and hours of the reference.
    """
    length = long_ms(story)
    series: dict[str, list[MonitorMetric]] = {}
    for m in final(story):
        if m.metric != "drift_score" or m.window_end - m.window_start != length or m.value is None:
            continue
        if m.statistics.get("sufficient") and m.dimension not in story.calendar:
            series.setdefault(m.dimension, []).append(m)
    others = sorted((name for name in series if name != "score"), key=lambda name: -_median(series[name]))
    names = [name for name in ("score", *others[:DRIFT_SHOWN]) if name in series]
    return {name: series[name] for name in names}


def _median(series: list[MonitorMetric]) -> float:
    return float(np.median([m.value or 0.0 for m in series]))
