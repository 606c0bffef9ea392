"""From the shared feature matrix to one member's inputs: pick columns, impute, clip, shift and scale."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stream_scorer.compiled import njit
from stream_scorer.ensemble.manifest import Input


class Preprocess:
    """Prepares a member's `inputs` from the columns of a matrix with the feature names `features`."""

    def __init__(self, features: Sequence[str], inputs: Sequence[str], preprocess: Sequence[Input]) -> None:
        place = {name: index for index, name in enumerate(features)}
        self._columns = np.array([place[name] for name in inputs], np.int64)
        # One row per input: impute (NaN: keep missing), low, high, offset, scale.
        self._table = np.array(
            [
                (
                    math.nan if entry.impute is None else entry.impute,
                    -math.inf if entry.low is None else entry.low,
                    math.inf if entry.high is None else entry.high,
                    entry.offset,
                    entry.scale,
                )
                for entry in preprocess
            ],
            np.float64,
        )

    def apply(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """``(n, n_inputs)`` C-contiguous float64 from ``(n, n_features)``; see `Input` for the order of steps."""
        return _apply(features, self._columns, self._table)


@njit(cache=True, nogil=True, fastmath=False)
def _apply(
    features: NDArray[np.float64], columns: NDArray[np.int64], table: NDArray[np.float64]
) -> NDArray[np.float64]:  # pragma: no cover - compiled
    rows, width = features.shape[0], columns.shape[0]
    out = np.empty((rows, width), np.float64)
    for row in range(rows):
        for j in range(width):
            x = features[row, columns[j]]
            if math.isnan(x):
                x = table[j, 0]
            # With x as the first argument, both calls keep NaN.
            x = min(max(x, table[j, 1]), table[j, 2])
            out[row, j] = (x - table[j, 3]) / table[j, 4]
    return out
