"""The recent windows of a drift detector, as arrays: a ring with one slot per pane of the last four weeks and a bit.

S is the number of series, B the largest number of bins, R the number of references (see `REFERENCES`).
"""

from __future__ import annotations

import io
import zlib

import numpy as np
from numpy.typing import NDArray

from stream_scorer.arrays import Floats, Ints
from stream_scorer.monitor.drift_types import DAY_MS, WEEK_MS

WEEKS = 4
# References: each of the last four weeks, and all of them together.
REFERENCES = WEEKS + 1
_ARRAYS = ("pane", "rows", "counts", "divergence", "noise", "ratio", "log_e", "masked", "surge")


class History:
    """One slot per pane. `slot(pane)` is where a pane is or would be; `holds(pane)` whether it is there.

    Attributes:
        pane: (T,) int64, number of the pane (start / length) in each slot, -1 if empty.
        rows: (T,) int64, transactions.
        counts: (T, S, B) int32.
        divergence, noise: (T, R, S), NaN where there was no reference.
        ratio: (T, S), smallest ratio of a divergence to its usual size; NaN where there is none.
        log_e: (T,), logarithm of the e-value of the window; NaN while learning.
        masked: (T, S) bool, whether the window is no reference of a series, because it belongs to an event.
        surge: (T, L), see `DriftDetector`; NaN where unknown.
    """

    def __init__(self, pane_ms: int, series: int, bins: int, levels: int) -> None:
        self.per_day = max(DAY_MS // pane_ms, 1)
        self.per_week = max(WEEK_MS // pane_ms, 1)
        size = WEEKS * self.per_week + self.per_day
        self.size = size
        self.pane: Ints = np.full(size, -1, dtype=np.int64)
        self.rows: Ints = np.zeros(size, dtype=np.int64)
        self.counts: NDArray[np.int32] = np.zeros((size, series, bins), dtype=np.int32)
        # Half the memory of float64, and more digits than the counts support.
        self.divergence = np.full((size, REFERENCES, series), np.nan, dtype=np.float32)
        self.noise = np.full((size, REFERENCES, series), np.nan, dtype=np.float32)
        self.ratio: Floats = np.full((size, series), np.nan)
        self.log_e: Floats = np.full(size, np.nan)
        self.masked = np.zeros((size, series), dtype=np.bool_)
        self.surge: Floats = np.full((size, levels), np.nan)

    def slot(self, pane: int) -> int:
        """The slot of a pane."""
        return pane % self.size

    def holds(self, pane: int) -> bool:
        """Whether the window of this pane is in the history."""
        return bool(self.pane[self.slot(pane)] == pane)

    def slots(self, first: int, stop: int) -> NDArray[np.intp]:
        """The slots of the panes in ``[first, stop)`` that are in the history, oldest first."""
        panes = np.arange(max(first, stop - self.size), stop)
        slots: NDArray[np.intp] = panes % self.size
        held: NDArray[np.intp] = slots[self.pane[slots] == panes]
        return held

    def begin(self, pane: int) -> int:
        """Empty the slot of a new pane and return it. What was in it is older than the ring."""
        slot = self.slot(pane)
        self.pane[slot] = pane
        self.counts[slot] = 0
        self.divergence[slot] = np.nan
        self.noise[slot] = np.nan
        self.ratio[slot] = np.nan
        self.log_e[slot] = np.nan
        self.masked[slot] = False
        self.surge[slot] = np.nan
        return slot

    def dump(self) -> bytes:
        """All arrays, compressed."""
        file = io.BytesIO()
        np.savez(file, **{name: getattr(self, name) for name in _ARRAYS})
        # The fastest level: a third of the time of the default, and a tenth more bytes.
        return zlib.compress(file.getvalue(), 1)

    def load(self, data: bytes) -> None:
        """The arrays that `dump` wrote. Raises `ValueError` if their shapes are others."""
        with np.load(io.BytesIO(zlib.decompress(data)), allow_pickle=False) as found:
            for name in _ARRAYS:
                array = found[name]
                if array.shape != getattr(self, name).shape:
                    raise ValueError(f"the history has {name} of shape {array.shape}")
                setattr(self, name, array)
