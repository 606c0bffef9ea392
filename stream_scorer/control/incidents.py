"""Incidents on their topic: opened once, updated only if the action or its delay changes, and closed."""

from __future__ import annotations

import logging
from collections.abc import Collection

import msgspec

from stream_scorer.control.commands import CommandLog
from stream_scorer.control.probation import Pair, Paired
from stream_scorer.records import NOT_A_RECORD, Action, CountedCards, Incident

_log = logging.getLogger(__name__)
_WAIT_S = 0.2


def incident_id(pair: Pair) -> str:
    """An id that every monitor derives equally, before and after a restart."""
    return f"{pair.ensemble}-{pair.since}"


def counted_cards(paired: Paired) -> CountedCards:
    """The alerted cards of a pair, for a record."""
    counts = paired.cards.counts
    return CountedCards(counts.both, counts.served, counts.other, paired.cards.waiting)


class Incidents:
    """The newest record of each incident. Every write first reads the log to its end."""

    def __init__(self, log: CommandLog) -> None:
        self._log = log
        self._next = 0
        self._newest: dict[str, Incident] = {}

    def open(self) -> list[Incident]:
        """The incidents that are not closed, oldest first."""
        self._read()
        return [incident for incident in self._newest.values() if incident.closed is None]

    def report(self, paired: Paired, due: Action, held_back: str, at: int) -> None:
        """Open the incident of a pair, or update it if the action or its delay changed. Raises `BrokerUnavailable`."""
        self._read()
        pair = paired.pair
        before = self._newest.get(incident_id(pair))
        if before is not None and (before.due, before.held_back, before.closed) == (due, held_back, None):
            return
        verdict = paired.verdict
        falls = verdict.finding == "fall"
        culprit = paired.culprit(falls=falls)
        self._write(
            Incident(
                id=incident_id(pair),
                ensemble=pair.ensemble,
                version=pair.served.version,
                other=pair.other.version,
                since=pair.since,
                opened=before.opened if before is not None else at,
                why=paired.summary(),
                rows=paired.rows,
                both=paired.both,
                only=paired.served,
                lacking=paired.other,
                log_evidence=verdict.evidence.fall if falls else verdict.evidence.rise,
                member=culprit[0] if culprit is not None else None,
                due=due,
                held_back=held_back,
                finding=verdict.finding,
                cards=counted_cards(paired),
            )
        )

    def close_all_but(self, pairs: Collection[Pair], ended_by: dict[str, int], at: int) -> None:
        """Close the incidents of all pairs except `pairs`. Raises `BrokerUnavailable`.

        Args:
            ended_by: offset of the newest command, by ensemble. at: current time, ms.
        """
        current = {incident_id(pair) for pair in pairs}
        for incident in self.open():
            if incident.id not in current and incident.ensemble in ended_by:
                self._write(msgspec.structs.replace(incident, closed=at, ended_by=ended_by[incident.ensemble]))

    def close(self) -> None:
        """Close the log."""
        self._log.close()

    def _read(self) -> None:
        end = self._log.end()
        while self._next < end:
            for record in self._log.read(_WAIT_S):
                try:
                    incident = msgspec.json.decode(record.value or b"", type=Incident)
                except NOT_A_RECORD as error:
                    _log.warning("record %d of incidents cannot be read: %s", record.offset, error)
                    continue
                self._newest[incident.id] = incident
            self._next = self._log.position()

    def _write(self, incident: Incident) -> None:
        self._log.append(incident.ensemble, msgspec.json.encode(incident))
        self._newest[incident.id] = incident
