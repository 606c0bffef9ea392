"""The kernel: sliding event-time windows over entity rows, one pass a micro-batch and entity, in numba.

`stream_scorer.features.reference` is the same in plain numpy; tests hold one to the other bit for bit.

What event e sees, for one entity: the last `limit` entries in log order among the stored row, then the batch's
earlier transactions of the same entity; of these, the ones whose event time is not after e's; then e itself where a
window includes it. Duplicates of an earlier event id add nothing.
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
) -> tuple[I64, I64, I64, I64]:
    """Accumulate every window of one entity for every event of the batch.

    Args:
        time, value: (n,) int64 of the batch's events, in batch order. window_ms, delay_ms, include_current: (m,).
        Others as in `find_duplicates`.

    Returns:
        count, total, fraud: (n, m) int64; last: (n,) int64, event time of the latest earlier visible event within the
        horizon, -1 if there is none.
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
        left = limit
        j = newest[key]
        while j >= 0 and left > 0:
            left -= 1
            if time[j] <= t and time[j] > t - horizon_ms:
                last[i] = max(last[i], time[j])
                for w in range(m):
                    newest_seen = t - delay_ms[w]
                    if newest_seen - window_ms[w] < time[j] <= newest_seen:
                        count[i, w] += 1
                        total[i, w] += value[j]
            j = previous[j]
        low = max(start[key], end[key] - left)
        for e in range(low, end[key]):
            when = entries[e, 0]
            if when > t or when <= t - horizon_ms:
                continue
            kind = entries[e, 3]
            if kind == 0:
                last[i] = max(last[i], when)
                for w in range(m):
                    newest_seen = t - delay_ms[w]
                    if newest_seen - window_ms[w] < when <= newest_seen:
                        count[i, w] += 1
                        total[i, w] += entries[e, 1]
            elif kind <= t:
                for w in range(m):
                    newest_seen = t - delay_ms[w]
                    if newest_seen - window_ms[w] < when <= newest_seen:
                        fraud[i, w] += entries[e, 1]
        if not duplicate[i]:
            for w in range(m):
                if include_current[w] and delay_ms[w] == 0:
                    count[i, w] += 1
                    total[i, w] += value[i]
            previous[i] = newest[key]
            newest[key] = i
    return count, total, fraud, last


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
    count: I64,
    total: I64,
) -> tuple[I64, I64, NDArray[np.float64]]:
    """Least and greatest value, and sum of squared deviations, of what `scan_windows` counted.

    Deviations are taken from the mean rounded down, split at `SPLIT` and summed as integers, so that the result does
    not depend on the order of the entries. Exact while they stay below 2^48 (and a row below 2^13 entries).

    Args:
        count, total: (n, m) int64, as `scan_windows` answered for the same arguments. Others as there.

    Returns:
        least, greatest: (n, m) int64, of no meaning where `count` is 0; squares: (n, m) float64, the sum of
        ``(value - mean)**2``.
    """
    n = key_of.shape[0]
    m = window_ms.shape[0]
    least = np.full((n, m), np.iinfo(np.int64).max, dtype=np.int64)
    greatest = np.full((n, m), np.iinfo(np.int64).min, dtype=np.int64)
    squares = np.zeros((n, m), dtype=np.float64)
    newest = np.full(start.shape[0], -1, dtype=np.int64)
    previous = np.full(n, -1, dtype=np.int64)
    parts = np.zeros((m, 3), dtype=np.int64)
    for i in range(n):
        key = key_of[i]
        if key < 0:
            continue
        t = time[i]
        parts[:] = 0
        left = limit
        j = newest[key]
        while j >= 0 and left > 0:
            left -= 1
            if t - horizon_ms < time[j] <= t:
                for w in range(m):
                    high = t - delay_ms[w]
                    if high - window_ms[w] < time[j] <= high:
                        least[i, w] = min(least[i, w], value[j])
                        greatest[i, w] = max(greatest[i, w], value[j])
                        _add_square(parts[w], value[j] - total[i, w] // count[i, w])
            j = previous[j]
        low = max(start[key], end[key] - left)
        for e in range(low, end[key]):
            when = entries[e, 0]
            if entries[e, 3] == 0 and t - horizon_ms < when <= t:
                for w in range(m):
                    high = t - delay_ms[w]
                    if high - window_ms[w] < when <= high:
                        least[i, w] = min(least[i, w], entries[e, 1])
                        greatest[i, w] = max(greatest[i, w], entries[e, 1])
                        _add_square(parts[w], entries[e, 1] - total[i, w] // count[i, w])
        if not duplicate[i]:
            for w in range(m):
                if include_current[w] and delay_ms[w] == 0:
                    least[i, w] = min(least[i, w], value[i])
                    greatest[i, w] = max(greatest[i, w], value[i])
                    _add_square(parts[w], value[i] - total[i, w] // count[i, w])
            previous[i] = newest[key]
            newest[key] = i
        for w in range(m):
            if count[i, w] > 0:
                # What rounding the mean down has left out: less than 1 an entry.
                rest = float(total[i, w] % count[i, w])
                whole = parts[w, 0] * float(SPLIT) * SPLIT + parts[w, 1] * 2.0 * SPLIT + parts[w, 2]
                squares[i, w] = max(whole - rest * rest / count[i, w], 0.0)
    return least, greatest, squares


@njit(cache=True, nogil=True)
def _add_square(parts: I64, deviation: int) -> None:
    # Of the magnitude: the parts of a negative number would cancel when they are put together again.
    high, low = abs(deviation) // SPLIT, abs(deviation) % SPLIT
    parts[0] += high * high
    parts[1] += high * low
    parts[2] += low * low


@njit(cache=True, nogil=True)
def label_changes(
    entries: I64, start: I64, end: I64, key_of: I64, id_hash: I64, fraud: NDArray[np.bool_], labelled_at: I64
) -> tuple[I64, I64]:
    """By how much each label, in order, changes its transaction's fraud count, and from when on.

    Args:
        labelled_at: (n,) int64, when each label was given, ms. Others as in `find_duplicates`.

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
        known = 0
        for e in range(start[key], end[key]):
            if entries[e, 3] != 0 and entries[e, 2] == id_hash[i]:
                known += entries[e, 1]
                since[i] = max(since[i], entries[e, 3])
        for j in range(i):
            if key_of[j] == key and id_hash[j] == id_hash[i] and change[j] != 0:
                known += change[j]
                since[i] = max(since[i], since[j])
        change[i] = (1 if fraud[i] else 0) - known
    return change, since
