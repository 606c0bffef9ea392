"""Folding: the old entries of a long row become panes, exactly as the kernel would have counted them (ADR 0011)."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from stream_scorer.features.plan import EntityPlan
from stream_scorer.state.row_format import NEVER, unpack
from stream_scorer.state.rows import Compaction

I64 = NDArray[np.int64]


@njit(cache=True, nogil=True)
def longest_unfolded(limit: int) -> int:
    """How many entries a row holds one by one before it is folded, the labels it kept when last folded not counted."""
    return limit + limit // 4


@njit(cache=True, nogil=True)
def too_long(entries: I64, start: I64, end: I64, limit: int) -> I64:
    """(j,) int64: which of the rows ``entries[start:end]`` (k of them) should be folded."""
    found = np.empty(start.shape[0], dtype=np.int64)
    count = 0
    for row in range(start.shape[0]):
        length = end[row] - start[row]
        if length > longest_unfolded(limit) and entries[start[row], 3] == -1:
            held = entries[start[row], 1]
            length -= 1 + (held & 0xFFFFFFFF) + (held >> 32)
        if length > longest_unfolded(limit):
            found[count] = row
            count += 1
    return found[:count]


def fold(row: bytes, entity: EntityPlan, limit: int, past_ms: int) -> Compaction:
    """What to put in the place of a stored `row`.

    Args:
        limit: how many transactions, and how many labels, stay entry by entry.
        past_ms: event time before which nobody will look any more, at a window of no length.
    """
    return Compaction(row, folded(unpack(row), entity, limit, past_ms).tobytes())


def folded(entries: I64, entity: EntityPlan, limit: int, past_ms: int) -> I64:
    """`entries` (k, 4) of a row with all but the newest `limit` transactions and labels in panes: (j, 4)."""
    return _folded(entries, limit, entity.pane_ms, past_ms - entity.cover_ms)


def warm() -> None:
    """Compile, or load from the cache."""
    none = np.zeros(0, dtype=np.int64)
    _folded(none.reshape(0, 4), 1, none, none)
    too_long(none.reshape(0, 4), none, none, 1)


@njit(cache=True, nogil=True)
def _folded(entries: I64, limit: int, pane_ms: I64, edge: I64) -> I64:
    """`edge`: (l,) int64, panes of a level that begin at or before it are dropped."""
    k = entries.shape[0]
    old = np.zeros(k, dtype=np.bool_)
    left, labels_left, olds, labels, panes = limit, limit, 0, 0, 0
    for e in range(k - 1, -1, -1):
        kind = entries[e, 3]
        if kind == 0:
            old[e] = left <= 0
            left -= 1
        elif kind > 0:
            old[e] = labels_left <= 0
            labels_left -= 1
            labels += not old[e]
        else:
            panes += 1
        olds += old[e]
    out = np.empty((1 + panes + olds * pane_ms.shape[0] + k, 4), dtype=np.int64)
    end = 1
    for level in range(pane_ms.shape[0]):
        width = pane_ms[level]
        for of_labels in range(2):
            code = 2 * level + of_labels
            first = end
            # A row's panes of one kind stand in the order of their time.
            for e in range(panes):
                if (-2 - entries[e, 3]) & 255 == code and entries[e, 3] < -1 and entries[e, 0] > edge[level]:
                    out[end] = entries[e]
                    end += 1
            for e in range(panes, k):
                if not old[e] or (entries[e, 3] > 0) != (of_labels == 1):
                    continue
                begin = entries[e, 0] // width * width
                if begin <= edge[level]:
                    continue
                place = end
                while place > first and out[place - 1, 0] > begin:
                    place -= 1
                kind = -2 - code - ((entries[e, 0] - begin) << 8)
                if place > first and out[place - 1, 0] == begin:
                    out[place - 1, 1] += entries[e, 1]
                    out[place - 1, 2] += 1
                    out[place - 1, 3] = min(out[place - 1, 3], kind)
                    continue
                for after in range(end, place, -1):
                    out[after] = out[after - 1]
                out[place, 0], out[place, 1], out[place, 2], out[place, 3] = begin, entries[e, 1], 1, kind
                end += 1
    seen = entries[0, 2] if k > 0 and entries[0, 3] == -1 else 0
    out[0, 0], out[0, 1], out[0, 2], out[0, 3] = NEVER, (end - 1) + (labels << 32), seen + olds, -1
    for e in range(k):
        if entries[e, 3] >= 0 and not old[e]:
            out[end] = entries[e]
            end += 1
    return out[:end]
