"""Commit: ends the batch's Kafka transaction, output and input offsets all or nothing."""

from __future__ import annotations

from stream_scorer.clock import Clock
from stream_scorer.errors import TransactionAborted
from stream_scorer.observability import metrics as m
from stream_scorer.pipeline.batch import MicroBatch


class Commit:
    """See the module."""

    name = "commit"
    scoring_only = True

    def __init__(self, metrics: m.Metrics, clock: Clock) -> None:
        self._metrics = metrics
        self._clock = clock
        metrics.begin(m.COMMITS, ("committed", "aborted"))  # alerts compare with 0, which a missing series is not

    def process(self, batch: MicroBatch) -> None:
        """Commit, and set `batch.committed_at`.

        Raises `TransactionAborted` when nothing was committed or the outcome is unknown.
        """
        assert batch.transaction is not None
        offsets = {span.source: span.stop for span in batch.spans}
        try:
            batch.transaction.commit(offsets, batch.group_metadata)
        except TransactionAborted:
            self._metrics.count(m.COMMITS, 1, "aborted")
            raise
        batch.committed_at = self._clock.now_ms()
        self._metrics.count(m.COMMITS, 1, "committed")
