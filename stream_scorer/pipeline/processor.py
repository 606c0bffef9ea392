"""The processor: reads micro-batches, passes them through the stages, and keeps the order of everything.

The scoring thread reads, computes and produces; the committer thread commits and applies behind it. Every failure that
can be repaired (an aborted transaction, a lost row, a Redis that is back) ends in one routine, `_resync`: drain, look
up committed and applied offsets, and read on from there. If no broker answers, `_resync` is repeated until one does.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import get_args

from stream_scorer.clock import Deadline
from stream_scorer.errors import (
    BrokerUnavailable,
    OffsetsBehind,
    StartPending,
    StateGap,
    StateUnavailable,
    Stopped,
    TransactionAborted,
)
from stream_scorer.observability import metrics as m
from stream_scorer.pipeline.batch import MicroBatch, Stage
from stream_scorer.pipeline.committer import COMMIT_DEADLINE_S, Committer
from stream_scorer.pipeline.cut import Inputs, cut
from stream_scorer.pipeline.ports import Producers, Reader
from stream_scorer.pipeline.state_manager import ResyncCause, StateManager
from stream_scorer.positions import SourcePartition
from stream_scorer.serde.raw import Read

_log = logging.getLogger(__name__)
# A revoked partition must be given up well within the session timeout (10 s).
REBALANCE_DEADLINE_S = 8.0
# How long a read waits for its first record; also how soon a stop is noticed.
READ_WAIT_S = 0.1
# How often the lag is measured, also in a backlog, when no read is empty.
LAG_EVERY_S = 1.0
# Longest wait of a batch that is not full until the broker has taken the last one.
FLUSH_WAIT_S = 0.5
# Longest step of the scoring thread: it waits for its turn to produce, and for a drain in a resync. The rest is reserve
# for a rebalance and for lookups at a broker that restarts.
PROGRESS_LIMIT_S = 2 * COMMIT_DEADLINE_S + 60.0
# Pause between two resyncs while no broker answers.
OUTAGE_PAUSE_S = 0.5
# In an outage of all brokers the partitions are lost within seconds. A scorer that still has them after this time lacks
# a single broker: it ends, so that others take its partitions over.
PARTIAL_OUTAGE_S = 90.0
# So many aborts in a row, without a commit, look like a loop.
ABORTS_OF_A_LOOP = 5

OnAssigned = Callable[[list[SourcePartition]], dict[SourcePartition, int]]
OnRevoked = Callable[[bool], None]


@dataclass(frozen=True, slots=True)
class Pacing:
    """How records become micro-batches: at most `max_records` per batch, and at least `pace_s` from batch to batch.

    A Kafka transaction costs the broker about the same whatever its size, so few large ones cost less CPU, and on busy
    cores scores come no later for it (measured in docs/benchmarks.md). The pace is counted from when the last batch was
    taken up. A batch also waits until the broker has the records of the last one: it could not be written before that,
    and meanwhile more records join it. A full batch never waits.
    """

    max_records: int = 1_024
    pace_s: float = 0.020


class _AbortStreak:
    """Aborts without a committed batch between them. Each halves the next batch, in case its size is the cause."""

    def __init__(self) -> None:
        self.length = 0
        self.why = ""
        self._finished = 0

    @property
    def looping(self) -> bool:
        """Whether so many transactions were aborted in a row that it looks like a loop."""
        return self.length >= ABORTS_OF_A_LOOP

    def add(self, why: str, finished: int) -> None:
        """Count an abort; `finished` is the number of batches that were committed so far."""
        self.length = self.length + 1 if finished == self._finished else 1
        self._finished, self.why = finished, why

    def shrink(self, max_records: int, finished: int) -> int:
        """How many records the next batch may hold. A committed batch ends the streak."""
        if self.length and finished > self._finished:
            self.length = 0
        return max(max_records >> self.length, 1)


class Processor:
    """See the module.

    Args:
        make_reader: builds the input reader around our rebalance callbacks, and a function that returns whether to give
            up lookups that wait for the broker.
        stages: run in the scoring thread. committer: runs the last ones.
        state: decides where to read from and whether features can be used; see `StateManager`.
    """

    def __init__(
        self,
        *,
        make_reader: Callable[[OnAssigned, OnRevoked, Callable[[], bool]], Reader],
        producers: Producers,
        stages: Sequence[Stage],
        committer: Committer,
        state: StateManager,
        inputs: Inputs,
        pacing: Pacing,
        metrics: m.Metrics,
    ) -> None:
        self._producers = producers
        self._stages = list(stages)
        self._state = state
        self._inputs = inputs
        self._pacing = pacing
        self._metrics = metrics
        self._score_from: dict[SourcePartition, int] = {}
        self._resync_cause: ResyncCause = ""
        metrics.begin(m.RESYNCS, filter(None, get_args(ResyncCause)))
        self._taken_at = 0.0
        self._lag_due = 0.0
        self._waits_for = "waiting for partitions"
        self._outage = ""
        self._outage_since = 0.0
        self._aborts = _AbortStreak()
        self._committer = committer
        # That of `run`, once it is called.
        self._stop = threading.Event()
        self._reader = make_reader(self._on_assigned, self._on_revoked, lambda: self._stop.is_set())

    def ready(self) -> tuple[bool, str]:
        """Whether scoring goes on as it should, and if not, why."""
        if waits_for := self._outage or self._waits_for:
            return False, waits_for
        if self._aborts.looping:
            return False, f"{self._aborts.length} transactions in a row were aborted: {self._aborts.why}"
        if not self._reader.owned:
            return True, "spare: no partition is assigned"
        return self._state.availability.readiness

    def run(self, stop: threading.Event, *, beat: Callable[[], object]) -> None:
        """Process until `stop` is set, then finish the batch in hand and leave the group.

        Calls `beat` before each step, at least once per `PROGRESS_LIMIT_S`.
        """
        self._stop = stop
        try:
            with suppress(Stopped):
                while not stop.is_set():
                    beat()
                    self._step()
            self._committer.drain(Deadline(REBALANCE_DEADLINE_S))
        finally:
            with ExitStack() as closing:  # one that fails does not keep the others open
                for part in (self._producers, self._committer, self._reader, self._state):
                    closing.callback(part.close)

    def _step(self) -> None:
        try:
            if not self._resync_cause:
                if self._committer.failure is not None:
                    raise self._committer.failure
                self._resync_cause = self._state.check()
            if self._resync_cause:
                self._resync()
            max_records = self._aborts.shrink(self._pacing.max_records, self._committer.finished)
            read = self._reader.read(max_records, READ_WAIT_S)
            self._measure_lag()
            if not len(read):
                self._idle()
                return
            for batch in cut(self._pace(read, max_records), self._inputs, self._score_from):
                self._process(batch)
        except (TransactionAborted, StateGap) as error:
            self._resync_cause = "aborted" if isinstance(error, TransactionAborted) else "state_gap"
            if isinstance(error, TransactionAborted):
                self._aborts.add(error.message, self._committer.finished)
            _log.warning("%s; reading again from the committed offsets", error.message.rstrip("."))
        except OffsetsBehind as error:
            self._look_up_again(error)
        except BrokerUnavailable as error:
            # Not at the first failure: a broker that stops may also break off a handshake.
            if self._outage and (refusal := self._reader.find_refusal()) is not None:
                raise refusal from error
            self._wait_for_broker(error)

    def _wait_for_broker(self, error: BrokerUnavailable) -> None:
        """Resync after a pause, and again until it succeeds."""
        self._resync_cause = "broker_unavailable"
        now = time.monotonic()
        if not self._outage or not self._reader.owned:
            self._outage_since = now
        if now - self._outage_since > PARTIAL_OUTAGE_S:
            raise error
        if error.message != self._outage:
            _log.warning("%s; nothing is scored until Kafka answers", error.message)
        self._outage = error.message

    def _look_up_again(self, error: OffsetsBehind) -> None:
        """Resync until the offsets are there. While a new group has not begun, that is no fault."""
        self._resync_cause = "offsets_behind"
        if isinstance(error, StartPending):
            if error.message != self._waits_for:
                _log.info("%s", error.message)
            self._waits_for, self._outage = error.message, ""  # Kafka has answered
            return
        if not self._reader.owned:
            raise error  # in an assignment, which only another start repeats
        _log.warning("%s; looking them up again", error.message)

    def _measure_lag(self) -> None:
        now = time.monotonic()
        if now >= self._lag_due:
            self._metrics.set(m.LAG, self._reader.lag())
            self._lag_due = now + LAG_EVERY_S

    def _idle(self) -> None:
        if self._reader.owned:
            self._state.idle()
        if self._state.updates_wait and self._committer.idle:
            self._committer.submit(MicroBatch.nothing(self._inputs.transactions))

    def _pace(self, read: Read, max_records: int) -> Read:
        """Wait for more records while there is room, as `Pacing` says."""
        if len(read) < max_records:
            self._committer.wait_for_flush(Deadline(FLUSH_WAIT_S))
            time.sleep(max(self._taken_at + self._pacing.pace_s - time.monotonic(), 0.0))
            read = self._reader.read_more(read, max_records - len(read))
        self._taken_at = time.monotonic()
        return read

    def _process(self, batch: MicroBatch) -> None:
        """Pass `batch` through the stages of this thread and hand it over to the committer.

        Raises:
            TransactionAborted, StateGap: a resync is needed; the batch will be read again.
        """
        try:
            for stage in self._stages:
                if stage.scoring_only and not batch.scoring:
                    continue
                started = time.perf_counter()
                try:
                    stage.process(batch)
                except StateUnavailable as error:
                    self._state.degrade(error)
                    stage.process(batch)
                batch.seconds[stage.name] = time.perf_counter() - started
        except BaseException:
            batch.abort()
            raise
        self._committer.submit(batch)

    def _resync(self) -> None:
        self._metrics.count(m.RESYNCS, 1, self._resync_cause)
        if self._resync_cause in ("offsets_behind", "broker_unavailable"):
            # The consumer can rejoin only during a read, and a rejoin makes the broker load its offsets again.
            # The record is dropped, because reading starts over below.
            self._reader.read(1, READ_WAIT_S)
        if self._resync_cause == "broker_unavailable":
            time.sleep(OUTAGE_PAUSE_S)
        self._resync_cause = ""
        self._committer.drain(Deadline(COMMIT_DEADLINE_S))
        self._committer.reset()
        # Before the lookup: what the former producers left open ends, and its offsets are final.
        self._producers.restore()
        sources = self._reader.owned
        offsets = self._start(sources)
        if sources:
            self._reader.seek_all(offsets)
            self._waits_for = ""
        if self._outage:
            self._outage = ""
            _log.info("Kafka answers again")

    def _start(self, sources: list[SourcePartition]) -> dict[SourcePartition, int]:
        if not sources:
            self._state.forget()
            return {}
        points = self._state.start(self._reader, sources)
        self._score_from = points.score_from
        return points.read_from

    def _on_assigned(self, sources: list[SourcePartition]) -> dict[SourcePartition, int]:
        drained = self._committer.drain(Deadline(REBALANCE_DEADLINE_S))
        self._committer.reset()
        self._resync_cause = ""
        self._metrics.set(m.PARTITIONS, len(sources))
        _log.info("assigned %d partitions", len(sources))
        self._waits_for = ""
        try:
            if drained:
                self._producers.restore()
            return self._start(sources)
        except StartPending as error:
            self._look_up_again(error)
        except BrokerUnavailable as error:
            self._wait_for_broker(error)
        return {}  # a resync looks them up

    def _on_revoked(self, lost: bool) -> None:
        deadline = Deadline(REBALANCE_DEADLINE_S)
        if not self._committer.drain(deadline):
            _log.warning("partitions are revoked while a commit is under way: its outcome is looked up on return")
        self._metrics.set(m.PARTITIONS, 0)
        # An assignment follows, also for a spare, which gets no partition. If none follows, this scorer is not ready.
        self._waits_for = "waiting for partitions: the consumer group is rebalancing"
        if lost:
            self._waits_for = "waiting for partitions: Kafka did not answer in time, or the consumer was replaced"
            _log.warning("partitions were lost: this scorer sent no heartbeat in time, or its consumer was replaced")
        self._state.stop(deadline)
