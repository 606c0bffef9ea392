"""Which outputs of a member are probabilities."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from stream_scorer.compiled import njit

# Libraries that compute in float32 leave [0, 1] by up to 1e-7: LightGBM's forests of pure leaves, forests in ONNX.
ROUNDING = 1e-6


@njit(cache=True, nogil=True, fastmath=False)
def keep_probabilities(output: NDArray[np.float64]) -> int:  # pragma: no cover - compiled
    """Turn what is less than `ROUNDING` outside [0, 1] in `output` ``(n,)`` into 0 or 1, the rest outside into NaN.

    Returns:
        How many rows are NaN.
    """
    missing = 0
    for row in range(output.shape[0]):
        if 0.0 <= output[row] <= 1.0:
            continue
        if -ROUNDING < output[row] < 0.0:
            output[row] = 0.0
        elif 1.0 < output[row] < 1.0 + ROUNDING:
            output[row] = 1.0
        else:
            output[row] = math.nan
            missing += 1
    return missing
