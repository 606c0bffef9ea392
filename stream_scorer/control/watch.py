"""Watches what stands on probation or as a canary, and takes it out of play when the paired test says so.

What it finds stands on `incidents`, and it keeps nothing itself: what serves is read from `control`, and the counts of
a pair from `score-summaries`, beginning shortly before the command that made it a pair. So a restart comes to the same
counts, and several watchers to the same command, of which one counts.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import msgspec

from stream_scorer.clock import Clock
from stream_scorer.control.commands import CommandLog, catch_up, submit
from stream_scorer.control.incidents import Incidents
from stream_scorer.control.probation import Pair, Paired, acted_since, pairs
from stream_scorer.control.state import History
from stream_scorer.errors import StreamScorerError
from stream_scorer.observability.metrics import Metric, Metrics
from stream_scorer.records import NOT_A_RECORD, Action, Command, ScoreSummary

_log = logging.getLogger(__name__)
Mode = Literal["off", "propose", "auto"]
# Summaries of so long before a pair began are read too: what its members did then. More than clocks differ by.
BEFORE_MS = 10 * 60_000
READ_WAIT_S = 0.2
MOST = 5_000
RETRY_S = 2.0
# A record that is none, or has counts that are not four.
UNREADABLE = (*NOT_A_RECORD, ValueError, IndexError)

_LABELS = ("ensemble", "version", "other")
EVIDENCE = Metric(
    "gauge",
    "stream_scorer_paired_evidence",
    "Natural logarithm of the evidence that a version on probation, or a canary, alerts more than the other; 6.9 acts.",
    _LABELS,
)
ROWS = Metric("gauge", "stream_scorer_paired_rows", "Transactions that both versions of a pair scored.", _LABELS)
RISE = Metric("gauge", "stream_scorer_paired_alert_rise", "By how much the version alerts more, as a share.", _LABELS)
ACTED = Metric(
    "counter", "stream_scorer_watch_commands_total", "Commands given by the monitor, by action.", ("ensemble", "action")
)
WATCH_METRICS = (EVIDENCE, ROWS, RISE, ACTED)


class SummaryRecord(Protocol):
    """A record of `score-summaries`."""

    @property
    def value(self) -> bytes | None: ...


class SummaryReader(Protocol):
    """What is needed of `kafka.load.RecordFollower`."""

    def poll(self, most: int, timeout_s: float) -> Sequence[SummaryRecord]: ...

    def close(self) -> None: ...


class Watch:
    """See the module.

    Args:
        incidents: where it is told what is found. follow: opens `score-summaries` at a record timestamp, ms.
        mode: `auto` gives commands, `propose` only says which it would give.
        probation: after so many transactions, at the earliest, a probation is over if nothing speaks for a rise.
        cooldown_s: within this after a version was taken out of play by a monitor, a second one is only proposed.
    """

    def __init__(
        self,
        log: CommandLog,
        incidents: Incidents,
        follow: Callable[[int], SummaryReader],
        clock: Clock,
        metrics: Metrics,
        *,
        who: str,
        mode: Mode,
        probation: int,
        cooldown_s: float,
    ) -> None:
        self._log, self._follow, self._clock, self._metrics = log, follow, clock, metrics
        self._incidents = incidents
        self._who, self._mode = who, mode
        self._probation, self._cooldown_ms = probation, int(cooldown_s * 1_000)
        self._history = History()
        self._paired: dict[Pair, Paired] = {}
        self._reader: SummaryReader | None = None
        self._looked = False
        self._said: set[tuple[Pair, Action, str]] = set()
        self._decode = msgspec.json.Decoder(ScoreSummary).decode

    def run(self, stop: threading.Event) -> None:
        """Watch until `stop`; trouble with the broker is told and waited out."""
        while not stop.is_set():
            try:
                self.step()
            except StreamScorerError as error:
                _log.warning("watching probations: %s", error.message)
                self._forget()
                stop.wait(RETRY_S)
            except Exception:  # whatever it is, nobody would watch any more
                _log.exception("watching probations")
                self._forget()
                stop.wait(RETRY_S)
        self._forget()
        self._log.close()
        self._incidents.close()

    def step(self) -> None:
        """Follow control, count what has come, and act on it."""
        catch_up(self._log, self._history, self._log.end())
        found = [pair for state in self._history.states.values() for pair in pairs(state, self._history)]
        if set(found) != set(self._paired) or not self._looked:
            self._begin(found)
            self._tell_ends(found)
            self._looked = True
        if self._reader is None:
            for command in self._log.read(READ_WAIT_S):
                self._history.add(command.offset, command.value)
            return
        records = self._reader.poll(MOST, READ_WAIT_S)
        for record in records:
            try:
                summary = self._decode(record.value or b"")
                for paired in self._paired.values():
                    paired.add(summary)
            except UNREADABLE as error:
                _log.warning("a summary that cannot be read is left out: %s", error)
        for paired in self._paired.values():
            self._show(paired)
        # What is behind is read first: a command rests on all there is.
        if len(records) < MOST:
            for paired in list(self._paired.values()):
                self._judge(paired)

    def _begin(self, found: list[Pair]) -> None:
        """Count these pairs, from before the first of them began."""
        self._forget()
        if found:
            self._reader = self._follow(min(pair.at for pair in found) - BEFORE_MS)
        self._paired = {pair: Paired(pair) for pair in found}

    def _forget(self) -> None:
        if self._reader is not None:
            self._reader.close()
        for pair in self._paired:
            self._show(Paired(pair))
        self._reader, self._paired, self._looked = None, {}, False

    def _show(self, paired: Paired) -> None:
        pair = paired.pair
        labels = (pair.ensemble, pair.served.version, pair.other.version)
        self._metrics.set(EVIDENCE, paired.log_evidence, *labels)
        self._metrics.set(ROWS, paired.rows, *labels)
        self._metrics.set(RISE, paired.rise if paired.rows else 0.0, *labels)

    def _judge(self, paired: Paired) -> None:
        pair = paired.pair
        if paired.risen:
            self._want(paired, pair.ends)
        elif pair.ends == "rollback" and paired.rows >= self._probation and paired.calm:
            self._want(paired, "confirm")

    def _want(self, paired: Paired, action: Action) -> None:
        """Give the command, or say why it is only proposed; a rise is told as an incident either way."""
        pair, state = paired.pair, self._history.states[paired.pair.ensemble]
        why = ""
        if self._mode == "propose":
            why = "by hand: the monitor proposes"
        elif state.hold is not None:
            why = f"by hand: {state.hold.who} holds it ({state.hold.why})"
        elif action != "confirm" and acted_since(
            self._history, pair.ensemble, self._clock.now_ms() - self._cooldown_ms
        ):
            why = "by hand: it would be the second within the cool-down"
        if (pair, action, why) in self._said:
            return
        told = action == "confirm" or self._tell(paired, action, why)
        if why:
            _log.warning("%s %s is due, %s: %s", action, pair.ensemble, why, paired.told())
            if told:
                self._said.add((pair, action, why))
            return
        entry = submit(self._log, self._history, lambda offset: self._command(paired, action, offset))
        if entry.refused:
            _log.warning("%s %s is refused: %s", action, pair.ensemble, entry.refused)
            return
        self._metrics.count(ACTED, 1, pair.ensemble, action)
        _log.warning("%s %s: %s", action, pair.ensemble, paired.told())

    def _tell(self, paired: Paired, action: Action, held_back: str) -> bool:
        """Open an incident, and say if it was. Not being able to must not keep a command from being given."""
        try:
            self._incidents.tell(paired, action, held_back, self._clock.now_ms())
        except StreamScorerError as error:
            _log.warning("an incident of %s cannot be told: %s", paired.pair.ensemble, error.message)
            return False
        return True

    def _tell_ends(self, found: list[Pair]) -> None:
        newest = {ensemble: state.control_offset for ensemble, state in self._history.states.items()}
        try:
            self._incidents.close_all_but(found, newest, self._clock.now_ms())
        except StreamScorerError as error:
            _log.warning("the end of an incident cannot be told: %s", error.message)

    def _command(self, paired: Paired, action: Action, offset: int) -> Command:
        return Command(
            ensemble=paired.pair.ensemble,
            action=action,
            who=self._who,
            why=paired.told(),
            at=self._clock.now_ms(),
            expected_offset=offset,
            author="monitor",
            version=paired.pair.served if action == "stop" else None,
        )
