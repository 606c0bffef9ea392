"""The gauges of windows: of each subject, the newest closed window and the newest with mature labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from stream_scorer.monitor.metrics import (
    ALERT_RATE,
    DRIFT_SCORE,
    FPR,
    FPR_HIGH,
    FPR_INTERVAL_HIGH,
    FPR_INTERVAL_LOW,
    FPR_LOW,
    LABEL_AGE,
)
from stream_scorer.monitor.rate_figures import Figure
from stream_scorer.observability.metrics import Metric, Metrics

Kind = Literal["closed", "mature"]


class WindowGauges:
    """Shows windows from `begin` to `end`. Only the leader shows any: those of another worker would soon be old."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.begun = False
        self._from: Mapping[Kind, int] = {}
        self._newest: dict[tuple[Kind, tuple[str, str, str]], int] = {}
        self._shown: set[tuple[Metric, tuple[str, ...]]] = set()

    def begin(self, newest: Mapping[Kind, int]) -> None:
        """Show windows that start at or after `newest`, the newest ones that any worker has shown."""
        self.begun, self._from = True, newest

    def end(self) -> None:
        """Remove the gauges."""
        self.begun = False
        for metric, labels in self._shown:
            self._metrics.remove(metric, *labels)
        self._shown.clear()
        self._newest.clear()

    def newest(self, kind: Kind) -> int | None:
        """The start of the newest window of this kind that is shown."""
        return max((start for (shown, _), start in self._newest.items() if shown == kind), default=None)

    def show_closed(self, subject: tuple[str, str, str], start: int, found: Sequence[Figure]) -> None:
        """Show a closed window, unless a newer one was shown."""
        if not self._is_newest("closed", subject, start):
            return
        for figure in found:
            metric = {"alert_rate": ALERT_RATE, "drift_score": DRIFT_SCORE}.get(figure.metric)
            if metric is not None and figure.value is not None:
                self._set(metric, figure.value, *subject, figure.dimension)

    def show_mature(self, subject: tuple[str, str, str], start: int, found: Sequence[Figure], label_age: int) -> None:
        """Show a window with mature labels, `label_age` ms old, unless a newer one was shown."""
        if not self._is_newest("mature", subject, start):
            return
        self._set(LABEL_AGE, label_age / 1000, *subject)
        for figure in found:
            if figure.metric == "fpr":
                self._show_fpr(figure, subject)

    def _show_fpr(self, figure: Figure, subject: tuple[str, str, str]) -> None:
        """Show the false-positive rate; NaN where the window has no such figure, for example no labels."""
        interval = figure.interval or (None, None)
        values = {
            FPR: figure.value, FPR_LOW: figure.low, FPR_HIGH: figure.high,
            FPR_INTERVAL_LOW: interval[0], FPR_INTERVAL_HIGH: interval[1],
        }  # fmt: skip
        for metric, value in values.items():
            self._set(metric, math.nan if value is None else value, *subject, figure.dimension)

    def _is_newest(self, kind: Kind, subject: tuple[str, str, str], start: int) -> bool:
        if not self.begun or start < max(self._from.get(kind, start), self._newest.get((kind, subject), start)):
            return False
        self._newest[kind, subject] = start
        return True

    def _set(self, metric: Metric, value: float, *labels: str) -> None:
        self._metrics.set(metric, value, *labels)
        self._shown.add((metric, labels))
