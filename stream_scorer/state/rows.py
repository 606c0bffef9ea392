"""Marked rows: append-only packed rows that advance together with a mark of each source partition.

The protocol is rule 2 of ARCHITECTURE.md: an update carries the span ``[start, stop)`` of input offsets it covers, per
source partition. The store refuses it (`StateGap`) when a mark is missing or below `start`, skips entries below the
mark one by one, and moves rows and marks in one step. Only `init` creates marks.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from stream_scorer.positions import SourcePartition, Span

I64 = NDArray[np.int64]
Flags = NDArray[np.bool_]
I8 = NDArray[np.int8]
ENTRY_BYTES = 32
# Each row is witnessed once in every such period of event time in which it gains an entry; see `RowUpdate.opens`. A
# longer one costs less, but rows may outlive their horizon by it.
WITNESS_PERIOD_MS = 336 * 3_600_000
# What an entry is to its row: one more of a period, the first of a period as far as known, the first of all.
CONTINUES, OPENS, BEGINS = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Sharding:
    """Which shard a row lies in: by the hash of its owner, apart for the rows of the partition key's entity.

    Attributes:
        count: how many shards the rows of that entity have, and as many the others.
        own: what the keys of that entity's rows begin with, before the colon.
    """

    count: int
    own: frozenset[bytes]

    def __len__(self) -> int:
        return 2 * self.count if self.own else self.count

    def of(self, key: bytes) -> int:
        """The shard of the row at `key`; those of the partition key's entity are numbered last."""
        kind, _, owner = key.partition(b":")
        return xxhash.xxh3_64_intdigest(owner) % self.count + (self.count if kind in self.own else 0)


@dataclass(slots=True)
class AppliedOffsets:
    """Per source partition the next offset not yet in the rows, and its event-time watermark (ms, -1 for none).

    `target` is where the partition stood when these rows were begun anew after a loss; 0 if nothing was lost.
    Of rows in shards these are the least; `by_shard` has those of each, in the order of `sharding`.
    """

    next_offset: dict[SourcePartition, int]
    watermark: dict[SourcePartition, int]
    target: dict[SourcePartition, int] = field(default_factory=dict)
    by_shard: tuple[AppliedOffsets, ...] = ()
    sharding: Sharding | None = None

    def slowest_started_watermark(self) -> int:
        """The least watermark of the partitions that have one: an empty partition holds nothing back."""
        return min((w for w in self.watermark.values() if w >= 0), default=-1)

    @property
    def complete(self) -> bool:
        """Whether the rows hold again what they held before the loss."""
        return all(self.next_offset[source] >= target for source, target in self.target.items())

    def settled(self, ends: Mapping[SourcePartition, int]) -> int:
        """Event time (ms) that the partitions which still hold records, below `ends`, have passed; -1 for none.

        A partition at its end holds nothing back. If all are, that is the newest time of all.
        """
        behind = [w for source, w in self.watermark.items() if self.next_offset[source] < ends[source]]
        return min(behind, default=max(self.watermark.values(), default=-1))

    def slowest_watermark(self) -> int:
        """The least watermark of all partitions: nothing older than it will be asked for again, beyond lateness."""
        return min(self.watermark.values(), default=-1)


class Compaction(NamedTuple):
    """A beginning of a stored row, and what is to stand in its place; see ADR 0011."""

    before: bytes
    after: bytes

    def apply(self, row: bytes) -> bytes:
        """`row` with its beginning exchanged, or as it is if it no longer begins as when it was read."""
        if len(row) < len(self.before) or row[:ENTRY_BYTES] != self.before[:ENTRY_BYTES]:
            return row
        return self.after + row[len(self.before) :]


@dataclass
class RowUpdate:
    """Entries to append, grouped by row, with the spans they came from.

    Attributes:
        spans: one per source partition of the batch; entries refer to them by index.
        keys: k row keys. bounds: (k + 1,) int64; entries of key i are ``bounds[i]:bounds[i + 1]``.
        entries: (u, 4) int64, in log order within each key. span_of, offset: (u,) int64, where each came from.
        opens: (u,) int8, `OPENS` where the row is not known to hold an entry of the same `WITNESS_PERIOD_MS`, `BEGINS`
            where it is not known to hold any, else `CONTINUES`. The store keeps rows that open a period in mind apart
            from the rows, so that one that vanishes is not taken for one never seen; and a row that is not there for an
            entry that does not begin it has vanished since it was read.
        folds: rows to be shortened, by key; what they count stays the same.
    """

    spans: list[Span]
    keys: list[bytes]
    bounds: I64
    entries: I64
    span_of: I64
    offset: I64
    opens: I8
    compactions: dict[bytes, Compaction] = field(default_factory=dict)

    @classmethod
    def group(
        cls, spans: list[Span], keys: list[bytes], key_of: I64, entries: I64, span_of: I64, offset: I64, opens: I8
    ) -> RowUpdate:
        """Group entries, given in log order, by key; `key_of` (u,) indexes `keys`, of which unused ones are dropped."""
        order = np.argsort(key_of, kind="stable")
        used, counts = np.unique(key_of, return_counts=True)
        bounds = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
        kept = [keys[i] for i in used.tolist()]
        return cls(spans, kept, bounds, entries[order], span_of[order], offset[order], opens[order])

    @classmethod
    def nothing(cls) -> RowUpdate:
        """An update of no offsets."""
        none = np.zeros(0, dtype=np.int64)
        return cls([], [], np.zeros(1, dtype=np.int64), none.reshape(0, 4), none, none, none.astype(np.int8))

    def __len__(self) -> int:
        return len(self.offset)

    @cached_property
    def payloads(self) -> list[bytes]:
        """Per key, its packed entries."""
        packed = np.ascontiguousarray(self.entries, dtype="<i8").tobytes()
        edges = (self.bounds * ENTRY_BYTES).tolist()
        return [packed[a:b] for a, b in zip(edges, edges[1:], strict=False)]

    @property
    def key_of(self) -> I64:
        """(u,) int64: the place of each entry's key in `keys`."""
        return np.repeat(np.arange(len(self.keys)), np.diff(self.bounds))

    @cached_property
    def position(self) -> dict[bytes, int]:
        """Key to its place in `keys`."""
        return {key: index for index, key in enumerate(self.keys)}

    def pending(self, applied: AppliedOffsets) -> Flags | bool:
        """Which entries are not yet in the rows, given the marks read with them: all, none, or a mask (u,)."""
        if applied.sharding is not None:
            return self._pending_by_shard(applied, applied.sharding)
        ahead = [applied.next_offset.get(s.source, -1) for s in self.spans]
        if all(mark <= span.start for mark, span in zip(ahead, self.spans, strict=True)):
            return True
        if all(mark >= span.stop for mark, span in zip(ahead, self.spans, strict=True)):
            return False
        return self.offset >= np.array(ahead, dtype=np.int64)[self.span_of]

    def _pending_by_shard(self, applied: AppliedOffsets, sharding: Sharding) -> Flags | bool:
        ahead = np.array([[m.next_offset.get(s.source, -1) for s in self.spans] for m in applied.by_shard], np.int64)
        if (ahead <= [span.start for span in self.spans]).all():
            return True
        if (ahead >= [span.stop for span in self.spans]).all():
            return False
        shard_of = np.repeat(self.shards(sharding), np.diff(self.bounds))
        return np.asarray(self.offset >= ahead[shard_of, self.span_of], np.bool_)

    def shards(self, sharding: Sharding) -> I64:
        """(k,) int64: the shard of each key."""
        return np.fromiter(map(sharding.of, self.keys), np.int64, len(self.keys))

    def after(self, ahead: Sequence[int]) -> RowUpdate:
        """What is left of the update when the rows hold, of each span in turn, everything below `ahead`."""
        at = np.array(ahead, dtype=np.int64)
        left = [index for index, span in enumerate(self.spans) if at[index] < span.stop]
        place = np.full(len(self.spans), -1, dtype=np.int64)
        place[left] = np.arange(len(left))
        mine = (self.offset >= at[self.span_of]) & (place[self.span_of] >= 0)
        key_of = self.key_of
        spans = [self.spans[index]._replace(start=max(self.spans[index].start, ahead[index])) for index in left]
        out = RowUpdate.group(
            spans,
            self.keys,
            key_of[mine],
            self.entries[mine],
            place[self.span_of[mine]],
            self.offset[mine],
            _not_begun(self.opens, key_of, key_of[~mine])[mine],
        )
        out.compactions = self.compactions
        return out

    def split(self, most: int) -> list[RowUpdate]:
        """Updates of about `most` entries each, contiguous in every partition, to be applied in order.

        Labels come before all transactions, as they do in the whole update: a row must read the same whether an update
        is still in flight or was applied in parts.
        """
        if len(self) <= most:
            return [self]
        label_spans = set(np.unique(self.span_of[self.entries[:, 3] != 0]).tolist())
        label_entries = int(np.isin(self.span_of, list(label_spans)).sum())
        label_parts, other_parts = -(-label_entries // most), max(-(-(len(self) - label_entries) // most), 1)
        # The last labels and the first transactions share a part: usually the labels are few.
        parts = max(label_parts + other_parts - 1, other_parts)
        edges = []
        for index, span in enumerate(self.spans):
            steps = label_parts if index in label_spans else other_parts
            even = np.linspace(span.start, span.stop, steps + 1).round().astype(np.int64).tolist()
            waiting = [] if index in label_spans else [span.start] * (parts - other_parts)
            edges.append(waiting + even + [span.stop] * (parts + 1 - len(waiting) - len(even)))
        key_of, opens = self.key_of, self.opens
        out = []
        for part in range(parts):
            spans = [Span(s.source, edges[i][part], edges[i][part + 1], s.watermark) for i, s in enumerate(self.spans)]
            low = np.array([s.start for s in spans], dtype=np.int64)[self.span_of]
            high = np.array([s.stop for s in spans], dtype=np.int64)[self.span_of]
            mine = (self.offset >= low) & (self.offset < high)
            # A watermark must not run ahead of its mark: before the part that ends a span, it is what the entries tell.
            reached = np.full(len(spans), -1, dtype=np.int64)
            plain = mine & (self.entries[:, 3] == 0)
            np.maximum.at(reached, self.span_of[plain], self.entries[plain, 0])
            for i, time in enumerate(reached.tolist()):
                if spans[i].stop < self.spans[i].stop:
                    spans[i] = spans[i]._replace(watermark=time)
            out.append(
                RowUpdate.group(
                    spans,
                    self.keys,
                    key_of[mine],
                    self.entries[mine],
                    self.span_of[mine],
                    self.offset[mine],
                    opens[mine],
                )
            )
            opens = _not_begun(opens, key_of, key_of[mine])
        out[0].compactions = self.compactions
        return out


def _not_begun(opens: I8, key_of: I64, held: I64) -> I8:
    """`opens` of entries of the keys `key_of` when the rows of the keys `held` hold something by then."""
    begun = np.zeros(key_of.max(initial=-1) + 1, dtype=np.bool_)
    begun[held] = True
    return np.where(begun[key_of] & (opens == BEGINS), np.int8(OPENS), opens)


class RowStore(Protocol):
    """Where rows live. Implementations: Redis for serving, memory for replay and training."""

    def read(self, keys: Sequence[bytes]) -> tuple[list[bytes | None], AppliedOffsets]:
        """The rows at `keys` (None where there is none) and the marks, from one moment."""
        ...

    def apply(self, update: RowUpdate) -> None:
        """Append `update`'s entries and advance the marks. Raises `StateGap` and changes nothing on a gap."""
        ...


class MarkedRowStore(RowStore, Protocol):
    """Rows that outlive a process and may lose data. Implementations: Redis; memory, for tests."""

    @property
    def epoch(self) -> str:
        """The generation of rows in use; empty before `open`."""
        ...

    def open(self) -> AppliedOffsets | None:
        """Take up the current epoch and answer its marks; None if it is not complete (never initialized, or lost)."""
        ...

    def init(self, next_offset: dict[SourcePartition, int], target: dict[SourcePartition, int]) -> bool:
        """Begin a new epoch with these marks, unless someone else began one since `open`. True if it was us."""
        ...

    def sweep(self) -> int:
        """Delete what earlier epochs left behind, and say how much that was."""
        ...


class FeatureRows(MarkedRowStore, Protocol):
    """Marked rows as the commands that look after them use them. Implementations: Redis, in one shard or several."""

    @property
    def horizon_ms(self) -> int:
        """How far back readers look, lateness included."""
        ...

    def keys(self) -> Iterator[bytes]:
        """The key of every row of the epoch in use, in no order."""
        ...

    def twin(self, *, beside: bool = False) -> FeatureRows:
        """The same rows, or those being built beside them, not yet opened: for another thread."""
        ...

    def take_over(self) -> bool:
        """Make the generation built here the current one; false if somebody else builds by now."""
        ...

    def give_up(self) -> None:
        """Nobody is to use this generation any more."""
        ...

    def keep(self) -> None:
        """Say that the rows are in use."""
        ...

    def take_turn(self, every_ms: int) -> bool:
        """`keep`; true for one caller in `every_ms`, who is to call `retire`."""
        ...

    def retire(self, ends: Mapping[SourcePartition, int], stop: threading.Event) -> int:
        """Delete the rows that nobody will read again, and rows of no use to anybody; answers how many keys went.

        Args:
            ends: of every input partition the offset after its last record, looked up before this call. stop: ends it
                early.
        """
        ...

    def check_eviction_policy(self) -> None:
        """Raise `StateUnavailable` if rows may be evicted."""
        ...


class MemoryRowStore:
    """Rows in this process, for one reader that feeds it in order: replay and training."""

    def __init__(self, applied: AppliedOffsets | None = None) -> None:
        self._rows: dict[bytes, bytearray] = {}
        self._marks = applied or AppliedOffsets({}, {})

    def read(self, keys: Sequence[bytes]) -> tuple[list[bytes | None], AppliedOffsets]:
        """See `RowStore.read`."""
        get = self._rows.get
        return [bytes(row) if (row := get(key)) is not None else None for key in keys], self._marks

    def rows(self) -> dict[bytes, bytes]:
        """Every row by its key."""
        return {key: bytes(row) for key, row in self._rows.items()}

    def apply(self, update: RowUpdate) -> None:
        """See `RowStore.apply`; the single feeder makes gaps impossible, so none is looked for."""
        rows = self._rows
        for key, fold in update.compactions.items():
            rows[key] = bytearray(fold.apply(bytes(rows[key])))
        for key, payload in zip(update.keys, update.payloads, strict=True):
            row = rows.get(key)
            if row is None:
                rows[key] = bytearray(payload)
            else:
                row += payload
        for span in update.spans:
            self._marks.next_offset[span.source] = span.stop
            self._marks.watermark[span.source] = max(span.watermark, self._marks.watermark.get(span.source, -1))
