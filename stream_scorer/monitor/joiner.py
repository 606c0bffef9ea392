"""The label joiner: `scores` and `labels` in, one `outcomes` record out per label or change of label.

Exactly once, by two positions kept in order. Each batch (1) is joined inside an open SQLite transaction, (2) is
published in one Kafka transaction that also carries the input positions, (3) is committed to SQLite with the same
positions. So SQLite is never ahead of Kafka. A crash between 2 and 3 leaves SQLite behind: the records in between are
read again and joined *without* publishing, up to the committed positions. That is sound because the store after a set
of records does not depend on their interleaving across partitions: the first score counts and lies in one partition,
the label that holds is the maximum of a total order, and what was published last is what holds.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from stream_scorer.clock import Clock
from stream_scorer.errors import StreamScorerError, TransactionAborted
from stream_scorer.kafka.transactional_loop import InputRecord, OutputRecord, Partition, TransactionalLoop
from stream_scorer.monitor.joiner_store import Context, JoinerStore, LabelRecord, ScoredTransaction
from stream_scorer.records import DECISIONS, NOT_A_RECORD, Decision, LabelValue, Outcome, Record

LABELS: tuple[LabelValue, ...] = ("fraud", "genuine")

# A batch of 2,000 is joined in about 15 ms: large enough to amortise a transaction (3 to 10 ms), small enough that a
# stop is answered at once.
BATCH = 2_000
POLL_S = 0.2
# Consecutive aborted transactions after which something is wrong that beginning anew does not mend (a live twin).
MAX_ABORTS = 5
# Seconds between two deletions of old rows.
TRIM_EVERY_S = 30.0

_log = logging.getLogger("stream_scorer.monitor.joiner")


class ScoreKey(Record, frozen=True):
    """The part of a `Score` that the joiner keeps: decoding the rest costs time."""

    event_id: str
    event_time: int
    decision: Decision
    ensemble: str
    version: str
    arm: str
    policy_version: str
    duplicate: bool
    member_alerts: int
    value: int


class Label(Record, frozen=True):
    """One record of the topic `labels`; entity fields are ignored here."""

    event_id: str
    event_time: int
    label: LabelValue
    labelled_at: int
    source: str
    review_probability: float | None = None


@dataclass(frozen=True)
class JoinRules:
    """What the spec says of labels. Times in milliseconds."""

    pane_ms: int
    horizon_ms: int
    allowed_lateness_ms: int
    source_rank: Mapping[str, int]

    @property
    def keep_ms(self) -> int:
        """A label counts until this long after its transaction."""
        return 2 * self.horizon_ms

    def rank(self, source: str) -> int:
        """Rank of a label's source; one the spec does not name loses to all it names."""
        return self.source_rank.get(source, -1)


@dataclass
class JoinerCounts:
    """What the joiner has done since it started. Read by the exporter; written by one thread."""

    scores: int = 0
    labels: int = 0
    outcomes: int = 0
    unreadable: int = 0
    too_late: int = 0
    replayed: int = 0
    waiting: int = 0
    rows: int = 0
    lag: int = 0
    positions: dict[Partition, int] = field(default_factory=dict)


class Joiner:
    """Joins batches against the store. No Kafka here: `join` is a function of the store and the records."""

    def __init__(self, store: JoinerStore, rules: JoinRules, *, scores: str, labels: str) -> None:
        self._store = store
        self._rules = rules
        self._scores = scores
        self._labels = labels
        self._decode_score = msgspec.json.Decoder(ScoreKey).decode
        self._decode_label = msgspec.json.Decoder(Label).decode
        self.counts = JoinerCounts(waiting=store.waiting_count(), rows=store.row_count())
        # Newest event time of each score partition seen by this process: the slowest bounds what may be deleted.
        self._newest: dict[Partition, int] = {}

    def join(self, records: list[InputRecord]) -> list[Outcome]:
        """Take a batch into the store and return the outcomes it causes, in log order per partition.

        Records that cannot be read are counted and skipped: `scores` is ours, and a malformed label has no
        transaction to belong to.
        """
        decided: dict[str, ScoredTransaction] = {}
        labels: list[tuple[str, LabelRecord]] = []
        for record in records:
            try:
                if record.topic == self._scores:
                    self._take_score(record, decided)
                else:
                    labels.append(self._take_label(record))
            except NOT_A_RECORD as error:
                self.counts.unreadable += 1
                _log.warning("%s[%d]@%d: %s", record.topic, record.partition, record.offset, error)
        if decided:
            self.counts.rows += self._store.add(decided.values())
            if self.counts.waiting:
                waited = self._store.waiting(decided)
                self._store.stop_waiting(waited)
                self.counts.waiting -= len(waited)
                # What waited came first: an order among labels, not among arrivals, decides anyway.
                labels = [*waited.items(), *labels]
        return self._judge(labels) if labels else []

    def _take_score(self, record: InputRecord, decided: dict[str, ScoredTransaction]) -> None:
        score = self._decode_score(record.value)
        self.counts.scores += 1
        if score.duplicate:
            return
        context = self._store.context_id(Context(score.ensemble, score.version, score.arm, score.policy_version))
        row = ScoredTransaction(
            score.event_id,
            score.event_time,
            context,
            DECISIONS.index(score.decision),
            score.member_alerts,
            score.value,
        )
        decided.setdefault(score.event_id, row)
        at = (record.topic, record.partition)
        self._newest[at] = max(score.event_time, self._newest.get(at, 0))

    def _take_label(self, record: InputRecord) -> tuple[str, LabelRecord]:
        label = self._decode_label(record.value)
        self.counts.labels += 1
        return label.event_id, LabelRecord(
            LABELS.index(label.label),
            label.source,
            label.review_probability,
            self._rules.rank(label.source),
            label.labelled_at,
            record.offset,
            record.partition,
        )

    def _judge(self, labels: list[tuple[str, LabelRecord]]) -> list[Outcome]:
        known = self._store.find({event_id for event_id, _ in labels})
        missing = {event_id for event_id, _ in labels if event_id not in known}
        waiting = self._store.waiting(missing) if missing else {}
        before = len(waiting)
        held: dict[str, LabelRecord] = {}
        outcomes: list[Outcome] = []
        for event_id, verdict in labels:
            row = known.get(event_id)
            if row is None:
                holds = waiting.get(event_id)
                if holds is None or verdict.order > holds.order:
                    waiting[event_id] = verdict
                continue
            if verdict.labelled_at - row.event_time > self._rules.keep_ms:
                # By the record's own times, so that it does not depend on when old rows were deleted.
                self.counts.too_late += 1
                continue
            previous = row.verdict
            if previous is not None and verdict.order <= previous.order:
                continue
            held[event_id] = verdict
            known[event_id] = row._replace(verdict=verdict)
            if not verdict.says_the_same(previous):
                outcomes.append(self._outcome(row, verdict))
        self._store.set_verdicts(held)
        if missing:
            self._store.wait(waiting)
            self.counts.waiting += len(waiting) - before
        return outcomes

    def _outcome(self, row: ScoredTransaction, verdict: LabelRecord) -> Outcome:
        context = self._store.context(row.context)
        previous = row.verdict
        return Outcome(
            event_id=row.event_id,
            event_time=row.event_time,
            pane=row.event_time - row.event_time % self._rules.pane_ms,
            version=context.version,
            arm=context.arm,
            policy_version=context.policy_version,
            decision=DECISIONS[row.decision],
            member_alerts=row.member_alerts,
            value=row.value,
            label=LABELS[verdict.label],
            previous_label=None if previous is None else LABELS[previous.label],
            source=verdict.source,
            review_probability=verdict.probability,
            labelled_at=verdict.labelled_at,
            age=verdict.labelled_at - row.event_time,
            ensemble=context.ensemble,
            previous_source=None if previous is None else previous.source,
            previous_review_probability=None if previous is None else previous.probability,
        )

    def rollback(self) -> None:
        """Drop the batch in hand."""
        self._store.rollback()
        self.counts.waiting, self.counts.rows = self._store.waiting_count(), self._store.row_count()

    def trim(self) -> None:
        """Delete what no label can reach any more. Call it only when nothing is unread: an unread label is late."""
        if self._newest:
            horizon = min(self._newest.values()) - self._rules.keep_ms - self._rules.allowed_lateness_ms
            rows, labels = self._store.forget_before(horizon)
            self.counts.rows -= rows
            self.counts.waiting -= labels


class JoinerService:
    """Runs a `Joiner` against Kafka until told to stop."""

    def __init__(
        self,
        loop: TransactionalLoop,
        store: JoinerStore,
        joiner: Joiner,
        clock: Clock,
        *,
        inputs: list[Partition],
        outcomes: str,
        batch: int = BATCH,
    ) -> None:
        self._batch = batch
        self._loop = loop
        self._store = store
        self._joiner = joiner
        self._clock = clock
        self._inputs = inputs
        self._outcomes = outcomes
        self._positions: dict[Partition, int] = {}
        self._trimmed_at = clock.monotonic()
        self._encode = msgspec.json.Encoder().encode

    @property
    def counts(self) -> JoinerCounts:
        """What has been done since the start."""
        return self._joiner.counts

    def run(self, stop: threading.Event, on_ready: Callable[[], None] = lambda: None) -> None:
        """Resync, then join batch by batch until `stop` is set.

        Raises:
            StreamScorerError: Kafka stays unusable, or the store belongs to other topics.
        """
        self._resync(stop)
        on_ready()
        aborts = 0
        while not stop.is_set():
            try:
                self._step()
                aborts = 0
            except TransactionAborted:
                aborts += 1
                if aborts > MAX_ABORTS:
                    raise
                _log.warning(
                    "joiner: transaction aborted, beginning anew (%d of %d)", aborts, MAX_ABORTS, exc_info=True
                )
                self._joiner.rollback()
                self._resync(stop)

    def _resync(self, stop: threading.Event) -> None:
        """Bring the store to the committed positions without publishing, then read on from there."""
        committed = self._loop.begin(self._inputs)
        stored = self._store.positions()
        ends = self._loop.ends(self._inputs)
        for at in self._inputs:
            if stored.get(at, 0) > max(ends[at][1], 0) or (at in committed and stored.get(at, 0) > committed[at]):
                raise StreamScorerError(
                    f"the joiner's store is ahead of {at[0]}[{at[1]}]: it belongs to other topics",
                    hint="The topics were recreated, or the store was copied: start with an empty --state-dir.",
                )
        behind = {at: end for at, end in committed.items() if stored.get(at, 0) < end and ends[at][0] < end}
        if behind:
            self._replay({at: stored.get(at) for at in behind}, behind, stop)
        self._positions = self._store.positions()
        self._loop.assign({at: self._positions.get(at) for at in self._inputs})

    def _replay(
        self, start: Mapping[Partition, int | None], end: Mapping[Partition, int], stop: threading.Event
    ) -> None:
        self._loop.assign(start)
        reached = {at: offset for at, offset in start.items() if offset is not None}
        while not stop.is_set() and any(reached.get(at, 0) < end[at] for at in end):
            records = [r for r in self._loop.read(self._batch, POLL_S) if r.offset < end[r.topic, r.partition]]
            for record in records:
                reached[record.topic, record.partition] = record.offset + 1
            self._joiner.join(records)
            self._store.set_positions(reached)
            self._store.commit()
            self.counts.replayed += len(records)

    def _step(self) -> None:
        records = self._loop.read(self._batch, POLL_S)
        if records:
            outcomes = self._joiner.join(records)
            positions = self._positions | {(r.topic, r.partition): r.offset + 1 for r in records}
            self._loop.publish(
                [OutputRecord(self._outcomes, o.event_id.encode(), self._encode(o)) for o in outcomes], positions
            )
            self._store.set_positions(positions)
            self._store.commit()
            self._positions = positions
            self.counts.outcomes += len(outcomes)
            self.counts.positions = positions
        # A read that came back short means that nothing was unread.
        if len(records) < self._batch and self._clock.monotonic() - self._trimmed_at > TRIM_EVERY_S:
            self._trimmed_at = self._clock.monotonic()
            self._joiner.trim()
            self._store.commit()
