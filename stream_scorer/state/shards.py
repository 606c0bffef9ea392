"""Marked rows in several shards, each with rows, marks and a generation of its own (ADR 0013).

Shards advance one by one, so after a crash some are ahead, and a batch read again finds its own events in their rows.
That matters in one place: an event whose entity of the partition key has it already looks like a duplicate, and would
be left out of every other row too. So the rows of that entity, which tell duplicates, have shards of their own that are
applied last: whatever they hold, all others hold. A wrong verdict then changes nothing, as all its entries are below
the marks. Shards that break this order have lost data: all are begun anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from stream_scorer.positions import SourcePartition
from stream_scorer.state.rows import AppliedOffsets, MarkedRowStore, RowUpdate, Sharding

Store = TypeVar("Store", bound=MarkedRowStore)


class ShardedRows(Generic[Store]):
    """`MarkedRowStore` over `shards`, in the order of `sharding`: those of the partition key's entity come last."""

    def __init__(self, shards: Sequence[Store], sharding: Sharding) -> None:
        self._shards = list(shards)
        self._sharding = sharding

    @property
    def epoch(self) -> str:
        """The generations in use, one a shard; empty if there is none."""
        epochs = [shard.epoch for shard in self._shards]
        return "+".join(epochs) if any(epochs) else ""

    def open(self) -> AppliedOffsets | None:
        """See `MarkedRowStore.open`. Also None if a shard does not hold what one that is applied later holds."""
        # Last applied, first read: another scorer at work must not make the order look broken.
        opened = [shard.open() for shard in reversed(self._shards)][::-1]
        applied = [one for one in opened if one is not None]
        if len(applied) < len(self._shards):
            return None
        first, last = applied[: self._sharding.count], applied[self._sharding.count :]
        for source, offset in _least([m.next_offset for m in first]).items():
            if any(m.next_offset[source] > offset for m in last):
                return None
        return self._together(applied)

    def init(self, next_offset: dict[SourcePartition, int], target: dict[SourcePartition, int]) -> bool:
        """See `MarkedRowStore.init`: every shard is begun anew, unless somebody else has begun it since `open`."""
        begun = [shard.init(next_offset, target) for shard in self._shards]
        return any(begun)

    def read(self, keys: Sequence[bytes]) -> tuple[list[bytes | None], AppliedOffsets]:
        """See `RowStore.read`: a call a shard, each from one moment; `AppliedOffsets.by_shard` tells which."""
        places: list[list[int]] = [[] for _ in self._shards]
        for place, key in enumerate(keys):
            places[self._sharding.of(key)].append(place)
        rows: list[bytes | None] = [None] * len(keys)
        applied = []
        for shard, mine in zip(self._shards, places, strict=True):
            found, seen = shard.read([keys[place] for place in mine])
            applied.append(seen)
            for place, row in zip(mine, found, strict=True):
                rows[place] = row
        return rows, self._together(applied)

    def apply(self, update: RowUpdate) -> None:
        """See `RowStore.apply`: atomic in each shard. Every shard's marks advance, also where no entry goes."""
        key_of = update.key_of
        shard_of = update.shards(self._sharding)[key_of]
        for index, shard in enumerate(self._shards):
            mine = shard_of == index
            part = RowUpdate.group(
                update.spans,
                update.keys,
                key_of[mine],
                update.entries[mine],
                update.span_of[mine],
                update.offset[mine],
                update.opens[mine],
            )
            part.compactions = {
                key: fold for key, fold in update.compactions.items() if self._sharding.of(key) == index
            }
            shard.apply(part)

    def sweep(self) -> int:
        """See `MarkedRowStore.sweep`."""
        return sum(shard.sweep() for shard in self._shards)

    def _together(self, applied: list[AppliedOffsets]) -> AppliedOffsets:
        watermark = _least([m.watermark for m in applied])
        for source, least in watermark.items():
            # Begun in some shards only: begun, but nothing of it is sure.
            if least < 0 <= max(m.watermark[source] for m in applied):
                watermark[source] = 0
        return AppliedOffsets(
            _least([m.next_offset for m in applied]), watermark, applied[0].target, tuple(applied), self._sharding
        )


def _least(applied: Sequence[dict[SourcePartition, int]]) -> dict[SourcePartition, int]:
    return {source: min(m[source] for m in applied) for source in applied[0]}
