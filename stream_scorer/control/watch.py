"""Watches versions on probation and canaries: withdraws, confirms, or waits, by the verdict on alerted cards.

The watch writes to `incidents` and `verdicts` and stores nothing itself: it reads the serving state from `control` and
the counts of a pair from `score-summaries`, starting shortly before the command that created the pair. So a restart
leads to the same counts, and several watches submit the same command, of which one counts.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Literal, Protocol

from stream_scorer.clock import Clock
from stream_scorer.control.collection import COLLECTED, Withdrawal, withdrawals
from stream_scorer.control.commands import CommandLog, catch_up, submit
from stream_scorer.control.counting import Counting
from stream_scorer.control.incidents import Incidents, actions_at, incident_id
from stream_scorer.control.probation import (
    GRACE_MS,
    Comparison,
    ComparisonCounts,
    acted_since,
    after_harmless,
    comparisons,
    raised,
)
from stream_scorer.control.state import Entry, History
from stream_scorer.control.summary_reader import BEFORE_MS, SummaryReader
from stream_scorer.control.verdict import Tolerances
from stream_scorer.control.verdicts import Verdicts, verdict_record
from stream_scorer.errors import ReaderLost, StreamScorerError, UnavailableError
from stream_scorer.observability.metrics import Metric, Metrics
from stream_scorer.records import Action, Command, IncidentKind

_log = logging.getLogger(__name__)
Mode = Literal["off", "propose", "auto"]
READ_WAIT_S = 0.2
# The commands that a watch submits.
ACTIONS: tuple[Action, ...] = ("rollback", "stop", "confirm", "canary", "promote")
# If incidents of ended comparisons could not be closed, that is tried again after this time. It may wait for the broker
# for long, and delays commands meanwhile.
CLOSE_AGAIN_S = 60.0
# A command that Kafka refused, for example because an ACL is missing, is submitted again after this time.
SUBMIT_AGAIN_S = 15.0
# Incidents of these kinds pause the ladder of a canary: something other than the canary may move its alerts.
PAUSING: tuple[IncidentKind, ...] = ("drift", "feed", "latency", "errors", "breaker")
# These delay a confirmation too: transactions without a member that failed are left out of the comparison, so the
# version is not judged as it decides now.
FAILING: tuple[IncidentKind, ...] = ("errors", "breaker")

_LABELS = ("ensemble", "version", "baseline")
EVIDENCE = Metric(
    "gauge",
    "stream_scorer_paired_evidence",
    "Natural logarithm of the evidence that a version on probation, or a canary, alerts on more cards (direction rise) "
    "or on fewer cards (fall) than its baseline; the monitor acts at 6.9.",
    (*_LABELS, "direction"),
)
TRANSACTIONS = Metric(
    "gauge", "stream_scorer_paired_transactions", "Transactions that count in the comparison of a pair.", _LABELS
)
CARDS = Metric("gauge", "stream_scorer_paired_cards", "Cards that a version of a pair alerts, each once.", _LABELS)
RISE = Metric(
    "gauge",
    "stream_scorer_paired_alert_rise",
    "Relative change of alerted cards compared with the baseline; NaN while the baseline alerts none.",
    _LABELS,
)
ACTED = Metric(
    "counter",
    "stream_scorer_watch_commands_total",
    "Commands submitted by the monitor, by action.",
    ("ensemble", "action"),
)
WATCH_METRICS = (EVIDENCE, TRANSACTIONS, CARDS, RISE, ACTED, COLLECTED)


@dataclass(frozen=True, slots=True)
class WatchRules:
    """What a watch may do.

    Attributes:
        mode: `auto` submits commands, `propose` only reports the command that it would submit.
        cooldown_s: time after a monitor withdrew a version in which a second one is only proposed.
        tolerances: the change of alerted cards that is tolerated, and the minimum number of transactions.
        grace_ms: event time in which the other version may alert a card as well.
    """

    mode: Mode
    cooldown_s: float
    tolerances: Tolerances = field(default_factory=Tolerances)
    grace_ms: int = GRACE_MS


class Labels(Protocol):
    """The interface of `label_watch.LabelWatch`."""

    def step(self, history: History, active: set[str], now: int) -> None: ...

    def close(self) -> None: ...


class Collections(Protocol):
    """The interface of `collection.CollectionWatch`."""

    def step(self, history: History, now: int) -> list[tuple[Withdrawal, str]]: ...

    def running(self, history: History) -> set[str]: ...

    def wants(self, cards: int) -> bool: ...

    def close(self) -> None: ...


class Statuses(Protocol):
    """The interface of `liveness.StatusReader`."""

    def lacking(self, ensemble: str, offset: int, versions: Collection[str]) -> list[str]: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class WatchParts:
    """What a watch writes to, follows and asks. All of it is closed with the watch, except `verdicts`.

    Attributes:
        incidents, verdicts: the logs of findings.
        labels: follows the labels of withdrawn versions.
        collections: collects cards for these labels. A version that is rolled back leaves play if it wants no more.
        scorers: shows which scorers have applied a command. No version is confirmed before all have.
    """

    incidents: Incidents
    verdicts: Verdicts
    labels: Labels
    collections: Collections
    scorers: Statuses


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Kafka refused a command: why, and when to submit it again, by the monotonic clock."""

    held_back: str
    again_at: float


class Watch:
    """Counts the pairs in play and acts on them as `rules` allow.

    Args:
        follow: opens `score-summaries` at a record timestamp, ms. who: the author of commands.
    """

    def __init__(
        self,
        log: CommandLog,
        follow: Callable[[int], SummaryReader],
        clock: Clock,
        metrics: Metrics,
        *,
        who: str,
        rules: WatchRules,
        parts: WatchParts,
    ) -> None:
        self._log, self._follow, self._clock, self._metrics = log, follow, clock, metrics
        self._who, self._rules = who, rules
        self._parts = parts
        self._history = History()
        self._counting: dict[Comparison, Counting] = {}
        # When the incidents of ended comparisons are closed, by the monotonic clock: at the start, after each change of
        # the pairs, and again if it failed.
        self._close_at = float("-inf")
        # Findings that are reported and need a person: each is logged once.
        self._reported: set[tuple[Comparison | Withdrawal, Action, str]] = set()
        self._refusals: dict[tuple[Comparison | Withdrawal, Action], _Refusal] = {}

    def run(self, stop: threading.Event, on_ready: Callable[[], None] = lambda: None) -> None:
        """Watch until `stop`, then close the logs. Calls `on_ready` after each step.

        After an error, start a new watch: it reads everything again and comes to the same counts.

        Raises:
            ReaderLost: a topic was created again, lost records, or brings nothing any more.
            StreamScorerError: Kafka does not answer.
        """
        try:
            while not stop.is_set():
                self.step()
                on_ready()
        finally:
            self._keep([])
            self._log.close()
            for part in (self._parts.incidents, self._parts.labels, self._parts.collections, self._parts.scorers):
                part.close()

    def step(self) -> None:
        """Read new commands and summaries, and act on the counts."""
        catch_up(self._log, self._history, self._log.end())
        for ensemble in self._history.states:
            self._metrics.begin(ACTED, ACTIONS, ensemble)
        found = [
            comparison for state in self._history.states.values() for comparison in comparisons(state, self._history)
        ]
        if set(found) != self._counting.keys():
            self._begin(found)
            self._close_at = float("-inf")
        if self._clock.monotonic() >= self._close_at:
            self._close_at = float("inf") if self._close_ended(found) else self._clock.monotonic() + CLOSE_AGAIN_S
        self._collect()
        self._follow_labels()
        if not self._counting:
            for command in self._log.read(READ_WAIT_S):
                self._history.add(command.offset, command.value, command.timestamp)
        due: list[Action | None] = []
        for counting in self._counting.values():
            if counting.read(READ_WAIT_S / len(self._counting)):
                self._show(counting.counts)
                due.append(self._judge(counting.counts))
        # A pair that is behind may still have a confirmation due.
        if len(due) == len(self._counting) and "confirm" not in due:
            self._parts.scorers.close()

    def _collect(self) -> None:
        """See `CollectionWatch`. Stops versions whose cards are complete. A failure prevents no other command."""
        try:
            for withdrawal, why in self._parts.collections.step(self._history, self._clock.now_ms()):
                self._stop(withdrawal, why)
        except ReaderLost:
            raise
        except StreamScorerError as error:
            _log.warning("cards of withdrawn versions could not be collected: %s", error.message)

    def _stop(self, withdrawal: Withdrawal, why: str) -> None:
        """End the time in shadow of a withdrawn version. It decides nothing, so no cool-down applies."""
        if withdrawal not in withdrawals(self._history):  # see `_judge`: a person may have kept it as a shadow
            return
        hold = self._history.states[withdrawal.ensemble].hold
        held_back = "needs a person: monitor.mode is propose" if self._rules.mode == "propose" else ""
        if hold is not None:
            held_back = f"needs a person: {hold.who} put a hold on it ({hold.why})"
        held_back = held_back or self._submit(
            withdrawal,
            "stop",
            why,
            lambda offset: Command(
                ensemble=withdrawal.ensemble,
                action="stop",
                who=self._who,
                why=why,
                at=self._clock.now_ms(),
                expected_offset=offset,
                author="monitor",
                version=withdrawal.version,
            ),
        )
        reported: tuple[Comparison | Withdrawal, Action, str] = (withdrawal, "stop", held_back)
        if held_back and reported not in self._reported:
            _log.warning("stop %s is due, %s: %s", withdrawal.ensemble, held_back, why)
            self._reported.add(reported)

    def _follow_labels(self) -> None:
        """See `LabelWatch`. What fails there must not prevent a command, and is tried again."""
        active = {incident_id(comparison) for comparison in self._counting}
        active |= self._parts.collections.running(self._history)
        try:
            self._parts.labels.step(self._history, active, self._clock.now_ms())
        except ReaderLost:
            raise
        except StreamScorerError as error:
            _log.warning("labels of withdrawn versions could not be followed: %s", error.message)

    def _begin(self, found: list[Comparison]) -> None:
        """Count `found`: those that are new from before they began, the others further."""
        self._keep(found)
        for comparison in found:
            if comparison not in self._counting:
                # The broker refuses to look up a negative time.
                reader = self._follow(max(comparison.at - BEFORE_MS, 0))
                self._counting[comparison] = Counting(reader, self._count(comparison), self._clock.monotonic)

    def _count(self, comparison: Comparison) -> ComparisonCounts:
        return ComparisonCounts(comparison, self._rules.tolerances, self._rules.grace_ms)

    def _keep(self, found: list[Comparison]) -> None:
        """Forget all pairs except `found`, and refused commands about what has ended."""
        current = {*found, *withdrawals(self._history)}
        self._refusals = {key: refusal for key, refusal in self._refusals.items() if key[0] in current}
        for comparison in [comparison for comparison in self._counting if comparison not in found]:
            self._counting.pop(comparison).close()
            labels = _labels_of(comparison)
            for direction in ("rise", "fall"):
                self._metrics.remove(EVIDENCE, *labels, direction)
            for metric in (TRANSACTIONS, CARDS, RISE):
                self._metrics.remove(metric, *labels)

    def _show(self, counts: ComparisonCounts) -> None:
        evidence, cards = counts.verdict.evidence, counts.cards.counts
        labels = _labels_of(counts.comparison)
        self._metrics.set(EVIDENCE, evidence.rise, *labels, "rise")
        self._metrics.set(EVIDENCE, evidence.fall, *labels, "fall")
        self._metrics.set(TRANSACTIONS, counts.rows, *labels)
        self._metrics.set(CARDS, cards.total, *labels)
        self._metrics.set(RISE, cards.rise, *labels)

    def _judge(self, counts: ComparisonCounts) -> Action | None:
        """Act on the verdict, and publish it. Returns the command that is due; none follows from an undecided one."""
        comparison, finding = counts.comparison, counts.verdict.finding
        # A command for another pair also reads the commands of others. One of them may have ended this pair, and then
        # a `rollback` or `confirm` would meet a version that is not judged.
        if comparison not in comparisons(self._history.states[comparison.ensemble], self._history):
            return None
        due: Action | None = None
        if finding in ("rise", "fall"):
            due = comparison.ends
        elif finding == "harmless":
            due = after_harmless(self._history.states[comparison.ensemble], comparison)
        held_back = self._held_back(comparison, due) if due is not None else ""
        submitted = False
        if due is not None and not held_back and (comparison, due) in self._refusals:
            # Before anything is reported: if Kafka refuses it again, the verdict and the incident stay as they are.
            held_back = self._submit_for(counts, due)
            submitted = not held_back
        self._publish(counts, due, held_back)
        if due is not None:
            self._act(counts, due, held_back, submitted=submitted)
        return due

    def _publish(self, counts: ComparisonCounts, due: Action | None, held_back: str) -> None:
        """Write the verdict. A failure must not prevent the command."""
        try:
            self._parts.verdicts.write(verdict_record(counts, due, held_back, self._clock.now_ms()))
        except StreamScorerError as error:
            _log.warning("the verdict on %s could not be written: %s", counts.comparison.ensemble, error.message)

    def _held_back(self, comparison: Comparison, action: Action) -> str:
        """The reason why the watch does not submit the command; empty if it may."""
        hold = self._history.states[comparison.ensemble].hold
        # First what holds in every mode: a person should not submit such a command either.
        if action == "confirm":
            paused = self._paused(comparison.ensemble, FAILING) or self._not_applied(comparison)
        else:
            paused = self._paused(comparison.ensemble, PAUSING) if action in ("canary", "promote") else ""
        if paused:
            return paused
        if self._rules.mode == "propose":
            return "needs a person: monitor.mode is propose"
        if hold is not None:
            return f"needs a person: {hold.who} put a hold on it ({hold.why})"
        if action not in ("rollback", "stop"):
            return ""
        since = self._clock.now_ms() - int(self._rules.cooldown_s * 1_000)
        if acted_since(self._history, comparison.ensemble, since, action):
            return "needs a person: the monitor withdrew another version within the cool-down"
        return ""

    def _not_applied(self, comparison: Comparison) -> str:
        """The running scorers that do not score both versions yet. What they score is missing from the counts."""
        try:
            lacking = self._parts.scorers.lacking(
                comparison.ensemble, comparison.since, (comparison.candidate.version, comparison.baseline.version)
            )
        except StreamScorerError as error:
            return f"paused: the status of scorers cannot be read ({error.message})"
        return f"paused until these scorers score both versions: {', '.join(lacking)}" if lacking else ""

    def _paused(self, ensemble: str, kinds: tuple[IncidentKind, ...]) -> str:
        """The open incidents of `kinds`; empty if there are none. What cannot be read pauses too."""
        try:
            found = [each for each in self._parts.incidents.open() if each.ensemble in ("", ensemble)]
        except ReaderLost:
            raise
        except StreamScorerError as error:
            return f"paused: incidents cannot be read ({error.message})"
        signals = [each.id for each in found if each.kind in kinds]
        return f"paused while incidents are open: {', '.join(signals)}" if signals else ""

    def _act(self, counts: ComparisonCounts, action: Action, why: str, *, submitted: bool) -> None:
        """Submit the command unless it is `submitted`, or log `why` it is held back.

        Either way, a changed number of alerts is an incident. If Kafka refuses the command, the next step reports it.
        """
        comparison = counts.comparison
        if (comparison, action, why) in self._reported:
            return
        reported = action not in ("rollback", "stop") or self._report(counts, action, why)
        if why:
            _log.warning("%s %s is due, %s: %s", action, comparison.ensemble, why, counts.summary())
            if reported:
                self._reported.add((comparison, action, why))
            return
        if not submitted:
            self._submit_for(counts, action)

    def _submit_for(self, counts: ComparisonCounts, action: Action) -> str:
        """See `_submit`."""
        return self._submit(
            counts.comparison, action, counts.summary(), lambda offset: self._command(counts, action, offset)
        )

    def _submit(self, about: Comparison | Withdrawal, action: Action, why: str, make: Callable[[int], Command]) -> str:
        """Submit the command that `make` returns. The result is empty, or the reason why Kafka refuses the command.

        A command that Kafka refused is not submitted before `SUBMIT_AGAIN_S` have passed. Counting goes on meanwhile.

        Raises:
            BrokerUnavailable: the command may or may not be in the log. Another watch reads the log first.
            ReaderLost: see `run`.
        """
        refusal = self._refusals.pop((about, action), None)
        if refusal is None or self._clock.monotonic() >= refusal.again_at:
            try:
                entry = submit(self._log, self._history, make)
            except (ReaderLost, UnavailableError):
                raise
            except StreamScorerError as error:
                refusal = _Refusal(
                    f"needs a person: Kafka refuses the command: {error.message}",
                    self._clock.monotonic() + SUBMIT_AGAIN_S,
                )
            else:
                self._note(entry, about.ensemble, action, why)
                return ""
        self._refusals[about, action] = refusal
        return refusal.held_back

    def _note(self, entry: Entry, ensemble: str, action: Action, why: str) -> None:
        """Count and log a command that is in the log."""
        if entry.refused:
            _log.warning("%s %s is refused: %s", action, ensemble, entry.refused)
            return
        self._metrics.count(ACTED, 1, ensemble, action)
        _log.warning("%s %s: %s", action, ensemble, why)

    def _report(self, counts: ComparisonCounts, action: Action, held_back: str) -> bool:
        """Report an incident and return whether that worked. A failure must not prevent the command."""
        return self._parts.incidents.report(counts, action, held_back, self._clock.now_ms())

    def _close_ended(self, found: list[Comparison]) -> bool:
        """Close the incidents of all pairs except `found`. Returns whether that worked."""
        newest = {ensemble: state.control_offset for ensemble, state in self._history.states.items()}
        try:
            return self._parts.incidents.close_all_but(
                found, newest, self._clock.now_ms(), actions_at(self._history, newest)
            )
        except ReaderLost:
            raise
        except StreamScorerError as error:
            _log.warning("an incident could not be closed: %s", error.message)
            return False

    def _command(self, counts: ComparisonCounts, action: Action, offset: int) -> Command:
        command = Command(
            ensemble=counts.comparison.ensemble,
            action=action,
            who=self._who,
            why=counts.summary(),
            at=self._clock.now_ms(),
            expected_offset=offset,
            author="monitor",
            version=counts.comparison.candidate,
            keep=action == "rollback" and self._parts.collections.wants(counts.cards.counts.candidate_only),
        )
        canary = self._history.states[counts.comparison.ensemble].canary
        if action not in ("canary", "promote") or canary is None:
            return command
        return raised(command, canary, counts.comparison.expected_rise)


def _labels_of(comparison: Comparison) -> tuple[str, str, str]:
    """The values of `_LABELS`."""
    return comparison.ensemble, comparison.candidate.version, comparison.baseline.version
