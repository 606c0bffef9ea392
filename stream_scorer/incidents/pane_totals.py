"""Transactions and money by event-time pane, for incidents that began at an event time."""

from __future__ import annotations

from dataclasses import replace

from stream_scorer.incidents.log import Condition
from stream_scorer.records import Affected, ScoreSummary

# Panes that are kept per ensemble; the oldest are forgotten first.
MAX_PANES = 2_048


class PaneTotals:
    """Transactions and their amounts (minor units) by ensemble and pane, as far as summaries were read."""

    def __init__(self) -> None:
        self._panes: dict[str, dict[int, tuple[int, int]]] = {}

    def add_summary(self, summary: ScoreSummary) -> None:
        """Count a summary."""
        panes = self._panes.setdefault(summary.ensemble, {})
        for pane in summary.panes:
            rows, money = panes.get(pane.pane, (0, 0))
            panes[pane.pane] = rows + pane.rows, money + sum(pane.money.values())
        while len(panes) > MAX_PANES:
            del panes[min(panes)]

    def completed(self, condition: Condition) -> Condition:
        """`condition` with what was counted since its beginning, unless less was read than it has by itself."""
        affected, since = condition.affected, condition.opened_event
        if affected is None or since is None or affected.transactions is None:
            return condition
        found = [value for pane, value in self._panes.get(condition.subject.ensemble, {}).items() if pane >= since]
        rows, money = sum(row for row, _ in found), sum(amount for _, amount in found)
        if rows < affected.transactions:
            return condition
        return replace(condition, affected=Affected(rows, money=money, how=affected.how))
