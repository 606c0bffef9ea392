"""The label joiner: reads `scores` and `labels`, and writes one record to `outcomes` per label or change of label.

It is exactly once because the positions in Kafka and SQLite change in a fixed order. Each batch is (1) joined in an
open SQLite transaction, (2) published in one Kafka transaction together with the input positions, (3) committed to
SQLite with the same positions. So SQLite is never ahead of Kafka. After a crash between 2 and 3, SQLite is behind: the
joiner reads the missing records again and joins them *without* publishing, up to the committed positions. This is
correct because the store does not depend on the interleaving of partitions: the first score of an event counts, and all
scores of an event are in one partition; a label that is too late by the event time that it states is never stored; of
the others, the effective label is the maximum of a total order, and it is the last one published.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated

import msgspec

from stream_scorer.clock import Clock
from stream_scorer.errors import BrokerUnavailable, StreamScorerError, TransactionAborted
from stream_scorer.kafka.transactional_loop import InputRecord, OutputRecord, Partition, TransactionalLoop
from stream_scorer.monitor.deleted_records import find_lost, raised, representatives
from stream_scorer.monitor.joiner_store import Context, JoinerStore, LabelRecord, ScoredTransaction
from stream_scorer.records import DECISIONS, EXACT_INTEGERS, NOT_A_RECORD, Decision, LabelValue, Outcome, Record
from stream_scorer.serde.decoder import record_error
from stream_scorer.serde.label_ranks import source_rank
from stream_scorer.spec.model import PipelineSpec, duration_ms
from stream_scorer.structs import prepare

LABELS: tuple[LabelValue, ...] = ("fraud", "genuine")

# Joining 2,000 records takes about 15 ms: enough to amortise a transaction (3 to 10 ms), and little enough for a quick
# stop.
BATCH = 2_000
POLL_S = 0.2
# Maximum number of consecutive aborted transactions. More have a cause that a restart does not remove, such as a second
# joiner with the same transactional id.
MAX_ABORTS = 5
# How often to decide which rows are old.
TRIM_EVERY_S = 30.0
# Kafka keeps the offsets of a group that is down for at least this long, unless `offsets.retention.minutes` is shorter.
OFFSETS_KEPT_MS = 24 * 3_600_000
# A label without a score is kept for at least this long, however old it is: a scorer that falls behind, or a history
# that is streamed through faster than it happened, can be weeks of event time behind on one partition and not on the
# others.
WAITING_KEPT_MS = 24 * 3_600_000
# Rows deleted with one batch, at up to 0.1 ms each: twice a batch, so deletion keeps up, and few, so that it delays no
# batch for long and succeeds on a disk that is almost full, as SQLite first writes the changed pages to its log.
MAX_DELETED = 2 * BATCH

_log = logging.getLogger("stream_scorer.monitor.joiner")


class ScoreKey(Record, frozen=True):
    """The fields of a `Score` that the joiner needs; decoding the others costs time."""

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
    rule: str | None = None
    card_group: int | None = None
    review_propensity: float | None = None


# As `serde.decoder.LabelDecoder` has them, which writes the dead letters of other labels.
_Time = Annotated[int, msgspec.Meta(ge=0, le=EXACT_INTEGERS)]


class Label(Record, frozen=True):
    """One record of the topic `labels`, without its entity fields."""

    event_id: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
    event_time: _Time
    label: LabelValue
    labelled_at: _Time
    source: Annotated[str, msgspec.Meta(max_length=128)]
    review_probability: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None


@dataclass(frozen=True)
class JoinRules:
    """The rules for labels from the spec. Times in milliseconds."""

    pane_ms: int
    horizon_ms: int
    allowed_lateness_ms: int
    source_rank: Mapping[str, int]
    max_age_ms: int
    max_ahead_ms: int

    @classmethod
    def of(cls, spec: PipelineSpec) -> JoinRules:
        """The rules of a spec."""
        return cls(
            pane_ms=duration_ms(spec.monitor.pane),
            horizon_ms=duration_ms(spec.labels.horizon),
            allowed_lateness_ms=duration_ms(spec.time.allowed_lateness),
            source_rank=spec.labels.source_rank,
            max_age_ms=duration_ms(spec.time.max_age),
            max_ahead_ms=duration_ms(spec.time.max_ahead),
        )

    @property
    def keep_ms(self) -> int:
        """Maximum time between a transaction and a label that counts."""
        return 2 * self.horizon_ms

    @property
    def rows_kept_ms(self) -> int:
        """How long the store keeps a transaction, in event time.

        A store that is lost can be built again if `scores` and `labels` are kept for as long.
        """
        return self.keep_ms + self.allowed_lateness_ms

    def plausible(self, label: Label, timestamp: int) -> bool:
        """Whether the times of a label with this Kafka timestamp (ms) are plausible.

        The rule of `serde.decoder.LabelDecoder`: `labelled_at` is within ``time.max_age`` and ``time.max_ahead`` of the
        record, and `event_time` of `labelled_at`. A time in another unit is outside.
        """
        ages = (timestamp - label.labelled_at, label.labelled_at - label.event_time)
        return all(-self.max_ahead_ms <= age <= self.max_age_ms for age in ages)


@dataclass
class JoinerCounts:
    """Counters of the joiner since its start. One thread writes them, the metrics exporter reads them.

    `labels_lost_before`: up to which event time (ms) transactions may lack labels, because retention deleted scores or
    labels that the store lacks; None if it lacks none. The store keeps it.
    """

    scores: int = 0
    labels: int = 0
    outcomes: int = 0
    unreadable: int = 0
    implausible: int = 0
    too_late: int = 0
    replayed: int = 0
    waiting: int = 0
    expired: int = 0
    rows: int = 0
    lag: int = 0
    labels_lost_before: int | None = None
    positions: dict[Partition, int] = field(default_factory=dict)


class Joiner:
    """Joins batches with the store, without Kafka: `join` is a function of the store and the records.

    The clock decides only when labels without a score are deleted.
    """

    def __init__(self, store: JoinerStore, rules: JoinRules, clock: Clock, *, scores: str, labels: str) -> None:
        self._store = store
        self._rules = rules
        self._clock = clock
        self._scores = scores
        self._labels = labels
        self._decode_score = msgspec.json.Decoder(ScoreKey).decode
        self._decode_label = msgspec.json.Decoder(Label).decode
        self.counts = JoinerCounts()
        self._load_counts()
        # By partition whose next record follows deleted ones that the store lacks, the partitions that it represents.
        self._after_deleted: dict[Partition, Set[Partition]] = {}
        # Newest event time per score partition that this process has read, and those with scores since the last
        # decision which rows are old.
        self._newest: dict[Partition, int] = {}
        self._active: set[Partition] = set()
        # Rows before this event time, and labels without a score from before it, are to be deleted; None: no more.
        self._old_before: int | None = None
        self._expired_before: int | None = None

    def _load_counts(self) -> None:
        self.counts.waiting, self.counts.rows = self._store.waiting_count(), self._store.row_count()
        self.counts.labels_lost_before = self._store.labels_lost_before()

    def join(self, records: list[InputRecord]) -> list[Outcome]:
        """Add a batch to the store and return the resulting outcomes, in log order per partition.

        Counts and skips unreadable records: the scorer writes `scores`, and a malformed label belongs to no
        transaction.
        """
        decided: dict[str, ScoredTransaction] = {}
        labels: list[tuple[str, LabelRecord]] = []
        implausible: list[InputRecord] = []
        if self._after_deleted:
            self._note_lost(records)
        for record in records:
            try:
                if record.topic == self._scores:
                    self._add_score(record, decided)
                else:
                    self._add_label(record, labels, implausible)
            except NOT_A_RECORD as error:
                self.counts.unreadable += 1
                # Without its content: a label may hold ids of sensitive entities.
                problem = record_error(error, record.value)
                text = f"{problem.message} - at {problem.path}" if problem.path else problem.message
                _log.warning("%s[%d]@%d: %s", record.topic, record.partition, record.offset, text)
        if implausible:
            self._report_implausible(implausible)
        if decided:
            self.counts.rows += self._store.add(decided.values())
            if self.counts.waiting:
                waited = self._store.waiting(decided)
                self._store.stop_waiting(waited)
                self.counts.waiting -= len(waited)
                # The sequence does not matter, as the order of labels decides and not the order of arrival.
                labels = [*waited.items(), *labels]
        return self._apply_labels(labels) if labels else []

    def _add_score(self, record: InputRecord, decided: dict[str, ScoredTransaction]) -> None:
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
            score.review_propensity,
            score.card_group,
            score.rule,
        )
        decided.setdefault(score.event_id, row)
        at = (record.topic, record.partition)
        self._newest[at] = max(score.event_time, self._newest.get(at, 0))
        self._active.add(at)

    def _report_implausible(self, records: list[InputRecord]) -> None:
        self.counts.implausible += len(records)
        first = f"{records[0].topic}[{records[0].partition}]@{records[0].offset}"
        text = "%d labels with implausible times are ignored, the first one is %s; the scorer writes their dead letters"
        _log.warning(text, len(records), first)

    def _add_label(
        self, record: InputRecord, labels: list[tuple[str, LabelRecord]], implausible: list[InputRecord]
    ) -> None:
        label = self._decode_label(record.value)
        self.counts.labels += 1
        if not self._rules.plausible(label, record.timestamp):
            implausible.append(record)
        elif label.labelled_at - label.event_time > self._rules.keep_ms:
            # Dropped before it can wait for a score, where it would replace a label that counts.
            self.counts.too_late += 1
        else:
            row = LabelRecord(
                LABELS.index(label.label),
                label.source,
                label.review_probability,
                source_rank(self._rules.source_rank, label.source),
                label.labelled_at,
                record.offset,
                record.partition,
            )
            labels.append((label.event_id, row))

    def _apply_labels(self, labels: list[tuple[str, LabelRecord]]) -> list[Outcome]:
        known = self._store.find({event_id for event_id, _ in labels})
        missing = {event_id for event_id, _ in labels if event_id not in known}
        waiting = self._store.waiting(missing) if missing else {}
        before = len(waiting)
        effective: dict[str, LabelRecord] = {}
        outcomes: list[Outcome] = []
        for event_id, label_record in labels:
            row = known.get(event_id)
            if row is None:
                present = waiting.get(event_id)
                if present is None or label_record.order > present.order:
                    waiting[event_id] = label_record
                continue
            if label_record.labelled_at - row.event_time > self._rules.keep_ms:
                # Uses the times of the records, so the result does not depend on the time of the last deletion.
                self.counts.too_late += 1
                continue
            previous = row.effective
            if previous is not None and label_record.order <= previous.order:
                continue
            effective[event_id] = label_record
            known[event_id] = row._replace(effective=label_record)
            if not label_record.same_content(previous):
                outcomes.append(self._outcome(row, label_record))
        self._store.set_labels(effective)
        if missing:
            self._store.wait(waiting, self._clock.now_ms())
            self.counts.waiting += len(waiting) - before
        return outcomes

    def _outcome(self, row: ScoredTransaction, label_record: LabelRecord) -> Outcome:
        context = self._store.context(row.context)
        previous = row.effective
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
            label=LABELS[label_record.label],
            previous_label=None if previous is None else LABELS[previous.label],
            source=label_record.source,
            review_probability=label_record.probability,
            labelled_at=label_record.labelled_at,
            age=label_record.labelled_at - row.event_time,
            ensemble=context.ensemble,
            previous_source=None if previous is None else previous.source,
            previous_review_probability=None if previous is None else previous.probability,
            review_propensity=row.propensity,
            card_group=row.card_group,
            rule=row.rule,
            label_partition=label_record.log_partition,
        )

    def rollback(self) -> None:
        """Discard the current batch."""
        self._store.rollback()
        self._load_counts()

    def follow_deleted(self, partitions: Mapping[Partition, Set[Partition]]) -> None:
        """Let the next readable record of each of these partitions show which transactions may lack labels.

        Retention has deleted the records before it, and the store lacks them. A score has about the event time up to
        which transactions are missing, and a label was given about when the last missing one was.

        Args:
            partitions: by partition, those whose deleted records its next record represents.
        """
        self._after_deleted = dict(partitions)

    @property
    def after_deleted(self) -> Set[Partition]:
        """The partitions of `follow_deleted` of which no record has shown a time yet."""
        return self._after_deleted.keys()

    def _note_lost(self, records: list[InputRecord]) -> None:
        for record in records:
            at = (record.topic, record.partition)
            if at not in self._after_deleted or (time := self._time_of(record)) is None:
                continue
            for other in self._after_deleted[at]:
                self._after_deleted.pop(other, None)
            if self.counts.labels_lost_before is None or time > self.counts.labels_lost_before:
                self._store.set_labels_lost_before(time)
                self.counts.labels_lost_before = time
                text = "%s[%d]: labels of transactions up to %s may be missing, because retention has deleted records"
                _log.warning(text, *at, datetime.fromtimestamp(time / 1000, UTC).isoformat(timespec="seconds"))

    def _time_of(self, record: InputRecord) -> int | None:
        """The event time of a score, or the time at which a label was given; None if it is not readable."""
        try:
            if record.topic == self._scores:
                return self._decode_score(record.value).event_time
            label = self._decode_label(record.value)
        except NOT_A_RECORD:
            return None
        return label.labelled_at if self._rules.plausible(label, record.timestamp) else None

    def mark_old(self, behind: Set[Partition]) -> None:
        """Decide which rows no label can change any more; `delete_old` deletes them.

        These are rows older than twice the label horizon and the allowed lateness before the newest event time of the
        slowest score partition. A partition without scores since the last decision counts only if it is behind. So a
        silent partition does not keep rows.

        Args:
            behind: input partitions that are not read to the end that they had at the last decision. A label that waits
                there can be arbitrarily old, so rows stay until it is read.
        """
        slowest = self._active | {at for at in behind if at[0] == self._scores}
        times = [self._newest.get(at) for at in slowest]
        self._active.clear()
        known = [time for time in times if time is not None]
        if not known or len(known) < len(times) or any(at[0] == self._labels for at in behind):
            return
        self._old_before = min(known) - self._rules.rows_kept_ms
        self._expired_before = self._old_before

    def delete_old(self) -> bool:
        """Delete at most `MAX_DELETED` old rows, and as many old labels that wait for more than `WAITING_KEPT_MS`.

        Returns whether there were any to delete. Call it again until it returns False.
        """
        rows = labels = 0
        if self._old_before is not None:
            rows = self._store.delete_rows(self._old_before, MAX_DELETED)
            self.counts.rows -= rows
            if rows < MAX_DELETED:
                self._old_before = None
        if self._expired_before is not None:
            since = self._clock.now_ms() - WAITING_KEPT_MS
            labels = self._store.delete_waiting(self._expired_before, since, MAX_DELETED)
            self.counts.waiting -= labels
            self.counts.expired += labels
            if labels < MAX_DELETED:
                self._expired_before = None
        if labels:
            _log.warning("%d labels without a score for more than a day are deleted: do their event ids exist?", labels)
        return bool(rows or labels)


class JoinerService:
    """Runs a `Joiner` on Kafka until a stop is requested."""

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
        self._marked_at = clock.monotonic()
        self._ends: dict[Partition, int] = {}
        self._encode = msgspec.json.Encoder().encode

    @property
    def counts(self) -> JoinerCounts:
        """Counters since the start."""
        return self._joiner.counts

    def run(self, stop: threading.Event, on_ready: Callable[[], None] = lambda: None) -> None:
        """Resync, then join batch by batch until `stop` is set.

        Raises:
            StreamScorerError: Kafka remains unavailable, or the store is ahead of its topics.
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
                    "joiner: transaction aborted, starting again (%d of %d)", aborts, MAX_ABORTS, exc_info=True
                )
                self._joiner.rollback()
                self._resync(stop)

    def _resync(self, stop: threading.Event) -> None:
        """Bring the store to the committed positions without publishing, then continue from there."""
        committed = self._loop.begin(self._inputs)
        stored = self._store.positions()
        bounds = self._loop.ends(self._inputs)
        self._check(stored, committed, {at: max(end, 0) for at, (_, end) in bounds.items()})
        first = {at: low for at, (low, _) in bounds.items()}
        lost = find_lost(stored, committed, bounds)
        self._joiner.follow_deleted(representatives(lost, bounds))
        start = raised(stored, first)
        behind = {at: end for at, end in committed.items() if max(start.get(at, 0), first[at]) < end}
        if behind:
            self._replay({at: start.get(at) for at in behind}, behind, stop)
        self._positions = self._store.positions()
        start = raised(self._positions, first)
        self._loop.assign({at: start.get(at) for at in self._inputs})

    def _check(
        self, stored: Mapping[Partition, int], committed: Mapping[Partition, int], ends: Mapping[Partition, int]
    ) -> None:
        """Raise `StreamScorerError` if the store is ahead of Kafka, or the committed positions are above the ends."""
        written_at = self._store.written_at()
        # The store is never ahead of Kafka. A broker that has just started may report old positions or none, as if the
        # last batch were not published: joining it again would publish it twice (ADR 0051).
        expired = not committed and (written_at is None or self._clock.now_ms() - written_at > OFFSETS_KEPT_MS)
        for at in self._inputs:
            if stored.get(at, 0) > ends[at] or (not expired and stored.get(at, 0) > committed.get(at, 0)):
                raise StreamScorerError(
                    f"the joiner's store is ahead of {at[0]}[{at[1]}]",
                    hint="A broker that has just started may report old offsets, or none, for a while. If this lasts, "
                    "the topics were created again or the store was copied: start with an empty --state-dir. If only "
                    "the offsets of the group were deleted, the joiner goes on a day after its last batch.",
                )
        for (topic, number), offset in committed.items():
            end = ends[topic, number]
            if offset > end:
                raise StreamScorerError(
                    f"the committed position of {topic}[{number}] ({offset}) is above the end of the topic ({end})",
                    hint="A broker that has just started may report an old end for a while. If this lasts, the topic "
                    "lost records or was created again: delete the offsets of the joiner's group, and start with an "
                    "empty --state-dir.",
                )

    def _replay(
        self, start: Mapping[Partition, int | None], end: Mapping[Partition, int], stop: threading.Event
    ) -> None:
        self._loop.assign(start)
        reached = {at: offset for at, offset in start.items() if offset is not None}
        # The position also passes markers, which are no records.
        while not stop.is_set() and any(self._loop.position(at) < end[at] for at in end):
            records = [r for r in self._loop.read(self._batch, POLL_S) if r.offset < end[r.topic, r.partition]]
            for record in records:
                reached[record.topic, record.partition] = record.offset + 1
            self._joiner.join(records)
            self._store_reached(reached)
            self.counts.replayed += len(records)
        if not stop.is_set():
            self._store_reached(end)

    def _store_reached(self, positions: Mapping[Partition, int]) -> None:
        """Store the positions of a replay, without those at which it is not known yet which labels were lost.

        Otherwise a replay that ends early would forget that records before them were deleted.
        """
        unclear = self._joiner.after_deleted
        self._store.set_positions({at: n for at, n in positions.items() if at not in unclear}, self._clock.now_ms())
        self._store.commit()

    def _step(self) -> None:
        records = self._loop.read(self._batch, POLL_S)
        if records:
            self._publish(self._joiner.join(records))
        if self._clock.monotonic() - self._marked_at > TRIM_EVERY_S:
            self._marked_at = self._clock.monotonic()
            self._mark_old()
            if self._reached() != self._positions:
                self._publish([])
        if self._joiner.delete_old():
            self._store.commit()

    def _publish(self, outcomes: list[Outcome]) -> None:
        """Publish the outcomes of what was read, then store it, both with the positions."""
        positions = self._reached()
        self._loop.publish(
            [OutputRecord(self._outcomes, o.event_id.encode(), self._encode(o)) for o in outcomes], positions
        )
        self._store.set_positions(positions, self._clock.now_ms())
        self._store.commit()
        self._positions = positions
        self.counts.outcomes += len(outcomes)
        self.counts.positions = positions

    def _reached(self) -> dict[Partition, int]:
        """The positions after all that was read, markers included.

        Without markers, the position of a silent partition would stay before its last one. Once retention has deleted
        that, it would look like an unread record. A partition whose deleted records have no time yet keeps its
        position, so that a restart finds it again.
        """
        reached = {at: self._loop.position(at) for at in self._inputs if at not in self._joiner.after_deleted}
        return self._positions | {at: end for at, end in reached.items() if end > self._positions.get(at, 0)}

    def _mark_old(self) -> None:
        """Let the joiner decide which rows are old, with the ends of the inputs at the last decision.

        Ends of the present would never be reached while records arrive.
        """
        try:
            ends = self._loop.ends(self._inputs)
        except BrokerUnavailable as error:
            _log.warning("joiner: old rows stay for now: %s", error.message)
            return
        previous, self._ends = self._ends, {at: end for at, (_, end) in ends.items()}
        if previous:
            self._joiner.mark_old({at for at in self._inputs if self._loop.position(at) < previous[at]})


prepare(globals())
