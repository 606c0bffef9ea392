"""Compaction: the old entries of a long row become panes, which count exactly as those entries did (ADR 0011)."""

from __future__ import annotations

import numpy as np

from stream_scorer.arrays import Bools, Ints
from stream_scorer.compiled import njit
from stream_scorer.features.arguments import Rows
from stream_scorer.features.pane_kind import pane_is_of_labels, pane_kind, pane_level
from stream_scorer.features.plan import EntityPlan
from stream_scorer.state.row_format import (
    FIELDS,
    HASH,
    HEADER,
    KIND,
    LABELS_SHIFT,
    NEVER,
    PANE,
    TIME,
    TRANSACTION,
    VALUE,
    unpack,
)
from stream_scorer.state.rows import Compaction


@njit(cache=True, nogil=True)
def longest_unfolded(limit: int) -> int:
    """How many single entries a row may have before it is compacted, without the labels that compaction kept."""
    return limit + limit // 4


@njit(cache=True, nogil=True)
def too_long(rows: Rows, limit: int) -> Ints:
    """(j,) int64: which rows should be compacted."""
    entries, start, end = rows.entries, rows.start, rows.end
    found = np.empty(start.shape[0], dtype=np.int64)
    count = 0
    for row in range(start.shape[0]):
        length = end[row] - start[row]
        if length > longest_unfolded(limit) and entries[start[row], KIND] == HEADER:
            held = entries[start[row], VALUE]
            length -= 1 + (held & ((1 << LABELS_SHIFT) - 1)) + (held >> LABELS_SHIFT)
        if length > longest_unfolded(limit):
            found[count] = row
            count += 1
    return found[:count]


def fold(row: bytes, entity: EntityPlan, limit: int, past_ms: int) -> Compaction:
    """The compaction of a stored `row`.

    Args:
        limit: how many transactions, and how many labels, stay single entries.
        past_ms: event time before which no window of length zero looks.
    """
    return Compaction(row, folded(unpack(row), entity, limit, past_ms).tobytes())


def folded(entries: Ints, entity: EntityPlan, limit: int, past_ms: int) -> Ints:
    """`entries` (k, 4) of a row, with all but the newest `limit` transactions and labels in panes: (j, 4)."""
    return _folded(entries, limit, entity.pane_levels.width_ms, past_ms - entity.cover_ms)


def warm() -> None:
    """Compile, or load from the cache."""
    none = np.zeros(0, dtype=np.int64)
    _folded(unpack(b""), 1, none, none)
    too_long(Rows(unpack(b""), none, none), 1)


@njit(cache=True, nogil=True)
def _folded(entries: Ints, limit: int, pane_ms: Ints, edge: Ints) -> Ints:
    """Compact one row.

    Args:
        pane_ms: (l,) int64, the width of the panes of each level. edge: (l,) int64, panes of a level that begin at or
            before it are dropped.
    """
    k = entries.shape[0]
    old, olds, panes, labels = _old_entries(entries, limit)
    out = np.empty((1 + panes + olds * pane_ms.shape[0] + k, FIELDS), dtype=np.int64)
    # Not a literal, with which numba would compile `_add_panes` once more.
    end: int = np.int64(1)  # type: ignore[assignment]
    for level in range(pane_ms.shape[0]):
        for of_labels in range(2):
            end = _add_panes(out, end, entries, old, panes, (level, of_labels, pane_ms[level], edge[level]))
    seen = entries[0, HASH] if k > 0 and entries[0, KIND] == HEADER else 0
    out[0, TIME], out[0, VALUE], out[0, HASH], out[0, KIND] = (
        NEVER,
        end - 1 + (labels << LABELS_SHIFT),
        seen + olds,
        HEADER,
    )
    for e in range(k):
        if entries[e, KIND] >= TRANSACTION and not old[e]:
            _copy(out, end, entries, e)
            end += 1
    return out[:end]


@njit(cache=True, nogil=True)
def _copy(to: Ints, place: int, of: Ints, at: int) -> None:
    """``to[place] = of[at]``, which takes numba seconds to compile: it compiles the message of an error too."""
    for field in range(FIELDS):
        to[place, field] = of[at, field]


@njit(cache=True, nogil=True)
def _old_entries(entries: Ints, limit: int) -> tuple[Bools, int, int, int]:
    """(k,) bool, the entries that become panes; how many; the length of header and panes; how many labels stay."""
    k = entries.shape[0]
    old = np.zeros(k, dtype=np.bool_)
    left, labels_left, labels, panes, olds = limit, limit, 0, 0, 0
    for e in range(k - 1, -1, -1):
        kind = entries[e, KIND]
        if kind == TRANSACTION:
            old[e] = left <= 0
            left -= 1
        elif kind > TRANSACTION:
            old[e] = labels_left <= 0
            labels_left -= 1
            labels += not old[e]
        else:
            panes += 1
        olds += old[e]
    return old, olds, panes, labels


@njit(cache=True, nogil=True)
def _add_panes(out: Ints, end: int, entries: Ints, old: Bools, panes: int, kind_of: tuple[int, int, int, int]) -> int:
    """Append the panes of one kind to ``out[:end]``; return the new end.

    Args:
        panes: the length of header and panes at the beginning of `entries`. old: (k,) bool, from `_old_entries`.
        kind_of: level, whether of labels (0 or 1), width of the panes, and the start up to which they are dropped.
    """
    level, of_labels, width, edge = kind_of
    first = end
    # The panes of one kind are sorted by time.
    for e in range(panes):
        kind = entries[e, KIND]
        of_kind = kind <= PANE and pane_level(kind) == level and pane_is_of_labels(kind) == (of_labels == 1)
        if of_kind and entries[e, TIME] > edge:
            _copy(out, end, entries, e)
            end += 1
    for e in range(panes, entries.shape[0]):
        if not old[e] or (entries[e, KIND] > TRANSACTION) != (of_labels == 1):
            continue
        begin = entries[e, TIME] // width * width
        if begin <= edge:
            continue
        place = end
        while place > first and out[place - 1, TIME] > begin:
            place -= 1
        kind = pane_kind(level, of_labels, entries[e, TIME] - begin)
        if place > first and out[place - 1, TIME] == begin:
            out[place - 1, VALUE] += entries[e, VALUE]
            out[place - 1, HASH] += 1
            # The lowest kind is that of the latest entry.
            out[place - 1, KIND] = min(out[place - 1, KIND], kind)
            continue
        for after in range(end, place, -1):
            _copy(out, after, out, after - 1)
        out[place, TIME], out[place, VALUE], out[place, HASH], out[place, KIND] = begin, entries[e, VALUE], 1, kind
        end += 1
    return end
