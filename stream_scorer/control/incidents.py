"""The incidents of versions under test: a version alerts more cards, or fewer, than the one it is compared with."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

from stream_scorer.control.commands import CommandLog
from stream_scorer.control.label_watch import LABELS_SUFFIX
from stream_scorer.control.probation import Comparison, ComparisonCounts
from stream_scorer.control.state import History
from stream_scorer.incidents.log import Condition, IncidentLog, Subject, is_of_comparison
from stream_scorer.records import Action, Affected, CountedCards, Incident

NO_COMMANDS: Mapping[str, Action] = MappingProxyType({})


def incident_id(comparison: Comparison) -> str:
    """The id of the verdict on `comparison`, which every monitor derives equally, before and after a restart.

    Its incident has the same id, unless one of a former topic `control` has it (`incidents/log.py`).
    """
    return f"{comparison.ensemble}-{comparison.start}"


def actions_at(history: History, offsets: Mapping[str, int]) -> dict[str, Action]:
    """The actions of the commands at `offsets`, by ensemble, as far as `history` keeps them."""
    commands = {entry.offset: entry.command for entry in history.entries if entry.command is not None}
    return {name: commands[offset].action for name, offset in offsets.items() if offset in commands}


def counted_cards(counts: ComparisonCounts) -> CountedCards:
    """The alerted cards of a pair, for a record."""
    found = counts.cards.counts
    return CountedCards(found.both, found.candidate_only, found.baseline_only, counts.cards.waiting)


def condition_of(counts: ComparisonCounts, due: Action, held_back: str) -> Condition:
    """The condition of a version whose number of alerted cards changed."""
    comparison, verdict = counts.comparison, counts.verdict
    falls = verdict.finding == "fall"
    cause, culprit = counts.cause(falls=falls), counts.culprit(falls=falls)
    member = cause.member if cause is not None else culprit[0] if culprit is not None else None
    cards = counted_cards(counts)
    return Condition(
        kind="verdict",
        subject=Subject(comparison.ensemble, comparison.candidate.version, member),
        start=comparison.start,
        why=counts.summary(),
        event_time=counts.cards.newest,
        opened_event=counts.cards.first,
        began=comparison.at,
        affected=Affected(
            transactions=counts.rows,
            cards=cards.candidate_only + cards.baseline_only,
            alerts=counts.candidate_only - counts.baseline_only,
            how="transactions that count in the comparison; cards that only one of them alerts; difference of alerts",
        ),
        done=f"{due} is due but not submitted" if held_back else f"the monitor submits {due}",
        details={
            "due": due,
            "held_back": held_back,
            "baseline": comparison.baseline.version,
            "since": comparison.since,
            "began": comparison.at,
            "rows": counts.rows,
            "both": counts.both,
            "candidate_only": counts.candidate_only,
            "baseline_only": counts.baseline_only,
            "log_evidence": verdict.evidence.fall if falls else verdict.evidence.rise,
            "finding": verdict.finding,
            "cards": cards,
            "input": cause.input if cause is not None else None,
            "difference": cause.difference if cause is not None else "",
        },
    )


def _is_on(incident: Incident, comparison: Comparison) -> bool:
    same = (incident.ensemble, incident.since) == (comparison.ensemble, comparison.since)
    return same and is_of_comparison(incident, comparison.candidate.version, comparison.baseline.version, comparison.at)


class Incidents:
    """The incidents of versions under test. Every write first reads the log to its end."""

    def __init__(self, log: CommandLog) -> None:
        self.log = IncidentLog(log)

    def open(self) -> list[Incident]:
        """The incidents of every kind that are not closed, oldest first. Raises as `IncidentLog.read`."""
        return self.log.open()

    def report(self, counts: ComparisonCounts, due: Action, held_back: str, at: int) -> bool:
        """Open the incident of a pair, or update it if the action or its delay changed. Returns whether it worked."""
        return self.log.report(condition_of(counts, due, held_back), at)

    def close_all_but(
        self,
        comparisons: Collection[Comparison],
        ended_by: Mapping[str, int],
        at: int,
        commands: Mapping[str, Action] = NO_COMMANDS,
    ) -> bool:
        """Close the incidents of all pairs except `comparisons`. Returns whether that worked. Raises as `open`.

        Args:
            ended_by: offset of the newest command, by ensemble. at: current time, ms. commands: its action.
        """
        worked = True
        for incident in self.open():
            ended = ended_by.get(incident.ensemble)
            if incident.kind != "verdict" or incident.id.endswith(LABELS_SUFFIX) or ended is None:
                continue
            if not any(_is_on(incident, comparison) for comparison in comparisons):
                command = commands.get(incident.ensemble)
                done = incident.done if command is None else f"{command} at control offset {ended}"
                why = "the versions are no longer compared"
                worked &= self.log.close_incident(incident.id, why, at, ended_by=ended, command=command, done=done)
        return worked

    def close(self) -> None:
        """Close the log."""
        self.log.close()
