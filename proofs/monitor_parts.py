"""The parts of the monitor on records in memory: their real code, with Redis and SQLite, and without Kafka."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import msgspec
import redis

from proofs.monitor_feed import FIRST, PARTITIONS, SECOND, TOPICS, Cost, Output, now
from stream_scorer.clock import SystemClock
from stream_scorer.control.incidents import Incidents
from stream_scorer.control.label_watch import LabelWatch
from stream_scorer.control.verdict import Tolerances
from stream_scorer.control.verdicts import Verdicts
from stream_scorer.control.watch import WATCH_METRICS, Watch, WatchRules
from stream_scorer.ensemble.manifest import read_manifest
from stream_scorer.incidents.log import IncidentLog
from stream_scorer.incidents.signals import Detectors, SignalRules, apply
from stream_scorer.kafka.follower import FollowedRecord
from stream_scorer.kafka.partitioner import partitions_of
from stream_scorer.kafka.transactional_loop import InputRecord
from stream_scorer.monitor.app import Linked, OutcomeCounter, SummaryCounter, Tallier, source_name
from stream_scorer.monitor.drift_feed import DriftFeed
from stream_scorer.monitor.joiner import BATCH as JOIN_BATCH
from stream_scorer.monitor.joiner import Joiner, JoinRules
from stream_scorer.monitor.joiner_store import JoinerStore
from stream_scorer.monitor.metrics import MONITOR_METRICS
from stream_scorer.monitor.reference import EnsembleReferences
from stream_scorer.monitor.window_reports import CLOSE, MATURE, Partitions, WindowReporter, record_key
from stream_scorer.monitor.windows import WindowRules
from stream_scorer.observability.metrics import Metrics
from stream_scorer.records import Command, MonitorMetric, Outcome, ServedVersion
from stream_scorer.spec import CheckedSpec
from stream_scorer.spec.model import duration_ms
from stream_scorer.state.counters import CounterStore
from tests.support.watch import parts

WINDOW_PANES = (1, 24)
# Micro-batches per read of the windows and the joiner, per report of the windows, and per evaluation of incidents:
# about 0.2 s, 1 s and 5 s at 20,000 transactions per second.
READ, REPORT, EVALUATE = 4, 20, 100
# Counters outlive the run.
TTL_S = 86_400
_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class EventClock:
    """The wall clock of live traffic: the newest event time. Seconds of `monotonic` are the same."""

    at: int = 0

    def now_ms(self) -> int:
        """The newest event time, ms."""
        return self.at

    def monotonic(self) -> float:
        """The same in seconds."""
        return self.at / 1_000


class References(EnsembleReferences):
    """Every version has the manifest in one folder, which is read for each of them, as from a registry."""

    def __init__(self, folder: Path, clock: EventClock) -> None:
        super().__init__("registry", folder, clock)
        self._folder = folder

    def _load(self, reference: str) -> tuple[str, str]:
        return self._keep(read_manifest(self._folder), reference.partition(":")[2])


class TimedDrift(DriftFeed):
    """The detector of drift events, which measures its own time."""

    cost: Cost

    def turn(self, changed: Iterable[int], closed_before: int, lost_before: int = -1) -> list[MonitorMetric]:
        """See `DriftFeed.turn`."""
        started = now()
        records = super().turn(changed, closed_before, lost_before)
        self.cost.add(0, started)
        return records

    def settle(self) -> None:
        """See `DriftFeed.settle`."""
        started = now()
        super().settle()
        self.cost.add(0, started)


class WindowsPart:
    """Counts summaries and outcomes in Redis, and reports the windows that changed.

    Attributes:
        cost: of all of it. drift: of the detector of drift events, a part of `cost`. figures: number of records.
        redis: CPU seconds of Redis during both.
    """

    def __init__(self, client: redis.Redis, checked: CheckedSpec, folder: Path, clock: EventClock) -> None:
        self._client, self.redis = client, 0.0
        store = CounterStore(client, "monitor-bench", ttl_s=TTL_S)
        metrics, rules = Metrics(MONITOR_METRICS), window_rules(checked)
        summaries, outcomes = TOPICS.score_summaries, TOPICS.outcomes
        pane_ms, horizon_ms = rules.pane_ms, rules.horizon_ms
        count = SummaryCounter(summaries, metrics, pane_ms=pane_ms)
        counts = OutcomeCounter(outcomes, metrics, rules.label_sources, pane_ms=pane_ms, horizon_ms=horizon_ms)
        self._summaries = Tallier(store, metrics, summaries, count, (CLOSE, MATURE))
        self._outcomes = Tallier(store, metrics, outcomes, counts, ())
        store.open("1", {source_name(topic, p): 0 for topic in (summaries, outcomes) for p in range(PARTITIONS)})
        references = References(folder, clock)
        every = Partitions({p: source_name(summaries, p) for p in range(PARTITIONS)}, lambda _: {}, idle_s=1e9)
        budget = 4.0
        feed = TimedDrift(
            store, checked, references, metrics, pane_ms=rules.pane_ms, false_alarms_per_year=budget,
            on_events=lambda _events: None,
        )  # fmt: skip
        self._reporter = WindowReporter(
            store, rules, references, clock, metrics, name="one", partitions=every, drift=feed
        )
        self.cost, self.drift, self.figures = Cost(), Cost(), 0
        feed.cost = self.drift
        self._next: dict[tuple[str, int], int] = {}

    def count(self, outputs: Sequence[Output], outcomes: Sequence[Outcome], copies: int = 1) -> None:
        """Count the summaries of some micro-batches, each `copies` times, and outcomes."""
        encoded = [_encode(outcome) for outcome in outcomes]
        places = partitions_of([outcome.event_id.encode() for outcome in outcomes], PARTITIONS) if outcomes else ()
        before, started = self._redis_s(), now()
        for partition in range(PARTITIONS):
            values = [v for out in outputs for p, v in out.summaries if p == partition for _ in range(copies)]
            self._apply(self._summaries, TOPICS.score_summaries, partition, values)
            labels = [value for value, p in zip(encoded, places, strict=True) if p == partition]
            self._apply(self._outcomes, TOPICS.outcomes, partition, labels)
        self.cost.add(sum(output.rows for output in outputs), started)
        self.redis += self._redis_s() - before

    def report(self, rows: int) -> None:
        """Report what changed since the last call, `rows` transactions ago."""
        before, started = self._redis_s(), now()
        reports = self._reporter.turn()
        for record in reports.records:
            record_key(record), _encode(record)
        self._reporter.settle(reports)
        self.cost.add(0, started)
        self.redis += self._redis_s() - before
        self.drift.rows += rows
        self.figures += len(reports.records)

    def _redis_s(self) -> float:
        """CPU seconds of Redis so far. Between calls it uses some too, which is not the windows'."""
        cpu = cast(dict[str, float], self._client.info("cpu"))
        return cpu["used_cpu_user"] + cpu["used_cpu_sys"]

    def _apply(self, tallier: Tallier, topic: str, partition: int, values: list[bytes]) -> None:
        if not values:
            return
        start = self._next.get((topic, partition), 0)
        records = [Linked(start + i, start + i, value) for i, value in enumerate(values)]
        self._next[topic, partition] = start + len(values)
        tallier.apply(partition, records)


class JoinerPart:
    """Joins labels with scores in SQLite, and deletes old rows."""

    def __init__(self, path: Path, checked: CheckedSpec) -> None:
        self._store = JoinerStore(path)
        self._joiner = Joiner(
            self._store, join_rules(checked), SystemClock(), scores=TOPICS.scores, labels=TOPICS.labels
        )
        self.cost = Cost()

    @property
    def rows(self) -> int:
        """Number of stored transactions."""
        return self._joiner.counts.rows

    def join(self, outputs: Sequence[Output]) -> list[Outcome]:
        """The outcomes of some micro-batches."""
        records = [
            record
            for output in outputs
            for record in (
                *(InputRecord(TOPICS.labels, p, 0, value, at) for p, value, at in output.labels),
                *(InputRecord(TOPICS.scores, p, 0, value, output.event_time) for p, value in output.scores),
            )
        ]
        started = now()
        outcomes: list[Outcome] = []
        for start in range(0, len(records), JOIN_BATCH):
            found = self._joiner.join(records[start : start + JOIN_BATCH])
            for outcome in found:
                _encode(outcome)
            self._store.set_positions(
                {(topic, p): start for topic in (TOPICS.scores, TOPICS.labels) for p in range(4)}, 0
            )
            self._store.commit()
            outcomes += found
            if self._joiner.delete_old():
                self._store.commit()
        self.cost.add(sum(output.rows for output in outputs), started)
        return outcomes

    def mark_old(self) -> None:
        """Decide which rows are old."""
        self._joiner.mark_old(set())

    def close(self) -> None:
        """Close the store."""
        self._store.close()


@dataclass(slots=True)
class Log:
    """A topic of one partition that forgets what all of its `readers` have read."""

    readers: int
    first: int = 0
    records: deque[bytes] = field(default_factory=deque)
    positions: dict[int, int] = field(default_factory=dict)

    def reader(self) -> LogReader:
        """A further reader, from the start."""
        number = len(self.positions)
        self.positions[number] = 0
        return LogReader(self, number)

    def append(self, value: bytes) -> int:
        """Append a record and return its offset."""
        self.records.append(value)
        return self.first + len(self.records) - 1

    def read(self, number: int) -> list[FollowedRecord]:
        """All records that a reader has not read."""
        at, end = self.positions[number], self.first + len(self.records)
        found = [FollowedRecord(0, i, b"", self.records[i - self.first], 0) for i in range(at, end)]
        self.positions[number] = end
        if len(self.positions) == self.readers:
            while self.records and self.first < min(self.positions.values()):
                self.records.popleft()
                self.first += 1
        return found


@dataclass(slots=True)
class LogReader:
    """One reader of a `Log`, with the interface of `kafka.control_log.ControlLog`."""

    log: Log
    number: int

    def end(self) -> int:
        return self.log.first + len(self.log.records)

    def read(self, wait_s: float) -> list[_Entry]:
        return [_Entry(r.offset, r.value, r.timestamp_ms) for r in self.log.read(self.number)]

    def position(self) -> int:
        return self.log.positions[self.number]

    def append(self, key: str, value: bytes) -> int:
        return self.log.append(value)

    def close(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class _Entry:
    offset: int
    value: bytes | None
    timestamp: int


class Follower:
    """Hands over what was put into it since it was opened, once."""

    def __init__(self) -> None:
        self._records: deque[FollowedRecord] = deque()
        self._open = False

    def open(self, since_ms: int) -> Follower:
        """Read from now on."""
        self._open = True
        return self

    def put(self, values: Iterable[bytes]) -> None:
        """Add records."""
        if self._open:
            self._records.extend(FollowedRecord(0, 0, b"", value, 0) for value in values)

    def poll(self, max_records: int, timeout_s: float) -> list[FollowedRecord]:
        """At most `max_records`."""
        return [self._records.popleft() for _ in range(min(max_records, len(self._records)))]

    def ends(self) -> dict[int, int]:
        """The end of its only partition; all records have the offset 0."""
        return {0: 1}

    def passed(self, ends: Mapping[int, int]) -> bool:
        """Whether everything is read."""
        return self.caught_up()

    def caught_up(self) -> bool:
        """Whether everything is read."""
        return not self._records

    def close(self) -> None:
        """Forget what was not read."""
        self._open = False
        self._records.clear()


class WatchPart:
    """Compares two versions on probation, and follows labels. It only proposes, so that a probation lasts."""

    def __init__(self, checked: CheckedSpec, clock: EventClock, incidents: Log) -> None:
        self._clock, self._commands, verdicts = clock, Log(1), Log(1)
        self._summaries, self._outcomes = Follower(), Follower()
        report = Incidents(incidents.reader())
        labels = LabelWatch(
            verdicts.reader(),
            lambda _key, value: verdicts.append(value),
            self._outcomes.open,
            report.log,
            duration_ms(checked.spec.labels.horizon),
        )
        self._watch = Watch(
            self._commands.reader(),
            self._summaries.open,
            clock,
            Metrics(WATCH_METRICS),
            who="watch",
            rules=WatchRules("propose", 0.0, Tolerances()),
            parts=parts(report, Verdicts(lambda _key, value: verdicts.append(value)), labels=labels),
        )
        self.cost = Cost()

    def command(self, action: str, version: str | None = None) -> None:
        """Submit a command: `promote` a version, or `confirm` it."""
        served = None if version is None else ServedVersion(version, f"{int(version):064x}")
        command = Command(
            ensemble="cards", action=action, who="ann", why="an update", at=self._clock.now_ms(),  # type: ignore[arg-type]
            expected_offset=self._commands.first + len(self._commands.records), version=served,
        )  # fmt: skip
        self._commands.append(_encode(command))
        self._watch.step()

    def follow(self, output: Output, outcomes: Sequence[Outcome], *, counted: bool) -> None:
        """Read the records of one micro-batch; `counted`: during a probation."""
        self._outcomes.put(map(_encode, outcomes))
        self._summaries.put(value for _, value in output.summaries)
        started = now()
        self._watch.step()
        if counted:
            self.cost.add(output.rows, started)


class IncidentsPart:
    """The detectors of conditions on topics, and the log of incidents."""

    def __init__(self, clock: EventClock, incidents: Log) -> None:
        self._detectors, self._clock = Detectors(SignalRules()), clock
        self._log = IncidentLog(incidents.reader())
        self.cost = Cost()

    def add(self, output: Output, outcomes: Sequence[Outcome]) -> None:
        """Read the records of one micro-batch."""
        at = output.event_time
        records = [("score_summaries", FollowedRecord(p, 0, b"", value, at)) for p, value in output.summaries]
        records += [("outcomes", FollowedRecord(0, 0, b"", _encode(each), at)) for each in outcomes]
        started = now()
        for topic, record in records:
            self._detectors.add(topic, record)
        self.cost.add(output.rows, started)

    def evaluate(self) -> None:
        """Open, update and close incidents."""
        started = now()
        at = self._clock.now_ms()
        apply(self._detectors.advance(at), self._log, at)
        self._detectors.savings.update(self._log.read(), 0)
        self.cost.add(0, started)


def join_rules(checked: CheckedSpec) -> JoinRules:
    """The joiner's rules, as the monitor takes them from the spec."""
    spec = checked.spec
    return JoinRules(
        duration_ms(spec.monitor.pane), duration_ms(spec.labels.horizon), duration_ms(spec.time.allowed_lateness),
        spec.labels.source_rank, duration_ms(spec.time.max_age), duration_ms(spec.time.max_ahead),
    )  # fmt: skip


def window_rules(checked: CheckedSpec) -> WindowRules:
    """The rules of windows, as the monitor takes them from the spec."""
    rules = join_rules(checked)
    sources = frozenset(checked.spec.labels.source_rank)
    return WindowRules(
        rules.pane_ms, rules.allowed_lateness_ms, rules.horizon_ms, WINDOW_PANES, label_sources=sources
    )  # fmt: skip


class MonitorParts:
    """All parts of one monitor, which read what a scorer writes, micro-batch by micro-batch.

    `broken`: the windows get one summary per transaction, and all records stay in memory.

    Attributes:
        outcomes: number of labels that were joined.
    """

    def __init__(self, client: redis.Redis, checked: CheckedSpec, folder: Path, *, broken: bool = False) -> None:
        self._client, self._broken = client, broken
        self._clock, incidents = EventClock(), Log(2)
        self.windows = WindowsPart(client, checked, folder / "ensemble", self._clock)
        self.joiner = JoinerPart(folder / "joiner.sqlite", checked)
        self.watch = WatchPart(checked, self._clock, incidents)
        self.incidents = IncidentsPart(self._clock, incidents)
        self.outcomes = 0
        self._waiting: list[Output] = []
        self._fed = 0
        self._probation = False
        self._kept: list[list[Output]] = []
        self.watch.command("promote", FIRST)

    @property
    def costs(self) -> dict[str, Cost]:
        """By part; that of `drift` is contained in that of `windows`."""
        return {
            "joiner": self.joiner.cost,
            "windows": self.windows.cost,
            "drift": self.windows.drift,
            "watch": self.watch.cost,
            "incidents": self.incidents.cost,
        }

    @property
    def cpu_s(self) -> float:
        """CPU seconds of all parts and Redis so far."""
        return self.windows.redis + sum(cost.cpu for name, cost in self.costs.items() if name != "drift")

    @property
    def redis_mb(self) -> float:
        """Memory that Redis uses."""
        memory = cast(dict[str, int], self._client.info("memory"))
        return round(memory["used_memory"] / 2**20, 1)

    def feed(self, output: Output, repetition: int = 0) -> None:
        """Let every part read one micro-batch."""
        self._clock.at = max(self._clock.at, output.event_time)
        if output.probation != self._probation:
            self._probation = output.probation
            self.watch.command(*(("promote", str(int(SECOND) + repetition)) if output.probation else ("confirm",)))
        self._waiting.append(output)
        self._fed += 1
        if len(self._waiting) == READ:
            self._read()
        if self._fed % REPORT == 0:
            self.windows.report(REPORT * output.rows)
        if self._fed % EVALUATE == 0:
            self.incidents.evaluate()
            self.joiner.mark_old()

    def _read(self) -> None:
        outputs, self._waiting = self._waiting, []
        outcomes = self.joiner.join(outputs)
        self.outcomes += len(outcomes)
        self.windows.count(outputs, outcomes, outputs[0].rows // PARTITIONS if self._broken else 1)
        for output in outputs:
            self.watch.follow(output, outcomes, counted=output.probation)
            self.incidents.add(output, outcomes)
            outcomes = []
        if self._broken:
            self._kept.append(outputs)

    def close(self) -> None:
        """Close the joiner's store."""
        self.joiner.close()
