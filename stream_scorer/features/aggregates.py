"""From rows to feature values: runs the kernel for one entity and computes the aggregates of its views."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_scorer.features import kernel
from stream_scorer.features.arguments import Events, Rows
from stream_scorer.features.plan import EntityPlan
from stream_scorer.spec.model import ViewFeature

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]


@dataclass(slots=True)
class Scanned:
    """The kernel's results for one entity; see `kernel.scan_windows`, `scan_spread` and `scan_distinct`."""

    count: I64
    total: I64
    fraud: I64
    last: I64
    spread: tuple[I64, I64, I64, F64] | None
    distinct: I64 | None


def scan(entity: EntityPlan, rows: Rows, events: Events, limit: int) -> Scanned:
    """Run the kernel over the `rows` of `entity`; `limit` entries count exactly."""
    windows = entity.windows
    count, total, fraud, last = kernel.scan_windows(rows, events, windows, entity.pane_levels, limit)
    spread = kernel.scan_spread(rows, events, windows, limit) if entity.spread else None
    distinct = kernel.scan_distinct(rows, events, windows, limit) if entity.of is not None else None
    return Scanned(count, total, fraud, last, spread, distinct)


def aggregate(feature: ViewFeature, scanned: Scanned, window: int, time: I64) -> F64:
    """(n,) float64: the values of `feature` over the window with this index, for events at `time` (n,)."""
    kind = feature.aggregate
    if kind == "since_last":
        return np.where(scanned.last >= 0, (time - scanned.last) / 1_000.0, np.nan)
    if kind == "is_new":
        return (scanned.last < 0).astype(np.float64)
    seen = scanned.count[:, window].astype(np.float64)
    if kind == "count":
        return seen
    if kind == "sum":
        return scanned.total[:, window].astype(np.float64)
    if kind == "label_count":
        return scanned.fraud[:, window].astype(np.float64)
    if kind == "distinct":
        assert scanned.distinct is not None
        return scanned.distinct[:, window].astype(np.float64)
    if kind in ("min", "max", "std"):
        assert scanned.spread is not None
        number, least, greatest, squares = scanned.spread
        if kind == "std":
            return np.sqrt(_divide(squares[:, window], number[:, window].astype(np.float64), np.nan))
        return np.where(number[:, window] > 0, (least if kind == "min" else greatest)[:, window], np.nan)
    # Without transactions a mean has no value; a fraud rate is 0, because no fraud is known of that entity.
    if kind == "mean":
        return _divide(scanned.total[:, window], seen, np.nan)
    return _divide(scanned.fraud[:, window], seen, 0.0)


def _divide(numerator: I64 | F64, count: F64, empty: float) -> F64:
    quotient: F64 = np.divide(numerator, count, out=np.full(len(count), empty), where=count > 0)
    return quotient
