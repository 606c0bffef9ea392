"""Records for the parts of the monitor: the scorer's own, on one stretch of traffic, and repetitions of them.

`MemoryScorer` takes simulated transactions through decode, enrich, score, publish and apply, with rows in memory and
without Kafka. `Repetition` moves its records to later days, other customers and other versions, so that they are worth
many times the transactions at a fraction of the cost.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from stream_scorer.clock import SystemClock
from stream_scorer.ensemble.bulkhead import Bulkhead
from stream_scorer.ensemble.lineup import Lineup
from stream_scorer.features.engine import FeatureEngine
from stream_scorer.kafka.partitioner import partitions_of
from stream_scorer.kafka.topics import Topics
from stream_scorer.observability.metrics import Metrics
from stream_scorer.pipeline.batch import MicroBatch
from stream_scorer.pipeline.decode import Decode
from stream_scorer.pipeline.enrich import EnrichInProcess
from stream_scorer.pipeline.publish import OutputWriter
from stream_scorer.pipeline.score import Scoring
from stream_scorer.pipeline.summarise import Summariser
from stream_scorer.positions import SourcePartition, Span
from stream_scorer.records import CardAlerts, Decision, PaneSummary, Score, ScoreSummary
from stream_scorer.serde.raw import RawRecords
from stream_scorer.simulate.encode import encode_keys, encode_labels, encode_values
from stream_scorer.simulate.labeller import Labeller, LabellerConfig
from stream_scorer.simulate.transactions import Transactions
from stream_scorer.spec import CheckedSpec
from stream_scorer.state.rows import MemoryRowStore

PARTITIONS = 4
TOPICS = Topics()
# Versions of the recorded traffic: one serves, then the other one serves on probation.
FIRST, SECOND = "1", "2"
# On a busy machine a member may wait long for a core, and must not be left out.
BUDGET_S = 60.0
_WORD = (1 << 64) - 1
# An odd number: multiplication by it permutes 64-bit numbers. 2^64 divided by the golden ratio scatters them evenly.
_SCATTER = 0x9E3779B97F4A7C15


@dataclass(slots=True)
class Output:
    """What the parts read of one micro-batch: encoded `scores` and `summaries` by partition, and labels.

    Attributes:
        rows: number of transactions. event_time: the newest one, ms. labels: values and times of labelling, ms.
        probation: whether a version was on probation.
    """

    rows: int
    event_time: int
    probation: bool
    scores: list[tuple[int, bytes]] = field(default_factory=list)
    summaries: list[tuple[int, bytes]] = field(default_factory=list)
    labels: list[tuple[int, bytes, int]] = field(default_factory=list)

    def produce(self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Any = None) -> None:
        """Take an output record, as a `Sink`."""
        if value is not None and topic == TOPICS.scores:
            self.scores.append((partition, value))
        elif value is not None and topic == TOPICS.score_summaries:
            self.summaries.append((partition, value))


@dataclass(slots=True)
class Cost:
    """Elapsed and CPU seconds of some work on a number of transactions."""

    rows: int = 0
    elapsed: float = 0.0
    cpu: float = 0.0

    def add(self, rows: int, started: tuple[float, float], ended: tuple[float, float] | None = None) -> None:
        """Add the work from `started` (see `now`) to `ended`, by default now."""
        elapsed, cpu = ended or now()
        self.rows += rows
        self.elapsed += elapsed - started[0]
        self.cpu += cpu - started[1]

    @property
    def us(self) -> float:
        """Elapsed microseconds per transaction."""
        return 1e6 * self.elapsed / max(self.rows, 1)

    @property
    def cpu_us(self) -> float:
        """Microseconds of CPU per transaction."""
        return 1e6 * self.cpu / max(self.rows, 1)


def now() -> tuple[float, float]:
    """Elapsed and CPU seconds of this process."""
    return time.perf_counter(), time.process_time()


class MemoryScorer:
    """The scorer's stages without Kafka, Redis and a second process. So it is faster than a scorer.

    Attributes:
        cost: of all stages. summarise: of the summaries alone, encoded; it is part of `cost` too.
        steady, summarise_steady: the same without probations, during which two versions are scored and compared.
    """

    def __init__(self, checked: CheckedSpec, *, seed: int) -> None:
        self._store = MemoryRowStore()
        self._decode = Decode(checked)
        engine = FeatureEngine(checked)
        engine.warm()
        self._enrich = EnrichInProcess(engine, self._store)
        self._scoring = Scoring(lambda: self._lineup, checked, Metrics(), Bulkhead(SystemClock(), budget_s=BUDGET_S))
        self._writer = OutputWriter(TOPICS, checked, SystemClock())
        self._checked = checked
        self._lineup: Lineup
        self._summarisers: list[Summariser] = []
        self._encode = msgspec.json.Encoder().encode
        self._labeller = Labeller(LabellerConfig(seed=seed))
        self._decision = msgspec.json.Decoder(_Decided).decode
        self._next = {topic: np.zeros(PARTITIONS, np.int64) for topic in (TOPICS.transactions, TOPICS.labels)}
        self._time = 0
        self.cost, self.summarise = Cost(), Cost()
        self.steady, self.summarise_steady = Cost(), Cost()

    def serve(self, lineup: Lineup) -> None:
        """Score with `lineup` from the next batch on."""
        self._lineup = lineup
        self._summarisers = [
            Summariser(each, self._checked, encoded=True) for each in lineup.versions[: lineup.deciding]
        ]

    @property
    def offsets(self) -> list[int]:
        """Number of input offsets so far, by partition."""
        found: list[int] = self._next[TOPICS.transactions].tolist()
        return found

    def run(self, rows: Transactions, *, probation: bool) -> Output:
        """The outputs of one micro-batch."""
        known = self._labeller.advance(self._time)
        values, at = encode_labels(known), known.labelled_at
        labels = self._records(TOPICS.labels, encode_keys(known.customer_id), values, at)
        raw = self._records(TOPICS.transactions, encode_keys(rows.customer_id), encode_values(rows), rows.event_time)
        batch = MicroBatch(raw, labels, [*_spans(labels), *_spans(raw)], None)
        out = Output(len(rows), int(rows.event_time.max()), probation)
        started = now()
        self._decode.process(batch)
        self._enrich.process(batch)
        self._scoring.process(batch)
        self._writer.write(batch, out)
        assert batch.enriched is not None
        self._store.apply(batch.enriched.update)
        scored = now()
        for version, summariser in enumerate(self._summarisers):
            for summary in summariser.summarise(batch, version):
                self._encode(summary)
        ended = now()
        self.cost.add(len(rows), started, scored)
        self.summarise.add(len(rows), scored, ended)
        if not probation:
            self.steady.add(len(rows), started, scored)
            self.summarise_steady.add(len(rows), scored, ended)
        out.labels = list(zip(labels.partition.tolist(), values, at.tolist(), strict=True))
        self._feed_back(rows, out)
        return out

    def _feed_back(self, rows: Transactions, out: Output) -> None:
        """Pass transactions and alerts to the analysts."""
        self._labeller.observe(rows)
        alerts = [alert for alert in map(self._decision, (value for _, value in out.scores)) if alert.alerts]
        self._labeller.alerted([each.event_id for each in alerts], [each.decision for each in alerts])
        self._time = max(self._time, out.event_time)

    def _records(self, topic: str, keys: list[bytes], values: list[bytes], timestamp: NDArray[np.int64]) -> RawRecords:
        partition = partitions_of(keys, PARTITIONS) if keys else np.zeros(0, np.int32)
        offset = np.zeros(len(keys), np.int64)
        for number in range(PARTITIONS):
            mine = np.flatnonzero(partition == number)
            offset[mine] = self._next[topic][number] + np.arange(len(mine))
            self._next[topic][number] += len(mine)
        return RawRecords(topic, partition, offset, timestamp, keys, values, [None] * len(keys))


def scattered_ids(count: int) -> NDArray[np.object_]:
    """Distinct event ids in random order, like UUIDs; a store of ordered ids would only be written at its end."""
    return np.array([f"{(number * _SCATTER) & _WORD:016x}-0000" for number in range(count)], dtype=object)


class _Decided(msgspec.Struct, frozen=True):
    event_id: str
    decision: Decision

    @property
    def alerts(self) -> bool:
        return self.decision != "approve"


def _spans(records: RawRecords) -> list[Span]:
    found = []
    for number in np.unique(records.partition).tolist():
        offsets = records.offset[records.partition == number]
        found.append(Span(SourcePartition(records.topic, number), int(offsets[0]), int(offsets[-1]) + 1, -1))
    return found


@dataclass(frozen=True)
class Repetition:
    """The recorded traffic again: the `number`-th time, `shift_ms` later, with other cards and versions.

    `spans` is the number of input offsets of each partition that one repetition takes.
    """

    number: int
    shift_ms: int
    spans: Sequence[int]

    def outputs(self, recorded: Iterable[Output]) -> Iterator[Output]:
        """The moved outputs, one by one; the first repetition is the recorded traffic itself."""
        for output in recorded:
            yield output if not self.number else self._moved(output)

    def version(self, recorded: str) -> str:
        """The version that takes the place of a recorded one."""
        return str(int(recorded) + self.number)

    def _moved(self, output: Output) -> Output:
        return Output(
            output.rows,
            output.event_time + self.shift_ms,
            output.probation,
            [(partition, self._score(value)) for partition, value in output.scores],
            [(partition, self._summary(value)) for partition, value in output.summaries],
            [(partition, self._label(value), at + self.shift_ms) for partition, value, at in output.labels],
        )

    def _id(self, event_id: str) -> str:
        """Another id: those of `scattered_ids` end in the number of the repetition."""
        return f"{event_id[:-4]}{self.number:04d}"

    def _score(self, value: bytes) -> bytes:
        score = _score(value)
        return _encode(
            replace(
                score, event_id=self._id(score.event_id), event_time=score.event_time + self.shift_ms,
                version=self.version(score.version),
            )
        )  # fmt: skip

    def _label(self, value: bytes) -> bytes:
        label = _document(value)
        label["event_id"] = self._id(label["event_id"])
        label["event_time"] += self.shift_ms
        label["labelled_at"] += self.shift_ms
        return _encode(label)

    def _summary(self, value: bytes) -> bytes:
        summary = _summary(value)
        offset = self.number * self.spans[summary.partition]
        return _encode(
            replace(
                summary,
                version=self.version(summary.version),
                first_offset=summary.first_offset + offset,
                next_offset=summary.next_offset + offset,
                panes=[self._pane(pane) for pane in summary.panes],
                control_offset=(summary.control_offset or 0) + 2 * self.number,
                cards={self.version(other): self._cards(cards) for other, cards in summary.cards.items()},
                newest=None if summary.newest is None else summary.newest + self.shift_ms,
                differences={self.version(other): each for other, each in summary.differences.items()},
            )
        )

    def _pane(self, pane: PaneSummary) -> PaneSummary:
        against = {self.version(other): square for other, square in pane.against.items()}
        return replace(pane, pane=pane.pane + self.shift_ms, against=against)

    def _cards(self, cards: CardAlerts) -> CardAlerts:
        # Multiplication by an odd number permutes the hashes.
        card = [f"{(int(each, 16) * (2 * self.number + 1)) & _WORD:016x}" for each in cards.card]
        event = [each and self._id(each) for each in cards.event]
        return replace(cards, card=card, this=self._times(cards.this), other=self._times(cards.other), event=event)

    def _times(self, times: Sequence[int | None]) -> list[int | None]:
        return [None if time is None else time + self.shift_ms for time in times]


_score = msgspec.json.Decoder(Score).decode
_summary = msgspec.json.Decoder(ScoreSummary).decode
_document = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.Encoder().encode
