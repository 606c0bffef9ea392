"""Commit: ends the batch's Kafka transaction, output and input offsets all or nothing."""

from __future__ import annotations

from stream_scorer.errors import TransactionAborted
from stream_scorer.observability import metrics as m
from stream_scorer.pipeline.batch import MicroBatch


class Commit:
    """See the module."""

    name = "commit"
    scoring_only = True

    def __init__(self, metrics: m.Metrics) -> None:
        self._metrics = metrics

    def process(self, batch: MicroBatch) -> None:
        """Commit. Raises `TransactionAborted` when nothing was committed or the outcome is unknown."""
        assert batch.transaction is not None
        offsets = {span.source: span.stop for span in batch.spans}
        try:
            batch.transaction.commit(offsets, batch.group_metadata)
        except TransactionAborted:
            self._metrics.count(m.COMMITS, 1, "aborted")
            raise
        self._metrics.count(m.COMMITS, 1, "committed")
