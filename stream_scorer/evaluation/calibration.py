"""Brier score and reliability bins of one version, added up piece by piece."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_scorer.evaluation.result import Calibration, CalibrationBin
from stream_scorer.quality import brier_score

# Scores of a rare class are mostly near 0: bins of about equal width on a logarithmic scale, then equal width.
EDGES = np.array([0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])


class Reliability:
    """See the module."""

    def __init__(self) -> None:
        self._rows = np.zeros(len(EDGES) - 1, np.int64)
        self._frauds = np.zeros(len(EDGES) - 1, np.int64)
        self._score = np.zeros(len(EDGES) - 1)
        self._squares = 0.0

    def add(self, score: NDArray[np.float64], fraud: NDArray[np.bool_]) -> None:
        """Add transactions ``(n,)``; NaN scores are left out."""
        present = ~np.isnan(score)
        score, fraud = score[present], fraud[present]
        if not len(score):
            return
        place = np.clip(np.searchsorted(EDGES, score, side="right") - 1, 0, len(self._rows) - 1)
        bins = len(self._rows)
        self._rows += np.bincount(place, minlength=bins)
        self._frauds += np.bincount(place[fraud], minlength=bins)
        self._score += np.bincount(place, weights=score, minlength=bins)
        self._squares += (brier_score(score, fraud) or 0.0) * len(score)

    def result(self) -> Calibration:
        """The figures of everything added so far."""
        total = int(self._rows.sum())
        bins = [
            CalibrationBin(
                float(EDGES[i]), float(EDGES[i + 1]), rows, float(self._score[i]) / rows if rows else None,
                int(self._frauds[i]) / rows if rows else None,
            )
            for i, rows in enumerate(self._rows.tolist())
        ]  # fmt: skip
        if not total:
            return Calibration(None, None, bins)
        error = float(np.abs(self._score - self._frauds).sum()) / total
        return Calibration(self._squares / total, error, bins)
