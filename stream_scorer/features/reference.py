"""The kernel's results, computed the plain way: one event at a time with numpy masks. Slow, obvious, for tests."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
Flags = NDArray[np.bool_]


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
    """As `stream_scorer.features.kernel.scan_windows`, argument for argument."""
    n, m = len(key_of), len(window_ms)
    count, total, fraud = (np.zeros((n, m), dtype=np.int64) for _ in range(3))
    last = np.full(n, -1, dtype=np.int64)
    rows = {key: [tuple(e) for e in entries[start[key] : end[key]].tolist()] for key in range(len(start))}
    for i in range(n):
        key = int(key_of[i])
        if key < 0:
            continue
        t = int(time[i])
        seen = np.array(rows[key], dtype=np.int64).reshape(-1, 4)
        kind = seen[:, 3]
        exact = np.zeros(len(seen), dtype=np.bool_)
        for which in (np.flatnonzero(kind == 0), np.flatnonzero(kind > 0)):
            exact[which[max(len(which) - limit, 0) :]] = True
        is_pane = kind < -1
        code = np.where(is_pane, (-2 - kind) % 256, 0)
        is_transaction = (kind == 0) | is_pane & (code % 2 == 0)
        is_label = (kind > 0) | is_pane & (code % 2 == 1)
        number = np.where(is_pane, seen[:, 2], 1)
        latest = seen[:, 0] + np.where(is_pane, (-2 - kind) // 256, 0)
        given = ~exact | (kind <= t)
        row = seen[:, 0], latest, np.where(is_pane, code // 2, -1)

        def visible(
            low: int, high: int, level: int, which: Flags, exact: Flags = exact, row: tuple[I64, ...] = row
        ) -> Flags:
            """Of `which`, what counts in ``(low, high]``: exact entries by their time, old ones by their panes."""
            when, latest, of_level = row
            old = which & ~exact & ((of_level == -1) | (of_level == level))
            begin = when // pane_ms[level] * pane_ms[level]
            finish = begin + pane_ms[level] - 1
            whole = old & (begin > low) & (finish <= high)
            cut = old & (begin > low) & (begin <= high + 1) & (finish > high)
            if latest[cut].max(initial=0) > high:
                cut = np.zeros_like(cut)
            inside: Flags = which & exact & (when > low) & (when <= high) | whole | cut
            return inside

        last[i] = latest[visible(t - horizon_ms, t, last_level, is_transaction)].max(initial=-1)
        for w in range(m):
            high = t - int(delay_ms[w])
            low = high - int(window_ms[w])
            counted = visible(low, high, int(level_of[w]), is_transaction)
            labelled = visible(low, high, int(level_of[w]), is_label) & given
            current = bool(include_current[w]) and delay_ms[w] == 0 and not duplicate[i]
            count[i, w] = number[counted].sum() + current
            total[i, w] = seen[counted, 1].sum() + (int(value[i]) if current else 0)
            fraud[i, w] = seen[labelled, 1].sum()
        if not duplicate[i]:
            rows[key].append((t, int(value[i]), 0, 0))
    return count, total, fraud, last


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
) -> tuple[list[list[int | None]], list[list[int | None]], list[list[Fraction | None]]]:
    """Least, greatest and exact variance (None of nothing) of every window, in Python's unbounded numbers."""
    found = _inside(
        entries, start, end, key_of, time, value, duplicate, window_ms, delay_ms, include_current, horizon_ms, limit
    )
    least = [[min(values) if values else None for values in each] for each in found]
    greatest = [[max(values) if values else None for values in each] for each in found]
    return least, greatest, [[_variance(values) if values else None for values in each] for each in found]


def scan_distinct(*arguments: Any) -> list[list[int]]:
    """As `stream_scorer.features.kernel.scan_distinct`, argument for argument."""
    return [[len(set(values)) for values in each] for each in _inside(*arguments)]


def _inside(
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
) -> list[list[list[int]]]:
    """Per event and window, the values of the newest `limit` transactions in it."""
    out: list[list[list[int]]] = []
    # What it counts are transactions: neither labels nor panes.
    rows = {key: [tuple(e) for e in entries[start[key] : end[key]].tolist() if e[3] == 0] for key in range(len(start))}
    for i in range(len(key_of)):
        key, t = int(key_of[i]), int(time[i])
        seen = rows[key][-limit:] if key >= 0 else []
        found: list[list[int]] = []
        for w in range(len(window_ms)):
            high = t - int(delay_ms[w])
            low = max(high - int(window_ms[w]), t - horizon_ms)
            inside = [v for when, v, _, _ in seen if low < when <= high]
            if key >= 0 and include_current[w] and delay_ms[w] == 0 and not duplicate[i]:
                inside.append(int(value[i]))
            found.append(inside)
        out.append(found)
        if key >= 0 and not duplicate[i]:
            rows[key].append((t, int(value[i]), 0, 0))
    return out


def _variance(values: list[int]) -> Fraction:
    mean = Fraction(sum(values), len(values))
    return sum(((v - mean) ** 2 for v in values), Fraction(0)) / len(values)
