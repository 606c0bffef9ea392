"""Links: map a calibrated score to the scale on which members are combined, one value at a time.

numpy's vectorised `exp` and `log` may take another code path for the tail of an array than for its body. These loops
give a value the same bits at every position, which makes a replay independent of the batch size.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from stream_scorer.compiled import njit

# A probability of 0 or 1 has no logit. 1e-6 is below any rate that a fraud model can estimate.
EPSILON = 1e-6


@njit(cache=True, nogil=True, fastmath=False, inline="always")
def sigmoid_of(x: float) -> float:  # pragma: no cover - compiled
    """1 / (1 + exp(-x)), without overflow."""
    if x >= 0.0:
        return 1.0 / (1.0 + math.exp(-x))
    e = math.exp(x)
    return e / (1.0 + e)


@njit(cache=True, nogil=True, fastmath=False, inline="always")
def clipped(p: float) -> float:  # pragma: no cover - compiled
    """p within [EPSILON, 1 - EPSILON]. NaN stays NaN."""
    if p < EPSILON:
        p = EPSILON
    elif p > 1.0 - EPSILON:
        p = 1.0 - EPSILON
    return p


@njit(cache=True, nogil=True, fastmath=False, inline="always")
def logit_of(p: float) -> float:  # pragma: no cover - compiled
    """log(p / (1 - p)) with p clipped to [EPSILON, 1 - EPSILON]. NaN stays NaN."""
    p = clipped(p)
    return math.log(p / (1.0 - p))


@njit(cache=True, nogil=True, fastmath=False)
def rank_of(p: float, ordered: NDArray[np.float64], first: int, end: int) -> float:  # pragma: no cover - compiled
    """The share of the ascending ``ordered[first:end]`` below p; equal values count half. NaN stays NaN."""
    if math.isnan(p):
        return p
    # Two binary searches: numba takes 2 s to compile `np.searchsorted`, which also orders NaN and complex numbers.
    below, high = first, end
    while below < high:
        middle = (below + high) // 2
        if ordered[middle] < p:
            below = middle + 1
        else:
            high = middle
    upto, high = below, end
    while upto < high:
        middle = (upto + high) // 2
        if ordered[middle] <= p:
            upto = middle + 1
        else:
            high = middle
    return 0.5 * ((below - first) + (upto - first)) / (end - first)


@njit(cache=True, nogil=True, fastmath=False)
def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:  # pragma: no cover - compiled
    """Element by element over ``(n,)``."""
    out = np.empty(x.shape[0], np.float64)
    for i in range(x.shape[0]):
        out[i] = sigmoid_of(x[i])
    return out


@njit(cache=True, nogil=True, fastmath=False)
def logit(p: NDArray[np.float64]) -> NDArray[np.float64]:  # pragma: no cover - compiled
    """Element by element over ``(n,)``, clipped as `logit_of`."""
    out = np.empty(p.shape[0], np.float64)
    for i in range(p.shape[0]):
        out[i] = logit_of(p[i])
    return out
