"""From rows to feature values: runs the kernel for one entity and computes the aggregates of its views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stream_scorer.arrays import Floats, Int8s, Ints
from stream_scorer.compiled import njit
from stream_scorer.features import kernel
from stream_scorer.features.arguments import Events, Rows
from stream_scorer.features.plan import EntityPlan
from stream_scorer.records import DEFAULT
from stream_scorer.spec.model import ViewFeature

_NAMES = "count", "sum", "label_count", "distinct", "mean", "label_rate", "min", "max", "std", "since_last", "is_new"
COUNT, SUM, LABEL_COUNT, DISTINCT, MEAN, LABEL_RATE, MIN, MAX, STD, SINCE_LAST, IS_NEW = range(len(_NAMES))


class Scanned(NamedTuple):
    """The kernel's results for one entity, see `kernel.scan_windows`, `scan_spread` and `scan_distinct`.

    What no feature of the entity needs has the shape (0, 0).
    """

    counts: Ints
    total: Ints
    fraud: Ints
    last: Ints
    seen: Ints
    least: Ints
    greatest: Ints
    squares: Floats
    distinct: Ints


class Columns(NamedTuple):
    """The c view features of one entity: (c,) int64 each.

    column: the place in the matrix. aggregate: its index in `_NAMES`. window: its index among the entity's windows.
    """

    column: Ints
    aggregate: Ints
    window: Ints


_NO_COUNTS = np.zeros((0, 0), dtype=np.int64)
_NO_SUMS = np.zeros((0, 0), dtype=np.float64)


def columns_of(features: Sequence[tuple[ViewFeature, int, int]], entity: int) -> Columns:
    """The columns of the entity with this index, of ``(feature, entity, window)`` in the order of the matrix."""
    mine = [
        (column, _NAMES.index(feature.aggregate), window)
        for column, (feature, of, window) in enumerate(features)
        if of == entity
    ]
    column, aggregate, window = np.array(mine, dtype=np.int64).reshape(-1, 3).T.copy()
    return Columns(column, aggregate, window)


def scan(entity: EntityPlan, rows: Rows, events: Events, limit: int) -> Scanned:
    """Run the kernel over the `rows` of `entity`; `limit` entries count exactly."""
    windows = entity.windows
    count, total, fraud, last = kernel.scan_windows(rows, events, windows, entity.pane_levels, limit)
    spread = _NO_COUNTS, _NO_COUNTS, _NO_COUNTS, _NO_SUMS
    if entity.spread:
        spread = kernel.scan_spread(rows, events, windows, limit)
    distinct = kernel.scan_distinct(rows, events, windows, limit) if entity.of is not None else _NO_COUNTS
    return Scanned(count, total, fraud, last, *spread, distinct)


def warm() -> None:
    """Compile, or load from the cache."""
    none, flags = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.bool_)
    scanned = Scanned(
        _NO_COUNTS, _NO_COUNTS, _NO_COUNTS, none, _NO_COUNTS, _NO_COUNTS, _NO_COUNTS, _NO_SUMS, _NO_COUNTS
    )
    fill(_NO_SUMS, np.zeros((0, 0), dtype=np.int8), Columns(none, none, none), scanned, Events(none, none, none, flags))


@njit(cache=True, nogil=True, error_model="numpy")
def fill(matrix: Floats, status: Int8s, columns: Columns, scanned: Scanned, events: Events) -> None:
    """Write the features of one entity into `matrix` (n, n_features); NaN and `DEFAULT` for an event without a row."""
    column, aggregate, window = columns
    key_of, time = events.key_of, events.time
    for i in range(key_of.shape[0]):
        for c in range(column.shape[0]):
            if key_of[i] < 0:
                matrix[i, column[c]] = np.nan
                status[i, column[c]] = DEFAULT
            else:
                matrix[i, column[c]] = _value(scanned, i, aggregate[c], window[c], time[i])


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _value(scanned: Scanned, i: int, kind: int, w: int, time: int) -> float:
    """The value of one feature of event `i`."""
    if kind == SINCE_LAST:
        return (time - scanned.last[i]) / 1_000.0 if scanned.last[i] >= 0 else np.nan
    if kind == IS_NEW:
        return 1.0 if scanned.last[i] < 0 else 0.0
    if kind == COUNT:
        return float(scanned.counts[i, w])
    if kind == SUM:
        return float(scanned.total[i, w])
    if kind == LABEL_COUNT:
        return float(scanned.fraud[i, w])
    if kind == DISTINCT:
        return float(scanned.distinct[i, w])
    # Without transactions a mean has no value; a fraud rate is 0, because no fraud is known of that entity.
    if kind == MEAN:
        return float(scanned.total[i, w]) / float(scanned.counts[i, w]) if scanned.counts[i, w] > 0 else np.nan
    if kind == LABEL_RATE:
        return float(scanned.fraud[i, w]) / float(scanned.counts[i, w]) if scanned.counts[i, w] > 0 else 0.0
    if scanned.seen[i, w] <= 0:
        return np.nan
    if kind == STD:
        return float(np.sqrt(scanned.squares[i, w] / float(scanned.seen[i, w])))
    return float(scanned.least[i, w] if kind == MIN else scanned.greatest[i, w])
