"""The processor: reads micro-batches, passes them through the stages, and keeps every promise about order.

One thread reads, computes and produces; the committer's thread commits and applies behind it. Whatever goes wrong
(an abort, a fencing, a gap in Redis) ends in one routine, `_resync`: drain, abort, look up committed offsets and
marks, read on from there.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from stream_scorer.errors import StateGap, StateUnavailable, StreamScorerError, TransactionAborted
from stream_scorer.observability import metrics as m
from stream_scorer.pipeline.batch import MicroBatch, Sink, Stage
from stream_scorer.pipeline.commit import Committer, Work
from stream_scorer.pipeline.ports import OpenTransaction, Producers, Reader
from stream_scorer.pipeline.rebuild import Rebuild
from stream_scorer.pipeline.recovery import REBUILDING, UNAVAILABLE, StartingPoints
from stream_scorer.positions import SourcePartition, Span
from stream_scorer.records import DECISIONS, FEATURES_STALE
from stream_scorer.serde.raw import RawRecords, Read
from stream_scorer.state.rows import RowUpdate

_log = logging.getLogger(__name__)
# A revoked partition must be given up well within the session timeout (10 s).
DRAIN_DEADLINE_S = 8.0
# A commit through a broker that restarts: flush, offsets and commit at their timeouts, then a new producer (40 s).
COMMIT_DEADLINE_S = 90.0
# How often a Redis that went away is tried again.
STATE_RETRY_S = 1.0
# How long a read waits for its first record; also how soon a stop is noticed.
READ_WAIT_S = 0.1


@dataclass(frozen=True, slots=True)
class Pacing:
    """How records become micro-batches: at most `most` a batch, and at least `pace_s` from batch to batch.

    A Kafka transaction costs the broker about the same whatever its size, so few large ones cost less CPU, and on busy
    cores scores come no later for it (measured in docs/benchmarks.md). The pace is counted from when the last batch was
    taken up: a batch that took longer is followed at once, and a full one never waits.
    """

    most: int = 1_024
    pace_s: float = 0.020


class Processor:
    """See the module.

    Args:
        make_reader: builds the input reader around our rebalance callbacks.
        find_start: from assigned partitions to `StartingPoints`.
        stages: what computes. publish: what writes a computed batch to its transaction.
        apply: brings the rows up to date after the commit; None for a pipeline without state.
        make_rebuild: starts a `Rebuild` up to the offsets it is given; None for a pipeline without state.
        transactions_topic: which of the input topics carries transactions; the others carry labels.
    """

    def __init__(
        self,
        *,
        make_reader: Callable[[Callable[..., dict[SourcePartition, int]], Callable[[bool], None]], Reader],
        find_start: Callable[[Reader, list[SourcePartition]], StartingPoints],
        producers: Producers,
        stages: list[Stage],
        publish: Callable[[MicroBatch, Sink], None],
        apply: Callable[[RowUpdate], None],
        make_rebuild: Callable[[dict[SourcePartition, int], Callable[[int, int], None]], Rebuild] | None,
        transactions_topic: str,
        labels_topic: str,
        pacing: Pacing,
        metrics: m.Metrics,
    ) -> None:
        self._find_start = find_start
        self._producers = producers
        self._stages = stages
        self._publish = publish
        self._make_rebuild = make_rebuild
        self._rebuild: Rebuild | None = None
        self._transactions_topic = transactions_topic
        self._labels_topic = labels_topic
        self._pacing = pacing
        self._metrics = metrics
        self._score_from: dict[SourcePartition, int] = {}
        self._open: OpenTransaction | None = None
        self._resync_cause = ""
        self._taken_at = 0.0
        self._state_lost_at: float | None = None
        self._assigned_once = False
        self._committer = Committer(self._commit, apply, self._done)
        self._reader = make_reader(self._on_assigned, self._on_revoked)

    @property
    def committer(self) -> Committer:
        """The commit side, whose `in_flight` the enrich stage asks."""
        return self._committer

    def ready(self) -> tuple[bool, str]:
        """Whether scoring goes on as it should, and if not, why."""
        if not self._assigned_once:
            return False, "waiting for partitions"
        if self._state_lost_at is not None:
            return False, "Redis is not available: scoring without features"
        if self._rebuild is not None:
            return False, "features are being rebuilt: scoring without them"
        return True, "serving"

    def run(self, stop: threading.Event) -> None:
        """Process until `stop` is set, then finish the batch in hand and leave the group."""
        try:
            while not stop.is_set():
                self._step()
            self._committer.wait_below(1, DRAIN_DEADLINE_S)
        finally:
            self._abort_open()
            self._end_rebuild()
            self._reader.close()
            self._committer.close()
            self._producers.close()

    def state_lost(self, error: StateUnavailable) -> str:
        """Called when the rows cannot be read. Answers why the scores then go without features."""
        if self._state_lost_at is None:
            _log.warning("Redis is not available, scoring without features: %s", error.message)
        self._state_lost_at = time.monotonic()
        return UNAVAILABLE

    def _step(self) -> None:
        if self._committer.failure is not None:
            self._fail(self._committer.failure)
        if self._committer.state_lost is not None and self._state_lost_at is None:
            self._score_without(self.state_lost(self._committer.state_lost))
        if self._state_lost_at is not None and time.monotonic() - self._state_lost_at > STATE_RETRY_S:
            self._resync_cause = self._resync_cause or "state_retry"
        if self._rebuild is not None:
            self._look_after(self._rebuild)
        if self._resync_cause:
            self._resync()
        read = self._reader.read(self._pacing.most, READ_WAIT_S)
        if not len(read):
            self._metrics.set(m.LAG, self._reader.lag())
            return
        read = self._pace(read)
        try:
            for batch in self._batches(read):
                self._process(batch)
                if self._resync_cause:
                    break
        except (TransactionAborted, StateGap) as error:
            self._fail(error)

    def _look_after(self, rebuild: Rebuild) -> None:
        if rebuild.ready.is_set():
            self._resync_cause = self._resync_cause or "rebuilt"
        elif isinstance(rebuild.failure, StateUnavailable):
            self._end_rebuild()
            self._score_without(self.state_lost(rebuild.failure))
        elif isinstance(rebuild.failure, StateGap):
            self._fail(rebuild.failure)
        elif rebuild.failure is not None:
            raise rebuild.failure

    def _pace(self, read: Read) -> Read:
        """Wait for company while the last batch was taken up less than `pace_s` ago and there is room."""
        wait = self._taken_at + self._pacing.pace_s - time.monotonic()
        if wait > 0 and len(read) < self._pacing.most:
            time.sleep(wait)
            read = self._reader.read_more(read, self._pacing.most - len(read))
        self._taken_at = time.monotonic()
        return read

    def _batches(self, read: Read) -> list[MicroBatch]:
        """The catch-up part of what was read, then the part to be scored."""
        by_topic = {records.topic: records for records in read.records}
        transactions = by_topic.get(self._transactions_topic) or RawRecords.empty(self._transactions_topic)
        labels = by_topic.get(self._labels_topic) or RawRecords.empty(self._labels_topic)
        behind = {s for s, (start, _) in read.positions.items() if start < self._score_from[s]}
        if not behind:
            spans = [Span(s, start, stop, -1) for s, (start, stop) in read.positions.items()]
            return [MicroBatch(transactions, labels, spans, read.group_metadata)]
        old, new = [], []
        for source, (start, stop) in read.positions.items():
            edge = min(max(self._score_from[source], start), stop)
            if start < edge:
                old.append(Span(source, start, edge, -1))
            if edge < stop:
                new.append(Span(source, edge, stop, -1))
        return [
            MicroBatch(
                self._part(transactions, scoring), self._part(labels, scoring), spans, read.group_metadata, scoring
            )
            for spans, scoring in ((old, False), (new, True))
            if spans
        ]

    def _part(self, records: RawRecords, scoring: bool) -> RawRecords:
        if not len(records):
            return records
        edge = np.array(
            [self._score_from[SourcePartition(records.topic, p)] for p in records.partition.tolist()], dtype=np.int64
        )
        return records.take(np.flatnonzero((records.offset >= edge) == scoring))

    def _process(self, batch: MicroBatch) -> None:
        for stage in self._stages:
            if not batch.scoring and stage.name == "score":
                continue
            started = time.perf_counter()
            stage.process(batch)
            batch.seconds[stage.name] = time.perf_counter() - started
        if batch.enriched is not None:
            self._committer.announce(batch.enriched.update)
        started = time.perf_counter()
        # Two producers: the one before last must be done with its transaction, and the last one's records must be in
        # the log, or ours could overtake them.
        if not (self._committer.wait_below(2, COMMIT_DEADLINE_S) and self._committer.wait_flushed(COMMIT_DEADLINE_S)):
            raise StreamScorerError("a Kafka commit did not end in time")
        if self._committer.failure is not None:
            self._fail(self._committer.failure)
            return
        batch.seconds["wait"] = time.perf_counter() - started
        started = time.perf_counter()
        transaction: OpenTransaction | None = None
        if batch.scoring:
            transaction = self._open = self._producers.next()
            transaction.begin()
            self._publish(batch, transaction)
            self._open = None
        batch.seconds["publish"] = time.perf_counter() - started
        self._committer.submit(Work(batch, transaction))

    def _commit(self, work: Work) -> None:
        assert work.transaction is not None
        batch = work.batch
        offsets = {span.source: span.stop for span in batch.spans}
        try:
            work.transaction.commit(offsets, batch.group_metadata)
        except TransactionAborted:
            self._metrics.count(m.COMMITS, 1, "aborted")
            raise
        self._metrics.count(m.COMMITS, 1, "committed")

    def _done(self, batch: MicroBatch) -> None:
        """Count a batch that is committed (runs in the committer's thread)."""
        metrics = self._metrics
        for stage, seconds in batch.seconds.items():
            metrics.observe(m.STAGE_SECONDS, seconds, stage)
        metrics.observe(m.BATCH_ROWS, len(batch))
        if not batch.scoring:
            metrics.count(m.CAUGHT_UP, len(batch))
            return
        rebuild = self._rebuild
        if rebuild is not None:
            rebuild.committed(batch.spans)
        for letter in batch.dead:
            metrics.count(m.DEAD_LETTERS, 1, letter.error.code)
        if batch.decided is not None:
            for code, count in enumerate(np.bincount(batch.decided.decision, minlength=len(DECISIONS)).tolist()):
                metrics.count(m.TRANSACTIONS, count, DECISIONS[code])
        if batch.enriched is not None:
            metrics.count(m.DUPLICATES, int(batch.enriched.duplicate.sum()))
            for reason in batch.enriched.degraded:
                metrics.count(m.DEGRADED, len(batch.enriched.duplicate), reason)
            metrics.count(m.DEGRADED, int(batch.enriched.stale.sum()), FEATURES_STALE)
            ages = batch.enriched.ages
            metrics.set(m.FEATURE_AGE, ages.partitions.max(initial=0) / 1_000, "partitions")
            metrics.set(m.FEATURE_AGE, ages.labels.max(initial=0) / 1_000, "labels")

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, TransactionAborted):
            self._resync_cause = "aborted"
        elif isinstance(error, StateGap):
            self._resync_cause = "state_gap"
        else:
            raise error
        message = error.message.rstrip(".")
        _log.warning("%s; reading again from the committed offsets", message)

    def _abort_open(self) -> None:
        if self._open is not None:
            self._open.abort()
            self._open = None

    def _resync(self) -> None:
        self._metrics.count(m.RESYNCS, 1, self._resync_cause)
        self._resync_cause = ""
        self._committer.wait_below(1, COMMIT_DEADLINE_S)
        self._abort_open()
        sources = self._reader.owned
        if sources:
            self._reader.seek_all(self._start(sources))
        else:
            self._committer.reset()

    def _start(self, sources: list[SourcePartition]) -> dict[SourcePartition, int]:
        self._committer.reset()
        was_rebuilding = self._end_rebuild()
        points = self._find_start(self._reader, sources)
        self._score_from = points.score_from
        if points.without_features == UNAVAILABLE:
            self._state_lost_at = time.monotonic()
        else:
            if self._state_lost_at is not None:
                _log.info("Redis is back")
            self._state_lost_at = None
            if points.without_features == REBUILDING:
                assert self._make_rebuild is not None
                self._rebuild = self._make_rebuild(dict(points.score_from), self._rebuilt)
            elif was_rebuilding:
                _log.info("features are rebuilt, scoring with them again")
        self._score_without(points.without_features)
        return points.read_from

    def _rebuilt(self, brought_in: int, remaining: int) -> None:
        """Count what a rebuild does (runs in its thread)."""
        self._metrics.count(m.CAUGHT_UP, brought_in)
        self._metrics.set(m.REBUILD_REMAINING, remaining)

    def _end_rebuild(self) -> bool:
        """Stop a rebuild; whether there was one."""
        rebuild, self._rebuild = self._rebuild, None
        if rebuild is None:
            return False
        if not rebuild.stop():
            raise StreamScorerError("a rebuild of features did not stop in time")
        self._metrics.set(m.REBUILD_REMAINING, 0)
        return True

    def _score_without(self, reason: str) -> None:
        """Score without features from now on, because of `reason`; with them if it is empty."""
        for stage in self._stages:
            if hasattr(stage, "without_features"):
                stage.without_features = reason

    def _on_assigned(self, sources: list[SourcePartition]) -> dict[SourcePartition, int]:
        self._committer.wait_below(1, DRAIN_DEADLINE_S)
        self._abort_open()
        self._resync_cause = ""
        self._metrics.set(m.PARTITIONS, len(sources))
        _log.info("assigned %d partitions", len(sources))
        offsets = self._start(sources)
        self._assigned_once = True
        return offsets

    def _on_revoked(self, lost: bool) -> None:
        if not self._committer.wait_below(1, DRAIN_DEADLINE_S):
            _log.warning("partitions go while a commit is still under way: its outcome is looked up on return")
        self._abort_open()
        self._end_rebuild()
        self._metrics.set(m.PARTITIONS, 0)
        if lost:
            _log.warning("partitions were lost: the group did not hear from us in time")
