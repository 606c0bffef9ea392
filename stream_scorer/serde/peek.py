"""Event times of undecoded records: what orders a backlog before anything else looks at it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_scorer.records import NOT_A_RECORD


def times_of(field: str) -> Callable[[Sequence[bytes | None]], NDArray[np.int64]]:
    """A function from JSON values to their `field` (n,) int64; -1 where a value has none, or is no JSON."""
    decode: Callable[[bytes], Any] = msgspec.json.Decoder(
        msgspec.defstruct("Time", [("time", int)], rename={"time": field})
    ).decode

    def look(values: Sequence[bytes | None]) -> NDArray[np.int64]:
        times = np.full(len(values), -1, dtype=np.int64)
        for row, value in enumerate(values):
            try:
                times[row] = min(decode(value or b"").time, _LATEST)
            except NOT_A_RECORD:
                continue
        return times

    return look


# A record that claims more is refused later; here it must only fit.
_LATEST = (1 << 62) - 1
