"""The kernel: sliding event-time windows over entity rows, one pass a micro-batch and entity, in numba.

`stream_scorer.features.reference` is the same in plain numpy; tests hold one to the other bit for bit.

What event e sees, for one entity: the stored row in log order, then the batch's earlier transactions of the same
entity; of these, the ones whose event time is not after e's; then e itself where a window includes it. Duplicates of an
earlier event id add nothing. The newest `limit` transactions and the newest `limit` labels count exactly, older ones by
their panes, whether or not they were folded (ADR 0011).
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

I64 = NDArray[np.int64]
# Where deviations are split before they are squared: each part's square has 48 bits, and room for 2^13 of them.
SPLIT = 1 << 24


@njit(cache=True, nogil=True)
def find_duplicates(entries: I64, start: I64, end: I64, key_of: I64, id_hash: I64, limit: int) -> NDArray[np.bool_]:
    """(n,) bool: whether an earlier transaction of the same entity carries the same event id.

    Args:
        entries: (total, 4) int64, the rows of all entities of the batch one after another.
        start, end: (k,) int64, where each entity's entries lie. key_of: (n,) int64 entity of each event, -1 for none.
        id_hash: (n,) int64. limit: how many entries, newest first, are looked at.
    """
    n = key_of.shape[0]
    duplicate = np.zeros(n, dtype=np.bool_)
    newest = np.full(start.shape[0], -1, dtype=np.int64)
    previous = np.full(n, -1, dtype=np.int64)
    for i in range(n):
        key = key_of[i]
        if key < 0:
            continue
        left = limit
        j = newest[key]
        while j >= 0 and left > 0 and not duplicate[i]:
            duplicate[i] = id_hash[j] == id_hash[i]
            left -= 1
            j = previous[j]
        low = max(start[key], end[key] - left)
        for e in range(end[key] - 1, low - 1, -1):
            if duplicate[i]:
                break
            duplicate[i] = entries[e, 3] == 0 and entries[e, 2] == id_hash[i]
        if not duplicate[i]:
            previous[i] = newest[key]
            newest[key] = i
    return duplicate


@njit(cache=True, nogil=True)
def scan_windows(
    entries: I64,
    start: I64,
    end: I64,
    key_of: I64,
    time: I64,
    value: I64,
    duplicate: NDArray[np.bool_],
    window_ms: I64,
    delay_ms: I64,
    include_current: NDArray[np.bool_],
    horizon_ms: int,
    limit: int,
    level_of: I64,
    pane_ms: I64,
    last_level: int,
) -> tuple[I64, I64, I64, I64]:
    """Accumulate every window of one entity for every event of the batch.

    Args:
        time, value: (n,) int64 of the batch's events, in batch order. window_ms, delay_ms, include_current: (m,).
        limit: how many transactions, and how many labels, newest first, count exactly.
        level_of: (m,) int64, each window's level of panes. pane_ms: (l,) int64, the width of each level's panes.
        last_level: the level that tells `last` of old entries. Others as in `find_duplicates`.

    Returns:
        count, total, fraud: (n, m) int64; last: (n,) int64, event time of the latest earlier visible event within the
        horizon (of old entries: the start of its pane), -1 if there is none.
    """
    n = key_of.shape[0]
    m = window_ms.shape[0]
    count = np.zeros((n, m), dtype=np.int64)
    total = np.zeros((n, m), dtype=np.int64)
    fraud = np.zeros((n, m), dtype=np.int64)
    last = np.full(n, -1, dtype=np.int64)
    newest = np.full(start.shape[0], -1, dtype=np.int64)
    previous = np.full(n, -1, dtype=np.int64)
    for i in range(n):
        key = key_of[i]
        if key < 0:
            continue
        t = time[i]
        left, labels_left = limit, limit
        j = newest[key]
        while j >= 0:
            when = time[j]
            if t - horizon_ms < when <= t:
                if left > 0:
                    last[i] = max(last[i], when)
                    for w in range(m):
                        high = t - delay_ms[w]
                        if high - window_ms[w] < when <= high:
                            count[i, w] += 1
                            total[i, w] += value[j]
                else:
                    last[i] = max(last[i], _last_in_pane(when, t, horizon_ms, pane_ms[last_level]))
                    for w in range(m):
                        if _pane_inside(when, t - delay_ms[w], window_ms[w], pane_ms[level_of[w]]):
                            count[i, w] += 1
                            total[i, w] += value[j]
            left -= 1
            j = previous[j]
        for e in range(end[key] - 1, start[key] - 1, -1):
            when = entries[e, 0]
            kind = entries[e, 3]
            exact = True
            if kind == 0:
                exact = left > 0
                left -= 1
            elif kind > 0:
                exact = labels_left > 0
                labels_left -= 1
            if when > t or when <= t - horizon_ms:
                continue
            if kind == 0 and exact:
                last[i] = max(last[i], when)
                for w in range(m):
                    high = t - delay_ms[w]
                    if high - window_ms[w] < when <= high:
                        count[i, w] += 1
                        total[i, w] += entries[e, 1]
            elif kind > 0 and exact:
                if kind <= t:
                    for w in range(m):
                        high = t - delay_ms[w]
                        if high - window_ms[w] < when <= high:
                            fraud[i, w] += entries[e, 1]
            elif kind == 0:
                last[i] = max(last[i], _last_in_pane(when, t, horizon_ms, pane_ms[last_level]))
                for w in range(m):
                    if _pane_inside(when, t - delay_ms[w], window_ms[w], pane_ms[level_of[w]]):
                        count[i, w] += 1
                        total[i, w] += entries[e, 1]
            elif kind > 0:
                for w in range(m):
                    if _pane_inside(when, t - delay_ms[w], window_ms[w], pane_ms[level_of[w]]):
                        fraud[i, w] += entries[e, 1]
            elif kind < -1:
                level = (-2 - kind) // 2
                for w in range(m):
                    if level_of[w] == level and _pane_inside(when, t - delay_ms[w], window_ms[w], pane_ms[level]):
                        if kind % 2 == 0:
                            count[i, w] += entries[e, 2]
                            total[i, w] += entries[e, 1]
                        else:
                            fraud[i, w] += entries[e, 1]
                if level == last_level and kind % 2 == 0:
                    last[i] = max(last[i], _last_in_pane(when, t, horizon_ms, pane_ms[level]))
        if not duplicate[i]:
            for w in range(m):
                if include_current[w] and delay_ms[w] == 0:
                    count[i, w] += 1
                    total[i, w] += value[i]
            previous[i] = newest[key]
            newest[key] = i
    return count, total, fraud, last


@njit(cache=True, nogil=True, inline="always")
def _pane_inside(when: int, high: int, window_ms: int, pane_ms: int) -> bool:
    """Whether the pane of `when` lies wholly in ``(high - window_ms, high]``."""
    begin = when // pane_ms * pane_ms
    return high - window_ms < begin and begin + pane_ms - 1 <= high


@njit(cache=True, nogil=True, inline="always")
def _last_in_pane(when: int, t: int, horizon_ms: int, pane_ms: int) -> int:
    """The start of the pane of `when` if the pane lies between the horizon and `t`, else -1."""
    begin = when // pane_ms * pane_ms
    return begin if t - horizon_ms < begin and begin + pane_ms - 1 <= t else -1


@njit(cache=True, nogil=True)
def scan_spread(
    entries: I64,
    start: I64,
    end: I64,
    key_of: I64,
    time: I64,
    value: I64,
    duplicate: NDArray[np.bool_],
    window_ms: I64,
    delay_ms: I64,
    include_current: NDArray[np.bool_],
    horizon_ms: int,
    limit: int,
) -> tuple[I64, I64, I64, NDArray[np.float64]]:
    """Least and greatest value, and sum of squared deviations, of the newest `limit` transactions in every window.

    Deviations are taken from the mean rounded down, split at `SPLIT` and summed as integers, so that the result does
    not depend on the order of the entries. Exact while they stay below 2^48 (and `limit` at most 2^13).

    Args:
        As `scan_windows`.

    Returns:
        seen: (n, m) int64, how many they are. least, greatest: (n, m) int64, of no meaning where `seen` is 0;
        squares: (n, m) float64, the sum of ``(value - mean)**2``.
    """
    n = key_of.shape[0]
    m = window_ms.shape[0]
    seen = np.zeros((n, m), dtype=np.int64)
    least = np.full((n, m), np.iinfo(np.int64).max, dtype=np.int64)
    greatest = np.full((n, m), np.iinfo(np.int64).min, dtype=np.int64)
    squares = np.zeros((n, m), dtype=np.float64)
    newest = np.full(start.shape[0], -1, dtype=np.int64)
    previous = np.full(n, -1, dtype=np.int64)
    held_time = np.empty(limit + 1, dtype=np.int64)
    held_value = np.empty(limit + 1, dtype=np.int64)
    parts = np.zeros(3, dtype=np.int64)
    for i in range(n):
        key = key_of[i]
        if key < 0:
            continue
        t = time[i]
        held, left = 0, limit
        j = newest[key]
        while j >= 0 and left > 0:
            left -= 1
            if t - horizon_ms < time[j] <= t:
                held_time[held], held_value[held] = time[j], value[j]
                held += 1
            j = previous[j]
        e = end[key] - 1
        while e >= start[key] and left > 0:
            if entries[e, 3] == 0:
                left -= 1
                if t - horizon_ms < entries[e, 0] <= t:
                    held_time[held], held_value[held] = entries[e, 0], entries[e, 1]
                    held += 1
            e -= 1
        for w in range(m):
            high = t - delay_ms[w]
            low = high - window_ms[w]
            # The event itself stands behind what it sees, where the window includes it.
            total = 0
            itself = include_current[w] and delay_ms[w] == 0 and not duplicate[i]
            if itself:
                held_time[held], held_value[held] = t, value[i]
            for h in range(held + itself):
                if low < held_time[h] <= high:
                    seen[i, w] += 1
                    total += held_value[h]
                    least[i, w] = min(least[i, w], held_value[h])
                    greatest[i, w] = max(greatest[i, w], held_value[h])
            if seen[i, w] == 0:
                continue
            mean = total // seen[i, w]
            parts[:] = 0
            for h in range(held + itself):
                if low < held_time[h] <= high:
                    _add_square(parts, held_value[h] - mean)
            # What rounding the mean down has left out: less than 1 an entry.
            rest = float(total % seen[i, w])
            whole = parts[0] * float(SPLIT) * SPLIT + parts[1] * 2.0 * SPLIT + parts[2]
            squares[i, w] = max(whole - rest * rest / seen[i, w], 0.0)
        if not duplicate[i]:
            previous[i] = newest[key]
            newest[key] = i
    return seen, least, greatest, squares


@njit(cache=True, nogil=True)
def _add_square(parts: I64, deviation: int) -> None:
    # Of the magnitude: the parts of a negative number would cancel when they are put together again.
    high, low = abs(deviation) // SPLIT, abs(deviation) % SPLIT
    parts[0] += high * high
    parts[1] += high * low
    parts[2] += low * low


@njit(cache=True, nogil=True)
def label_changes(
    entries: I64,
    start: I64,
    end: I64,
    key_of: I64,
    id_hash: I64,
    fraud: NDArray[np.bool_],
    labelled_at: I64,
    limit: int,
) -> tuple[I64, I64]:
    """By how much each label, in order, changes its transaction's fraud count, and from when on.

    Args:
        labelled_at: (n,) int64, when each label was given, ms. limit: how many label changes of the entity, newest
            first, are remembered. Others as in `find_duplicates`.

    Returns:
        change: (n,) int64, -1, 0 or 1. since: (n,) int64, at least 1: when it was given, but not before the label that
        it changes, or the change would count before what it takes back.
    """
    n = key_of.shape[0]
    change = np.zeros(n, dtype=np.int64)
    since = np.maximum(labelled_at, 1)
    for i in range(n):
        key = key_of[i]
        if key < 0:
            continue
        known, left = 0, limit
        for j in range(i - 1, -1, -1):
            if key_of[j] == key and change[j] != 0 and left > 0:
                left -= 1
                if id_hash[j] == id_hash[i]:
                    known += change[j]
                    since[i] = max(since[i], since[j])
        for e in range(end[key] - 1, start[key] - 1, -1):
            if entries[e, 3] > 0 and left > 0:
                left -= 1
                if entries[e, 2] == id_hash[i]:
                    known += entries[e, 1]
                    since[i] = max(since[i], entries[e, 3])
        change[i] = (1 if fraud[i] else 0) - known
    return change, since
