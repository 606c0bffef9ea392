"""The micro-batches a live scorer had, as topic `lineage` recorded them: `applied_offsets` and `place`.

The applied offsets are the positions its features saw: on the transactions' partition where its micro-batch
began, on every labels partition how far labels had been read. With one partition of transactions that is all there is
to know, and features come out as they were served. With several, what one scorer saw of another's partitions at a
moment is not in the order of any log; such a range is refused.
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

_MEND = "Replay it without --as-served."


@dataclass(frozen=True, slots=True)
class ServedBatch:
    """Where a micro-batch began (`applied`), the offset after its last scored transaction, and how many it had."""

    applied: dict[SourcePartition, int]
    stop: int
    rows: int


@dataclass(frozen=True, slots=True)
class Served:
    """Every micro-batch of one partition of transactions, in order."""

    source: SourcePartition
    batches: list[ServedBatch]


def read_served(reader: RangeReader, topics: Topics) -> Served:
    """What was served, from the whole of `lineage`.

    Raises:
        UsageError: nothing was served, or not one partition by one order, or some of it without features.
    """
    held = [source.partition for source, (low, high) in reader.bounds(topics.lineage).items() if low < high]
    if not held:
        raise UsageError(f"{topics.lineage} is empty: nothing was served yet")
    if len(held) > 1:
        raise UsageError(f"{topics.lineage} holds several partitions; as served works on topics with one", hint=_MEND)
    (partition,) = held
    batches: list[ServedBatch] = []
    for stored in stored_lineage(reader, topics, partition):
        record = stored.decode()
        applied = {SourcePartition(a.topic, a.partition): a.next_offset for a in record.applied_offsets}
        first, n = int(record.place[0]), len(record)
        where = f"{topics.transactions}[{partition}]@{stored.first_offset}"
        if not applied:
            raise UsageError(
                f"{where} was scored while features were unavailable: there is nothing to compute again", hint=_MEND
            )
        # A large micro-batch has several records.
        before = batches.pop() if first and batches and batches[-1].applied == applied else ServedBatch(applied, 0, 0)
        if not np.array_equal(record.place, np.arange(before.rows, before.rows + n)):
            raise UsageError(
                f"{where} stands at place {first} of its micro-batch, not {before.rows}: several scorers or partitions "
                "took part",
                hint=_MEND,
            )
        batches.append(ServedBatch(applied, stored.next_offset, before.rows + n))
    if not batches:
        raise UsageError(f"{topics.lineage} is empty: nothing was served yet")
    return Served(SourcePartition(topics.transactions, partition), batches)


def pieces_as_served(served: Served, streams: list[Stream], labels_topic: str, most: int) -> Iterator[Piece]:
    """The served micro-batches, each in pieces of at most `most` transactions; what came before only brings features.

    Raises:
        UsageError: the batches do not follow on one another.
    """
    transactions = _Cursor(next(s for s in streams if s.source == served.source))
    labels = [_Cursor(s) for s in streams if s.is_label]
    topic = served.source.topic
    nothing = RawRecords.empty(topic)
    ends = [batch.applied[served.source] for batch in served.batches[1:]] + [served.batches[-1].stop]
    for batch, stop in zip(served.batches, ends, strict=True):
        start = batch.applied[served.source]
        if transactions.position > start or batch.stop > stop:
            raise UsageError(f"the micro-batches of {topic} overlap at offset {start}", hint=_MEND)
        for records in transactions.chunks_below(start, most):
            yield Piece(records, RawRecords.empty(labels_topic), np.zeros(0, dtype=np.int64), False, True)
        mine = RawRecords.empty(labels_topic)
        for cursor in labels:
            for records in cursor.chunks_below(batch.applied[cursor.source], 1 << 30):
                mine = mine.concatenate(records)
        # The batch's own labels come before all of its transactions.
        chunks = itertools.chain(transactions.chunks_below(stop, most), [nothing])
        first = next(chunks)
        yield Piece(first, mine, np.zeros(len(mine), dtype=np.int64), True, True, batch.applied)
        for records in chunks:
            if len(records):
                yield Piece(records, RawRecords.empty(labels_topic), np.zeros(0, dtype=np.int64), True, False)


class _Cursor:
    """A place in one partition's records."""

    def __init__(self, stream: Stream) -> None:
        self.source = stream.source
        self.position = -1
        self._chunks = stream.chunks
        self._held = RawRecords.empty(stream.source.topic)

    def chunks_below(self, offset: int, most: int) -> Iterator[RawRecords]:
        """The records from here up to `offset`, at most `most` at a time."""
        while True:
            while not len(self._held):
                chunk = next(self._chunks, None)
                if chunk is None:
                    return
                self._held = chunk
            at = min(int(np.searchsorted(self._held.offset, offset)), most)
            if at == 0:
                return
            taken = self._held.take(np.arange(at))
            self._held = self._held.take(np.arange(at, len(self._held)))
            self.position = int(taken.offset[-1]) + 1
            yield taken
