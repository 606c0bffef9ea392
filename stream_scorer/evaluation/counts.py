"""Counts of transactions by group, label and decision, from which all figures at thresholds and budgets follow."""

from __future__ import annotations

import numpy as np

from stream_scorer.arrays import Bools, Floats, Int8s, Ints
from stream_scorer.evaluation.labels import FRAUD, UNLABELLED
from stream_scorer.evaluation.result import Alerts
from stream_scorer.quality import AlertQuality

_LABELS, _DECISIONS = 3, 3
# Amounts are added in two halves, each exact as a double: the sum of 2^29 of them stays below 2^53.
_HALF = 24
_BLOCK = 2


class Cells:
    """Numbers and amounts of transactions ``(groups, labels, decisions)``; a group has a row, and rows may be added."""

    def __init__(self, groups: int) -> None:
        shape = (groups, _LABELS, _DECISIONS)
        self.rows = np.zeros(shape, np.int64)
        self.value = np.zeros(shape, np.int64)

    def grow(self, groups: int) -> None:
        """Add rows until there are at least `groups` groups."""
        more = groups - len(self.rows)
        if more > 0:
            empty = np.zeros((more, _LABELS, _DECISIONS), np.int64)
            self.rows, self.value = np.concatenate([self.rows, empty]), np.concatenate([self.value, empty])

    def add(self, group: Ints, label: Int8s, decision: Int8s, value: Ints) -> None:
        """Add transactions ``(n,)``; a group below 0 is left out."""
        cell = (group * _LABELS + (label - UNLABELLED)) * _DECISIONS + decision
        inside = group >= 0
        if not inside.all():
            cell, value = cell[inside], value[inside]
        size = self.rows.size
        self.rows += np.bincount(cell, minlength=size).reshape(self.rows.shape)
        low = np.bincount(cell, weights=value & ((1 << _HALF) - 1), minlength=size)
        high = np.bincount(cell, weights=value >> _HALF, minlength=size)
        self.value += (low.astype(np.int64) + (high.astype(np.int64) << _HALF)).reshape(self.rows.shape)

    def with_rest(self, whole: Cells) -> Cells:
        """These, which are alerts only, and as not alerted whatever else is in `whole`."""
        found = Cells(len(self.rows))
        for mine, all_, out in ((self.rows, whole.rows, found.rows), (self.value, whole.value, found.value)):
            out[:] = mine
            out[:, :, 0] = all_.sum(axis=2) - mine.sum(axis=2)
        return found

    def alerts(
        self,
        group: int,
        *,
        review_cost: int,
        threshold: float | None = None,
        budget: float | None = None,
    ) -> Alerts:
        """The figures of one group."""
        rows, value = self.rows[group], self.value[group]
        fraud, unlabelled = FRAUD - UNLABELLED, 0
        transactions, frauds = int(rows.sum()), int(rows[fraud].sum())
        alerts, blocks, caught = int(rows[:, 1:].sum()), int(rows[:, _BLOCK].sum()), int(rows[fraud, 1:].sum())
        silent = int(rows[unlabelled, 1:].sum())
        blocked_genuine = blocks - int(rows[fraud, _BLOCK])
        found = AlertQuality(alerts, caught, frauds, transactions - frauds)
        sure = AlertQuality(alerts - silent, caught, frauds, transactions - frauds)
        value_fraud, value_caught = int(value[fraud].sum()), int(value[fraud, 1:].sum())
        cost = (alerts - blocks) * review_cost
        return Alerts(
            rule="thresholds" if budget is None else "budget",
            threshold=threshold,
            budget=budget,
            transactions=transactions,
            labelled=transactions - int(rows[unlabelled].sum()),
            frauds=frauds,
            alerts=alerts,
            blocks=blocks,
            blocked_genuine=blocked_genuine,
            blocked_genuine_low=blocked_genuine - int(rows[unlabelled, _BLOCK]),
            caught=caught,
            unlabelled=int(rows[unlabelled].sum()),
            unlabelled_alerts=silent,
            precision=found.precision,
            precision_high=(caught + silent) / alerts if alerts else None,
            recall=found.recall,
            false_positive_rate=found.false_positive_rate,
            false_positive_rate_low=sure.false_positive_rate,
            value_fraud=value_fraud,
            value_caught=value_caught,
            value_lost=value_fraud - value_caught,
            review_cost=cost,
            saved=value_caught - cost,
        )


class Ranking:
    """The ranking of transactions by one score, exact, in memory proportional to the number of frauds.

    Average precision and ROC AUC depend only on how many genuine transactions lie between two distinct scores of
    frauds, and at each of them. NaN scores are left out.

    Args:
        fraud: the scores of all frauds. keep: how many of the highest scores budgets need.
    """

    def __init__(self, fraud: Floats, keep: int) -> None:
        fraud = fraud[~np.isnan(fraud)]
        self._levels, counts = np.unique(fraud, return_counts=True)
        # Even places lie between levels, odd ones on them.
        self.frauds = np.zeros(2 * len(self._levels) + 1, np.int64)
        self.frauds[1::2] = counts
        self.genuine = np.zeros_like(self.frauds)
        self.missing = 0
        self._keep = keep
        self._top = np.zeros(0)

    def add(self, score: Floats, fraud: Bools) -> None:
        """Add the scores of transactions ``(n,)``."""
        present = ~np.isnan(score)
        self.missing += len(score) - int(present.sum())
        genuine = score[present & ~fraud]
        place = 2 * np.searchsorted(self._levels, genuine)
        if len(self._levels):
            on = self._levels[np.minimum(place >> 1, len(self._levels) - 1)] == genuine
            place[on] += 1
        self.genuine += np.bincount(place, minlength=len(self.genuine))
        self._add_top(score[present])

    def _add_top(self, score: Floats) -> None:
        if not self._keep:
            return
        if len(self._top) >= self._keep:
            score = score[score > self._top.min()] if len(self._top) == self._keep else score
        self._top = np.concatenate([self._top, score])
        if len(self._top) > self._keep:
            self._top = np.partition(self._top, len(self._top) - self._keep)[len(self._top) - self._keep :]

    def threshold(self, alerts: int) -> float:
        """The score of the transaction at place `alerts` from the top; infinite for none."""
        if alerts <= 0 or not len(self._top):
            return float("inf")
        ordered = np.sort(self._top)
        return float(ordered[max(len(ordered) - alerts, 0)])
