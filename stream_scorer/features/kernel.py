"""The kernel: sliding event-time windows over entity rows, one pass per micro-batch and entity, in numba.

`stream_scorer.features.reference` computes the same in plain numpy; tests compare the two bit for bit.

An event sees, for one entity: the stored row in log order, then the earlier transactions of the same entity in the
batch, of both only those whose event time is not after its own, and finally itself where a window includes it.
Duplicates of an earlier event id add nothing. The newest `limit` transactions and the newest `limit` labels count
exactly. Older ones count by their panes, whether or not they were compacted (ADR 0011).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stream_scorer.arrays import Bools, Floats, Ints
from stream_scorer.compiled import njit
from stream_scorer.features.arguments import Events, LabelEvents, PaneLevels, Rows, Windows
from stream_scorer.features.pane_kind import pane_delay, pane_is_of_labels, pane_level
from stream_scorer.state.row_format import HASH, KIND, PANE, TIME, TRANSACTION, VALUE

# Deviations are split here before they are squared: the square of each part has 48 bits, with room for 2^13 of them.
SPLIT = 1 << 24
# The scope holds what one event can see: a row per window, and a last row for the time of the last event. All of it is
# in one array, because numba counts references to every array that it passes on.
# An exact entry counts at times in [FIRST, END), an old one in panes that begin in [OLD_FIRST, OLD_END).
FIRST, END, OLD_FIRST, OLD_END = range(4)
# The sums, and the latest time of a transaction.
COUNT, TOTAL, FRAUD, LATEST = range(4, 8)
# The contents of the pane that the window ends in. They count if nothing in that pane is later than the window.
CUT_LATEST, CUT_COUNT, CUT_TOTAL, CUT_LABELS_LATEST, CUT_FRAUD = range(8, 13)
# The window: its length and delay, whether it includes the event itself, the width and level of its panes, and its
# index among the windows of the entity.
WINDOW_MS, DELAY_MS, CURRENT, PANE_MS, LEVEL, INDEX = range(13, 19)
# Windows with the same delay end at the same time and contain each other. They are one group of rows of the scope, the
# longest one first, so an entry counts once, in the shortest window that contains it (INNER), and `_add_inner` adds the
# sums of the shorter windows to those of the longer ones. GROUP_STOP is where the group of a window ends. PLACE, in the
# first row of a group, is the window of the entry before: entries are almost in order, so the next one is near.
INNER_COUNT, INNER_TOTAL, INNER_FRAUD, GROUP_STOP, PLACE = range(19, 24)
SCOPE_COLUMNS = 24


@njit(cache=True, nogil=True)
def find_duplicates(rows: Rows, key_of: Ints, id_hash: Ints, limit: int) -> Bools:
    """(n,) bool: whether an earlier transaction of the same entity has the same event id.

    Args:
        key_of: (n,) int64, the row of each event, -1 for none. id_hash: (n,) int64. limit: how many transactions of the
            batch and the row, newest first, are compared. Labels do not count: how they lie between transactions
            differs between live scoring and a recomputation.
    """
    entries, start, end = rows.entries, rows.start, rows.end
    n = key_of.shape[0]
    duplicate = np.zeros(n, dtype=np.bool_)
    newest = np.full(start.shape[0], -1, dtype=np.int64)
    previous = np.full(n, -1, dtype=np.int64)
    for i in _by_row(key_of, start.shape[0]):
        key = key_of[i]
        left = limit
        j = newest[key]
        while j >= 0 and left > 0 and not duplicate[i]:
            duplicate[i] = id_hash[j] == id_hash[i]
            left -= 1
            j = previous[j]
        e = end[key] - 1
        while e >= start[key] and left > 0 and not duplicate[i] and entries[e, KIND] >= TRANSACTION:
            if entries[e, KIND] == TRANSACTION:
                duplicate[i] = entries[e, HASH] == id_hash[i]
                left -= 1
            e -= 1
        if not duplicate[i]:
            previous[i] = newest[key]
            newest[key] = i
    return duplicate


@njit(cache=True, nogil=True)
def scan_windows(
    rows: Rows, events: Events, windows: Windows, panes: PaneLevels, limit: int
) -> tuple[Ints, Ints, Ints, Ints]:
    """Accumulate every window of one entity for every event of the batch.

    Args:
        limit: how many transactions, and how many labels, newest first, count exactly.

    Returns:
        count, total, fraud: (n, m) int64; last: (n,) int64, event time of the latest earlier visible event within the
        horizon, -1 if there is none.
    """
    entries, start, end = rows.entries, rows.start, rows.end
    key_of, time, value, duplicate = events.key_of, events.time, events.value, events.duplicate
    n, m = key_of.shape[0], windows.window_ms.shape[0]
    count = np.zeros((n, m), dtype=np.int64)
    total = np.zeros((n, m), dtype=np.int64)
    fraud = np.zeros((n, m), dtype=np.int64)
    last = np.full(n, -1, dtype=np.int64)
    newest = np.full(start.shape[0], -1, dtype=np.int64)
    previous = np.full(n, -1, dtype=np.int64)
    length = end - start
    scope = _new_scope(windows, panes)
    for i in _by_row(key_of, start.shape[0]):
        key = key_of[i]
        _set_scope(scope, time[i])
        # Panes are of no use to a row that is short and was never compacted.
        old = length[key] > limit or (end[key] > start[key] and entries[start[key], KIND] < TRANSACTION)
        if old:
            _set_old(scope)
        # A local variable: the compiler keeps it in a register, unlike a column of the scope.
        latest, left, j = -1, limit, newest[key]
        while j >= 0:
            latest = _add_transaction(scope, time[j], value[j], left, latest)
            left -= 1
            j = previous[j]
        first, left, labels_left, latest = _exact(scope, entries, start[key], end[key], (left, limit, latest))
        _add_exact(scope, entries, first, end[key], time[i])
        latest = _scan_row(scope, entries, start[key], first, time[i], left, labels_left, latest)
        scope[m, LATEST] = max(latest, scope[m, LATEST])
        if old:
            _add_cut_panes(scope)
        _add_inner(scope)
        if not duplicate[i]:
            _add_current(scope, value[i])
            previous[i] = newest[key]
            newest[key] = i
            length[key] += 1
        for w in range(m):
            to = scope[w, INDEX]
            count[i, to], total[i, to], fraud[i, to] = scope[w, COUNT], scope[w, TOTAL], scope[w, FRAUD]
        last[i] = scope[m, LATEST]
    return count, total, fraud, last


@njit(cache=True, nogil=True)
def _by_row(key_of: Ints, rows: int) -> Ints:
    """The events that have one of the `rows`, in batch order for each row: a row comes from memory once per batch."""
    place = np.zeros(rows + 1, dtype=np.int64)
    for key in key_of:
        if key >= 0:
            place[key + 1] += 1
    for row in range(rows):
        place[row + 1] += place[row]
    order = np.empty(place[rows], dtype=np.int64)
    for i in range(key_of.shape[0]):
        if key_of[i] >= 0:
            order[place[key_of[i]]] = i
            place[key_of[i]] += 1
    return order


@njit(cache=True, nogil=True)
def _new_scope(windows: Windows, panes: PaneLevels) -> Ints:
    window_ms, delay_ms = windows.window_ms, windows.delay_ms
    m = window_ms.shape[0]
    scope = np.zeros((m + 1, SCOPE_COLUMNS), dtype=np.int64)
    for index in range(m):
        # By delay, then the longest window first.
        w = index
        while w > 0 and (
            delay_ms[index] < scope[w - 1, DELAY_MS]
            or (delay_ms[index] == scope[w - 1, DELAY_MS] and window_ms[index] > scope[w - 1, WINDOW_MS])
        ):
            for column in range(SCOPE_COLUMNS):
                scope[w, column] = scope[w - 1, column]
            w -= 1
        scope[w, WINDOW_MS], scope[w, DELAY_MS], scope[w, INDEX] = window_ms[index], delay_ms[index], index
        scope[w, CURRENT] = windows.include_current[index] and delay_ms[index] == 0
        scope[w, LEVEL] = panes.level_of[index]
    scope[m, WINDOW_MS], scope[m, LEVEL] = windows.horizon_ms, panes.last_level
    for w in range(m, -1, -1):
        scope[w, PANE_MS] = panes.width_ms[scope[w, LEVEL]]
        same = w < m - 1 and scope[w, DELAY_MS] == scope[w + 1, DELAY_MS]
        scope[w, GROUP_STOP] = scope[w + 1, GROUP_STOP] if same else w + 1
    return scope


@njit(cache=True, nogil=True, inline="always")
def _set_scope(scope: Ints, time: int) -> None:
    """Reset `scope` for an event at `time`."""
    for w in range(scope.shape[0]):
        high = time - scope[w, DELAY_MS]
        scope[w, FIRST], scope[w, END] = high - scope[w, WINDOW_MS] + 1, high + 1
        scope[w, COUNT], scope[w, TOTAL], scope[w, FRAUD], scope[w, LATEST] = 0, 0, 0, -1
        scope[w, INNER_COUNT], scope[w, INNER_TOTAL], scope[w, INNER_FRAUD] = 0, 0, 0
        # The newest entries come first.
        scope[w, PLACE] = scope[w, GROUP_STOP] - 1


@njit(cache=True, nogil=True, inline="always")
def _set_old(scope: Ints) -> None:
    """Set the panes of every window: those that are wholly inside of it, and the one that it ends in."""
    for w in range(scope.shape[0]):
        first, end, pane_ms = scope[w, FIRST], scope[w, END], scope[w, PANE_MS]
        scope[w, OLD_FIRST], scope[w, OLD_END] = ((first - 1) // pane_ms + 1) * pane_ms, end // pane_ms * pane_ms
        scope[w, CUT_LATEST], scope[w, CUT_COUNT], scope[w, CUT_TOTAL] = -1, 0, 0
        scope[w, CUT_LABELS_LATEST], scope[w, CUT_FRAUD] = 0, 0


@njit(cache=True, nogil=True, inline="always")
def _exact(
    scope: Ints, entries: Ints, start: int, end: int, left_and_latest: tuple[int, int, int]
) -> tuple[int, int, int, int]:
    """The first of the newest entries of a row that all count exactly; `left_and_latest`, continued behind them.

    left_and_latest: how many transactions, and how many labels, count exactly, and the latest time of exact
    transactions so far.
    """
    m = scope.shape[0] - 1
    low, high = scope[m, FIRST], scope[m, END]
    left, labels_left, latest = left_and_latest
    e = end - 1
    while e >= start:
        kind, when = entries[e, KIND], entries[e, TIME]
        if kind == TRANSACTION and left > 0:
            left -= 1
            if low <= when < high:
                latest = max(latest, when)
        elif kind > TRANSACTION and labels_left > 0:
            labels_left -= 1
        else:
            break
        e -= 1
    return e + 1, left, labels_left, latest


@njit(cache=True, nogil=True, inline="always")
def _add_exact(scope: Ints, entries: Ints, first: int, end: int, time: int) -> None:
    """Add the entries ``[first, end)`` of a row, which all count exactly, for an event at `time`.

    Entries are almost in order, so the window stays the same for many of them. Their sums are kept in registers.
    """
    group = 0
    while group < scope.shape[0] - 1:
        stop = scope[group, GROUP_STOP]
        # The shortest window that contains the entry: `stop` for one after all windows, below `group` for one before.
        w = stop - 1
        low, high = scope[w, FIRST], scope[group, END]
        count, total, fraud = 0, 0, 0
        for e in range(end - 1, first - 1, -1):
            when, kind = entries[e, TIME], entries[e, KIND]
            if when < low or when >= high:
                _add_sums(scope, group, w, count, total, fraud)
                count, total, fraud = 0, 0, 0
                w, low, high = _window_of(scope, group, when)
            if kind == TRANSACTION:
                count += 1
                total += entries[e, VALUE]
            elif kind <= time:
                fraud += entries[e, VALUE]
        _add_sums(scope, group, w, count, total, fraud)
        group = stop


@njit(cache=True, nogil=True)
def _window_of(scope: Ints, group: int, when: int) -> tuple[int, int, int]:
    """The shortest window of the group that contains `when`, see `_add_exact`, and the times for which it is that."""
    stop, low, high = scope[group, GROUP_STOP], np.iinfo(np.int64).min, scope[group, END]
    if when >= high:
        return stop, high, np.iinfo(np.int64).max
    w = stop - 1
    while w >= group and when < scope[w, FIRST]:
        high = scope[w, FIRST]
        w -= 1
    if w >= group:
        low = scope[w, FIRST]
    return w, low, high


@njit(cache=True, nogil=True, inline="always")
def _add_sums(scope: Ints, group: int, w: int, count: int, total: int, fraud: int) -> None:
    """Add sums to those of the window `w` of the group, if it is one."""
    if group <= w < scope[group, GROUP_STOP]:
        scope[w, INNER_COUNT] += count
        scope[w, INNER_TOTAL] += total
        scope[w, INNER_FRAUD] += fraud


@njit(cache=True, nogil=True, inline="always")
def _scan_row(
    scope: Ints, entries: Ints, start: int, end: int, time: int, left: int, labels_left: int, latest: int
) -> int:
    """Add the entries of a row, newest first, for an event at `time`; return the latest time of exact transactions.

    left, labels_left: how many transactions, and how many labels, count exactly. latest: the latest time so far.
    """
    for e in range(end - 1, start - 1, -1):
        kind = entries[e, KIND]
        if kind == TRANSACTION:
            latest = _add_transaction(scope, entries[e, TIME], entries[e, VALUE], left, latest)
            left -= 1
        elif kind > TRANSACTION:
            if labels_left <= 0:
                _add_old_label(scope, entries[e, TIME], entries[e, VALUE])
            elif kind <= time:
                _add_exact_label(scope, entries[e, TIME], entries[e, VALUE])
            labels_left -= 1
        elif kind <= PANE:
            _add_pane(scope, entries, e)
    return latest


@njit(cache=True, nogil=True, inline="always")
def _add_transaction(scope: Ints, when: int, value: int, left: int, latest: int) -> int:
    """Add a transaction, by its own time if any exact ones are `left`; return the latest time of those."""
    if left <= 0:
        _add_old(scope, when, value)
        return latest
    m = scope.shape[0] - 1
    if scope[m, FIRST] <= when < scope[m, END]:
        latest = max(latest, when)
    group = 0
    while group < m:
        w = _shortest(scope, group, when)
        if w >= group:
            scope[w, INNER_COUNT] += 1
            scope[w, INNER_TOTAL] += value
        group = scope[group, GROUP_STOP]
    return latest


@njit(cache=True, nogil=True, inline="always")
def _shortest(scope: Ints, group: int, when: int) -> int:
    """The shortest window of the group that contains the time `when`; below `group` if there is none."""
    place = scope[group, PLACE]
    w = place
    while w >= group and when < scope[w, FIRST]:
        w -= 1
    while w + 1 < scope[group, GROUP_STOP] and when >= scope[w + 1, FIRST]:
        w += 1
    # A store only where the window changes: the next entry would wait for it.
    if w != place:
        scope[group, PLACE] = w
    return w if when < scope[group, END] else group - 1


@njit(cache=True, nogil=True, inline="always")
def _add_inner(scope: Ints) -> None:
    """Add to every window what was counted in it and in the shorter ones of its group."""
    count, total, fraud = 0, 0, 0
    for w in range(scope.shape[0] - 2, -1, -1):
        if scope[w, GROUP_STOP] == w + 1:
            count, total, fraud = 0, 0, 0
        count += scope[w, INNER_COUNT]
        total += scope[w, INNER_TOTAL]
        fraud += scope[w, INNER_FRAUD]
        scope[w, COUNT] += count
        scope[w, TOTAL] += total
        scope[w, FRAUD] += fraud


@njit(cache=True, nogil=True, inline="always")
def _add_old(scope: Ints, when: int, value: int) -> None:
    """Add a transaction that counts by its pane."""
    m = scope.shape[0] - 1
    if scope[m, OLD_FIRST] <= when < scope[m, OLD_END]:
        scope[m, LATEST] = max(scope[m, LATEST], when)
    elif 0 <= when - scope[m, OLD_END] < scope[m, PANE_MS]:
        scope[m, CUT_LATEST] = max(scope[m, CUT_LATEST], when)
    for w in range(m):
        if scope[w, OLD_FIRST] <= when < scope[w, OLD_END]:
            scope[w, COUNT] += 1
            scope[w, TOTAL] += value
        elif 0 <= when - scope[w, OLD_END] < scope[w, PANE_MS]:
            scope[w, CUT_LATEST] = max(scope[w, CUT_LATEST], when)
            scope[w, CUT_COUNT] += 1
            scope[w, CUT_TOTAL] += value


@njit(cache=True, nogil=True, inline="always")
def _add_exact_label(scope: Ints, when: int, change: int) -> None:
    """Add a label that counts by the time of its transaction."""
    group = 0
    while group < scope.shape[0] - 1:
        w = _shortest(scope, group, when)
        if w >= group:
            scope[w, INNER_FRAUD] += change
        group = scope[group, GROUP_STOP]


@njit(cache=True, nogil=True, inline="always")
def _add_old_label(scope: Ints, when: int, change: int) -> None:
    """Add a label that counts by its pane."""
    for w in range(scope.shape[0] - 1):
        if scope[w, OLD_FIRST] <= when < scope[w, OLD_END]:
            scope[w, FRAUD] += change
        elif 0 <= when - scope[w, OLD_END] < scope[w, PANE_MS]:
            scope[w, CUT_LABELS_LATEST] = max(scope[w, CUT_LABELS_LATEST], when)
            scope[w, CUT_FRAUD] += change


@njit(cache=True, nogil=True)
def _add_pane(scope: Ints, entries: Ints, e: int) -> None:
    """Add a stored pane to the windows of its level."""
    m = scope.shape[0] - 1
    start, kind = entries[e, TIME], entries[e, KIND]
    level, of_labels, latest = pane_level(kind), pane_is_of_labels(kind), start + pane_delay(kind)
    for w in range(m + 1):
        if scope[w, LEVEL] != level:
            continue
        if scope[w, OLD_FIRST] <= start < scope[w, OLD_END]:
            if of_labels:
                scope[w, FRAUD] += entries[e, VALUE]
            else:
                scope[w, COUNT] += entries[e, HASH]
                scope[w, TOTAL] += entries[e, VALUE]
                scope[w, LATEST] = max(scope[w, LATEST], latest)
        elif start == scope[w, OLD_END]:
            if of_labels:
                scope[w, CUT_LABELS_LATEST] = max(scope[w, CUT_LABELS_LATEST], latest)
                scope[w, CUT_FRAUD] += entries[e, VALUE]
            else:
                scope[w, CUT_LATEST] = max(scope[w, CUT_LATEST], latest)
                scope[w, CUT_COUNT] += entries[e, HASH]
                scope[w, CUT_TOTAL] += entries[e, VALUE]


@njit(cache=True, nogil=True, inline="always")
def _add_cut_panes(scope: Ints) -> None:
    """Add the pane that each window ends in, if nothing in that pane is later than the window."""
    for w in range(scope.shape[0]):
        if scope[w, CUT_LATEST] < scope[w, END]:
            scope[w, COUNT] += scope[w, CUT_COUNT]
            scope[w, TOTAL] += scope[w, CUT_TOTAL]
            scope[w, LATEST] = max(scope[w, LATEST], scope[w, CUT_LATEST])
        if scope[w, CUT_LABELS_LATEST] < scope[w, END]:
            scope[w, FRAUD] += scope[w, CUT_FRAUD]


@njit(cache=True, nogil=True, inline="always")
def _add_current(scope: Ints, value: int) -> None:
    """Add the event itself to the windows that include it."""
    for w in range(scope.shape[0] - 1):
        if scope[w, CURRENT] != 0:
            scope[w, COUNT] += 1
            scope[w, TOTAL] += value


class _Held(NamedTuple):
    """Time and value of the transactions that one event sees, newest first: (limit + 1,) int64 each."""

    time: Ints
    value: Ints


@njit(cache=True, nogil=True)
def scan_spread(rows: Rows, events: Events, windows: Windows, limit: int) -> tuple[Ints, Ints, Ints, Floats]:
    """Minimum, maximum and sum of squared deviations of the newest `limit` transactions in every window.

    Deviations are taken from the mean rounded down, split at `SPLIT` and summed as integers, so the result does not
    depend on the order of the entries. It is exact while deviations stay below 2^48 (and `limit` at most 2^13).

    Returns:
        seen: (n, m) int64, the number of transactions. least, greatest: (n, m) int64, no meaning where `seen` is 0.
        squares: (n, m) float64, the sum of ``(value - mean)**2``.
    """
    key_of, time, value, duplicate = events.key_of, events.time, events.value, events.duplicate
    window_ms, delay_ms, include_current, horizon_ms = windows
    n, m = key_of.shape[0], window_ms.shape[0]
    seen = np.zeros((n, m), dtype=np.int64)
    least = np.full((n, m), np.iinfo(np.int64).max, dtype=np.int64)
    greatest = np.full((n, m), np.iinfo(np.int64).min, dtype=np.int64)
    squares = np.zeros((n, m), dtype=np.float64)
    newest = np.full(rows.start.shape[0], -1, dtype=np.int64)
    previous = np.full(n, -1, dtype=np.int64)
    held = _Held(np.empty(limit + 1, dtype=np.int64), np.empty(limit + 1, dtype=np.int64))
    held_time, held_value = held
    parts = np.zeros(3, dtype=np.int64)
    for i in range(n):
        key = key_of[i]
        if key < 0:
            continue
        count = _gather(rows, events, (key, newest[key], time[i]), previous, horizon_ms, limit, held)
        for w in range(m):
            high = time[i] - delay_ms[w]
            itself = include_current[w] and delay_ms[w] == 0 and not duplicate[i]
            if itself:
                # Behind the transactions that it sees.
                held_time[count], held_value[count] = time[i], value[i]
            found = _spread(held_time, held_value, count + itself, high - window_ms[w], high, parts)
            if found[0] > 0:
                seen[i, w], least[i, w], greatest[i, w], squares[i, w] = found
        if not duplicate[i]:
            previous[i] = newest[key]
            newest[key] = i
    return seen, least, greatest, squares


@njit(cache=True, nogil=True, inline="always")
def _spread(time: Ints, value: Ints, count: int, low: int, high: int, parts: Ints) -> tuple[int, int, int, float]:
    """The results for ``(low, high]`` of the first `count` transactions; `parts` (3,) is scratch space."""
    seen, total, least, greatest = 0, 0, np.iinfo(np.int64).max, np.iinfo(np.int64).min
    for h in range(count):
        if low < time[h] <= high:
            seen += 1
            total += value[h]
            least = min(least, value[h])
            greatest = max(greatest, value[h])
    if seen == 0:
        return 0, least, greatest, 0.0
    mean = total // seen
    parts[0] = parts[1] = parts[2] = 0
    for h in range(count):
        if low < time[h] <= high:
            _add_square(parts, value[h] - mean)
    # What rounding the mean down has left out: less than 1 per transaction.
    rest = float(total % seen)
    whole = parts[0] * float(SPLIT) * SPLIT + parts[1] * 2.0 * SPLIT + parts[2]
    return seen, least, greatest, max(whole - rest * rest / seen, 0.0)


@njit(cache=True, nogil=True)
def _add_square(parts: Ints, deviation: int) -> None:
    # Of the absolute value: the parts of a negative number would cancel out when they are added up.
    high, low = abs(deviation) // SPLIT, abs(deviation) % SPLIT
    parts[0] += high * high
    parts[1] += high * low
    parts[2] += low * low


@njit(cache=True, nogil=True)
def scan_distinct(rows: Rows, events: Events, windows: Windows, limit: int) -> Ints:
    """(n, m) int64: the number of different values among the newest `limit` transactions in every window."""
    key_of, time, value, duplicate = events.key_of, events.time, events.value, events.duplicate
    window_ms, delay_ms, include_current, horizon_ms = windows
    n, m = key_of.shape[0], window_ms.shape[0]
    distinct = np.zeros((n, m), dtype=np.int64)
    newest = np.full(rows.start.shape[0], -1, dtype=np.int64)
    previous = np.full(n, -1, dtype=np.int64)
    held = _Held(np.empty(limit + 1, dtype=np.int64), np.empty(limit + 1, dtype=np.int64))
    held_time, held_value = held
    inside = np.empty(limit + 1, dtype=np.int64)
    for i in range(n):
        key = key_of[i]
        if key < 0:
            continue
        t = time[i]
        count = _gather(rows, events, (key, newest[key], t), previous, horizon_ms, limit, held)
        for w in range(m):
            high = t - delay_ms[w]
            found = 0
            if include_current[w] and delay_ms[w] == 0 and not duplicate[i]:
                inside[0] = value[i]
                found = 1
            for h in range(count):
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
    rows: Rows, events: Events, event: tuple[int, int, int], previous: Ints, horizon_ms: int, limit: int, held: _Held
) -> int:
    """Put the newest `limit` transactions that an event sees into `held`; return how many there are.

    `event`: its row, the newest earlier transaction of that row in the batch (-1 for none), and its time.
    """
    key, j, t = event
    entries, start, time, value = rows.entries, rows.start[key], events.time, events.value
    held_time, held_value = held.time, held.value
    count, left = 0, limit
    while j >= 0 and left > 0:
        left -= 1
        if t - horizon_ms < time[j] <= t:
            held_time[count], held_value[count] = time[j], value[j]
            count += 1
        j = previous[j]
    e = rows.end[key] - 1
    while e >= start and left > 0:
        if entries[e, KIND] == TRANSACTION:
            left -= 1
            if t - horizon_ms < entries[e, TIME] <= t:
                held_time[count], held_value[count] = entries[e, TIME], entries[e, VALUE]
                count += 1
        e -= 1
    return count


@njit(cache=True, nogil=True)
def label_changes(rows: Rows, labels: LabelEvents, limit: int) -> tuple[Ints, Ints, Ints]:
    """By how much each label, in order, changes the fraud count of its transaction, at which time, and since when.

    Args:
        limit: how many label changes of the entity, newest first, are compared.

    Returns:
        change: (n,) int64, -1, 0 or 1. time: (n,) int64, of the transaction. A label that reverses another one takes it
        from there, because both must count in the same windows, whatever time the second one claims. since: (n,) int64,
        at least 1: when the label was given, but not before the label that it reverses.
    """
    entries, start, end = rows.entries, rows.start, rows.end
    key_of, id_hash = labels.key_of, labels.id_hash
    n = key_of.shape[0]
    change = np.zeros(n, dtype=np.int64)
    time = labels.time.copy()
    since = np.maximum(labels.labelled_at, 1)
    for i in range(n):
        key = key_of[i]
        if key < 0:
            continue
        # Its newest change tells which label holds, and at which time. Not the sum of its changes: the oldest may be
        # beyond `limit`.
        known, left = 0, limit
        j = i - 1
        while j >= 0 and left > 0 and known == 0:
            if key_of[j] == key and change[j] != 0:
                left -= 1
                if id_hash[j] == id_hash[i]:
                    known, since[i] = change[j], max(since[i], since[j])
                    time[i] = time[j] if known > 0 else time[i]
            j -= 1
        e = end[key] - 1
        while e >= start[key] and left > 0 and known == 0:
            if entries[e, KIND] > TRANSACTION:
                left -= 1
                if entries[e, HASH] == id_hash[i]:
                    known, since[i] = entries[e, VALUE], max(since[i], entries[e, KIND])
                    time[i] = entries[e, TIME] if known > 0 else time[i]
            e -= 1
        change[i] = (1 if labels.fraud[i] else 0) - (1 if known > 0 else 0)
    return change, time, since
