"""The finaliser of the generator splitmix64: mixes the bits of a 64-bit number.

Source: Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014.
"""

from __future__ import annotations

import numpy as np

from stream_scorer.compiled import njit

# The increment of the generator: 2^64 divided by the golden ratio.
STEP = 0x9E3779B97F4A7C15


@njit(cache=True, nogil=True)
def finalise(x):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Mix the bits of `x`, uint64, one to one."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
