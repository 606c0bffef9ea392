"""Follows labels of the cards on which withdrawn versions disagreed, and publishes what they show.

It stores nothing: `verdicts` has the disagreements of each withdrawn version, and `outcomes` their labels. It submits
no command: a version that labels clear is proposed again by an incident, which is closed by the next command. A person
may have confirmed or promoted a version although its verdict was a rise or a fall. If labels then confirm the harm
while it decides, an incident states the command that is due, and is closed when the version decides no more.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from stream_scorer.control.commands import CommandLog
from stream_scorer.control.label_progress import LabelProgress
from stream_scorer.control.label_verdict import describe, judge_labels
from stream_scorer.control.state import History
from stream_scorer.errors import ReaderLost
from stream_scorer.incidents.log import Condition, IncidentLog, Subject
from stream_scorer.record_log import LogRecord, read_to_end
from stream_scorer.records import (
    NOT_A_RECORD,
    Action,
    CommonAlert,
    Disagreement,
    Finding,
    LabelFinding,
    LabelValue,
    Outcome,
    ServingState,
    VerdictRecord,
)

_log = logging.getLogger(__name__)
_MAX_OUTCOMES = 5_000
# The verdict is judged again at most this often.
JUDGE_EVERY_MS = 5_000
# End of the ids of incidents that labels open.
LABELS_SUFFIX = "-labels"


class OutcomeRecord(Protocol):
    """A record of `outcomes`."""

    @property
    def value(self) -> bytes | None: ...


class OutcomeReader(Protocol):
    """The interface of `kafka.follower.BacklogFollower`."""

    def poll(self, max_records: int, timeout_s: float) -> Sequence[OutcomeRecord]: ...

    def ends(self) -> Mapping[int, int]: ...

    def passed(self, ends: Mapping[int, int]) -> bool: ...

    def close(self) -> None: ...


class LabelWatch:
    """See the module.

    Args:
        verdicts: the topic `verdicts`. append: writes key and value of a verdict. follow: opens `outcomes` at a record
            timestamp, ms. horizon_ms: the label age at which a card is judged. monotonic: seconds on a clock that never
            goes back; it paces the watch, so that a correction of the wall clock does not stop it.
    """

    def __init__(
        self,
        verdicts: CommandLog,
        append: Callable[[str, bytes], object],
        follow: Callable[[int], OutcomeReader],
        incidents: IncidentLog,
        horizon_ms: int,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monotonic = monotonic
        self._verdicts, self._append, self._follow = verdicts, append, follow
        self._incidents, self._horizon_ms = incidents, horizon_ms
        # Verdicts that labels have not decided, by id, and the ids of those that may still change.
        self._open: dict[str, VerdictRecord] = {}
        self._active: set[str] = set()
        # The cards whose labels are read.
        self._followed: dict[str, list[Disagreement | CommonAlert]] = {}
        self._wanted: set[str] = set()
        self._labels: dict[str, list[tuple[int, LabelValue | None]]] = {}
        self._progress = LabelProgress(0)
        # By partition, the end of the topic at the last time that a judgement was due.
        self._ends: dict[int, int] = {}
        # The last step that was due, on the monotonic clock, ms.
        self._stepped_at = float("-inf")
        self._due = False
        self._reader: OutcomeReader | None = None

    def step(self, history: History, active: set[str], now: int) -> None:
        """Read new verdicts and labels, and publish what changed.

        Args:
            active: ids of the comparisons and collections that still run; their verdicts may change. now: clock, ms.

        Raises:
            BrokerUnavailable: the broker does not answer. ReaderLost: `verdicts` or `incidents` was created again or
                has lost records, so that another watch must read again.
        """
        passed_ms = self._monotonic() * 1_000
        if passed_ms - self._stepped_at >= JUDGE_EVERY_MS:
            self._stepped_at, self._due = passed_ms, True
            self._close_answered(history, now)
            if self._read_verdicts(active):
                self._restart()
        if self._reader is None:
            return
        try:
            complete = self._read_labels(self._reader)
        except ReaderLost as error:
            # Another reader replaces it. Commands of the watch must not depend on `outcomes`, so the watch goes on.
            _log.warning("labels are read again: %s", error.message)
            self._close_reader()
            return
        if complete:
            for verdict in self._judged():
                self._judge(verdict, history, now)

    def close(self) -> None:
        """Close the logs."""
        self._close_reader()
        self._verdicts.close()

    def _close_reader(self) -> None:
        """Stop reading labels, until `_restart` opens another reader."""
        if self._reader is not None:
            self._reader.close()
        self._reader, self._followed = None, {}

    def _read_labels(self, reader: OutcomeReader) -> bool:
        """Read what has arrived. Returns whether a judgement is due and all is read. Raises `ReaderLost`."""
        for record in reader.poll(_MAX_OUTCOMES, 0.0):
            self._add(record.value)
        due, self._due = self._due, False
        return due and self._caught_up(reader)

    def _read_verdicts(self, active: set[str]) -> bool:
        """Read the topic to its end; whether the versions to follow differ from those whose labels are read."""
        read_to_end(self._verdicts, self._add_verdict, "verdicts")
        self._active = active
        return self._followed != {verdict.id: _cards(verdict) for verdict in self._judged()}

    def _judged(self) -> list[VerdictRecord]:
        """The verdicts whose labels are read: those of versions that are withdrawn, with all their cards."""
        return [verdict for key, verdict in self._open.items() if key not in self._active]

    def _caught_up(self, reader: OutcomeReader) -> bool:
        """Whether every partition is read: a card seems silent whose label is on one that is not read yet.

        The ends are those of the last call, as ends of the present would never be reached while labels arrive.
        """
        before, self._ends = self._ends, dict(reader.ends())
        return bool(before) and reader.passed(before)

    def _add_verdict(self, record: LogRecord) -> None:
        try:
            verdict = msgspec.json.decode(record.value or b"", type=VerdictRecord)
        except NOT_A_RECORD:
            return
        before = self._open.get(verdict.id)
        if before is not None and before.began == verdict.began and verdict.rows < before.rows:
            return  # another monitor had read less, and had not seen the withdrawal yet
        decided = verdict.labels is not None and (verdict.labels.finding != "undecided" or not verdict.labels.waiting)
        if decided or not verdict.disagreements:
            self._open.pop(verdict.id, None)
        else:
            self._open[verdict.id] = verdict

    def _restart(self) -> None:
        """Read labels again from before the start of the first comparison that is followed."""
        self._close_reader()
        self._labels, self._ends = {}, {}
        judged = self._judged()
        cards = [each for verdict in judged for each in _cards(verdict)]
        self._wanted = {each.event_id for each in cards}
        self._progress = LabelProgress(min((each.at for each in cards), default=0) - self._horizon_ms)
        if judged:
            # From a label age before: a source that is late from the first card on must be known by its earlier labels.
            self._reader = self._follow(max(min(verdict.began for verdict in judged) - self._horizon_ms, 0))
        # Only now: what fails before is tried again.
        self._followed = {verdict.id: _cards(verdict) for verdict in judged}

    def _add(self, value: bytes | None) -> None:
        try:
            outcome = msgspec.json.decode(value or b"", type=Outcome)
        except NOT_A_RECORD as error:
            _log.warning("an unreadable outcome is ignored: %s", error)
            return
        self._progress.add(outcome)
        if outcome.event_id in self._wanted:
            self._labels.setdefault(outcome.event_id, []).append((outcome.labelled_at, outcome.label))

    def _judge(self, verdict: VerdictRecord, history: History, now: int) -> None:
        # A feed may be late by as much as the label age: the verdict takes at most twice as long.
        known = self._progress.known(self._horizon_ms)
        found = judge_labels(verdict.disagreements, self._labels, known, self._horizon_ms, common=verdict.common)
        if found == verdict.labels:
            return
        text = describe(verdict.version, verdict.baseline, found)
        # The incident comes first: after the verdict is written, it would not be tried again.
        if found.finding != "undecided" and not self._report(verdict, found.finding, text, history, now):
            return
        written = msgspec.structs.replace(verdict, labels=found, at=now)
        self._append(written.id, msgspec.json.encode(written))
        self._open[written.id] = written
        if found.finding != "undecided":
            _log.warning("version %s of %s: %s", verdict.version, verdict.ensemble, text)

    def _report(self, verdict: VerdictRecord, result: LabelFinding, text: str, history: History, now: int) -> bool:
        """Report what a person should do: promote a cleared version again, or withdraw one that does harm.

        Returns whether that worked, or nothing is to be done.
        """
        state = history.states.get(verdict.ensemble)
        if result == "harm":
            due = None if state is None else _withdrawal(state, verdict.version)
        else:
            due = None if state is not None and _cannot_be_promoted(state, verdict) else "promote"
        if due is None:
            return True
        finding: Finding = verdict.finding if result == "harm" else "harmless"
        return self._incidents.report(
            Condition(
                kind="verdict",
                subject=Subject(verdict.ensemble, verdict.version),
                start=f"{verdict.since}{LABELS_SUFFIX}",
                why=text,
                began=verdict.began or None,
                done="nothing: a person decides",
                statistics={"control_offset": -1 if state is None else state.control_offset},
                details={
                    "due": due,
                    "held_back": "needs a person: labels never lead to a command",
                    "baseline": verdict.baseline,
                    "since": verdict.since,
                    "began": verdict.began or None,
                    "finding": finding,
                },
            ),
            now,
        )

    def _close_answered(self, history: History, now: int) -> None:
        """Close proposals after which a command was submitted, and the harm of versions that decide no more."""
        for incident in self._incidents.open():
            state = history.states.get(incident.ensemble)
            if not incident.id.endswith(LABELS_SUFFIX) or state is None:
                continue
            offset, proposed = state.control_offset, incident.statistics.get("control_offset")
            if incident.finding != "harmless":
                due = _withdrawal(state, incident.version)
                if due is not None:
                    self._incidents.amend(incident.id, due=due)
                else:
                    ended = f"version {incident.version} decides no more"
                    self._incidents.close_incident(incident.id, ended, now, ended_by=offset)
            elif offset > (-1 if proposed is None else proposed):
                self._incidents.close_incident(incident.id, "a command was submitted", now, ended_by=offset)


def _withdrawal(state: ServingState, version: str) -> Action | None:
    """The command that ends the decisions of `version`; None if it decides nothing.

    Without a last good version, another one must be promoted.
    """
    if state.champion.version == version:
        back = state.last_good
        return "promote" if back is None or back.manifest_sha256 in state.retired else "rollback"
    return "stop" if state.canary is not None and state.canary.version.version == version else None


def _cannot_be_promoted(state: ServingState, verdict: VerdictRecord) -> bool:
    """Whether the version of the verdict serves already, or a person has retired it."""
    return state.champion.version == verdict.version or verdict.manifest_sha256 in state.retired


def _cards(verdict: VerdictRecord) -> list[Disagreement | CommonAlert]:
    """The cards whose labels are compared."""
    return [*verdict.disagreements, *verdict.common]
