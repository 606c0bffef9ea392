"""Rows in several shards, each with rows, applied offsets and an epoch of its own (ADR 0013).

Shards advance one by one, so after a crash some are ahead, and a batch that is read again finds its own events in their
rows. This matters for the rows of the partition key's entity, which identify duplicates: an event that is found there
looks like a duplicate and would be left out of all other rows. Those rows therefore have shards of their own, which are
applied last: every entry that they hold is in all other shards too. A false duplicate then changes nothing, because all
of its entries are below the applied offsets. Shards in another order have lost data, and all of them are rebuilt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from stream_scorer.positions import SourcePartition
from stream_scorer.state.rows import AppliedOffsets, AppliedRowStore, Beginning, RowUpdate, Sharding

Store = TypeVar("Store", bound=AppliedRowStore)


class ShardedRows(Generic[Store]):
    """`AppliedRowStore` over `shards`, in the order of `sharding`: those of the partition key's entity come last."""

    def __init__(self, shards: Sequence[Store], sharding: Sharding) -> None:
        self._shards = list(shards)
        self._sharding = sharding

    @property
    def epoch(self) -> str:
        """The epochs in use, one per shard; empty if there is none."""
        epochs = [shard.epoch for shard in self._shards]
        return "+".join(epochs) if any(epochs) else ""

    def open(self) -> AppliedOffsets | None:
        """See `AppliedRowStore.open`. Also None if a shard lacks updates that a shard applied later has."""
        # In the reverse order of `apply`, so that the order never looks broken while another scorer applies updates.
        opened = [shard.open() for shard in reversed(self._shards)][::-1]
        applied = [one for one in opened if one is not None]
        if len(applied) < len(self._shards):
            return None
        first, last = applied[: self._sharding.count], applied[self._sharding.count :]
        for source, offset in _minimum([m.next_offset for m in first]).items():
            if any(m.next_offset[source] > offset for m in last):
                return None
        return self._combine(applied)

    def init(
        self,
        next_offset: dict[SourcePartition, int],
        target: dict[SourcePartition, int],
        beginning: Beginning = Beginning(),
    ) -> bool:
        """See `AppliedRowStore.init`: it begins every shard anew that no other process has begun since `open`."""
        begun = [shard.init(next_offset, target, beginning) for shard in self._shards]
        return any(begun)

    def read(self, keys: Sequence[bytes]) -> tuple[list[bytes | None], AppliedOffsets]:
        """See `RowStore.read`: one call per shard. `AppliedOffsets.by_shard` has the applied offsets of each."""
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
        return rows, self._combine(applied)

    def apply(self, update: RowUpdate) -> None:
        """See `RowStore.apply`: atomic in each shard. Applied offsets advance in all shards, also without entries."""
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
                key: each for key, each in update.compactions.items() if self._sharding.of(key) == index
            }
            shard.apply(part)

    def delete_old_epochs(self) -> int:
        """See `AppliedRowStore.delete_old_epochs`."""
        return sum(shard.delete_old_epochs() for shard in self._shards)

    def probe_write(self) -> None:
        """See `AppliedRowStore.probe_write`: every shard."""
        for shard in self._shards:
            shard.probe_write()

    def _combine(self, applied: list[AppliedOffsets]) -> AppliedOffsets:
        watermark = _minimum([m.watermark for m in applied])
        for source, lowest in watermark.items():
            # Some shards have events of the partition and others none: it has begun, but no event time is certain.
            if lowest < 0 <= max(m.watermark[source] for m in applied):
                watermark[source] = 0
        return AppliedOffsets(
            _minimum([m.next_offset for m in applied]),
            watermark,
            applied[0].target,
            tuple(applied),
            self._sharding,
            Beginning(*map(max, zip(*(m.beginning for m in applied), strict=True))),
            min(m.passed for m in applied),
            applied[0].labels_topic,
        )


def _minimum(applied: Sequence[dict[SourcePartition, int]]) -> dict[SourcePartition, int]:
    return {source: min(m[source] for m in applied) for source in applied[0]}
