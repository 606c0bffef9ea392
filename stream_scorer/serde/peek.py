"""Reads the event times of records before they are decoded, to order a backlog."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_scorer.records import NOT_A_RECORD


def times_of(field: str) -> Callable[[Sequence[bytes | None]], NDArray[np.int64]]:
    """A function from n JSON values to their `field`, (n,) int64; -1 if it is missing or negative, or no JSON."""
    decode: Callable[[bytes], Any] = msgspec.json.Decoder(
        msgspec.defstruct("Time", [("time", int)], rename={"time": field})
    ).decode

    def read_times(values: Sequence[bytes | None]) -> NDArray[np.int64]:
        times = np.full(len(values), -1, dtype=np.int64)
        for row, value in enumerate(values):
            try:
                times[row] = max(min(decode(value or b"").time, _LATEST), -1)
            except NOT_A_RECORD:
                continue
        return times

    return read_times


# The decoder refuses larger and negative times later; here a value of any number of digits must only fit into int64.
_LATEST = (1 << 62) - 1
