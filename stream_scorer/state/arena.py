"""Rows of entries in one array, so that a kernel reads them where they are. Each row has room to grow at its end."""

from __future__ import annotations

import numpy as np

from stream_scorer.arrays import Bools, Ints
from stream_scorer.compiled import njit
from stream_scorer.state.row_format import FIELD_DTYPE, FIELDS, TIME

_FIRST_ENTRIES, _FIRST_ROWS = 1_024, 256


class Arena:
    """Rows by number. The arrays of an earlier call stay valid, but do not see rows that have moved since.

    Attributes:
        count: the number of rows.
    """

    def __init__(self) -> None:
        self.count = 0
        self._entries = np.empty((0, FIELDS), dtype=FIELD_DTYPE)
        # Per row: where it starts, where it ends, and where its room ends.
        self._start, self._end, self._stop = (np.zeros(_FIRST_ROWS, dtype=np.int64) for _ in range(3))
        self._used = 0

    @property
    def entries(self) -> Ints:
        """(total, 4) int64, read-only: all entries, and room between them."""
        entries = self._entries.view()
        entries.flags.writeable = False
        return entries

    def bounds(self, rows: Ints) -> tuple[Ints, Ints]:
        """Where each of `rows` (k,) starts and ends in `entries`: (k,) int64 each."""
        return self._start[rows], self._end[rows]

    def row(self, number: int) -> Ints:
        """(n, 4) int64, read-only: the entries of one row."""
        return self.entries[self._start[number] : self._end[number]]

    def add(self, k: int) -> None:
        """Add `k` empty rows, with the next numbers."""
        self.count += k
        if self.count > len(self._start):
            more = np.zeros(max(self.count - len(self._start), len(self._start)), dtype=np.int64)
            self._start, self._end, self._stop = (
                np.concatenate([column, more]) for column in (self._start, self._end, self._stop)
            )

    def put_after(self, rows: Ints, counts: Ints, entries: Ints) -> None:
        """Put entries after the end of `rows` (k,), all of them different: `counts` (k,) of `entries`, in this order.

        The rows do not contain them until `extend`.
        """
        short = np.flatnonzero(self._end[rows] + counts > self._stop[rows])
        if len(short):
            self._move(rows[short], counts[short])
        _copy_rows(self._entries, self._end[rows], entries, np.cumsum(counts) - counts, counts)

    def extend(self, rows: Ints, counts: Ints) -> None:
        """Make `counts` (k,) entries after the end of `rows` (k,) a part of them."""
        self._end[rows] += counts

    def replace(self, number: int, entries: Ints) -> None:
        """Replace the entries of one row by `entries` (n, 4)."""
        start = self._end[number] = self._start[number]
        if start + len(entries) > self._stop[number]:
            self._move(np.array([number], dtype=np.int64), np.array([len(entries)], dtype=np.int64))
            start = self._start[number]
        self._end[number] = start + len(entries)
        self._entries[start : start + len(entries)] = entries

    def trim(self, before: int) -> Bools:
        """Remove the first entries of every row that are older than `before` (ms). (count,) bool: rows not empty."""
        start, end = self._start[: self.count], self._end[: self.count]
        _skip_old(self._entries, start, end, before)
        return start < end

    def keep(self, rows: Ints) -> None:
        """Remove all rows but `rows` (k,), ascending; they get the numbers 0 to k - 1."""
        for column in (self._start, self._end, self._stop):
            column[: len(rows)] = column[rows]
            column[len(rows) : self.count] = 0
        self.count = len(rows)

    def _move(self, rows: Ints, counts: Ints) -> None:
        """Give each of `rows` room for `counts` more entries."""
        length = self._end[rows] - self._start[rows]
        room = (length + counts) * 5 // 4 + 1
        total = int(room.sum())
        if self._used + total > len(self._entries):
            self._make_room(total)
        start = self._used + np.cumsum(room) - room
        _copy_rows(self._entries, start, self._entries, self._start[rows], length)
        self._start[rows], self._end[rows], self._stop[rows] = start, start + length, start + room
        self._used += total

    def _make_room(self, more: int) -> None:
        """Move all rows to an array with room for `more` entries, and without the room that rows have left behind."""
        start, room = self._start[: self.count], (self._stop - self._start)[: self.count]
        length = self._end[: self.count] - start
        self._used = int(room.sum())
        total = max((self._used + more) * 5 // 4, _FIRST_ENTRIES)
        entries = np.empty((total, FIELDS), dtype=FIELD_DTYPE)
        to = np.cumsum(room) - room
        _copy_rows(entries, to, self._entries, start, length)
        self._entries = entries
        self._start[: self.count], self._end[: self.count], self._stop[: self.count] = to, to + length, to + room


@njit(cache=True, nogil=True)
def _copy_rows(to: Ints, to_start: Ints, of: Ints, of_start: Ints, length: Ints) -> None:
    """Copy `length` (k,) entries from each `of_start` (k,) in `of` to each `to_start` (k,) in `to`."""
    for row in range(length.shape[0]):
        for place in range(length[row]):
            for field in range(to.shape[1]):
                to[to_start[row] + place, field] = of[of_start[row] + place, field]


@njit(cache=True, nogil=True)
def _skip_old(entries: Ints, start: Ints, end: Ints, before: int) -> None:
    """Advance each of `start` (k,), in place, past the entries up to `end` (k,) that are older than `before`."""
    for row in range(start.shape[0]):
        while start[row] < end[row] and entries[start[row], TIME] < before:
            start[row] += 1
