"""Publish, as a stage: writes a scored batch into the next Kafka transaction. `Publisher` decides which records."""

from __future__ import annotations

from collections.abc import Callable

from stream_scorer.pipeline.batch import MicroBatch, Sink
from stream_scorer.pipeline.ports import Producers


class Produce:
    """See the module.

    Args:
        write: puts the records of a batch into a sink.
    """

    name = "publish"
    scoring_only = True

    def __init__(self, producers: Producers, write: Callable[[MicroBatch, Sink], None]) -> None:
        self._producers = producers
        self._write = write

    def process(self, batch: MicroBatch) -> None:
        """Set `batch.transaction`, begun and written. Raises `TransactionAborted`."""
        batch.transaction = self._producers.next()
        batch.transaction.begin()
        self._write(batch, batch.transaction)
