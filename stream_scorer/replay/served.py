"""The micro-batches of a live scorer, from `applied_offsets` and `place` in topic `lineage`.

The applied offsets are the positions that the features include: for the partition of transactions the start of the
micro-batch, for every partition of labels the read position. With one partition of transactions, these determine the
features exactly. With several, the view of one scorer on the partitions of another is not defined by the logs, so such
a range is rejected.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stream_scorer.errors import UsageError
from stream_scorer.kafka.range_reader import RangeReader
from stream_scorer.kafka.topics import Topics
from stream_scorer.positions import SourcePartition
from stream_scorer.replay.order import Stream
from stream_scorer.replay.pieces import Piece
from stream_scorer.replay.recorded import stored_lineage
from stream_scorer.serde.raw import RawRecords

_HINT = "Replay it without --as-served."


@dataclass(frozen=True, slots=True)
class ServedBatch:
    """The start of a micro-batch (`applied`), the offset after its last scored transaction, and their number."""

    applied: dict[SourcePartition, int]
    stop: int
    rows: int


@dataclass(frozen=True, slots=True)
class Served:
    """Every micro-batch of one partition of transactions, in order."""

    source: SourcePartition
    batches: list[ServedBatch]


def read_served(reader: RangeReader, topics: Topics) -> Served:
    """Read all served micro-batches from `lineage`.

    Raises:
        UsageError: nothing was served, several partitions or scorers took part, or a batch had no features.
    """
    partitions = [source.partition for source, (low, high) in reader.bounds(topics.lineage).items() if low < high]
    if not partitions:
        raise UsageError(f"{topics.lineage} is empty: nothing was served yet")
    if len(partitions) > 1:
        raise UsageError(f"{topics.lineage} has several partitions, but as-served replay supports only one", hint=_HINT)
    (partition,) = partitions
    batches: list[ServedBatch] = []
    for stored in stored_lineage(reader, topics, partition):
        record = stored.decode()
        applied = {SourcePartition(a.topic, a.partition): a.next_offset for a in record.applied_offsets}
        first, n = int(record.place[0]), len(record)
        where = f"{topics.transactions}[{partition}]@{stored.first_offset}"
        if not applied:
            raise UsageError(
                f"{where} was scored while features were unavailable, so it cannot be recomputed", hint=_HINT
            )
        # A large micro-batch has several records.
        before = batches.pop() if first and batches and batches[-1].applied == applied else ServedBatch(applied, 0, 0)
        if not np.array_equal(record.place, np.arange(before.rows, before.rows + n)):
            raise UsageError(
                f"{where} is at place {first} of its micro-batch, not {before.rows}: several scorers or partitions "
                "took part",
                hint=_HINT,
            )
        batches.append(ServedBatch(applied, stored.next_offset, before.rows + n))
    if not batches:
        raise UsageError(f"{topics.lineage} is empty: nothing was served yet")
    return Served(SourcePartition(topics.transactions, partition), batches)


def pieces_as_served(served: Served, streams: list[Stream], labels_topic: str, max_records: int) -> Iterator[Piece]:
    """The served micro-batches, in pieces of at most `max_records` transactions; earlier records only update features.

    Raises:
        UsageError: the batches overlap.
    """
    transactions = _Cursor(next(s for s in streams if s.source == served.source))
    labels = [_Cursor(s) for s in streams if s.is_label]
    topic = served.source.topic
    empty = RawRecords.empty(topic)
    ends = [batch.applied[served.source] for batch in served.batches[1:]] + [served.batches[-1].stop]
    for batch, stop in zip(served.batches, ends, strict=True):
        start = batch.applied[served.source]
        if transactions.position > start or batch.stop > stop:
            raise UsageError(f"the micro-batches of {topic} overlap at offset {start}", hint=_HINT)
        for records in transactions.chunks_below(start, max_records):
            yield Piece(records, RawRecords.empty(labels_topic), np.zeros(0, dtype=np.int64), False, True)
        batch_labels = RawRecords.empty(labels_topic)
        for cursor in labels:
            for records in cursor.chunks_below(batch.applied[cursor.source], 1 << 30):
                batch_labels = batch_labels.concatenate(records)
        # The labels of a batch come before all of its transactions.
        chunks = itertools.chain(transactions.chunks_below(stop, max_records), [empty])
        first = next(chunks)
        yield Piece(first, batch_labels, np.zeros(len(batch_labels), dtype=np.int64), True, True, batch.applied)
        for records in chunks:
            if len(records):
                yield Piece(records, RawRecords.empty(labels_topic), np.zeros(0, dtype=np.int64), True, False)


class _Cursor:
    """A forward cursor over the records of one partition."""

    def __init__(self, stream: Stream) -> None:
        self.source = stream.source
        self.position = -1
        self._chunks = stream.chunks
        self._pending = RawRecords.empty(stream.source.topic)

    def chunks_below(self, offset: int, max_records: int) -> Iterator[RawRecords]:
        """The records from the current position up to `offset`, at most `max_records` at a time."""
        while True:
            while not len(self._pending):
                chunk = next(self._chunks, None)
                if chunk is None:
                    return
                self._pending = chunk
            at = min(int(np.searchsorted(self._pending.offset, offset)), max_records)
            if at == 0:
                return
            taken = self._pending.take(np.arange(at))
            self._pending = self._pending.take(np.arange(at, len(self._pending)))
            self.position = int(taken.offset[-1]) + 1
            yield taken
