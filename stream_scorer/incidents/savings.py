"""What a rollback saved: the excess of alerts that the version would have raised on the transactions after it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from stream_scorer.incidents.detector import percent
from stream_scorer.incidents.log import IncidentLog, IncidentTable
from stream_scorer.records import Incident, Saved, ScoreSummary

# Event time after the action that counts. Later, a person would have acted.
SPAN_MS = 3_600_000
# Control offsets of an ensemble whose decisions are kept; the oldest are forgotten first.
MAX_OFFSETS = 64


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
        # Transactions by ensemble, control offset and the version that decided them.
        self._decided: dict[str, dict[int, Counter[str]]] = {}

    @staticmethod
    def pending(table: IncidentTable, closed_after: int) -> dict[str, Incident]:
        """The verdicts that ended with the command that was due, and whose savings are not known yet.

        Those that were closed until `closed_after`, ms, get none: a start no longer reads the hour after the command.
        """
        return {
            incident.id: incident
            for incident in table.newest.values()
            if incident.command is not None
            and incident.command == incident.due
            and incident.saved is None
            and incident.rows
            and (incident.closed or 0) > closed_after
        }

    def update(self, table: IncidentTable, closed_after: int) -> None:
        """Take over the incidents that are pending now; see `pending`."""
        self._pending = self.pending(table, closed_after)
        self._after = {key: self._after.get(key, _After()) for key in self._pending}

    def add_summary(self, summary: ScoreSummary) -> None:
        """Count the transactions of a summary after the commands that ended pending incidents."""
        self._add_decided(summary)
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

    def _add_decided(self, summary: ScoreSummary) -> None:
        offsets = self._decided.setdefault(summary.ensemble, {})
        decided = offsets.setdefault(summary.control_offset or 0, Counter())
        decided[summary.version] += sum(pane.rows for pane in summary.panes)
        while len(offsets) > MAX_OFFSETS:
            del offsets[min(offsets)]

    def _share(self, incident: Incident) -> float | None:
        """The share of the transactions that the version decided before it was withdrawn; None if it is not known."""
        if incident.command != "stop":
            return 1.0
        decided: Counter[str] = Counter()
        for offset, by_version in self._decided.get(incident.ensemble, {}).items():
            if incident.since <= offset < (incident.ended_by or 0):
                decided += by_version
        return decided[incident.version] / decided.total() if decided[incident.version] else None

    def settle(self, log: IncidentLog) -> None:
        """Write the savings of the incidents whose hour is over. Without a known share, there is no estimate."""
        for key, after in list(self._after.items()):
            if after.first is None or after.newest <= after.first + SPAN_MS:
                continue
            share = self._share(self._pending[key])
            if share is not None and log.amend(key, saved=saved(self._pending[key], after.transactions, share)):
                del self._after[key], self._pending[key]


def saved(incident: Incident, transactions: int, share: float = 1.0) -> Saved:
    """What ending a verdict's `incident` saved among `transactions` after it, of which the version decided `share`."""
    excess = (incident.candidate_only - incident.baseline_only) / incident.rows
    decided = round(share * transactions)
    part = "" if share == 1.0 else f"{percent(share)}, the share of the canary, of "
    how = (
        f"estimated: {part}{transactions:,} transactions in the hour of event time after {incident.command}, at the "
        f"measured excess of {1_000 * excess:+.2f} alerts per 1,000 transactions"
    )
    return Saved(decided, round(excess * decided), how)
