"""Closed windows of simulated traffic, by the monitor's own counting of summaries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from stream_scorer.monitor.drift_feed import series_counts
from stream_scorer.monitor.drift_types import DriftWindow, SeriesInfo
from stream_scorer.monitor.tally import Cells, count_summary, new_cells
from stream_scorer.records import ScoreSummary


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
            series = series_counts(counts, self._series)
            found.append(DriftWindow(cell[0], counts["n"], series, self._ensemble, incomplete=counts.get("inc", 0)))
        return found
