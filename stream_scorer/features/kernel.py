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
# Columns of what is held back of the pane that a window ends in.
LATEST, COUNT, TOTAL, LABELS_LATEST, FRAUD = range(5)


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
    # Where an entry counts: [0] from, [1] before; the first m of them by its own time, the others by its pane's.
    bounds = np.empty((2, 2 * m), dtype=np.int64)
    # Of the pane that a window ends in, the last one for `last`: its latest time, and what it would add.
    cut = np.empty((m + 1, 5), dtype=np.int64)
    for i in range(n):
        key = key_of[i]
        if key < 0:
            continue
        t = time[i]
        for w in range(m):
            high = t - delay_ms[w]
            low = high - window_ms[w]
            bounds[0, w], bounds[1, w] = low + 1, high + 1
            bounds[0, m + w], bounds[1, m + w] = _whole_panes(low, high, pane_ms[level_of[w]])
        old_from, old_before = _whole_panes(t - horizon_ms, t, pane_ms[last_level])
        cut[:] = 0
        cut[:, LATEST] = -1
        latest = -1
        left, labels_left = limit, limit
        j = newest[key]
        while j >= 0:
            when = time[j]
            if left > 0:
                shift = 0
                if t - horizon_ms < when <= t:
                    latest = max(latest, when)
            else:
                shift = m
                if old_from <= when < old_before:
                    latest = max(latest, when)
                elif 0 <= when - old_before < pane_ms[last_level]:
                    cut[m, LATEST] = max(cut[m, LATEST], when)
            for w in range(m):
                if bounds[0, shift + w] <= when < bounds[1, shift + w]:
                    count[i, w] += 1
                    total[i, w] += value[j]
                elif shift and 0 <= when - bounds[1, m + w] < pane_ms[level_of[w]]:
                    _add_cut(cut[w], when, 1, value[j])
            left -= 1
            j = previous[j]
        for e in range(end[key] - 1, start[key] - 1, -1):
            when = entries[e, 0]
            kind = entries[e, 3]
            if kind == 0:
                if left > 0:
                    shift = 0
                    if t - horizon_ms < when <= t:
                        latest = max(latest, when)
                else:
                    shift = m
                    if old_from <= when < old_before:
                        latest = max(latest, when)
                    elif 0 <= when - old_before < pane_ms[last_level]:
                        cut[m, LATEST] = max(cut[m, LATEST], when)
                left -= 1
                for w in range(m):
                    if bounds[0, shift + w] <= when < bounds[1, shift + w]:
                        count[i, w] += 1
                        total[i, w] += entries[e, 1]
                    elif shift and 0 <= when - bounds[1, m + w] < pane_ms[level_of[w]]:
                        _add_cut(cut[w], when, 1, entries[e, 1])
            elif kind > 0:
                shift = 0 if labels_left > 0 else m
                labels_left -= 1
                if shift == 0 and kind > t:
                    continue
                for w in range(m):
                    if bounds[0, shift + w] <= when < bounds[1, shift + w]:
                        fraud[i, w] += entries[e, 1]
                    elif shift and 0 <= when - bounds[1, m + w] < pane_ms[level_of[w]]:
                        _add_cut_labels(cut[w], when, entries[e, 1])
            elif kind < -1:
                level = ((-2 - kind) & 255) >> 1
                is_transaction = kind & 1 == 0
                pane_latest = when + ((-2 - kind) >> 8)
                for w in range(m):
                    if level_of[w] != level:
                        continue
                    if bounds[0, m + w] <= when < bounds[1, m + w]:
                        if is_transaction:
                            count[i, w] += entries[e, 2]
                            total[i, w] += entries[e, 1]
                        else:
                            fraud[i, w] += entries[e, 1]
                    elif when == bounds[1, m + w]:
                        if is_transaction:
                            _add_cut(cut[w], pane_latest, entries[e, 2], entries[e, 1])
                        else:
                            _add_cut_labels(cut[w], pane_latest, entries[e, 1])
                if is_transaction and level == last_level:
                    if old_from <= when < old_before:
                        latest = max(latest, pane_latest)
                    elif when == old_before:
                        cut[m, LATEST] = max(cut[m, LATEST], pane_latest)
        if cut[m, LATEST] <= t:
            latest = max(latest, cut[m, LATEST])
        last[i] = latest
        for w in range(m):
            if cut[w, LATEST] <= t - delay_ms[w]:
                count[i, w] += cut[w, COUNT]
                total[i, w] += cut[w, TOTAL]
            if cut[w, LABELS_LATEST] <= t - delay_ms[w]:
                fraud[i, w] += cut[w, FRAUD]
        if not duplicate[i]:
            for w in range(m):
                if include_current[w] and delay_ms[w] == 0:
                    count[i, w] += 1
                    total[i, w] += value[i]
            previous[i] = newest[key]
            newest[key] = i
    return count, total, fraud, last


@njit(cache=True, nogil=True, inline="always")
def _add_cut(cut: I64, latest: int, count: int, total: int) -> None:
    cut[LATEST] = max(cut[LATEST], latest)
    cut[COUNT] += count
    cut[TOTAL] += total


@njit(cache=True, nogil=True, inline="always")
def _add_cut_labels(cut: I64, latest: int, fraud: int) -> None:
    cut[LABELS_LATEST] = max(cut[LABELS_LATEST], latest)
    cut[FRAUD] += fraud


@njit(cache=True, nogil=True, inline="always")
def _whole_panes(low: int, high: int, pane_ms: int) -> tuple[int, int]:
    """From where on, and before where, lie the times whose panes are wholly inside ``(low, high]``."""
    return (low // pane_ms + 1) * pane_ms, (high + 1) // pane_ms * pane_ms


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
        held = _gather(
            entries, start[key], end[key], newest[key], previous, time, value, t, horizon_ms, limit,
            held_time, held_value,
        )  # fmt: skip
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
def scan_distinct(
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
) -> I64:
    """(n, m) int64: how many different values the newest `limit` transactions have in every window.

    Arguments as in `scan_spread`.
    """
    n = key_of.shape[0]
    m = window_ms.shape[0]
    distinct = np.zeros((n, m), dtype=np.int64)
    newest = np.full(start.shape[0], -1, dtype=np.int64)
    previous = np.full(n, -1, dtype=np.int64)
    held_time = np.empty(limit + 1, dtype=np.int64)
    held_value = np.empty(limit + 1, dtype=np.int64)
    inside = np.empty(limit + 1, dtype=np.int64)
    for i in range(n):
        key = key_of[i]
        if key < 0:
            continue
        held = _gather(
            entries, start[key], end[key], newest[key], previous, time, value, time[i], horizon_ms, limit,
            held_time, held_value,
        )  # fmt: skip
        for w in range(m):
            high = time[i] - delay_ms[w]
            found = 0
            if include_current[w] and delay_ms[w] == 0 and not duplicate[i]:
                inside[0] = value[i]
                found = 1
            for h in range(held):
                if high - window_ms[w] < held_time[h] <= high:
                    inside[found] = held_value[h]
                    found += 1
            ordered = np.sort(inside[:found])
            for place in range(found):
                distinct[i, w] += place == 0 or ordered[place] != ordered[place - 1]
        if not duplicate[i]:
            previous[i] = newest[key]
            newest[key] = i
    return distinct


@njit(cache=True, nogil=True)
def _gather(
    entries: I64,
    first: int,
    end: int,
    newest: int,
    previous: I64,
    time: I64,
    value: I64,
    t: int,
    horizon_ms: int,
    limit: int,
    held_time: I64,
    held_value: I64,
) -> int:
    """Put the newest `limit` transactions of a row that are visible at `t` into `held_...`; answers how many."""
    held, left, j = 0, limit, newest
    while j >= 0 and left > 0:
        left -= 1
        if t - horizon_ms < time[j] <= t:
            held_time[held], held_value[held] = time[j], value[j]
            held += 1
        j = previous[j]
    e = end - 1
    while e >= first and left > 0:
        if entries[e, 3] == 0:
            left -= 1
            if t - horizon_ms < entries[e, 0] <= t:
                held_time[held], held_value[held] = entries[e, 0], entries[e, 1]
                held += 1
        e -= 1
    return held


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
