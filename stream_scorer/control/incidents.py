"""Incidents as their topic has them: opened once, told again only if what is done about them changes, and closed."""

from __future__ import annotations

import logging
from collections.abc import Collection

import msgspec

from stream_scorer.control.commands import CommandLog
from stream_scorer.control.probation import Pair, Paired
from stream_scorer.records import NOT_A_RECORD, Action, Incident

_log = logging.getLogger(__name__)
_WAIT_S = 0.2


def incident_id(pair: Pair) -> str:
    """The same for every monitor, and after every restart."""
    return f"{pair.ensemble}-{pair.since}"


class Incidents:
    """The newest record of each incident. The log is read to its end before anything is written to it."""

    def __init__(self, log: CommandLog) -> None:
        self._log = log
        self._next = 0
        self._newest: dict[str, Incident] = {}

    def open(self) -> list[Incident]:
        """Those that have not ended, oldest first."""
        self._read()
        return [incident for incident in self._newest.values() if incident.closed is None]

    def tell(self, paired: Paired, due: Action, held_back: str, at: int) -> None:
        """Open the incident of a pair, or say that what is done about it has changed. Raises `BrokerUnavailable`."""
        self._read()
        pair = paired.pair
        before = self._newest.get(incident_id(pair))
        if before is not None and (before.due, before.held_back, before.closed) == (due, held_back, None):
            return
        culprit = paired.culprit()
        self._write(
            Incident(
                id=incident_id(pair),
                ensemble=pair.ensemble,
                version=pair.served.version,
                other=pair.other.version,
                since=pair.since,
                opened=before.opened if before is not None else at,
                why=paired.told(),
                rows=paired.rows,
                both=paired.both,
                only=paired.served,
                lacking=paired.other,
                log_evidence=paired.log_evidence,
                member=culprit[0] if culprit is not None else None,
                due=due,
                held_back=held_back,
            )
        )

    def close_all_but(self, pairs: Collection[Pair], ended_by: dict[str, int], at: int) -> None:
        """Close those whose pair stands no longer side by side. Raises `BrokerUnavailable`.

        Args:
            ended_by: the newest command by ensemble. at: now, ms.
        """
        standing = {incident_id(pair) for pair in pairs}
        for incident in self.open():
            if incident.id not in standing and incident.ensemble in ended_by:
                self._write(msgspec.structs.replace(incident, closed=at, ended_by=ended_by[incident.ensemble]))

    def close(self) -> None:
        """Let go of the log."""
        self._log.close()

    def _read(self) -> None:
        end = self._log.end()
        while self._next < end:
            for record in self._log.read(_WAIT_S):
                self._next = record.offset + 1
                try:
                    incident = msgspec.json.decode(record.value or b"", type=Incident)
                except NOT_A_RECORD as error:
                    _log.warning("record %d of incidents cannot be read: %s", record.offset, error)
                    continue
                self._newest[incident.id] = incident

    def _write(self, incident: Incident) -> None:
        self._log.append(incident.ensemble, msgspec.json.encode(incident))
        self._newest[incident.id] = incident
