"""Follows the topics, and turns conditions on them into incidents.

It needs Kafka only and stores nothing: it reads again from before the first open incident, and reaches the same state.
Of a partition whose last transaction is scored earlier than that, it reads the last summary.
Every monitor runs it; `IncidentLog` makes one incident of what several report.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from stream_scorer.clock import Clock
from stream_scorer.errors import BrokerUnavailable
from stream_scorer.incidents.detector import DetectedConditions
from stream_scorer.incidents.feeds import FeedDetector, FeedRules
from stream_scorer.incidents.labels import MEMORY_MS, LabelDetector, LabelRules
from stream_scorer.incidents.log import IncidentLog, IncidentTable, key_of
from stream_scorer.incidents.pane_totals import PaneTotals
from stream_scorer.incidents.savings import Savings
from stream_scorer.incidents.service_levels import ServiceDetector, ServiceRules
from stream_scorer.observability.metrics import Metric, Metrics
from stream_scorer.records import INCIDENT_KINDS, NOT_A_RECORD, Outcome, ScorerStatus, ScoreSummary, Source

_log = logging.getLogger(__name__)

OPEN = Metric("gauge", "stream_scorer_open_incidents", "Incidents that are open, by kind.", ("kind",))
INCIDENT_METRICS = (OPEN,)

MAX_RECORDS = 5_000
READ_WAIT_S, IDLE_S = 0.0, 0.5
# Reading a backlog fails after this long without a record.
SILENCE_S = 30.0
EVALUATE_EVERY_S = 5.0
# After this time, the broker is asked for ends that are not reached: an open transaction may cover them.
ASK_AFTER_S = 1.0
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
# How far before now reading begins: usual rates of the traffic, and usual pauses of label sources. These must be known
# also for a source that stopped up to ten days ago: three times a weekend of three days is nine days. And how far at
# most, if an incident has been open for long.
HISTORY_MS, LABEL_HISTORY_MS, MAX_HISTORY_MS = HOUR_MS, MEMORY_MS + 10 * DAY_MS, 8 * DAY_MS
# If a person closed an incident within this time before a start, reading begins before that: only then is it known
# whether the condition lasted on or began again.
CLOSED_BY_MS = DAY_MS


class TopicRecord(Protocol):
    """A record of a topic."""

    @property
    def partition(self) -> int: ...

    @property
    def offset(self) -> int: ...

    @property
    def value(self) -> bytes | None: ...

    @property
    def timestamp_ms(self) -> int: ...

    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]] | None: ...


class TopicFollower(Protocol):
    """The interface of `kafka.follower.BacklogFollower`."""

    def poll(self, max_records: int, timeout_s: float) -> Sequence[TopicRecord]:
        """Raises `ReaderLost` if another follower must read again: it brings nothing of a partition, for example."""
        ...

    def caught_up(self, *, leaderless: bool) -> bool:
        """Whether `poll` has come to the end that each partition had when the follower was opened.

        `leaderless`: whether a partition without a leader, of which nothing can be read, counts as read.
        """
        ...

    def known_ends(self) -> Mapping[int, int]:
        """The present end of each partition, as far as it is known."""
        ...

    def passed(self, ends: Mapping[int, int], *, ask: bool, leaderless: bool) -> bool:
        """Whether `poll` has come to these ends; `ask`: whether the broker may be asked. See `caught_up`."""
        ...

    def last_before_start(self) -> Sequence[TopicRecord]:
        """The last record of each partition that has none since the start."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class SignalRules:
    """The limits of all detectors."""

    feeds: FeedRules = field(default_factory=FeedRules)
    labels: LabelRules = field(default_factory=LabelRules)
    services: ServiceRules = field(default_factory=ServiceRules)


class Detectors:
    """All detectors together. They take records of topics, by the keys of `stream_scorer.settings.TOPICS`."""

    # The topics that are read.
    TOPICS = ("score_summaries", "scorer_status", "outcomes", "dead_letters")

    def __init__(self, rules: SignalRules) -> None:
        self.feeds = FeedDetector(rules.feeds)
        self.labels = LabelDetector(rules.labels)
        self.services = ServiceDetector(rules.services)
        self.savings, self.totals = Savings(), PaneTotals()
        self._summary = msgspec.json.Decoder(ScoreSummary).decode
        self._status = msgspec.json.Decoder(ScorerStatus).decode
        self._outcome = msgspec.json.Decoder(Outcome).decode

    def add(self, topic: str, record: TopicRecord) -> None:
        """Add a record; one that is unreadable is ignored."""
        try:
            self._add(topic, record)
        except (*NOT_A_RECORD, ValueError, IndexError) as error:
            _log.warning("an unreadable record of %s at offset %d is ignored: %s", topic, record.offset, error)

    def _add(self, topic: str, record: TopicRecord) -> None:
        at = record.timestamp_ms
        if topic == "dead_letters":
            code, path, source = _dead_letter(record)
            self.feeds.add_dead_letter(code, path, source, at)
        elif record.value is None:
            return  # the status of a scorer that stopped
        elif topic == "score_summaries":
            self.add_summary(self._summary(record.value), at)
        elif topic == "scorer_status":
            self.services.add_status(self._status(record.value), at)
        elif topic == "outcomes":
            self.labels.add_outcome(self._outcome(record.value), at)

    def seed(self, record: TopicRecord, topics: Container[str]) -> None:
        """Add the last summary before the time that is read, if its input is one of `topics`."""
        try:
            summary = self._summary(record.value or b"")
        except NOT_A_RECORD:
            return
        if summary.topic in topics:
            self.feeds.seed(summary, record.timestamp_ms)

    def add_summary(self, summary: ScoreSummary, at: int) -> None:
        """Add a summary with its record timestamp, ms."""
        newest = summary.newest_at(at)
        if newest != summary.newest:
            summary = msgspec.structs.replace(summary, newest=newest)
        for detector in (self.feeds, self.labels, self.services):
            detector.add_summary(summary, at)
        self.savings.add_summary(summary)
        self.totals.add_summary(summary)

    def advance(self, now: int) -> DetectedConditions:
        """The findings of all detectors at `now`, ms."""
        found = DetectedConditions()
        for detector in (self.feeds, self.labels, self.services):
            found.add(detector.advance(now))
        return found


def apply(found: DetectedConditions, log: IncidentLog, at: int) -> None:
    """Open, update and close incidents as `found` says."""
    for condition in found.conditions:
        log.report(condition, at)
    if not found.over:
        return
    present = {(condition.kind, condition.subject.text) for condition in found.conditions}
    for incident in log.open():
        over = found.over.get(key_of(incident))
        if over is not None and key_of(incident) not in present and over.ends(incident):
            log.close_incident(incident.id, over.ended, at, event_time=over.event_time)


class Signals:
    """Runs the detectors on live topics.

    Args:
        follow: opens a topic (by its key in `settings.TOPICS`) at a record timestamp, ms.
        ends: the ends of the input partitions. more: findings of parts that do not follow topics.
    """

    def __init__(
        self,
        log: IncidentLog,
        follow: Callable[[str, int], TopicFollower],
        ends: Callable[[], Mapping[tuple[str, int], int]],
        clock: Clock,
        metrics: Metrics,
        rules: SignalRules,
        more: Callable[[], DetectedConditions] = DetectedConditions,
    ) -> None:
        self._more = more
        self._log, self._follow, self._ends, self._clock, self._metrics = log, follow, ends, clock, metrics
        self._detectors = Detectors(rules)
        self._readers: dict[str, TopicFollower] = {}
        self._evaluated_s = float("-inf")
        # By topic, the ends that must be read before the evaluation that is due, and when it became due.
        self._due: dict[str, Mapping[int, int]] = {}
        self._due_s = 0.0

    def run(self, stop: threading.Event, on_ready: Callable[[], None] = lambda: None) -> None:
        """Follow until `stop`, then close what was opened. Calls `on_ready` after each evaluation.

        Raises:
            StreamScorerError: Kafka does not answer, or the clock went back; then another `Signals` reads again.
        """
        try:
            self._open()
            self._read_backlog(stop)
            while not stop.is_set():
                if self.step():
                    on_ready()
        finally:
            for reader in self._readers.values():
                reader.close()
            self._log.close()

    def step(self) -> bool:
        """Read what has arrived; evaluate if it is time and what was there is read. Returns whether it was evaluated.

        A poll that returns few records, or none, does not show that no more wait.
        """
        for index, topic in enumerate(self._readers):
            self._read(topic, IDLE_S if index == 0 else READ_WAIT_S)
        now_s = self._clock.monotonic()
        if now_s - self._evaluated_s < EVALUATE_EVERY_S:
            return False
        if not self._due:
            self._due, self._due_s = {topic: reader.known_ends() for topic, reader in self._readers.items()}, now_s
        ask = now_s - self._due_s >= ASK_AFTER_S
        # A partition that has lost its leader must not delay what the others show.
        if not all(self._readers[topic].passed(ends, ask=ask, leaderless=True) for topic, ends in self._due.items()):
            return False
        self._due, self._evaluated_s = {}, now_s
        self.evaluate()
        return True

    def evaluate(self) -> None:
        """Open, update and close incidents by what was read."""
        now = self._clock.now_ms()
        self._detectors.feeds.set_ends(self._ends())
        found, more = self._detectors.advance(now), self._more()
        more.conditions = [self._detectors.totals.completed(condition) for condition in more.conditions]
        found.add(more)
        apply(found, self._log, now)
        table = self._log.read()
        self._detectors.savings.update(table, now - MAX_HISTORY_MS)
        self._detectors.savings.settle(self._log)
        self._show(table)

    def _show(self, table: IncidentTable) -> None:
        found = table.open()
        for kind in INCIDENT_KINDS:
            self._metrics.set(OPEN, sum(incident.kind == kind for incident in found), kind)

    def _open(self) -> None:
        now, table = self._clock.now_ms(), self._log.read()
        oldest = now - MAX_HISTORY_MS
        self._detectors.savings.update(table, oldest)
        times = [incident.opened for incident in table.open()]
        times += [incident.closed or incident.opened for incident in Savings.pending(table, oldest).values()]
        by_persons = [each.closed for each in table.newest.values() if each.closed_by and each.closed is not None]
        times += [closed for closed in by_persons if closed > now - CLOSED_BY_MS]
        since = max(min([now, *times]) - HISTORY_MS, oldest, 0)
        for topic in Detectors.TOPICS:
            start = max(now - LABEL_HISTORY_MS, 0) if topic == "outcomes" else since
            self._readers[topic] = self._follow(topic, start)
        # What stopped before that has no record, and would be unknown.
        inputs = {topic for topic, _ in self._ends()}
        for record in self._readers["score_summaries"].last_before_start():
            if record.timestamp_ms >= oldest:
                self._detectors.seed(record, inputs)

    def _read_backlog(self, stop: threading.Event) -> None:
        """Read every topic to the end that it had at the start, so that no minute is evaluated before it is complete.

        Raises:
            BrokerUnavailable: nothing more comes. ReaderLost: see `TopicFollower.poll`.
        """
        for topic, reader in self._readers.items():
            since_s = self._clock.monotonic()
            while not stop.is_set() and not reader.caught_up(leaderless=True):
                if self._read(topic, IDLE_S):
                    since_s = self._clock.monotonic()
                elif self._clock.monotonic() - since_s >= SILENCE_S:
                    raise BrokerUnavailable(f"no more records of {topic} come, though it has more")

    def _read(self, topic: str, wait_s: float) -> int:
        """Read what has arrived on `topic`. Returns the number of records."""
        records = self._readers[topic].poll(MAX_RECORDS, wait_s)
        for record in records:
            self._detectors.add(topic, record)
        return len(records)


def _dead_letter(record: TopicRecord) -> tuple[str, str, Source]:
    """Code, path and origin of a dead letter, from its headers. Raises `ValueError` without them."""
    headers: dict[str, Any] = dict(record.headers or ())

    def text(name: str) -> str:
        return (headers.get(name) or b"").decode("utf-8", "replace")

    source = Source(text("source.topic"), int(text("source.partition")), int(text("source.offset")))
    return text("error.code"), text("error.path"), source
