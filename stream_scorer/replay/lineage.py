"""The lineage of a replayed score: place in the batch, and applied offsets.

The `applied_offsets` and `place` of a live scorer depend on its micro-batches. A replay sets them independently of its
own batches: as if every transaction had been scored alone, after exactly the records before it, or, as served, for the
micro-batch of the live scorer.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np

from stream_scorer.arrays import Ints
from stream_scorer.positions import SourcePartition
from stream_scorer.records import AppliedOffset, LineageRow
from stream_scorer.replay.pieces import Piece


class Lineage:
    """Computes place and applied offsets of the transactions of successive pieces."""

    def __init__(self, start: dict[SourcePartition, int]) -> None:
        self._sources = sorted(start)
        self._index = {source: i for i, source in enumerate(self._sources)}
        self._applied = [AppliedOffset(s.topic, s.partition, start[s]) for s in self._sources]
        self._batch_applied: list[AppliedOffset] = []
        self._place = 0

    def follow(self, piece: Piece, decoded: Ints) -> Iterator[tuple[int, list[AppliedOffset]]]:
        """Place and applied offsets of the rows `decoded` of `piece`; exhaust the iterator before the next piece."""
        if piece.batch_start is None:
            return self._each_alone(piece, decoded)
        return self._as_served(piece, decoded)

    def _each_alone(self, piece: Piece, decoded: Ints) -> Iterator[tuple[int, list[AppliedOffset]]]:
        wanted = np.zeros(len(piece.transactions), dtype=np.bool_)
        wanted[decoded] = piece.scoring
        labels = list(zip(piece.before.tolist(), piece.labels.partition.tolist(), piece.labels.offset.tolist(),
                          strict=True))  # fmt: skip
        at = 0
        rows = zip(
            wanted.tolist(), piece.transactions.partition.tolist(), piece.transactions.offset.tolist(), strict=True
        )
        for row, (is_wanted, partition, offset) in enumerate(rows):
            while at < len(labels) and labels[at][0] <= row:
                self._move(piece.labels.topic, labels[at][1], labels[at][2] + 1)
                at += 1
            if is_wanted:
                yield 0, list(self._applied)
            self._move(piece.transactions.topic, partition, offset + 1)
        for _, partition, offset in labels[at:]:
            self._move(piece.labels.topic, partition, offset + 1)

    def _as_served(self, piece: Piece, decoded: Ints) -> Iterator[tuple[int, list[AppliedOffset]]]:
        if piece.batch_start and piece.served_offsets is not None:
            self._batch_applied = [
                AppliedOffset(s.topic, s.partition, o) for s, o in sorted(piece.served_offsets.items())
            ]
            self._place = 0
        if piece.scoring:
            for _ in range(len(decoded)):
                yield self._place, self._batch_applied
                self._place += 1

    def _move(self, topic: str, partition: int, next_offset: int) -> None:
        self._applied[self._index[SourcePartition(topic, partition)]] = AppliedOffset(topic, partition, next_offset)


def restate(row: LineageRow, place: int, applied: list[AppliedOffset]) -> LineageRow:
    """`row` with another place and other applied offsets."""
    return msgspec.structs.replace(row, place=place, applied_offsets=applied)
