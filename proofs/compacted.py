"""Checks of compacted rows, and of the features of long rows, by plain loops over the log (ADR 0011).

The newest K transactions of a row count exactly, older ones by panes of a 32nd of each window. A feature may lack only
what is in the panes at the edges of its window. For the partition entity, the log determines which transactions are
old; for other entities, the order in which partitions were applied does, so each transaction may be old.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_scorer.features.plan import PANES, EntityPlan, make_plan
from stream_scorer.spec import CheckedSpec
from stream_scorer.spec.model import ViewFeature
from stream_scorer.state.row_format import (
    HASH,
    HEADER,
    KIND,
    LABELS_SHIFT,
    PANE,
    TIME,
    TRANSACTION,
    VALUE,
    pane_is_of_labels,
    pane_level,
)

_TOLERANCE = 1e-9
Content = Counter[tuple[int, int]]


def is_compacted(entries: NDArray[np.int64]) -> bool:
    """Whether a stored row (k, 4) begins with panes."""
    return bool(len(entries) and entries[0, KIND] == HEADER)


def compacted_row_differs(
    entries: NDArray[np.int64], plan: EntityPlan, wanted: tuple[Content, Content], limit: int, newest: int
) -> str:
    """How a compacted row differs from the log; empty if it does not.

    Args:
        wanted: (time, value) of all transactions and of all changes of labels in the log. limit: the entries that count
            exactly. newest: the newest event time of the log; panes far enough before it may lack entries.
    """
    header, others = entries[0].tolist(), entries[1:].tolist()
    olds = 0
    for of_labels, content in enumerate(wanted):
        single = Counter(
            (e[TIME], e[VALUE]) for e in others if (e[KIND] > TRANSACTION if of_labels else e[KIND] == TRANSACTION)
        )
        if single - content:
            return f"entries that the log does not have: {single - content}"
        if single.total() < min(limit, content.total()):
            return f"{single.total()} single entries of {content.total()}"
        left = content - single
        olds += left.total()
        for level, width in enumerate(plan.pane_levels.width_ms.tolist()):
            count, total = Counter[int](), Counter[int]()
            for (time, value), times in left.items():
                count[time // width * width] += times
                total[time // width * width] += times * value
            held = {
                e[TIME]: (e[HASH], e[VALUE])
                for e in others
                if e[KIND] <= PANE and pane_level(e[KIND]) == level and pane_is_of_labels(e[KIND]) == bool(of_labels)
            }
            for start in count.keys() | held.keys():
                # The scorer drops panes that no window reads any more. A late entry may then create such a pane again.
                unread = start <= newest - int(plan.cover_ms[level])
                if unread and held.get(start, (0, 0))[0] < count[start]:
                    continue
                if held.get(start) != (count[start], total[start]):
                    return f"pane of {width} ms at {start}: {held.get(start)}, by the log {count[start], total[start]}"
    if header[HASH] != olds:
        return f"{header[HASH]} entries compacted, by the log {olds}"
    panes = sum(e[KIND] <= PANE for e in others)
    return "" if header[VALUE] & ((1 << LABELS_SHIFT) - 1) == panes else "the header has another number of panes"


@dataclass(slots=True)
class LongRow:
    """One row as an event sees it.

    Attributes:
        times, values: of all earlier transactions in the row, in any order; old: which of them may count by panes.
        most_old: how many do. own: the value of the event itself, None if it does not count.
        labels: event time, time given, and change of each label in the row. panes_dropped: the event is late, so old
            panes may have been dropped.
    """

    time: int
    times: list[int]
    values: list[Any]
    old: list[bool]
    most_old: int
    own: Any
    labels: list[tuple[int, int, int]]
    old_labels: bool
    panes_dropped: bool
    order_known: bool

    def holds(self, feature: ViewFeature, served: float | None, counted: float | None, plan: EntityPlan) -> bool:
        """Whether `feature` may have the value `served`; `counted`: the served count of the same window, if known."""
        if not feature.window_ms:
            return self._last_holds(feature.aggregate, served, plan)
        high = self.time - feature.delay_ms
        low, width = high - feature.window_ms, -(-feature.window_ms // PANES)
        inside = [i for i, t in enumerate(self.times) if low < t <= high]
        edges = [i for i in inside if self._may_miss(i, low, high, width)]
        own = [self.own] if feature.view.current == "include" and not feature.delay_ms and self.own is not None else []
        exact = [self.values[i] for i in inside if not self.old[i]] + own
        values = [self.values[i] for i in inside] + own
        if feature.aggregate in ("min", "max", "std", "distinct"):
            return _newest_hold(feature.aggregate, served, exact, values, known=self.order_known)
        missing = [self.values[i] for i in edges]
        most = min(len(missing), self.most_old)
        counts = range(len(values) - most, len(values) + 1)
        if counted is not None and feature.aggregate != "count":
            counts = range(int(counted), int(counted) + 1) if counted in counts else range(0)
        if feature.aggregate == "count":
            return served in counts
        if feature.aggregate in ("sum", "mean"):
            return any(_sum_holds(feature.aggregate, served, n, values, missing) for n in counts)
        return self._labels_hold(feature.aggregate, served, (low, high, width), counts)

    def _may_miss(self, i: int, low: int, high: int, width: int) -> bool:
        start = self.times[i] // width * width
        edge = start <= low or start == (high + 1) // width * width
        return self.old[i] and (edge or self.panes_dropped)

    def _last_holds(self, aggregate: str, served: float | None, plan: EntityPlan) -> bool:
        horizon, width = plan.horizon_ms, int(plan.pane_levels.width_ms[plan.pane_levels.last_level])
        low, high = self.time - horizon, self.time
        seen = [i for i, t in enumerate(self.times) if low < t <= high]
        sure = [self.times[i] for i in seen if not self._may_miss(i, low, high, width)]
        if aggregate == "is_new":
            return served == 0.0 if sure or not seen else served in (0.0, 1.0)
        if served is None:
            return not sure
        return self.time - round(served * 1_000) in {
            self.times[i] for i in seen if self.times[i] >= max(sure, default=0)
        }

    def _labels_hold(
        self, aggregate: str, served: float | None, window: tuple[int, int, int], counts: Sequence[int]
    ) -> bool:
        low, high, width = window
        inside = [(t, given, change) for t, given, change in self.labels if low < t <= high]
        fraud = sum(change for _, given, change in inside if given <= self.time)
        more = less = 0
        for t, given, change in inside if self.old_labels else ():
            start = t // width * width
            edge = start <= low or start == (high + 1) // width * width or self.panes_dropped
            # An old label at an edge may be missing; one that is given later may count already.
            effect = -change if given <= self.time and edge else change if given > self.time else 0
            more, less = more + max(effect, 0), less + min(effect, 0)
        frauds = range(fraud + less, fraud + more + 1)
        if aggregate == "label_count":
            return served in frauds
        return any(served == (f / n if n else 0.0) for f in frauds for n in counts)


def _newest_hold(aggregate: str, served: float | None, exact: list[Any], values: list[Any], *, known: bool) -> bool:
    """Only the newest transactions count: those of `exact`, if the order is known; else any part of `values`."""
    if aggregate == "distinct":
        return served == len(set(exact)) if known else served is not None and 0 <= served <= len(set(values))
    if aggregate == "std":
        if not known:
            return served is None or 0 <= served <= (max(values) - min(values)) / 2 + _TOLERANCE
        wanted = float(np.std(np.array(exact, dtype=np.float64))) if exact else None
        return served == wanted or (None not in (served, wanted) and bool(np.isclose(served, wanted, rtol=_TOLERANCE)))  # type: ignore[arg-type]
    if known:
        return served == (None if not exact else float(min(exact) if aggregate == "min" else max(exact)))
    return served is None or served in values


def _sum_holds(aggregate: str, served: float | None, n: int, values: list[Any], missing: list[Any]) -> bool:
    """Whether the sum or the mean of `n` of the `values` may be `served`, if the others are among the `missing`."""
    if aggregate == "mean" and (served is None or not n):
        return served is None and not n
    if served is None:
        return False
    total, gone, ordered = sum(values), len(values) - n, sorted(missing)
    most, least = total - sum(ordered[:gone]), total - sum(ordered[len(ordered) - gone :])
    got = served * n if aggregate == "mean" else served
    slack = _TOLERANCE * max(abs(total), 1)
    return bool(least - slack <= got <= most + slack)


def plan_of(checked: CheckedSpec) -> dict[tuple[str, bool, str | None], EntityPlan]:
    """The plan of each kind of row, by entity, whether it has conditions, and the field that it holds."""
    return {(p.name, bool(p.where), p.of): p for p in make_plan(checked).entities}
