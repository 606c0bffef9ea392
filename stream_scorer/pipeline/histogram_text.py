"""The histograms of a pane as JSON text, written from the counts in one compiled pass.

As lists of Python integers they would be most of the objects of a micro-batch: 40 series of about 30 numbers each, for
every source partition and pane.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_scorer.compiled import njit

_NEWLINE, _COMMA, _OPEN, _CLOSE, _END = (ord(letter) for letter in "\n,[]}")
_ZERO = ord("0")
# A bin and a count with their commas: two integers of at most 19 digits.
_MAX_PAIR_BYTES = 40


class HistogramText:
    """Writes an object of named histograms for each list of names, none empty, and a last histogram without a name."""

    def __init__(self, *names: Sequence[str]) -> None:
        heads, last = [], []
        for group in names:
            for place, name in enumerate(group):
                heads.append(b"%s%s:" % (b"," if place else b"{", msgspec.json.encode(name)))
                last.append(place == len(group) - 1)
        self._bounds = np.cumsum([0, *map(len, heads), 0])
        self._heads = np.frombuffer(b"".join(heads), np.uint8)
        self._last = np.array([*last, False])
        self._objects = len(names)

    def encode(self, counts: NDArray[np.int64]) -> list[list[msgspec.Raw]]:
        """For each of g groups the objects, then the last histogram.

        `counts` is (g, k, bins), series in the order of the names. A histogram is ``[bin, count, bin, count, ...]`` of
        the bins above 0.
        """
        if not len(counts):
            return []
        size = np.count_nonzero(counts) * _MAX_PAIR_BYTES + len(counts) * (len(self._heads) + 4 * len(self._last))
        out = np.empty(size, np.uint8)
        stop = _write(counts, self._heads, self._bounds, self._last, out)
        texts = list(map(msgspec.Raw, out[:stop].tobytes().split(b"\n")))
        width = self._objects + 1
        return [texts[at : at + width] for at in range(0, len(counts) * width, width)]


def warm() -> None:
    """Compile the loop, or load it from its cache, before the first batch has to wait for it."""
    HistogramText(["a"]).encode(np.ones((1, 2, 1), np.int64))


@njit(cache=True, nogil=True)
def _digits(out, at, value):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Write an integer of 0 or more; the place after it."""
    length, rest = 1, value
    while rest >= 10:
        rest //= 10
        length += 1
    for place in range(at + length - 1, at - 1, -1):
        out[place] = _ZERO + value % 10
        value //= 10
    return at + length


@njit(cache=True, nogil=True)
def _write(counts, heads, bounds, last, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Write all texts to `out`, each followed by a newline; the end of the last."""
    at = 0
    for group in range(counts.shape[0]):
        for series in range(counts.shape[1]):
            for place in range(bounds[series], bounds[series + 1]):
                out[at] = heads[place]
                at += 1
            out[at] = _OPEN
            at += 1
            start = at
            for cell in range(counts.shape[2]):
                if counts[group, series, cell] > 0:
                    if at > start:
                        out[at] = _COMMA
                        at += 1
                    at = _digits(out, at, cell)
                    out[at] = _COMMA
                    at = _digits(out, at + 1, counts[group, series, cell])
            out[at] = _CLOSE
            at += 1
            if last[series]:
                out[at], out[at + 1] = _END, _NEWLINE
                at += 2
        out[at] = _NEWLINE
        at += 1
    return at
