"""The committer: one thread ends Kafka transactions in order and brings the rows up to date behind each.

While it commits a micro-batch, the scoring thread computes the next one. Transaction k + 1 still commits only after k,
because no other thread commits. After a failure it aborts every batch behind; the processor then resyncs.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence

from stream_scorer.clock import Deadline
from stream_scorer.errors import StreamScorerError
from stream_scorer.pipeline.batch import MicroBatch, Stage

# A commit without a broker: flush (5 s), offsets and commit (11 s each, with one repetition), an abort (6 s), and the
# abort of the batch behind (6 s). More than twice that, for slow machines.
COMMIT_DEADLINE_S = 90.0
# Two producers take turns: while one batch commits, the next one is produced.
MAX_OUTSTANDING = 2


class Committer:
    """See the module.

    Args:
        stages: what happens to a batch here, in order: commit, apply, note, account.

    Attributes:
        failure: what ended a batch; None if nothing did since the last `reset`. finished: scored batches that passed
            all stages.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = list(stages)
        self._queue: queue.Queue[MicroBatch | None] = queue.Queue()
        self._changed = threading.Condition()
        self._outstanding = 0
        self._unflushed = 0
        self.finished = 0
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether every batch is done."""
        return self._outstanding == 0

    def wait_for_turn(self) -> None:
        """Wait until the next batch may be produced.

        The batch before last must be done with its producer, and the records of the last one must be in the log, or
        those of the next one could overtake them.

        Raises:
            StreamScorerError: a commit took longer than `COMMIT_DEADLINE_S`. Whatever ended an earlier batch.
        """
        deadline = Deadline(COMMIT_DEADLINE_S)
        with self._changed:
            free = self._changed.wait_for(
                lambda: self._outstanding < MAX_OUTSTANDING and not self._unflushed, deadline.remaining_s
            )
        if not free:
            raise StreamScorerError("a Kafka commit did not end in time")
        if self.failure is not None:
            raise self.failure

    def wait_for_flush(self, deadline: Deadline) -> None:
        """Wait until the broker has the records of each batch that was handed over, at most until `deadline`."""
        with self._changed:
            self._changed.wait_for(lambda: not self._unflushed, deadline.remaining_s)

    def submit(self, batch: MicroBatch) -> None:
        """Hand over a batch whose turn it is."""
        with self._changed:
            self._outstanding += 1
            self._unflushed += 1
        self._queue.put(batch)

    def drain(self, deadline: Deadline) -> bool:
        """Wait until every batch is done; false if `deadline` passes before."""
        with self._changed:
            return self._changed.wait_for(lambda: self._outstanding == 0, deadline.remaining_s)

    def reset(self) -> None:
        """Forget a failure: the processor starts again from committed and applied offsets."""
        self.failure = None

    def close(self) -> None:
        """End the thread once it is done with what it has."""
        self._queue.put(None)
        self._thread.join(timeout=10.0)

    def _run(self) -> None:
        while (batch := self._queue.get()) is not None:
            try:
                self._flush(batch)
                self._finish(batch)
            except BaseException as error:  # the scoring thread raises it
                self.failure = error
            with self._changed:
                self._outstanding -= 1
                self._changed.notify_all()

    def _flush(self, batch: MicroBatch) -> None:
        try:
            if batch.transaction is not None and self.failure is None:
                batch.transaction.flush()
        except BaseException as error:
            # Before the next batch gets its turn: its records would overtake those that the broker does not have yet.
            self.failure = error
            raise
        finally:
            with self._changed:
                self._unflushed -= 1
                self._changed.notify_all()

    def _finish(self, batch: MicroBatch) -> None:
        if self.failure is not None:
            batch.abort()
            return
        for stage in self._stages:
            if batch.scoring or not stage.scoring_only:
                started = time.perf_counter()
                stage.process(batch)
                batch.seconds[stage.name] = time.perf_counter() - started
        self.finished += batch.scoring


class Turn:
    """A stage that waits until the batch may be produced; see `Committer.wait_for_turn`."""

    name = "wait"
    scoring_only = False

    def __init__(self, committer: Committer) -> None:
        self._committer = committer

    def process(self, batch: MicroBatch) -> None:
        """Wait. Raises what `Committer.wait_for_turn` raises."""
        self._committer.wait_for_turn()
