"""Simulated worlds through the product's own code, at full speed and without services.

A `FeaturePath` takes simulated transactions and their labels through decode and enrich, with rows in memory. `Trial`
promotes a version over another one and feeds the summaries of both to the real watch, until it acts, and as long as it
collects cards of a withdrawn version. Features do not depend on versions, so one stretch of traffic serves many trials.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from stream_scorer.arrays import Bools, Ints
from stream_scorer.control.collection import CollectionWatch
from stream_scorer.control.counting import MAX_SUMMARIES
from stream_scorer.control.incidents import Incidents
from stream_scorer.control.state import History
from stream_scorer.control.verdict import Tolerances
from stream_scorer.control.verdicts import Verdicts
from stream_scorer.control.watch import WATCH_METRICS, Watch, WatchRules
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.lineup import Lineup
from stream_scorer.features.engine import FeatureEngine
from stream_scorer.kafka.partitioner import partitions_of
from stream_scorer.observability.metrics import Metrics
from stream_scorer.pipeline.batch import MicroBatch
from stream_scorer.pipeline.decode import Decode
from stream_scorer.pipeline.enrich import EnrichInProcess
from stream_scorer.pipeline.score import Scoring
from stream_scorer.pipeline.summarise import Summariser
from stream_scorer.positions import SourcePartition, Span
from stream_scorer.records import Command, Decision, Incident, ScoreSummary, ServedVersion, VerdictRecord
from stream_scorer.serde.raw import RawRecords
from stream_scorer.simulate.config import SimulationConfig
from stream_scorer.simulate.encode import encode_keys, encode_labels, encode_values
from stream_scorer.simulate.generate import generate_days
from stream_scorer.simulate.labeller import Labeller, LabellerConfig
from stream_scorer.simulate.transactions import Transactions
from stream_scorer.spec import CheckedSpec
from stream_scorer.state.rows import AppliedOffsets, MemoryRowStore
from tests.support.control import ControlRecord, MemoryControlLog
from tests.support.watch import parts

PARTITIONS = 4
BATCH = 4_096
TRANSACTIONS, LABELS = "transactions", "labels"
# Record timestamps are wall-clock times. Simulated traffic arrives at this rate, so that the wall-clock time of the
# product does not depend on the speed of this machine.
TRANSACTIONS_PER_S = 2_000
# After this many rows of time, the newest counts are published (`control/verdicts.py`).
FLUSH_ROWS = 20_000


@dataclass(slots=True)
class Prepared:
    """A micro-batch with its features, before scoring, and the hidden truth ``(n,)`` of its transactions."""

    batch: MicroBatch
    fraud: Bools

    @property
    def rows(self) -> int:
        """Number of transactions that were decoded."""
        return len(self.fraud)

    @property
    def event_time(self) -> int:
        """The newest event time, ms."""
        assert self.batch.events is not None
        return int(self.batch.events.transactions.event_time.max(initial=0))

    def slim(self) -> Prepared:
        """The same without the original bytes, which no later stage needs."""
        for records in (self.batch.transactions, self.batch.labels):
            records.value = [None] * len(records)
            records.headers = []
        return self

    def fresh(self) -> MicroBatch:
        """The micro-batch to be scored, sharing all columns."""
        b = self.batch
        return MicroBatch(
            b.transactions, b.labels, b.spans, None, dead=list(b.dead), events=b.events, enriched=b.enriched
        )


class FeaturePath:
    """Decode and enrich of the product with rows in memory; labels come from the simulator's labeller.

    The labels of a batch are those available at the end of the batch before it. `decided` closes the loop: analysts
    label what the champion alerts. Without it, everything counts as approved, as in a history.
    """

    def __init__(self, checked: CheckedSpec, *, seed: int = 1) -> None:
        self._checked = checked
        self._engine = FeatureEngine(checked)
        self._engine.warm()
        self._store = MemoryRowStore()
        self._decode = Decode(checked)
        self._labeller = Labeller(LabellerConfig(seed=seed))
        self._next = {TRANSACTIONS: np.zeros(PARTITIONS, np.int64), LABELS: np.zeros(PARTITIONS, np.int64)}
        self._time = 0

    def fork(self) -> FeaturePath:
        """An independent copy with the same rows, labels and offsets."""
        other = copy.copy(self)
        rows, applied = self._store.read([])
        del rows
        copied = AppliedOffsets(dict(applied.next_offset), dict(applied.watermark), beginning=applied.beginning)
        other._store = MemoryRowStore(copied)
        other._store.restore(self._store.rows())
        other._labeller = copy.deepcopy(self._labeller)
        other._next = {topic: offsets.copy() for topic, offsets in self._next.items()}
        return other

    def run(self, rows: Transactions, *, size: int = BATCH) -> Iterator[Prepared]:
        """The transactions in batches of `size`."""
        keys, values = encode_keys(rows.customer_id), encode_values(rows)
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            yield self.step(rows.slice(start, start + size), keys[part], values[part])

    def step(self, rows: Transactions, keys: list[bytes], values: list[bytes]) -> Prepared:
        """One micro-batch."""
        known = self._labeller.advance(self._time)
        labels = self._records(LABELS, encode_keys(known.customer_id), encode_labels(known), known.labelled_at)
        transactions = self._records(TRANSACTIONS, keys, values, rows.event_time)
        spans = [*self._spans(labels), *self._spans(transactions)]
        batch = MicroBatch(transactions, labels, spans, None)
        self._decode.process(batch)
        EnrichInProcess(self._engine, self._store).process(batch)
        assert batch.events is not None and batch.enriched is not None
        self._store.apply(batch.enriched.update)
        self._labeller.observe(rows)
        self._time = max(self._time, int(rows.event_time.max()))
        return Prepared(batch, rows.fraud_kind[batch.events.transactions.row] > 0)

    def decided(self, event_id: Sequence[str], decision: Sequence[Decision]) -> None:
        """Pass alerts to the analysts."""
        self._labeller.alerted(list(event_id), list(decision))

    def _records(self, topic: str, keys: list[bytes], values: list[bytes], timestamp: Ints) -> RawRecords:
        partition = partitions_of(keys, PARTITIONS) if keys else np.zeros(0, np.int32)
        offset = np.zeros(len(keys), np.int64)
        following = self._next[topic]
        for number in range(PARTITIONS):
            mine = np.flatnonzero(partition == number)
            offset[mine] = following[number] + np.arange(len(mine))
            following[number] += len(mine)
        return RawRecords(topic, partition, offset, timestamp, list(keys), list(values), [None] * len(keys))

    def _spans(self, records: RawRecords) -> list[Span]:
        spans = []
        for number in np.unique(records.partition).tolist():
            offsets = records.offset[records.partition == number]
            source = SourcePartition(records.topic, number)
            spans.append(Span(source, int(offsets[0]), int(offsets[-1]) + 1, -1))
        return spans


def settled_traffic(checked: CheckedSpec, config: SimulationConfig, after_days: int) -> list[Prepared]:
    """The transactions of a world after its first days, with features that know these days."""
    path, kept = FeaturePath(checked, seed=config.seed), []
    for day, rows in enumerate(generate_days(config)):
        for prepared in path.run(rows):
            if day >= after_days:
                kept.append(prepared)
    return kept


class Stage:
    """Scores prepared batches with one lineup and summarises what the champion decides."""

    def __init__(self, lineup: Lineup, checked: CheckedSpec) -> None:
        self.lineup = lineup
        self._scoring = Scoring(lambda: lineup, checked, Metrics())
        self._summariser = Summariser(lineup.champion, checked)

    def run(self, prepared: Prepared) -> tuple[MicroBatch, list[ScoreSummary]]:
        """The scored batch and its summaries."""
        batch = prepared.fresh()
        self._scoring.process(batch)
        return batch, self._summariser.summarise(batch, 0)


@dataclass(slots=True)
class SimulatedClock:
    """The time that the simulated traffic takes at `TRANSACTIONS_PER_S`."""

    rows: int = 0

    def now_ms(self) -> int:
        """Milliseconds since the first transaction, from a time that is later than every event time."""
        return 4_000_000_000_000 + self.rows * 1_000 // TRANSACTIONS_PER_S

    def monotonic(self) -> float:
        """The same in seconds."""
        return self.now_ms() / 1_000


class _Follower:
    """Reads a growing list of records from a record timestamp on."""

    def __init__(self, records: list[ControlRecord], since_ms: int, keep: bool) -> None:
        self._records, self._keep = records, keep
        self._at = next((i for i, record in enumerate(records) if record.timestamp >= since_ms), len(records))

    def poll(self, max_records: int, timeout_s: float) -> list[ControlRecord]:
        found = self._records[self._at : self._at + max_records]
        if self._keep:
            self._at += len(found)
        else:
            del self._records[self._at : self._at + len(found)]
        return found

    def caught_up(self) -> bool:
        return self._at >= len(self._records)

    def close(self) -> None:
        pass


class Desk:
    """A control log, its topics in memory, and the real watch in mode `auto`.

    Without `keep`, summaries are deleted once they are read: then the watch cannot start again. With `collect`, a
    version that it rolls back stays in shadow until labels have enough cards.
    """

    def __init__(self, tolerances: Tolerances, *, keep: bool = True, collect: bool = False) -> None:
        self.clock = SimulatedClock()
        self.summaries: list[ControlRecord] = []
        self._verdicts = MemoryControlLog()
        self._incidents = MemoryControlLog()
        self._commands = MemoryControlLog()
        metrics = Metrics(WATCH_METRICS)

        def follow(since_ms: int) -> _Follower:
            return _Follower(self.summaries, since_ms, keep)

        collections = CollectionWatch(
            lambda: MemoryControlLog(self._verdicts.records), self._verdicts.append, follow, metrics
        )
        self._watch = Watch(
            MemoryControlLog(self._commands.records),
            follow,
            self.clock,
            metrics,
            who="watch",
            rules=WatchRules("auto", 0.0, tolerances),
            parts=parts(
                Incidents(MemoryControlLog(self._incidents.records)),
                Verdicts(self._verdicts.append),
                collections=collections if collect else None,
            ),
        )

    @property
    def history(self) -> History:
        """The state that the commands lead to."""
        return self._commands.history

    @property
    def verdicts(self) -> list[VerdictRecord]:
        """All records of verdicts, oldest first."""
        return [msgspec.json.decode(value, type=VerdictRecord) for value in self._verdicts.records]

    @property
    def incidents(self) -> list[Incident]:
        """All records of incidents of versions, oldest first."""
        return [msgspec.json.decode(value, type=Incident) for value in self._incidents.records]

    def promote(self, version: ServedVersion, expect_rise: float | None = None) -> int:
        """Give the command and return its offset."""
        offset = len(self._commands.records)
        command = Command(
            ensemble="cards", action="promote", who="ann", why="an update", at=self.clock.now_ms(),
            expected_offset=offset, version=version, expect_rise=expect_rise,
        )  # fmt: skip
        self._commands.append("cards", msgspec.json.encode(command))
        return offset

    def publish(self, summaries: Iterable[ScoreSummary]) -> None:
        """Append to `score-summaries`."""
        for summary in summaries:
            offset = len(self.summaries)
            self.summaries.append(ControlRecord(offset, msgspec.json.encode(summary), self.clock.now_ms()))

    def step(self) -> None:
        """Let the watch read everything and act."""
        for _ in range(1 + len(self.summaries) // MAX_SUMMARIES):
            self._watch.step()


@dataclass(slots=True)
class Outcome:
    """What became of a promotion.

    Attributes:
        action: the command of the monitor, or "" if it gave none within the traffic.
        rows, event_ms: transactions and event time from the promotion to that command, or to the end.
        seconds: wall time of the trial on this machine. incident: its newest record. why: the reason of the command.
        verdict: the newest one. acted: the one on which the monitor acted.
        shadow_rows: transactions that the version scored in shadow after it was rolled back.
    """

    action: str = ""
    rows: int = 0
    event_ms: int = 0
    seconds: float = 0.0
    why: str = ""
    incident: Incident | None = None
    verdict: VerdictRecord | None = None
    acted: VerdictRecord | None = None
    shadow_rows: int = 0


@dataclass(slots=True)
class Trial:
    """Promotes `new` over `old` after some traffic of `old` alone, and follows the watch.

    Args:
        tolerances: the settings of the monitor. collect: whether a version that is rolled back is scored further, in
            shadow, as long as the monitor collects its cards.
    """

    checked: CheckedSpec
    old: Ensemble
    new: Ensemble
    tolerances: Tolerances = field(default_factory=Tolerances)
    expect_rise: float | None = None
    collect: bool = False
    _desk: Desk = field(init=False)

    def run(self, before: Sequence[Prepared], after: Iterable[Prepared], *, blind: bool = False) -> Outcome:
        """Score `before` with the old version and `after` with both, until the watch acts.

        `blind` hides the cards from the watch, so that counts never become evidence.
        """
        started = time.perf_counter()
        desk, out = Desk(self.tolerances, collect=self.collect), Outcome()
        self._desk = desk
        one, two = (ServedVersion(e.version, e.digest) for e in (self.old, self.new))
        first = Stage(Lineup((self.old,), control_offset=desk.promote(one)), self.checked)
        for prepared in before:
            self._feed(desk, first, prepared, blind)
        began = before[-1].event_time if before else None
        offset = desk.promote(two, self.expect_rise)
        both = Stage(Lineup((self.new, self.old), control_offset=offset, last_good=1), self.checked)
        desk.step()
        rest = iter(after)
        for prepared in rest:
            began = prepared.event_time if began is None else began
            self._feed(desk, both, prepared, blind)
            desk.step()
            out.rows += prepared.rows
            out.event_ms = prepared.event_time - began
            entry = desk.history.entries[-1]
            if entry.command is not None and entry.command.author == "monitor" and not entry.refused:
                out.action, out.why = entry.command.action, entry.command.why
                out.acted = next((v for v in reversed(desk.verdicts) if v.due == out.action), None)
                break
        self.go_on(rest, out)
        out.seconds = time.perf_counter() - started
        return out

    def collecting(self) -> bool:
        """Whether the new version was withdrawn and stays in shadow."""
        return self._desk.history.states["cards"].withdrawn is not None

    def go_on(self, rest: Iterable[Prepared], out: Outcome) -> None:
        """Score further traffic while the new version stays in shadow, and take the newest records."""
        desk = self._desk
        if self.collecting():
            offset = desk.history.states["cards"].control_offset
            stage = Stage(Lineup((self.old, self.new), control_offset=offset, withdrawn=1), self.checked)
            for prepared in rest:
                self._feed(desk, stage, prepared, blind=False)
                desk.step()
                out.shadow_rows += prepared.rows
                if not self.collecting():
                    break
        desk.clock.rows += FLUSH_ROWS
        desk.step()
        out.incident = desk.incidents[-1] if desk.incidents else None
        out.verdict = desk.verdicts[-1] if desk.verdicts else None

    def _feed(self, desk: Desk, stage: Stage, prepared: Prepared, blind: bool) -> None:
        desk.clock.rows += prepared.rows
        _, summaries = stage.run(prepared)
        if blind:
            summaries = [msgspec.structs.replace(summary, cards={}) for summary in summaries]
        desk.publish(summaries)
