"""Watches a run from outside: reads the topics with `read_committed` and keeps the records in columns."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Literal

import msgspec
import numpy as np

from stream_scorer.clock import Clock
from stream_scorer.kafka.follower import FollowedRecord, RecordFollower
from stream_scorer.kafka.topics import Topics
from stream_scorer.records import DECISIONS, Alert, Command, Decision, Incident, Members, MonitorMetric, Source
from stream_scorer.reports.recording import Contributions, ControlRecord, DeadLetters, Inputs, Places, Recording, Scores

# Interval between polls; also the resolution of arrival times.
POLL_S = 0.005
# The live table uses this many of the newest latencies per partition: about five seconds of traffic.
_RECENT = 1_000


class _Alternative(msgspec.Struct):
    decision: Decision


class _Contribution(msgspec.Struct):
    """The fields of a contribution record that a report needs; the decoder skips the others."""

    event_id: str
    version: str
    base: float | None
    z: float | None
    score: float | None
    members: Members
    source: Source
    alternatives: list[_Alternative] = []


class _Score(msgspec.Struct):
    event_id: str
    event_time: int
    scored_at: int
    decision: Decision
    member_alerts: int
    duplicate: bool
    degraded: list[str]
    value: int
    ensemble: str
    version: str


@dataclass
class _Partition:
    """The records read from one partition number, in offset order."""

    start: int = 0
    timestamps: list[int] = field(default_factory=list)
    contributions: list[_Contribution] = field(default_factory=list)
    arrivals: list[int] = field(default_factory=list)
    cards: list[int] = field(default_factory=list)
    scores: list[_Score] = field(default_factory=list)


@dataclass(frozen=True)
class Glance:
    """The state of the run now.

    `latencies` are those of the newest transactions, in milliseconds, until this process read their contributions.
    """

    records_in: int
    records_out: int
    dead: int
    latencies: list[int]
    event_time: int
    alerts: list[Alert]
    metrics: list[MonitorMetric]


class _Seen:
    """All records read so far. Each method takes one record of a topic; `now` is the time of reading, epoch ms."""

    def __init__(self) -> None:
        self.partitions: dict[int, _Partition] = {}
        self.dead: list[tuple[int, int, str]] = []
        self.alerts: list[Alert] = []
        self.metrics: list[MonitorMetric] = []
        self.commands: list[ControlRecord] = []
        # The newest record of each id, in the order of their first ones.
        self.incidents: dict[str, Incident] = {}
        self.records_in = self.records_out = 0
        self.event_time = 0
        self._transactions = Topics().transactions
        # By record key, which is the id of the card.
        self._cards: dict[bytes, int] = {}
        self._contribution = msgspec.json.Decoder(_Contribution).decode
        self._score = msgspec.json.Decoder(_Score).decode
        self._alert = msgspec.json.Decoder(Alert).decode
        self._metric = msgspec.json.Decoder(MonitorMetric).decode
        self._command = msgspec.json.Decoder(Command).decode
        self._incident = msgspec.json.Decoder(Incident).decode

    def transaction(self, record: FollowedRecord, _now: int) -> None:
        """A record of `transactions`."""
        partition = self._partition(record)
        if not partition.timestamps:
            partition.start = record.offset
        partition.timestamps.append(record.timestamp_ms)
        self.records_in += 1

    def contribution(self, record: FollowedRecord, now: int) -> None:
        """A record of `contributions`."""
        partition = self._partition(record)
        partition.contributions.append(self._contribution(record.value or b""))
        partition.arrivals.append(now)
        partition.cards.append(self._cards.setdefault(record.key or b"", len(self._cards)))
        self.records_out += 1

    def score(self, record: FollowedRecord, _now: int) -> None:
        """A record of `scores`."""
        found = self._score(record.value or b"")
        self._partition(record).scores.append(found)
        self.event_time = max(self.event_time, found.event_time)

    def dead_letter(self, record: FollowedRecord, _now: int) -> None:
        """A record of the dead-letter topic; those of labels are ignored."""
        headers = {name: (value or b"").decode() for name, value in record.headers or ()}
        if headers["source.topic"] == self._transactions:
            place = int(headers["source.partition"]), int(headers["source.offset"])
            self.dead.append((*place, headers["error.code"]))

    def alert(self, record: FollowedRecord, _now: int) -> None:
        """A record of `alerts`."""
        self.alerts.append(self._alert(record.value or b""))

    def metric(self, record: FollowedRecord, _now: int) -> None:
        """A record of `monitor-metrics`."""
        self.metrics.append(self._metric(record.value or b""))

    def command(self, record: FollowedRecord, _now: int) -> None:
        """A record of `control`."""
        self.commands.append(ControlRecord(record.offset, record.timestamp_ms, self._command(record.value or b"")))

    def incident(self, record: FollowedRecord, _now: int) -> None:
        """A record of `incidents`."""
        found = self._incident(record.value or b"")
        self.incidents[found.id] = found

    def latencies(self) -> list[int]:
        """Milliseconds from the newest transactions to the reading of their contributions."""
        found = []
        for partition in self.partitions.values():
            count = len(partition.contributions)
            for k in range(max(0, count - _RECENT), count):
                at = partition.contributions[k].source.offset - partition.start
                if 0 <= at < len(partition.timestamps):
                    found.append(partition.arrivals[k] - partition.timestamps[at])
        return found

    def _partition(self, record: FollowedRecord) -> _Partition:
        return self.partitions.setdefault(record.partition, _Partition())


class Watcher:
    """Follows the topics in a background thread from construction on. A context manager.

    The next call of `glance`, `counts`, `quiet_s` or `recording` raises an error of the thread.
    """

    def __init__(self, bootstrap: str, clock: Clock) -> None:
        """Raises `UsageError` if a topic does not exist, and `BrokerUnavailable`."""
        self._clock = clock
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._seen = _Seen()
        self._failure: Exception | None = None
        self._last_seen = clock.monotonic()
        topics, seen = Topics(), self._seen
        self._takers: list[tuple[RecordFollower, Callable[[FollowedRecord, int], None]]] = []
        with ExitStack() as opening:

            def follow(
                topic: str,
                take: Callable[[FollowedRecord, int], None],
                start: Literal["beginning", "end"] = "end",
            ) -> None:
                follower = RecordFollower(bootstrap, topic, client_id="demo-watcher", start=start)
                opening.callback(follower.close)
                self._takers.append((follower, take))

            follow(topics.transactions, seen.transaction)
            follow(topics.contributions, seen.contribution)
            follow(topics.scores, seen.score)
            follow(topics.dead_letters, seen.dead_letter)
            follow(topics.alerts, seen.alert)
            follow(topics.monitor_metrics, seen.metric, "beginning")
            follow(topics.control, seen.command, "beginning")
            follow(topics.incidents, seen.incident, "beginning")
            self._closing = opening.pop_all()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        self._thread.start()

    def glance(self) -> Glance:
        """The current state; `metrics` and `alerts` are complete and in order of arrival."""
        self._raise_failure()
        with self._lock:
            seen = self._seen
            return Glance(
                seen.records_in, seen.records_out, len(seen.dead), seen.latencies(), seen.event_time,
                list(seen.alerts), list(seen.metrics),
            )  # fmt: skip

    @property
    def quiet_s(self) -> float:
        """Seconds since the last record of any topic."""
        self._raise_failure()
        return self._clock.monotonic() - self._last_seen

    def counts(self) -> tuple[int, int]:
        """The number of input records, and of their outputs (scored or dead-lettered)."""
        self._raise_failure()
        with self._lock:
            return self._seen.records_in, self._seen.records_out + len(self._seen.dead)

    def windows(self) -> int:
        """Number of metrics that the monitor has published."""
        with self._lock:
            return len(self._seen.metrics)

    def commands(self) -> list[ControlRecord]:
        """The records on `control`, in order."""
        with self._lock:
            return list(self._seen.commands)

    def incidents(self) -> list[Incident]:
        """The newest record of each incident, oldest incident first."""
        with self._lock:
            return list(self._seen.incidents.values())

    def close(self) -> None:
        """Stop following. Records read so far remain available."""
        self._stop.set()
        self._thread.join()
        self._closing.close()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def recording(self) -> Recording:
        """All records as columns. Call it after `close`."""
        self._raise_failure()
        return _recording(self._seen)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                if not self._poll():
                    self._stop.wait(POLL_S)
        except Exception as error:
            self._failure = error

    def _poll(self) -> bool:
        seen = False
        for follower, take in self._takers:
            records = follower.poll()
            if not records:
                continue
            seen = True
            now = self._clock.now_ms()
            with self._lock:
                for record in records:
                    take(record, now)
        if seen:
            self._last_seen = self._clock.monotonic()
        return seen

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


def _recording(seen: _Seen) -> Recording:
    partitions = seen.partitions
    numbers = sorted(partitions)
    inputs = [(p, partitions[p].start + k) for p in numbers for k in range(len(partitions[p].timestamps))]
    contributions = [(p, contribution) for p in numbers for contribution in partitions[p].contributions]
    scores = [(p, score) for p in numbers for score in partitions[p].scores]
    members = contributions[0][1].members.name if contributions else []
    shape = (len(contributions), len(members))
    versions = sorted({contribution.version for _, contribution in contributions})
    return Recording(
        inputs=Inputs(Places.of(inputs), _ints([t for p in numbers for t in partitions[p].timestamps])),
        contributions=Contributions(
            partition=_ints([p for p, _ in contributions]),
            source=Places.of([(r.source.partition, r.source.offset) for _, r in contributions]),
            event_id=[r.event_id for _, r in contributions],
            arrival=_ints([a for p in numbers for a in partitions[p].arrivals]),
            base=_floats([r.base for _, r in contributions]),
            z=_floats([r.z for _, r in contributions]),
            score=_floats([r.score for _, r in contributions]),
            member_score=_floats([score for _, r in contributions for score in r.members.score]).reshape(shape),
            weight=_floats([weight for _, r in contributions for weight in r.members.weight]).reshape(shape),
            contribution=_floats([part for _, r in contributions for part in r.members.contribution]).reshape(shape),
            members=members,
            version=_ints([versions.index(r.version) for _, r in contributions]),
            versions=versions,
            other=_ints(
                [DECISIONS.index(r.alternatives[0].decision) if r.alternatives else -1 for _, r in contributions]
            ),
            card=_ints([card for p in numbers for card in partitions[p].cards]),
        ),
        scores=Scores(
            partition=_ints([p for p, _ in scores]),
            event_id=[s.event_id for _, s in scores],
            event_time=_ints([s.event_time for _, s in scores]),
            scored_at=_ints([s.scored_at for _, s in scores]),
            decision=_ints([DECISIONS.index(s.decision) for _, s in scores]),
            member_alerts=_ints([s.member_alerts for _, s in scores]),
            duplicate=np.array([s.duplicate for _, s in scores], dtype=np.bool_),
            degraded=np.array([bool(s.degraded) for _, s in scores], dtype=np.bool_),
            value=_ints([s.value for _, s in scores]),
            versions=sorted({(s.ensemble, s.version) for _, s in scores}),
        ),
        dead=DeadLetters(Places.of([(p, o) for p, o, _ in seen.dead]), [code for _, _, code in seen.dead]),
        alerts=seen.alerts,
        metrics=seen.metrics,
        commands=seen.commands,
        incidents=list(seen.incidents.values()),
    )


def _ints(values: list[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(values, dtype=np.int64)


def _floats(values: list[float | None]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
