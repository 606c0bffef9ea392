"""The results of the kernel, computed one event at a time with numpy masks. Slow and simple, for tests."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np

from stream_scorer.arrays import Bools, Ints
from stream_scorer.features.arguments import Events, PaneLevels, Rows, Windows
from stream_scorer.state.row_format import (
    FIELDS,
    HASH,
    KIND,
    PANE,
    TIME,
    TRANSACTION,
    VALUE,
    pane_delay,
    pane_is_of_labels,
    pane_level,
)


def scan_windows(
    rows: Rows, events: Events, windows: Windows, panes: PaneLevels, limit: int
) -> tuple[Ints, Ints, Ints, Ints]:
    """As `stream_scorer.features.kernel.scan_windows`, argument for argument."""
    n, m = len(events.key_of), len(windows.window_ms)
    count, total, fraud = (np.zeros((n, m), dtype=np.int64) for _ in range(3))
    last = np.full(n, -1, dtype=np.int64)
    held = _as_lists(rows)
    for i in range(n):
        key, t = int(events.key_of[i]), int(events.time[i])
        if key < 0:
            continue
        seen = _Entries.of(np.array(held[key], dtype=np.int64).reshape(-1, FIELDS), limit)
        recent = seen.visible(seen.is_transaction, (t - windows.horizon_ms, t), panes.last_level, panes)
        last[i] = seen.latest[recent].max(initial=-1)
        for w in range(m):
            high = t - int(windows.delay_ms[w])
            window, level = (high - int(windows.window_ms[w]), high), int(panes.level_of[w])
            counted = seen.visible(seen.is_transaction, window, level, panes)
            labelled = seen.visible(seen.is_label, window, level, panes) & (~seen.exact | (seen.kind <= t))
            current = bool(windows.include_current[w]) and windows.delay_ms[w] == 0 and not events.duplicate[i]
            count[i, w] = seen.number[counted].sum() + current
            total[i, w] = seen.value[counted].sum() + (int(events.value[i]) if current else 0)
            fraud[i, w] = seen.value[labelled].sum()
        if not events.duplicate[i]:
            held[key].append((t, int(events.value[i]), 0, TRANSACTION))
    return count, total, fraud, last


class _Entries(NamedTuple):
    """The entries of one row, as columns (k,).

    exact: whether the entry counts by its own time. level: of a pane, else -1. number: how many transactions it counts.
    latest: its time, or the latest time in the pane.
    """

    time: Ints
    value: Ints
    kind: Ints
    exact: Bools
    is_transaction: Bools
    is_label: Bools
    level: Ints
    number: Ints
    latest: Ints

    @classmethod
    def of(cls, entries: Ints, limit: int) -> _Entries:
        """`entries` (k, 4), of which the newest `limit` transactions and labels are exact."""
        time, kind = entries[:, TIME], entries[:, KIND]
        exact = np.zeros(len(entries), dtype=np.bool_)
        for which in (np.flatnonzero(kind == TRANSACTION), np.flatnonzero(kind > TRANSACTION)):
            exact[which[max(len(which) - limit, 0) :]] = True
        is_pane, of_labels = kind <= PANE, np.asarray(pane_is_of_labels(kind))
        return cls(
            time,
            entries[:, VALUE],
            kind,
            exact,
            (kind == TRANSACTION) | (is_pane & ~of_labels),
            (kind > TRANSACTION) | (is_pane & of_labels),
            np.where(is_pane, pane_level(kind), -1),
            np.where(is_pane, entries[:, HASH], 1),
            time + np.where(is_pane, pane_delay(kind), 0),
        )

    def visible(self, which: Bools, window: tuple[int, int], level: int, panes: PaneLevels) -> Bools:
        """Those of `which` that count in ``(low, high]``: exact entries by their time, old ones by their panes."""
        low, high = window
        width = panes.width_ms[level]
        old = which & ~self.exact & ((self.level == -1) | (self.level == level))
        begin = self.time // width * width
        finish = begin + width - 1
        whole = old & (begin > low) & (finish <= high)
        cut = old & (begin > low) & (begin <= high + 1) & (finish > high)
        if self.latest[cut].max(initial=0) > high:
            cut = np.zeros_like(cut)
        return np.asarray(which & self.exact & (self.time > low) & (self.time <= high) | whole | cut, np.bool_)


def scan_spread(
    rows: Rows, events: Events, windows: Windows, limit: int
) -> tuple[list[list[int | None]], list[list[int | None]], list[list[Fraction | None]]]:
    """Minimum, maximum and exact variance (None without values) of every window, in unbounded numbers."""
    found = _inside(rows, events, windows, limit)
    least = [[min(values) if values else None for values in each] for each in found]
    greatest = [[max(values) if values else None for values in each] for each in found]
    return least, greatest, [[_variance(values) if values else None for values in each] for each in found]


def scan_distinct(rows: Rows, events: Events, windows: Windows, limit: int) -> list[list[int]]:
    """As `stream_scorer.features.kernel.scan_distinct`, argument for argument."""
    return [[len(set(values)) for values in each] for each in _inside(rows, events, windows, limit)]


def _inside(rows: Rows, events: Events, windows: Windows, limit: int) -> list[list[list[int]]]:
    """Per event and window, the values of the newest `limit` transactions in it."""
    out: list[list[list[int]]] = []
    # Neither labels nor panes.
    held = [[entry for entry in row if entry[KIND] == TRANSACTION] for row in _as_lists(rows)]
    for i in range(len(events.key_of)):
        key, t, value = int(events.key_of[i]), int(events.time[i]), int(events.value[i])
        seen = held[key][-limit:] if key >= 0 else []
        found: list[list[int]] = []
        for w in range(len(windows.window_ms)):
            high = t - int(windows.delay_ms[w])
            low = max(high - int(windows.window_ms[w]), t - windows.horizon_ms)
            inside = [entry[VALUE] for entry in seen if low < entry[TIME] <= high]
            current = windows.include_current[w] and windows.delay_ms[w] == 0 and not events.duplicate[i]
            if key >= 0 and current:
                inside.append(value)
            found.append(inside)
        out.append(found)
        if key >= 0 and not events.duplicate[i]:
            held[key].append((t, value, 0, TRANSACTION))
    return out


def _as_lists(rows: Rows) -> list[list[tuple[int, ...]]]:
    """The entries of each row."""
    return [
        [tuple(entry) for entry in rows.entries[start:end].tolist()]
        for start, end in zip(rows.start, rows.end, strict=True)
    ]


def _variance(values: list[int]) -> Fraction:
    mean = Fraction(sum(values), len(values))
    return sum(((v - mean) ** 2 for v in values), Fraction(0)) / len(values)
