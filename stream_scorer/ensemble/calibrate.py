"""Calibrators: map a model's output to a calibrated probability. All are monotone and keep NaN.

A `CalibratorTable` packs several calibrators into arrays for the compiled loop of the combiner.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stream_scorer.compiled import njit
from stream_scorer.ensemble.links import clipped, logit_of, sigmoid_of
from stream_scorer.ensemble.manifest import Beta, Calibrator, Isotonic, Platt

NONE, PLATT, ISOTONIC, BETA = range(4)


class CalibratorTable:
    """Calibrators packed into arrays.

    Attributes:
        kinds: ``(m,) int64``.
        starts: ``(m + 1,) int64``, the start of each calibrator's parameters in `first` and `second`.
        first, second: slope and intercept (Platt); x and y of the knots (isotonic); a and b, then c and 0 (beta).
    """

    def __init__(self, calibrators: Sequence[Calibrator]) -> None:
        kinds, starts, first, second = [], [0], [], []
        for calibrator in calibrators:
            if isinstance(calibrator, Platt):
                kinds.append(PLATT)
                first.append(calibrator.slope)
                second.append(calibrator.intercept)
            elif isinstance(calibrator, Isotonic):
                kinds.append(ISOTONIC)
                first.extend(calibrator.x)
                second.extend(calibrator.y)
            elif isinstance(calibrator, Beta):
                kinds.append(BETA)
                first.extend([calibrator.a, calibrator.c])
                second.extend([calibrator.b, 0.0])
            else:
                kinds.append(NONE)
            starts.append(len(first))
        self.kinds = np.array(kinds, np.int64)
        self.starts = np.array(starts, np.int64)
        self.first = np.array(first, np.float64)
        self.second = np.array(second, np.float64)


def calibrate(probability: NDArray[np.float64], calibrator: Calibrator) -> NDArray[np.float64]:
    """Calibrated probabilities, ``(n,)`` from ``(n,)``."""
    table = CalibratorTable([calibrator])
    return _calibrate(
        np.ascontiguousarray(probability, np.float64), table.kinds, table.starts, table.first, table.second
    )


@njit(cache=True, nogil=True, fastmath=False)
def _calibrate(
    probability: NDArray[np.float64],
    kinds: NDArray[np.int64],
    starts: NDArray[np.int64],
    first: NDArray[np.float64],
    second: NDArray[np.float64],
) -> NDArray[np.float64]:  # pragma: no cover - compiled
    out = np.empty(probability.shape[0], np.float64)
    for i in range(probability.shape[0]):
        out[i] = calibrate_one(probability[i], kinds[0], starts[0], starts[1], first, second)
    return out


@njit(cache=True, nogil=True, fastmath=False)
def calibrate_one(
    p: float, kind: int, start: int, stop: int, first: NDArray[np.float64], second: NDArray[np.float64]
) -> float:  # pragma: no cover - compiled
    """Apply the calibrator with the parameters ``start:stop`` to one value."""
    if kind == PLATT:
        scaled: float = sigmoid_of(first[start] * logit_of(p) + second[start])
        return scaled
    if kind == BETA:
        p = clipped(p)
        bent: float = sigmoid_of(first[start] * math.log(p) - second[start] * math.log1p(-p) + first[start + 1])
        return bent
    if kind == ISOTONIC and not math.isnan(p):
        if p <= first[start]:
            return float(second[start])
        if p >= first[stop - 1]:
            return float(second[stop - 1])
        low, high = start, stop - 1
        while high - low > 1:
            middle = (low + high) // 2
            if first[middle] <= p:
                low = middle
            else:
                high = middle
        share = (p - first[low]) / (first[high] - first[low])
        y = second[low] + share * (second[high] - second[low])
        # Rounding must not exceed the upper knot, or the result would not be monotone.
        return float(min(y, second[high]))
    return p
