"""The incidents of versions under test: a version alerts more cards, or fewer, than the one it is compared with."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

from stream_scorer.control.commands import CommandLog
from stream_scorer.control.label_watch import LABELS_SUFFIX
from stream_scorer.control.probation import Pair, Paired
from stream_scorer.control.state import History
from stream_scorer.incidents.log import Condition, IncidentLog, Subject, is_of_comparison
from stream_scorer.records import Action, Affected, CountedCards, Incident

NO_COMMANDS: Mapping[str, Action] = MappingProxyType({})


def incident_id(pair: Pair) -> str:
    """The id of the verdict on `pair`, which every monitor derives equally, before and after a restart.

    Its incident has the same id, unless one of a former topic `control` has it (`incidents/log.py`).
    """
    return f"{pair.ensemble}-{pair.start}"


def actions_at(history: History, offsets: Mapping[str, int]) -> dict[str, Action]:
    """The actions of the commands at `offsets`, by ensemble, as far as `history` keeps them."""
    commands = {entry.offset: entry.command for entry in history.entries if entry.command is not None}
    return {name: commands[offset].action for name, offset in offsets.items() if offset in commands}


def counted_cards(paired: Paired) -> CountedCards:
    """The alerted cards of a pair, for a record."""
    counts = paired.cards.counts
    return CountedCards(counts.both, counts.served, counts.other, paired.cards.waiting)


def condition_of(paired: Paired, due: Action, held_back: str) -> Condition:
    """The condition of a version whose number of alerted cards changed."""
    pair, verdict = paired.pair, paired.verdict
    falls = verdict.finding == "fall"
    cause, culprit = paired.cause(falls=falls), paired.culprit(falls=falls)
    member = cause.member if cause is not None else culprit[0] if culprit is not None else None
    cards = counted_cards(paired)
    return Condition(
        kind="verdict",
        subject=Subject(pair.ensemble, pair.served.version, member),
        start=pair.start,
        why=paired.summary(),
        event_time=paired.cards.newest,
        opened_event=paired.cards.first,
        began=pair.at,
        affected=Affected(
            transactions=paired.rows,
            cards=cards.only + cards.lacking,
            alerts=paired.served - paired.other,
            how="transactions that count in the comparison; cards that only one of them alerts; difference of alerts",
        ),
        done=f"{due} is due but not submitted" if held_back else f"the monitor submits {due}",
        details={
            "due": due,
            "held_back": held_back,
            "other": pair.other.version,
            "since": pair.since,
            "began": pair.at,
            "rows": paired.rows,
            "both": paired.both,
            "only": paired.served,
            "lacking": paired.other,
            "log_evidence": verdict.evidence.fall if falls else verdict.evidence.rise,
            "finding": verdict.finding,
            "cards": cards,
            "input": cause.input if cause is not None else None,
            "difference": cause.difference if cause is not None else "",
        },
    )


def _is_on(incident: Incident, pair: Pair) -> bool:
    same = (incident.ensemble, incident.since) == (pair.ensemble, pair.since)
    return same and is_of_comparison(incident, pair.served.version, pair.other.version, pair.at)


class Incidents:
    """The incidents of versions under test. Every write first reads the log to its end."""

    def __init__(self, log: CommandLog) -> None:
        self.log = IncidentLog(log)

    def open(self) -> list[Incident]:
        """The incidents of every kind that are not closed, oldest first. Raises as `IncidentLog.read`."""
        return self.log.open()

    def report(self, paired: Paired, due: Action, held_back: str, at: int) -> bool:
        """Open the incident of a pair, or update it if the action or its delay changed. Returns whether it worked."""
        return self.log.report(condition_of(paired, due, held_back), at)

    def close_all_but(
        self,
        pairs: Collection[Pair],
        ended_by: Mapping[str, int],
        at: int,
        commands: Mapping[str, Action] = NO_COMMANDS,
    ) -> bool:
        """Close the incidents of all pairs except `pairs`. Returns whether that worked. Raises as `open`.

        Args:
            ended_by: offset of the newest command, by ensemble. at: current time, ms. commands: its action.
        """
        worked = True
        for incident in self.open():
            ended = ended_by.get(incident.ensemble)
            if incident.kind != "verdict" or incident.id.endswith(LABELS_SUFFIX) or ended is None:
                continue
            if not any(_is_on(incident, pair) for pair in pairs):
                command = commands.get(incident.ensemble)
                done = incident.done if command is None else f"{command} at control offset {ended}"
                why = "the versions are no longer compared"
                worked &= self.log.close_incident(incident.id, why, at, ended_by=ended, command=command, done=done)
        return worked

    def close(self) -> None:
        """Close the log."""
        self.log.close()
