"""What a rollback saved: the excess of alerts that the version would have raised on the transactions after it."""

from __future__ import annotations

from dataclasses import dataclass

from stream_scorer.incidents.log import IncidentLog, IncidentTable
from stream_scorer.records import Incident, Saved, ScoreSummary

# Event time after the action that counts. Later, a person would have acted.
SPAN_MS = 3_600_000


@dataclass(slots=True)
class _After:
    """Transactions after the action, and the first and newest event time among them, ms."""

    transactions: int = 0
    first: int | None = None
    newest: int = 0


class Savings:
    """Counts the transactions after each withdrawal, and then completes its incident."""

    def __init__(self) -> None:
        self._after: dict[str, _After] = {}
        self._pending: dict[str, Incident] = {}

    @staticmethod
    def pending(table: IncidentTable) -> dict[str, Incident]:
        """The verdicts that ended with the command that was due, and whose savings are not known yet."""
        return {
            incident.id: incident
            for incident in table.newest.values()
            if incident.command is not None
            and incident.command == incident.due
            and incident.saved is None
            and incident.rows
        }

    def update(self, table: IncidentTable) -> None:
        """Take over the incidents that are pending now."""
        self._pending = self.pending(table)
        self._after = {key: self._after.get(key, _After()) for key in self._pending}

    def add_summary(self, summary: ScoreSummary) -> None:
        """Count the transactions of a summary after the commands that ended pending incidents."""
        for key, incident in self._pending.items():
            after = self._after[key]
            if summary.ensemble != incident.ensemble or summary.newest is None:
                continue
            if (summary.control_offset or 0) < (incident.ended_by or 0):
                continue
            after.first = summary.newest if after.first is None else min(after.first, summary.newest)
            after.newest = max(after.newest, summary.newest)
            if summary.newest <= after.first + SPAN_MS:
                after.transactions += sum(pane.rows for pane in summary.panes)

    def settle(self, log: IncidentLog) -> None:
        """Write the savings of the incidents whose hour is over."""
        for key, after in list(self._after.items()):
            if after.first is None or after.newest <= after.first + SPAN_MS:
                continue
            if log.amend(key, saved=saved(self._pending[key], after.transactions)):
                del self._after[key], self._pending[key]


def saved(incident: Incident, transactions: int) -> Saved:
    """What ending a verdict's `incident` saved among `transactions` after it."""
    excess = (incident.only - incident.lacking) / incident.rows
    how = (
        f"estimated: {transactions:,} transactions in the hour of event time after {incident.command}, at the measured "
        f"excess of {1_000 * excess:+.2f} alerts per 1,000 transactions"
    )
    return Saved(transactions, round(excess * transactions), how)
