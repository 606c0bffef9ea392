"""Prediction in blocks of a fixed size, because the last bits of matrix libraries depend on the shape."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

ROWS = 64


def in_blocks(
    predict: Callable[[NDArray[np.float64]], NDArray[np.float64]], inputs: NDArray[np.float64]
) -> NDArray[np.float64]:
    """``(n,)``: `predict` of ``(n, k)`` inputs, `ROWS` at a time, the last block padded with zeros."""
    out = np.empty(len(inputs), np.float64)
    for low in range(0, len(inputs), ROWS):
        block = inputs[low : low + ROWS]
        n = len(block)
        if n < ROWS:
            block = np.concatenate([block, np.zeros((ROWS - n, inputs.shape[1]))])
        out[low : low + n] = predict(block)[:n]
    return out
