"""How complete the labels of a window are: the label-maturity curve, measured on panes whose labels are mature."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from stream_scorer.monitor.rate_figures import Figure
from stream_scorer.monitor.tally import AGE_BINS

# Panes that make the curve: the newest mature ones.
CURVE_PANES = 48
# Fewer labels give no curve.
MIN_LABELS = 20
# Ages of the published points of the curve, as shares of the label horizon.
POINTS: Mapping[str, int] = {"1/24": 1, "1/8": 3, "1/4": 6, "1/2": 12, "3/4": 18}

Counts = Mapping[str, int]
Ages = NDArray[np.int64]


def label_ages(counts: Counts) -> Ages:
    """``(24,) int64``: transactions by the age of their first label, up to the horizon, all sources together."""
    ages = np.zeros(AGE_BINS, dtype=np.int64)
    for name, number in counts.items():
        if name.startswith("la:"):
            place = int(name.rsplit(":", 1)[1])
            if place < AGE_BINS:
                ages[place] += number
    return ages


def curve_figures(counts: Counts) -> list[Figure]:
    """Points of the curve of one mature window: the share of its labels that had arrived by an age."""
    arrived = label_ages(counts).cumsum()
    total = int(arrived[-1])
    if not total:
        return []
    return [
        Figure(
            "label_maturity", name, int(arrived[bins - 1]) / total,
            numerator=int(arrived[bins - 1]), denominator=total, labelled=True,
        )
        for name, bins in POINTS.items()
    ]  # fmt: skip


class MaturityCurve:
    """The curve of the newest mature panes."""

    def __init__(self) -> None:
        self._ages: dict[int, Ages] = {}

    def missing(self, newest: int, pane_ms: int) -> list[int]:
        """The panes of the curve whose counts are not noted; `newest` is the start of the newest mature pane."""
        wanted = range(newest - (CURVE_PANES - 1) * pane_ms, newest + 1, pane_ms)
        self._ages = {pane: ages for pane, ages in self._ages.items() if pane >= wanted[0]}
        return [pane for pane in wanted if pane not in self._ages]

    def note(self, pane: int, counts: Counts) -> None:
        """Set the counts of one pane, those of all versions together."""
        self._ages[pane] = label_ages(counts)

    def share(self, age_ms: int, horizon_ms: int, newest: int) -> float | None:
        """Share of the labels known at the horizon that had arrived by `age_ms`; None with too few labels to tell.

        `newest` is the start of the newest mature pane; younger ones do not count.
        """
        ages = sum((a for pane, a in self._ages.items() if pane <= newest), np.zeros(AGE_BINS, dtype=np.int64))
        arrived = np.concatenate([[0], np.cumsum(ages)])
        if arrived[-1] < MIN_LABELS:
            return None
        place = min(age_ms * AGE_BINS / horizon_ms, AGE_BINS)
        return float(np.interp(place, np.arange(AGE_BINS + 1), arrived) / arrived[-1])
