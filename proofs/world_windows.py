"""Closed windows of simulated traffic, by the monitor's own counting of summaries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from stream_scorer.monitor.drift_types import DriftWindow, SeriesInfo
from stream_scorer.monitor.tally import Cells, count_summary, new_cells
from stream_scorer.monitor.windows import field_prefix, histogram
from stream_scorer.records import DECISIONS, ScoreSummary


class Windows:
    """Adds up the summaries of one champion by pane; a window is one pane.

    Event time is in order in simulated traffic, so a pane is closed once a later one has begun.
    """

    def __init__(self, series: Mapping[str, SeriesInfo], ensemble: str) -> None:
        self._series, self._ensemble = series, ensemble
        self._cells: Cells = new_cells()

    def add(self, summaries: Iterable[ScoreSummary]) -> None:
        """Count some summaries."""
        for summary in summaries:
            count_summary(self._cells, summary)

    def close(self, before_ms: int) -> list[DriftWindow]:
        """The windows that begin before `before_ms`, in order; each is given once."""
        found = []
        for cell in sorted(cell for cell in self._cells if cell[0] < before_ms):
            counts = self._cells.pop(cell)
            series = {name: _histogram(counts, info) for name, info in self._series.items()}
            found.append(DriftWindow(cell[0], counts["n"], series, self._ensemble, incomplete=counts.get("inc", 0)))
        return found


def _histogram(counts: Mapping[str, int], info: SeriesInfo) -> NDArray[np.int64]:
    if info.kind == "decision":
        return np.array([*(counts.get(f"d:{decision}", 0) for decision in DECISIONS), 0], dtype=np.int64)
    return histogram(counts, field_prefix(info.name), len(info.edges) + 2)
