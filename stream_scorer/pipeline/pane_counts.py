"""Counts of the decisions of a micro-batch by source partition and event-time pane, in one compiled pass.

numpy needs about forty calls for them, each with a fixed cost; for a batch of 24 rows this was a third of publishing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stream_scorer.arrays import Bools, Int8s, Ints
from stream_scorer.compiled import njit
from stream_scorer.records import DECISIONS

# Columns of a group's counts: total, duplicates, degraded and fallback, then per decision rows and money. The newest
# event time stands first.
_NEWEST, _TOTAL, _DUPLICATES, _DEGRADED, _FALLBACK, _DECISIONS = 0, 1, 2, 3, 4, 5
_MONEY = _DECISIONS + len(DECISIONS)
_MEMBERS = _MONEY + len(DECISIONS)
# Cells of a 2x2 table: both alert, only this version, only the other one, neither.
_CELLS = 4


class DecidedRows(NamedTuple):
    """The n transactions of a micro-batch, and what one version decided about them; m members, k other versions.

    chosen: (c,) the rows that count. span: (n,) index of the source partition. event_time: (n,) ms. value: (n,).
    decision: (n,) int8. duplicate, degraded, fallback: (n,) bool. member_alerts: (n,) bit mask. alert_without: (n, m)
    bool. others: (k, n) int8, decisions of the other versions.
    """

    chosen: Ints
    span: Ints
    event_time: Ints
    value: Ints
    decision: Int8s
    duplicate: Bools
    degraded: Bools
    fallback: Bools
    member_alerts: Ints
    alert_without: Bools
    others: Int8s


@dataclass(slots=True)
class GroupCounts:
    """The counts of one source partition and pane; 2x2 counts as in `records.PaneSummary`."""

    span: int
    pane: int
    newest: int
    total: int
    duplicates: int
    degraded: int
    fallback: int
    decisions: list[int]
    money: list[int]
    member_alerts: list[int]
    left_out: list[list[int]]
    against: list[list[int]]


def count_panes(rows: DecidedRows, pane_ms: int) -> tuple[list[GroupCounts], Ints]:
    """The counts of every source partition and pane with rows, in this order; (c,) the place of each row's group."""
    groups, group_of, counts = _count(rows, pane_ms)
    members, others = rows.alert_without.shape[1], rows.others.shape[0]
    left_out = _MEMBERS + members
    against = left_out + _CELLS * members
    out = []
    for (span, pane), row in zip(groups.tolist(), counts.tolist(), strict=True):
        tables = [row[at : at + _CELLS] for at in range(left_out, against + _CELLS * others, _CELLS)]
        newest, total, duplicates, degraded, fallback = row[:_DECISIONS]
        out.append(
            GroupCounts(
                span, pane, newest, total, duplicates, degraded, fallback, row[_DECISIONS:_MONEY],
                row[_MONEY:_MEMBERS], row[_MEMBERS:left_out], tables[:members], tables[members:],
            )
        )  # fmt: skip
    return out, group_of


@njit(cache=True, nogil=True)
def _place(groups, n, span, pane):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Where a group is, or belongs, among the first `n` of the sorted `groups`."""
    low, high = 0, n
    while low < high:
        middle = (low + high) // 2
        if groups[middle, 0] < span or (groups[middle, 0] == span and groups[middle, 1] < pane):
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True, nogil=True)
def _find_groups(rows, pane_ms):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Groups (g, 2) of span and start of the pane, sorted, and the group of each chosen row."""
    chosen = rows.chosen
    groups = np.empty((16, 2), np.int64)
    n = 0
    for k in range(len(chosen)):
        span, pane = rows.span[chosen[k]], rows.event_time[chosen[k]] // pane_ms * pane_ms
        place = _place(groups, n, span, pane)
        if place < n and groups[place, 0] == span and groups[place, 1] == pane:
            continue
        if n == len(groups):
            more = np.empty((2 * n, 2), np.int64)
            more[:n] = groups
            groups = more
        for later in range(n, place, -1):
            groups[later, 0], groups[later, 1] = groups[later - 1, 0], groups[later - 1, 1]
        groups[place, 0], groups[place, 1] = span, pane
        n += 1
    group_of = np.empty(len(chosen), np.int64)
    for k in range(len(chosen)):
        group_of[k] = _place(groups, n, rows.span[chosen[k]], rows.event_time[chosen[k]] // pane_ms * pane_ms)
    return groups[:n], group_of


@njit(cache=True, nogil=True)
def _count(rows, pane_ms):  # type: ignore[no-untyped-def]  # pragma: no cover
    groups, group_of = _find_groups(rows, pane_ms)
    members, others = rows.alert_without.shape[1], rows.others.shape[0]
    left_out = _MEMBERS + members
    against = left_out + _CELLS * members
    counts = np.zeros((len(groups), against + _CELLS * others), np.int64)
    counts[:, _NEWEST] = -1
    for k in range(len(group_of)):
        row, out = rows.chosen[k], counts[group_of[k]]
        decision = rows.decision[row]
        out[_NEWEST] = max(out[_NEWEST], rows.event_time[row])
        out[_TOTAL] += 1
        out[_DUPLICATES] += rows.duplicate[row]
        out[_DEGRADED] += rows.degraded[row]
        out[_FALLBACK] += rows.fallback[row]
        out[_DECISIONS + decision] += 1
        out[_MONEY + decision] += rows.value[row]
        # Cells 0 and 1 if this version alerts, 2 and 3 if not; the second of each if the other one does not.
        first = 0 if decision > 0 else 2
        for member in range(members):
            out[_MEMBERS + member] += rows.member_alerts[row] >> member & 1
            out[left_out + _CELLS * member + first + (not rows.alert_without[row, member])] += 1
        for other in range(others):
            out[against + _CELLS * other + first + (rows.others[other, row] <= 0)] += 1
    return groups, group_of, counts


def warm() -> None:
    """Compile the loops, or load them from their cache, before the first batch has to wait for them."""
    one, flag, code = np.zeros(1, np.int64), np.zeros(1, np.bool_), np.zeros(1, np.int8)
    rows = DecidedRows(one, one, one, one, code, flag, flag, flag, one, flag[:, None], code[:0, None])
    count_panes(rows, 1)
