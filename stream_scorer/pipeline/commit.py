"""Commit, then apply: one thread ends Kafka transactions in order and brings Redis up to date behind each.

So the next micro-batch is computed while the last one commits, and still transaction k + 1 commits only after k: this
thread is the only one that commits. After a failure every batch behind it is aborted; the processor then resyncs.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stream_scorer.errors import StateGap, StateUnavailable, StreamScorerError
from stream_scorer.pipeline.batch import MicroBatch
from stream_scorer.pipeline.ports import OpenTransaction
from stream_scorer.state.rows import RowUpdate

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Work:
    """A batch to be committed and applied; without a transaction (a catch-up batch) it is only applied."""

    batch: MicroBatch
    transaction: OpenTransaction | None


class Committer:
    """See the module.

    Args:
        commit: ends the transaction of a batch. apply: brings the rows up to date.
        on_done: told of every batch that is committed and applied.
    """

    def __init__(
        self,
        commit: Callable[[Work], None],
        apply: Callable[[RowUpdate], None],
        on_done: Callable[[MicroBatch], None],
    ) -> None:
        self._commit = commit
        self._apply = apply
        self._on_done = on_done
        self._queue: queue.Queue[Work | None] = queue.Queue()
        self._changed = threading.Condition()
        self._outstanding = 0
        self._unflushed = 0
        self._in_flight: list[RowUpdate] = []
        self.failure: StreamScorerError | BaseException | None = None
        self.state_lost: StateUnavailable | None = None
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)
        self._thread.start()

    def in_flight(self) -> Sequence[RowUpdate]:
        """Updates not known to be in the rows, oldest first."""
        with self._changed:
            return tuple(self._in_flight)

    def announce(self, update: RowUpdate) -> None:
        """Make `update` visible to the next batch, before it is committed."""
        with self._changed:
            self._in_flight.append(update)

    def submit(self, work: Work) -> None:
        """Hand over a produced batch."""
        with self._changed:
            self._outstanding += 1
            self._unflushed += 1
        self._queue.put(work)

    def wait_below(self, most: int, deadline_s: float) -> bool:
        """Wait until fewer than `most` batches are outstanding; false if that took longer than `deadline_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._outstanding < most, deadline_s)

    def wait_flushed(self, deadline_s: float) -> bool:
        """Wait until the records of every batch handed over are in the log, so that the next one's come after them."""
        with self._changed:
            return self._changed.wait_for(lambda: self._unflushed == 0, deadline_s)

    def reset(self) -> None:
        """Forget a failure and everything in flight: the processor starts again from marks and committed offsets."""
        with self._changed:
            self._in_flight.clear()
            self.failure = None
            self.state_lost = None

    def close(self) -> None:
        """End the thread once what it has is done."""
        self._queue.put(None)
        self._thread.join(timeout=10.0)

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            try:
                self._flush(work)
                self._finish(work)
            except BaseException as error:  # carried to the processor's thread, which decides
                self.failure = error
            with self._changed:
                self._outstanding -= 1
                self._changed.notify_all()

    def _flush(self, work: Work) -> None:
        try:
            if work.transaction is not None and self.failure is None:
                work.transaction.flush()
        finally:
            with self._changed:
                self._unflushed -= 1
                self._changed.notify_all()

    def _finish(self, work: Work) -> None:
        if self.failure is not None:
            if work.transaction is not None:
                work.transaction.abort()
            return
        batch = work.batch
        started = time.perf_counter()
        if work.transaction is not None:
            self._commit(work)
        committed = time.perf_counter()
        batch.seconds["commit"] = committed - started
        update = batch.enriched.update if batch.enriched is not None else None
        if update is not None and update.spans and self.state_lost is None:
            try:
                self._apply(update)
            except StateUnavailable as error:
                # The batch is committed; its rows follow when Redis is back and the marks tell what is missing.
                _log.warning("Redis is not available, features degrade until it is back: %s", error.message)
                self.state_lost = error
            except StateGap as error:
                self.failure = error
        batch.seconds["apply"] = time.perf_counter() - committed
        with self._changed:
            self._in_flight = [u for u in self._in_flight if u is not update]
        self._on_done(batch)
