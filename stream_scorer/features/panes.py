"""Folding: the old entries of a long row become panes, exactly as the kernel would have counted them (ADR 0011)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_scorer.features.plan import EntityPlan
from stream_scorer.features.rows import ENTRY_BYTES, HASH, KIND, NEVER, TIME, VALUE, unpack
from stream_scorer.state.rows import Fold

I64 = NDArray[np.int64]


def longest_unfolded(limit: int) -> int:
    """How many transactions, or labels, a row holds entry by entry before it is folded."""
    return limit + limit // 2


def fold(row: bytes, entity: EntityPlan, limit: int, past_ms: int) -> Fold | None:
    """What to put in the place of `row`; None if it is short enough.

    Args:
        row: as stored. limit: how many transactions, and how many labels, stay entry by entry.
        past_ms: event time before which nobody will look any more, at a window of no length.
    """
    if len(row) <= longest_unfolded(limit) * ENTRY_BYTES:
        return None
    entries = unpack(row)
    kind = entries[:, KIND]
    transactions, labels = np.flatnonzero(kind == 0), np.flatnonzero(kind > 0)
    if max(len(transactions), len(labels)) <= longest_unfolded(limit):
        return None
    return Fold(row, folded(entries, entity, limit, past_ms).astype("<i8").tobytes())


def folded(entries: I64, entity: EntityPlan, limit: int, past_ms: int) -> I64:
    """`entries` (k, 4) of a row with all but the newest `limit` transactions and labels in panes: (j, 4)."""
    kind = entries[:, KIND]
    old = np.zeros(len(entries), dtype=np.bool_)
    for mine in (np.flatnonzero(kind == 0), np.flatnonzero(kind > 0)):
        old[mine[: max(len(mine) - limit, 0)]] = True
    before = entries[kind < -1]
    panes = []
    for level, width in enumerate(entity.pane_ms.tolist()):
        for code, which in ((-2 - 2 * level, kind == 0), (-3 - 2 * level, kind > 0)):
            mine = entries[old & which]
            begin = np.concatenate([before[before[:, KIND] == code, TIME], mine[:, TIME] // width * width])
            value = np.concatenate([before[before[:, KIND] == code, VALUE], mine[:, VALUE]])
            number = np.concatenate([before[before[:, KIND] == code, HASH], np.ones(len(mine), dtype=np.int64)])
            young = begin > past_ms - entity.cover_ms[level]
            starts, place = np.unique(begin[young], return_inverse=True)
            made = np.zeros((len(starts), 4), dtype=np.int64)
            made[:, TIME], made[:, KIND] = starts, code
            np.add.at(made[:, VALUE], place, value[young])
            np.add.at(made[:, HASH], place, number[young])
            panes.append(made)
    held = np.concatenate(panes)
    seen = int(entries[0, HASH]) if len(entries) and kind[0] == -1 else 0
    header = np.array([[NEVER, len(held), seen + int(old.sum()), -1]], dtype=np.int64)
    return np.concatenate([header, held, entries[(kind >= 0) & ~old]])
